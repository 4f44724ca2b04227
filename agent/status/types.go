// Package status is what the agent says of itself: the types of one snapshot, the server that hands it out as JSON
// over HTTP on a unix socket, and the client of that socket. Field names carry their unit.
package status

import "time"

// Status is the agent's state at one moment. Absent figures are null, never 0.
type Status struct {
	Version   string    `json:"version"`
	Node      string    `json:"node"`
	Mode      string    `json:"mode"` // observe, enforce, standalone
	StartedAt time.Time `json:"startedAt"`
	At        time.Time `json:"at"`
	CgroupV   string    `json:"cgroup"` // v1, hybrid, v2

	Pressure  Pressure   `json:"pressure"`
	Sources   []Source   `json:"sources"`
	Preflight []Check    `json:"preflight"` // what the agent needs, as it was found at the start or when last asked for
	Loop      Loop       `json:"loop"`
	Evictions Evictions  `json:"evictions"`
	Reclaims  Reclaims   `json:"reclaims"`
	Brakes    []Brake    `json:"brakes"` // newest first
	Pods      []Pod      `json:"pods"`
	Groups    []Group    `json:"cgroups,omitempty"` // standalone: the cgroups below the root
	Ledger    *Ledger    `json:"ledger"`            // null: standalone
	Runtime   *Runtime   `json:"runtime"`           // null: not used
	OOMKills  []OOMKill  `json:"oomKills"`          // newest first, those of before a restart too
	OOMWatch  OOMWatch   `json:"oomWatch"`
	Exits     []Exit     `json:"exits"`     // containers that ended with a code other than 0, newest first
	ExitsLost uint64     `json:"exitsLost"` // that were not looked at: too many at once
	Decisions []Decision `json:"decisions"` // newest first
	Incidents []Event    `json:"incidents"` // the newest three, newest first
	Observe   *Observe   `json:"observe"`   // null: standalone, or enforce mode without any

	Undelivered *Undelivered `json:"undelivered,omitempty"` // null: not counted
}

// Undelivered counts what was lost on its way since the agent's start.
type Undelivered struct {
	JournalRecords   uint64 `json:"journalRecords"`   // that journald did not take
	KubernetesEvents uint64 `json:"kubernetesEvents"` // that the API server did not take, or that were too many at once
	KernelLogRecords uint64 `json:"kernelLogRecords"` // of the kernel's log: how often it had overwritten some before they were read, and those too many at once
}

// Pressure is the verdict on the node.
type Pressure struct {
	Level         string      `json:"level"`
	LevelNow      string      `json:"levelNow"` // without hysteresis
	Reason        string      `json:"reason"`
	Signal        string      `json:"signal"` // the nearest hard threshold's
	MarginBytes   *int64      `json:"marginBytes"`
	UsedPercent   *float64    `json:"usedPercent"`
	SlopeBytes    float64     `json:"slopeBytesPerSecond"`
	CacheSlope    float64     `json:"cacheSlopeBytesPerSecond"`
	ETASeconds    *float64    `json:"etaSeconds"` // null: not in sight
	LeadSeconds   float64     `json:"leadTimeSeconds"`
	Cause         string      `json:"cause"`
	Stalls        []Stall     `json:"memoryStalls"`        // windows that are covered
	Explained     *float64    `json:"stallExplainedRatio"` // part of the full stall that containers at their own limits explain
	Growth        []Growth    `json:"growth"`              // over 10 s, by where it is
	Risk          *Risk       `json:"risk"`                // null: less than 30 min of history
	CapacityBytes *int64      `json:"capacityBytes"`
	Allocatable   *int64      `json:"allocatableBytes"`
	Thresholds    []Threshold `json:"thresholds"`
	Gates         []Gate      `json:"gates"`
	SampleAt      *float64    `json:"sampleBootSeconds"` // CLOCK_BOOTTIME of the sample that this is made of
}

