package arch

import "slices"

// Mechanisms lists what the family's blocks are made of, in words for people.
// Some models of a family may lack some.
func (f *Family) Mechanisms() []string {
	b := &f.Block
	list := []string{attentionNames[b.Attn], ropeNames[b.Rope], normNames[b.Norm], actNames[b.Act]}
	for _, m := range []struct {
		has  bool
		name string
	}{
		{b.QKNorm != QKNormNone, qkNormNames[b.QKNorm]},
		{b.Residual != PreNorm, residualNames[b.Residual]},
		{f.has(KeySlidingWindow), "sliding window"},
		{f.has(KeyChunkSize), "chunked attention"},
		{f.has(KeyIndexerTopK), "sparse attention"},
		{b.Delta != NoDelta, "recurrent blocks"},
		{b.QueryGate, "gated attention"},
		{f.hasRole(AttnSinks), "attention sinks"},
		{f.has(KeySharedKV), "shared keys and values"},
		{f.has(KeyAttnSoftcap) || f.has(KeyFinalSoftcap), "soft capping"},
		{f.has(KeyPerLayerEmbed), "embeddings per block"},
		{f.Routed(), "routed experts"},
		{f.hasRole(RouterBias), "router bias"},
		{f.hasRole(SharedUp), "shared experts"},
		{f.HasMTP(), "MTP blocks"},
	} {
		if m.has {
			list = append(list, m.name)
		}
	}
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

// HasMTP reports whether models of the family may have multi-token prediction blocks.
func (f *Family) HasMTP() bool { return f.hasRole(NextnEHProj) }

// Routed reports whether models of the family may have routed experts.
func (f *Family) Routed() bool { return f.hasRole(ExpertDown) }

// Everything returns hyper-parameters of a model that uses whatever the family
// has settings for: its defaults, and 1 for the other counts.
func (f *Family) Everything() Params {
	p := f.Defaults
	for i := range f.Settings {
		field := fields[f.Settings[i].Key]
		if field == nil {
			continue
		}
		switch v := field(&p).(type) {
		case *int:
			*v = max(1, *v)
		case *Gating:
			*v = max(GatingSoftmax, *v)
		}
	}
	return p
}

// hasRole reports whether a rule of the family makes tensors of the role.
func (f *Family) hasRole(role Role) bool {
	return slices.ContainsFunc(f.Rules, func(r Rule) bool { return r.Role == role })
}

// Names of mechanisms.
var (
	attentionNames = map[Attention]string{GQA: "grouped-query attention", MLA: "latent attention (MLA)"}
	ropeNames      = map[Rope]string{RopeAdjacent: "rope of adjacent elements", RopeHalves: "rope of halves"}
	normNames      = map[Norm]string{RMSNorm: "RMSNorm", LayerNorm: "LayerNorm"}
	actNames       = map[Act]string{SwiGLU: "SwiGLU", GEGLU: "GEGLU", GELU: "GELU", SwiGLUClamped: "clamped SwiGLU"}
	qkNormNames    = map[QKNorm]string{
		QKNormHeads: "QK norm", QKNormAfterRope: "QK norm after rope", QKNormWhole: "QK norm of all heads", QKNormUnit: "QK norm without weight",
	}
	residualNames = map[Residual]string{Sandwich: "sandwich norms", PostNorm: "norms behind", ParallelNorm: "parallel branches"}
)
