//go:build !amd64 || noasm

package kernel

var sets []*Set

// These leave all numbers to the portable code.
func exps([]float32) int  { return 0 }
func tanhs([]float32) int { return 0 }

func sumExps(*[8]float64, []float32, float64) int { return 0 }

func crossExps(*[16]float64, []float32, []float32, float64) int { return 0 }

func largest([]float32) (done int, bits uint32) { return 0, 0 }

func addScaled([]float32, []float32, float32) int { return 0 }

func roundCodes([]uint32, []uint32, []float32, float32) bool { return false }

func addSquares([]float64, []float32) int { return 0 }

func addProducts([]float64, []float64, float64) int { return 0 }

func inners(*[8]float64, []float32, []float32) int { return 0 }
