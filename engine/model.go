// Package engine runs models: token ids in, hidden states and logits out. It
// is the reference of the program, made to be right first: float32 throughout,
// float64 where sums are long, pure Go, and the same bits whatever the number
// of threads, the size of a batch or the company a sequence is evaluated in.
//
// A pass goes layer by layer: all sequences of a batch go through one block
// before the next block is touched, and every tile of a weight matrix is read
// and decoded once per layer and batch. The model is never in memory as a
// whole, so that one larger than memory can be run.
//
//	m, err := engine.Load(file, engine.Options{})
//	h, err := m.Forward(ctx, seqs)
//	err = m.Logits(ctx, h, 0, h.Rows(), logits)
package engine

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Options adjust how a model runs, never what comes out.
type Options struct {
	// Threads is the number of concurrent workers; 0 means all cores.
	Threads int
	// BatchTokens bounds the tokens whose activations are held at once; 0
	// means 8192. Every batch reads the whole model once.
	BatchTokens int
	Events      Events
}

// Events report progress. Nil fields are skipped. They are called from the
// goroutine that called Forward.
type Events struct {
	// Layer is called after each block of each batch: done of total blocks
	// are through, counted over all batches of the call; the batch at hand
	// has the given number of tokens.
	Layer func(done, total, tokens int)
}

const defaultBatchTokens = 8192

// Model is a model bound to its tensors. It is safe for concurrent use.
type Model struct {
	src     gguf.Model
	arch    *arch.Model
	opt     Options
	rope    rope
	embd    *tensor // [vocab, embed]
	outNorm *tensor // [embed]
	output  *tensor // [vocab, embed]; embd where the two are tied
	layers  []layer
	workers sync.Pool // of *worker
	budget  int       // see groupFloats
}

// groupFloats is the number of activations within a block, 128 MiB, up to
// which heads are scored together, and experts run together. More in a group
// means fewer waits of threads for each other.
const groupFloats = 32 << 20

// layer holds the tensors of one block under the names of their roles. Shapes
// are in the description of the family; tensors it does not have are nil.
type layer struct {
	attnNorm, ffnNorm *tensor

	// Attention.
	q, k, v                 *tensor
	qA, qANorm, qB          *tensor
	kvA, kvANorm, kB, vB    *tensor
	attnOutput              *tensor
	gate, up, down          *tensor // dense network
	router, routerBias      *tensor
	expGate, expUp, expDown *tensor // stacked by expert
	sharedGate, sharedUp    *tensor
	sharedDown              *tensor
	indices                 []int // all of the above, in the model's directory
}

// weights says which field holds the weight of a role.
func (l *layer) weights() map[arch.Role]**tensor {
	return map[arch.Role]**tensor{
		arch.AttnNorm: &l.attnNorm, arch.FFNNorm: &l.ffnNorm,
		arch.AttnQ: &l.q, arch.AttnK: &l.k, arch.AttnV: &l.v,
		arch.AttnQA: &l.qA, arch.AttnQANorm: &l.qANorm, arch.AttnQB: &l.qB,
		arch.AttnKVA: &l.kvA, arch.AttnKVANorm: &l.kvANorm, arch.AttnKB: &l.kB, arch.AttnVB: &l.vB,
		arch.AttnOutput: &l.attnOutput,
		arch.FFNGate:    &l.gate, arch.FFNUp: &l.up, arch.FFNDown: &l.down,
		arch.Router:     &l.router,
		arch.ExpertGate: &l.expGate, arch.ExpertUp: &l.expUp, arch.ExpertDown: &l.expDown,
		arch.SharedGate: &l.sharedGate, arch.SharedUp: &l.sharedUp, arch.SharedDown: &l.sharedDown,
	}
}

// Load binds the tensors of src to the fields that the pass uses. It reads no
// weights. A tensor that the family's description lacks, one that it has and
// the model lacks, a wrong shape, a type without decoder and a mechanism that
// the engine does not know are errors. src stays open while the Model is used
// and is closed by whoever opened it.
func Load(src gguf.Model, opt Options) (*Model, error) {
	am, err := arch.FromMetadata(src.Metadata())
	if err != nil {
		return nil, err
	}
	if opt.Threads <= 0 {
		opt.Threads = runtime.GOMAXPROCS(0)
	}
	if opt.BatchTokens <= 0 {
		opt.BatchTokens = defaultBatchTokens
	}
	m := &Model{src: src, arch: am, opt: opt, budget: groupFloats, layers: make([]layer, am.Params.Trunk())}
	m.workers.New = func() any { return new(worker) }
	if err := checkMechanisms(am); err != nil {
		return nil, err
	}
	if m.rope, err = newRope(&am.Params, am.Family.Block.Rope); err != nil {
		return nil, err
	}
	if err := m.bind(); err != nil {
		return nil, err
	}
	return m, nil
}

