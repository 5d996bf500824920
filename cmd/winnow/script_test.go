package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) {
	testscript.Main(runner{m}, map[string]func(){"winnow": main})
}

// runner runs the tests and removes unpacked fixtures.
type runner struct{ *testing.M }

func (r runner) Run() int {
	code := r.M.Run()
	fixtures.Cleanup()
	return code
}

// families are the fixtures that scripts find in their folder, beside tiny-r1
// its golden results, checkpoints in packed forms, the corpus of bad input, the inputs of llama-quantize's
// golden runs (e2e) and the text eval.txt.
var families = []string{"deepseek_v3", "deepseek_v3_fp8", "deepseek_v2_lite", "mixtral", "gpt_oss", "gemma4_moe", "gemma4_e", "glm4_moe"}

func TestScripts(t *testing.T) {
	links := map[string]string{
		"tiny-r1":  fixtures.TinyR1(t),
		"eval.txt": filepath.Join(fixtures.Dir(t, "demo"), "eval-docs.txt"),
		"golden":   filepath.Join(fixtures.Dir(t, "packs/golden-tiny-r1"), "tiny-r1"),
		"bad":      filepath.Join(fixtures.Dir(t, "packs/bad"), "given"),
		"packed":   fixtures.Dir(t, "packs/packed"),
		"e2e":      filepath.Join(fixtures.Dir(t, "packs/goldens-quant"), "quant", "e2e"),
	}
	for _, name := range families {
		links[name] = fixtures.Family(t, name)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Defer(func() { checkLitter(env) })
			for name, target := range links {
				if err := os.Symlink(target, filepath.Join(env.WorkDir, name)); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": statusCmd, "json": jsonCmd, "narrow": narrowCmd, "plain": plainCmd, "ids": idsCmd, "logits": logitsCmd,
			"compress": compressCmd, "patch": patchCmd, "same": sameCmd,
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// checkLitter fails a script that leaves unfinished files.
func checkLitter(env *testscript.Env) {
	filepath.WalkDir(env.WorkDir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".part") {
			env.T().Log("left behind: " + path)
			env.T().FailNow()
		}
		return err
	})
}

// statusCmd runs a program that must end with a status:
//
//	status 2 winnow convert
func statusCmd(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		if want != 0 {
			ts.Fatalf("exit status 0, want %d", want)
		}
	case !errors.As(err, &exit):
		ts.Fatalf("%v", err)
	case exit.ExitCode() != want:
		ts.Fatalf("exit status %d, want %d", exit.ExitCode(), want)
	}
}

// jsonCmd checks that a stream holds exactly one JSON document and, in
// it, values: a path of keys and list positions, and what is there as JSON.
//
//	json stdout outputs.0.type '"Q8_0"'
func jsonCmd(ts *testscript.TestScript, _ bool, args []string) {
	doc := readJSON(ts, args[0])
	for i := 1; i+1 < len(args); i += 2 {
		if got := valueAt(ts, doc, args[i]); got != args[i+1] {
			ts.Fatalf("%s is %s, want %s", args[i], got, args[i+1])
		}
	}
}

// sameCmd checks that two documents have the same value in a place of each:
//
//	same a.json measured.0.kld.mean.value stdout kld.mean.value
func sameCmd(ts *testscript.TestScript, _ bool, args []string) {
	a, b := valueAt(ts, readJSON(ts, args[0]), args[1]), valueAt(ts, readJSON(ts, args[2]), args[3])
	if a != b || a == "null" {
		ts.Fatalf("%s is %s, %s is %s", args[1], a, args[3], b)
	}
}

// readJSON reads a stream with exactly one JSON document.
func readJSON(ts *testscript.TestScript, file string) (doc any) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	ts.Check(dec.Decode(&doc))
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("more than one document")
	}
	return doc
}

