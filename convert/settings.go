package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Settings of a config.json are changed in its text, so that everything else
// stays as its author wrote it.

// setting is the place of a number or string in the text.
type setting struct {
	name       string
	start, end int64
}

// settingsOf finds the numbers and strings of the top level and of text_config.
func settingsOf(data []byte) ([]setting, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, formatError("config.json: the top level is not a JSON object")
	}
	list, err := appendSettings(nil, dec, data, true)
	if err != nil {
		return nil, formatError("config.json: %v", err)
	}
	return list, nil
}

// appendSettings reads an object up to its end.
func appendSettings(list []setting, dec *json.Decoder, data []byte, top bool) ([]setting, error) {
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		start := dec.InputOffset()
		start += int64(len(data[start:]) - len(bytes.TrimLeft(data[start:], ": \t\r\n")))
		if name := key.(string); top && name == "text_config" && data[start] == '{' {
			if _, err := dec.Token(); err != nil {
				return nil, err
			}
			if list, err = appendSettings(list, dec, data, false); err != nil {
				return nil, err
			}
			continue
		}
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		switch v.(type) {
		case json.Number, string:
			list = append(list, setting{key.(string), start, dec.InputOffset()})
		}
	}
	_, err := dec.Token()
	return list, err
}

// hasSetting reports whether there is a number or string of the name.
func hasSetting(data []byte, name string) (bool, error) {
	list, err := settingsOf(data)
	return slices.ContainsFunc(list, func(s setting) bool { return s.name == name }), err
}

// setSettings gives numbers and strings other values wherever they are; those that are
// nowhere are put before all others.
func setSettings(data []byte, values map[string]any) ([]byte, error) {
	list, err := settingsOf(data)
	if err != nil {
		return nil, err
	}
	var out []byte
	texts := make(map[string][]byte, len(values))
	for name, v := range values {
		if texts[name], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	missing, last := maps.Clone(texts), int64(0)
	for _, s := range list {
		text, ok := texts[s.name]
		if !ok {
			continue
		}
		out = append(append(out, data[last:s.start]...), text...)
		last = s.end
		delete(missing, s.name)
	}
	out = append(out, data[last:]...)
	at := bytes.IndexByte(out, '{') + 1
	var added []byte
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		added = fmt.Appendf(added, "\n  %q: %s,", name, missing[name])
	}
	return slices.Insert(out, at, added...), nil
}
