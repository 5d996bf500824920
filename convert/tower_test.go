package convert

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// towers are the cases of testdata/mmproj.json: fixtures, and the files that
// they lack (see mmproj.py there).
type tower struct {
	Extra   map[string]json.RawMessage
	Files   map[string]string
	Keys    [][]any
	Tensors [][]any
}

func loadTowers(t *testing.T) map[string]tower {
	t.Helper()
	var all map[string]tower
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "mmproj.json")), &all))
	return all
}

// towerDir makes a checkpoint folder of a case.
func (c tower) dir(t *testing.T, name string) string {
	t.Helper()
	pack := "packs/" + name
	if !strings.HasPrefix(name, "tiny-") {
		pack = "families/" + name
	}
	dir := copyFixture(t, filepath.Join(fixtures.Dir(t, pack), name), nil)
	for file, content := range c.Extra {
		must(t, os.WriteFile(filepath.Join(dir, file), content, 0o666))
	}
	return dir
}

func convertTower(t *testing.T, dir string, types ...string) []string {
	t.Helper()
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	plan, err := ck.PlanTower(request(t, t.TempDir(), types...))
	must(t, err)
	return run(t, plan, ck, RunOptions{})
}

// TestTowersEqualConverter compares whole files with llama.cpp's converter, and
// where they differ tells how.
func TestTowersEqualConverter(t *testing.T) {
	for name, c := range loadTowers(t) {
		t.Run(name, func(t *testing.T) {
			types := slices.Sorted(maps.Keys(c.Files))
			for i, path := range convertTower(t, c.dir(t, name), types...) {
				if hash(readFile(t, path)) == c.Files[types[i]] {
					continue
				}
				t.Errorf("%s differs from the converter's file", types[i])
				if types[i] != "F32" {
					continue
				}
				f := openGGUF(t, path)
				var keys, tensors []string
				for _, k := range f.Metadata().Keys() {
					v, _ := f.Metadata().Get(k)
					keys = append(keys, text(t, []any{k, v}))
				}
				for i := range f.Tensors() {
					d := describeTensor(t, f, i)
					tensors = append(tensors, text(t, []any{d[0], d[2], d[3]}))
				}
				for i := range c.Keys {
					c.Keys[i] = []any{c.Keys[i][0], c.Keys[i][2]}
				}
				sameTexts(t, keys, c.Keys)
				sameTexts(t, tensors, c.Tensors)
			}
		})
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}

func sameTexts(t *testing.T, got []string, want [][]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if w := text(t, want[i]); got[i] != w {
			t.Errorf("entry %d is %s, want %s", i, got[i], w)
		}
	}
}

// TestTowerView reads ranges of rows: the planes of patches start anywhere.
func TestTowerView(t *testing.T) {
	c := loadTowers(t)["gemma4_moe"]
	dir := c.dir(t, "gemma4_moe")
	f := openGGUF(t, convertTower(t, dir, "F32")[0])
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	plan, err := ck.PlanTower(request(t, t.TempDir(), "F32"))
	must(t, err)
	v := NewView(plan, 0, ck, nil)
	sameRows(t, v, f)
	for seed := range uint64(20) {
		must(t, compareRanges(t.Context(), t, v, f.Rows, seed))
	}
}

// TestTowerSmallUnits cuts the planes of patches into many units of work.
func TestTowerSmallUnits(t *testing.T) {
	c := loadTowers(t)["tiny-gemma4-moe"]
	ck := openCheckpoint(t, c.dir(t, "tiny-gemma4-moe"), CheckpointOptions{})
	plan, err := ck.PlanTower(request(t, t.TempDir(), "F16"))
	must(t, err)
	path := run(t, plan, ck, RunOptions{Threads: 3, MaxMemory: 1})[0]
	if hash(readFile(t, path)) != c.Files["F16"] {
		t.Error("the file differs from the converter's")
	}
}

