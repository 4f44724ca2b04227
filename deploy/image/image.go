// Package image writes reproducible OCI image archives from files on disk, without a container daemon.
//
// The archive is one tar file that holds an OCI image layout (image-spec, image-layout.md). The same files and options
// give the same bytes: entries are sorted, owned by root and carry one fixed time.
//
// It reads the files it is given and writes one archive; it never talks to a registry.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// containerdName is the annotation of an index entry from which `ctr images import` takes the whole image name
// (containerd client/import.go); refName holds the tag alone, as other OCI tools expect.
const (
	containerdName = "io.containerd.image.name"
	refName        = "org.opencontainers.image.ref.name"
)

// File is one regular file of the image.
type File struct {
	// Path is the absolute, clean path inside the image.
	Path string
	// Source is the file on disk whose content is taken.
	Source string
}

// Options describe one image. Ref and at least one file are needed; everything else may be zero.
type Options struct {
	// Ref is the whole name with its tag, such as "localhost/spillway:dev".
	Ref string
	// Files make up the single layer, with mode 0755. Parent directories are added.
	Files []File
	// Entrypoint, Cmd and User are the image's run configuration.
	Entrypoint []string
	Cmd        []string
	User       string
	// Labels are the image's labels.
	Labels map[string]string
	// Arch is a GOARCH value; empty means amd64. The operating system is always linux.
	Arch string
	// Created is written to the configuration and to every entry; zero means the Unix epoch.
	Created time.Time
}

func (o *Options) complete() error {
	name, tag, ok := splitRef(o.Ref)
	if !ok || name == "" || tag == "" {
		return fmt.Errorf("image reference %q: want name:tag", o.Ref)
	}
	if len(o.Files) == 0 {
		return errors.New("image files: none given")
	}
	seen := map[string]bool{}
	for _, f := range o.Files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return fmt.Errorf("image file %q: want a clean absolute path", f.Path)
		}
		if seen[f.Path] {
			return fmt.Errorf("image file %s: given twice", f.Path)
		}
		seen[f.Path] = true
	}
	for p := range seen {
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			if seen[d] {
				return fmt.Errorf("image file %s: is also the directory of %s", d, p)
			}
		}
	}
	if o.Arch == "" {
		o.Arch = "amd64"
	}
	if o.Created.IsZero() {
		o.Created = time.Unix(0, 0)
	}
	o.Created = o.Created.UTC().Truncate(time.Second)
	return nil
}

// splitRef parts name and tag; a colon before the last slash belongs to a registry's port.
func splitRef(ref string) (name, tag string, ok bool) {
	i := strings.LastIndexByte(ref, ':')
	if i < 0 || strings.Contains(ref[i:], "/") || strings.ContainsAny(ref, "@ ") {
		return "", "", false
	}
	return ref[:i], ref[i+1:], true
}

// WriteFile writes the archive to name, by way of a temporary file beside it, and returns the manifest's digest.
func WriteFile(name string, o Options) (v1.Hash, error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return v1.Hash{}, fmt.Errorf("create archive %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	h, err := Write(tmp, o)
	if err != nil {
		tmp.Close()
		return v1.Hash{}, err
	}
	err = errors.Join(tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write archive %s: %w", name, err)
	}
	return h, nil
}

// Write writes the archive to w and returns the manifest's digest, which is the image's identity.
func Write(w io.Writer, o Options) (v1.Hash, error) {
	if err := o.complete(); err != nil {
		return v1.Hash{}, err
	}
	layer, err := o.layer()
	if err != nil {
		return v1.Hash{}, err
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(layer); err != nil {
		return v1.Hash{}, fmt.Errorf("compress layer: %w", err)
	}
	if err := zw.Close(); err != nil {
		return v1.Hash{}, fmt.Errorf("compress layer: %w", err)
	}

	blobs := map[string][]byte{}
	put := func(media types.MediaType, content []byte) v1.Descriptor {
		h := digest(content)
		blobs[h.Hex] = content
		return v1.Descriptor{MediaType: media, Size: int64(len(content)), Digest: h}
	}
	created := v1.Time{Time: o.Created}
	config, err := json.Marshal(v1.ConfigFile{
		Architecture: o.Arch,
		OS:           "linux",
		Created:      created,
		Config:       v1.Config{Entrypoint: o.Entrypoint, Cmd: o.Cmd, User: o.User, Labels: o.Labels},
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{digest(layer)}},
		History:      []v1.History{{Created: created, CreatedBy: "deploy/image"}},
	})
	if err != nil {
		return v1.Hash{}, fmt.Errorf("encode image configuration: %w", err)
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        put(types.OCIConfigJSON, config),
		Layers:        []v1.Descriptor{put(types.OCILayer, zipped.Bytes())},
	})
	if err != nil {
		return v1.Hash{}, fmt.Errorf("encode image manifest: %w", err)
	}
	md := put(types.OCIManifestSchema1, manifest)
	_, tag, _ := splitRef(o.Ref)
	md.Annotations = map[string]string{containerdName: o.Ref, refName: tag}
	md.Platform = &v1.Platform{Architecture: o.Arch, OS: "linux"}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{md}})
	if err != nil {
		return v1.Hash{}, fmt.Errorf("encode image index: %w", err)
	}

	a := archive{tar.NewWriter(w), o.Created}
	err = errors.Join(a.dir("blobs"), a.dir("blobs/sha256"))
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		if err == nil {
			err = a.file("blobs/sha256/"+name, 0o644, blobs[name])
		}
	}
	if err == nil {
		err = errors.Join(a.file("index.json", 0o644, index), a.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)), a.Close())
	}
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write image layout: %w", err)
	}
	return md.Digest, nil
}

// layer returns the one layer, as a tar file.
func (o *Options) layer() ([]byte, error) {
	var out bytes.Buffer
	a := archive{tar.NewWriter(&out), o.Created}
	for _, d := range parents(o.Files) {
		if err := a.dir(d); err != nil {
			return nil, fmt.Errorf("write layer directory %s: %w", d, err)
		}
	}
	for _, f := range slices.SortedFunc(slices.Values(o.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) }) {
		if fi, err := os.Stat(f.Source); err != nil {
			return nil, fmt.Errorf("write layer file %s: %w", f.Path, err)
		} else if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("write layer file %s: source %s: not a regular file", f.Path, f.Source)
		}
		content, err := os.ReadFile(f.Source)
		if err == nil {
			err = a.file(strings.TrimPrefix(f.Path, "/"), 0o755, content)
		}
		if err != nil {
			return nil, fmt.Errorf("write layer file %s: %w", f.Path, err)
		}
	}
	if err := a.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return out.Bytes(), nil
}

// parents lists the directories above the files, shortest first.
func parents(files []File) []string {
	set := map[string]bool{}
	for _, f := range files {
		for d := path.Dir(f.Path); d != "/"; d = path.Dir(d) {
			set[strings.TrimPrefix(d, "/")] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// archive is a tar file whose bytes depend on names, contents and one time alone: root owns all of it.
type archive struct {
	*tar.Writer
	created time.Time
}

func (a archive) dir(name string) error {
	return a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: a.created, Format: tar.FormatPAX})
}

func (a archive) file(name string, mode int64, content []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: mode, ModTime: a.created, Format: tar.FormatPAX}
	if err := a.WriteHeader(h); err != nil {
		return err
	}
	_, err := a.Write(content)
	return err
}

func digest(content []byte) v1.Hash {
	sum := sha256.Sum256(content)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}
