package tokenizer

import "sort"

// prefixes finds those of a list of texts that a string begins with.
type prefixes struct {
	texts []string   // sorted
	first [257]int32 // index of the first text by first byte
}

func newPrefixes(sorted []string) *prefixes {
	p := &prefixes{texts: sorted}
	for b := range p.first {
		p.first[b] = int32(sort.Search(len(sorted), func(i int) bool { return int(sorted[i][0]) >= b }))
	}
	return p
}

// walk calls found with the index of every text that s begins with, in order
// of length.
func (p *prefixes) walk(s string, found func(i int)) {
	if s == "" {
		return
	}
	lo, hi := int(p.first[s[0]]), int(p.first[int(s[0])+1]) // texts that agree with s in their first d bytes
	for d := 1; lo < hi; d++ {
		for lo < hi && len(p.texts[lo]) == d {
			found(lo)
			lo++
		}
		if d == len(s) || lo == hi {
			return
		}
		c := s[d]
		lo += sort.Search(hi-lo, func(k int) bool { return p.texts[lo+k][d] >= c })
		hi = lo + sort.Search(hi-lo, func(k int) bool { return p.texts[lo+k][d] > c })
	}
}
