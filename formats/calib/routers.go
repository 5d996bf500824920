package calib

import (
	"crypto/sha256"
	"encoding/hex"
)

// RouterDigests returns a digest for each row of a router [experts, embed]. Routers
// are float32 in files of all types, so that the digests are those of the model
// whatever it was quantized to.
func RouterDigests(rows []float32, experts int) []string {
	out := make([]string, experts)
	for e := range out {
		n := len(rows) / experts
		sum := sha256.Sum256(encode(rows[e*n : (e+1)*n]))
		out[e] = hex.EncodeToString(sum[:8])
	}
	return out
}

// firstBlock is the first block with experts, -1 without any.
func (s *Statistics) firstBlock() int {
	first := -1
	for _, d := range s.Domains {
		if l := d.Layers(); len(l) > 0 && (first < 0 || l[0] < first) {
			first = l[0]
		}
	}
	return first
}
