package recipefile

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) {
	code := m.Run()
	fixtures.Cleanup()
	os.Exit(code)
}

func goldens(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/goldens-quant"), "quant", filepath.FromSlash(name)))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// model is a model's metadata and tensors without weights.
type model struct {
	md      gguf.Metadata
	tensors []gguf.TensorInfo
}

// models are those of mixes.json: lists of tensors of real models.
func models(t *testing.T) map[string]*model {
	t.Helper()
	var doc struct {
		Models map[string]struct {
			Meta    map[string]any
			Tensors [][3]json.RawMessage
		}
	}
	goldens(t, "mixes.json", &doc)
	out := map[string]*model{}
	for name, m := range doc.Models {
		var x model
		for k, v := range m.Meta {
			switch v := v.(type) {
			case string:
				x.md.Set(k, v)
			case float64:
				x.md.Set(k, uint32(v))
			}
		}
		for _, raw := range m.Tensors {
			var info gguf.TensorInfo
			var typ string
			for i, to := range []any{&info.Name, &info.Shape, &typ} {
				if err := json.Unmarshal(raw[i], to); err != nil {
					t.Fatal(err)
				}
			}
			info.Type, _ = gguf.ParseType(typ)
			x.tensors = append(x.tensors, info)
		}
		out[name] = &x
	}
	return out
}

func (m *model) assign(recipe string, opt quant.Options) ([]quant.Choice, error) {
	facts, err := quant.FactsFrom(&m.md)
	if err != nil {
		return nil, err
	}
	r, err := quant.LookupRecipe(recipe)
	if err != nil {
		return nil, err
	}
	return r.Assign(facts, m.tensors, opt)
}

// quantized returns the directory of a file with the types of choices.
func (m *model) quantized(choices []quant.Choice) []gguf.TensorInfo {
	out := slices.Clone(m.tensors)
	for i := range out {
		out[i].Type = choices[i].Type
	}
	return out
}

// checkExtract takes a recipe from a file, writes and reads it in all forms,
// and quantizes the source again.
func checkExtract(t *testing.T, label string, m *model, file []gguf.TensorInfo, fileType any, imatrix bool) *File {
	t.Helper()
	md := m.md.Clone()
	if fileType != nil {
		md.Set(gguf.KeyFileType, fileType)
	}
	if imatrix {
		md.Set("quantize.imatrix.file", "i.gguf")
	}
	f, err := Extract(md, file)
	if err != nil {
		t.Fatalf("%s: %v", label, err)
	}
	for _, format := range Formats {
		text, err := f.Encode(format)
		if err != nil {
			t.Fatal(err)
		}
		if format == "tensor-types" && len(f.Rules) == 0 {
			continue
		}
		back, err := Parse("r", text)
		if err != nil {
			t.Fatalf("%s: %s: %v\n%s", label, format, err, text)
		}
		opt := quant.Options{Imatrix: imatrix, Pure: f.Pure}
		if opt.TensorTypes, err = back.TensorTypes(); err != nil {
			t.Fatal(err)
		}
		choices, err := m.assign(f.Type, opt)
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		for i, c := range choices {
			if c.Type != file[i].Type {
				t.Errorf("%s: %s: %s is %s, want %s", label, format, file[i].Name, c.Type, file[i].Type)
			}
		}
	}
	return f
}

// TestExtractMixes: a file made by one recipe under the name of another, and
// under its own, for every model and recipe.
func TestExtractMixes(t *testing.T) {
	recipes := quant.Recipes()
	for name, m := range models(t) {
		for i, r := range recipes {
			for _, imatrix := range []bool{false, true} {
				choices, err := m.assign(r.Name, quant.Options{Imatrix: imatrix})
				if err != nil || r.KeepsTypes {
					continue // Q1_0 fits few models
				}
				file := m.quantized(choices)
				label := fmt.Sprintf("%s %s imatrix %v", name, r.Name, imatrix)
				own := checkExtract(t, label, m, file, r.FileType, imatrix)
				if own.Type != r.Name || own.Pure || len(own.Rules) > 0 {
					t.Errorf("%s: recipe %s with %d rules", label, own.Type, len(own.Rules))
				}
				if other := recipes[(i+7)%len(recipes)]; imatrix && i%3 == 0 {
					checkExtract(t, label+" called "+other.Name, m, file, other.FileType, imatrix)
				}
			}
		}
	}
}

// TestExtractAnyTypes: types at random, as no recipe would choose them.
func TestExtractAnyTypes(t *testing.T) {
	types := []gguf.Type{gguf.Q8_0, gguf.Q4_0, gguf.IQ4NL, gguf.F16, gguf.MXFP4}
	r := rand.New(rand.NewPCG(1, 2))
	for name, m := range models(t) {
		choices, err := m.assign("Q4_K_M", quant.Options{})
		if err != nil {
			t.Fatal(err)
		}
		file := m.quantized(choices)
		for n := range 3 {
			for i := range file {
				typ := types[r.IntN(len(types))]
				if !choices[i].Copied && r.IntN(20) == 0 && file[i].RowLen()%int64(typ.BlockLen()) == 0 {
					file[i].Type = typ
				}
			}
			f := checkExtract(t, fmt.Sprint(name, " ", n), m, file, uint32(15), false)
			if f.Type != "Q4_K_M" {
				t.Errorf("%s: recipe %s", name, f.Type)
			}
		}
	}
}

// TestExtractRuns: the files of llama-quantize's golden runs, which use all
// options that bear on types.
func TestExtractRuns(t *testing.T) {
	f, err := gguf.OpenUnmapped(filepath.Join(fixtures.Dir(t, "packs/goldens-quant"), "quant", "e2e", "model.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var doc struct {
		Runs []struct {
			FType   string
			Args    []string
			RC      int
			Tensors [][4]any // name, type, offset, hash
		}
	}
	goldens(t, "e2e/e2e.json", &doc)
	compared := 0
	for _, run := range doc.Runs {
		r, err := quant.LookupRecipe(run.FType)
		args := strings.Join(run.Args, " ")
		if run.RC != 0 || err != nil || strings.Contains(args, "--prune-layers") || strings.Contains(args, "--override-kv") {
			continue // blocks or facts other than the source's
		}
		m := &model{md: *f.Metadata().Clone(), tensors: f.Tensors()}
		m.md.Delete(gguf.KeyFileType)
		types := map[string]gguf.Type{}
		for _, x := range run.Tensors {
			types[x[0].(string)] = gguf.Type(x[1].(float64))
		}
		file := slices.Clone(m.tensors)
		for i := range file {
			file[i].Type = types[file[i].Name]
		}
		compared++
		var fileType any = r.FileType
		if r.KeepsTypes {
			fileType, _ = f.Metadata().Get(gguf.KeyFileType)
		}
		checkExtract(t, run.FType+" "+args, m, file, fileType, strings.Contains(args, "--imatrix"))
	}
	if compared < 60 {
		t.Errorf("only %d files compared", compared)
	}
}

// TestExtractCompact: what a person would write.
func TestExtractCompact(t *testing.T) {
	m := models(t)["llama3_8b_gqa4"]
	choices, err := m.assign("Q4_K_M", quant.Options{})
	if err != nil {
		t.Fatal(err)
	}
	file := m.quantized(choices)
	for i := range file {
		switch n := file[i].Name; {
		case strings.HasSuffix(n, "attn_q.weight"), strings.HasSuffix(n, "attn_k.weight"):
			file[i].Type = gguf.Q6_K
		case n == "output.weight":
			file[i].Type = gguf.Q8_0
		case strings.HasPrefix(n, "blk.1") && strings.HasSuffix(n, "ffn_gate.weight"):
			file[i].Type = gguf.Q5_K
		}
	}
	f := checkExtract(t, "compact", m, file, uint32(15), true)
	got, err := f.Encode("yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := `# made with an importance matrix, "i.gguf": pass one with --imatrix
type: Q4_K_M
tensor-type:
  - {role: output, type: Q8_0}
  - {role: [attn_k, attn_q], type: Q6_K}
  - {role: ffn_gate, layers: [1, 10-19], type: Q5_K}
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestExtractForeign: file types that are missing, unknown or do not fit.
func TestExtractForeign(t *testing.T) {
	m := models(t)["llama3_8b_gqa4"]
	choices, err := m.assign("Q6_K", quant.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, fileType := range []any{nil, uint32(39), uint32(1), "Q6_K?"} {
		f := checkExtract(t, fmt.Sprint(fileType), m, m.quantized(choices), fileType, false)
		if f.Type != "Q6_K" || len(f.Remarks) != 1 || !strings.Contains(f.Remarks[0], "general.file_type") {
			t.Errorf("file type %v: %+v", fileType, f)
		}
	}
	if _, err := Extract(&gguf.Metadata{}, m.tensors); err == nil {
		t.Error("no metadata: no error")
	}
	file := m.quantized(choices)
	file[0].Type = gguf.Q8_K
	if _, err := Extract(&m.md, file); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("tensor %q: unknown type \"Q8_K\"", file[0].Name)) {
		t.Errorf("Q8_K: error %v", err)
	}
}
