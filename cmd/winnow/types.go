package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/quant"
)

// parseTypes reads a comma-separated list of file types.
func parseTypes(list string) ([]*quant.Recipe, error) {
	var out []*quant.Recipe
	seen := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		r, err := quant.LookupRecipe(strings.TrimSpace(name))
		if err != nil {
			return nil, &usageError{&convert.HintError{
				Err: fmt.Errorf("unknown type %q", name), Hint: "types: " + strings.Join(typeNames(true), ", "),
			}}
		}
		if seen[r.Name] {
			return nil, usagef("type %s is listed twice", r.Name)
		}
		seen[r.Name] = true
		out = append(out, r)
	}
	return out, nil
}

// typeNames lists the types that can be written; keeping: with the one that
// keeps what a GGUF file has.
func typeNames(keeping bool) []string {
	var names []string
	for _, r := range quant.Recipes() {
		codec, ok := quant.Lookup(r.Default)
		if r.KeepsTypes && keeping || !r.KeepsTypes && ok && codec.Encode != nil {
			names = append(names, r.Name)
		}
	}
	return names
}

// typesHelp is the part of a command's help that lists the types.
func typesHelp(keeping bool) string {
	return wrap("Types: "+strings.Join(typeNames(keeping), ", "), "  ")
}

func completeTypes(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	done := prefix[:strings.LastIndexByte(prefix, ',')+1]
	names := typeNames(false)
	for i := range names {
		names[i] = done + names[i]
	}
	return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// typePlaceholders stand for the type in an output name; llama.cpp's converter
// spells it {ftype}, or {FTYPE} for capitals.
var typePlaceholders = []string{"{type}", "{TYPE}", "{ftype}", "{FTYPE}"}

// outputNames makes one path per type from what the user gave as output.
func outputNames(out, base string, recipes []*quant.Recipe) ([]convert.OutputRequest, error) {
	template := out
	switch {
	case out == "":
		template = base + "-{type}.gguf"
	case isDir(out):
		template = filepath.Join(out, filepath.Base(base)+"-{type}.gguf")
	}
	var reqs []convert.OutputRequest
	for _, r := range recipes {
		path := template
		for _, p := range typePlaceholders {
			name := r.Name
			if p == "{ftype}" {
				name = strings.ToLower(name)
			}
			path = strings.ReplaceAll(path, p, name)
		}
		if path == template && len(recipes) > 1 {
			return nil, usagef("%d types need %d output names: put {type} into %q", len(recipes), len(recipes), out)
		}
		reqs = append(reqs, convert.OutputRequest{Path: path, Recipe: r})
	}
	return reqs, nil
}

// sizeValue is a flag for an amount of bytes with an optional unit: K, M, G, T
// are powers of 1000 as in llama.cpp's converter, KiB, MiB, GiB powers of 1024.
type sizeValue int64

var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"KIB", 1 << 10}, {"MIB", 1 << 20}, {"GIB", 1 << 30}, {"TIB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"B", 1},
}

// Set implements pflag.Value.
func (v *sizeValue) Set(s string) error {
	num, factor := strings.ToUpper(strings.TrimSpace(s)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(num, u.suffix); ok {
			num, factor = rest, u.factor
			break
		}
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || !(f > 0) || f*float64(factor) > 1<<62 {
		return usagef("%q is not a size such as 512M or 2G", s)
	}
	*v = sizeValue(f * float64(factor))
	return nil
}

// String implements pflag.Value.
func (v *sizeValue) String() string {
	if *v == 0 {
		return ""
	}
	if *v%(1<<20) == 0 {
		return strconv.FormatInt(int64(*v)>>20, 10) + "MiB"
	}
	return strconv.FormatInt(int64(*v), 10)
}

// Type implements pflag.Value.
func (v *sizeValue) Type() string { return "SIZE" }
