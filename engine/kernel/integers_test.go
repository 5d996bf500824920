package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// forms are those of types: of each kind one with blocks of 256 and of 32.
var forms = map[string]Record{
	"Q4_K":   {Block: 256, Codes: 64, Scales: 8, Mins: 8},
	"Q5_K":   {Block: 256, Codes: 64, Scales: 16, Mins: 8},
	"Q6_K":   {Block: 256, Codes: 64, Scales: 32, Offsets: 8},
	"Q3_K":   {Block: 256, Codes: 64, Scales: 16, Offsets: 8},
	"IQ4_XS": {Block: 256, Wide: true, Codes: 128},
	"Q4_0":   {Block: 32, Codes: 8, Scales: 1, Offsets: 1},
	"Q5_1":   {Block: 32, Codes: 8, Scales: 2, Mins: 1},
	"Q8_0":   {Block: 32, Wide: true, Codes: 16},
}

// limits are the largest codes that a form's sums of 16 bits bear.
var limits = map[int]uint32{2: 63, 4: 31, 8: 15}

// randomRecord fills a record and returns its elements without the factors: the
// integers of d and of dmin.
func randomRecord(rng *rand.Rand, r *Record, units []uint32) (main, mins []int) {
	main, mins = make([]int, r.Block), make([]int, r.Block)
	if r.Wide {
		for i := range r.Codes {
			a, b := int32(rng.IntN(8127)-4063), int32(rng.IntN(8127)-4063)
			units[i], main[2*i], main[2*i+1] = pair(a, b), int(a), int(b)
		}
		units[r.Codes] = math.Float32bits(rng.Float32() - 0.5)
		return main, mins
	}
	extreme := rng.IntN(4) == 0
	for i := range r.Scales {
		scale := int32(rng.IntN(256) - 128)
		units[r.Codes+i] = pair(scale, scale)
		for j := i * r.quads(); j < (i+1)*r.quads(); j++ {
			units[j] = 0
			for k := range 4 {
				code := rng.Uint32N(limits[r.quads()] + 1)
				if extreme {
					code = limits[r.quads()]
				}
				units[j] |= code << (8 * k)
				main[4*j+k] = int(code) * int(scale)
			}
		}
	}
	rest := units[r.Codes+r.Scales:]
	for i := range r.Offsets + r.Mins {
		a, b := int32(rng.IntN(8192)-4096), int32(rng.IntN(8192)-4096)
		rest[i] = pair(a, b)
		for k := range 32 {
			v := int([2]int32{a, b}[k/16])
			if i < r.Offsets {
				main[32*i+k] -= v
			} else {
				mins[32*(i-r.Offsets)+k] = v
			}
		}
	}
	for i := r.Offsets + r.Mins; i < len(rest); i++ {
		rest[i] = math.Float32bits(rng.Float32() - 0.5)
	}
	return main, mins
}

// TestIntegerProducts compares products of all sets with sums of integers and
// the two roundings per block that integerProduct describes.
func TestIntegerProducts(t *testing.T) {
	for name, form := range forms {
		for _, shape := range [][3]int{{1, 1, 256}, {2, 17, 512}, {7, 33, 256}, {100, 20, 768}, {113, 64, 256}, {5, 16, 1280}} {
			t.Run(fmt.Sprint(name, shape), func(t *testing.T) { testIntegerProduct(t, form, shape) })
		}
	}
	form := forms["Q4_0"]
	testIntegerProduct(t, form, [3]int{4, 19, 288})
	form = forms["Q8_0"]
	testIntegerProduct(t, form, [3]int{4, 19, 96})
}

func testIntegerProduct(t *testing.T, r Record, shape [3]int) {
	t.Helper()
	rows, columns, length := shape[0], shape[1], shape[2]
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(length)))
	x := NewMatrix(make([]float32, rows*length), rows, length)
	for i := range x.Data {
		x.Data[i] = float32(rng.NormFloat64())
	}
	blocks := length / r.Block
	records := make([]uint32, columns*blocks*r.Units())
	main, mins := make([][]int, columns*blocks), make([][]int, columns*blocks)
	for i := range main {
		main[i], mins[i] = randomRecord(rng, &r, records[i*r.Units():][:r.Units()])
	}
	rounding := Rounding{Block: 256, Wide: r.Wide}
	if r.Block == 32 {
		rounding.Block = 32
	}
	want := NewMatrix(make([]float32, rows*columns), rows, columns)
	for _, set := range Sets() {
		use(t, set.Name)
		var buf []uint32
		rounded := NewRounded(rounding, rows, length, &buf)
		rounded.Round(0, x)
		if set.Name == Sets()[0].Name {
			wantIntegers(rounded, &r, records, main, mins, want)
		}
		var w Weights
		w.PackIntegers(records, columns, length, r)
		got := NewMatrix(make([]float32, rows*columns), rows, columns)
		MultiplyRounded(rounded, Output{got, &w})
		for i, v := range got.Data {
			if math.Float32bits(v) != math.Float32bits(want.Data[i]) {
				t.Fatalf("%s: row %d column %d is %g, want %g", set.Name, i/columns, i%columns, v, want.Data[i])
			}
		}
	}
}

