package policy

import "time"

// A pod has a real part in the growth, and counts as one that causes the shortage, from half of the fastest pod's growth on, or
// from growerShare of it if that is a tenth of the node's. Where the node does not grow, or by less than trifleRate, less than
// flatRate, bytes per second, is noise. At critical, where the growth of now does not explain the shortage, what counts is
// what each pod gained in the minute before: leastGain bytes or more, and a quarter of what any gained.
const (
	growerShare = 0.25
	fastShare   = 0.5
	nodeShare   = 0.1
	flatRate    = 1 << 20
	leastGain   = 64 << 20
	gainShare   = 4
	leastPart   = 4 << 20         // bytes gained; less is no part of a growth that has not lasted
	unseen      = 5 * time.Second // so long what a pod takes at its start may not be seen as growth
	surely      = 1.2             // what a reading may be off by
)

// parts tells which pods have a real part in the growth.
type parts struct {
	in              *Input
	growth, fastest float64
	least           float64
	gained          uint64  // the most that a pod gained; 0: the growth of now explains the shortage
	rises, topRise  float64 // of the last minute, of all pods that grow, and the largest: see rise
	started         float64 // the largest of pods that have just started
	unbounded       float64 // growth of pods that are not below such a peak
	bounded         bool    // all growers that came back from a peak before would fit once more
}

func newParts(in *Input, growth, fastest float64) parts {
	p := parts{in: in, growth: growth, fastest: fastest}
	if !(in.NodeGrowth >= trifleRate) {
		p.least = flatRate
	}
	shortage := float64(max(0, -in.Need.Margin))
	if in.imminent() && !(float64(in.NodeGrowth*in.Lasted.Seconds()) >= shortage/2 && in.NodeGrowth >= trifleRate) {
		for i := range in.Pods {
			if c := &in.Pods[i]; c.Reading.Fresh {
				p.gained = max(p.gained, c.gained(in.Now))
			}
		}
	}
	p.bounded = !in.imminent() && p.fits()
	if !in.imminent() && in.CacheOwner == "" {
		p.cached()
	}
	for i := range in.Pods {
		c := &in.Pods[i]
		if !c.Reading.Fresh || !(c.Reading.Growth > 0) && !c.Pod.beganAfter(in.Now.Add(-unseen)) {
			continue
		}
		r := p.rise(c)
		if c.held() >= c.Reading.Bound {
			p.unbounded += max(0, c.Reading.Growth)
		}
		p.rises += r
		p.topRise = max(p.topRise, r)
		if c.Pod.beganAfter(in.Now.Add(-startTime)) {
			p.started = max(p.started, r)
		}
	}
	return p
}

// cached counts growing page cache beside the other growth: beside a pod that fills it by 400 MiB/s, the 10 MiB/s of another are
// not what brings the threshold nearer.
func (p *parts) cached() {
	if !(p.in.CacheGrowth > 0) {
		return
	}
	sum := 0.0
	for i := range p.in.Pods {
		if r := &p.in.Pods[i].Reading; r.Fresh && r.CacheGrowth > 0 {
			sum += r.CacheGrowth
			p.fastest = max(p.fastest, r.CacheGrowth)
		}
	}
	p.fastest = max(p.fastest, p.in.CacheGrowth-sum)
	p.growth += max(p.in.CacheGrowth, sum)
}

// rose reports whether what c gained in the last minute bears out its growth of now: a pod that hovers, or gains little beside
// the others, leads for a moment whenever those pause.
func (p *parts) rose(c *Candidate, g float64) bool {
	if c.Reading.Lasted <= 0 { // not known
		return true
	}
	rise := p.rise(c)
	if rise < surely*leastPart && p.in.Lasted < time.Minute/2 {
		return false
	}
	leads := g >= growerShare*p.growth && g >= fastShare*p.fastest && rise >= growerShare*p.started
	return leads || rise >= surely*fastShare*p.topRise || rise >= surely*nodeShare*p.rises
}

// rise is how far c rose in the last minute, bytes; what its growth of now makes where the minute is not known yet.
func (p *parts) rise(c *Candidate) float64 {
	return max(float64(c.gained(p.in.Now)), c.Reading.Growth*c.Reading.Lasted.Seconds())
}

// fits reports whether the growth up to the bounds of those that have one leaves room for a pod that does not stop there.
func (p *parts) fits() bool {
	left := float64(p.in.Need.Margin)
	if p.in.LeftBytes > 0 {
		left = float64(p.in.LeftBytes)
	}
	for i := range p.in.Pods {
		c := &p.in.Pods[i]
		if held := c.held(); c.Reading.Fresh && c.Reading.Growth > 0 && held < c.Reading.Bound {
			left -= float64(c.Reading.Bound - held)
		}
	}
	return left >= p.in.NodeGrowth // in a second
}

// has reports whether c has a real part.
func (p *parts) has(c *Candidate) bool {
	if p.in.Maintenance || !c.Reading.Fresh {
		return false
	}
	back := c.held() < c.Reading.Bound // it only comes back to where it was before
	if p.gained >= leastGain && !back && !p.in.Outside && c.gained(p.in.Now) >= p.gained/gainShare {
		return true
	}
	g := c.Reading.Growth
	switch {
	case !(g > 0) || g < p.least, g < fastShare*p.fastest && !(g >= growerShare*p.fastest && g >= nodeShare*p.growth):
		return false
	case p.gained >= leastGain: // others gained what is missing
		return false
	case back && p.bounded && (g <= p.growth/2 || p.unbounded >= growerShare*p.growth):
		return false
	case !p.in.imminent() && !p.rose(c, g):
		return false
	case !p.in.Need.ByETA && !p.in.imminent() && g < fastShare*p.fastest:
		return false // a shortage by percentage has the time to wait for those with most of the growth
	}
	return true
}

// gained returns what the pod gained within the last minute, bytes: all that it holds if all of it began since then.
func (c *Candidate) gained(now time.Time) uint64 {
	if c.Pod.beganAfter(now.Add(-time.Minute)) {
		return c.held()
	}
	return c.Reading.Gained
}

// beganAfter reports whether nothing that runs in the pod is older.
func (p *Pod) beganAfter(at time.Time) bool {
	if p.StartedAt.After(at) {
		return true
	}
	runs := false
	for i := range p.Containers {
		if c := &p.Containers[i]; c.Running {
			if runs = true; !c.StartedAt.After(at) {
				return false
			}
		}
	}
	return runs
}
