package calib

import (
	"fmt"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// Section is a tensor of a file of statistics, whose bytes are made when it is written.
type Section struct {
	Info gguf.TensorInfo
	Data func() ([]byte, error)
}

// Sections sets the keys of statistics and returns the tensors, without the
// importance matrix: what ParseStatistics reads, to be kept in another file.
func (s *Statistics) Sections(meta *gguf.Metadata) []Section {
	meta.Set(keyChunkSize, uint32(s.ChunkSize))
	s.addKeys(meta)
	return s.sections()
}

// ParseStatistics reads the statistics in an open file, which may hold more, into
// memory.
func ParseStatistics(m gguf.Model) (*Statistics, error) {
	s, err := parseStatistics(m)
	if err != nil {
		return nil, err
	}
	return s, s.hold()
}

// hold reads all sums, so that no file is needed any more.
func (s *Statistics) hold() error {
	for _, d := range s.Domains {
		for _, t := range d.totals() {
			if err := t.sums.hold(); err != nil {
				return fmt.Errorf("tensor %q: %w", t.weights[0], err)
			}
		}
		for layer, t := range d.experts {
			for i := range t.sums {
				if err := t.sums[i].hold(); err != nil {
					return fmt.Errorf("block %d, %s: %w", layer, Stat(i), err)
				}
			}
		}
		for layer, s := range d.samples {
			if err := s.hold(); err != nil {
				return fmt.Errorf("block %d: %w", layer, err)
			}
		}
	}
	return nil
}

func (s *series) hold() (err error) {
	s.here, err = s.load()
	s.others = nil
	return err
}
