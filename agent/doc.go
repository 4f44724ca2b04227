// Package agent wires Spillway together: it owns every goroutine, and the one loop that decides.
//
// # Flow
//
//	memory.* *.pressure /proc      oom tracepoint        CRI socket        API server: pods of this node
//	       |                             |                    |                     |
//	  cgroup handles                bpf ring buffer       cri.Watch            kube.Run
//	  [agent/sampler]               [ebpf/oomkill]            +---- agent/podmap ---+
//	       | samples                     | events                      | pods, containers
//	   agent/ring                        v                             v
//	       +---------> [one loop: pressure.Assess -> policy.Decide -> evict.Start] <---- kube/cluster (node, thresholds,
//	                                     | decision, outcome                             Lease, owners)
//	                +--------------------+--------------------+
//	          agent/status          agent/metrics      log, journald, Kubernetes Events     agent/recording
//	                                     |
//	          [agent/ledger] <--- state before each Eviction call and each brake; OOM kills; incidents
//
// What happened is told by agent/report: one record type for each kind of event, which knows its line of the log, its metric, its
// entry in the recording, its Kubernetes Events and its incident.
//
// Assess and Decide are called through agent/judge, which keeps the windows between them. It is pure, like what it calls: a
// recording of its arguments can be played again, see [Replay].
//
// The pace of sampling goes the other way: after each pass the loop tells the sampler how much is left, and hurries it when
// the margin is on its way out; triggers of the kernel ([sampler.Waker]) wake it in between.
//
// OOM kills have a goroutine of their own (agent/oom), which joins the tracer's events with the rungs below it: the kernel's log
// and the counters of cgroups; agent/oom/domain is the pure part of it. It never waits for the loop, nor the loop for it. A
// goroutine beside it tries each minute what of the ladder is missing.
//
// What stands in brackets is a goroutine; all are started and awaited by Run. The loop has one order: observe, assess,
// decide, act. It waits for nothing: calls to the API server are made by the sender of agent/evict, by the follower beside
// it, which looks for the pods that come in the place of evicted ones, and by the goroutine of agent/kube/cluster, which publish what they
// learned. The writes to cgroups are made by the goroutines of agent/reclaim (page cache, before anybody is evicted) and
// agent/brake (memory.high of a victim that still grows), as the kernel may take its time for them. What must survive a
// restart is written by the ledger, for which the senders of evict and brake wait and the loop never does; it ends after
// them. Around an OOM kill, an eviction and a critical verdict the loop notes an incident; the rings are read and the record is
// made (agent/incident) by the writer of agent/events, which the loop does not wait for either. A maintenance run, asked for over the socket,
// is a state machine (agent/once) that the loop steps after its own decisions. What pods usually do (how long they take to exit, the peaks that
// they come back from) is learned by agent/habit, and what an eviction takes on this node besides (the call, a cut, the return of memory) by agent/timing.
// Both are pure; their documents are written by a goroutine beside the loop.
//
// Why a container ended is said by a goroutine beside the loop, agent/exits: it joins what pod status and the runtime tell with the OOM
// kills and evictions of the published Status, asks for Events and volumes within a budget, and hands it all to agent/triage,
// which is pure. Nothing of it holds the loop up. Another one reads each 15 s what pods wait for besides memory (agent/waits), for
// metrics alone.
//
// # Failure
//
// Every source may be missing (no BPF, CRI hung, API server away). Sampling, status and metrics go on, the source is
// named as degraded, and eviction is the first thing to stop: see judge.Conditions, the one table of what must be in order
// before anything is done.
//
// # Import directions
//
//	cmd
//	agent
//	observe report publish events once oom exits preflight self waits   (stations)
//	sampler podmap kube evict brake reclaim ledger metrics recording config
//	judge incident oom/domain                (pure)
//	pressure policy ring status journal triage      (leaves; pressure, policy and triage are pure)
//	cgroup cri ebpf/oomkill                  (leaves: nothing of ours, no Kubernetes)
//
// Nothing imports agent but cmd. test/imports holds the module to these directions.
package agent
