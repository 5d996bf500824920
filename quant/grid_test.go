package quant

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// gridFacts were read out of ggml's library: the number of points and the
// longest list, SHA-256 of the codes as uint16, and SHA-256 of all lists of
// the codes in ascending order, each as code, length and indices in uint32.
var gridFacts = []struct {
	name            string
	grid            *grid
	levels          int
	points, entries int
	longest         int
	codes, lists    string
}{
	{"iq2_xxs", gridIQ2XXS, 3, 256, 113157, 150, "915952ebc4af8ddba8113583ca1316fc818843f7b825bbf1a25ae1c39bf0e16d", "575d87437bbdccceba835d9946c119822d85846f0b73a15bfeba030da0c4b4e1"},
	{"iq2_xs", gridIQ2XS, 3, 512, 181721, 292, "f66435966ca8d64e9e4a6e3c91e64afcf9015e700ec85962f527283ebae207b9", "9646fe8660980013b504cb3234c8781975c1deb4ca76fcfddef410f9075afa60"},
	{"iq2_s", gridIQ2S, 3, 1024, 44716, 70, "e6e75e121b65e8afa5c1f92b71463cfbe217b83893f438acde22fd5db06a43f7", "8ed8d3d0ac42292ff5b18d5104e385b4df6a1087c3cf0c2366581188370e5960"},
	{"iq1", gridIQ1, 3, 2048, 327721, 205, "e9ffebfc997ad6023063a667c0bf4eedd8ebf7f56b3da399cbc7d1b1f7ea52c6", "afbec8f6f69bee97208f72e2595dba93d5979eab3813f41627b0b8d4f8e51b35"},
	{"iq3_xxs", gridIQ3XXS, 8, 256, 18985, 36, "c9678803c61b2210fbd8cbbb3f965a835409cd7d88a04d086d236261bd221d11", "8b8aa3ea0383117b3a6126a31b2526b6987c29760ad278be36080630f5950be6"},
	{"iq3_s", gridIQ3S, 8, 512, 24733, 38, "353274c58dd7d8dc5ee960dc8fc54ff9164eaf2b49206b841cd49415cf393f81", "f537a20c721346063709132761c5e1c0a3818d08d7d81645cb36b7a15a8d0571"},
}

func TestGrids(t *testing.T) {
	for _, f := range gridFacts {
		codes, cells := f.grid.codes(), f.grid.cells()
		data := make([]byte, 0, 2*len(codes))
		index := map[uint16]uint32{}
		for i, c := range codes {
			data = binary.LittleEndian.AppendUint16(data, c)
			index[c] = uint32(i)
		}
		if sum := sha256.Sum256(data); len(codes) != f.points || hex.EncodeToString(sum[:]) != f.codes {
			t.Errorf("%s: %d points with SHA-256 %x", f.name, len(codes), sum)
		}
		lists, longest := sha256.New(), 0
		for key, e := range cells.entries {
			code := packKey(uint16(key), f.levels)
			if f.levels == 3 && int(key3(code)) != key {
				t.Fatalf("%s: key3(%#x) = %d, want %d", f.name, code, key3(code), key)
			}
			if e&onGrid != 0 {
				if i, ok := index[code]; !ok || uint16(i) != cells.index(uint16(key)) {
					t.Fatalf("%s: code %#x has index %d, want %d", f.name, code, cells.index(uint16(key)), i)
				}
				continue
			}
			near := cells.neighbours(e)
			longest = max(longest, len(near))
			data = binary.LittleEndian.AppendUint32(data[:0], uint32(code))
			data = binary.LittleEndian.AppendUint32(data, uint32(len(near)))
			for _, c := range near {
				data = binary.LittleEndian.AppendUint32(data, index[c])
			}
			lists.Write(data)
		}
		if sum := hex.EncodeToString(lists.Sum(nil)); len(cells.lists) != f.entries || longest != f.longest || sum != f.lists {
			t.Errorf("%s: %d neighbours, at most %d, with SHA-256 %s", f.name, len(cells.lists), longest, sum)
		}
	}
}
