package oomkill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// DefaultBufferBytes holds more than 600 events.
const DefaultBufferBytes = 256 << 10

// Options of Open; the zero value is the documented default of each field.
type Options struct {
	// BTF is a file with the types of the running kernel (raw or ELF) for
	// kernels without their own; empty: /sys/kernel/btf/vmlinux.
	BTF string
	// BufferBytes of the ring buffer between kernel and Run: a power of two and
	// a multiple of the page size. 0: DefaultBufferBytes.
	BufferBytes int
	// Logger gets the hooks that did not work and the records that could not be
	// read; nil: none.
	Logger *slog.Logger
}

// Tracer receives OOM victims from the kernel from Open until Close.
type Tracer struct {
	hook     hook
	logger   *slog.Logger
	pageSize int

	link   link.Link
	coll   *ebpf.Collection
	reader *ringbuf.Reader

	malformed atomic.Uint64

	mu     sync.Mutex // guards closed, and the maps of coll against Close
	closed bool
}

// Open loads the program that suits this kernel and attaches it. From then on
// events are buffered, also before Run. What the kernel or the node lacks comes
// back as *UnsupportedError, a refusal as *PermissionError.
func Open(o Options) (*Tracer, error) {
	return open(o, hooksFor)
}

// open tries what choose lists, in that order.
func open(o Options, choose func(victimArg) []hook) (*Tracer, error) {
	if o.BufferBytes == 0 {
		o.BufferBytes = DefaultBufferBytes
	}
	if page := os.Getpagesize(); o.BufferBytes < page || uint(o.BufferBytes) > 1<<31 || bits.OnesCount(uint(o.BufferBytes)) != 1 {
		return nil, fmt.Errorf("open oom tracer: BufferBytes %d is not a power of two from a page (%d) to 2 GiB", o.BufferBytes, page)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if bits.UintSize != 64 {
		return nil, &UnsupportedError{Feature: "oom tracer on a 32-bit system", Needs: "a 64-bit kernel", Lasting: true}
	}

	if err := refused(); err != nil {
		return nil, fmt.Errorf("open oom tracer: %w", err)
	}
	cache := btf.NewCache()
	kernel, err := kernelTypes(o.BTF, cache)
	if err != nil {
		return nil, fmt.Errorf("open oom tracer: %w", err)
	}

	arg, err := markVictimArg(kernel)
	if err != nil {
		return nil, fmt.Errorf("open oom tracer: %w", err)
	}

	var failed error
	for _, h := range choose(arg) {
		t, err := attach(h, o, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{KernelTypes: kernel},
			Cache:    cache,
		})
		if err == nil {
			return t, nil
		}
		o.Logger.Info("oom tracer hook does not work", "hook", h.name, "err", err)
		err = fmt.Errorf("%s: %w", h.name, err)
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
		if lacksPrivilege() || errors.Is(err, errMemlock) {
			break // another hook needs it as well
		}
	}
	return nil, fmt.Errorf("open oom tracer: %w", explain(failed))
}

func kernelTypes(file string, cache *btf.Cache) (*btf.Spec, error) {
	if file != "" {
		spec, err := btf.LoadSpec(file)
		if err != nil {
			return nil, fmt.Errorf("load BTF file %s: %w", file, err)
		}
		return spec, nil
	}
	spec, err := cache.Kernel()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, btf.ErrNotSupported) {
		return nil, &UnsupportedError{
			Feature: "types of the running kernel",
			Needs:   "a kernel with CONFIG_DEBUG_INFO_BTF or a BTF file for it",
			Remedy:  "name a BTF file of this kernel with --btf",
			Err:     err,
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load kernel BTF: %w", err)
	}
	return spec, nil
}

