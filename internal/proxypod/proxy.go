package proxypod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// Poll is how often a wait looks at the cluster. A wait ends within seconds, so a watch would cost
// more than it saves.
const Poll = 250 * time.Millisecond

// Proxy is a proxy in the cluster, found by the label of its pods.
type Proxy struct {
	Kube      *kube.Client
	Namespace string
	Lease     string // the claim that owns it, also its Deployment's name

	keeper bool // it is the Lease's keeper, and no proxy
	pings  bool // its pods have the sysctl that pings take for bridge's own sake, and one that cannot be made for it is told at once
	seats  *seats
	seat   int // in seats
}

// seats are which pod each of several sessions has, of the pods of one proxy.
type seats struct {
	mu sync.Mutex
	of []types.UID // "" for none yet
}

// Seats are p for each of n sessions: every one connects to a pod of its own, and to another when that is gone.
func (p *Proxy) Seats(n int) []*Proxy {
	if n == 1 {
		return []*Proxy{p}
	}
	var out []*Proxy
	shared := &seats{of: make([]types.UID, n)}
	for i := range n {
		one := *p
		one.seats, one.seat = shared, i
		out = append(out, &one)
	}
	return out
}

// take is the pod of seat i among the running ones: the one that it has, else the best that no other has.
func (s *seats) take(i int, pods []corev1.Pod) (pod corev1.Pod, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		taken := slices.Index(s.of, p.UID)
		return taken >= 0 && taken != i
	})
	if len(free) == 0 {
		return pod, false
	}
	pod = slices.MaxFunc(free, inUse)
	for _, p := range free {
		if p.UID == s.of[i] && p.DeletionTimestamp == nil {
			pod = p
		}
	}
	s.of[i] = pod.UID
	return pod, true
}

// KeeperOf is the keeper of a Lease, for the methods that a pod of whatever program has.
func KeeperOf(k *kube.Client, lease *coordinationv1.Lease) *Proxy {
	return &Proxy{Kube: k, Namespace: lease.Namespace, Lease: lease.Name, keeper: true}
}

// names are those of its Deployment and of the label on its pods, and what it is to people.
func (p *Proxy) names() (deployment, label, what string) {
	if p.keeper {
		return KeeperName(p.Lease), KeeperLabel, "keeper"
	}
	return p.Lease, ProxyLabel, "proxy"
}

