package main

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/winnow-moe/winnow/"

// allowed lists which packages of this module a package may import. A package
// not listed here is an error: a new one needs its place in the order. Package
// quant/isa is below both packages of kernels, which know nothing of each other and
// must choose alike.
var allowed = map[string][]string{
	"formats/dtype":       {},
	"formats/durable":     {},
	"formats/source":      {"formats/durable"},
	"formats/strictjson":  {},
	"formats/prefetch":    {},
	"formats/gguf":        {"formats/dtype", "formats/durable", "formats/prefetch"},
	"formats/safetensors": {"formats/dtype", "formats/durable", "formats/prefetch", "formats/strictjson"},
	"formats/tokenizer":   {"formats/gguf", "formats/dtype", "formats/strictjson"},
	"formats/calib":       {"formats/gguf", "formats/dtype", "formats/durable"},
	"formats/arch":        {"formats/gguf", "formats/dtype", "formats/strictjson"},
	"quant/isa":           {},
	"quant/kernel":        {"formats/dtype", "quant/isa"},
	"quant":               {"quant/kernel", "formats/arch", "formats/calib", "formats/gguf", "formats/dtype"},
	"quant/recipefile":    {"quant", "formats/arch", "formats/gguf"},
	"engine/kernel":       {"formats/dtype", "quant/isa"},
	"engine":              {"engine/kernel", "quant", "formats/arch", "formats/calib", "formats/gguf", "formats/dtype", "formats/tokenizer"},
	"convert/experts":     {"formats/calib", "formats/arch", "formats/dtype", "formats/strictjson"},
	"convert":             {"convert/experts", "quant", "formats/arch", "formats/calib", "formats/durable", "formats/gguf", "formats/dtype", "formats/safetensors", "formats/strictjson", "formats/tokenizer"},
	"verify/report":       {},
	"verify":              {"engine", "quant", "formats/arch", "formats/durable", "formats/gguf", "formats/dtype", "formats/tokenizer"},
}

// onlyInCmd are modules that draw terminals or parse flags.
var onlyInCmd = []string{"github.com/spf13/", "github.com/schollz/", "golang.org/x/term", "flag"}

func TestImportDirection(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Skipf("needs the go command: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg, ours := strings.CutPrefix(words[0], module)
		if !ours || strings.HasPrefix(pkg, "cmd/") || strings.HasPrefix(pkg, "testdata") {
			continue
		}
		may, known := allowed[pkg]
		if !known {
			t.Errorf("package %s has no place in the import table of this test", pkg)
		}
		for _, imp := range words[1:] {
			checkImport(t, pkg, imp, may)
		}
	}
}

func checkImport(t *testing.T, pkg, imp string, may []string) {
	t.Helper()
	for _, bad := range onlyInCmd {
		if imp == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(imp, bad) {
			t.Errorf("%s imports %s, which belongs in cmd", pkg, imp)
		}
	}
	rest, ours := strings.CutPrefix(imp, module)
	if !ours {
		return
	}
	for _, m := range may {
		if rest == m {
			return
		}
	}
	t.Errorf("%s imports %s, which lies above or beside it", pkg, rest)
}
