package diagnose

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

type pod = corev1.Pod

// condition is a pod's, nil when it has none of that type.
func condition(p *pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func ready(p *pod) bool {
	c := condition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// unready is a pod that is to serve, and does not.
func unready(p pod) bool {
	return !ready(&p) && p.Status.Phase != corev1.PodSucceeded && p.DeletionTimestamp == nil
}

// unscheduled is the condition of a pod that waits for a node, nil of one that has one or that nobody has looked at.
func unscheduled(p *pod) *corev1.PodCondition {
	c := condition(p, corev1.PodScheduled)
	if c == nil || c.Status != corev1.ConditionFalse || p.Spec.NodeName != "" || p.DeletionTimestamp != nil {
		return nil
	}
	return c
}

// container is one of a pod's with its state.
type container struct {
	*corev1.Container
	status corev1.ContainerStatus // its zero value before the kubelet has told
	init   bool
}

// what names it in words: "init container migrate".
func (c container) what() string {
	if c.init {
		return "init container " + c.Name
	}
	return "container " + c.Name
}

// field is where its state stands.
func (c container) field(name string) string {
	list := "containerStatuses"
	if c.init {
		list = "initContainerStatuses"
	}
	return fmt.Sprintf("status.%s[%s].%s", list, c.Name, name)
}

// containersOf are all of a pod, init containers first, as they start.
func containersOf(p *pod) (out []container) {
	add := func(list []corev1.Container, statuses []corev1.ContainerStatus, init bool) {
		for i := range list {
			c := container{Container: &list[i], init: init}
			if j := slices.IndexFunc(statuses, func(s corev1.ContainerStatus) bool { return s.Name == list[i].Name }); j >= 0 {
				c.status = statuses[j]
			}
			out = append(out, c)
		}
	}
	add(p.Spec.InitContainers, p.Status.InitContainerStatuses, true)
	add(p.Spec.Containers, p.Status.ContainerStatuses, false)
	return out
}

// sidecar is an init container that goes on.
func (c container) sidecar() bool {
	return c.init && kube.Sidecar(*c.Container)
}

// waiting is the reason and the message of a container that waits.
func (c container) waiting() (reason, message string) {
	if w := c.status.State.Waiting; w != nil {
		return w.Reason, w.Message
	}
	return "", ""
}

// lastEnd is how the container ended last, nil if it never did.
func (c container) lastEnd() *corev1.ContainerStateTerminated {
	if t := c.status.State.Terminated; t != nil {
		return t
	}
	return c.status.LastTerminationState.Terminated
}

// nodeOf is the node of a pod that has one.
func nodeOf(p *pod) Ref { return Ref{Kind: "node", Name: p.Spec.NodeName} }

// ofPod begins a finding about a pod.
func (s *Snapshot) ofPod(p *pod, id string, severity Severity, d Direction) Finding {
	f := Finding{ID: id, Severity: severity, Direction: d, Object: refOf("pod", p), Owner: s.owner(p)}
	if p.Spec.NodeName != "" {
		f.because = []Ref{nodeOf(p)}
	}
	return f
}

// ofContainer begins a finding about a container, with the container's state as its first evidence.
func (s *Snapshot) ofContainer(p *pod, c container, id string, severity Severity, d Direction) Finding {
	f := s.ofPod(p, id, severity, d)
	f.Container = c.Name
	if reason, message := c.waiting(); reason != "" {
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %s", f.Object, c.field("state.waiting")), Says: worded(reason, message)})
	}
	return f
}

func worded(reason, message string) string {
	if message = strings.TrimSpace(message); message == "" {
		return reason
	}
	return reason + ": " + message
}

// edit is how to change what makes the pod: its owner, if it has one. Little of a pod itself can be changed, and nothing of a Job's template.
func (f *Finding) edit() string {
	r := f.target()
	if r.Kind == "pod" || r.Kind == "job" {
		return fmt.Sprintf("change its manifest, and kubectl replace --force -f FILE%s", r.in())
	}
	return fmt.Sprintf("kubectl edit %s%s", strings.Replace(r.String(), "/", " ", 1), r.in())
}

// target is the owner, or the object itself where nobody owns it.
func (f *Finding) target() Ref {
	if f.Owner != (Ref{}) {
		return f.Owner
	}
	return f.Object
}

// evidence of a condition.
func (f *Finding) condition(of Ref, t, status, reason, message string, at metav1.Time) {
	f.State = append(f.State, Evidence{From: fmt.Sprintf("%s condition %s", of, t), Says: worded(strings.TrimSuffix(status+" "+reason, " "), message), At: at.Time})
}

// claimsOf are the volume claims a pod names.
func claimsOf(p *pod) (out []Ref) {
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, Ref{"persistentvolumeclaim", p.Namespace, v.PersistentVolumeClaim.ClaimName})
		case v.Ephemeral != nil:
			out = append(out, Ref{"persistentvolumeclaim", p.Namespace, p.Name + "-" + v.Name})
		}
	}
	return out
}

// seconds is a duration in a pod's fields, in words.
func seconds(n int32) string { return (time.Duration(n) * time.Second).String() }
