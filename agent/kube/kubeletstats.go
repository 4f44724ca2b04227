package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// maxSummary bounds what is read of /stats/summary: a real one of 110 pods is about 1 MiB.
const maxSummary = 16 << 20

// VolumeUse is how full a volume, or a file system of the node, is. Figures that the kubelet leaves out are 0.
type VolumeUse struct {
	Name       string
	Used       uint64 // bytes
	Capacity   uint64
	Inodes     uint64
	InodesUsed uint64
	At         time.Time // of the measurement: the kubelet measures volumes about once a minute
}

// VolumeUses is what the kubelet says of the volumes of its pods.
type VolumeUses struct {
	Node []VolumeUse // the node's own file system and the images'
	// by pod UID; missing: volumes not measured yet, kinds that never are, pods without a running container (seen with 1.36.3)
	Pods map[string][]VolumeUse
}

// KubeletVolumes gets the use of all volumes from this node's kubelet, https://<InternalIP>:<port>/stats/summary. It needs
// the right get on nodes/stats and takes 3 s at most. What holds for the token of KubeletConfigz holds here.
func (c *Client) KubeletVolumes(ctx context.Context, n Node) (VolumeUses, error) {
	return fromKubelet(ctx, c, n, question[VolumeUses]{
		name: "stats", path: "/stats/summary", right: "nodes/stats",
		read: func(r io.Reader) (VolumeUses, error) { return parseSummary(io.LimitReader(r, maxSummary)) },
	})
}

// fsStats is FsStats of the kubelet's stats/v1alpha1, of a file system or a volume.
type fsStats struct {
	Name       string    `json:"name"`
	Time       time.Time `json:"time"`
	Available  *uint64   `json:"availableBytes"`
	Capacity   *uint64   `json:"capacityBytes"`
	Used       *uint64   `json:"usedBytes"`
	Inodes     *uint64   `json:"inodes"`
	InodesFree *uint64   `json:"inodesFree"`
	InodesUsed *uint64   `json:"inodesUsed"`
}

// use takes what cannot be had any more as used: a volume shares its file system with others, and is as full as that is.
func (f *fsStats) use(name string) (VolumeUse, bool) {
	if f.Capacity == nil || *f.Capacity == 0 {
		return VolumeUse{}, false
	}
	out := VolumeUse{Name: name, Capacity: *f.Capacity, At: f.Time}
	switch {
	case f.Available != nil:
		out.Used = *f.Capacity - min(*f.Available, *f.Capacity)
	case f.Used != nil:
		out.Used = *f.Used
	default:
		return VolumeUse{}, false
	}
	if f.Inodes != nil {
		switch {
		case f.InodesFree != nil:
			out.Inodes, out.InodesUsed = *f.Inodes, *f.Inodes-min(*f.InodesFree, *f.Inodes)
		case f.InodesUsed != nil:
			out.Inodes, out.InodesUsed = *f.Inodes, *f.InodesUsed
		}
	}
	return out, true
}

// parseSummary reads {"node": {...}, "pods": [...]} piece by piece: most of it is memory and CPU that nobody wants here.
func parseSummary(r io.Reader) (VolumeUses, error) {
	out := VolumeUses{Pods: map[string][]VolumeUse{}}
	dec := json.NewDecoder(r)
	if err := open(dec, '{'); err != nil {
		return VolumeUses{}, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return VolumeUses{}, err
		}
		switch key {
		case "node":
			err = readNode(dec, &out)
		case "pods":
			err = readPods(dec, &out)
		default:
			var skipped json.RawMessage
			err = dec.Decode(&skipped)
		}
		if err != nil {
			return VolumeUses{}, fmt.Errorf("%v: %w", key, err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return VolumeUses{}, err
	}
	return out, nil
}

func open(dec *json.Decoder, want json.Delim) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	if t != want {
		return fmt.Errorf("%v, want %v", t, want)
	}
	return nil
}

func readNode(dec *json.Decoder, out *VolumeUses) error {
	var node struct {
		FS      *fsStats `json:"fs"`
		Runtime *struct {
			ImageFS *fsStats `json:"imageFs"`
		} `json:"runtime"`
	}
	if err := dec.Decode(&node); err != nil {
		return err
	}
	if node.FS != nil {
		if u, ok := node.FS.use("(file system of the node)"); ok {
			out.Node = append(out.Node, u)
		}
	}
	if node.Runtime != nil && node.Runtime.ImageFS != nil {
		if u, ok := node.Runtime.ImageFS.use("(file system of the images)"); ok {
			out.Node = append(out.Node, u)
		}
	}
	return nil
}

func readPods(dec *json.Decoder, out *VolumeUses) error {
	if err := open(dec, '['); err != nil {
		return err
	}
	for dec.More() {
		var pod struct {
			Ref struct {
				UID string `json:"uid"`
			} `json:"podRef"`
			Volumes []fsStats `json:"volume"`
		}
		if err := dec.Decode(&pod); err != nil {
			return err
		}
		for i := range pod.Volumes {
			if u, ok := pod.Volumes[i].use(pod.Volumes[i].Name); ok {
				out.Pods[pod.Ref.UID] = append(out.Pods[pod.Ref.UID], u)
			}
		}
	}
	_, err := dec.Token()
	return err
}