// staying are the proxy's pods that are not yet going, the newest first.
func (p *Proxy) staying(ctx context.Context) ([]corev1.Pod, error) {
	list, err := p.Pods(ctx)
	if err != nil {
		return nil, err
	}
	pods := slices.DeleteFunc(list, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	return pods, nil
}

// Pods are the proxy's, those that are going too.
func (p *Proxy) Pods(ctx context.Context) ([]corev1.Pod, error) {
	_, label, _ := p.names()
	list, err := p.Kube.Clientset.CoreV1().Pods(p.Namespace).List(ctx, metav1.ListOptions{LabelSelector: label + "=" + LabelValue(p.Lease)})
	if err != nil {
		return nil, kube.Explain(err, "list pods in "+p.Namespace)
	}
	return list.Items, nil
}

// running is the proxy's pod to be connected to. It waits for one to run as long as ctx allows.
func (p *Proxy) running(ctx context.Context) (pod corev1.Pod, err error) {
	err = wait.PollUntilContextCancel(ctx, Poll, true, func(ctx context.Context) (bool, error) {
		pods, err := p.Pods(ctx)
		if err != nil {
			return false, err
		}
		pods = slices.DeleteFunc(pods, func(pod corev1.Pod) bool { return pod.Status.Phase != corev1.PodRunning })
		if p.seats != nil {
			var ok bool
			pod, ok = p.seats.take(p.seat, pods)
			return ok, nil
		}
		if len(pods) == 0 {
			return false, nil
		}
		pod = slices.MaxFunc(pods, inUse)
		return true, nil
	})
	if err != nil && ctx.Err() != nil {
		err = errors.New("no pod of the proxy is running")
		if p.seats != nil {
			err = errors.New("no other pod of the proxy is running")
		}
	}
	return pod, err
}

// inUse orders pods by how much they carry the traffic: a pod that is going carries the tunnel while
// it drains, but any other comes before it, the newest first of all.
func inUse(a, b corev1.Pod) int {
	if going := a.DeletionTimestamp != nil; going != (b.DeletionTimestamp != nil) {
		if going {
			return -1
		}
		return 1
	}
	return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
}

// peer names the process whose key is pinned: a restarted container has a new key, and is as much
// the API server's word as a new pod.
func peer(pod corev1.Pod) string {
	restarts := int32(0)
	for _, s := range pod.Status.ContainerStatuses {
		restarts += s.RestartCount
	}
	return fmt.Sprintf("%s/%d", pod.UID, restarts)
}

// WaitReady returns when a pod of the proxy is Ready. It gives up when ctx ends, or at once when
// the cluster's own word makes waiting pointless; the error (code ProxyNotReady) carries that word.
func (p *Proxy) WaitReady(ctx context.Context) error {
	return p.wait(ctx, func(pods []corev1.Pod) bool { return slices.ContainsFunc(pods, Ready) })
}

// WaitAllReady is WaitReady for n pods.
func (p *Proxy) WaitAllReady(ctx context.Context, n int) error {
	return p.wait(ctx, func(pods []corev1.Pod) bool {
		ready := 0
		for _, pod := range pods {
			if Ready(pod) {
				ready++
			}
		}
		return ready >= n
	})
}

// WaitTunnel returns when a tunnel in that state has a session with a pod of the proxy, Ready or not. It gives up as WaitReady does.
func (p *Proxy) WaitTunnel(ctx context.Context, state func() tunnel.State) error {
	return p.wait(ctx, func([]corev1.Pod) bool {
		return state().Phase.Carries()
	})
}

func (p *Proxy) wait(ctx context.Context, done func([]corev1.Pod) bool) error {
	name, _, what := p.names()
	last := "no pod yet"
	var hopeless bool
	var known []string
	var looked time.Time
	err := wait.PollUntilContextCancel(ctx, Poll, true, func(ctx context.Context) (bool, error) {
		pods, err := p.staying(ctx)
		if err != nil {
			return false, kube.IgnoreTransient(err)
		}
		if done(pods) {
			return true, nil
		}
		known = nil
		for i := range pods {
			known = append(known, pods[i].Name)
		}
		if len(pods) > 0 {
			pod := pods[0]
			if i := slices.IndexFunc(pods, func(pod corev1.Pod) bool { return pod.Status.Reason == sysctlForbidden }); i >= 0 {
				pod = pods[i] // the next ones, which come at once, meet the same
			}
			last, hopeless = podTrouble(pod)
			if p.pings && !hopeless && making(pod) && time.Since(looked) >= eventsEvery {
				looked = time.Now()
				if why := p.pingsFailed(ctx, pod); why != "" {
					last, hopeless = why, true
				}
			}
		} else if last, hopeless, err = p.deploymentTrouble(ctx); err != nil {
			return false, kube.IgnoreTransient(err)
		}
		if hopeless {
			return false, errHopeless
		}
		return false, nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errHopeless), errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		next := p.troubleHint(last)
		if !errors.Is(err, errHopeless) && !p.keeper {
			next += "; --proxy-timeout waits longer"
		}
		err = hint.Newf(hint.ProxyNotReady, next, "the %s's pod is not Ready: %s", what, last)
		return &kube.Unhealthy{Target: kube.Target{Kind: kube.Deployment, Name: name}, Namespace: p.Namespace, Pods: known, Goes: true, Err: err}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// sysctlForbidden is why a pod has failed that the kubelet does not take for its sysctls.
const sysctlForbidden = "SysctlForbidden"

const (
	// sandboxFailed is an event's reason: the pod's network, and its sysctls, could not be made, which its status does not tell.
	sandboxFailed = "FailedCreatePodSandBox"
	// eventsEvery is how often a pod's events are asked for.
	eventsEvery = 2 * time.Second
)

// making tells whether a node is about to make the pod's sandbox.
func making(pod corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodPending && pod.Spec.NodeName != ""
}

// pingsFailed is why the pod's sandbox cannot be made, if that is for the sysctl that pings take; empty when it is not, or events may not be read. The
// kubelet tries for ever, and meets the same.
func (p *Proxy) pingsFailed(ctx context.Context, pod corev1.Pod) string {
	list, err := p.Kube.Clientset.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(pod.UID), "reason": sandboxFailed}.String(),
	})
	if err != nil {
		return ""
	}
	for _, e := range list.Items {
		if e.InvolvedObject.UID == pod.UID && e.Reason == sandboxFailed && strings.Contains(e.Message, pingFile) {
			return join(sandboxFailed, strings.TrimSpace(e.Message))
		}
	}
	return ""
}

