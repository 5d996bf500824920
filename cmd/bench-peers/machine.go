//go:build unix

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// machine names what the numbers hold for: the processor and the instructions
// that winnow uses on it.
func machine() string {
	isa := "portable"
	if k := kernel.Active(); k != nil {
		isa = k.Name
	}
	return fmt.Sprintf("%s, %d cores, %s/%s, %s", processor(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, isa)
}

// processor returns the name of the processor, with the numbers of its model
// where the system gives them: names of virtual machines are vague.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	values := map[string]string{}
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			values[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	name, ok := values["model name"]
	if !ok {
		return "unknown processor"
	}
	if values["model"] != "" {
		name += fmt.Sprintf(" (family %s, model %s)", values["cpu family"], values["model"])
	}
	return name
}
