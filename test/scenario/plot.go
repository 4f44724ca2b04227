package scenario

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Sizes of the picture in pixels.
const (
	plotWidth   = 960
	panelHeight = 300
	plotLeft    = 78
	plotRight   = 24
	panelTop    = 46
	panelBottom = 44
	plotRows    = 8 // of labels, 18 pixels each
)

// mark is something that happened to a pod, at one moment of a run.
type mark struct {
	at    float64 // seconds
	text  string
	color string
}

// marks of a run, in order.
func (r *Result) marks() []mark {
	var out []mark
	for _, f := range r.Fates {
		switch {
		case f.API:
			out = append(out, mark{f.At.Seconds(), "Spillway evicts " + f.App, "#1a7f37"})
			if f.Gone > 0 {
				out = append(out, mark{f.Gone.Seconds(), f.App + " is gone", "#1a7f37"})
			}
		case f.Kubelet:
			out = append(out, mark{f.At.Seconds(), "kubelet evicts " + f.App, "#cf222e"})
		case f.OOMKilled:
			out = append(out, mark{f.At.Seconds(), "OOM kill in " + f.App, "#cf222e"})
		}
	}
	return out
}

// WritePlot draws one panel per run, on the same scale: the kubelet's memory.available above its hard threshold, the
// threshold, and what happened to whom. The picture is SVG.
func WritePlot(w io.Writer, results []*Result) error {
	longest, high, low := 1.0, 0.0, 0.0
	for _, r := range results {
		for _, p := range r.Points {
			longest = max(longest, p.At.Seconds())
			high, low = max(high, float64(p.Margin)), min(low, float64(p.Margin))
		}
	}
	step := niceStep((high - low) / (1 << 20) / 6)
	top, bottom := math.Ceil(high/(1<<20)/step)*step, math.Floor(low/(1<<20)/step)*step
	var b strings.Builder
	height := panelHeight * len(results)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">`+"\n", plotWidth, height, plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, height)
	for i, r := range results {
		panel{r: r, y0: float64(i * panelHeight), longest: longest, top: top, bottom: bottom, step: step}.draw(&b)
	}
	b.WriteString("</svg>\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return nil
}

type panel struct {
	r                          *Result
	y0                         float64
	longest, top, bottom, step float64
}

func (p panel) x(seconds float64) float64 {
	return plotLeft + seconds/p.longest*(plotWidth-plotLeft-plotRight)
}

func (p panel) y(mib float64) float64 {
	return p.y0 + panelTop + (p.top-mib)/(p.top-p.bottom)*(panelHeight-panelTop-panelBottom)
}

func (p panel) draw(b *strings.Builder) {
	title := fmt.Sprintf("%s, %s: lowest margin %d MiB, %.1f s under the threshold", p.r.Case.Note, p.r.Mode, p.r.Lowest>>20, p.r.Under.Seconds())
	fmt.Fprintf(b, `<text x="%d" y="%.0f" font-size="14" font-weight="600" fill="#1f2328">%s</text>`+"\n", plotLeft, p.y0+24, html.EscapeString(title))
	for v := p.bottom; v <= p.top+p.step/2; v += p.step {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#eaeef2"/><text x="%d" y="%.1f" text-anchor="end" fill="#57606a">%.0f</text>`+"\n", plotLeft, plotWidth-plotRight, p.y(v), p.y(v), plotLeft-8, p.y(v)+4, v)
	}
	if p.bottom < 0 {
		fmt.Fprintf(b, `<rect x="%d" y="%.1f" width="%d" height="%.1f" fill="#ffebe9" opacity="0.7"/>`+"\n", plotLeft, p.y(0), plotWidth-plotLeft-plotRight, p.y(p.bottom)-p.y(0))
	}
	fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#cf222e" stroke-width="1.5"/><text x="%d" y="%.1f" text-anchor="end" fill="#cf222e">kubelet's hard threshold</text>`+"\n", plotLeft, plotWidth-plotRight, p.y(0), p.y(0), plotWidth-plotRight-4, p.y(0)-5)
	for s, step := 0.0, niceStep(p.longest/10); s <= p.longest; s += step {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#57606a">%g s</text>`+"\n", p.x(s), p.y0+panelHeight-panelBottom+18, s)
	}
	fmt.Fprintf(b, `<text transform="translate(16,%.1f) rotate(-90)" text-anchor="middle" fill="#57606a">margin, MiB</text>`+"\n", p.y((p.top+p.bottom)/2))
	p.line(b)
	for i, m := range p.r.marks() {
		y := p.y0 + panelTop + 14 + float64(i%plotRows)*18
		anchor, dx := "start", 5.0
		if m.at > 0.7*p.longest {
			anchor, dx = "end", -5
		}
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s" stroke-dasharray="4 3"/><text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-weight="600" paint-order="stroke" stroke="#ffffff" stroke-width="5">%s</text>`+"\n",
			p.x(m.at), p.x(m.at), p.y(p.top), p.y(p.bottom), m.color, p.x(m.at)+dx, y, anchor, m.color, html.EscapeString(fmt.Sprintf("%s, %.1f s", m.text, m.at)))
	}
}

// line draws the margin; more points than pixels are thinned to the lowest of each pixel, so that no dip is lost.
func (p panel) line(b *strings.Builder) {
	b.WriteString(`<polyline fill="none" stroke="#0969da" stroke-width="2" points="`)
	lastX, lowest, have := -1, 0.0, false
	flush := func() {
		if have {
			fmt.Fprintf(b, "%d,%.1f ", lastX, p.y(lowest))
		}
	}
	for _, pt := range p.r.Points {
		x, v := int(p.x(pt.At.Seconds())), float64(pt.Margin)/(1<<20)
		if x != lastX {
			flush()
			lastX, lowest, have = x, v, true
		}
		lowest = min(lowest, v)
	}
	flush()
	b.WriteString(`"/>` + "\n")
}

// niceStep rounds up to 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5, 10} {
		if v <= m*base {
			return m * base
		}
	}
	return 10 * base
}
