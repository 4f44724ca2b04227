package main

// intro explains the report of the population.
const intro = `What policies do in a population of loads: ` + "`go run ./test/decisions -population-only`" + ` prints this.

Each episode is one drawn load on one drawn node: see episode.go and kinds.go for what is drawn, world.go for the kubelet, the
kernel and the controllers of the model. All policies play the same episodes. Everything from the readings on is the agent's own
code in the rows of Spillway.

- *evictions*: pods that the policy evicted or killed. *By the kubelet*, *by the kernel*: pods that these ended in the same runs.
- *innocents*: evicted pods without a real part in the growth. A part is real when the pod grew 4 MiB or more in the last minute
  or the last 10 s, and that is a tenth of all growth then, or half of the largest growth. *Before critical*: those that Spillway
  evicted at a level below critical.
- *needless*: evictions in episodes in which the margin would never have gone below 0 without any eviction; the percentage is per
  100 such episodes. *Known*: the growing workloads ran on the node before, and their exits and peaks are known.
- *thresholds crossed*: episodes in which the margin went below 0: the kubelet's hard threshold or the end of MemAvailable.
  *Crossed, no answer*: those in which the oracle crosses too. Its growth is page cache, outside of the pods, in pods that may
  not be evicted, or too fast.
- *ended by themselves*: victims that ended within their grace before it was cut short, of those that end within it at all.
- *repeated*: evictions of a workload of which a pod was evicted within the 15 min before.

`
