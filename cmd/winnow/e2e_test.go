package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// e2eGolden is what llama-quantize made of model.gguf (goldens-quant pack).
type e2eGolden struct {
	Runs []struct {
		FType  string   `json:"ftype"`
		Args   []string `json:"args"`
		RC     int      `json:"rc"`
		SHA256 string   `json:"sha256"`
	} `json:"runs"`
	Split struct {
		KeepSplit map[string]struct {
			SHA256 string `json:"sha256"`
		} `json:"keep_split"`
		Single string `json:"quantize_split_to_single_sha256"`
	} `json:"split"`
}

// enterE2E copies the golden inputs to a folder and makes it the current one:
// outputs record the importance matrix's name as given.
func enterE2E(t *testing.T) *e2eGolden {
	t.Helper()
	src, dir := filepath.Join(fixtures.Dir(t, "packs/goldens-quant"), "quant", "e2e"), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var g e2eGolden
	b, err := os.ReadFile("e2e.json")
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &g
}

func fileHash(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// TestWholeFiles: the same command lines give llama-quantize's files.
func TestWholeFiles(t *testing.T) {
	g := enterE2E(t)
	for i, r := range g.Runs {
		out := fmt.Sprintf("out-%d.gguf", i)
		line := append(append([]string{"quantize", "-q"}, r.Args...), "model.gguf", out, r.FType, "2")
		status := run(line, io.Discard, io.Discard)
		name := strings.Join(line[2:], " ")
		switch {
		case r.RC != 0 && status == exitOK:
			t.Errorf("%s: accepted, llama-quantize refuses", name)
		case r.RC != 0:
			if _, err := os.Stat(out); err == nil {
				t.Errorf("%s: refused, but %s exists", name, out)
			}
		case status != exitOK:
			t.Errorf("%s: exit status %d", name, status)
		case fileHash(t, out) != r.SHA256:
			t.Errorf("%s: another file than llama-quantize's", name)
		}
	}
}

// TestKeepSplit: split input, as a set and as a single file.
func TestKeepSplit(t *testing.T) {
	g := enterE2E(t)
	splitModel(t, "model.gguf", "s.gguf", 20)
	for _, line := range []string{
		"quantize -q --keep-split s-00001-of-00003.gguf q.gguf Q4_K_M 1",
		"quantize -q s-00002-of-00003.gguf single.gguf Q4_K_M",
	} {
		if status := run(strings.Fields(line), io.Discard, io.Discard); status != exitOK {
			t.Fatalf("%s: exit status %d", line, status)
		}
	}
	for name, want := range g.Split.KeepSplit {
		if fileHash(t, name) != want.SHA256 {
			t.Errorf("%s: another file than llama-quantize --keep-split's", name)
		}
	}
	if fileHash(t, "single.gguf") != g.Split.Single {
		t.Error("single.gguf: another file than llama-quantize's")
	}
}

// TestRecipeLists: a recipe taken from a file and written as a list makes
// llama-quantize write that very file.
func TestRecipeLists(t *testing.T) {
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-quantize")
	}
	enterE2E(t)
	rules := []string{
		"tensor-type: [{role: [attn_q, attn_k], type: Q6_K}, {role: ffn_down_exps, layers: [0, 2], type: Q5_1}]",
		"tensor-type: [{name: blk.1.attn_v.weight, type: F16}, {match: '\\d\\.FFN_(up|gate)', type: IQ4_NL}, '\\x61ttn_output=Q5_0']",
		"tensor-type: [{role: [output, token_embd], type: Q4_1}, {role: ffn_up_exps, type: BF16}, 'blk=Q8_0']",
	}
	for i, rule := range rules {
		if err := os.WriteFile("r.yaml", []byte(rule), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, ftype := range []string{"Q4_K_M", "Q3_K_L", "IQ4_XS"} {
			for _, line := range []string{
				"quantize -q --force --recipe r.yaml model.gguf ours.gguf " + ftype,
				"recipe show r.yaml --format tensor-types --force -o shown.txt",
				"recipe extract ours.gguf --format tensor-types --force -o extracted.txt",
			} {
				if status := run(strings.Fields(line), io.Discard, io.Discard); status != exitOK {
					t.Fatalf("%s: exit status %d", line, status)
				}
			}
			for _, list := range []string{"shown.txt", "extracted.txt"} {
				cmd := exec.Command(filepath.Join(bin, "llama-quantize"), "--tensor-type-file", list, "model.gguf", "theirs.gguf", ftype, "2")
				cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+bin)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				if fileHash(t, "theirs.gguf") != fileHash(t, "ours.gguf") {
					t.Errorf("rules %d, %s, %s: llama-quantize writes another file", i, ftype, list)
				}
			}
		}
	}
}

// splitModel divides a model in its own order, as llama-gguf-split does.
func splitModel(t *testing.T, in, out string, tensors int) {
	t.Helper()
	f, err := gguf.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layout, err := gguf.NewLayout(f.Metadata(), f.Tensors(), gguf.LayoutOptions{MaxShardTensors: tensors})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, gguf.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, info := range f.Tensors() {
		rows, err := f.Rows(t.Context(), i, 0, info.Rows(), nil)
		if err == nil {
			err = w.WriteAt(i, 0, rows)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}