// valueAt is what lies at a path of keys and list positions, as JSON.
func valueAt(ts *testscript.TestScript, doc any, path string) string {
	for key := range strings.SplitSeq(path, ".") {
		switch at := doc.(type) {
		case map[string]any:
			doc = at[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(at) {
				ts.Fatalf("%s: no element %q in a list of %d", path, key, len(at))
			}
			doc = at[n]
		default:
			ts.Fatalf("%s: nothing below %v", path, doc)
		}
	}
	got, err := json.Marshal(doc)
	ts.Check(err)
	return string(got)
}

// narrowCmd checks that a stream fits a terminal of 80 columns.
func narrowCmd(ts *testscript.TestScript, _ bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 79 {
			ts.Fatalf("%d columns: %s", n, line)
		}
	}
}

// plainCmd checks that a stream holds nothing that steers a terminal.
func plainCmd(ts *testscript.TestScript, _ bool, args []string) {
	if s := ts.ReadFile(args[0]); steers(s) {
		ts.Fatalf("control characters in %q", s)
	}
}

func steers(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && unicode.IsControl(r) })
}

// idsCmd writes the token ids that golden logits belong to:
//
//	ids golden.safetensors ids.txt
func idsCmd(ts *testscript.TestScript, _ bool, args []string) {
	raw := readTensor(ts, args[0], "input_ids")
	var text strings.Builder
	for i := 0; i < len(raw); i += 8 {
		fmt.Fprintln(&text, binary.LittleEndian.Uint64(raw[i:]))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text.String()), 0o666))
}

// logitsCmd compares the tensor logits of two safetensors files:
//
//	logits got.safetensors want.safetensors 1e-3
func logitsCmd(ts *testscript.TestScript, _ bool, args []string) {
	limit, err := strconv.ParseFloat(args[2], 64)
	ts.Check(err)
	got, want := readTensor(ts, args[0], "logits"), readTensor(ts, args[1], "logits")
	if len(got) != len(want) {
		ts.Fatalf("%d bytes of logits, want %d", len(got), len(want))
	}
	for i := 0; i < len(got); i += 4 {
		g, w := math.Float32frombits(binary.LittleEndian.Uint32(got[i:])), math.Float32frombits(binary.LittleEndian.Uint32(want[i:]))
		if d := math.Abs(float64(g) - float64(w)); !(d <= limit) {
			ts.Fatalf("logit %d is %v, want %v within %v", i/4, g, w, limit)
		}
	}
}

func readTensor(ts *testscript.TestScript, path, name string) []byte {
	f, err := safetensors.OpenFile(ts.MkAbs(path))
	ts.Check(err)
	defer f.Close()
	for i, t := range f.Tensors() {
		if t.Name == name {
			raw := make([]byte, t.Size)
			ts.Check(f.ReadAt(i, 0, raw))
			return raw
		}
	}
	ts.Fatalf("%s has no tensor %s", path, name)
	return nil
}

// compressCmd packs a file by the ending of the new name.
func compressCmd(ts *testscript.TestScript, _ bool, args []string) {
	out, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	defer out.Close()
	var z io.WriteCloser = gzip.NewWriter(out)
	if strings.HasSuffix(args[1], ".zst") {
		z, err = zstd.NewWriter(out)
		ts.Check(err)
	}
	_, err = io.WriteString(z, ts.ReadFile(args[0]))
	ts.Check(err)
	ts.Check(z.Close())
}

// patchCmd copies a file with one string in it replaced by another; both are Go
// string literals without quotes.
//
//	patch in out 'blk.0' 'blk\x1b0'
func patchCmd(ts *testscript.TestScript, _ bool, args []string) {
	var s [2]string
	for i := range s {
		var err error
		s[i], err = strconv.Unquote(`"` + args[2+i] + `"`)
		ts.Check(err)
	}
	data := ts.ReadFile(args[0])
	if !strings.Contains(data, s[0]) {
		ts.Fatalf("%q is not in %s", s[0], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Replace(data, s[0], s[1], 1)), 0o666))
}
