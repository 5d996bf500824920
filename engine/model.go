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
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Options adjust how a model runs and, but for Compute, never what comes out.
type Options struct {
	// Threads is the number of concurrent workers; 0 means all cores.
	Threads int
	// BatchTokens bounds the tokens whose activations are held at once; 0
	// means 8192. Every batch reads the whole model once.
	BatchTokens int
	// Compute is how weights are multiplied: unlike the others it changes what
	// comes out.
	Compute Compute
	// GroupBytes bounds the activations of the heads or experts that are handled
	// together, at least one of them; 0 means DefaultGroupBytes.
	GroupBytes int64
	// HoldOutput keeps the output weight in memory, as it is encoded, once Logits
	// has read it. It is for models whose rows are read or computed anew whenever
	// they are asked for.
	HoldOutput bool
	// SampleBytes bounds the outputs of all experts that Sampled holds at a time,
	// those of one token at least; 0 means DefaultSampleBytes.
	SampleBytes int64
	Events      Events
	// Observer, when not nil, is told what goes through the model.
	Observer Observer
	// LeaveOneOut has the observer told what the output of routed experts would
	// lack without each of those that a token chose. For that one more expert is
	// run for every token.
	LeaveOneOut bool
	// Sampler, when not nil, is told what SampleTokens tokens of every sequence,
	// or all of a shorter one, bring to the routed experts of each block.
	Sampler      Sampler
	SampleTokens int
	// ObserveOutput has the observer told of the input of the output weight too,
	// unless it is the embedding.
	ObserveOutput bool
	// Nextn binds the blocks of multi-token prediction for Sampled, though nothing
	// has passes run them.
	Nextn bool
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
	embd    *tensor // [vocab, embed]
	outNorm affine  // [embed]
	output  affine  // [vocab, embed]; embd where the two are tied
	// Factors on the wavelengths of the rotary embedding, [rotated/2].
	ropeFreqs, ropeLong, ropeShort *tensor
	perLayer                       perLayer
	layers                         []layer   // of the trunk
	nextn                          []layer   // of multi-token prediction, behind them
	workers                        sync.Pool // of *worker
	rounds                         sync.Pool // of *roundBuffer
	budget                         int       // floats of a group
	heldLock                       sync.Mutex
}

// layer holds the tensors of one block under the names of their roles, and the
// hyper-parameters as it has them. Shapes are in the description of the family;
// tensors it does not have are nil.
type layer struct {
	number int
	par    *arch.Params

	attnNorm, ffnNorm, postAttn, postFFN affine // norms

	// Attention.
	q, k, v, attnOutput  affine
	qkv                  affine // q, k and v in one tensor
	qNorm, kNorm         *tensor
	sinks                *tensor
	qA, qANorm, qB       *tensor
	kvA, kvANorm, kB, vB *tensor
	indexer              indexer
	recurrent            recurrent // instead of attention
	nextn                nextn

	gate, up, down          affine // dense network
	router                  affine
	routerChoice            *tensor // bias on the choice of experts
	barred                  []int32 // experts that cannot be chosen; see Mask
	routerScale, expScale   *tensor
	expGate, expUp, expDown affine // stacked by expert
	expGateUp               *tensor
	sharedGate, sharedUp    *tensor
	sharedDown, routeShared *tensor

	// Norms of a dense network and experts side by side.
	postFFN1, postFFN2, preFFN2 *tensor
	outputScale                 *tensor

	perLayerGate, perLayerProj, perLayerPostNorm *tensor // of the block's own embedding

	indices []int // all of the above, in the model's directory
}

// affine is a weight with the bias that may come with it.
type affine struct{ w, b *tensor }

