package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// packedForms is testdata/packed.json, what the weights of the checkpoints in
// every packed form are; see packed.py there.
func packedForms(t *testing.T) map[string]struct {
	Weights map[string]string // hash of float32 values
	BF16    string            // hash of the converter's file
} {
	t.Helper()
	var forms map[string]struct {
		Weights map[string]string
		BF16    string
	}
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "packed.json")), &forms))
	return forms
}

func packedDir(t *testing.T, form string) string {
	t.Helper()
	return filepath.Join(fixtures.Dir(t, "packs/packed"), form)
}

// region reads columns [c0,c1) of rows [r0,r1) of an input tensor.
func region(t *testing.T, ck *Checkpoint, i int, r0, r1, c0, c1 int64) []float32 {
	t.Helper()
	rd := &reader{inv: ck.inv, data: ck}
	out := make([]float32, (r1-r0)*(c1-c0))
	must(t, rd.read(t.Context(), i, r0, r1, c0, c1, out))
	return out
}

// TestPackedWeights compares the weights of every form with the values that
// packed.py packed, and windows of them with the whole.
func TestPackedWeights(t *testing.T) {
	for form, want := range packedForms(t) {
		t.Run(form, func(t *testing.T) {
			ck := openCheckpoint(t, packedDir(t, form), CheckpointOptions{})
			rng := rand.New(rand.NewPCG(1, 2))
			for name, sum := range want.Weights {
				i, ok := ck.inv.Lookup(name)
				if !ok || ck.inv.Tensors[i].packed == nil {
					t.Fatalf("%q is not found as a packed weight", name)
				}
				rows, cols := ck.inv.Tensors[i].Rows(), ck.inv.Tensors[i].Cols()
				all := region(t, ck, i, 0, rows, 0, cols)
				raw := make([]byte, 4*len(all))
				dtype.EncodeF32(raw, all)
				if hash(raw) != sum {
					t.Errorf("%q has other values", name)
				}
				for range 5 {
					r0, c0 := rng.Int64N(rows), rng.Int64N(cols)
					r1, c1 := r0+1+rng.Int64N(rows-r0), c0+1+rng.Int64N(cols-c0)
					part := region(t, ck, i, r0, r1, c0, c1)
					for r := r0; r < r1; r++ {
						if !slices.Equal(part[(r-r0)*(c1-c0):][:c1-c0], all[r*cols+c0:][:c1-c0]) {
							t.Fatalf("%q: row %d of window [%d,%d)×[%d,%d) differs from the whole", name, r, r0, r1, c0, c1)
						}
					}
				}
			}
		})
	}
}

// TestPackedEqualsLlamaCpp compares whole files with those of llama.cpp's
// converter, for the forms that it knows.
func TestPackedEqualsLlamaCpp(t *testing.T) {
	for form, want := range packedForms(t) {
		path := convertTo(t, packedDir(t, form), RunOptions{}, "BF16")[0]
		if want.BF16 != "" && hash(readFile(t, path)) != want.BF16 {
			t.Errorf("%s: the file differs from llama.cpp's", form)
		}
	}
}

// requantized makes files whose weights do not stay as the checkpoint has them.
func requantized(t *testing.T, dir string, types ...string) []string {
	t.Helper()
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	req := request(t, t.TempDir(), types...)
	req.AllowRequantize = true
	plan, err := ck.Plan(req)
	must(t, err)
	return run(t, plan, ck, RunOptions{})
}

// decoded returns the values of a whole tensor.
func decoded(t *testing.T, f *gguf.File, name string) []float32 {
	t.Helper()
	i := slices.IndexFunc(f.Tensors(), func(x gguf.TensorInfo) bool { return x.Name == name })
	if i < 0 {
		t.Fatalf("no tensor %q", name)
	}
	out := make([]float32, f.Tensors()[i].Elements())
	must(t, quant.DecodeRows(f.Tensors()[i].Type, out, allRows(t, f, i)))
	return out
}

