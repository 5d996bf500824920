//go:build linux

// The only program of the emulated machine: the kernel starts it as process 1.
// It runs the test programs named in /jobs, one line each (folder, program,
// arguments), and turns the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// wanted are the flags of /proc/cpuinfo without which the tests would quietly
// run other kernels.
var wanted = []string{"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"}

func main() {
	if err := run(); err != nil {
		fmt.Println("emulated: FAIL:", err)
	} else {
		fmt.Println("emulated: all passed")
	}
	turnOff()
}

func run() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/dev": "devtmpfs"} {
		if err := syscall.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	if err := checkProcessor(); err != nil {
		return err
	}
	jobs, err := os.ReadFile("/jobs")
	if err != nil {
		return err
	}
	failed := 0
	for line := range strings.Lines(string(jobs)) {
		job := strings.Fields(line)
		fmt.Println("emulated:", strings.Join(job, " "))
		c := exec.Command(job[1], job[2:]...)
		c.Dir, c.Stdout, c.Stderr = job[0], os.Stdout, os.Stderr
		c.Env = []string{"TMPDIR=/tmp"}
		if err := c.Run(); err != nil {
			fmt.Println("emulated:", job[1], err)
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d programs", failed)
	}
	return nil
}

func checkProcessor() error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	_, flags, _ := strings.Cut(string(info), "\nflags")
	flags, _, _ = strings.Cut(flags, "\n")
	for _, f := range wanted {
		if !strings.Contains(flags+" ", " "+f+" ") {
			return fmt.Errorf("the processor lacks %s, it has%s", f, flags)
		}
	}
	return nil
}

// turnOff waits until the serial line has sent everything.
func turnOff() {
	const drain = 0x5409 // TCSBRK
	syscall.Syscall(syscall.SYS_IOCTL, os.Stdout.Fd(), drain, 1)
	if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("emulated: the machine stays on:", err)
	}
}
