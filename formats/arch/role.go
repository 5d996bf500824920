// (see arch.go for the package comment)
package arch
