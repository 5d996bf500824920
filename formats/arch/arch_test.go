package arch

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

func loadConfig(t *testing.T, dir string) *Config {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestConfigRoundTrip: config.json → parameters → metadata → the same parameters.
func TestConfigRoundTrip(t *testing.T) {
	for _, fam := range []string{"deepseek_v3", "deepseek_v3_fp8", "deepseek_v2_lite"} {
		m, err := FromConfig(loadConfig(t, fixtures.Family(t, fam)), false)
		if err != nil {
			t.Fatalf("%s: %v", fam, err)
		}
		var md gguf.Metadata
		md.Set(gguf.KeyArchitecture, m.Family.Arch)
		m.WriteMetadata(&md, 32)
		back, err := FromMetadata(&md)
		if err != nil {
			t.Fatalf("%s: %v", fam, err)
		}
		if m.Params != back.Params {
			t.Errorf("%s: parameters change on the way through metadata:\n%+v\n%+v", fam, m.Params, back.Params)
		}
		for _, k := range md.Keys() {
			v, _ := md.Get(k)
			t.Log(k, v)
		}
	}
}
