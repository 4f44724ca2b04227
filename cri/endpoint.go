package cri

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// maxSocketPath is the longest path that fits sockaddr_un.sun_path with its terminating NUL (unix(7)).
const maxSocketPath = 107

// MountedDir is where the DaemonSet mounts the folder of the node's runtime, or cri-dockerd's socket itself.
const MountedDir = "/host/runtime"

// wellKnown returns the sockets that are tried when no endpoint is given: what the DaemonSet mounts, then on the node itself
// containerd, the containerd of k3s and RKE2, of k0s and of microk8s, CRI-O, cri-dockerd. A Docker node also has a containerd socket, with the CRI switched off: it is passed over.
func wellKnown() []string {
	return []string{
		MountedDir + "/containerd.sock",
		MountedDir + "/crio.sock",
		MountedDir,
		"/run/containerd/containerd.sock",
		"/run/k3s/containerd/containerd.sock",
		"/run/k0s/containerd.sock",
		"/var/snap/microk8s/common/run/containerd.sock",
		"/run/crio/crio.sock",
		"/run/cri-dockerd.sock",
	}
}

// parseEndpoint returns the socket path of an endpoint: "unix:///absolute/path", or the absolute path alone.
func parseEndpoint(endpoint string) (string, error) {
	path := endpoint
	if scheme, rest, ok := strings.Cut(endpoint, "://"); ok {
		if scheme != "unix" {
			return "", fmt.Errorf("parse endpoint %q: scheme %q is not supported, only unix:// is", endpoint, scheme)
		}
		path = rest
	}
	switch {
	case path == "":
		return "", fmt.Errorf("parse endpoint %q: no path", endpoint)
	case path[0] != '/':
		return "", fmt.Errorf("parse endpoint %q: the path must be absolute (unix:///path)", endpoint)
	case strings.IndexByte(path, 0) >= 0:
		return "", fmt.Errorf("parse endpoint %q: NUL in the path", endpoint)
	case len(path) > maxSocketPath:
		return "", fmt.Errorf("parse endpoint %q: path of %d bytes, a unix socket takes at most %d", endpoint, len(path), maxSocketPath)
	}
	return path, nil
}

// socketID tells one socket file from the next one at the same path.
type socketID struct{ dev, ino uint64 }

// statSocket returns the identity of the socket at path, and an error that says what else is there.
func statSocket(path string) (socketID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return socketID{}, err
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return socketID{}, fmt.Errorf("not a socket (mode %v)", fi.Mode())
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return socketID{}, fmt.Errorf("no inode in the file information (%T)", fi.Sys())
	}
	return socketID{dev: st.Dev, ino: st.Ino}, nil
}
