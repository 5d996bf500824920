package convert

import (
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/strictjson"
	"go.yaml.in/yaml/v3"
)

// identity is what the general.* keys say about a model: what it is called,
// where it comes from, and who may do what with it.
type identity struct {
	texts    map[string]string // key without "general." to value
	parents  *origins          // nil: nothing is said about them
	datasets *origins
	tags     []string
	langs    []string
}

// origins are models or data sets that a model was made from.
type origins struct {
	key  string // "base_model" or "dataset"
	list []map[string]string
}

// identityKeys are the keys of texts in the order in which gguf-py's
// metadata.py writes them.
var identityKeys = []string{
	"name", "author", "version", "organization", "finetune", "basename", "description", "size_label",
	"license", "license.name", "license.link", "source.url", "source.doi", "source.uuid", "source.repo_url",
}

// cardFields say which fields of a model card tell the key; the first that is
// there counts. Beside llama.cpp's own names there are those of well-known
// quantizers' cards (model_creator, model_type).
var cardFields = map[string][]string{
	"name": {"name", "model_name"}, "author": {"author", "model_author", "model_creator"},
	"version": {"version", "model_version"}, "organization": {"organization", "model_organization"},
	"description": {"description", "model_description"}, "finetune": {"finetune", "model_finetune"},
	"basename": {"basename", "model_basename", "model_type"}, "size_label": {"size_label", "model_size_label"},
	"source.url": {"url", "model_url"}, "source.doi": {"doi", "model_doi"},
	"source.uuid": {"uuid", "model_uuid"}, "source.repo_url": {"repo_url", "model_repo_url"},
	"license.name": {"license_name"}, "license.link": {"license_link"},
}

// originKeys are what is known of an origin, in writing order.
var originKeys = []string{"name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"}

// identify gathers the identity of a model: from its card, where that is silent
// from the repository that config.json names, then from the folder's name.
// params is the number of weights and size the label computed from them.
func identify(card modelCard, repository, folder string, params int64, size string) *identity {
	id := &identity{texts: map[string]string{}}
	for key, fields := range cardFields {
		id.fill(key, card.text(fields...))
	}
	id.fill("license", strings.Join(card.texts("license"), ","))
	id.parents = findOrigins(card, "base_model", params, "base_model", "base_models", "base_model_sources")
	id.datasets = findOrigins(card, "dataset", params, "datasets", "dataset", "dataset_sources")
	id.tags = card.texts("tags", "pipeline_tag")
	id.langs = card.texts("languages", "language")
	if strings.Count(repository, "/") <= 1 { // else it is a path
		id.fillFrom(parseModelID(repository, params))
	}
	id.fillFrom(parseModelID(folder, params))
	id.fill("size_label", size)
	return id
}

// fill sets a key that has no value yet.
func (id *identity) fill(key, value string) {
	if id.texts[key] == "" {
		id.texts[key] = value
	}
}

func (id *identity) fillFrom(m modelID) {
	id.fill("name", title(m.name))
	id.fill("organization", title(m.org))
	id.fill("basename", m.base)
	id.fill("finetune", m.finetune)
	id.fill("version", m.version)
	id.fill("size_label", m.sizeLabel)
}

// findOrigins reads what a card says a model was made from: names on the hub,
// addresses, or mappings of originKeys.
func findOrigins(card modelCard, key string, params int64, fields ...string) *origins {
	n, ok := card.first(fields...)
	if !ok {
		return nil
	}
	o := &origins{key: key}
	for _, item := range items(n) {
		o.list = append(o.list, origin(item, params))
	}
	return o
}

// hubAddress matches the address of a model on the hub.
var hubAddress = regexp.MustCompile(`^https?://huggingface\.co/([^/]+/[^/]+)$`)

func origin(n *yaml.Node, params int64) map[string]string {
	out := map[string]string{}
	if fields, ok := mapping(n); ok {
		for _, k := range originKeys {
			out[k], _ = scalar(fields[k])
		}
		return out
	}
	text, ok := scalar(n)
	if !ok {
		return out
	}
	address := false
	for _, scheme := range []string{"http://", "https://", "ssh://"} {
		address = address || strings.HasPrefix(text, scheme)
	}
	if address {
		out["repo_url"] = text
		hub := hubAddress.FindStringSubmatch(text)
		if hub == nil {
			return out
		}
		text = hub[1]
	}
	m := parseModelID(text, params)
	out["name"], out["organization"], out["version"] = title(m.name), title(m.org), m.version
	if !address && m.org != "" {
		out["repo_url"] = "https://huggingface.co/" + m.org + "/" + m.name
	}
	return out
}

