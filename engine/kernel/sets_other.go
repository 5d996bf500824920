//go:build !amd64 || noasm

package kernel

import "math"

var sets []*Set

// These leave all numbers to the portable code.

func gates(_, _ []float32, _ float32) int { return 0 }
func gelus(_, _ []float32) int            { return 0 }

func softcaps(_ []float32, _, _ float32) int { return 0 }

func scaledTop(_ []float32, _, top float32) (int, float32) { return 0, top }

func expsBelow(*[4]float64, []float32, float32) int { return 0 }

func sumExps(*[8]float64, []float32, float64) int { return 0 }

func crossExps(*[16]float64, []float32, []float32, float64) int { return 0 }

func largest([]float32) (done int, bits uint32) { return 0, 0 }

func extremes([]float32) (done int, top float32, bits uint32) {
	return 0, float32(math.Inf(-1)), 0
}

func sumSquares(*[8]float64, []float32) int { return 0 }

func addSquares([]float64, []float32) int { return 0 }

func addScaled([]float32, []float32, float32) int { return 0 }

func addScaled64([]float64, []float64, float64) int { return 0 }

func scaled(_, _, _ []float32, _ float32) int { return 0 }

func roundCodes([]uint32, []uint32, []float32, float32) bool { return false }

func inners(*[8]float64, []float32, []float32) int { return 0 }
