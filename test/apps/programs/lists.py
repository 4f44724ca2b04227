"""Builds large lists and releases them, or keeps what it computes."""
import sys
import time

leak = sys.argv[1] == "leak"
time.sleep(2)  # as it waits for its first request

if leak:
    seen = {}
    n = 0
    while True:
        for _ in range(1000):
            seen["key %d" % n] = [n, str(n) * 5, {"square": n * n}]
            n += 1
        time.sleep(0.03)
else:
    for _ in range(2):
        rows = []
        for i in range(1_400_000):
            rows.append({"id": i, "name": "name %d" % i, "score": i / 7})
            if i % 5000 == 0:
                time.sleep(0.02)
        rows.sort(key=lambda row: -row["score"])
        time.sleep(5)
        print(len(rows))
        del rows
        time.sleep(8)
    time.sleep(3600)  # it serves on
