package main
import . "github.com/mmcloughlin/avo/build"
func main(){ TEXT("f", NOSPLIT, "func(x *float32)"); RET(); Generate() }