func attach(h hook, o Options, opts ebpf.CollectionOptions) (_ *Tracer, err error) {
	spec, err := loadOomkill()
	if err != nil {
		return nil, fmt.Errorf("parse BPF object: %w", err)
	}
	for name := range spec.Programs {
		if name != h.program {
			delete(spec.Programs, name)
		}
	}
	spec.Maps[oomkillMapEvents].MaxEntries = uint32(o.BufferBytes)
	if h.prepare != nil {
		if err := h.prepare(spec); err != nil {
			return nil, err
		}
	}

	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if errors.Is(err, unix.EPERM) {
		coll, err = retryWithoutMemlock(spec, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("load BPF program: %w", err)
	}
	defer func() {
		if err != nil {
			coll.Close()
		}
	}()

	reader, err := ringbuf.NewReader(coll.Maps[oomkillMapEvents])
	if err != nil {
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	l, err := h.attach(coll.Programs[h.program])
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach: %w", err), reader.Close())
	}
	return &Tracer{
		hook:     h,
		logger:   o.Logger,
		pageSize: os.Getpagesize(),
		link:     l,
		coll:     coll,
		reader:   reader,
	}, nil
}

// retryWithoutMemlock loads once more with RLIMIT_MEMLOCK out of the way, on a
// kernel that counts BPF memory to it. The limit is put back, since what is loaded
// keeps its charge. A refusal comes back as bare EPERM, without the library's
// advice about that limit.
func retryWithoutMemlock(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) (*ebpf.Collection, error) {
	counts, err := countsMemlock()
	if err != nil {
		return nil, err
	}
	if !counts || lacksPrivilege() {
		return nil, unix.EPERM
	}
	var old unix.Rlimit
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unlimited, &old); err != nil {
		return nil, fmt.Errorf("%w: %w", errMemlock, err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if restoreErr := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &old, nil); restoreErr != nil && err == nil {
		coll.Close()
		return nil, fmt.Errorf("restore RLIMIT_MEMLOCK: %w", restoreErr)
	}
	if errors.Is(err, unix.EPERM) {
		return nil, unix.EPERM
	}
	return coll, err
}

// Hook names what the tracer is attached to: "tp_btf/mark_victim",
// "raw_tp/mark_victim" or "tracepoint/oom/mark_victim".
func (t *Tracer) Hook() string { return t.hook.name }

// Run calls handle for each event, in the order of the kernel, until ctx ends:
// it then hands over what is still in the buffer and returns nil. handle owns
// the event; while it runs, later events wait in the buffer. A record that
// cannot be parsed is counted (Malformed) and skipped.
func (t *Tracer) Run(ctx context.Context, handle func(*Event)) error {
	stop := context.AfterFunc(ctx, func() {
		if err := t.reader.Flush(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.logger.Error("oom tracer does not stop", "err", err)
		}
	})
	defer stop()

	var rec ringbuf.Record
	for {
		err := t.reader.ReadInto(&rec)
		if errors.Is(err, ringbuf.ErrFlushed) {
			if ctx.Err() == nil {
				continue // the end of an earlier Run
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read oom events: %w", err)
		}
		event, err := parseEvent(rec.RawSample, t.pageSize)
		if err != nil {
			if t.malformed.Add(1) == 1 {
				t.logger.Error("oom event cannot be read", "err", err)
			}
			continue
		}
		handle(event)
		// Whoever was told runs now: the wait holds this thread in the kernel, and its P with it until the runtime notices.
		runtime.Gosched()
	}
}

// Lost counts the events that the kernel could not put into the buffer.
func (t *Tracer) Lost() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, fmt.Errorf("read lost oom events: %w", os.ErrClosed)
	}
	var perCPU []uint64
	if err := t.coll.Maps[oomkillMapLost].Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("read lost oom events: %w", err)
	}
	var n uint64
	for _, v := range perCPU {
		n += v
	}
	return n, nil
}

// Pending returns how many bytes of events wait in the buffer; 0 after Close.
func (t *Tracer) Pending() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0
	}
	return t.reader.AvailableBytes()
}

// Malformed counts the records that could not be parsed; 0 unless the program
// and this package differ.
func (t *Tracer) Malformed() uint64 { return t.malformed.Load() }

// Close detaches the program and frees its maps; a Run that is still there
// returns os.ErrClosed. Further calls do nothing.
func (t *Tracer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	err := errors.Join(t.link.Close(), t.reader.Close())
	t.coll.Close()
	if err != nil {
		return fmt.Errorf("close oom tracer: %w", err)
	}
	return nil
}
