// Package gguf reads and writes GGUF model files, versions 2 and 3, single or
// split over several parts.
//
// Open checks a whole directory at once and then hands out rows of tensors,
// from a memory map where the system has one. Parse does the same checks on
// any io.ReaderAt. NewLayout decides every byte offset of an output before
// anything is written; Layout.Create then takes tensor data in any order, from
// any number of goroutines, and publishes the files only when all of them are
// complete and on disk.
//
// Files are not trusted: every count is bounded by the bytes that remain and
// by a named cap before memory is taken for it.
package gguf
