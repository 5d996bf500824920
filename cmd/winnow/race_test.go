//go:build race

package main

// raceDetector says whether tests run with the race detector, whose own
// allocations count as the program's.
const raceDetector = true
