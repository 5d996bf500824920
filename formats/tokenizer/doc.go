// Package tokenizer carries vocabularies between checkpoints and GGUF files,
// and turns text into token ids and back.
//
// Load reads a checkpoint folder (tokenizer.json, tokenizer.model or a tiktoken
// file and the small files beside them), FromMetadata reads the tokenizer keys of a GGUF
// file; both give a Vocab that has been checked as a whole. Vocab.WriteTo
// writes the keys as llama.cpp's converter orders them, and Vocab.Encoder
// returns the Tokenizer:
//
//	v, err := tokenizer.Load(dir, tokenizer.Options{})
//	t, err := v.Encoder()
//	ids := t.Encode("Hello", tokenizer.EncodeOptions{AddSpecial: true})
//
// Byte-level BPE ("gpt2"), SentencePiece BPE ("llama") and unigram ("t5"), and
// BPE over characters ("gemma4") are supported. How text is cut into words
// before merging is recognised from the structure of tokenizer.json alone
// (pretok.go, pieceform.go), never from a known vocabulary. Chat
// templates are copied as text and never run.
package tokenizer
