package kernel

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/winnow-moe/winnow/isa"
)

// TestSwitch runs this test binary under each value of the switch.
func TestSwitch(t *testing.T) {
	if want := os.Getenv("WINNOW_ISA_WANT"); want != "" {
		if got := name(Active()); got != want {
			t.Errorf("WINNOW_ISA=%s chooses %s, want %s", os.Getenv("WINNOW_ISA"), got, want)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	if err := exec.Command(exe, "-test.run=^$").Run(); errors.Is(err, syscall.ENOEXEC) {
		t.Skip("an emulator runs this binary, which cannot start itself: ", err)
	}
	for _, s := range append(Sets(), nil) {
		run := exec.Command(exe, "-test.run=^TestSwitch$")
		run.Env = append(os.Environ(), "WINNOW_ISA="+name(s), "WINNOW_ISA_WANT="+name(s))
		if out, err := run.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name(s), err, out)
		}
	}
}

func name(s *Set) string {
	if s == nil {
		return "portable"
	}
	return s.Name
}

// TestUse switches back and forth.
func TestUse(t *testing.T) {
	before := Active()
	defer Use(name(before))
	for _, s := range append(Sets(), nil) {
		if !Use(name(s)) || Active() != s {
			t.Errorf("%s cannot be chosen", name(s))
		}
	}
	if Use("none such") {
		t.Error("an unknown name is accepted")
	}
}

// TestSets says which kernels the tests cover here.
func TestSets(t *testing.T) {
	t.Logf("kernels: %d, instruction sets: %v", len(Sets()), isa.Available())
	for _, s := range Sets() {
		t.Log(s.Name)
	}
}