func TestTowerPlan(t *testing.T) {
	c := loadTowers(t)["gemma4_e"]
	ck := openCheckpoint(t, c.dir(t, "gemma4_e"), CheckpointOptions{})
	texts, err := ck.Plan(request(t, t.TempDir(), "F32"))
	must(t, err)
	plan, err := ck.PlanTower(request(t, t.TempDir(), "F32"))
	must(t, err)
	if len(plan.Dropped) != 0 || plan.Arch != "clip" {
		t.Errorf("the plan of the tower leaves out %v, architecture %q", plan.Dropped, plan.Arch)
	}
	skipped := 0
	for _, d := range texts.Dropped {
		if strings.Contains(d.Why, "--mmproj") {
			skipped++
		}
	}
	if skipped != len(plan.Tensors) {
		t.Errorf("the plan of the texts leaves %d tensors to the tower, which has %d", skipped, len(plan.Tensors))
	}
}

func TestTowerErrors(t *testing.T) {
	c := loadTowers(t)["gemma4_moe"]
	base := c.dir(t, "gemma4_moe")
	var config map[string]map[string]any
	json.Unmarshal(readFile(t, filepath.Join(base, "config.json")), &config) // other values are no objects
	vision := func(name string, v any) map[string]any {
		changed := maps.Clone(config["vision_config"])
		if changed[name] = v; v == nil {
			delete(changed, name)
		}
		return map[string]any{"vision_config": changed}
	}
	for name, x := range map[string]struct {
		config map[string]any
		images string // processor_config.json
		kind   string
		words  []string
	}{
		"no tower":        {config: map[string]any{"vision_config": nil}, words: []string{"vision_config"}},
		"no images":       {images: "{}", words: []string{"processor_config.json", "image_mean"}},
		"two colours":     {images: `{"image_mean": [0.5, 0.5]}`, words: []string{"image_mean", "three"}},
		"words":           {images: `{"image_mean": [0, 0, "x"]}`, words: []string{"image_mean"}},
		"broken":          {images: `{`, words: []string{"processor_config.json"}},
		"activation":      {config: vision("hidden_activation", "relu"), words: []string{"hidden_activation", "relu"}},
		"pooling":         {config: vision("pooling_kernel_size", 4), words: []string{"pooling_kernel_size", "4"}},
		"theta":           {config: vision("rope_parameters", map[string]any{"rope_theta": 1e4}), words: []string{"rope_theta"}},
		"patch":           {config: vision("patch_size", 5), words: []string{"patch_embedder.input_proj", "patch_size"}},
		"no patch":        {config: vision("patch_size", nil), words: []string{"patch_size"}},
		"huge patch":      {config: vision("patch_size", 1<<20), words: []string{"vision_config"}},
		"heads":           {config: vision("num_attention_heads", 5), words: []string{"num_attention_heads", "5", "32"}},
		"no heads":        {config: vision("num_attention_heads", 0), words: []string{"num_attention_heads"}},
		"blocks":          {config: vision("num_hidden_layers", 2), words: []string{"layers.1"}},
		"too many blocks": {config: vision("num_hidden_layers", 1<<30), words: []string{"num_hidden_layers", "512"}},
		"no blocks":       {config: vision("num_hidden_layers", 0), words: []string{"vision_tower.encoder.layers.0"}},
		"type":            {kind: "Q4_K_M", words: []string{"Q4_K_M", "Q8_0"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyFixture(t, base, x.config)
			if x.images != "" {
				must(t, os.WriteFile(filepath.Join(dir, "processor_config.json"), []byte(x.images), 0o666))
			}
			kind := x.kind
			if kind == "" {
				kind = "F16"
			}
			ck := openCheckpoint(t, dir, CheckpointOptions{})
			_, err := ck.PlanTower(request(t, t.TempDir(), kind))
			for _, w := range x.words {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("error %v lacks %q", err, w)
				}
			}
		})
	}
	ck := openCheckpoint(t, fixtures.Family(t, "mistral"), CheckpointOptions{})
	if _, err := ck.PlanTower(request(t, t.TempDir(), "F16")); err == nil || !strings.Contains(err.Error(), "llama") {
		t.Errorf("a family without tower: %v", err)
	}
}
