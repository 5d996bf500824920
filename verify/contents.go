package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Contents is the kind of problems with the numbers in a tensor, or with its bytes.
const Contents Kind = "contents"

// Content is what the bytes of a tensor are.
type Content struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// contentBytes is how much of a tensor is read at a time.
const contentBytes = 8 << 20

// ReadContents reads all tensors of a model, hashes their bytes and finds the
// blocks that no runtime takes: with scales, or values of unpacked types, that are
// not finite. progress, if not nil, is told of bytes; it is called from several
// goroutines.
func ReadContents(ctx context.Context, m gguf.Model, threads int, progress func(done, total int64)) ([]Content, []Problem, error) {
	infos, total := m.Tensors(), int64(0)
	for i := range infos {
		total += infos[i].Size()
	}
	contents, faults := make([]Content, len(infos)), make([]string, len(infos))
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, threads))
	for i := range infos {
		g.Go(func() (err error) {
			contents[i], faults[i], err = readContent(ctx, m, i, func(n int64) {
				if sum := done.Add(n); progress != nil {
					progress(sum, total)
				}
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var problems []Problem
	for i, text := range faults {
		if text != "" {
			problems = append(problems, Problem{Contents, infos[i].Name, text})
		}
	}
	return contents, problems, nil
}

// readContent reads a tensor. Of blocks that may not be it names the first.
func readContent(ctx context.Context, m gguf.Model, i int, read func(n int64)) (c Content, fault string, err error) {
	info := &m.Tensors()[i]
	defer m.Release(i)
	c = Content{Name: info.Name, Type: info.Type.String(), Bytes: info.Size()}
	hash, each := sha256.New(), info.RowBytes()
	_, known := quant.Lookup(info.Type)
	var buf []byte
	step := max(1, contentBytes/max(1, each))
	for first := int64(0); first < info.Rows() && each > 0; first += step {
		if err := ctx.Err(); err != nil {
			return c, "", err
		}
		n := min(step, info.Rows()-first)
		if int64(cap(buf)) < n*each {
			buf = make([]byte, n*each)
		}
		raw, err := m.Rows(ctx, i, first, n, buf[:n*each])
		if err != nil {
			return c, "", err
		}
		hash.Write(raw)
		if known && fault == "" {
			fault = blockFault(info, raw, first)
		}
		read(int64(len(raw)))
	}
	c.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return c, fault, nil
}

// blockFault says what is wrong with rows from first on.
func blockFault(info *gguf.TensorInfo, raw []byte, first int64) string {
	err := quant.Validate(info.Type, raw, int(info.RowBytes()))
	if err == nil {
		return ""
	}
	var block *quant.BlockError
	if errors.As(err, &block) {
		block.Row += first
	}
	return fmt.Sprintf("tensor %q: %v", info.Name, err)
}

// CompareContents finds where tensors are not those of a list that was made
// before.
func CompareContents(got, want []Content) (problems []Problem) {
	byName := map[string]Content{}
	for _, c := range got {
		byName[c.Name] = c
	}
	for _, w := range want {
		switch g, ok := byName[w.Name]; {
		case !ok:
			problems = append(problems, Problem{Missing, w.Name, fmt.Sprintf("tensor %q of the manifest is missing", w.Name)})
		case g.Type != w.Type || g.Bytes != w.Bytes:
			problems = append(problems, Problem{Contents, w.Name, fmt.Sprintf("tensor %q is %s of %d bytes, the manifest has %s of %d", w.Name, g.Type, g.Bytes, w.Type, w.Bytes)})
		case g.SHA256 != w.SHA256:
			problems = append(problems, Problem{Contents, w.Name, fmt.Sprintf("tensor %q has the SHA-256 %s, the manifest %s", w.Name, g.SHA256, w.SHA256)})
		}
		delete(byName, w.Name)
	}
	for _, c := range got {
		if _, left := byName[c.Name]; left {
			problems = append(problems, Problem{Unexpected, c.Name, fmt.Sprintf("tensor %q is not in the manifest", c.Name)})
		}
	}
	return problems
}
