package convert

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"pgregory.net/rapid"
)

// matrix is an input of one tensor, with scales for FP8, and its values by a
// direct formula.
type matrix struct {
	rows, cols int64
	inv        *Inventory
	data       memory
}

// newMatrix fills a rows×cols tensor with random bits that are finite numbers.
func newMatrix(t testing.TB, dt dtype.Type, rows, cols int64, block [2]int64, seed uint64) *matrix {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	width := int64(dt.Bits() / 8)
	raw := make([]byte, rows*cols*width)
	for i := int64(0); i < rows*cols; i++ {
		x := float32(rng.NormFloat64())
		switch p := raw[i*width:]; dt {
		case dtype.F32:
			binary.LittleEndian.PutUint32(p, math.Float32bits(x))
		case dtype.BF16:
			binary.LittleEndian.PutUint16(p, dtype.ToBF16(x))
		case dtype.F16:
			binary.LittleEndian.PutUint16(p, dtype.ToF16(x))
		default:
			p[0] = byte(rng.IntN(127)) | byte(rng.IntN(2))<<7 // 0x7F and 0xFF are NaN
		}
	}
	m := &matrix{rows: rows, cols: cols, data: memory{raw}}
	list := []Source{{Name: "w", Storage: Storage{DType: dt}, Shape: []int64{rows, cols}}}
	if dt == dtype.F8E4M3 {
		gr, gc := ceilDiv(rows, block[0]), ceilDiv(cols, block[1])
		scales := make([]byte, 4*gr*gc)
		for i := range gr * gc {
			binary.LittleEndian.PutUint32(scales[4*i:], math.Float32bits(float32(rng.Float64()+0.01)))
		}
		list = append(list, Source{Name: "w_scale_inv", Storage: Storage{DType: dtype.F32}, Shape: []int64{gr, gc}})
		m.data = append(m.data, scales)
	}
	m.inv = NewInventory(list)
	must(t, attachPackings(m.inv, &quantConfig{block: block}))
	return m
}

// at computes one value from its stored bits.
func (m *matrix) at(r, c int64) float32 {
	s := &m.inv.Tensors[0]
	i := r*m.cols + c
	switch s.Storage.DType {
	case dtype.F32:
		return math.Float32frombits(binary.LittleEndian.Uint32(m.data[0][4*i:]))
	case dtype.BF16:
		return dtype.FromBF16(binary.LittleEndian.Uint16(m.data[0][2*i:]))
	case dtype.F16:
		return dtype.FromF16(binary.LittleEndian.Uint16(m.data[0][2*i:]))
	}
	p := s.packed.(*scaled)
	g := (r/p.blockRows)*ceilDiv(m.cols, p.blockCols) + c/p.blockCols
	return dtype.FromF8E4M3(m.data[0][i]) * math.Float32frombits(binary.LittleEndian.Uint32(m.data[1][4*g:]))
}

var kinds = []dtype.Type{dtype.F32, dtype.BF16, dtype.F16, dtype.F8E4M3}

// TestReadBlocks reads arbitrary blocks of matrices whose last scale blocks
// are partial.
func TestReadBlocks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rows, cols := rapid.Int64Range(1, 40).Draw(rt, "rows"), rapid.Int64Range(1, 40).Draw(rt, "cols")
		block := [2]int64{rapid.Int64Range(1, 20).Draw(rt, "block rows"), rapid.Int64Range(1, 20).Draw(rt, "block columns")}
		m := newMatrix(t, rapid.SampledFrom(kinds).Draw(rt, "type"), rows, cols, block, rapid.Uint64().Draw(rt, "seed"))
		rd := &reader{inv: m.inv, data: m.data}
		for range 3 { // the second and third read reuse buffers
			r0, c0 := rapid.Int64Range(0, rows-1).Draw(rt, "r0"), rapid.Int64Range(0, cols-1).Draw(rt, "c0")
			r1, c1 := rapid.Int64Range(r0+1, rows).Draw(rt, "r1"), rapid.Int64Range(c0+1, cols).Draw(rt, "c1")
			got := make([]float32, (r1-r0)*(c1-c0))
			must(t, rd.read(t.Context(), 0, r0, r1, c0, c1, got))
			for r := r0; r < r1; r++ {
				for c := c0; c < c1; c++ {
					if g, w := got[(r-r0)*(c1-c0)+c-c0], m.at(r, c); g != w {
						rt.Fatalf("value at %d, %d of block [%d,%d)×[%d,%d) is %v, want %v", r, c, r0, r1, c0, c1, g, w)
					}
				}
			}
		}
	})
}