// Explanation says what the agent would do with one pod now, and why.
type Explanation struct {
	At    time.Time `json:"at"`
	Pod   string    `json:"pod"` // namespace/name
	UID   string    `json:"uid"`
	Evict bool      `json:"evict"` // it would be evicted now
	Why   string    `json:"why"`   // one sentence, from the first thing that decides

	Level       string `json:"level"` // of this moment: only evict and critical act
	LevelReason string `json:"levelReason"`
	Gates       []Gate `json:"gates"`
	Held        string `json:"held,omitempty"` // what holds every eviction back now

	Fate        string       `json:"fate"` // by the policy alone: evicted, protected, no-need, excluded, outranked, round-full
	FateReason  string       `json:"fateReason"`
	Protections []Protection `json:"protections"` // all that hold
	Rank        int          `json:"rank"`        // 1 goes first; 0: protected
	Of          int          `json:"of"`          // unprotected pods
	Score       *float64     `json:"score"`       // null: no fresh reading
	Terms       []Term       `json:"terms"`

	Fresh         bool     `json:"fresh"`
	ReleaseBytes  *uint64  `json:"releaseBytes"`  // what its exit gives back
	SurvivesBytes *uint64  `json:"survivesBytes"` // shared memory that may outlive it
	GrowthBytes   *float64 `json:"growthBytesPerSecond"`
	GrowthPercent *float64 `json:"growthSharePercent"`
	LeadSeconds   float64  `json:"leadTimeSeconds"`         // until its memory would be back
	LeadLearned   bool     `json:"leadTimeLearned"`         // from evictions of its workload; else from its grace period
	Covers        bool     `json:"covers"`                  // its eviction alone would end the shortage
	Set           []string `json:"set"`                     // the pods that the policy names now, in order
	KubeletChoice string   `json:"kubeletChoice,omitempty"` // as in Decision
	Cluster       []string `json:"cluster"`                 // what the rest of the cluster says about evicting it, in words
}

// Protection is one reason why a pod is not evicted.
type Protection struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Risk is what a line through the history of up to 24 h says of memory that cannot be reclaimed.
type Risk struct {
	High           bool    `json:"high"` // over 0.5 % of the node's memory per hour, and r2 over 0.8
	PercentPerHour float64 `json:"percentOfNodePerHour"`
	R2             float64 `json:"r2"`
	SpanSeconds    float64 `json:"spanSeconds"`
}

// Stall is the part of a window in which some task, or every task that could run, waited for memory (PSI, from total=).
type Stall struct {
	Kind          string  `json:"kind"` // some, full
	WindowSeconds float64 `json:"windowSeconds"`
	Ratio         float64 `json:"ratio"`
}

// Growth is how fast one part of the node's memory grows without page cache; negative: it shrinks.
type Growth struct {
	Part           string   `json:"part"` // node, pods, system-slices, kernel, unexplained
	BytesPerSecond *float64 `json:"bytesPerSecond"`
}

// SampleQuery says which samples are asked for. The zero value is the node at full resolution.
type SampleQuery struct {
	Resolution string // Fast, Second or Minute; "" is Fast
	Pod        string // "namespace/name"; "" is the node
}

// Resolutions of samples. What is kept: 12 s at full resolution, 15 min of seconds (2 min of a pod), 24 h of minutes.
const (
	Fast   = "fast"
	Second = "second"
	Minute = "minute"
)

// Samples is a window of samples, oldest first: of the node, of a pod, or by the minute, as it was asked for.
type Samples struct {
	At          time.Time   `json:"at"`          // wall clock when this was made
	BootSeconds float64     `json:"bootSeconds"` // CLOCK_BOOTTIME at the same moment
	Node        []Sample    `json:"node,omitempty"`
	Pod         []PodSample `json:"pod,omitempty"`
	Minutes     []MinuteSum `json:"minutes,omitempty"`
}

// PodSample is one reading of a pod's cgroup; null: not read.
type PodSample struct {
	BootSeconds     float64 `json:"bootSeconds"`
	UsageBytes      *uint64 `json:"usageBytes"`
	WorkingSetBytes *uint64 `json:"workingSetBytes"`
	AnonBytes       *uint64 `json:"anonBytes"`
	ShmemBytes      *uint64 `json:"shmemBytes"`
	ActiveFileBytes *uint64 `json:"activeFileBytes"`
	SwapBytes       *uint64 `json:"swapBytes"`
}

// MinuteSum sums up one minute; null: no reading had it.
type MinuteSum struct {
	BootSeconds    float64 `json:"bootSeconds"`
	PeakWorkingSet *uint64 `json:"peakWorkingSetBytes"`
	HeldFloor      *uint64 `json:"heldFloorBytes"` // lowest memory that cannot be reclaimed
}

