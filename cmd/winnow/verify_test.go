package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
	"github.com/winnow-moe/winnow/verify"
)

// TestVerify: a whole file passes, a changed byte is found by the manifest, and a
// block that is not finite without one; hashes are those of the bytes in the file.
func TestVerify(t *testing.T) {
	model := fixtures.TinyR1(t)
	t.Chdir(t.TempDir())
	winnowRun(t, "convert", model, "a.gguf", "--type", "Q8_0")
	winnowRun(t, "verify", "a.gguf", "--write-manifest", "a.json")
	winnowRun(t, "verify", "a.gguf", "--manifest", "a.json")
	winnowRun(t, "shard", "split", "a.gguf", "-o", "b.gguf", "--max-shard-tensors", "20")
	var parts []verified
	if err := json.Unmarshal(winnowRun(t, "verify", "b-00002-of-00003.gguf", "--manifest", "a.json", "--json"), &parts); err != nil || len(parts) != 1 || parts[0].Tensors < 40 {
		t.Errorf("%+v, %v", parts, err)
	}
	f, err := gguf.Open("a.gguf")
	if err != nil {
		t.Fatal(err)
	}
	place, name := int64(0), ""
	for i, info := range f.Tensors() {
		if info.Type == gguf.Q8_0 {
			_, place = f.Place(i)
			name = info.Name
			break
		}
	}
	f.Close()
	whole, err := os.ReadFile("a.gguf")
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(b []byte){
		"has the SHA-256": func(b []byte) { b[10] ^= 1 },
		"NaN":             func(b []byte) { binary.LittleEndian.PutUint16(b, 0x7e00) }, // the scale of a block
	} {
		b := bytes.Clone(whole)
		change(b[place:])
		if err := os.WriteFile("c.gguf", b, 0o666); err != nil {
			t.Fatal(err)
		}
		for _, more := range [][]string{nil, {"--manifest", "a.json"}} {
			var stdout, stderr bytes.Buffer
			status := run(append([]string{"verify", "c.gguf", "-q"}, more...), &stdout, &stderr)
			found := want == "NaN" || more != nil
			if found != (status == exitCheckFailed) || found && (!strings.Contains(stdout.String(), name)) {
				t.Errorf("%s, %q: status %d: %s%s", want, more, status, &stdout, &stderr)
			}
		}
	}
	var stdout, stderr bytes.Buffer
	for want, arguments := range map[string][]string{
		"is no manifest":   {"a.gguf", "--manifest", "."},
		"not of 2":         {"a.gguf", "b-00001-of-00003.gguf", "--manifest", "a.json"},
		"invalid":          {"a.gguf", "--manifest", "a.gguf"},
		"same file as the": {"a.gguf", "--write-manifest", "a.gguf", "--force"},
	} {
		stderr.Reset()
		if status := run(append([]string{"verify"}, arguments...), &stdout, &stderr); status == exitOK || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: status %d: %s", arguments, status, &stderr)
		}
	}
}

// TestCompareContents: what differs from a manifest is named.
func TestCompareContents(t *testing.T) {
	a := []verify.Content{{Name: "x", Type: "F32", Bytes: 4, SHA256: "1"}, {Name: "y", Type: "F32", Bytes: 4, SHA256: "2"}}
	if p := verify.CompareContents(a, a); len(p) != 0 {
		t.Errorf("%v", p)
	}
	b := []verify.Content{{Name: "x", Type: "F16", Bytes: 4, SHA256: "1"}, {Name: "z", Type: "F32", Bytes: 4, SHA256: "2"}}
	var kinds []verify.Kind
	for _, p := range verify.CompareContents(b, a) {
		kinds = append(kinds, p.Kind)
	}
	if len(kinds) != 3 || kinds[0] != verify.Contents || kinds[1] != verify.Missing || kinds[2] != verify.Unexpected {
		t.Errorf("%v", kinds)
	}
}
