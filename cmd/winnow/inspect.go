package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/verify"
)

func newInspectCommand(a *app) *cobra.Command {
	var (
		show  inspectFlags
		check bool
		ck    convert.CheckpointOptions
	)
	c := &cobra.Command{
		Use:   "inspect PATH",
		Short: "What is in a GGUF file, safetensors file or checkpoint folder",
		Long: `Show what a file holds. The whole header is validated, tensor data is not
read, except in a file of calibrate: how evenly experts were used. --check goes
further: the vocabulary is loaded, and the tensors are compared with what the
model's family must have.`,
		Example: `  winnow inspect R1-Q4_K_M.gguf --tensors
  winnow inspect DeepSeek-R1 --check`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, pos []string) error {
			doc, err := inspect(pos[0])
			if err != nil {
				return err
			}
			if check {
				if doc.Problems, err = checkModel(pos[0], ck); err != nil {
					return err
				}
			}
			return a.printInspection(doc, show)
		},
	}
	c.Flags().BoolVar(&show.tensors, "tensors", false, "list all tensors")
	c.Flags().BoolVar(&show.keys, "keys", false, "list all metadata keys")
	c.Flags().BoolVar(&check, "check", false, "check vocabulary and structure too")
	checkpointFlags(c, &ck)
	return c
}

type inspectFlags struct{ tensors, keys bool }

// inspection is what inspect found, in the form --json prints.
type inspection struct {
	Path          string            `json:"path"`
	Kind          string            `json:"kind"`
	Arch          string            `json:"architecture,omitempty"`
	Name          string            `json:"name,omitempty"`
	Files         []string          `json:"files"`
	Bytes         int64             `json:"bytes"`
	Parameters    int64             `json:"parameters"`
	BitsPerWeight float64           `json:"bits_per_weight"` // of the tensors, without headers
	Types         []typeTotal       `json:"types"`
	Keys          []keyValue        `json:"keys"`
	Tensors       []inspectedTensor `json:"tensors"`
	Warnings      []string          `json:"warnings,omitempty"`
	Problems      *[]verify.Problem `json:"problems,omitempty"`
	Calibration   *calib.Coverage   `json:"calibration,omitempty"` // of a file that calibrate wrote
	types         map[string]*typeTotal
}

type typeTotal struct {
	Type       string `json:"type"`
	Tensors    int    `json:"tensors"`
	Parameters int64  `json:"parameters"`
	Bytes      int64  `json:"bytes"`
}

type keyValue struct {
	Key   string `json:"key"`
	Type  string `json:"type"`
	Value any    `json:"value"`
}

type inspectedTensor struct {
	Name  string  `json:"name"`
	Type  string  `json:"type"`
	Shape []int64 `json:"shape"` // as in the file: GGUF row length first, safetensors last
	Bytes int64   `json:"bytes"`
	File  string  `json:"file,omitempty"`
}

// inspect recognises what path is and reads its headers.
func inspect(path string) (*inspection, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case st.IsDir():
		c, err := safetensors.Open(path)
		if err != nil {
			return nil, err
		}
		return inspectSafetensors(path, "checkpoint", c)
	case strings.EqualFold(filepath.Ext(path), ".safetensors"):
		c, err := safetensors.OpenFile(path)
		if err != nil {
			return nil, err
		}
		return inspectSafetensors(path, "safetensors", c)
	}
	return inspectGGUF(path)
}

func inspectSafetensors(path, kind string, c *safetensors.Checkpoint) (*inspection, error) {
	defer c.Close()
	doc := newInspection(path, kind, c.Warnings())
	for _, f := range c.Files() {
		doc.Files = append(doc.Files, f.Path)
		doc.Bytes += f.Size
	}
	for k, v := range c.Metadata() {
		doc.Keys = append(doc.Keys, keyValue{k, "STRING", v})
	}
	slices.SortFunc(doc.Keys, func(a, b keyValue) int { return strings.Compare(a.Key, b.Key) })
	for _, t := range c.Tensors() {
		n := int64(1)
		for _, d := range t.Shape {
			n *= d
		}
		doc.add(inspectedTensor{t.Name, t.DType.String(), t.Shape, t.Size, filepath.Base(c.Files()[t.Shard].Path)}, n)
	}
	doc.finish()
	return doc, nil
}

