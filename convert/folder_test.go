package convert

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// pruneFolder prunes a checkpoint folder to another one.
func pruneFolder(t testing.TB, dir string, opt CheckpointOptions, keep func(*arch.Params) *experts.KeepList) string {
	t.Helper()
	ck := openCheckpoint(t, dir, opt)
	plan, err := ck.PlanFolder(keep(&ck.Model.Params), nil)
	must(t, err)
	to := filepath.Join(t.TempDir(), filepath.Base(dir))
	must(t, RunFolder(t.Context(), plan, ck, to, RunOptions{}))
	return to
}

// samePruned compares two files in all but the model's name, whose parts come
// from the folder's, and the order of tensors.
func samePruned(t *testing.T, got, want *gguf.File) {
	t.Helper()
	a, b := got.Metadata().Clone(), want.Metadata().Clone()
	for _, key := range []string{gguf.KeyName} {
		a.Delete(key)
		b.Delete(key)
	}
	sameMetadata(t, a, b)
	sameRows(t, got, want)
}

// TestPruneFolder: a pruned folder becomes the files that the folder becomes
// which is pruned while it is converted, in every family and packed form.
func TestPruneFolder(t *testing.T) {
	dirs := moeFamilies(t)
	for form := range packedForms(t) {
		if dir := packedDir(t, form); openCheckpoint(t, dir, CheckpointOptions{}).Model.Params.Experts > 0 {
			dirs["packed "+form] = dir
		}
	}
	types := []string{"F32", "Q8_0", "Q4_K_M"}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			var opt CheckpointOptions
			if name == "deepseek_v3" { // a block of which a keep-list would have to say what becomes of it
				opt.MTP = "keep"
			}
			want := pruneTo(t, dir, keepSome, types...)
			for i, path := range convertTo(t, pruneFolder(t, dir, opt, keepSome), RunOptions{}, types...) {
				samePruned(t, openGGUF(t, path), openGGUF(t, want[i]))
			}
		})
	}
}

// TestPruneFolderFiles: what is not a weight is copied, config.json says the
// new number in the old place, and shards are written again.
func TestPruneFolderFiles(t *testing.T) {
	dir := copyFixture(t, fixtures.Family(t, "qwen3_moe"), nil)
	must(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("# x"), 0o666), os.WriteFile(filepath.Join(dir, "pytorch_model.bin"), nil, 0o666))
	to := pruneFolder(t, dir, CheckpointOptions{}, keepSome)
	if got := readFile(t, filepath.Join(to, "README.md")); string(got) != "# x" {
		t.Errorf("README.md is %q", got)
	}
	if _, err := os.Stat(filepath.Join(to, "pytorch_model.bin")); err == nil {
		t.Error("old weights were copied")
	}
	var before, after map[string]any
	must(t, json.Unmarshal(readFile(t, filepath.Join(dir, "config.json")), &before), json.Unmarshal(readFile(t, filepath.Join(to, "config.json")), &after))
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	n := ck.Model.Params.Experts
	for key, v := range after {
		switch {
		case key == configExpertsBefore:
			if v != float64(n) {
				t.Errorf("%s is %v", key, v)
			}
		case before[key] == float64(n) && v == float64(n-1):
			t.Log(key, before[key], v)
		default:
			a, _ := json.Marshal(before[key])
			b, _ := json.Marshal(v)
			if !bytes.Equal(a, b) {
				t.Errorf("%s is %s, before %s", key, b, a)
			}
		}
	}
	files, err := safetensors.Open(to)
	must(t, err)
	defer files.Close()
	if got, want := openCheckpoint(t, to, CheckpointOptions{}).Model.Params.Experts, n-1; got != want {
		t.Errorf("%d experts, want %d", got, want)
	}
	named := openCheckpoint(t, copyFixture(t, dir, map[string]any{"x": []any{map[string]any{"y": "model.layers.1.mlp.experts.3.up_proj"}}}), CheckpointOptions{})
	if _, err := named.PlanFolder(keepSome(&named.Model.Params), nil); err == nil || !strings.Contains(err.Error(), "experts.3.up_proj") {
		t.Errorf("a config.json that names an expert: %v", err)
	}
	if err := RunFolder(t.Context(), nil, nil, to, RunOptions{}); err == nil {
		t.Error("a folder that is not empty is written to")
	}
}

// TestPruneMTP: blocks of multi-token prediction are pruned with the others, or
// dropped, and the file then is the one of the model without them.
func TestPruneMTP(t *testing.T) {
	keep := func(mtp string) func(*arch.Params) *experts.KeepList {
		return func(p *arch.Params) *experts.KeepList {
			k := keepSome(p)
			k.MTP = mtp
			for l := range k.Blocks {
				if mtp == "drop" && l >= p.Trunk() {
					delete(k.Blocks, l)
				}
			}
			return k
		}
	}
	for name, dir := range map[string]string{"tiny-r1": fixtures.TinyR1(t), "deepseek_v32_mtp": fixtures.Family(t, "deepseek_v32_mtp")} {
		t.Run(name, func(t *testing.T) {
			with, without := CheckpointOptions{MTP: "keep"}, CheckpointOptions{MTP: "drop"}
			ck := openCheckpoint(t, dir, with)
			if ck.Model.Params.NextnLayers == 0 {
				t.Fatal("the fixture has no such block")
			}
			for _, c := range []struct {
				mtp  string
				open CheckpointOptions
			}{{"prune", with}, {"drop", without}} {
				plain := openCheckpoint(t, dir, c.open)
				req := request(t, t.TempDir(), "F32")
				req.Experts = keep(c.mtp)(&plain.Model.Params)
				plan, err := plain.Plan(req)
				must(t, err)
				want := openGGUF(t, run(t, plan, plain, RunOptions{})[0])

				// The same from a checkpoint opened with the block, by way of a file, and of a folder.
				req.Experts = keep(c.mtp)(&ck.Model.Params)
				req.Outputs[0].Path = filepath.Join(t.TempDir(), "x.gguf")
				plan, err = ck.Plan(req)
				must(t, err)
				sameFiles(t, run(t, plan, ck, RunOptions{})[0], filepath.Join(filepath.Dir(want.Parts()[0].Path), "F32.gguf"))

				whole, err := ck.Plan(request(t, t.TempDir(), "F32"))
				must(t, err)
				samePruned(t, openGGUF(t, pruneFile(t, run(t, whole, ck, RunOptions{})[0], keep(c.mtp))), want)

				folder := openCheckpoint(t, pruneFolder(t, dir, with, keep(c.mtp)), c.open)
				plan, err = folder.Plan(request(t, t.TempDir(), "F32"))
				must(t, err)
				samePruned(t, openGGUF(t, run(t, plan, folder, RunOptions{})[0]), want)
			}
		})
	}
}
