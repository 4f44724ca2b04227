import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** A server in small: requests make garbage; it fills a bounded cache, or keeps a part of each request. */
public final class Heap {
    private static volatile Object sink;

    private record Entry(String key, byte[] value, List<Integer> parts) {}

    public static void main(String[] args) throws InterruptedException {
        boolean leak = args[0].equals("leak");
        Map<String, Entry> cache = new LinkedHashMap<>(1024, 0.75f, true) {
            @Override
            protected boolean removeEldestEntry(Map.Entry<String, Entry> eldest) {
                return size() > 100_000; // about 400 MiB
            }
        };
        List<Entry> kept = new ArrayList<>();
        Random random = new Random(1);
        Thread.sleep(2000); // as it waits for its first request
        while (true) {
            for (int i = 0; i < 50; i++) { // requests of 10 ms
                List<Integer> parts = new ArrayList<>();
                StringBuilder page = new StringBuilder();
                for (int j = 0; j < 100; j++) {
                    parts.add(random.nextInt());
                    page.append("item ").append(j).append(": ").append(random.nextInt()).append('\n');
                }
                sink = page.toString();
                Entry e = new Entry("key-" + random.nextInt(200_000), new byte[3000], parts);
                if (leak && i % 2 == 0) {
                    kept.add(e);
                } else if (!leak) {
                    cache.put(e.key(), e);
                }
            }
            Thread.sleep(10);
        }
    }
}
