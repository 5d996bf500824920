package calib

import "github.com/winnow-moe/winnow/formats/gguf"

// Section is a tensor of a file of statistics, of type F64.
type Section struct {
	Info gguf.TensorInfo
	Data func() []float64
}

// Sections sets the keys of statistics and returns the tensors, without the
// importance matrix: what ParseStatistics reads, to be kept in another file.
func (s *Statistics) Sections(meta *gguf.Metadata) []Section {
	meta.Set(keyChunkSize, uint32(s.ChunkSize))
	s.addKeys(meta)
	var list []Section
	for _, p := range s.parts() {
		list = append(list, Section{p.info, p.data})
	}
	return list
}

// ParseStatistics reads the statistics in an open file, which may hold more.
func ParseStatistics(m gguf.Model) (*Statistics, error) { return parseStatistics(m) }
