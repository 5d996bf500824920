//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/testdata"
)

// shape is a Qwen3-MoE with random weights to run: as many experts of the
// given width in every block, and everything else as below.
type shape struct {
	name           string
	experts, inner int
}

// They have 0.8 and 1.6 billion weights in experts. Of the second a token uses
// half as many, and a batch gives each of its experts a quarter of the tokens.
var shapes = []shape{{"64x512", 64, 512}, {"256x256", 256, 256}}

const (
	shapeBlocks   = 8
	shapeEmbed    = 1024
	shapeHeads    = 16
	shapeKVHeads  = 4
	shapeHead     = 64
	shapeUsed     = 8 // experts of a token
	shapeFileType = "Q4_K_M"
)

func shapeNames() (names []string) {
	for _, s := range shapes {
		names = append(names, s.name)
	}
	return names
}

// shapeFile returns the file of a shape, which is made unless it is there.
func (b *bench) shapeFile(s *shape) (string, error) {
	path := filepath.Join(b.dir, s.name+"-"+shapeFileType+".gguf")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	source := filepath.Join(b.dir, s.name+"-F16.gguf")
	defer os.Remove(source)
	if err := s.write(source); err != nil {
		return "", err
	}
	_, err := b.run(b.winnow, []string{"quantize", "-q", source, path, shapeFileType})
	return path, err
}

// write writes the model with float16 weights.
func (s *shape) write(path string) error {
	v, err := vocabulary()
	if err != nil {
		return err
	}
	meta := &gguf.Metadata{}
	const arch = "qwen3moe"
	meta.Set(gguf.KeyArchitecture, arch)
	for _, kv := range []struct {
		key   string
		value any
	}{
		{"block_count", uint32(shapeBlocks)}, {"context_length", uint32(40960)}, {"embedding_length", uint32(shapeEmbed)},
		{"feed_forward_length", uint32(4 * shapeEmbed)}, {"expert_feed_forward_length", uint32(s.inner)},
		{"attention.head_count", uint32(shapeHeads)}, {"attention.head_count_kv", uint32(shapeKVHeads)},
		{"attention.key_length", uint32(shapeHead)}, {"attention.value_length", uint32(shapeHead)},
		{"attention.layer_norm_rms_epsilon", float32(1e-6)}, {"rope.freq_base", float32(1e6)},
		{"expert_count", uint32(s.experts)}, {"expert_used_count", uint32(shapeUsed)}, {"vocab_size", uint32(v.Size())},
	} {
		meta.Set(arch+"."+kv.key, kv.value)
	}
	v.WriteTo(meta)
	return writeRandom(path, meta, s.tensors(int64(v.Size())), rand.New(rand.NewPCG(3, 4)))
}

func (s *shape) tensors(vocab int64) []gguf.TensorInfo {
	const embed, heads, kv = int64(shapeEmbed), int64(shapeHeads * shapeHead), int64(shapeKVHeads * shapeHead)
	inner, experts := int64(s.inner), int64(s.experts)
	list := []gguf.TensorInfo{
		{Name: "token_embd.weight", Type: gguf.F16, Shape: []int64{embed, vocab}},
		{Name: "output_norm.weight", Type: gguf.F32, Shape: []int64{embed}},
		{Name: "output.weight", Type: gguf.F16, Shape: []int64{embed, vocab}},
	}
	for l := range shapeBlocks {
		for _, t := range []gguf.TensorInfo{
			{Name: "attn_norm", Type: gguf.F32, Shape: []int64{embed}},
			{Name: "attn_q", Type: gguf.F16, Shape: []int64{embed, heads}},
			{Name: "attn_k", Type: gguf.F16, Shape: []int64{embed, kv}},
			{Name: "attn_v", Type: gguf.F16, Shape: []int64{embed, kv}},
			{Name: "attn_q_norm", Type: gguf.F32, Shape: []int64{shapeHead}},
			{Name: "attn_k_norm", Type: gguf.F32, Shape: []int64{shapeHead}},
			{Name: "attn_output", Type: gguf.F16, Shape: []int64{heads, embed}},
			{Name: "ffn_norm", Type: gguf.F32, Shape: []int64{embed}},
			{Name: "ffn_gate_inp", Type: gguf.F32, Shape: []int64{embed, experts}},
			{Name: "ffn_gate_exps", Type: gguf.F16, Shape: []int64{embed, inner, experts}},
			{Name: "ffn_up_exps", Type: gguf.F16, Shape: []int64{embed, inner, experts}},
			{Name: "ffn_down_exps", Type: gguf.F16, Shape: []int64{inner, embed, experts}},
		} {
			t.Name = fmt.Sprintf("blk.%d.%s.weight", l, t.Name)
			list = append(list, t)
		}
	}
	return list
}

// vocabulary is that of the demonstration's model.
func vocabulary() (*tokenizer.Vocab, error) {
	dir, err := os.MkdirTemp("", "bench-peers")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := testdata.UnpackDemo(dir); err != nil {
		return nil, err
	}
	return tokenizer.Load(filepath.Join(dir, "tiny-r1"), tokenizer.Options{})
}
