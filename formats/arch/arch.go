// Package arch holds the one description of every model family that winnow
// knows: how config.json becomes hyper-parameters and metadata, which tensors
// a model has, what they are called in the checkpoint and in GGUF, how they
// are cut, and which mechanisms the forward pass is made of.
//
// convert walks the description to plan, quant keys recipes on its roles,
// engine binds tensors by role and switches on the mechanisms, verify checks
// files against it. A family is one file of values; see deepseek2.go.
package arch

// All lists the families. The order is that of listings.
var All = []*Family{
	&deepseek2, &llama, &qwen2, &qwen2moe, &qwen3, &qwen3moe, &gemma2, &gemma3, &gemma4, &olmo2, &starcoder2,
	&glm4moe, &granite, &granitemoe, &minimaxm2, &hunyuanmoe, &gptoss, &llama4,
	&qwen3next, &qwen35moe, &deepseek32, &kimilinear,
	&phi3, &phimoe, &smollm3, &glm4, &stablelm, &cohere2, &olmoe, &ernie45, &ernie45moe, &dots1, &exaone4,
}

// Family describes one model family.
type Family struct {
	// Arch is the value of general.architecture.
	Arch string
	// Classes are the class names of config.json's architectures list.
	Classes []string
	// Settings make hyper-parameters from config.json, in the order in which
	// llama.cpp's converter writes the keys.
	Settings []Setting
	// Asserts are config values that the description depends on.
	Asserts []Assert
	// Defaults are hyper-parameters of GGUF files that lack the key.
	Defaults Params
	// Complete sets the parameters that files leave to the reader: which
	// blocks are sliding, have rope and so on.
	Complete []func(*Params)
	// Block names the mechanisms of the forward pass.
	Block Block
	// Rules are the tensors. Among tensors completed by the same checkpoint
	// tensor the order of the rules is the order in the file.
	Rules []Rule
	// Drop lists checkpoint tensors that the GGUF form has no place for.
	Drop []Drop
	// Tower is the vision tower of the family's checkpoints, which becomes a
	// file of its own.
	Tower *Family
	// Within, of a tower, lists the beginnings of the names of its tensors.
	Within []string
	// Tied is what the absence of tie_word_embeddings means.
	Tied bool
	// AnyLayerTypes: layer_types says nothing that a reader has to know.
	AnyLayerTypes bool
	// DropMTP: llama.cpp's converter leaves the MTP blocks out by default.
	DropMTP bool
	// NoSpacePrefix: the tokenizer puts no space before a text, which the file says.
	NoSpacePrefix bool
	// Tokenizer is the family's tokenizer model (tokenizer.ggml.model) where the
	// files of a checkpoint allow several.
	Tokenizer string
	// TrimVocab: the vocabulary is what the tokenizer has, and rows of the
	// embedding behind it are left out. Elsewhere the tokens are filled up.
	TrimVocab bool
	// Special gives roles to tokens by their text where a checkpoint does not.
	Special []SpecialToken
	// Pre lists the pre-tokenizer names the family uses where the structure
	// of tokenizer.json allows several.
	Pre []string
}

// SpecialToken names the token that plays a role: "bos", "eos", "eot", "unk", "eom".
type SpecialToken struct{ Kind, Text string }

// Assert refuses a config whose setting is present and has another value.
type Assert struct {
	Path string
	In   []any // accepted values: string, bool, float64
	Why  string
}

// Drop names checkpoint tensors that are left out, with the reason shown in
// plans. A pattern may contain {l} and end in "*".
type Drop struct {
	Pattern, Why string
}
