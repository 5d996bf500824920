package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestWrap(t *testing.T) {
	text := strings.Repeat("word ", 40)
	got := "12345678" + wrap(text, "        ")
	if widest(got) > lineWidth {
		t.Errorf("%d columns", widest(got))
	}
	if fields := strings.Fields(got[8:]); len(fields) != 40 {
		t.Errorf("%d words, want 40", len(fields))
	}
	long := strings.Repeat("x", 100)
	if got, want := wrap("a "+long+" b", "  "), "a\n  "+long+"\n  b"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTable(t *testing.T) {
	got := table("lr", [][]string{{"name", "size"}, {"ä", "1"}, {"longer", "1000"}})
	want := "name    size\nä          1\nlonger  1000\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{sizeText(999), "999 B"},
		{sizeText(1_000), "1.0 kB"},
		{sizeText(1_500_000), "1.5 MB"},
		{sizeText(2_340_000_000), "2.34 GB"},
		{sizeText(1_340_000_000_000), "1.34 TB"},
		{countText(999_999), "999999"},
		{countText(14_600_000), "14.60 million"},
		{countText(671_026_419_200), "671.03 billion"},
		{visible("a\x1b[2J\tb\x7f\u009bc\xffd\nä"), "a\\x1b[2J\\tb\\x7f\\u009bc\ufffdd\nä"},
		{printable("blk.0.attn"), "blk.0.attn"},
		{printable("a\"b"), `"a\"b"`},
		{printable(""), `""`},
		{cut("häuser", 4), "häu…"},
		{cut("haus", 4), "haus"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestSizeValue(t *testing.T) {
	for in, want := range map[string]sizeValue{
		"1": 1, "512M": 512e6, "512MiB": 512 << 20, "2g": 2e9, "1.5 GiB": 3 << 29, "50GB": 50e9, "3k": 3000, "7B": 7, "1T": 1e12,
	} {
		var v sizeValue
		if err := v.Set(in); err != nil || v != want {
			t.Errorf("%q is %d (%v), want %d", in, v, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "x", "1X", "NaN", "1e30T", "Inf"} {
		var v sizeValue
		if err := v.Set(in); err == nil || exitStatus(err) != exitUsage {
			t.Errorf("%q: %v, want a usage error", in, err)
		}
	}
	if v := sizeValue(512 << 20); v.String() != "512MiB" {
		t.Errorf("got %s", v.String())
	}
	if v := sizeValue(1000); v.String() != "1000" {
		t.Errorf("got %s", v.String())
	}
}

// A pipe gets a line per interval with the time left.
func TestLineProgress(t *testing.T) {
	var out bytes.Buffer
	p := lineProgress(&out, "converting", true, time.Hour)
	p.update(1e9, 4e9, "")
	if out.Len() > 0 {
		t.Errorf("a line before its time: %q", out.String())
	}
	p = lineProgress(&out, "scoring", false, 0)
	p.update(0, 400, "")
	p.update(100, 400, " (PPL 7.0000)")
	p.finish()
	if got, want := out.String(), "winnow: scoring (PPL 7.0000): 25 %\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	out.Reset()
	lineProgress(&out, "converting", true, 0).update(1e9, 4e9, "")
	if got, want := out.String(), "winnow: converting: 1.00 GB of 4.00 GB, 0s left\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A terminal gets one line that is gone at the end, and never breaks.
func TestBarProgress(t *testing.T) {
	var out bytes.Buffer
	p := barProgress(&out, "scoring", false)
	for i := range int64(4) {
		p.update(i*100, 400, " (PPL 12345.6789)")
		time.Sleep(110 * time.Millisecond) // the bar's throttle
	}
	p.finish()
	if strings.Contains(out.String(), "\n") {
		t.Errorf("line breaks in %q", out.String())
	}
	shown := strings.Split(out.String(), "\r")
	for _, line := range shown {
		if widest(line) > lineWidth {
			t.Errorf("%d columns: %q", widest(line), line)
		}
	}
	if last := shown[len(shown)-1]; strings.TrimSpace(last) != "" {
		t.Errorf("left on the terminal: %q", last)
	}
	if !strings.Contains(out.String(), "scoring (PPL 12345.6789)  50% |") {
		t.Errorf("got %q", out.String())
	}
}

// Neither --quiet nor --json shows progress.
func TestSilence(t *testing.T) {
	for _, a := range []*app{{quiet: true}, {json: true}} {
		var out bytes.Buffer
		a.stderr = &out
		p := a.newProgress("converting", true)
		p.update(1, 2, "")
		p.finish()
		a.note("remark")
		if out.Len() > 0 {
			t.Errorf("got %q", out.String())
		}
	}
}
