package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func source(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: time %v owner %d:%d, want the epoch and root", h.Name, h.ModTime, h.Uid, h.Gid)
		}
		files[h.Name] = b
	}
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// TestArchiveHoldsWhatWasAsked follows every digest of the layout from the index down to the file in the layer.
func TestArchiveHoldsWhatWasAsked(t *testing.T) {
	var out bytes.Buffer
	id, err := Write(&out, Options{
		Ref:        "localhost:5000/spillway:dev",
		Files:      []File{{Path: "/spillway", Source: source(t, "binary")}, {Path: "/etc/spillway/config.yaml", Source: source(t, "a: 1")}},
		Entrypoint: []string{"/spillway"}, Cmd: []string{"agent"},
		Labels: map[string]string{"b": "2", "a": "1"},
		Arch:   "arm64",
	})
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, &out)
	blob := func(d v1.Descriptor) []byte {
		b, ok := files["blobs/sha256/"+d.Digest.Hex]
		if sum := sha256.Sum256(b); !ok || hex.EncodeToString(sum[:]) != d.Digest.Hex || int64(len(b)) != d.Size {
			t.Fatalf("blob %v: present %v, size %d", d, ok, len(b))
		}
		return b
	}
	index := decode[v1.IndexManifest](t, files["index.json"])
	md := index.Manifests[0]
	if md.Digest != id {
		t.Errorf("index names %v, Write returned %v", md.Digest, id)
	}
	if got := md.Annotations[containerdName]; got != "localhost:5000/spillway:dev" {
		t.Errorf("%s = %q", containerdName, got)
	}
	if got := md.Annotations[refName]; got != "dev" {
		t.Errorf("%s = %q", refName, got)
	}
	manifest := decode[v1.Manifest](t, blob(md))
	config := decode[v1.ConfigFile](t, blob(manifest.Config))
	if config.Architecture != "arm64" || config.OS != "linux" || config.Config.Entrypoint[0] != "/spillway" ||
		config.Config.Cmd[0] != "agent" || config.Config.Labels["a"] != "1" {
		t.Errorf("configuration %+v", config)
	}
	zr, err := gzip.NewReader(bytes.NewReader(blob(manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(plain); config.RootFS.DiffIDs[0].Hex != hex.EncodeToString(sum[:]) {
		t.Errorf("diff id %v is not the digest of the layer", config.RootFS.DiffIDs[0])
	}
	root := untar(t, bytes.NewReader(plain))
	for _, dir := range []string{"etc/", "etc/spillway/"} {
		if _, ok := root[dir]; !ok {
			t.Errorf("layer has no %s", dir)
		}
	}
	if string(root["spillway"]) != "binary" || string(root["etc/spillway/config.yaml"]) != "a: 1" {
		t.Errorf("layer holds %q", root)
	}
}

// TestSameInputSameBytes changes what must not matter: the order of files and labels, and the times of the sources.
func TestSameInputSameBytes(t *testing.T) {
	a, b := File{Path: "/a", Source: source(t, "one")}, File{Path: "/b/c", Source: source(t, "two")}
	write := func(files ...File) []byte {
		var out bytes.Buffer
		labels := map[string]string{"x": "1", "y": "2", "z": "3"}
		if _, err := Write(&out, Options{Ref: "localhost/i:1", Files: files, Labels: labels}); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	first := write(a, b)
	if err := os.Chtimes(a.Source, time.Now(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, write(b, a)) {
		t.Error("the archives differ")
	}
	if err := os.WriteFile(a.Source, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first, write(a, b)) {
		t.Error("another content gave the same archive")
	}
}

func TestOptionsRefused(t *testing.T) {
	ok := source(t, "x")
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"no tag":             {Options{Ref: "localhost/i", Files: []File{{Path: "/a", Source: ok}}}, "want name:tag"},
		"port but no tag":    {Options{Ref: "localhost:5000/i", Files: []File{{Path: "/a", Source: ok}}}, "want name:tag"},
		"digest":             {Options{Ref: "i@sha256:00", Files: []File{{Path: "/a", Source: ok}}}, "want name:tag"},
		"no files":           {Options{Ref: "i:1"}, "none given"},
		"relative":           {Options{Ref: "i:1", Files: []File{{Path: "a", Source: ok}}}, "clean absolute path"},
		"climbs out":         {Options{Ref: "i:1", Files: []File{{Path: "/../a", Source: ok}}}, "clean absolute path"},
		"twice":              {Options{Ref: "i:1", Files: []File{{Path: "/a", Source: ok}, {Path: "/a", Source: ok}}}, "given twice"},
		"file and directory": {Options{Ref: "i:1", Files: []File{{Path: "/a", Source: ok}, {Path: "/a/b", Source: ok}}}, "is also the directory"},
		"missing source":     {Options{Ref: "i:1", Files: []File{{Path: "/a", Source: ok + "-not"}}}, "no such file"},
		"directory source":   {Options{Ref: "i:1", Files: []File{{Path: "/a", Source: filepath.Dir(ok)}}}, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "out.tar")
			_, err := WriteFile(target, tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %q", err, tc.want)
			}
			left, err := os.ReadDir(filepath.Dir(target))
			if err != nil || len(left) != 0 {
				t.Errorf("left behind %v, %v", left, err)
			}
		})
	}
}