var errHopeless = errors.New("waiting is pointless")

// Ready tells whether the pod's Ready condition is true and it is not going.
func Ready(pod corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podTrouble says in the kubelet's or the scheduler's own words why the pod is not Ready.
func podTrouble(pod corev1.Pod) (why string, hopeless bool) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return join(c.Reason, c.Message), false // a node may be on its way
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil {
			why := fmt.Sprintf("container %q: %s", s.Name, join(w.Reason, w.Message))
			if t := s.LastTerminationState.Terminated; t != nil {
				why += fmt.Sprintf(" (exit code %d: %s)", t.ExitCode, strings.TrimSpace(t.Message))
			}
			switch w.Reason {
			case "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CrashLoopBackOff":
				return why, true
			case "", "ContainerCreating", "PodInitializing":
				continue
			}
			return why, false
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("container %q: exit code %d: %s", s.Name, t.ExitCode, strings.TrimSpace(t.Message)), false
		}
	}
	if pod.Status.Phase == corev1.PodRunning {
		for _, s := range pod.Status.ContainerStatuses {
			if !s.Ready {
				return fmt.Sprintf("container %q runs but is not Ready", s.Name), false
			}
		}
	}
	why = "pod " + pod.Name + " is " + string(pod.Status.Phase)
	if pod.Status.Reason != "" {
		why += ": " + join(pod.Status.Reason, pod.Status.Message)
	}
	return why, pod.Status.Phase == corev1.PodFailed
}

// deploymentTrouble says why there is no pod: a quota, an admission rule, Pod Security.
func (p *Proxy) deploymentTrouble(ctx context.Context) (why string, hopeless bool, err error) {
	name, _, _ := p.names()
	d, err := p.Kube.Clientset.AppsV1().Deployments(p.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "its Deployment is gone", true, nil
	}
	if err != nil {
		return "", false, kube.Explain(err, "get deployment "+name)
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return join(c.Reason, c.Message), true, nil
		}
	}
	return "no pod yet", false, nil
}

func join(reason, message string) string {
	if message == "" {
		return reason
	}
	return reason + ": " + message
}

func (p *Proxy) troubleHint(why string) string {
	flags := " -n " + p.Namespace + p.Kube.Flags
	switch {
	case strings.Contains(why, "ImagePull"), strings.Contains(why, "ImageName"), strings.Contains(why, "ErrImage"):
		return "check the image's name, and that the nodes may pull it; without --proxy-image and BRIDGE_PROXY_IMAGE the proxy needs no image of its own"
	case strings.Contains(why, "must specify"):
		return "a quota of the namespace wants requests or limits that the pod does not have: kubectl describe quota" + flags
	case strings.Contains(why, "quota"):
		return "the namespace's quota leaves no room for one more pod: kubectl describe quota" + flags
	case strings.Contains(why, "PodSecurity"):
		return "the workload's own template breaks the namespace's Pod Security level: see the message"
	case strings.Contains(why, "Unschedulable"):
		return "no node takes the pod: kubectl describe nodes" + p.Kube.Flags + "; for another architecture use --arch"
	}
	return "kubectl get events" + flags + " shows more"
}
