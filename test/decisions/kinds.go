package main

import (
	"fmt"
	"math"
)

// rate draws the rate at which bytes grow, so that this takes 0.3 s to longest seconds.
func (m *maker) rate(bytes float64) float64 {
	for range 100 {
		if r := m.scale(slowest, fastest); bytes/r >= 0.3 && bytes/r <= longest {
			return r
		}
	}
	return min(max(slowest, bytes/longest), fastest)
}

// height draws how much a growth takes that ends by itself: most end before the threshold.
func (m *maker) height() float64 { return m.within(m.e.Margin) }

func (m *maker) within(room float64) float64 {
	m.ends = true
	if m.chance(0.25) {
		return room * m.between(1.05, 2)
	}
	return room * m.between(0.1, 0.95)
}

// count draws how many pods grow.
func (m *maker) count() int {
	switch f := m.Float64(); {
	case f < 0.55:
		return 1
	case f < 0.85:
		return 2 + m.IntN(3)
	default:
		return 5 + m.IntN(16)
	}
}

// shares draws parts of 1, of which none is more than five times another.
func (m *maker) shares(n int) []float64 {
	out, sum := make([]float64, n), 0.0
	for i := range out {
		out[i] = m.between(0.4, 2)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func (m *maker) ripple() float64 {
	if m.chance(0.5) {
		return m.between(0.02, 0.25)
	}
	return 0
}

// leaking makes n pods, of which the i-th has a share of the load as curve makes it.
func (m *maker) leaking(n int, curve func(i int, share, base float64) shape) {
	shares := m.shares(n)
	m.pods(n, "", func(i int, p *podSpec) {
		p.Anon = curve(i, shares[i], max(10*mib, m.own*m.between(0.5, 1)/float64(n)))
	})
}

func (m *maker) leak() {
	m.e.Rate = m.rate(m.e.Margin)
	m.endOfLoad = 1.3*m.e.Margin/m.e.Rate + 20
	m.leaking(m.count(), func(_ int, share, base float64) shape {
		return shape{Form: ramp, Base: base, Rate: m.e.Rate * share, Ripple: m.ripple(), Phase: m.between(0, 6)}
	})
}

func (m *maker) accelerating() {
	m.e.Rate = m.rate(m.e.Margin)
	took := m.e.Margin / m.e.Rate
	m.endOfLoad = 1.3*took + 20
	double := took * m.scale(0.05, 1)
	m.leaking(m.count(), func(_ int, share, base float64) shape {
		return shape{Form: faster, Base: base, Rate: m.e.Rate * share, Double: double}
	})
}

func (m *maker) stepping() {
	every := m.between(4, 20)
	step := min(m.scale(50*mib, 600*mib), m.e.Margin/3)
	step = max(step, m.e.Margin*every/longest)
	m.e.Rate = step / every
	m.endOfLoad = 1.3*m.e.Margin/m.e.Rate + 30
	m.leaking(1+m.IntN(2), func(_ int, share, base float64) shape {
		return shape{Form: steps, Base: base, Rate: m.e.Rate * share, Height: step * share, Every: every, Start: m.between(0, 1)}
	})
}

// beside is a leak while other pods are busy: heaps, bursts given back.
func (m *maker) beside() {
	m.leak()
	for range 1 + m.IntN(3) {
		height := m.e.Margin * m.between(0.02, 0.15)
		if m.chance(0.5) {
			m.activity = append(m.activity, shape{Form: saw, Height: height, Every: m.between(4, 40), Phase: m.between(0, 40)})
		} else {
			m.activity = append(m.activity, shape{Form: burst, Height: height, Rate: m.rate(height), Hold: m.between(0.5, 10), Fall: m.between(0.2, 2),
				Start: m.between(0, m.e.Margin/m.e.Rate)})
		}
	}
}

func (m *maker) burst() {
	height := m.height()
	m.e.Rate = m.rate(height)
	hold, fall := m.scale(0.5, 20), m.between(0.2, 3)
	m.endOfLoad = height/m.e.Rate + hold + fall + 15
	m.leaking(m.count(), func(_ int, share, base float64) shape {
		return shape{Form: burst, Base: base, Rate: m.e.Rate * share, Height: height * share, Hold: hold, Fall: fall}
	})
}

func (m *maker) plateau() {
	height := m.height()
	m.e.Rate = m.rate(height)
	m.endOfLoad = height/m.e.Rate + 40
	m.leaking(m.count(), func(_ int, share, base float64) shape {
		return shape{Form: ramp, Base: base, Rate: m.e.Rate * share, Most: height * share, Ripple: m.ripple()}
	})
}

// sawtooth is a heap that is collected, or a leak up to the pod's own limit, where the container is killed and starts again.
func (m *maker) sawtooth() {
	height := m.height()
	m.e.Rate = m.rate(height)
	every := min(max(height/m.e.Rate, 3), 120)
	m.e.Rate = height / every
	m.endOfLoad = min(max(4*every, 60), 300)
	limited := m.chance(0.2)
	m.leaking(1+m.IntN(4), func(_ int, share, base float64) shape {
		return shape{Form: saw, Base: base, Rate: m.e.Rate * share, Height: height * share, Every: every * m.between(0.7, 1.3), Phase: m.between(0, every)}
	})
	for i := range m.growers {
		if p := &m.growers[i]; limited {
			p.Limit = p.Anon.Base + p.Anon.Height
			p.qualify()
		}
	}
}

// batch is a Job whose pods grow to a plateau and finish.
func (m *maker) batch() {
	height := m.height()
	m.e.Rate = m.rate(height)
	n := 2 + m.IntN(11)
	took, stay := height/m.e.Rate, m.between(5, 60)
	shares, spread := m.shares(n), m.between(0, 20)
	retries := int32(3)
	if m.chance(0.2) {
		retries = 0
	}
	m.endOfLoad = spread + took + stay + 15
	m.pods(n, "Job", func(i int, p *podSpec) {
		p.Retries = retries
		p.Born = m.between(0, spread)
		p.Anon = shape{Form: ramp, Base: 10 * mib, Rate: m.e.Rate * shares[i], Most: height * shares[i], Fresh: 1}
		p.Finish = 1 + took + stay*m.between(0.7, 1)
	})
}

// warmUp is the first load of new pods: caches and heaps fill, and stay.
func (m *maker) warmUp() {
	height := m.height()
	m.e.Rate = m.rate(height)
	n := 1 + m.IntN(6)
	shares := m.shares(n)
	m.endOfLoad = height/m.e.Rate + 40
	m.pods(n, "ReplicaSet", func(i int, p *podSpec) {
		p.Born = m.between(0, 4)
		p.Anon = shape{Form: ramp, Base: 20 * mib, Rate: m.e.Rate * shares[i], Most: height * shares[i], Fresh: m.between(1, 4)}
		p.Request = height * shares[i] * m.between(0.5, 1.3)
		p.qualify()
	})
}

// starts is a surge of new pods, each of which takes its memory within some seconds.
func (m *maker) starts() {
	height := m.height()
	n := 3 + m.IntN(25)
	within, spread := m.scale(0.8, 10), m.between(4, 40)
	m.e.Rate = height / (spread + within)
	shares := m.shares(n)
	m.endOfLoad = spread + within + 40
	m.pods(n, "ReplicaSet", func(i int, p *podSpec) {
		p.Born = spread * float64(i) / float64(n)
		p.Anon = shape{Form: still, Base: height * shares[i], Fresh: within}
		p.Request = height * shares[i] * m.between(0.5, 1.2)
		p.qualify()
	})
}

// pageCache is a pod that reads files again and again: its page cache becomes active, which the kubelet counts as used.
func (m *maker) pageCache() {
	height := m.within(m.toKubelet)
	m.e.Rate = m.rate(height)
	n := 1 + m.IntN(2)
	m.endOfLoad = height/m.e.Rate + 60
	m.pods(n, "", func(_ int, p *podSpec) {
		p.Anon = shape{Form: still, Base: max(10*mib, m.own/float64(n))}
		p.Cache = shape{Form: ramp, Rate: m.e.Rate / float64(n), Most: height / float64(n)}
	})
}

// tmpfs is a pod that fills an emptyDir of medium Memory, or its /dev/shm.
func (m *maker) tmpfs() {
	height := 0.0
	bytes := m.e.Margin
	if m.chance(0.5) {
		height = m.height()
		bytes = height
	}
	m.e.Rate = m.rate(bytes)
	m.endOfLoad = 1.2*bytes/m.e.Rate + 30
	m.pods(1, "", func(_ int, p *podSpec) {
		p.Anon = shape{Form: still, Base: max(10*mib, m.own)}
		p.Shmem = shape{Form: ramp, Rate: m.e.Rate, Most: height}
		p.MemoryVolume = true
	})
}

// outside draws growth that no pod has a part in.
func (m *maker) outside(s *shape, room, most float64) {
	bytes := room
	if m.chance(0.6) {
		bytes = m.within(room)
		s.Most = bytes
	}
	s.Form, s.Rate = ramp, min(most, m.rate(bytes))
	m.e.Rate = s.Rate
	m.e.Exit = "-"
	m.endOfLoad = 1.2*bytes/s.Rate + 30
}

func (m *maker) system() { m.outside(&m.e.System, m.e.Margin, fastest) }
func (m *maker) kernel() { m.outside(&m.e.Kernel, m.toKernel, 500*mib) }

// pods makes the growing pods: of one workload or of several.
func (m *maker) pods(n int, kind string, fill func(i int, p *podSpec)) {
	workloads := 1
	if n > 1 && kind == "" && m.chance(0.4) {
		workloads = min(n, 2+m.IntN(4))
	}
	m.e.Known = m.chance(0.5)
	var models []podSpec
	for i := range workloads {
		w := m.workload(fmt.Sprintf("load-%d", i), kind)
		w.Known = m.e.Known
		w.Replicas = int32(max(1, n/workloads) + m.IntN(2))
		models = append(models, w)
	}
	m.e.Exit = models[0].ExitKind
	for i := range n {
		p := models[i%workloads]
		p.Name = fmt.Sprintf("%s-%02d", p.Workload, i)
		fill(i, &p)
		if p.Request == 0 && p.Born < 0 {
			switch f := m.Float64(); {
			case f < 0.3:
			case f < 0.85:
				p.Request = p.Anon.Base * m.between(0.5, 1.2)
			default: // its growth stays inside of its request, or nearly so
				p.Request = p.Anon.Base + p.grows(m.e.Margin)*m.between(0.8, 1.5)
			}
		}
		p.qualify()
		m.remember(&p)
		m.growers = append(m.growers, p)
	}
}

// grows is how much the pod grows by itself, at most as much as given for what has no end.
func (p *podSpec) grows(endless float64) float64 {
	s := &p.Anon
	if p.Shmem.Form != "" {
		s = &p.Shmem
	}
	switch s.Form {
	case still, "":
		return 0
	case burst, saw:
		return s.Height
	}
	if s.Most > 0 {
		return s.Most
	}
	return endless
}

// qualify sets the quality-of-service class, and a burstable pod without memory request has a processor request.
func (p *podSpec) qualify() {
	switch {
	case p.Limit > 0 && p.Request == p.Limit:
		p.QoS = "Guaranteed"
	case p.Request > 0 || p.Limit > 0:
		p.QoS = "Burstable"
	}
}

// workload draws what the pods of one workload have in common.
func (m *maker) workload(name, kind string) podSpec {
	p := podSpec{Namespace: "apps", Workload: name, Kind: kind, Replicas: 2, Retries: 3, QoS: "BestEffort", Born: -1, Age: m.scale(120, 30*86400), Sidecars: m.chance(0.2),
		Cut: m.between(1.1, 3.5), Unmount: m.between(0.3, 2), Here: m.chance(0.25), Delay: m.between(1.5, 6)}
	if m.chance(0.4) {
		p.QoS = "Burstable"
	}
	if p.Sidecars {
		p.Cut++
	}
	if kind == "" {
		switch f := m.Float64(); {
		case f < 0.72:
			p.Kind = "ReplicaSet"
		case f < 0.86:
			p.Kind = "StatefulSet"
		case f < 0.93:
			p.Kind = "DaemonSet"
		default:
			p.Kind = "Job"
		}
	}
	switch f := m.Float64(); {
	case f < 0.04:
		p.Never = true
	case f < 0.07:
		p.Namespace, p.Priority = "kube-system", 2_000_000_000
	case f < 0.15:
		p.Budget = true
	case f < 0.27 && p.Kind != "DaemonSet" && p.Kind != "Job":
		p.Scaler = true
	case f < 0.35:
		p.NoRoom = true
	}
	if p.Priority == 0 {
		p.Priority = []int32{0, 0, 0, 0, 0, 0, 1000, 100, -10}[m.IntN(9)]
	}
	switch f := m.Float64(); {
	case f < 0.6:
		p.Grace = 30
	case f < 0.66:
		p.Grace = 1
	case f < 0.78:
		p.Grace = 5
	case f < 0.92:
		p.Grace = 60
	default:
		p.Grace = 600
	}
	switch f := m.Float64(); {
	case f < 0.72:
		p.ExitKind, p.Exit = "fast", m.between(0.3, 2)
	case f < 0.9:
		p.ExitKind, p.Exit = "draining", m.between(5, 15)
	default:
		p.ExitKind, p.Exit = "deaf", math.MaxFloat32
	}
	if p.Kind == "DaemonSet" {
		p.Here = true
	}
	return p
}

// remember draws what the node knows of a known workload: earlier exits, and peaks that it came back from. A leak has had none
// of its own height.
func (m *maker) remember(p *podSpec) {
	if !p.Known {
		return
	}
	for range 2 + m.IntN(5) {
		p.Exits = append(p.Exits, min(p.Exit*m.between(0.8, 1.2), p.Grace))
	}
	peak := p.Anon.Base + p.Shmem.Base
	if m.ends || m.chance(0.1) {
		peak += p.grows(m.e.Margin)
	}
	for range 1 + m.IntN(3) {
		p.Peaks = append(p.Peaks, peak*m.between(0.9, 1.05))
	}
}

// innocents fills the node up: pods that hold so many bytes and so many of active page cache, and do not grow.
func (m *maker) innocents(bytes, cached float64) {
	n := 4 + m.IntN(14)
	weights, sum := make([]float64, n), 0.0
	for i := range weights {
		weights[i] = m.scale(0.02, 1)
		sum += weights[i]
	}
	for i, w := range weights {
		p := m.workload(fmt.Sprintf("other-%d", i), "")
		p.Name = p.Workload + "-0"
		p.Known = m.chance(0.5)
		p.Anon = shape{Form: still, Base: bytes * w / sum, Fresh: m.between(1, 10)}
		p.Cache = shape{Form: still, Base: cached * w / sum}
		if i < len(m.activity) { // the peak of its activity counts as used, that of a burst does not
			a := m.activity[i]
			a.Base, a.Fresh = p.Anon.Base, p.Anon.Fresh
			p.Anon = a
		} else if m.chance(0.2) {
			p.Anon.Form, p.Anon.Every = saw, m.between(3, 30)
			p.Anon.Height = min(p.Anon.Base*0.05, m.e.Margin*0.003)
			p.Anon.Phase = m.between(0, 30)
		}
		switch f := m.Float64(); {
		case f < 0.35: // such as payment: inside of its request
			p.Request = p.Anon.Base * m.between(1, 1.3)
		case f < 0.55:
			p.Request = p.Anon.Base * m.between(0.5, 1)
		case f < 0.7:
			p.QoS, p.Age = "BestEffort", m.scale(60, 1800)
		}
		p.qualify()
		m.remember(&p)
		m.e.Pods = append(m.e.Pods, p)
	}
}
