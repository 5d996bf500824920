package arch

// Attention is the kind of attention of a block.
type Attention int

// The kinds of attention.
const (
	// GQA is grouped-query attention with separate q, k, v projections.
	GQA Attention = iota + 1
	// MLA is DeepSeek's multi-head latent attention, stored absorbed: k_b
	// and v_b decompress the cached latent.
	MLA
)

// Rope is the pairing of rotated elements.
type Rope int

// The pairings.
const (
	// RopeAdjacent rotates elements 2i and 2i+1 (llama.cpp NORM).
	RopeAdjacent Rope = iota + 1
	// RopeHalves rotates elements i and i+d/2 (llama.cpp NEOX, HF rotate_half).
	RopeHalves
)

// GroupScore says how group-limited routing scores a group of experts.
type GroupScore int

// The group scores.
const (
	// GroupTop2 sums the two best experts of the group (DeepSeek V3).
	GroupTop2 GroupScore = iota + 1
	// GroupMax takes the best expert of the group (DeepSeek V2).
	GroupMax
)

// Norm is the kind of a family's norms.
type Norm int

// The norms.
const (
	RMSNorm   Norm = iota // x/√(mean x² + ε) · weight
	LayerNorm             // (x − mean)/√(variance + ε) · weight + bias
)

// QKNorm says how queries and keys are normed.
type QKNorm int

// The norms of queries and keys. All but QKNormUnit have weights.
const (
	QKNormNone      QKNorm = iota
	QKNormHeads            // every head, before rope
	QKNormAfterRope        // every head, after rope
	QKNormWhole            // all heads as one vector, before rope
	QKNormUnit             // every head, after rope, without weight, in blocks with rope (Params.NoQKNorm: nowhere)
)

// Residual says how the branches of a block join the residual stream.
type Residual int

// The ways.
const (
	// PreNorm: x += attn(norm(x)); x += ffn(norm(x)).
	PreNorm Residual = iota
	// Sandwich: the outputs are normed as well (Gemma, GLM-4).
	Sandwich
	// PostNorm: only the outputs are normed (OLMo 2).
	PostNorm
	// ParallelNorm: x += attn(norm(x)) + ffn(norm(x)) with one norm (Cohere).
	// Families of another kind may do so too where Params.Parallel is set,
	// their networks having a norm of their own or sharing that of attention.
	ParallelNorm
)

// Act is the activation of the feed-forward networks.
type Act int

// The activations.
const (
	SwiGLU        Act = iota // silu(gate) · up
	GEGLU                    // gelu(gate) · up, gelu by tanh
	GELU                     // gelu(up), gelu by tanh; there is no gate
	SwiGLUClamped            // (up + 1) · gate · sigmoid(1.702·gate), both clamped at 7 (gpt-oss)
)

// ExpertSum says how the weights of the chosen experts are divided by their
// sum where they are.
type ExpertSum int

// The sums.
const (
	SumPlusTiny ExpertSum = iota // sum + 1e-20 (DeepSeek V3)
	SumAtLeast                   // max(sum, 1e-12) (ERNIE)
)

// Delta is the form of the recurrent blocks (gated delta net, Yang et al. 2024).
type Delta int

// The forms.
const (
	NoDelta Delta = iota
	// DeltaGrouped stores beta and alpha in one tensor by key head, and value
	// heads of a key head follow each other (Qwen3-Next).
	DeltaGrouped
	// DeltaTiled stores them apart, and value head v belongs to key head
	// v mod StateGroups (Qwen3.5 as llama.cpp stores it).
	DeltaTiled
	// DeltaChannels is Kimi Delta Attention: every element of a key forgets at
	// its own rate, queries, keys and values are projected apart, and the output
	// is gated by a sigmoid.
	DeltaChannels
)

// Block names the mechanisms a family's blocks are made of. The engine
// switches on these and refuses what it does not know. Biases, sinks and
// shared experts are there when their tensors are.
type Block struct {
	Attn     Attention
	Rope     Rope
	Norm     Norm
	QKNorm   QKNorm
	Residual Residual
	Act      Act
	Delta    Delta
	// LatentNormEps, when not 0, replaces NormEps for the norms of the MLA
	// compressions: HF's modules use 1e-6 whatever rms_norm_eps says.
	LatentNormEps float32
	// FFNNorm is the role of the norm before the feed-forward network where it
	// is not ffn_norm.
	FFNNorm Role
	// ScaleEmbedding multiplies the embedding by √Embed.
	ScaleEmbedding bool
	// PlainScores: query-key products have no factor.
	PlainScores bool
	// ValueNorm norms every value head without weight; where there is no
	// value projection the values are the keys before their norm.
	ValueNorm bool
	// QueryGate: every query head is followed by a gate, whose sigmoid
	// multiplies the head's output.
	QueryGate bool
	// WeightInput applies the experts' weights to their input.
	WeightInput bool
	// RouteResidual: the router reads the residual stream, normed without
	// weight and scaled by ffn_gate_inp.scale/√Embed, and the experts' weights
	// are multiplied by ffn_down_exps.scale.
	RouteResidual bool
	// BesideDense: blocks with experts have the dense network too, with norms
	// of their own for both.
	BesideDense bool
	ExpertSum   ExpertSum
	// LogitMultiplier: LogitScale multiplies the logits instead of dividing.
	LogitMultiplier bool
	// SparseMixer chooses two experts by masked softmaxes (Phi-3.5-MoE).
	SparseMixer bool
}
