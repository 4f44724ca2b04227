// Package vm boots Debian's cloud kernels under QEMU's software emulation: for tests on kernels and cgroup hierarchies
// that the machine does not have, and for nodes of the test cluster.
//
// A virtual machine has no disk image. Its root is an initramfs made of our static Go binaries and of what the caller
// adds; process 1 is the program in the folder guest. A machine boots in about two seconds.
//
// [Run] boots one to run one static test binary and returns its output and exit code. A machine of the cluster serves
// the requests of a [Client] instead, see package spillway/test/cluster.
//
// KVM is not used, so that it works the same everywhere. Computing is about ten times slower inside.
package vm