// wantIntegers computes products element by element.
func wantIntegers(x *Rounded, r *Record, records []uint32, main, mins [][]int, want Matrix) {
	blocks := x.Cols / r.Block
	for i := range want.Rows {
		for j := range want.Cols {
			sum := float32(0)
			for b := range blocks {
				codes, factor := x.block(i, b, r.Block)
				n, m := 0, 0
				for k, c := range codes {
					n += c * main[j*blocks+b][k]
					m += c * mins[j*blocks+b][k]
				}
				unit := records[(j*blocks+b)*r.Units()+r.Codes+r.Scales+r.Offsets+r.Mins:]
				d := math.Float32frombits(unit[0]) * factor
				sum += float32(d * float32(n))
				if r.Mins > 0 {
					dmin := math.Float32frombits(unit[1]) * factor
					sum -= float32(dmin * float32(m))
				}
			}
			want.Row(i)[j] = sum
		}
	}
}

// block returns the codes and the factor of a block of a row.
func (x *Rounded) block(row, b, length int) ([]int, float32) {
	codes := make([]int, length)
	u := x.of(row, b*length/span)
	for k := range codes {
		at := b*length%span + k
		if x.Wide {
			codes[k] = int(int16(u[at/2] >> (at % 2 * 16)))
		} else {
			codes[k] = int(int8(u[at/4] >> (at % 4 * 8)))
		}
	}
	return codes, math.Float32frombits(u[x.factors()+b*length%span/x.Block])
}

// TestRounded holds rounding to ggml's definitions of Q8_0 and Q8_K
// (quantize_row_q8_0 for AVX2 and quantize_row_q8_K_ref), and all sets to the
// same bits.
func TestRounded(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const length = 512
	row := make([]float32, length)
	for i := range row {
		row[i] = float32(rng.NormFloat64()) * float32(math.Exp(float64(i%7)))
	}
	clear(row[:32])
	row[300], row[301] = 1e-41, -6e6
	for _, rounding := range []Rounding{{32, false}, {32, true}, {256, false}, {256, true}} {
		var first []uint32
		for _, set := range Sets() {
			use(t, set.Name)
			var buf []uint32
			x := NewRounded(rounding, 1, length, &buf)
			clear(buf[:cap(buf)])
			x.Round(0, NewMatrix(row, 1, length))
			if first == nil {
				first = x.data
				checkRounded(t, x, row)
			}
			for i, u := range x.data {
				if u != first[i] {
					t.Fatalf("%v, %s: unit %d is %#x, want %#x", rounding, set.Name, i, u, first[i])
				}
			}
		}
	}
}

func checkRounded(t *testing.T, x *Rounded, row []float32) {
	t.Helper()
	for b := range len(row) / x.Block {
		in := row[b*x.Block:][:x.Block]
		codes, d := x.block(0, b, x.Block)
		top := 0.0
		for _, v := range in {
			top = max(top, math.Abs(float64(v)))
		}
		if math.Abs(float64(d)-top/127) > top/127/1000 {
			t.Errorf("%v: block %d has factor %g, want about %g", x.Rounding, b, d, top/127)
		}
		for i, c := range codes {
			if want := math.RoundToEven(float64(in[i]) * 127 / max(top, 1e-300)); math.Abs(float64(c)-want) > 1 || math.Abs(float64(c)*top/127-float64(in[i])) > top/127*0.5001 {
				t.Errorf("%v: element %d of block %d is %d, want %g", x.Rounding, i, b, c, want)
			}
		}
		if x.Wide {
			continue
		}
		for g := 0; g < x.Block; g += 16 {
			sum := 0
			for _, c := range codes[g:][:16] {
				sum += c
			}
			at := b*x.Block + g
			u := x.of(0, at/span)[narrowSums+at%span/32] >> (at / 16 % 2 * 16)
			if int(int16(u)) != sum {
				t.Errorf("%v: sum of group at %d is %d, want %d", x.Rounding, at, int16(u), sum)
			}
		}
	}
}

// use makes a set active until the test ends.
func use(t *testing.T, name string) {
	t.Helper()
	before := Active().Name
	t.Cleanup(func() { Use(before) })
	Use(name)
}

// BenchmarkIntegers counts two operations per product, as for numbers.
func BenchmarkIntegers(b *testing.B) {
	const rows, columns, length = 512, 256, 1024
	rng := rand.New(rand.NewPCG(5, 6))
	x := NewMatrix(random(rng, rows*length), rows, length)
	for name, r := range forms {
		records := make([]uint32, columns*(length/r.Block)*r.Units())
		for i := range columns * (length / r.Block) {
			randomRecord(rng, &r, records[i*r.Units():][:r.Units()])
		}
		rounding := Rounding{Block: min(256, 8*r.Block), Wide: r.Wide}
		if r.Block == 32 {
			rounding.Block = 32
		}
		var buf []uint32
		rounded := NewRounded(rounding, rows, length, &buf)
		rounded.Round(0, x)
		dst := NewMatrix(make([]float32, rows*columns), rows, columns)
		var w Weights
		w.PackIntegers(records, columns, length, r)
		b.Run(name+"/multiply", func(b *testing.B) {
			for range b.N {
				MultiplyRounded(rounded, Output{dst, &w})
			}
			b.ReportMetric(2*rows*columns*length*float64(b.N)/b.Elapsed().Seconds()/1e9, "GOP/s")
		})
		b.Run(name+"/pack", func(b *testing.B) {
			for range b.N {
				w.PackIntegers(records, columns, length, r)
			}
			b.ReportMetric(columns*length*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gweights/s")
		})
		b.Run(name+"/round", func(b *testing.B) {
			for range b.N {
				rounded.Round(0, x)
			}
			b.ReportMetric(rows*length*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gnumbers/s")
		})
	}
}
