package tokenizer

// byteRunes maps bytes to the printable alphabet in which byte-level
// vocabularies spell them: bytes that are printable in Latin-1 stand for
// themselves, the rest follow from U+0100 (OpenAI gpt-2 encoder.py).
var byteRunes, runeBytes = func() (fwd [256]rune, back map[rune]byte) {
	back = make(map[rune]byte, 256)
	next := rune(256)
	for b := range fwd {
		r := rune(b)
		if printable := r >= '!' && r <= '~' || r >= '¡' && r <= '¬' || r >= '®' && r <= 'ÿ'; !printable {
			r = next
			next++
		}
		fwd[b] = r
		back[r] = byte(b)
	}
	return fwd, back
}()

// fromAlphabet returns the bytes that a token of a byte-level vocabulary
// stands for; ok is false when a rune is not of the alphabet.
func fromAlphabet(token string) (raw []byte, ok bool) {
	raw = make([]byte, 0, len(token))
	for _, r := range token {
		b, known := runeBytes[r]
		if !known {
			return nil, false
		}
		raw = append(raw, b)
	}
	return raw, true
}
