package main

import "math"

// form is how an amount of memory moves over time.
type form string

const (
	still  form = "still"  // stays at its base
	ramp   form = "ramp"   // grows at Rate, without end or up to Most
	faster form = "faster" // grows at a rate that doubles every Double seconds of its first rate
	steps  form = "steps"  // grows by Height within 0.2 s, each Every seconds
	burst  form = "burst"  // grows at Rate up to Height, holds it for Hold seconds, releases it within Fall seconds
	saw    form = "saw"    // grows by Height within Every seconds and falls back, again and again
)

// shape is an amount of memory over time. All amounts are bytes, all times seconds.
type shape struct {
	Form   form
	Base   float64 // before the growth
	Rate   float64 // bytes per second
	Double float64 // s
	Height float64 // bytes above Base
	Every  float64 // s
	Hold   float64 // s
	Fall   float64 // s
	Most   float64 // bytes above Base; 0: without end
	Start  float64 // s from the load's begin, or from the start of the container, to the growth
	Phase  float64 // s
	Ripple float64 // s of growth by which it runs ahead and behind
	Fresh  float64 // s that a container that starts takes to its Base
}

// at returns the amount at an age in seconds. The age of what ran before the load began counts from the load's begin, and is
// negative before it; a container that starts within the episode is fresh, and its age counts from its start.
func (s *shape) at(age float64, fresh bool) float64 {
	base := s.Base
	if fresh {
		if age < 0 {
			return 0
		}
		if age < s.Fresh {
			return base * age / s.Fresh
		}
		age -= s.Fresh
	}
	if s.Form == still || s.Form == "" {
		return base
	}
	t := age - s.Start
	if s.Form == saw {
		if fresh && t < 0 {
			return base
		}
		return base + s.Height*s.tooth(t)
	}
	if t <= 0 {
		return base
	}
	if s.Ripple > 0 {
		t = max(0, t+s.Ripple*math.Sin(2*t+s.Phase)-s.Ripple*math.Sin(s.Phase))
	}
	var grown float64
	switch s.Form {
	case ramp:
		grown = s.Rate * t
	case faster:
		grown = s.Rate * (t + t*t/(2*s.Double))
	case steps:
		n := math.Floor(t / s.Every)
		grown = s.Height * (n + min(1, (t-n*s.Every)/0.2))
	case burst:
		up := s.Height / s.Rate
		grown = s.Height * min(1, t/up)
		if t > up+s.Hold {
			grown = s.Height * max(0, 1-(t-up-s.Hold)/s.Fall)
		}
	default:
		return loadApps().amounts[s.Form].value(t)
	}
	if s.Most > 0 {
		grown = min(grown, s.Most)
	}
	return base + grown
}

// tooth is where a sawtooth stands, 0 to 1. The last 3 % of a period are the fall.
func (s *shape) tooth(t float64) float64 {
	f := math.Mod(t+s.Phase, s.Every) / s.Every
	if f < 0 {
		f++
	}
	if f > 0.97 {
		return (1 - f) / 0.03
	}
	return f / 0.97
}
