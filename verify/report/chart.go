package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// chart is lines over the number of experts. Places are in percent of the plot,
// from the left and from the bottom.
type chart struct {
	Caption, Summary, Axis string
	X, Y                   []axisTick
	Mark                   axisTick
	Lines                  []line
	Legend                 []key
}

type axisTick struct {
	At   float64
	Name string
}

// Down is the place from the top.
func (t axisTick) Down() float64 { return round(100 - t.At) }

type line struct{ Class, Points, Title string }

// round keeps places short.
func round(v float64) float64 { return math.Round(v*100) / 100 }

// lineColours is how many colours lines have, by depth; the two palest are too
// pale for lines.
const (
	lineColours = 6
	firstColour = 2
)

// chart draws the error curves.
func (p *Prune) chart() *chart {
	low, high, top := p.Experts, 1, 0.0
	for _, c := range p.Curves.Blocks {
		for _, v := range c.Points {
			low, high, top = min(low, v.Keep), max(high, v.Keep), max(top, v.Error)
		}
	}
	x := func(keep int) float64 { return round(100 * float64(keep-low) / float64(max(1, high-low))) }
	step := niceStep(100*top, 5) / 100
	ceiling := math.Ceil(top/step-1e-9) * step
	if top == 0 {
		ceiling = step
	}
	c := &chart{
		Caption: "Error of each block by the number of experts that stay, by rule " + p.Curves.Rule + ".",
		Summary: p.curveSummary(),
		Axis:    "Across: experts that stay in a block. Up: share of |y|² that is lost, y being what its experts add.",
		Mark:    axisTick{x(min(max(p.Keep, low), high)), fmt.Sprintf("%d stay", p.Keep)},
	}
	for i := 0; float64(i)*step <= ceiling+step/2; i++ {
		v := float64(i) * step
		c.Y = append(c.Y, axisTick{round(100 * v / ceiling), strconv.FormatFloat(round(100*v), 'g', 4, 64) + " %"})
	}
	whole := max(1, int(niceStep(float64(high-low), 6)))
	for k := (low + whole - 1) / whole * whole; k <= high; k += whole {
		c.X = append(c.X, axisTick{x(k), strconv.Itoa(k)})
	}
	for i, b := range p.Curves.Blocks {
		var points []string
		for _, v := range b.Points {
			points = append(points, fmt.Sprintf("%g,%g", x(v.Keep), round(100-100*v.Error/ceiling)))
		}
		colour := firstColour
		if n := len(p.Curves.Blocks); n > 1 {
			colour += i * (lineColours - 1) / (n - 1)
		}
		c.Lines = append(c.Lines, line{fmt.Sprint(scoreClass, colour), strings.Join(points, " "), fmt.Sprintf("block %d%s", b.Block, b.titleAt(p.Keep))})
	}
	first, last := p.Curves.Blocks[0].Block, p.Curves.Blocks[len(p.Curves.Blocks)-1].Block
	c.Legend = []key{{fmt.Sprint(scoreClass, firstColour), fmt.Sprintf("block %d", first)}}
	if first != last {
		c.Legend = append(c.Legend, key{fmt.Sprint(scoreClass, firstColour+lineColours-1), fmt.Sprintf("block %d", last)})
	}
	return c
}

// at returns the error with so many experts.
func (c *Curve) at(keep int) (err float64, ok bool) {
	for _, v := range c.Points {
		if v.Keep == keep {
			return v.Error, true
		}
	}
	return 0, false
}

func (c *Curve) titleAt(keep int) string {
	if err, ok := c.at(keep); ok {
		return fmt.Sprintf(": %.3g %% with %d experts", 100*err, keep)
	}
	return ""
}

// curveSummary names the blocks that lose most and least.
func (p *Prune) curveSummary() string {
	var worst, best *Curve
	var most, least float64
	for i := range p.Curves.Blocks {
		c := &p.Curves.Blocks[i]
		err, ok := c.at(p.Keep)
		if !ok {
			continue
		}
		if worst == nil || err > most {
			worst, most = c, err
		}
		if best == nil || err < least {
			best, least = c, err
		}
	}
	if worst == nil {
		return "Error curves of the blocks."
	}
	return fmt.Sprintf("With %d experts block %d loses most, %.3g %%, and block %d least, %.3g %%.", p.Keep, worst.Block, 100*most, best.Block, 100*least)
}

// niceStep returns a step of 1, 2 or 5 times a power of ten that divides a length
// into no more than so many parts.
func niceStep(length float64, parts int) float64 {
	if length <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(length/float64(parts))))
	for _, f := range []float64{1, 2, 5} {
		if f*power*float64(parts) >= length*(1-1e-9) {
			return f * power
		}
	}
	return 10 * power
}
