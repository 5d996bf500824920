package arch

import (
	"fmt"
	"strings"
)

// nearestText names the supported class most like an unsupported one, or that
// of the family most like model_type; "" if none is like them.
func nearestText(class, modelType string) string {
	for _, name := range []string{class, modelType} {
		if f, near := nearest(name); f != nil {
			return fmt.Sprintf("; the nearest that is: %q (family %s)", near, f.Arch)
		}
	}
	return ""
}

// nearest finds the class whose name begins most like name; of several the one
// that differs least.
func nearest(name string) (family *Family, class string) {
	const enough = 4 // letters that say more than "GPT"
	stem, best, least := classStem(name), 0, 0
	for _, f := range All {
		for _, c := range f.Classes {
			other := classStem(c)
			n := commonPrefix(stem, other)
			if n < enough && n < min(len(stem), len(other)) || n < 3 {
				continue
			}
			if d := editDistance(stem, other); n > best || n == best && d < least {
				family, class, best, least = f, c, n, d
			}
		}
	}
	return family, class
}

// classStem is the part of a class name or model_type that tells the family.
func classStem(name string) string {
	for _, end := range []string{"ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model"} {
		name = strings.TrimSuffix(name, end)
	}
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}

func commonPrefix(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// editDistance counts the letters to insert, delete or replace (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