// TestStoredBlocks: blocks that are copied hold the very numbers of the
// checkpoint, in several outputs of one read, rows of q and k reordered too.
func TestStoredBlocks(t *testing.T) {
	for form, c := range map[string]struct {
		recipe string
		typ    gguf.Type
	}{
		"int4": {"Q4_0", gguf.Q4_0}, "int4_experts": {"Q4_0", gguf.Q4_0},
		"mxfp4": {"Q4_K_M", gguf.MXFP4}, "mxfp4_e8m0": {"F16", gguf.MXFP4},
		"nvfp4": {"Q4_K_M", gguf.NVFP4}, "nvfp4_divided": {"F32", gguf.NVFP4}, "nvfp4_experts": {"BF16", gguf.NVFP4},
	} {
		t.Run(form, func(t *testing.T) {
			dir := packedDir(t, form)
			full := openGGUF(t, requantized(t, dir, "F32")[0])
			both := convertTo(t, dir, RunOptions{}, c.recipe, "Q8_0")
			kept := openGGUF(t, both[0])
			n := 0
			for _, info := range kept.Tensors() {
				if info.Type != c.typ {
					continue
				}
				n++
				got, want := decoded(t, kept, info.Name), decoded(t, full, info.Name)
				if c.typ == gguf.NVFP4 {
					factors := decoded(t, kept, strings.TrimSuffix(info.Name, "weight")+"scale")
					for i := range got {
						got[i] *= factors[i*len(factors)/len(got)]
					}
				}
				for i := range got {
					// NVFP4's two scales are multiplied in another order.
					if d := math.Abs(float64(got[i] - want[i])); d > 0 && (c.typ != gguf.NVFP4 || d > 2e-7*math.Abs(float64(want[i]))) {
						t.Fatalf("%q: value %d is %v, want %v", info.Name, i, got[i], want[i])
					}
				}
			}
			if n == 0 {
				t.Errorf("no tensor is %s", c.typ)
			}
		})
	}
}

// TestStoredChoices: which weights stay in their type, and what the plan says
// of it.
func TestStoredChoices(t *testing.T) {
	fileType := func(p *Plan, o int) any { v, _ := p.Outputs[o].Metadata.Get(gguf.KeyFileType); return v }
	plan := func(form string, req Request) *Plan {
		p, err := openCheckpoint(t, packedDir(t, form), CheckpointOptions{}).Plan(req)
		must(t, err)
		return p
	}
	count := func(p *Plan, o int, typ gguf.Type) (n int) {
		for _, c := range p.Outputs[o].Choices {
			if c.Type == typ {
				n++
			}
		}
		return n
	}
	for form, want := range map[string]uint32{"mxfp4": 38, "nvfp4": 39, "int4": 32} {
		p := plan(form, request(t, "out", "BF16", "Q4_K_M"))
		if got := fileType(p, 0); got != want {
			t.Errorf("%s: file type %v, want %d", form, got, want)
		}
		if got := fileType(p, 1); got != uint32(15) {
			t.Errorf("%s as Q4_K_M: file type %v", form, got)
		}
		if notes := strings.Join(p.Notes, "\n"); (form == "int4") != strings.Contains(notes, "Q4_0 would hold the") || (form == "int4") == strings.Contains(notes, "--allow-requantize") {
			t.Errorf("%s: notes %q", form, notes)
		}
	}
	req := request(t, "out", "BF16")
	req.AllowRequantize = true
	if p := plan("nvfp4", req); count(p, 0, gguf.NVFP4) != 0 || fileType(p, 0) != uint32(32) || slices.ContainsFunc(p.Tensors, func(x Tensor) bool { return strings.HasSuffix(x.Name, ".scale") }) {
		t.Error("NVFP4 is kept although it may be requantized")
	}
	// A type demanded for a tensor by name wins, and may be the one it has.
	req.Outputs[0].Recipe = recipe(t, "Q4_0")
	same, err := quant.ParseOverride("ffn_up=nvfp4")
	must(t, err)
	req.Quant.TensorTypes = []quant.Override{same}
	if p := plan("nvfp4", req); count(p, 0, gguf.NVFP4) != 1 || !slices.ContainsFunc(p.Tensors, func(x Tensor) bool { return x.Name == "blk.0.ffn_up.scale" }) {
		t.Error("NVFP4 is not kept on demand")
	}
	req = request(t, "out", "Q4_0")
	o, err := quant.ParseOverride("ffn_down=q8_0")
	must(t, err)
	req.Quant.TensorTypes = []quant.Override{o}
	p := plan("mxfp4", req)
	down := slices.IndexFunc(p.Tensors, func(x Tensor) bool { return x.Name == "blk.0.ffn_down.weight" })
	if count(p, 0, gguf.MXFP4) != 6 || p.Info(0, down).Type != gguf.Q8_0 {
		t.Errorf("%d tensors stay MXFP4, ffn_down is %s on demand", count(p, 0, gguf.MXFP4), p.Info(0, down).Type)
	}
}

