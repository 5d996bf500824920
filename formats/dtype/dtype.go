// Package dtype describes the element types of checkpoints: their names in
// safetensors headers, their sizes, and how they become float32.
//
// It imports nothing but the standard library and the half precision package,
// and knows no file format.
package dtype
