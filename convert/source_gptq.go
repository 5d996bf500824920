package convert

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
)

// qweight is a weight of 4-bit integers stored by input: X.scales [groups, out],
// X.qzeros I32 [groups, out/8] and
//
//	GPTQ  X.qweight I32 [in/8, out], eight inputs in a word; X.g_idx [in], the group
//	      of each input (desc_act), without which groups follow each other
//	AWQ   X.qweight I32 [in, out/8], eight outputs in a word, shuffled (gemm form)
//
// value = (code − zero) · scale. GPTQ's first format stores zero − 1; its zero
// may be 16, as in ExLlama's kernels and llama.cpp's converter.
type qweight struct {
	awq                        bool
	scales, zeros, order       int // order: tensor g_idx, or -1
	rows, cols, groups, offset int64
}

func (q *qweight) bits() int64 { return 4 }

func (q *qweight) String() string {
	if q.awq {
		return "AWQ"
	}
	return "GPTQ"
}

func (q *qweight) parts() []int {
	if q.order < 0 {
		return []int{q.scales, q.zeros}
	}
	return []int{q.scales, q.zeros, q.order}
}

func (q *qweight) group() int64 {
	if q.awq {
		return 1
	}
	return wordCodes
}

// qweight detects both. What lies in a word shows in the shapes.
func (d *detector) qweight(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	base, ok := strings.CutSuffix(s.Name, ".qweight")
	if !ok || !d.is(i, dtype.I32) {
		return nil, nil
	}
	q := &qweight{order: -1}
	var err error
	if q.scales, err = d.companion(s.Name, "scales", base+".scales"); err != nil {
		return nil, err
	}
	if q.zeros, err = d.companion(s.Name, "zero points", base+".qzeros"); err != nil {
		return nil, err
	}
	sc := &d.inv.Tensors[q.scales]
	if len(s.Shape) != 2 || len(sc.Shape) != 2 {
		return nil, formatError("tensors %q and %q have shapes %v and %v, wanted two axes each", s.Name, sc.Name, s.Shape, sc.Shape)
	}
	q.groups, q.rows = sc.Shape[0], sc.Shape[1]
	f := familyGPTQ
	switch {
	case s.Shape[1] == q.rows:
		q.cols = wordCodes * s.Shape[0]
		if q.offset = 1; d.cfg.format == "gptq_v2" {
			q.offset = 0
		}
		err = d.groupOrder(q, s.Name, base)
	case s.Shape[1]*wordCodes == q.rows:
		f, q.awq, q.cols = familyAWQ, true, s.Shape[0]
	default:
		return nil, formatError("tensor %q has shape %v; with %q %v of 4 bits it must be [in/%d, %d] (GPTQ) or [in, %d/%d] (AWQ)",
			s.Name, s.Shape, sc.Name, sc.Shape, wordCodes, q.rows, q.rows, wordCodes)
	}
	if err == nil {
		err = d.check(q.scales, s.Name, []int64{q.groups, q.rows}, scaleTypes...)
	}
	if err == nil {
		err = d.check(q.zeros, s.Name, []int64{q.groups, ceilDiv(q.rows, wordCodes)}, dtype.I32)
	}
	if err == nil && q.order < 0 {
		_, err = d.groupSize(q.scales, s.Name, q.cols, q.groups)
	}
	if err != nil {
		return nil, err
	}
	return &weight{base + ".weight", []int64{q.rows, q.cols}, f, q}, nil
}

// groupOrder finds the list of groups.
func (d *detector) groupOrder(q *qweight, of, base string) error {
	j, ok := d.inv.Lookup(base + ".g_idx")
	if !ok {
		return nil
	}
	q.order = j
	return d.check(j, of, []int64{q.cols}, dtype.I32, dtype.I64)
}

// shuffled is the place of each of eight outputs in a word of AWQ, which packs
// outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on (AutoAWQ, packing_utils.py).
var shuffled = [wordCodes]int64{0, 4, 1, 5, 2, 6, 3, 7}

// place is the place of row r in its word.
func (q *qweight) place(r int64) int64 {
	if r %= wordCodes; q.awq {
		return shuffled[r]
	}
	return r
}

// groupsOf returns the group of each column of a window.
func (q *qweight) groupsOf(ctx context.Context, rd *reader, c0, c1 int64) ([]int64, error) {
	rd.index = grow(rd.index, c1-c0)
	if q.order < 0 {
		for i := range rd.index {
			rd.index[i] = (c0 + int64(i)) / (q.cols / q.groups)
		}
		return rd.index, nil
	}
	list, err := rd.floats(ctx, q.order, q.cols, 0, 1, c0, c1)
	if err != nil {
		return nil, err
	}
	for i, g := range list {
		if rd.index[i] = int64(g); g < 0 || int64(g) >= q.groups {
			return nil, formatError("tensor %q puts column %d in group %v of %d", rd.inv.Tensors[q.order].Name, c0+int64(i), g, q.groups)
		}
	}
	return rd.index, nil
}

// read decodes a window. Its rows are columns of the stored tensors.
func (q *qweight) read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error {
	groups, err := q.groupsOf(ctx, rd, c0, c1)
	if err != nil {
		return err
	}
	g0, g1 := slices.Min(groups), slices.Max(groups)+1
	n, words := r1-r0, (r1-1)/wordCodes+1-r0/wordCodes
	scales, err := rd.floats(ctx, q.scales, q.rows, g0, g1, r0, r1)
	if err != nil {
		return err
	}
	first, last := 4*(r0/wordCodes), 4*(r0/wordCodes+words)
	if rd.aux, err = rd.window(ctx, q.zeros, rd.aux, 4*ceilDiv(q.rows, wordCodes), g0, g1, first, last); err != nil {
		return err
	}
	if q.awq {
		rd.raw, err = rd.window(ctx, codes, rd.raw, q.rows/wordCodes*4, c0, c1, first, last)
	} else {
		rd.raw, err = rd.window(ctx, codes, rd.raw, 4*q.rows, c0/wordCodes, ceilDiv(c1, wordCodes), 4*r0, 4*r1)
	}
	if err != nil {
		return err
	}
	w := c1 - c0
	for i := range n {
		word, shift := (r0+i)/wordCodes-r0/wordCodes, 4*q.place(r0+i)
		row := dst[i*w : (i+1)*w]
		for j := range row {
			c, g := int64(j), groups[j]-g0
			zero := int64(nibble(rd.aux, g*words+word, shift)) + q.offset
			var code uint32
			if q.awq {
				code = nibble(rd.raw, c*words+word, shift)
			} else {
				code = nibble(rd.raw, c/wordCodes*n+i, 4*(c%wordCodes))
			}
			row[j] = float32(int64(code)-zero) * scales[g*n+i]
		}
	}
	return nil
}

// nibble returns four bits of a word.
func nibble(words []byte, i, shift int64) uint32 {
	return binary.LittleEndian.Uint32(words[4*i:]) >> shift & 15
}

// columnwise says that neighbouring columns of a weight's row are stored far
// from each other, so that a few rows are read in as many places as all.
func (s *Source) columnwise() bool {
	_, is := s.packed.(*qweight)
	return is
}