// TestActivationScales: what only runtimes need is dropped, with a reason.
func TestActivationScales(t *testing.T) {
	p, err := openCheckpoint(t, packedDir(t, "fp8_tensor"), CheckpointOptions{}).Plan(request(t, "out", "BF16"))
	must(t, err)
	if len(p.Dropped) != 7 || !strings.HasSuffix(p.Dropped[0].Name, ".input_scale") || !strings.Contains(p.Dropped[0].Why, "activations") {
		t.Errorf("%v", p.Dropped)
	}
}

// TestSourceBytes: a plan counts every stored byte of the tensors used once.
func TestSourceBytes(t *testing.T) {
	for form := range packedForms(t) {
		ck := openCheckpoint(t, packedDir(t, form), CheckpointOptions{})
		want := int64(0)
		for _, x := range ck.files.Tensors() {
			if !isActivationScale(x.Name) {
				want += x.Size
			}
		}
		p, err := ck.Plan(request(t, "out", "F16"))
		must(t, err)
		if got := p.SourceBytes(); got != want {
			t.Errorf("%s: %d bytes, want %d", form, got, want)
		}
	}
}

// TestRealLayouts plans the layouts of released models: every tensor has a
// place, the counts are those of the layout, and no unit is a whole stack.
func TestRealLayouts(t *testing.T) {
	for name, typ := range map[string]string{"gpt-oss-120b": "MXFP4", "Kimi-K2-Instruct": "F8_E4M3"} {
		t.Run(name, func(t *testing.T) {
			ck, l := layoutCheckpoint(t, filepath.Join("..", "testdata", "real", name))
			p, err := ck.Plan(request(t, "out", "BF16"))
			must(t, err)
			s := p.Summary()
			if s.SourceBytes != l.TotalSize || s.Parameters != l.Params || len(s.Dropped) != 0 {
				t.Errorf("%d bytes, %d parameters, %d dropped, want %d, %d, 0", s.SourceBytes, s.Parameters, len(s.Dropped), l.TotalSize, l.Params)
			}
			i := slices.IndexFunc(s.Outputs[0].Tensors, func(x TensorSummary) bool { return strings.HasSuffix(x.Name, "ffn_down_exps.weight") })
			if x := s.Outputs[0].Tensors[i]; x.Source != typ {
				t.Errorf("%+v, want %s", x, typ)
			}
			for u := range p.units(maxUnit) {
				if size := p.elements(u.piece, u.n); size > maxUnit {
					t.Fatalf("a unit of %d elements", size)
				}
			}
		})
	}
}

// layoutCheckpoint makes a checkpoint without files of a layout.
func layoutCheckpoint(t *testing.T, dir string) (*Checkpoint, *layout) {
	l := readLayout(t, filepath.Join(dir, "tensors.json.zst"))
	cfg, err := arch.ParseConfig(readFile(t, filepath.Join(dir, "config.json")))
	must(t, err)
	m, err := arch.FromConfig(cfg, false)
	must(t, err)
	q, err := readQuantConfig(cfg)
	must(t, err)
	var list []Source
	for _, shard := range slices.Sorted(maps.Keys(l.Shards)) {
		for _, x := range l.Shards[shard] {
			dt, _ := dtype.Parse(x.dtype)
			list = append(list, Source{Name: x.name, Storage: Storage{DType: dt}, Shape: x.shape})
		}
	}
	return inMemory(t, m, list, q), l
}

// header is one line of a literal checkpoint.
type header struct {
	name  string
	typ   dtype.Type
	shape []int64
}

func inventoryOf(list ...header) *Inventory {
	var sources []Source
	for _, h := range list {
		sources = append(sources, Source{Name: h.name, Storage: Storage{DType: h.typ}, Shape: h.shape})
	}
	return NewInventory(sources)
}

