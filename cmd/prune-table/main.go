// Command prune-table measures what it changes to choose experts by one kind of
// text or another: the trained miniatures in testdata are calibrated on code and
// on English, lose half of their experts by each, and are measured on held-out
// text of both kinds. It prints a table and writes it into the README, between
// its markers. A second table, of what rules, merging and repair cost, is of texts
// of three kinds together.
//
// It is a tool for developers; `make prune-table` builds what it needs.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/testdata"
)

// The windows of the texts, and the experts of 16 that stay.
const (
	ctx       = "256"
	calibrate = "64" // windows
	evaluate  = "48"
	keep      = "8"
)

const (
	begin     = "<!-- made by make prune-table -->\n"
	beginWays = "<!-- ways, made by make prune-table -->\n"
	end       = "<!-- end -->\n"
)

var (
	packs   = []string{"demo", "packs/tiny-gemma4-moe", "packs/corpus"}
	models  = []string{"tiny-r1", "tiny-gemma4-moe"}
	rules   = []string{"reap_sum", "reap"}
	domains = []string{"code", "english"}
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("prune-table: ")
	winnow := flag.String("winnow", "./winnow", "winnow's program")
	readme := flag.String("readme", "README.md", "the `file` to write the table into")
	flag.Parse()
	if err := run(*winnow, *readme); err != nil {
		log.Fatal(err)
	}
}

func run(winnow, readme string) error {
	winnow, err := filepath.Abs(winnow)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "prune-table")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, p := range packs {
		if err := unpack(filepath.Join("testdata", filepath.FromSlash(p)+".tar.zst"), dir); err != nil {
			return err
		}
	}
	b := &bench{winnow: winnow, dir: dir}
	var rows []*row
	for _, model := range models {
		for _, domain := range domains {
			if _, err := b.run("calibrate", model, "--text", domain+"="+text("calib", domain), "--ctx", ctx, "--chunks", calibrate, "-o", model+"-"+domain+".gguf"); err != nil {
				return err
			}
		}
		for _, rule := range rules {
			r, err := b.measure(model, rule)
			if err != nil {
				return err
			}
			rows = append(rows, r)
		}
	}
	ways, err := b.ways()
	if err != nil {
		return err
	}
	for _, t := range []struct{ begin, table string }{{begin, markdown(rows)}, {beginWays, markdownWays(ways)}} {
		fmt.Print(t.table)
		if err := replace(readme, t.begin, t.table); err != nil {
			return err
		}
	}
	return nil
}

func unpack(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return testdata.Unpack(f, dir)
}

// text is the path of a text for a use.
func text(use, domain string) string { return "corpus/" + use + "-" + domain + ".txt" }

// bench runs winnow in a folder.
type bench struct{ winnow, dir string }

func (b *bench) run(args ...string) ([]byte, error) {
	c := exec.Command(b.winnow, append(args, "-q")...)
	c.Dir, c.Stderr = b.dir, os.Stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("winnow %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// row is a model and rule with the two choices: kld[i][j] is the divergence on
// domain j of what was chosen by domain i.
type row struct {
	model, rule     string
	differ, experts int
	kld             [2][2]float64
}

// measure chooses experts by each domain, and measures both choices on both.
func (b *bench) measure(model, rule string) (*row, error) {
	r := &row{model: model, rule: rule}
	args := []string{"perplexity", model, "--ctx", ctx, "--chunks", evaluate, "--json"}
	var lists []*experts.KeepList
	for _, domain := range domains {
		plan := model + "-" + rule + "-" + domain + ".json"
		if _, err := b.run("prune", model, "--stats", model+"-"+domain+".gguf", "--rule", rule, "--keep", keep, "--save-plan", plan); err != nil {
			return nil, err
		}
		f, err := os.Open(filepath.Join(b.dir, plan))
		if err != nil {
			return nil, err
		}
		list, err := experts.ReadKeepList(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", plan, err)
		}
		lists = append(lists, list)
		args = append(args, "--experts", plan, "--text", domain+"="+text("eval", domain))
	}
	for l, ids := range lists[0].Blocks {
		r.experts += len(ids)
		for _, id := range ids {
			if !slices.Contains(lists[1].Blocks[l], id) {
				r.differ++
			}
		}
	}
	out, err := b.run(args...)
	if err != nil {
		return nil, err
	}
	return r, r.read(out)
}

// read takes the divergences from what perplexity printed.
func (r *row) read(out []byte) error {
	var doc struct {
		Choices []struct {
			Domains []struct {
				KLD struct{ Mean struct{ Value float64 } } `json:"kld"`
			}
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return err
	}
	for i, c := range doc.Choices {
		for j, d := range c.Domains {
			r.kld[i][j] = d.KLD.Mean.Value
		}
	}
	return nil
}

// wins reports whether the choice by domain i is the better one on it.
func (r *row) wins(i int) bool { return r.kld[i][i] < r.kld[1-i][i] }

// markdown is the table with what it shows.
func markdown(rows []*row) string {
	var b strings.Builder
	b.WriteString("| model | rule | experts that differ | KLD on code, chosen by code | by English | KLD on English, chosen by English | by code |\n|---|---|---:|---:|---:|---:|---:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | `%s` | %d of %d", r.model, r.rule, r.differ, r.experts)
		for i := range domains {
			own, other := "%.4f", "%.4f"
			if r.wins(i) {
				own = "**%.4f**"
			} else {
				other = "**%.4f**"
			}
			fmt.Fprintf(&b, " | "+own+" | "+other, r.kld[i][i], r.kld[1-i][i])
		}
		b.WriteString(" |\n")
	}
	fmt.Fprintf(&b, "\n%s of 16 experts stay; %s windows of %s tokens of the calibration texts of testdata, %s of the evaluation texts.\n%s\n", keep, calibrate, ctx, evaluate, verdict(rows))
	return b.String()
}

// verdict says in words where the choice by a kind of text is the better one on it.
func verdict(rows []*row) string {
	var lost []string
	for _, r := range rows {
		for i, d := range domains {
			if !r.wins(i) {
				lost = append(lost, fmt.Sprintf("%s of %s by `%s`", d, r.model, r.rule))
			}
		}
	}
	if len(lost) == 0 {
		return "Every choice wins on the kind of text that it was made by."
	}
	return "Choices win on the kind of text that they were made by, but for " + strings.Join(lost, ", ") + "."
}

// replace puts the table between the markers of a file.
func replace(path, begin, table string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table, between %q and %q", path, begin, end)
	}
	return os.WriteFile(path, []byte(before+begin+"\n"+table+"\n"+end+after), 0o666)
}
