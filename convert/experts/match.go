package experts

import (
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
)

// CheckStatistics finds what shows that statistics were not measured on a model:
// other blocks, another number of experts or of experts per token, or weights of
// another size. Those of so many multi-token prediction blocks behind the model's
// do not matter: it was opened without. Errors match ErrInvalid.
func CheckStatistics(s *calib.Statistics, p *arch.Params, without int) error {
	if err := checkRouted(p); err != nil {
		return err
	}
	for _, d := range s.Domains {
		for _, l := range d.Layers() {
			if l >= p.Layers && l < p.Layers+without {
				continue
			}
			if err := checkTotals(d.Layer(l), l, p); err != nil {
				return err
			}
		}
		if err := checkMeasured(d, p); err != nil {
			return err
		}
	}
	return checkWidths(s, p)
}

// checkMeasured sees that a domain has statistics of all blocks, or of none if it
// has no text.
func checkMeasured(d *calib.Domain, p *arch.Params) error {
	have := d.Layers()
	if len(have) == 0 && d.Chunks == 0 {
		return nil
	}
	for _, l := range Blocks(p, DropMTP) {
		if !slices.Contains(have, l) {
			return invalid("the statistics of the texts %q lack block %d: they are of another model", d.Name, l)
		}
	}
	return nil
}

func checkTotals(t *calib.ExpertTotals, l int, p *arch.Params) error {
	if l >= p.Layers || !p.MoE(l) {
		return invalid("the statistics have experts in block %d, where the model has none: they are of another model", l)
	}
	if t.Experts != p.Experts {
		return invalid("the statistics are of %d experts per block, the model has %d: they are of another model, or the model is pruned already", t.Experts, p.Experts)
	}
	tokens, err := t.Values(calib.Tokens)
	if err != nil {
		return err
	}
	uses, err := t.Values(calib.Selected)
	if err != nil {
		return err
	}
	sum := 0.0
	for _, n := range uses {
		sum += n
	}
	if want := tokens[0] * float64(p.ExpertsUsed); sum != want {
		return invalid("block %d: the statistics have %.0f choices by %.0f tokens, and the model's tokens choose %d experts each: they are of another model, or were cut out of the whole one's and have to be measured anew", l, sum, tokens[0], p.ExpertsUsed)
	}
	return nil
}

// checkWidths compares the widths of the experts' down projections.
func checkWidths(s *calib.Statistics, p *arch.Params) error {
	m, err := s.Matrix(nil)
	if err != nil {
		return err
	}
	for _, l := range Blocks(p, DropMTP) {
		name := downName(l)
		if e, ok := m.Find(name); ok && e.Size() != p.Experts*p.ExpertFF {
			return invalid("tensor %q: the statistics have %d columns for each of %d experts, the model %d: they are of another model", name, e.Size()/p.Experts, p.Experts, p.ExpertFF)
		}
	}
	return nil
}

// downName is the GGUF name of the experts' down projections of a block.
func downName(l int) string {
	return arch.Name{Layer: l, Role: arch.ExpertDown, Suffix: "weight"}.String()
}

// CheckRouters compares the routers of the model that statistics were measured on
// with digests of a model's (calib.RouterDigests), if they are known: models of one
// kind have the same dimensions. Errors match ErrInvalid.
func CheckRouters(s *calib.Statistics, digests []string) error {
	if s.Routers == nil {
		return nil
	}
	if len(s.Routers) != len(digests) {
		return invalid("the statistics know %d rows of a router, the model has %d: they are of another model", len(s.Routers), len(digests))
	}
	for e, d := range digests {
		if s.Routers[e] != d {
			return invalid("the statistics are of another model: its first router has other weights for expert %d", e)
		}
	}
	return nil
}