// TestPackedErrors: a missing or odd companion is named, with what was found
// and what is wanted; so is a setting that contradicts the tensors.
func TestPackedErrors(t *testing.T) {
	codes := header{"w.weight_packed", dtype.I32, []int64{64, 8}}
	shape := header{"w.weight_shape", dtype.I64, []int64{2}}
	scale := header{"w.weight_scale", dtype.BF16, []int64{64, 2}}
	q := header{"w.qweight", dtype.I32, []int64{8, 64}}
	zeros := header{"w.qzeros", dtype.I32, []int64{2, 8}}
	scales := header{"w.scales", dtype.F16, []int64{2, 64}}
	with := func(h header, name string, typ dtype.Type, shape ...int64) header {
		h.name, h.typ, h.shape = name, typ, shape
		return h
	}
	fp4 := func(n string, shape ...int64) header { return header{n, dtype.U8, shape} }
	nv := header{"w.weight_scale", dtype.F8E4M3, []int64{4, 4}}
	for name, c := range map[string]struct {
		list  []header
		cfg   quantConfig
		words []string
	}{
		"blocks without scales":  {[]header{fp4("x_blocks", 2, 3, 4, 16)}, quantConfig{}, []string{`"x_blocks" has no scales`, `"x_scales"`}},
		"short blocks":           {[]header{fp4("x_blocks", 2, 3, 4, 8), fp4("x_scales", 2, 3, 4)}, quantConfig{}, []string{`"x_blocks" has shape [2 3 4 8]`, "16"}},
		"scales of other blocks": {[]header{fp4("x_blocks", 2, 3, 4, 16), fp4("x_scales", 2, 3, 5)}, quantConfig{}, []string{`"x_scales" has shape [2 3 5]`, "[2 3 4]"}},
		"float scales of blocks": {[]header{fp4("x_blocks", 2, 3, 4, 16), {"x_scales", dtype.F32, []int64{2, 3, 4}}}, quantConfig{}, []string{`"x_scales" has dtype F32`, "U8"}},
		"ragged MXFP4":           {[]header{fp4("w.weight_packed", 4, 24), fp4("w.weight_scale", 4, 2)}, quantConfig{}, []string{"48 codes", "multiple of 32"}},
		"MXFP4 groups":           {[]header{fp4("w.weight_packed", 4, 32), fp4("w.weight_scale", 4, 4)}, quantConfig{}, []string{`"w.weight_scale" has shape [4 4]`, "[4 2]"}},
		"NVFP4 groups":           {[]header{fp4("w.weight", 4, 64), nv}, quantConfig{}, []string{`"w.weight_scale" has shape [4 4]`, "[4 8]"}},
		"ragged NVFP4":           {[]header{fp4("w.weight", 4, 29), nv}, quantConfig{}, []string{"58 codes", "multiple of 16"}},
		"NVFP4 factors":          {[]header{fp4("w.weight", 4, 32), nv, {"w.weight_scale_2", dtype.F32, []int64{2}}}, quantConfig{}, []string{`"w.weight_scale_2" is F32 [2]`, "one F32"}},
		"no scale":               {[]header{codes, shape}, quantConfig{}, []string{`"w.weight_packed" has no scales`, `"w.weight_scale"`}},
		"no shape":               {[]header{codes, scale}, quantConfig{}, []string{`"w.weight_packed" has no shape`, `"w.weight_shape"`}},
		"codes of one axis":      {[]header{with(codes, "w.weight_packed", dtype.I32, 64), shape, scale}, quantConfig{}, []string{`"w.weight_packed" has shape [64]`}},
		"scale rows":             {[]header{codes, shape, with(scale, "w.weight_scale", dtype.BF16, 32, 2)}, quantConfig{}, []string{`"w.weight_scale" has shape [32 2]`, "[64 2]"}},
		"unequal groups":         {[]header{codes, shape, with(scale, "w.weight_scale", dtype.BF16, 64, 3)}, quantConfig{}, []string{"64 columns", "3 equal groups"}},
		"group_size":             {[]header{codes, shape, scale}, quantConfig{groups: []int64{128}}, []string{"groups of 32 columns", "group_size 128"}},
		"shape type":             {[]header{codes, with(shape, "w.weight_shape", dtype.F32, 2), scale}, quantConfig{}, []string{`"w.weight_shape" has dtype F32`, "I64 or I32"}},
		"zero points":            {[]header{codes, shape, scale, with(zeros, "w.weight_zero_point", dtype.I32, 64, 2)}, quantConfig{}, []string{`"w.weight_zero_point" has shape [64 2]`, "[8 2]"}},
		"order of activations":   {[]header{codes, shape, scale, with(zeros, "w.weight_g_idx", dtype.I32, 64)}, quantConfig{}, []string{`"w.weight_g_idx"`, "not supported"}},
		"no scales of qweight":   {[]header{q, zeros}, quantConfig{}, []string{`"w.qweight" has no scales`, `"w.scales"`}},
		"no zero points":         {[]header{q, scales}, quantConfig{}, []string{`"w.qweight" has no zero points`, `"w.qzeros"`}},
		"8 bits":                 {[]header{with(q, "w.qweight", dtype.I32, 16, 48), zeros, scales}, quantConfig{}, []string{`"w.qweight" has shape [16 48]`, "[in/8, 64] (GPTQ)", "[in, 64/8] (AWQ)"}},
		"qzeros":                 {[]header{q, with(zeros, "w.qzeros", dtype.I32, 2, 16), scales}, quantConfig{}, []string{`"w.qzeros" has shape [2 16]`, "[2 8]"}},
		"qzeros type":            {[]header{q, with(zeros, "w.qzeros", dtype.F16, 2, 8), scales}, quantConfig{}, []string{`"w.qzeros" has dtype F16`, "I32"}},
		"scales of one axis":     {[]header{q, zeros, with(scales, "w.scales", dtype.F16, 64)}, quantConfig{}, []string{`"w.scales"`, "two axes"}},
		"g_idx":                  {[]header{q, zeros, scales, with(zeros, "w.g_idx", dtype.I32, 32)}, quantConfig{}, []string{`"w.g_idx" has shape [32]`, "[64]"}},
		"group_size of AWQ":      {[]header{with(q, "w.qweight", dtype.I32, 64, 8), zeros, scales}, quantConfig{groups: []int64{64}}, []string{"groups of 32", "group_size 64"}},
		"channel scales":         {[]header{{"w.weight", dtype.F8E4M3, []int64{4, 6}}, {"w.weight_scale", dtype.F32, []int64{6}}}, quantConfig{}, []string{`"w.weight_scale" has shape [6]`, "4 rows", "weight_block_size"}},
		"other method":           {[]header{q, zeros, scales}, quantConfig{method: "fp8", families: []family{familyScaled}}, []string{`quant_method is "fp8"`, `"w.qweight" is stored as GPTQ`}},
		"nothing packed":         {[]header{{"w.weight", dtype.BF16, []int64{4, 6}}}, quantConfig{method: "awq", families: []family{familyAWQ}}, []string{`quant_method is "awq"`, "no tensor"}},
		"twice":                  {[]header{codes, shape, scale, {"w.weight", dtype.BF16, []int64{64, 64}}}, quantConfig{}, []string{`"w.weight_packed" and "w.weight"`, "same weight"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantRefusal(t, attachPackings(inventoryOf(c.list...), &c.cfg), ErrInput, c.words...)
		})
	}
}