// Sample is one reading of the node; null: not read.
type Sample struct {
	BootSeconds     float64 `json:"bootSeconds"`
	CapacityBytes   *uint64 `json:"capacityBytes"`
	RootWorkingSet  *uint64 `json:"rootWorkingSetBytes"`
	RootActiveFile  *uint64 `json:"rootActiveFileBytes"`
	PodsWorkingSet  *uint64 `json:"podsWorkingSetBytes"`
	PodsActiveFile  *uint64 `json:"podsActiveFileBytes"`
	PodsLimit       *uint64 `json:"podsLimitBytes"` // null also when unlimited
	MemAvailable    *uint64 `json:"memAvailableBytes"`
	StallSomeMicros *uint64 `json:"psiSomeTotalMicroseconds"`
	StallFullMicros *uint64 `json:"psiFullTotalMicroseconds"`
}

// Threshold is one threshold and how far the node is from it.
type Threshold struct {
	Signal         string `json:"signal"`
	Hard           bool   `json:"hard"`
	LimitBytes     *int64 `json:"limitBytes"`
	AvailableBytes *int64 `json:"availableBytes"`
	MarginBytes    *int64 `json:"marginBytes"`
	Source         string `json:"source"`

	// Soft thresholds that are met now.
	GraceSeconds *float64 `json:"graceSeconds,omitempty"`
	GraceLeft    *float64 `json:"graceLeftSeconds,omitempty"` // 0: the kubelet evicts at its next look
}

// Gate is one condition that an eviction waits for.
type Gate struct {
	Name   string `json:"name"`
	Open   bool   `json:"open"`
	Detail string `json:"detail"`
}

// Source is one thing that the agent depends on.
type Source struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, degraded, off
	Detail string `json:"detail,omitempty"`
}

// States of a source.
const (
	OK       = "ok"
	Degraded = "degraded" // the agent works on without it, with less
	Off      = "off"      // not used in this mode
)

// Loop says how the agent itself keeps up.
type Loop struct {
	IntervalSeconds  float64   `json:"intervalSeconds"`         // present pace of sampling
	WorstFillRate    float64   `json:"worstFillBytesPerSecond"` // that the pace reckons with
	Wakes            uint64    `json:"wakes"`                   // how often triggers or the level made sampling fast
	WakesPassed      uint64    `json:"wakesPassedOver"`         // triggers that were not followed, as those before led to nothing
	RingBytes        int64     `json:"ringBytes"`
	PodSweeps        uint64    `json:"podSweeps"`
	MapWalks         uint64    `json:"mapWalks"`
	MapWalkSeconds   float64   `json:"mapWalkSeconds"` // of all walks
	Sweeps           uint64    `json:"sweeps"`
	LateSweeps       uint64    `json:"lateSweeps"`
	LastLateSeconds  float64   `json:"lastLateSeconds"`
	WorstLateSeconds float64   `json:"worstLateSeconds"`
	LastSweepSeconds float64   `json:"lastSweepSeconds"`
	ReadErrors       uint64    `json:"readErrors"`
	LastError        string    `json:"lastError,omitempty"`
	LastPass         time.Time `json:"lastPass"`
	Passes           uint64    `json:"passes"`
}

// Share bounds evictions within a window by the number of the node's pods.
type Share struct {
	Class       string  `json:"class"` // all, or relief: pods without a real part in the growth
	WindowHours float64 `json:"windowHours"`
	Count       int     `json:"count"`
	Most        int     `json:"most"`
	Percent     float64 `json:"percent"`
	Pods        int     `json:"pods"`
}

// Evictions is what was asked for, and what stands in the way of the next.
type Evictions struct {
	Paused    bool      `json:"paused"`              // by the pause switch
	Forbidden string    `json:"forbidden,omitempty"` // why none may start now
	Once      string    `json:"once,omitempty"`      // the maintenance run that goes on, and what it does now
	LastHour  int       `json:"lastHour"`
	HourlyCap int       `json:"hourlyCap"`
	Shares    []Share   `json:"shares,omitempty"` // of the node's pods, beside the hourly cap
	Outcomes  []Outcome `json:"outcomes"`         // newest first
	Timing    *Timing   `json:"timing,omitempty"`

	Replacements []Replacement `json:"replacements"`              // newest first, of evictions of the last 24 h
	Returned     uint64        `json:"replacementsReturnedTotal"` // evictions whose replacement came to this node, since the start
}

