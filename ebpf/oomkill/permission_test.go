package oomkill

import "unsafe"

func ptr(b *byte) unsafe.Pointer { return unsafe.Pointer(b) }

func childPermission(mode string, fail func(error)) {}