// readPacked attaches and reads all of the first tensor of a list.
func readPacked(t *testing.T, data memory, list ...header) ([]float32, []byte, error) {
	t.Helper()
	inv := inventoryOf(list...)
	must(t, attachPackings(inv, &quantConfig{}))
	rd := &reader{inv: inv, data: data}
	s := &inv.Tensors[0]
	out := make([]float32, s.Rows()*s.Cols())
	if err := rd.read(t.Context(), 0, 0, s.Rows(), 0, s.Cols(), out); err != nil {
		return nil, nil, err
	}
	l, ok := s.packed.(lossless)
	if !ok {
		return out, nil, nil
	}
	typ, _ := l.exact()
	blocks := make([]byte, s.Rows()*typ.RowBytes(s.Cols()))
	return out, blocks, rd.rowBlocks(t.Context(), 0, 0, s.Rows(), blocks)
}

func ints32(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// TestPackedData: errors that only the data show.
func TestPackedData(t *testing.T) {
	_, _, err := readPacked(t, memory{make([]byte, 32), {127, 255}}, header{"x_blocks", dtype.U8, []int64{1, 2, 1, 16}}, header{"x_scales", dtype.U8, []int64{1, 2, 1}})
	wantRefusal(t, err, ErrInput, `"x_scales"`, "row 1, column 0", "not a number")
	for _, code := range []byte{0x7f, 0xff, 0x81} {
		_, _, err = readPacked(t, memory{make([]byte, 32), {1, 0x80, 2, code}}, header{"w.weight", dtype.U8, []int64{1, 32}}, header{"w.weight_scale", dtype.F8E4M3, []int64{1, 4}})
		wantRefusal(t, err, ErrInput, `"w.weight_scale"`, "row 0, column 3", "positive")
	}
	int4 := []header{{"w.weight_packed", dtype.I32, []int64{1, 4}}, {"w.weight_scale", dtype.F32, []int64{1, 1}}, {"w.weight_shape", dtype.I32, []int64{2}}}
	_, _, err = readPacked(t, memory{make([]byte, 16), make([]byte, 4), ints32(1, 31)}, int4...)
	wantRefusal(t, err, ErrInput, `"w.weight_shape" says [1 31]`, "[1 32]")
	gptq := []header{{"w.qweight", dtype.I32, []int64{1, 8}}, {"w.qzeros", dtype.I32, []int64{1, 1}}, {"w.scales", dtype.F32, []int64{1, 8}}, {"w.g_idx", dtype.I32, []int64{8}}}
	for _, g := range []uint32{1, 1 << 31} {
		_, _, err = readPacked(t, memory{make([]byte, 32), make([]byte, 4), make([]byte, 32), ints32(0, 0, g, 0, 0, 0, 0, 0)}, gptq...)
		wantRefusal(t, err, ErrInput, `"w.g_idx" puts column 2 in group`)
	}
	factors := inventoryOf(header{"w.weight", dtype.U8, []int64{1, 32}}, header{"w.weight_scale", dtype.F8E4M3, []int64{1, 4}}, header{"w.weight_scale_2", dtype.F32, nil})
	must(t, attachPackings(factors, &quantConfig{}))
	for _, x := range []float32{0, -1, float32(math.NaN()), float32(math.Inf(1))} {
		wantRefusal(t, loadFactors(t.Context(), factors, memory{nil, nil, ints32(math.Float32bits(x))}), ErrInput, `"w.weight_scale_2"`, "positive number")
	}
}

// TestInexactScale: a block whose scale half precision does not hold becomes
// the best block of Q4_0, and its neighbours stay.
func TestInexactScale(t *testing.T) {
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = byte(7 * i)
	}
	scales := ints32(math.Float32bits(0.5), math.Float32bits(0.1))
	values, blocks, err := readPacked(t, memory{raw, scales, ints32(1, 64)},
		header{"w.weight_packed", dtype.I32, []int64{1, 8}}, header{"w.weight_scale", dtype.F32, []int64{1, 2}}, header{"w.weight_shape", dtype.I32, []int64{2}})
	must(t, err)
	got, best := make([]float32, 64), make([]byte, 18)
	must(t, quant.DecodeRows(gguf.Q4_0, got, blocks), quant.EncodeRows(gguf.Q4_0, best, values[32:], 32, nil))
	if !slices.Equal(got[:32], values[:32]) || !bytes.Equal(blocks[18:], best) {
		t.Errorf("%v, want %v", got, values)
	}
}

// TestPackedReadErrors: an error in reading any part of a weight is passed on.
func TestPackedReadErrors(t *testing.T) {
	for form := range packedForms(t) {
		ck := openCheckpoint(t, packedDir(t, form), CheckpointOptions{})
		i, ok := ck.inv.Lookup("model.layers.0.self_attn.q_proj.weight")
		if !ok {
			t.Fatal(form)
		}
		for _, broken := range append(ck.inv.Tensors[i].packed.parts(), i) {
			rd := &reader{inv: ck.inv, data: failing{ck, broken}}
			if v, isNVFP4 := ck.inv.Tensors[i].packed.(*nvfp4); isNVFP4 && v.global == broken {
				continue // read when the checkpoint is opened
			}
			if err := rd.read(t.Context(), i, 0, 1, 0, 64, make([]float32, 64)); err == nil {
				t.Errorf("%s: %q cannot be read: no error", form, ck.inv.Tensors[broken].Name)
			}
		}
	}
}

// failing cannot read one tensor.
type failing struct {
	Data
	tensor int
}

func (f failing) ReadAt(ctx context.Context, i int, off int64, p []byte) error {
	if i == f.tensor {
		return errDisk
	}
	return f.Data.ReadAt(ctx, i, off, p)
}