// slots says which field holds the tensor of a role: the weight, bias or scale.
func (l *layer) slots() map[arch.Role]affineSlots {
	pair := func(a *affine) affineSlots { return affineSlots{weight: &a.w, bias: &a.b} }
	weight := func(t **tensor) affineSlots { return affineSlots{weight: t} }
	down := pair(&l.expDown)
	down.scale = &l.expScale
	router := pair(&l.router)
	router.scale = &l.routerScale
	slots := map[arch.Role]affineSlots{
		arch.AttnNorm: pair(&l.attnNorm), arch.FFNNorm: pair(&l.ffnNorm),
		arch.PostAttnNorm: pair(&l.postAttn), arch.PostFFNNorm: pair(&l.postFFN),
		arch.AttnQ: pair(&l.q), arch.AttnK: pair(&l.k), arch.AttnV: pair(&l.v), arch.AttnQKV: pair(&l.qkv), arch.AttnOutput: pair(&l.attnOutput),
		arch.AttnQNorm: weight(&l.qNorm), arch.AttnKNorm: weight(&l.kNorm), arch.AttnSinks: weight(&l.sinks),
		arch.AttnQA: weight(&l.qA), arch.AttnQANorm: weight(&l.qANorm), arch.AttnQB: weight(&l.qB),
		arch.AttnKVA: weight(&l.kvA), arch.AttnKVANorm: weight(&l.kvANorm), arch.AttnKB: weight(&l.kB), arch.AttnVB: weight(&l.vB),
		arch.FFNGate: pair(&l.gate), arch.FFNUp: pair(&l.up), arch.FFNDown: pair(&l.down),
		arch.Router: router, arch.RouterBias: {bias: &l.routerChoice},
		arch.ExpertGate: pair(&l.expGate), arch.ExpertUp: pair(&l.expUp), arch.ExpertDown: down, arch.ExpertGateUp: weight(&l.expGateUp),
		arch.SharedGate: weight(&l.sharedGate), arch.SharedUp: weight(&l.sharedUp), arch.SharedDown: weight(&l.sharedDown),
		arch.RouterShared: weight(&l.routeShared),
		arch.PostFFNNorm1: weight(&l.postFFN1), arch.PostFFNNorm2: weight(&l.postFFN2), arch.PreFFNNorm2: weight(&l.preFFN2),
		arch.LayerOutputScale: weight(&l.outputScale),
		arch.PerLayerGate:     weight(&l.perLayerGate), arch.PerLayerProj: weight(&l.perLayerProj), arch.PerLayerPostNorm: weight(&l.perLayerPostNorm),
	}
	maps.Copy(slots, l.indexer.slots())
	maps.Copy(slots, l.recurrent.slots())
	maps.Copy(slots, l.nextn.slots())
	return slots
}

// affineSlots are the fields for the tensors of one role.
type affineSlots struct{ weight, bias, scale **tensor }

// of returns the field for a suffix, nil if there is none.
func (s affineSlots) of(suffix string) **tensor {
	switch suffix {
	case "weight", "":
		return s.weight
	case "bias":
		return s.bias
	case "scale":
		return s.scale
	}
	return nil
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
	if opt.GroupBytes <= 0 {
		opt.GroupBytes = DefaultGroupBytes
	}
	opt.SampleBytes = cmp.Or(opt.SampleBytes, DefaultSampleBytes)
	m := &Model{src: src, arch: am, opt: opt, budget: int(opt.GroupBytes / 4), layers: make([]layer, am.Params.Trunk()), nextn: make([]layer, boundNextn(am, &opt))}
	m.makeWorkers()
	if err := checkMechanisms(am); err != nil {
		return nil, err
	}
	for i := range len(m.layers) + len(m.nextn) {
		l := m.block(i)
		l.number, l.par = i, am.Params.At(i)
		if _, err := newRope(l.par, am.Family.Block.Rope, nil); err != nil {
			return nil, err
		}
	}
	if err := m.bind(); err != nil {
		return nil, err
	}
	return m, nil
}

// block returns a block by its number, nil if there is none or it is not bound.
func (m *Model) block(l int) *layer {
	switch {
	case l < 0 || l >= len(m.layers)+len(m.nextn):
		return nil
	case l < len(m.layers):
		return &m.layers[l]
	}
	return &m.nextn[l-len(m.layers)]
}

func (m *Model) makeWorkers() { m.workers.New = func() any { return new(worker) } }

// Params returns the hyper-parameters. Callers must not change them.
func (m *Model) Params() *arch.Params { return &m.arch.Params }

// Vocab returns the number of logits per token.
func (m *Model) Vocab() int { return m.output.w.rows }

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
	case b.Delta < arch.NoDelta || b.Delta > arch.DeltaChannels:
		return fmt.Errorf("%s: recurrent blocks of kind %d are not supported by the engine", name, b.Delta)
	case p.IndexerTopK > 0 && b.Attn != arch.MLA:
		return fmt.Errorf("%s: sparse attention is supported by the engine for latent attention only", name)
	case b.SparseMixer && p.Experts > 0 && p.ExpertsUsed != 2:
		return fmt.Errorf("%s: %s is %d; the sparse mixer chooses 2 experts", name, arch.KeyExpertUsed, p.ExpertsUsed)
	case p.Experts == 0:
		return nil
	case p.Gating < arch.GatingSoftmax || p.Gating > arch.GatingSelected:
		return fmt.Errorf("%s: %s %d is not supported by the engine", name, arch.KeyExpertGating, p.Gating)
	case p.ExpertGroups > 1 && p.Reach(p.Experts, p.ExpertGroups) < p.ExpertsUsed:
		return fmt.Errorf("%s: %d of %d groups of experts have fewer than the %d experts of a token", name, p.GroupsUsed, p.ExpertGroups, p.ExpertsUsed)
	}
	return nil
}