func inspectGGUF(path string) (*inspection, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	doc := newInspection(path, "gguf", f.Warnings)
	for _, p := range f.Parts() {
		doc.Files = append(doc.Files, p.Path)
		doc.Bytes += p.Size
	}
	md := f.Metadata()
	doc.Arch, _ = md.String(gguf.KeyArchitecture)
	doc.Name, _ = md.String(gguf.KeyName)
	for _, k := range md.Keys() {
		v, _ := md.Get(k)
		t, elem, _ := gguf.TypeOf(v)
		name := t.String()
		if t == gguf.TypeArray {
			name = "[]" + elem.String()
		}
		doc.Keys = append(doc.Keys, keyValue{k, name, jsonValue(v)})
	}
	for i, t := range f.Tensors() {
		part, _ := f.Place(i)
		doc.add(inspectedTensor{t.Name, t.Type.String(), t.Shape, t.Size(), filepath.Base(f.Parts()[part].Path)}, t.Elements())
	}
	doc.finish()
	if calib.HasStatistics(md) {
		s, err := calib.ReadStatistics(path)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		if doc.Calibration, err = s.Coverage(1); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

// jsonValue makes numbers that JSON cannot express strings, and bytes numbers.
func jsonValue(v any) any {
	if b, ok := v.([]uint8); ok {
		numbers := make([]int, len(b))
		for i := range b {
			numbers[i] = int(b[i])
		}
		return numbers
	}
	if _, err := json.Marshal(v); err != nil {
		return fmt.Sprint(v)
	}
	return v
}

// newInspection has empty lists where JSON would otherwise show null.
func newInspection(path, kind string, warnings []string) *inspection {
	return &inspection{
		Path: path, Kind: kind, Warnings: warnings,
		Types: []typeTotal{}, Keys: []keyValue{}, Tensors: []inspectedTensor{}, types: map[string]*typeTotal{},
	}
}

// add counts a tensor of n elements.
func (d *inspection) add(t inspectedTensor, n int64) {
	total := d.types[t.Type]
	if total == nil {
		total = &typeTotal{Type: t.Type}
		d.types[t.Type] = total
	}
	total.Tensors++
	total.Parameters += n
	total.Bytes += t.Bytes
	d.Parameters += n
	d.Tensors = append(d.Tensors, t)
}

func (d *inspection) finish() {
	var bytes int64
	for _, t := range d.types {
		d.Types = append(d.Types, *t)
		bytes += t.Bytes
	}
	if d.Parameters > 0 {
		d.BitsPerWeight = float64(bytes) * 8 / float64(d.Parameters)
	}
	slices.SortFunc(d.Types, func(a, b typeTotal) int {
		if a.Bytes != b.Bytes {
			return int(min(max(b.Bytes-a.Bytes, -1), 1))
		}
		return strings.Compare(a.Type, b.Type)
	})
}

// checkModel checks a file or folder as a whole. What keeps it from being read
// is an error, what is wrong with its content a list of problems.
func checkModel(path string, opt convert.CheckpointOptions) (*[]verify.Problem, error) {
	if strings.EqualFold(filepath.Ext(path), ".safetensors") {
		return &[]verify.Problem{}, nil // a single file has no structure beyond its header
	}
	m, _, err := openModel(path, opt)
	if err != nil {
		return nil, err
	}
	problems := append([]verify.Problem{}, verify.Structure(m)...) // none is [] in JSON, not null
	return &problems, m.Close()
}

func (a *app) printInspection(d *inspection, show inspectFlags) error {
	if a.json {
		if err := a.printJSON(d); err != nil {
			return err
		}
		return d.verdict()
	}
	a.printHead(d)
	if show.keys {
		a.printf("\n%s", keyTable(d.Keys))
	}
	if show.tensors {
		a.printf("\n%s", tensorTable(d.Tensors))
	}
	a.warn(d.Warnings)
	return a.printVerdict(d)
}

// printHead says what the file is and what its tensors take.
func (a *app) printHead(d *inspection) {
	a.printf("%s: %s", printable(d.Path), d.Kind)
	if d.Arch != "" {
		a.printf(", %s", printable(d.Arch))
	}
	if d.Name != "" {
		a.printf(", %q", d.Name)
	}
	a.printf("\n%d %s, %s, %d %s", len(d.Files), plural(len(d.Files), "file", "files"), sizeText(d.Bytes),
		len(d.Tensors), plural(len(d.Tensors), "tensor", "tensors"))
	if d.Calibration == nil {
		a.printf(", %s parameters", countText(d.Parameters))
		if d.Parameters > 0 {
			a.printf(", %.4f bits per weight", d.BitsPerWeight)
		}
	}
	a.printf("\n")
	var rows [][]string
	for _, t := range d.Types {
		rows = append(rows, []string{"  " + t.Type, fmt.Sprintf("%d %s", t.Tensors, plural(t.Tensors, "tensor", "tensors")), sizeText(t.Bytes)})
	}
	a.printf("%s", table("lrr", rows))
	if d.Calibration != nil {
		a.printf("\n")
		a.printCoverage(d.Calibration)
	}
}

func (a *app) printVerdict(d *inspection) error {
	if d.Problems == nil {
		return nil
	}
	for _, p := range *d.Problems {
		a.printf("problem: %s\n", p.Text)
	}
	if len(*d.Problems) == 0 {
		a.printf("check: ok\n")
	}
	return d.verdict()
}

func (d *inspection) verdict() error {
	if d.Problems != nil && len(*d.Problems) > 0 {
		return &checkError{len(*d.Problems)}
	}
	return nil
}

// keyTable lists metadata; values are cut at the end of the line.
func keyTable(keys []keyValue) string {
	var rows [][]string
	for _, k := range keys {
		rows = append(rows, []string{printable(k.Key), k.Type, ""})
	}
	room := max(lineWidth-widest(table("lll", append(rows, []string{"", "", "|"})))+1, 16)
	for i, k := range keys {
		rows[i][2] = cut(valueText(k), room)
	}
	return table("lll", rows)
}

// valueText writes a value as JSON; arrays begin with their length.
func valueText(k keyValue) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(k.Value); err != nil {
		return ""
	}
	if v := reflect.ValueOf(k.Value); v.Kind() == reflect.Slice {
		return fmt.Sprintf("%d: %s", v.Len(), strings.TrimSpace(b.String()))
	}
	return strings.TrimSpace(b.String())
}

func tensorTable(tensors []inspectedTensor) string {
	var rows [][]string
	for _, t := range tensors {
		rows = append(rows, []string{printable(t.Name), t.Type, fmt.Sprint(t.Shape), sizeText(t.Bytes)})
	}
	return table("lllr", rows)
}
