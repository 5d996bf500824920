package convert

import (
	"context"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// packing is how a weight is stored that is not simply a tensor of its elements:
// codes in one tensor, scales and what else they need in others. The set is
// closed; detectors lists it. A value belongs to one weight and is read-only.
type packing interface {
	// String names the format, as plans show it.
	String() string
	// bits is the stored size of a weight's code.
	bits() int64
	// parts lists the tensors of the inventory, beside that of the codes, that
	// are part of the weight.
	parts() []int
	// group is the number of columns that are decoded together.
	group() int64
	// read decodes columns [c0,c1) of rows [r0,r1), row after row. Columns are
	// whole groups, unless they end with the row.
	read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error
}

// lossless is a packing whose weights a GGUF type holds as they are.
type lossless interface {
	packing
	// exact returns the type; false when this weight does not fit it.
	exact() (gguf.Type, bool)
	// blocks writes the blocks of rows [r0,r1).
	blocks(ctx context.Context, rd *reader, codes int, r0, r1 int64, dst []byte) error
}

// family groups the packings that one way of quantizing makes.
type family string

// The families, by the words for them in messages.
const (
	familyScaled family = "8-bit elements with scales"
	familyMXFP4  family = "MXFP4"
	familyNVFP4  family = "NVFP4"
	familyInt4   family = "packed INT4"
	familyGPTQ   family = "GPTQ"
	familyAWQ    family = "AWQ"
)

// weight is what a detector finds: the name, shape and packing of the weight
// that a tensor holds the codes of.
type weight struct {
	name   string
	shape  []int64
	family family
	packed packing
}

// detector recognises packed weights by the names, types and shapes of tensors.
// What it finds must agree with quantization_config.
type detector struct {
	inv   *Inventory
	cfg   *quantConfig
	taken []bool // tensors that are part of a weight found already
}

// detectors look at one tensor each and return nil when it is not theirs. An
// error means that it is, but that something about it is wrong. The scales of
// one form may be 8-bit floats, which the last one takes for weights.
var detectors = []func(d *detector, i int) (*weight, error){
	(*detector).mxfp4Blocks, (*detector).mxfp4Packed, (*detector).nvfp4, (*detector).int4, (*detector).qweight, (*detector).scaled,
}

// attachPackings finds the packed weights of an inventory and puts each in the
// place of its codes.
func attachPackings(inv *Inventory, cfg *quantConfig) error {
	d := &detector{inv, cfg, make([]bool, len(inv.Tensors))}
	found := false
	for _, detect := range detectors {
		for i := range inv.Tensors {
			if d.taken[i] {
				continue
			}
			w, err := detect(d, i)
			if err == nil && w != nil {
				found = true
				err = d.attach(i, w)
			}
			if err != nil {
				return err
			}
		}
	}
	if !found && cfg.method != "" {
		return formatError("config.json: quantization_config.quant_method is %q, but no tensor is stored that way", cfg.method)
	}
	return nil
}

// attach makes tensor i a packed weight.
func (d *detector) attach(i int, w *weight) error {
	if err := d.cfg.allows(w.family, d.inv.Tensors[i].Name); err != nil {
		return err
	}
	if err := d.inv.rename(i, w.name, w.shape); err != nil {
		return err
	}
	d.inv.Tensors[i].packed = w.packed
	for _, part := range append(w.packed.parts(), i) {
		d.taken[part] = true
	}
	return nil
}

// is reports whether tensor i has one of the types.
func (d *detector) is(i int, types ...dtype.Type) bool {
	s := &d.inv.Tensors[i]
	return !s.Storage.IsGGUF && slices.Contains(types, s.Storage.DType)
}

// companion finds the tensor that belongs to the one called of, under the
// first of several names.
func (d *detector) companion(of, what string, names ...string) (int, error) {
	for _, n := range names {
		if i, ok := d.inv.Lookup(n); ok {
			return i, nil
		}
	}
	return 0, formatError("tensor %q has no %s (%q is missing)", of, what, names[0])
}

// check compares a companion's type and shape with what the weight needs.
func (d *detector) check(i int, of string, shape []int64, types ...dtype.Type) error {
	s := &d.inv.Tensors[i]
	if !d.is(i, types...) {
		return formatError("tensor %q has dtype %s; with %q it must be %s", s.Name, s.Storage, of, typeNames(types))
	}
	if !slices.Equal(s.Shape, shape) {
		return formatError("tensor %q has shape %v; with %q it must be %v", s.Name, s.Shape, of, shape)
	}
	return nil
}

func typeNames(types []dtype.Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	return strings.Join(names, " or ")
}

// scaleTypes are the types of scales of all formats but the 4-bit floats.
var scaleTypes = []dtype.Type{dtype.F32, dtype.BF16, dtype.F16}

// floats reads elements [e0,e1) of every row [r0,r1) of a small tensor, such
// as one of scales, whose rows have cols elements.
func (rd *reader) floats(ctx context.Context, tensor int, cols, r0, r1, e0, e1 int64) ([]float32, error) {
	t := rd.inv.Tensors[tensor].Storage.DType
	size := int64(t.Bits() / 8)
	var err error
	if rd.aux, err = rd.window(ctx, tensor, rd.aux, cols*size, r0, r1, e0*size, e1*size); err != nil {
		return nil, err
	}
	rd.scales = grow(rd.scales, (r1-r0)*(e1-e0))
	return rd.scales, dtype.Decode(t, rd.scales, rd.aux)
}

// activationSuffixes end the names of tensors that quantize activations or the
// cache of keys and values at run time.
var activationSuffixes = []string{
	".input_scale", ".input_global_scale", ".input_zero_point", ".activation_scale", "_activation_scale",
	".k_scale", ".v_scale", ".q_scale", ".output_scale", ".input_scale_ub",
}

// isActivationScale recognises such tensors.
func isActivationScale(name string) bool {
	return slices.ContainsFunc(activationSuffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}
