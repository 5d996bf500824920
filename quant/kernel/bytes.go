package kernel

import "unsafe"

// Bytes returns the memory of x. A machine with kernels holds the numbers in
// little endian order.
func Bytes(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}