// Params returns the hyper-parameters. Callers must not change them.
func (m *Model) Params() *arch.Params { return &m.arch.Params }

// Vocab returns the number of logits per token.
func (m *Model) Vocab() int { return m.output.rows }

// checkMechanisms refuses what the pass has no code for, and hyper-parameters
// that it would have to index out of range for.
func checkMechanisms(am *arch.Model) error {
	p, b := &am.Params, &am.Family.Block
	name := am.Family.Arch
	switch {
	case b.Attn != arch.GQA && b.Attn != arch.MLA:
		return fmt.Errorf("%s: attention of kind %d is not supported by the engine", name, b.Attn)
	case b.Rope != arch.RopeAdjacent && b.Rope != arch.RopeHalves:
		return fmt.Errorf("%s: rotary pairing of kind %d is not supported by the engine", name, b.Rope)
	case p.RopeDim > p.HeadDim():
		return fmt.Errorf("%s: %s is %d, more than the %d elements of a head", name, arch.KeyRopeDim, p.RopeDim, p.HeadDim())
	case p.Experts == 0:
		return nil
	case p.Gating != arch.GatingSoftmax && p.Gating != arch.GatingSigmoid:
		return fmt.Errorf("%s: %s %d is not supported by the engine", name, arch.KeyExpertGating, p.Gating)
	case p.ExpertGroups > 1 && p.Experts/p.ExpertGroups*p.GroupsUsed < p.ExpertsUsed:
		return fmt.Errorf("%s: %d of %d groups of experts have fewer than the %d experts of a token", name, p.GroupsUsed, p.ExpertGroups, p.ExpertsUsed)
	}
	return nil
}

// bind finds a field for every tensor of the family and a tensor for every
// required field.
func (m *Model) bind() error {
	infos := m.src.Tensors()
	byName := make(map[string]int, len(infos))
	for i := range infos {
		byName[infos[i].Name] = i
	}
	for _, want := range m.arch.Tensors() {
		name := want.Name.String()
		i, ok := byName[name]
		if !ok {
			if want.Rule.Optional {
				continue
			}
			return fmt.Errorf("tensor %q is missing", name)
		}
		delete(byName, name)
		if want.Name.Layer >= len(m.layers) {
			continue // multi-token prediction is not part of the pass
		}
		if err := m.bindOne(&want, i); err != nil {
			return err
		}
	}
	for i := range infos {
		if _, left := byName[infos[i].Name]; left {
			return fmt.Errorf("tensor %q is not part of a %s model with these hyper-parameters", infos[i].Name, m.arch.Family.Arch)
		}
	}
	if m.output == nil {
		m.output = m.embd
	}
	return nil
}

func (m *Model) bindOne(want *arch.Tensor, i int) error {
	t, err := newTensor(&m.src.Tensors()[i], i, want.Shape)
	if err != nil {
		return err
	}
	slot := m.slot(want.Name)
	if slot == nil {
		return fmt.Errorf("tensor %q has a role that is not supported by the engine", t.info.Name)
	}
	*slot = t
	if l := want.Name.Layer; l >= 0 {
		m.layers[l].indices = append(m.layers[l].indices, i)
	}
	return nil
}

func (m *Model) slot(n arch.Name) **tensor {
	switch {
	case n.Layer >= 0 && n.Role == arch.RouterBias && n.Suffix == "bias":
		return &m.layers[n.Layer].routerBias
	case n.Suffix != "weight":
		return nil
	case n.Layer >= 0:
		return m.layers[n.Layer].weights()[n.Role]
	}
	return map[arch.Role]**tensor{arch.TokenEmbd: &m.embd, arch.OutputNorm: &m.outNorm, arch.Output: &m.output}[n.Role]
}

// tensor is a bound tensor: a matrix, or several stacked ones, or a vector.
type tensor struct {
	info       *gguf.TensorInfo
	index      int // in the model's directory
	rows, cols int
}

func newTensor(info *gguf.TensorInfo, index int, shape []int64) (*tensor, error) {
	if err := info.CheckShape(); err != nil {
		return nil, err
	}
	if fmt.Sprint(info.Shape) != fmt.Sprint(shape) {
		return nil, fmt.Errorf("tensor %q has shape %v, want %v", info.Name, info.Shape, shape)
	}
	if _, ok := quant.Lookup(info.Type); !ok {
		return nil, fmt.Errorf("tensor %q has type %s, which has no decoder", info.Name, info.Type)
	}
	return &tensor{info: info, index: index, rows: int(info.Rows()), cols: int(info.RowLen())}, nil
}
