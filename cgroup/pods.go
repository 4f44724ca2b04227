package cgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// PodGroup is the cgroup of a pod.
type PodGroup struct {
	Path       string // below the memory hierarchy
	ID         uint64 // see Group.ID
	UID        string // with dashes; the UID of a static pod is the hash of its file and has none
	QoS        string // BestEffort, Burstable or Guaranteed, from the path
	Containers []ContainerGroup
}

// ContainerGroup is the cgroup of a container, or of the sandbox of its pod.
type ContainerGroup struct {
	Path        string
	ID          uint64 // see Group.ID
	ContainerID string // the runtime's id without a scheme
}

// maxDepth is how far below the root Kubepods looks: /kubelet.slice/kubelet-kubepods.slice and one level more.
const maxDepth = 3

// Kubepods returns the path of the cgroup that the kubelet keeps its pods in: /kubepods or /kubepods.slice, or one of these
// under a cgroup root such as /kubelet, at most three levels deep. When there are several, as after a change of the
// driver or with a cluster inside a container, it is the one with pods that is nearest to the root, then the one with the
// most. The error matches ErrNoKubepods when there
// is none.
func (t *Tree) Kubepods() (string, error) {
	type found struct {
		path  string
		pods  int
		depth int
	}
	var all []found
	level := []string{"/"}
	for depth := 1; depth <= maxDepth; depth++ {
		var next []string
		for _, dir := range level {
			entries, err := t.subdirs(dir)
			if err != nil {
				if isGone(err) {
					continue
				}
				return "", fmt.Errorf("find kubepods: %w", err)
			}
			for _, e := range entries {
				p := join(dir, e.name)
				if !isKubepods(e.name) {
					next = append(next, p)
					continue
				}
				pods, err := t.Pods(p)
				if err != nil && !errors.Is(err, ErrGone) {
					return "", fmt.Errorf("find kubepods: %w", err)
				}
				if err == nil {
					all = append(all, found{path: p, pods: len(pods), depth: depth})
				}
			}
		}
		level = next
	}
	if len(all) == 0 {
		return "", fmt.Errorf("find kubepods below %s: %w", t.at.memory, ErrNoKubepods)
	}
	slices.SortFunc(all, func(a, b found) int {
		if (a.pods > 0) != (b.pods > 0) {
			return b.pods - a.pods
		}
		if a.depth != b.depth { // that of a cluster inside a container lies deeper
			return a.depth - b.depth
		}
		if a.pods != b.pods {
			return b.pods - a.pods
		}
		return strings.Compare(a.path, b.path)
	})
	return all[0].path, nil
}

// Pods walks the kubepods cgroup once and returns its pods and their containers, sorted by path. Directories that vanish
// during the walk are left out, as are names that are not a pod's or a container's. Nothing below a container is looked
// at. The error matches ErrGone when kubepods itself does not exist.
func (t *Tree) Pods(kubepods string) ([]PodGroup, error) {
	if err := checkPath(kubepods); err != nil {
		return nil, err
	}
	dir, err := openDir(t.mem, kubepods)
	if err != nil {
		return nil, fileError("open", kubepods, "", err, isGone(err))
	}
	defer dir.Close()
	w := walker{buf: make([]byte, 16<<10)}
	top, err := w.list(int(dir.Fd()))
	if err != nil {
		return nil, fileError("read", kubepods, "", err, isGone(err))
	}
	_, base, _ := cutLast(kubepods, '/')
	for _, e := range top {
		p := join(kubepods, e.name)
		if uid, ok := ParsePodUID(e.name); ok {
			err = w.pod(int(dir.Fd()), e.name, p, uid, Guaranteed)
		} else if qos, ok := qosOf(e.name, base); ok {
			err = w.class(int(dir.Fd()), e.name, p, qos)
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(w.pods, func(a, b PodGroup) int { return strings.Compare(a.Path, b.Path) })
	return w.pods, nil
}

// walker collects the pods of one walk.
type walker struct {
	buf  []byte
	pods []PodGroup
}

// class walks the directory of a QoS class.
func (w *walker) class(parent int, name, path, qos string) error {
	fd, _, entries, err := w.enter(parent, name, path)
	if err != nil || fd == noFile {
		return err
	}
	defer closeFile(&fd)
	for _, e := range entries {
		if uid, ok := ParsePodUID(e.name); ok {
			if err := w.pod(fd, e.name, join(path, e.name), uid, qos); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) pod(parent int, name, path, uid, qos string) error {
	fd, id, entries, err := w.enter(parent, name, path)
	if err != nil || fd == noFile {
		return err
	}
	defer closeFile(&fd)
	pod := PodGroup{Path: path, ID: id, UID: uid, QoS: qos}
	for _, e := range entries {
		if cid, ok := ParseContainerID(e.name); ok {
			pod.Containers = append(pod.Containers, ContainerGroup{Path: join(path, e.name), ID: e.ino, ContainerID: cid})
		}
	}
	slices.SortFunc(pod.Containers, func(a, b ContainerGroup) int { return strings.Compare(a.Path, b.Path) })
	w.pods = append(w.pods, pod)
	return nil
}

// enter opens and lists a directory; the descriptor is noFile when it vanished. The id is taken from the open
// directory, not from its parent's list, which may be older.
func (w *walker) enter(parent int, name, path string) (fd int, id uint64, entries []entry, err error) {
	fd, err = openDirAt(parent, name)
	if err != nil {
		if isGone(err) {
			return noFile, 0, nil, nil
		}
		return noFile, 0, nil, fileError("open", path, "", err, false)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		entries, err = w.list(fd)
	}
	if err != nil {
		closeFile(&fd)
		if isGone(err) {
			return noFile, 0, nil, nil
		}
		return noFile, 0, nil, fileError("read", path, "", err, false)
	}
	return fd, st.Ino, entries, nil
}

// subdirs lists the directories in a directory of the memory hierarchy.
func (t *Tree) subdirs(path string) ([]entry, error) {
	dir, err := openDir(t.mem, path)
	if err != nil {
		return nil, fileError("open", path, "", err, isGone(err))
	}
	defer dir.Close()
	w := walker{buf: make([]byte, 16<<10)}
	entries, err := w.list(int(dir.Fd()))
	if err != nil {
		return nil, fileError("read", path, "", err, isGone(err))
	}
	return entries, nil
}

type entry struct {
	name string
	ino  uint64
}

// Layout of struct linux_dirent64, see getdents64(2).
const (
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

// list returns the directories in an open directory. The inode numbers come with the names, so that no file needs a
// stat: a memory cgroup has some 30 to 60 files.
func (w *walker) list(fd int) ([]entry, error) {
	var out []entry
	for {
		n, err := unix.ReadDirent(fd, w.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		for b := w.buf[:n]; len(b) > direntName; {
			reclen := int(binary.NativeEndian.Uint16(b[direntReclen:]))
			if reclen <= direntName || reclen > len(b) {
				return nil, unix.EBADMSG
			}
			ino, kind, name := binary.NativeEndian.Uint64(b), b[direntType], b[direntName:reclen]
			b = b[reclen:]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if kind == unix.DT_UNKNOWN {
				var st unix.Stat_t
				if err := unix.Fstatat(fd, string(name), &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
					kind = unix.DT_DIR
				}
			}
			if kind != unix.DT_DIR || string(name) == "." || string(name) == ".." {
				continue
			}
			out = append(out, entry{name: string(name), ino: ino})
		}
	}
}