// writeTo sets the keys in the order in which llama.cpp's converter writes
// them. Nothing is written about what is not known.
func (id *identity) writeTo(md *gguf.Metadata) {
	set := func(key, value string) {
		if value != "" {
			md.Set("general."+key, value)
		}
	}
	for _, key := range identityKeys {
		set(key, id.texts[key])
	}
	for _, o := range []*origins{id.parents, id.datasets} {
		if o == nil {
			continue
		}
		md.Set("general."+o.key+".count", uint32(len(o.list)))
		for i, fields := range o.list {
			for _, k := range originKeys {
				set(fmt.Sprintf("%s.%d.%s", o.key, i, k), fields[k])
			}
		}
	}
	if len(id.tags) > 0 {
		md.Set("general.tags", id.tags)
	}
	if len(id.langs) > 0 {
		md.Set("general.languages", id.langs)
	}
}

// fileName is the stem of an output's name by the GGUF naming convention (ggml
// docs/gguf.md), without the encoding. The texts come from files: what could
// leave the folder or trouble a shell becomes a hyphen.
func (id *identity) fileName() string {
	var parts []string
	base := id.texts["basename"]
	if base == "" {
		base = id.texts["name"]
	}
	for _, s := range []string{base, id.texts["size_label"], id.texts["finetune"], id.texts["version"]} {
		s = strings.Map(func(r rune) rune {
			if unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune(`/\:*?"<>|{}`, r) {
				return '-'
			}
			return r
		}, strings.TrimSpace(s))
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.TrimLeft(strings.Join(parts, "-"), "-.")
}

// folderName is the name of a folder, also of one given as "." or "..", or that of
// the repository where the folder is one of the hub's cache.
func folderName(dir string) string {
	if repo := cachedRepo(dir); repo != "" {
		return path.Base(repo)
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return filepath.Base(dir)
}

// cachedFolder is what folders of the hub's cache are called (hub-docs, local-cache.md).
var cachedFolder = regexp.MustCompile(`/models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]{40}$`)

// cachedRepo is the repository that a folder of the hub's cache is of, "" for any
// other.
func cachedRepo(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	m := cachedFolder.FindStringSubmatch(filepath.ToSlash(dir))
	if m == nil {
		return ""
	}
	return m[1] + "/" + m[2]
}

// title makes a title of the name of a model, as gguf-py does: words at
// hyphens, capitalised unless they look like a version.
func title(name string) string {
	words := strings.Fields(strings.ReplaceAll(name, "-", " "))
	for i, w := range words {
		if isLower(w) && !version.MatchString(w) {
			words[i] = titleCase(w)
		}
	}
	return strings.Join(words, " ")
}

// isLower reports whether a word has letters and none of them is upper case.
func isLower(w string) bool {
	return strings.IndexFunc(w, unicode.IsLower) >= 0 && strings.IndexFunc(w, unicode.IsUpper) < 0
}

// version matches words that gguf-py takes for one: "v2", "v1.5", or anything
// that starts with a digit.
var version = regexp.MustCompile(`^(v[0-9]+(\.[0-9]+)*$|[0-9])`)

// titleCase capitalises every letter that does not follow a letter.
func titleCase(w string) string {
	prev := false
	return strings.Map(func(r rune) rune {
		first := unicode.IsLetter(r) && !prev
		prev = unicode.IsLetter(r)
		if first {
			return unicode.ToUpper(r)
		}
		return unicode.ToLower(r)
	}, w)
}

// licenseFiles are the usual names of a license text in a checkpoint folder.
var licenseFiles = []string{"LICENSE", "LICENSE.txt", "LICENSE.md"}

const licenseLimit = 1 << 20 // bytes

// License returns the text of the checkpoint's license or, where it has none,
// its name and address from the model card; "" if neither is there.
func (c *Checkpoint) License() string {
	for _, name := range licenseFiles {
		data, err := strictjson.ReadFile(filepath.Join(c.Dir, name), licenseLimit)
		if err == nil && utf8.Valid(data) {
			return string(data)
		}
	}
	var words []string
	for _, key := range []string{"license", "license.name", "license.link"} {
		if s := c.id.texts[key]; s != "" {
			words = append(words, s)
		}
	}
	return strings.Join(words, " ")
}

// StopTexts returns the texts of the tokens that end a generation.
func (c *Checkpoint) StopTexts() []string {
	var texts []string
	for _, id := range c.Vocab.EOG {
		texts = append(texts, c.Vocab.Tokens[id])
	}
	return texts
}
