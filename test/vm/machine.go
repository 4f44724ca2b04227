package vm

import (
	"fmt"
	"strconv"
	"strings"
)

// QEMU is the emulator's program.
const QEMU = "qemu-system-x86_64"

// Machine is what QEMU is to emulate.
type Machine struct {
	Kernel    string // bzImage
	Initrd    string
	MemoryMiB int
	CPUs      int
	// Preallocated memory is taken before the first instruction runs, so that the machine's later use of it does not
	// change what is available outside.
	Preallocated bool
	// Serial are files that take what the guest writes to ttyS0 (the console), ttyS1 and so on.
	Serial []string
	// Tap is a network device of the machine that QEMU runs on, MAC the address of the guest's end; empty: none.
	Tap, MAC string
	// Disks are raw files, /dev/vda and so on.
	Disks []string
}

// Args are the arguments of the emulator. A panic or a power-off of the guest ends it.
func (m Machine) Args() []string {
	memory := strconv.Itoa(m.MemoryMiB) + "M"
	args := []string{
		// The cache of translated code grows after the start and is this machine's memory too; 1 GiB would be usual.
		"-accel", "tcg,thread=multi,tb-size=256",
		"-cpu", "max", // with random numbers: nobody waits for entropy
		"-smp", strconv.Itoa(m.CPUs),
		"-m", memory,
		"-kernel", m.Kernel,
		"-initrd", m.Initrd,
		// Working around the flaws of real processors would only cost time.
		"-append", "console=ttyS0 psi=1 panic=1 oops=panic quiet mitigations=off swapaccount=1 rdinit=/init",
		"-display", "none", "-vga", "none", "-monitor", "none", "-no-reboot", "-nodefaults",
	}
	if m.Preallocated {
		args = append(args, "-object", "memory-backend-ram,id=memory,prealloc=on,size="+memory, "-machine", "pc,memory-backend=memory")
	}
	for _, s := range m.Serial {
		args = append(args, "-serial", "file:"+comma(s))
	}
	if m.Tap != "" {
		args = append(args, "-netdev", "tap,id=net,script=no,downscript=no,ifname="+m.Tap,
			"-device", "virtio-net-pci,romfile=,netdev=net,mac="+m.MAC)
	}
	for _, d := range m.Disks {
		args = append(args, "-drive", fmt.Sprintf("if=virtio,format=raw,cache=unsafe,file=%s", comma(d)))
	}
	return args
}

// comma escapes what separates QEMU's options.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