// Reclaims is what page cache was given back.
type Reclaims struct {
	Forbidden string    `json:"forbidden,omitempty"` // why no pod's can be on this node
	Count     uint64    `json:"count"`
	BackBytes uint64    `json:"backBytes"` // of all, at once
	Attempts  []Reclaim `json:"attempts"`  // newest first
}

// Reclaim is one of them.
type Reclaim struct {
	Pod       string     `json:"pod"` // namespace/name
	UID       string     `json:"uid"`
	At        time.Time  `json:"at"`
	EndedAt   *time.Time `json:"endedAt"`
	State     string     `json:"state"` // reclaiming, reclaimed, would-reclaim, refused, failed
	Why       string     `json:"why,omitempty"`
	DryRun    bool       `json:"dryRun"`
	WantBytes uint64     `json:"wantBytes"`
	BackBytes uint64     `json:"backBytes"`
	Seconds   float64    `json:"seconds"` // of the write
	// less active page cache 10 s later than before; null: not measured, or another reclaim followed
	LastingBytes *int64 `json:"lastingBytes"`
	RefaultPages *int64 `json:"refaultPages"` // read again within these 10 s
	MajorFaults  *int64 `json:"majorFaults"`  // likewise
}

// Brake is memory.high of a victim's cgroup, set while its eviction runs.
type Brake struct {
	Pod           string     `json:"pod"` // namespace/name
	UID           string     `json:"uid"`
	At            time.Time  `json:"at"`
	SetAt         *time.Time `json:"setAt"` // null: it was not, or by an agent before this one
	EndedAt       *time.Time `json:"endedAt"`
	State         string     `json:"state"`         // setting, braking, releasing, released, gone, not-needed, refused, failed
	Why           string     `json:"why,omitempty"` // it was released, or not set
	UsageBytes    *uint64    `json:"usageBytes"`    // right before it was set; null: it was not
	HighBytes     *uint64    `json:"highBytes"`     // likewise
	PreviousBytes *uint64    `json:"previousBytes"` // memory.high before; null: none
}

// Outcome is one eviction.
type Outcome struct {
	DecisionID    string     `json:"decisionId"`
	Namespace     string     `json:"namespace"`
	Pod           string     `json:"pod"`
	UID           string     `json:"uid"`
	State         string     `json:"state"`
	DryRun        bool       `json:"dryRun"`
	SampledAt     *time.Time `json:"sampledAt"` // of the kernel's figures that decided; null: not known after a restart
	AskedAt       time.Time  `json:"askedAt"`
	AnsweredAt    *time.Time `json:"answeredAt"`
	EndedAt       *time.Time `json:"endedAt"`
	ShortenedAt   *time.Time `json:"shortenedAt,omitempty"` // its grace period was cut short
	Code          int        `json:"httpCode"`
	Answer        string     `json:"answer"`
	Message       string     `json:"message,omitempty"`
	ExpectedBytes uint64     `json:"expectedBytes"`
	MeasuredBytes *uint64    `json:"measuredBytes"`

	LatencySeconds *float64 `json:"latencySeconds"` // from the sample that decided to the request on the wire
}

// Pod is one pod of this node with its reading and its place in the ranking.
type Pod struct {
	Namespace       string      `json:"namespace"`
	Name            string      `json:"name"`
	UID             string      `json:"uid"`
	QoS             string      `json:"qos,omitempty"`
	Priority        int32       `json:"priority"`
	Fresh           bool        `json:"fresh"` // a reading young enough to act on
	UsageBytes      *uint64     `json:"usageBytes"`
	WorkingSetBytes *uint64     `json:"workingSetBytes"`
	ReleaseBytes    *uint64     `json:"releaseBytes"`
	GrowthBytes     *float64    `json:"growthBytesPerSecond"`
	RequestBytes    uint64      `json:"requestBytes"`
	LimitBytes      *uint64     `json:"limitBytes"` // null: none
	Score           *float64    `json:"score"`
	Rank            int         `json:"rank"` // 1 goes first; 0: protected
	Terms           []Term      `json:"terms,omitempty"`
	Protection      string      `json:"protection,omitempty"`
	Reason          string      `json:"reason,omitempty"`
	Cluster         []string    `json:"cluster,omitempty"` // what the rest of the cluster says about evicting it, in words
	Containers      []Container `json:"containers,omitempty"`
	Risk            *Risk       `json:"risk"` // null: less than 30 min of history
	Waits           *Waits      `json:"waits,omitempty"`
}

