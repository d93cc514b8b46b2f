package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
)

// defaultContainer is the annotation of a pod that names the container meant where none is.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// LogRemoved begins what the kubelet answers in place of a log whose container it has removed.
const LogRemoved = "unable to retrieve container logs for "

// Pods are those of t: the pod itself, or those that a workload's or a Service's selector matches, also the ended ones.
func (c *Client) Pods(ctx context.Context, namespace string, t Target) ([]corev1.Pod, error) {
	api := c.Clientset.CoreV1().Pods(namespace)
	if t.Kind == Pod {
		p, err := api.Get(ctx, t.Name, metav1.GetOptions{})
		if err != nil {
			return nil, c.explainIn(ctx, namespace, err, fmt.Sprintf("read %s in %s", t, namespace))
		}
		return []corev1.Pod{*p}, nil
	}
	selector, err := c.PodSelector(ctx, namespace, t)
	if err != nil {
		return nil, c.explainIn(ctx, namespace, err, fmt.Sprintf("find the pods of %s in %s", t, namespace))
	}
	l, err := api.List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, Explain(err, fmt.Sprintf("list the pods of %s in %s", t, namespace))
	}
	return l.Items, nil
}

// explainIn is Explain of what was asked in a namespace: where that has not found something it may be the namespace that is not there.
func (c *Client) explainIn(ctx context.Context, namespace string, err error, doing string) error {
	explained := Explain(err, doing)
	if !apierrors.IsNotFound(err) {
		return explained
	}
	if _, absent := c.Clientset.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); apierrors.IsNotFound(absent) {
		return hint.Newf(hint.NotFound, "check the namespace (-n); list them with: kubectl get namespaces"+c.Flags, "%s: there is no namespace %s", doing, namespace)
	}
	if next := hint.Of(explained); strings.Contains(next, "kubectl get ") {
		return hint.New(0, explained, next+" -n "+namespace+c.Flags)
	}
	return explained
}

// RunningPod is the pod of t to look into: one that is ready, or else one that runs. A pod that is named need not be either; one that
// has ended is an error.
func (c *Client) RunningPod(ctx context.Context, namespace string, t Target) (*corev1.Pod, error) {
	pods, err := c.Pods(ctx, namespace, t)
	if err != nil {
		return nil, err
	}
	if t.Kind == Pod {
		p := &pods[0]
		if Ended(p) {
			return nil, hint.Newf(hint.Other, "its log is still there: bridge logs "+t.String()+" -n "+namespace+c.Flags, "%s in %s has ended (%s): nothing runs in it any more", t, namespace, p.Status.Phase)
		}
		return p, nil
	}
	return c.running(namespace, t, pods)
}

func (c *Client) running(namespace string, t Target, pods []corev1.Pod) (*corev1.Pod, error) {
	if len(pods) == 0 {
		return nil, hint.Newf(hint.Other, "it may be scaled to 0, suspended, done or refused: bridge diagnose "+t.String()+" -n "+namespace+c.Flags, "%s in %s has no pod", t, namespace)
	}
	var best *corev1.Pod
	var why []string
	for i := range pods {
		p := &pods[i]
		if len(why) < 3 {
			why = append(why, p.Name+": "+podReason(p))
		}
		if isReady(p) {
			return p, nil
		}
		runs := func(s corev1.ContainerStatus) bool { return s.State.Running != nil }
		switch {
		case p.DeletionTimestamp != nil || Ended(p):
		case slices.ContainsFunc(p.Status.ContainerStatuses, runs):
			best = p
		case best == nil && slices.ContainsFunc(p.Status.InitContainerStatuses, runs): // it may be that one that is meant
			best = p
		}
	}
	if best == nil {
		return nil, hint.Newf(hint.Other, "bridge diagnose "+t.String()+" -n "+namespace+c.Flags+" says why", "%s in %s has no pod that runs: %s", t, namespace, strings.Join(why, "; "))
	}
	return best, nil
}

// DebugPrefix begins the names of the containers that bridge debug and bridge capture add to pods.
const DebugPrefix = "bridge-debug-"

// Ended tells whether nothing of the pod's runs any more, or will again.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ContainerNames are those of all containers of a pod: its own, its init containers and its ephemeral ones.
func ContainerNames(p *corev1.Pod) (names []string) {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		names = append(names, c.Name)
	}
	for _, c := range p.Spec.EphemeralContainers {
		names = append(names, c.Name)
	}
	return names
}

// ContainerName is the name given, if the pod has such a container, or else that of its default one: as kubectl takes it, the one that an annotation names or
// the first.
func ContainerName(p *corev1.Pod, name string) (string, error) {
	if name == "" {
		annotated := p.Annotations[defaultContainer]
		if slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == annotated }) {
			return annotated, nil
		}
		return p.Spec.Containers[0].Name, nil
	}
	if names := ContainerNames(p); !slices.Contains(names, name) {
		return "", hint.Newf(hint.Usage, "its containers: "+strings.Join(names, ", "), "pod %s/%s has no container %q", p.Namespace, p.Name, name)
	}
	return name, nil
}

// ContainerStatus is that of a container of a pod; false while the kubelet has said nothing of it.
func ContainerStatus(p *corev1.Pod, name string) (corev1.ContainerStatus, bool) {
	for _, s := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if s.Name == name {
			return s, true
		}
	}
	return corev1.ContainerStatus{}, false
}

// ContainerState is the state in a container's status.
func ContainerState(p *corev1.Pod, name string) (corev1.ContainerState, bool) {
	s, known := ContainerStatus(p, name)
	return s.State, known
}

// NotRunning is why nothing can be run in a container of a pod: nil if it runs.
func (c *Client) NotRunning(p *corev1.Pod, name string) error {
	state, known := ContainerState(p, name)
	why := "the kubelet has not started it"
	switch {
	case state.Running != nil:
		return nil
	case state.Waiting != nil:
		why = "it waits: " + state.Waiting.Reason
	case state.Terminated != nil:
		why = fmt.Sprintf("it has ended with exit code %d", state.Terminated.ExitCode)
	case !known && p.Spec.NodeName == "":
		why = "the pod has no node yet"
	}
	return hint.Newf(hint.Other, fmt.Sprintf("bridge diagnose pod/%s -n %s%s says why; bridge logs pod/%s -n %s%s -c %s what it has printed", p.Name, p.Namespace, c.Flags, p.Name, p.Namespace, c.Flags, name),
		"container %s of pod %s/%s does not run: %s", name, p.Namespace, p.Name, why)
}
