package tokenizer

// node is a run of text that is, or may become, one token. Nodes form a list;
// a node that was merged into its left neighbour has next == gone.
type node struct {
	from, to   int32 // byte range in the word
	prev, next int32 // neighbours by index, -1 at the ends
	id         int32 // -1 when the text is no token
}

const gone = -2

// candidate is a pair of neighbours that may be merged.
type candidate struct {
	priority    float64 // the lowest goes first, the leftmost among equals
	left, right int32
	size        int32 // bytes of both; tells candidates from before a merge apart
	id          int32 // the merged token
}

func (a candidate) before(b candidate) bool {
	return a.priority < b.priority || a.priority == b.priority && a.left < b.left
}

// merger merges neighbours until no pair is left that may be merged. Its
// memory is reused from word to word.
type merger struct {
	nodes []node
	heap  []candidate
}

// reset empties the list of nodes.
func (m *merger) reset() { m.nodes, m.heap = m.nodes[:0], m.heap[:0] }

// add appends a node for the bytes [from, to) of the word.
func (m *merger) add(from, to int, id int32) {
	n := int32(len(m.nodes))
	if n > 0 {
		m.nodes[n-1].next = n
	}
	m.nodes = append(m.nodes, node{int32(from), int32(to), n - 1, -1, id})
}

// run merges; pair says whether two neighbours give a token and how early.
func (m *merger) run(pair func(a, b *node) (priority float64, id int32, ok bool)) {
	push := func(left, right int32) {
		if left < 0 || right < 0 {
			return
		}
		a, b := &m.nodes[left], &m.nodes[right]
		if p, id, ok := pair(a, b); ok {
			m.push(candidate{p, left, right, a.to - a.from + b.to - b.from, id})
		}
	}
	for i := 1; i < len(m.nodes); i++ {
		push(int32(i-1), int32(i))
	}
	for len(m.heap) > 0 {
		c := m.pop()
		a, b := &m.nodes[c.left], &m.nodes[c.right]
		if a.next != c.right || a.to-a.from+b.to-b.from != c.size {
			continue
		}
		a.to, a.id, a.next = b.to, c.id, b.next
		b.next = gone
		if a.next >= 0 {
			m.nodes[a.next].prev = c.left
		}
		push(a.prev, c.left)
		push(c.left, a.next)
	}
}

// runPairs merges by a table of pairs of tokens.
func (m *merger) runPairs(pairs map[uint64]merged) {
	m.run(func(a, b *node) (float64, int32, bool) {
		if a.id < 0 || b.id < 0 {
			return 0, 0, false
		}
		p, ok := pairs[pairKey(a.id, b.id)]
		return float64(p.rank), p.id, ok
	})
}

func (m *merger) push(c candidate) {
	m.heap = append(m.heap, c)
	h := m.heap
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (m *merger) pop() candidate {
	h := m.heap
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	m.heap = h
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			return top
		}
		if down+1 < last && h[down+1].before(h[down]) {
			down++
		}
		if !h[down].before(h[i]) {
			return top
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
}
