package tokenizer

import (
	"bytes"
	"encoding/binary"
	"math"
)

// piece is one entry of a SentencePiece model.
type piece struct {
	text  string
	score float32
	kind  int32 // a token type; SentencePiece and GGUF number them alike
}

// Field numbers of sentencepiece_model.proto.
const (
	fieldPieces      = 1
	fieldTrainer     = 2
	fieldNormalizer  = 3
	pieceText        = 1
	pieceScore       = 2
	pieceKind        = 3
	trainerModel     = 3
	normalizerMap    = 2
	normalizerPrefix = 3
	normalizerExtra  = 4
	wireVarint       = 0
	wireFixed64      = 1
	wireBytes        = 2
	wireFixed32      = 5
	modelTypeUnigram = 1
	modelTypeBPE     = 2
	modelTypeName    = "UNIGRAM, BPE, WORD and CHAR are 1, 2, 3 and 4"
)

// spmFile is what is used of a tokenizer.model file. How text is normalized
// counts for unigram models only, because GGUF has no keys for it in others.
type spmFile struct {
	pieces   []piece
	unigram  bool
	charsMap []byte
	prefix   bool // add_dummy_prefix
	squeeze  bool // remove_extra_whitespaces
}

// parseSPM reads a tokenizer.model file: a ModelProto message of SentencePiece
// (github.com/google/sentencepiece, src/sentencepiece_model.proto).
func parseSPM(data []byte) (*spmFile, error) {
	if bytes.HasPrefix(data, []byte("version https://git-lfs")) {
		return nil, invalid("tokenizer.model is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
	}
	m := &spmFile{prefix: true, squeeze: true} // as the message's defaults
	model := uint64(modelTypeUnigram)
	trainer := false
	err := eachField(data, func(f field) (err error) {
		switch {
		case f.number == fieldPieces && f.wire == wireBytes:
			if len(m.pieces) >= maxTokens {
				return invalid("tokenizer.model: more than %d pieces", maxTokens)
			}
			var p piece
			p, err = parsePiece(f.bytes)
			m.pieces = append(m.pieces, p)
		case f.number == fieldNormalizer && f.wire == wireBytes:
			err = m.parseNormalizer(f.bytes)
		case f.number == fieldTrainer && f.wire == wireBytes:
			trainer = true
			err = eachField(f.bytes, func(f field) error {
				if f.number == trainerModel && f.wire == wireVarint {
					model = f.value
				}
				return nil
			})
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(m.pieces) == 0:
		return nil, invalid("tokenizer.model holds no sentencepiece pieces")
	case trainer && model != modelTypeBPE && model != modelTypeUnigram:
		return nil, invalid("tokenizer.model: sentencepiece model type %d is not supported, only unigram and BPE (%s)", model, modelTypeName)
	}
	m.unigram = trainer && model == modelTypeUnigram
	return m, checkPieces(m.pieces)
}

func (m *spmFile) parseNormalizer(data []byte) error {
	err := eachField(data, func(f field) error {
		switch {
		case f.number == normalizerMap && f.wire == wireBytes && len(f.bytes) > 0:
			m.charsMap = f.bytes
		case f.number == normalizerPrefix && f.wire == wireVarint:
			m.prefix = f.value != 0
		case f.number == normalizerExtra && f.wire == wireVarint:
			m.squeeze = f.value != 0
		}
		return nil
	})
	if err == nil && m.charsMap != nil {
		_, err = parseCharsMap(m.charsMap)
	}
	return err
}

// checkPieces applies the rules of the SentencePiece library: exactly one
// unknown piece and no empty or repeated ones.
func checkPieces(pieces []piece) error {
	seen := make(map[string]int, len(pieces))
	unknown := 0
	for i, p := range pieces {
		if p.text == "" {
			return invalid("tokenizer.model: piece %d is empty", i)
		}
		if j, twice := seen[p.text]; twice {
			return invalid("tokenizer.model: pieces %d and %d are both %.40q", j, i, p.text)
		}
		seen[p.text] = i
		if math.IsNaN(float64(p.score)) || math.IsInf(float64(p.score), 0) {
			return invalid("tokenizer.model: piece %d (%.40q) has score %v, which is not finite", i, p.text, p.score)
		}
		if p.kind < TypeNormal || p.kind > TypeByte {
			return invalid("tokenizer.model: piece %d (%.40q) has type %d, outside 1 to 6", i, p.text, p.kind)
		}
		if p.kind == TypeUnknown {
			unknown++
		}
	}
	if unknown != 1 {
		return invalid("tokenizer.model: %d pieces are the unknown token, want 1", unknown)
	}
	return nil
}

func parsePiece(data []byte) (piece, error) {
	p := piece{kind: TypeNormal}
	err := eachField(data, func(f field) error {
		switch {
		case f.number == pieceText && f.wire == wireBytes:
			p.text = string(f.bytes)
		case f.number == pieceScore && f.wire == wireFixed32:
			p.score = math.Float32frombits(uint32(f.value))
		case f.number == pieceKind && f.wire == wireVarint:
			p.kind = int32(min(f.value, math.MaxInt32))
		}
		return nil
	})
	return p, err
}

// field is one field of a protobuf message; bytes is part of the message.
type field struct {
	number uint64
	wire   int
	value  uint64
	bytes  []byte
}

// eachField walks the fields of a message. Nothing is allocated for lengths
// that the message does not have.
func eachField(data []byte, fn func(field) error) error {
	for off := 0; off < len(data); {
		tag, n := binary.Uvarint(data[off:])
		if n <= 0 {
			return invalid("tokenizer.model: cannot parse the sentencepiece protobuf: bad varint at byte %d of a message", off)
		}
		off += n
		f := field{number: tag >> 3, wire: int(tag & 7)}
		n, ok := f.read(data[off:])
		if !ok || f.number == 0 {
			return invalid("tokenizer.model: cannot parse the sentencepiece protobuf: field %d at byte %d is truncated or of unknown wire type %d", f.number, off, f.wire)
		}
		off += n
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// read takes the value of f from the start of data and returns its length.
func (f *field) read(data []byte) (n int, ok bool) {
	switch f.wire {
	case wireVarint:
		f.value, n = binary.Uvarint(data)
		return n, n > 0
	case wireFixed64:
		return 8, len(data) >= 8
	case wireBytes:
		size, n := binary.Uvarint(data)
		if n <= 0 || size > uint64(len(data)-n) {
			return 0, false
		}
		f.bytes = data[n : n+int(size)]
		return n + int(size), true
	case wireFixed32:
		if len(data) < 4 {
			return 0, false
		}
		f.value = uint64(binary.LittleEndian.Uint32(data))
		return 4, true
	}
	return 0, false
}
