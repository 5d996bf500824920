package engine

import "github.com/winnow-moe/winnow/engine/kernel"

// SumExp returns Σ e^(x−top), in float64, for logits that are at most top: the
// same bits on every machine, and by vectors where there are some.
func SumExp(logits []float32, top float64) float64 { return kernel.SumExp(logits, top) }

// Largest returns the largest of logits and whether all are finite.
func Largest(logits []float32) (top float32, finite bool) { return kernel.Largest(logits) }

// CrossExp returns SumExp of x and Σ e^(x−top)·(x−y) for as many logits y.
func CrossExp(x, y []float32, top float64) (sum, cross float64) { return kernel.CrossExp(x, y, top) }
