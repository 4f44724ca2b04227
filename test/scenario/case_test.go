package scenario

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"sigs.k8s.io/yaml"
)

// TestManifest: the rendered objects are what the API server understands, of both kinds.
func TestManifest(t *testing.T) {
	leak := Workload{Name: "leak", Args: []string{"leak", "--wait-for", "$GO"}, Requests: "{cpu: 10m}", Limits: "{memory: 1Gi}", Annotate: `{spillway/evict: "never"}`}
	for _, tc := range []struct {
		name string
		kind Kind
	}{{"default", ""}, {"Deployment", Deployment}, {"DaemonSet", DaemonSet}} {
		t.Run(tc.name, func(t *testing.T) {
			w := leak
			w.Kind = tc.kind
			var ds appsv1.DaemonSet
			var d appsv1.Deployment
			template := &d.Spec.Template
			if tc.kind == DaemonSet {
				template = &ds.Spec.Template
				decode(t, w.manifest("case", "node1", "/go", "/disk"), &ds)
				if ds.Kind != "DaemonSet" || ds.Namespace != "case" || ds.Spec.Selector.MatchLabels["app"] != "leak" {
					t.Errorf("%+v", ds)
				}
			} else {
				w.Replicas, w.Namespace, w.Scaler = 3, "other", [2]int{3, 5}
				workload, scaler, _ := strings.Cut(w.manifest("case", "node1", "/go", "/disk"), "---\n")
				decode(t, workload, &d)
				var hpa autoscalingv2.HorizontalPodAutoscaler
				decode(t, scaler, &hpa)
				if d.Kind != "Deployment" || d.Namespace != "other" || *d.Spec.Replicas != 3 || hpa.Spec.ScaleTargetRef.Kind != "Deployment" || *hpa.Spec.MinReplicas != 3 || hpa.Spec.MaxReplicas != 5 {
					t.Errorf("%+v, %+v", d, hpa)
				}
			}
			c := template.Spec.Containers[0]
			if template.Annotations["spillway/evict"] != "never" || template.Spec.NodeSelector["kubernetes.io/hostname"] != "node1" ||
				c.Args[2] != "/go" || c.Resources.Requests.Cpu().String() != "10m" || c.Resources.Limits.Memory().String() != "1Gi" {
				t.Errorf("%+v", template)
			}
		})
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
}

// TestLeft: a culprit pod has left when it was killed or evicted by the kubelet, or when its object is gone after an eviction.
func TestLeft(t *testing.T) {
	c := Case{Workloads: []Workload{{Name: "leak", Part: Culprit}, {Name: "cart"}}}
	fates := []Fate{
		{App: "leak"}, {App: "leak", API: true, At: 1}, // one stays, one is on its way out
		{App: "leak", API: true, At: 1, Gone: 2}, {App: "leak", Kubelet: true}, {App: "leak", OOMKilled: true},
		{App: "cart", API: true, At: 1, Gone: 2}, {App: "cart", Kubelet: true}, {App: "other", Kubelet: true},
	}
	if n := c.left(fates); n != 3 {
		t.Errorf("%d left, want 3", n)
	}
}

// TestHostManifest: a workload of the node's own programs has its files, and a place to write.
func TestHostManifest(t *testing.T) {
	var d appsv1.Deployment
	decode(t, Workload{Name: "sort", Host: true, Args: []string{"$DISK/apps", "-go", "$GO"}, PreStop: 10}.manifest("case", "node1", "/disk/go", "/disk"), &d)
	spec := d.Spec.Template.Spec
	c := spec.Containers[0]
	if len(c.Args) != 0 || strings.Join(c.Command, " ") != "/disk/apps -go /disk/go" || c.Lifecycle.PreStop.Sleep.Seconds != 10 {
		t.Errorf("%+v", c)
	}
	at := map[string]string{}
	for _, m := range c.VolumeMounts {
		if m.ReadOnly != (m.MountPath == "/host") {
			t.Errorf("%+v", m)
		}
		for _, v := range spec.Volumes {
			if v.Name == m.Name {
				at[m.MountPath] = v.HostPath.Path
			}
		}
	}
	if len(at) != 3 || at["/host"] != "/" || at["/disk"] != "/disk" || at["/host/disk"] != "/disk" {
		t.Errorf("mounted: %v", at)
	}
}