// CheckFamily says what keeps the engine from running the models of a family,
// nil if nothing does. With some true it is only those models that have it.
func CheckFamily(f *arch.Family) (some bool, err error) {
	am := &arch.Model{Family: f, Params: f.Defaults}
	if err := checkMechanisms(am); err != nil {
		return false, err
	}
	am.Params = f.Everything()
	if err := checkMechanisms(am); err != nil {
		return true, err
	}
	m := &Model{arch: am, layers: make([]layer, 1)}
	for i := range f.Rules {
		r, l := &f.Rules[i], 0
		if r.Where == arch.Global {
			l = -1
		}
		if m.slot(r.Name(l)) == nil {
			return r.Optional || r.If != nil || r.In != nil, fmt.Errorf("%s: tensors of the role %s are not supported by the engine", f.Arch, r.Role)
		}
	}
	return false, nil
}

// bind finds a field for every tensor of the family and a tensor for every
// required field.
func (m *Model) bind() error {
	infos := m.src.Tensors()
	byName := make(map[string]int, len(infos))
	for i := range infos {
		byName[infos[i].Name] = i
	}
	weights := map[string]*tensor{}
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
		if n := want.Name; n.Layer >= 0 && m.block(n.Layer) == nil || m.borrows(n) {
			weights[name] = nil
			continue
		}
		t, err := m.bindOne(&want, i)
		if err != nil {
			return err
		}
		weights[name] = t
	}
	for i := range infos {
		if _, left := byName[infos[i].Name]; !left {
			continue
		}
		bound, err := m.bindFactors(weights, i)
		if err != nil {
			return err
		}
		if !bound {
			return fmt.Errorf("tensor %q is not part of a %s model with these hyper-parameters", infos[i].Name, m.arch.Family.Arch)
		}
	}
	if m.output.w == nil {
		m.output.w = m.embd
	}
	for _, t := range weights {
		if t != nil {
			m.bindForm(t)
		}
	}
	return nil
}

// Idle says why the pass does not use a tensor of a block, and nothing if it
// does: it does not use the keys and values of blocks that share another's, and
// multi-token prediction only for an observer or a sampler.
func (m *Model) Idle(n arch.Name) string {
	switch {
	case n.Layer >= len(m.layers) && len(m.predictors()) == 0:
		return "multi-token prediction"
	case m.borrows(n):
		return "keys and values of an earlier block are used"
	}
	return ""
}

// borrows reports whether those of an earlier block are used in a tensor's place.
func (m *Model) borrows(n arch.Name) bool {
	switch n.Role {
	case arch.AttnK, arch.AttnV, arch.AttnKNorm:
		return n.Layer >= 0 && m.arch.Params.SharesKV(n.Layer) != n.Layer
	}
	return false
}

func (m *Model) bindOne(want *arch.Tensor, i int) (*tensor, error) {
	t, err := newTensor(&m.src.Tensors()[i], i, want.Shape)
	if err != nil {
		return nil, err
	}
	slot := m.slot(want.Name)
	if slot == nil {
		return nil, fmt.Errorf("tensor %q has a role that is not supported by the engine", t.info.Name)
	}
	*slot = t
	switch l := m.block(want.Name.Layer); {
	case l == nil, want.Name.Role == arch.NextnEmbd, want.Name.Role == arch.NextnSharedHead: // rows are looked up; not multiplied
	default:
		l.indices = append(l.indices, i)
	}
	return t, nil
}

// bindFactors ties tensor i to the weight that it holds factors of. It reports
// whether there is such a weight.
func (m *Model) bindFactors(weights map[string]*tensor, i int) (bool, error) {
	info := &m.src.Tensors()[i]
	name, activations, ok := arch.Factors(info.Name)
	w, found := weights[name]
	if !ok || !found || activations || w == nil {
		return ok && found, nil
	}
	var err error
	w.factors, err = newTensor(info, i, arch.FactorShape(w.info.Shape))
	return true, err
}

func (m *Model) slot(n arch.Name) **tensor {
	if l := m.block(n.Layer); l != nil {
		return l.slots()[n.Role].of(n.Suffix)
	}
	return map[arch.Role]affineSlots{
		arch.TokenEmbd: {weight: &m.embd}, arch.OutputNorm: {weight: &m.outNorm.w, bias: &m.outNorm.b},
		arch.Output:            {weight: &m.output.w, bias: &m.output.b},
		arch.PerLayerTokenEmbd: {weight: &m.perLayer.tokenEmbd}, arch.PerLayerModelProj: {weight: &m.perLayer.modelProj}, arch.PerLayerProjNorm: {weight: &m.perLayer.projNorm},
		arch.RopeFreqs: {weight: &m.ropeFreqs}, arch.RopeFactorsLong: {weight: &m.ropeLong}, arch.RopeFactorsShort: {weight: &m.ropeShort},
	}[n.Role].of(n.Suffix)
}

// tensor is a bound tensor: a matrix, or several stacked ones, or a vector.
type tensor struct {
	info       *gguf.TensorInfo
	index      int // in the model's directory
	rows, cols int
	factors    *tensor // of its matrices; nil: 1
	form       form
	record     *kernel.Record         // of products of integers; nil: numbers are multiplied
	held       atomic.Pointer[[]byte] // all of it, if it is kept in memory
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
