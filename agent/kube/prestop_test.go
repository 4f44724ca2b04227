package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestPreStop(t *testing.T) {
	exec := func(command ...string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: command}}
	}
	for _, tc := range []struct {
		name  string
		hook  *corev1.LifecycleHandler
		sleep time.Duration
		other bool
	}{
		{"none", nil, 0, false},
		{"the sleep action", &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 10}}, 10 * time.Second, false},
		{"a sleep of ages", &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1 << 62}}, maxSleep, false},
		{"a sleep below 0", &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: -5}}, 0, false},
		{"the program", exec("sleep", "15"), 15 * time.Second, false},
		{"with its path", exec("/bin/sleep", "5s"), 5 * time.Second, false},
		{"a shell", exec("/bin/sh", "-c", "sleep 20"), 20 * time.Second, false},
		{"a shell that sleeps and does more", exec("sh", "-c", "sleep 20; nginx -s quit"), 0, true},
		{"another program", exec("/app/drain"), 0, true},
		{"fractions are not understood", exec("sleep", "0.5"), 0, true},
		{"a request", &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{}}, 0, true},
		{"an empty hook", &corev1.LifecycleHandler{}, 0, false},
	} {
		c := corev1.Container{Name: "c"}
		if tc.hook != nil {
			c.Lifecycle = &corev1.Lifecycle{PreStop: tc.hook}
		}
		for _, spec := range []corev1.PodSpec{{Containers: []corev1.Container{c}}, {InitContainers: []corev1.Container{c}}} {
			pod := &corev1.Pod{Spec: spec}
			for _, when := range []string{"as it came", "trimmed"} {
				got := convertPod(pod)
				if got.PreStopSleep != tc.sleep || got.PreStopHook != tc.other {
					t.Errorf("%s, %s: sleep %v, other %v; want %v, %v", tc.name, when, got.PreStopSleep, got.PreStopHook, tc.sleep, tc.other)
				}
				if _, err := trim(pod); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	always := corev1.ContainerRestartPolicyAlways
	if !convertPod(&corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "a"}, {Name: "b", RestartPolicy: &always}}}}).Sidecars {
		t.Error("a sidecar is not seen")
	}
	if convertPod(&corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "a"}}}}).Sidecars {
		t.Error("an init container is no sidecar")
	}
}