// TestReadDeepSeekEdges: the shape of R1's kv_a_proj_with_mqa in small, with
// blocks of 128 and a last row block of half the height.
func TestReadDeepSeekEdges(t *testing.T) {
	m := newMatrix(t, dtype.F8E4M3, 192, 144, [2]int64{128, 128}, 7)
	got := make([]float32, 192*144)
	rd := &reader{inv: m.inv, data: m.data}
	must(t, rd.read(t.Context(), 0, 0, 192, 0, 144, got))
	for i, g := range got {
		if w := m.at(int64(i)/144, int64(i)%144); g != w {
			t.Fatalf("value %d is %v, want %v", i, g, w)
		}
	}
}

// TestPieces compares the three arrangements with their definitions: rows as
// they are, columns of a slice as rows, and rows i and i+n/2 as 2i and 2i+1.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rows, cols := rapid.Int64Range(2, 80).Draw(rt, "rows"), rapid.Int64Range(1, 80).Draw(rt, "cols")
		m := newMatrix(t, rapid.SampledFrom(kinds).Draw(rt, "type"), rows, cols, [2]int64{16, 16}, rapid.Uint64().Draw(rt, "seed"))
		p := Piece{Mode: rapid.SampledFrom([]arch.CutMode{arch.CutRows, arch.CutTransposed, arch.CutInterleaved}).Draw(rt, "mode")}
		p.Start = rapid.Int64Range(0, rows-2).Draw(rt, "start")
		p.Count = rapid.Int64Range(1, (rows-p.Start)/2).Draw(rt, "count") * 2
		total, width := p.rows(m.inv), cols
		if p.Mode == arch.CutTransposed {
			width = p.Count
		}
		first := rapid.Int64Range(0, total-1).Draw(rt, "first")
		n := rapid.Int64Range(1, total-first).Draw(rt, "n")
		got := make([]float32, n*width)
		rd := &reader{inv: m.inv, data: m.data}
		must(t, rd.rows(t.Context(), &p, first, n, got))
		for i := range n {
			for j := range width {
				var w float32
				switch out := first + i; p.Mode {
				case arch.CutRows:
					w = m.at(p.Start+out, j)
				case arch.CutTransposed:
					w = m.at(p.Start+j, out)
				case arch.CutInterleaved:
					if w = m.at(p.Start+out/2, j); out%2 == 1 {
						w = m.at(p.Start+p.Count/2+out/2, j)
					}
				}
				if g := got[i*width+j]; g != w {
					rt.Fatalf("row %d, column %d is %v, want %v", first+i, j, g, w)
				}
			}
		}
	})
}

// TestReadErrors: every way of reading passes errors on.
func TestReadErrors(t *testing.T) {
	m := newMatrix(t, dtype.F8E4M3, 8, 8, [2]int64{4, 4}, 1)
	for name, data := range map[string]memory{"weights": {m.data[0][:8], m.data[1]}, "scales": {m.data[0], nil}} {
		for _, mode := range []arch.CutMode{arch.CutRows, arch.CutTransposed, arch.CutInterleaved} {
			rd := &reader{inv: m.inv, data: data}
			p := &Piece{Count: 8, Mode: mode}
			if err := rd.rows(t.Context(), p, 0, 8, make([]float32, 64)); err == nil {
				t.Errorf("%s are short, mode %d: no error", name, mode)
			}
		}
	}
}

func TestFinite(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for n := range 11 {
		x := make([]float32, n)
		for i := range x {
			x[i] = []float32{math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, float32(math.Copysign(0, -1)), 1}[i%5]
		}
		rd := &reader{suspect: true}
		must(t, rd.finite("w", 0, 3, x))
		for i := range x {
			for bad, text := range map[float32]string{nan: "is NaN", inf: "is +Inf", -inf: "is -Inf"} {
				old := x[i]
				x[i] = bad
				err := rd.finite("w", 100, 3, x)
				wantRefusal(t, err, ErrInput, `"w"`, text, []string{"column 0", "column 1", "column 2"}[i%3], []string{"row 100", "row 101", "row 102", "row 103"}[i/3])
				x[i] = old
			}
		}
	}
}
