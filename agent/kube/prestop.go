package kube

import (
	"regexp"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// sleeps is a shell's or the program's own sleep of whole seconds and nothing after it.
var sleeps = regexp.MustCompile(`^(?:exec )?(?:/usr)?(?:/bin/)?sleep (\d{1,6})s?;?$`)

// maxSleep bounds what a preStop hook is believed to sleep.
const maxSleep = 24 * time.Hour

// preStop returns the longest sleep that the preStop hooks of a pod show, and whether one does something else, of which the
// spec does not show how long it takes.
func preStop(spec *corev1.PodSpec) (sleep time.Duration, other bool) {
	look := func(c *corev1.Container) {
		if c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
			return
		}
		hook := c.Lifecycle.PreStop
		if d, ok := sleepOf(hook); ok {
			sleep = max(sleep, d)
		} else if hook.Exec != nil || hook.HTTPGet != nil || hook.TCPSocket != nil {
			other = true
		}
	}
	for i := range spec.InitContainers {
		look(&spec.InitContainers[i])
	}
	for i := range spec.Containers {
		look(&spec.Containers[i])
	}
	return sleep, other
}

func sleepOf(h *corev1.LifecycleHandler) (time.Duration, bool) {
	if h.Sleep != nil {
		return min(max(0, time.Duration(min(h.Sleep.Seconds, int64(maxSleep/time.Second)))*time.Second), maxSleep), true
	}
	if h.Exec == nil {
		return 0, false
	}
	text := ""
	switch c := h.Exec.Command; {
	case len(c) == 2:
		text = c[0] + " " + c[1]
	case len(c) == 3 && c[1] == "-c":
		text = c[2]
	}
	m := sleeps.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return min(time.Duration(n)*time.Second, maxSleep), err == nil
}

// trimLifecycle keeps what preStop reads.
func trimLifecycle(l *corev1.Lifecycle) *corev1.Lifecycle {
	if l == nil || l.PreStop == nil {
		return nil
	}
	if d, ok := sleepOf(l.PreStop); ok {
		return &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: int64(d / time.Second)}}}
	}
	out := &corev1.LifecycleHandler{}
	switch {
	case l.PreStop.Exec != nil:
		out.Exec = &corev1.ExecAction{}
	case l.PreStop.HTTPGet != nil:
		out.HTTPGet = &corev1.HTTPGetAction{}
	case l.PreStop.TCPSocket != nil:
		out.TCPSocket = &corev1.TCPSocketAction{}
	}
	return &corev1.Lifecycle{PreStop: out}
}

// hasSidecars reports whether the pod has init containers that run beside the others, and are stopped after them.
func hasSidecars(spec *corev1.PodSpec) bool {
	for i := range spec.InitContainers {
		if p := spec.InitContainers[i].RestartPolicy; p != nil && *p == corev1.ContainerRestartPolicyAlways {
			return true
		}
	}
	return false
}