// Waits is what a pod waited for since the agent's start, or its own if that was later; read every 15 s.
type Waits struct {
	CPUPeriods          uint64        `json:"cpuPeriods"`          // in which a container with a CPU limit wanted to run
	CPUThrottledPeriods uint64        `json:"cpuThrottledPeriods"` // in which one was stopped by it
	CPUThrottledSeconds float64       `json:"cpuThrottledSeconds"` // for how long, summed over CPUs
	Pressure            []PodPressure `json:"pressure,omitempty"`  // cgroup v2
}

// PodPressure is the stall of a pod's cgroup since that was made (PSI, Documentation/accounting/psi.rst).
type PodPressure struct {
	Resource    string  `json:"resource"` // memory, cpu, io
	SomeSeconds float64 `json:"someSeconds"`
	FullSeconds float64 `json:"fullSeconds"`
}

// Container is one container of a pod on this node.
type Container struct {
	Name       string  `json:"name"`
	ID         string  `json:"id"`
	CgroupID   uint64  `json:"cgroupId"`
	LimitBytes *uint64 `json:"limitBytes"`
}

// Term is one part of a score.
type Term struct {
	Name   string  `json:"name"`
	Weight float64 `json:"weight"`
	Value  float64 `json:"value"`
}

// Group is a cgroup that no pod owns.
type Group struct {
	Path            string  `json:"path"`
	UsageBytes      *uint64 `json:"usageBytes"`
	WorkingSetBytes *uint64 `json:"workingSetBytes"`
}

// Runtime is how the container runtime answers.
type Runtime struct {
	LatencySeconds float64   `json:"latencySeconds"` // of the newest list of all containers; 0 before the first, after a hang the time-out
	Hung           bool      `json:"hung"`           // the newest call reached its time-out: nobody is evicted
	Hangs          uint64    `json:"hangsTotal"`
	LastContact    time.Time `json:"lastContact"` // when it last answered a list; zero: never
	Containers     int       `json:"containers"`  // the last that it told of
}

// Ledger is the store of what survives a restart.
type Ledger struct {
	File        string `json:"file"`
	SizeBytes   int64  `json:"sizeBytes"`
	WriteErrors uint64 `json:"writeErrors"`        // commits that failed, or took longer than 10 s
	Dropped     uint64 `json:"recordsDropped"`     // as the disk did not keep up
	SetAside    string `json:"setAside,omitempty"` // the file that the ledger before became, which could not be used
}

// OOMWatch says how kills by the kernel are seen.
type OOMWatch struct {
	// Rungs of the ladder, the surest first. The first one that is active reports kills; a lower one then only helps.
	Rungs []OOMRung `json:"rungs"`
	// Kills counts processes that were reported one by one since the agent started, Missed those that only a counter of the
	// kernel told of, Lost the events for which the buffer in the kernel had no room.
	Kills  uint64 `json:"kills"`
	Missed uint64 `json:"missed"`
	Lost   uint64 `json:"lost"`
	// Audited: the kernel's count of all kills (oom_kill in /proc/vmstat) can be read, and is compared each second.
	Audited bool `json:"audited"`
}

// OOMRung is one way to see kills.
type OOMRung struct {
	Name   string `json:"name"`  // bpf, kmsg, memory.events, memory.oom_control, vmstat
	State  string `json:"state"` // active, helps, standby, missing
	Detail string `json:"detail"`
	// Remedy is what would bring a rung that is missing, "" where nothing is known to.
	Remedy string `json:"remedy,omitempty"`
}

