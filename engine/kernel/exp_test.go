package kernel

import (
	"math"
	"testing"
)

func TestExp(t *testing.T) {
	step := uint32(7919)
	if testing.Short() {
		step *= 16
	}
	for u := uint64(0); u < 1<<32; u += uint64(step) {
		x := math.Float32frombits(uint32(u))
		got, want := Exp(x), float32(math.Exp(float64(x)))
		switch {
		case x != x:
			if got == got {
				t.Fatalf("Exp(NaN) = %g", got)
			}
		case got != want && got != math.Nextafter32(want, got):
			t.Fatalf("Exp(%g) = %g, want %g", x, got, want)
		}
	}
	if Exp(0) != 1 {
		t.Errorf("Exp(0) = %g", Exp(0))
	}
}

func TestSigmoid(t *testing.T) {
	for _, x := range []float32{-200, -30, -1, 0, 0.5, 3, 200} {
		want := 1 / (1 + math.Exp(-float64(x)))
		if got := float64(Sigmoid(x)); math.Abs(got-want) > 1e-7 {
			t.Errorf("Sigmoid(%g) = %g, want %g", x, got, want)
		}
	}
}

func TestSoftmax(t *testing.T) {
	s := []float32{1, -2, 100, 99.5, 97}
	sum := Softmax(s, 0.5, NoSink)
	want := 0.0
	for _, v := range []float64{1, -2, 100, 99.5, 97} {
		want += math.Exp(0.5*v - 50)
	}
	if math.Abs(sum-want) > 1e-6 || s[2] != 1 {
		t.Errorf("sum %g, want %g; weight of the largest %g, want 1", sum, want, s[2])
	}
	if sum := Softmax([]float32{0, float32(math.NaN())}, 1, NoSink); sum == sum {
		t.Errorf("NaN score: sum %g, want NaN", sum)
	}
}

func BenchmarkExp(b *testing.B) {
	s := float32(0)
	for b.Loop() {
		s = Exp(-s - 0.3)
	}
}