// OOMKill is one kill by the kernel: of one process, or with memory.oom.group of all processes of a cgroup.
type OOMKill struct {
	At             time.Time `json:"at"`
	Source         string    `json:"source"`  // the rung that told of it; vmstat: nobody did, a counter of the kernel is higher
	Victims        int       `json:"victims"` // processes
	Namespace      string    `json:"namespace,omitempty"`
	Pod            string    `json:"pod,omitempty"`
	PodUID         string    `json:"podUid,omitempty"`
	Container      string    `json:"container,omitempty"`
	ContainerID    string    `json:"containerId,omitempty"`
	Cgroup         string    `json:"cgroup,omitempty"`
	CgroupID       uint64    `json:"cgroupId"`
	Process        string    `json:"process"` // empty: the kernel named the victim by number only, and it was not found
	PID            uint32    `json:"pid"`
	UID            uint32    `json:"uid"`
	AnonBytes      *uint64   `json:"anonBytes"` // null: the kernel's layout is not known
	FileBytes      *uint64   `json:"fileBytes"`
	ShmemBytes     *uint64   `json:"shmemBytes"`
	LimitBytes     *uint64   `json:"limitBytes"` // of the container, else of the pod; null: none, or not known
	LimitOf        string    `json:"limitOf"`    // container, pod, none, unknown
	TriggerProcess string    `json:"triggerProcess"`
	TriggerPID     uint32    `json:"triggerPid"`
	LatencySeconds *float64  `json:"latencySeconds"` // from the kernel's mark to this record; null: the time of the mark is unknown

	Thread         string     `json:"thread,omitempty"` // the thread that the kernel named, where it is not the process's first
	StartedAt      *time.Time `json:"startedAt"`        // the process
	PageTableBytes *uint64    `json:"pageTableBytes"`
	OOMScoreAdj    *int16     `json:"oomScoreAdj"`

	// Domain is whose memory had run out: container, pod, kubepods (all pods, or a class), cgroup (any other), node, cpuset,
	// mempolicy; unknown: DomainWhy says what is missing.
	Domain           string  `json:"domain"`
	DomainCgroup     string  `json:"domainCgroup,omitempty"`
	DomainLimitBytes *uint64 `json:"domainLimitBytes"`
	// DomainKnownBy: kernel-log, memory.events, oom_control, usage-at-limit, no-limit (nothing above it has one), no-limit-was-hit.
	DomainKnownBy string `json:"domainKnownBy,omitempty"`
	DomainWhy     string `json:"domainWhy,omitempty"`

	// Group is the cgroup that was killed as one (memory.oom.group), and Others its victims but the first, at most 63.
	Group  string      `json:"group,omitempty"`
	Others []OOMVictim `json:"others,omitempty"`
}

// OOMVictim is one further process of a group kill.
type OOMVictim struct {
	Process   string  `json:"process"`
	PID       uint32  `json:"pid"`
	AnonBytes *uint64 `json:"anonBytes"`
}

// Decision is one look at the pods at level evict or above, or its result in words when nobody may go; or one eviction of a
// maintenance run, at any level.
type Decision struct {
	ID          string    `json:"id"`
	At          time.Time `json:"at"`
	Level       string    `json:"level"`
	Signal      string    `json:"signal"`
	MarginBytes int64     `json:"marginBytes"`
	ETASeconds  *float64  `json:"etaSeconds"`
	SlopeBytes  float64   `json:"slopeBytesPerSecond"`
	LeadSeconds float64   `json:"leadTimeSeconds"`
	Cause       string    `json:"cause"`
	Why         string    `json:"why"` // the condition that made the level
	// held, near-miss, or one of package policy: victim, no-need, round-full, all-protected, all-blocked, no-candidate-helps,
	// stand-by, held-by-history, held-by-cluster
	State     string   `json:"state"`
	Reason    string   `json:"reason"` // in words
	Victim    string   `json:"victim,omitempty"`
	VictimUID string   `json:"victimUid,omitempty"`
	Score     *float64 `json:"score"`
	DryRun    bool     `json:"dryRun"`

	KubeletChoice string `json:"kubeletChoice,omitempty"` // namespace/name and why: the pod that the kubelet, or the kernel, would take now
	Repeats       int    `json:"repeats"`                 // further passes that came to the same result
	Ranking       []Pod  `json:"ranking,omitempty"`
}
