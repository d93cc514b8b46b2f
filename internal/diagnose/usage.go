package diagnose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

const (
	metricsGroup, metricsVersion = "metrics.k8s.io", metricsGroup + "/v1beta1"
	// metricsTime is how long the metrics API may take: it is a server of its own, behind the API server, and what it has is an extra.
	metricsTime = 2 * time.Second
	// nearLimit is the share of a limit from which on it counts as reached. A runtime that keeps to a share of its own, as most do, takes less.
	nearLimit = 0.95
)

// podMetrics are what the metrics API has of a pod. Bridge links none of its types.
type podMetrics struct {
	metav1.ObjectMeta `json:"metadata"`
	Timestamp         metav1.Time     `json:"timestamp"`
	Window            metav1.Duration `json:"window"`
	Containers        []struct {
		Name  string              `json:"name"`
		Usage corev1.ResourceList `json:"usage"`
	} `json:"containers"`
}

// usage is what a container uses, on an average over window, which ended at that time.
type usage struct {
	corev1.ResourceList
	at     time.Time
	window time.Duration
}

// hasLimits tells whether p or a container of p has a limit that what it uses can be held against.
func hasLimits(p corev1.Pod) bool {
	bounds := func(l corev1.ResourceList) bool { return !l.Cpu().IsZero() || !l.Memory().IsZero() }
	return p.Status.Phase == corev1.PodRunning && (bounds(together(&p).Limits) ||
		slices.ContainsFunc(containersOf(&p), func(c container) bool { return bounds(c.Resources.Limits) }))
}

// together are the resources that a pod's containers share, for which it has a field of its own.
func together(p *pod) corev1.ResourceRequirements {
	if p.Spec.Resources == nil {
		return corev1.ResourceRequirements{}
	}
	return *p.Spec.Resources
}

// shortOfMemory tells whether a node says that it is.
func shortOfMemory(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeMemoryPressure && c.Status == corev1.ConditionTrue
	})
}

// readMetrics reads what the pods use. Its error is NotFound where the cluster has no metrics API, also for who may not use one.
func readMetrics(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
	limited, cancel := context.WithTimeout(ctx, metricsTime)
	defer cancel()
	s.Metrics, err = custom[podMetrics](limited, k, metricsVersion, s.Namespace, string(pods))
	switch {
	case err != nil && limited.Err() != nil && ctx.Err() == nil:
		return errors.New("the metrics API does not answer in " + metricsTime.String())
	case apierrors.IsForbidden(err): // which is said before it is looked whether there is one
		if _, absent := k.Clientset.CoreV1().RESTClient().Get().AbsPath("/apis", metricsGroup).MaxRetries(0).DoRaw(limited); apierrors.IsNotFound(absent) {
			return absent
		}
	}
	return err
}

// used is what a container uses; false where that is not known of the run that there is now.
func (s *Snapshot) used(p *pod, c container) (usage, bool) {
	u, known := s.usages[partOf(refOf("pod", p), c.Name)]
	running := c.status.State.Running
	return u, known && running != nil && u.at.After(running.StartedAt.Time)
}

// atLimit tells whether a container uses as much of name as it may.
func (s *Snapshot) atLimit(p *pod, c container, name corev1.ResourceName) (usage, bool) {
	u, known := s.used(p, c)
	limit, used := c.Resources.Limits[name], u.ResourceList[name]
	return u, known && !limit.IsZero() && used.AsApproximateFloat64() >= nearLimit*limit.AsApproximateFloat64()
}

// usedTogether is what the containers of p use that are known, and since when; false for none.
func (s *Snapshot) usedTogether(p *pod) (sum usage, known bool) {
	sum.ResourceList = corev1.ResourceList{}
	for _, c := range containersOf(p) {
		if u, has := s.used(p, c); has {
			kube.Sum(sum.ResourceList, u.ResourceList)
			sum.at, sum.window, known = u.at, u.window, true
		}
	}
	return sum, known
}

// togetherAtLimit is about a pod whose containers use as much as they may together.
func (s *Snapshot) togetherAtLimit(p *pod, name corev1.ResourceName, id string) (Finding, bool) {
	u, known := s.usedTogether(p)
	limit, used := together(p).Limits[name], u.ResourceList[name]
	if !known || limit.IsZero() || used.AsApproximateFloat64() < nearLimit*limit.AsApproximateFloat64() {
		return Finding{}, false
	}
	f := s.ofPod(p, id, Warning, Program)
	f.State = append(f.State, u.evidence(p, "all containers", together(p), name))
	f.Summary = fmt.Sprintf("its containers use %s of the %s that they may together", figure(name, used), amount(name, limit))
	return f, true
}

// checkUsage is about containers that use as much as they may, or more than they ask for where that has them evicted.
func checkUsage(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
			continue
		}
		if f, at := s.togetherAtLimit(p, corev1.ResourceMemory, "memory-near-limit"); at {
			f.Why = "with more than that one of them is killed (OOMKilled), and its callers are refused until it runs again"
			f.Next = []string{"raise the pod's own resources.limits.memory, or have the programs need less (GOMEMLIMIT, -Xmx): " + f.edit()}
			out = append(out, f)
		}
		starting := func(c container) bool { return s.startingContainer(p, c) }
		if f, at := s.togetherAtLimit(p, corev1.ResourceCPU, "cpu-at-limit"); at && s.jobOf(p) == nil && !slices.ContainsFunc(containersOf(p), starting) {
			f.Why = "they are held up for a part of each tenth of a second: their callers and their probes wait"
			f.Next = []string{"raise the pod's own resources.limits.cpu, leave it out, or have more pods: " + f.edit()}
			out = append(out, f)
		}
		for _, c := range containersOf(p) {
			if u, at := s.atLimit(p, c, corev1.ResourceMemory); at {
				f := s.ofUsage(p, c, "memory-near-limit", u, corev1.ResourceMemory)
				f.Summary = fmt.Sprintf("%s uses %s of the %s that it may", c.what(), figure(corev1.ResourceMemory, u.ResourceList[corev1.ResourceMemory]), amount(corev1.ResourceMemory, c.Resources.Limits[corev1.ResourceMemory]))
				f.Why = "with more than its limit it is killed (OOMKilled), and its callers are refused until it runs again"
				f.Next = []string{"raise resources.limits.memory above what it needs, or have the program need less (GOMEMLIMIT, -Xmx): " + f.edit()}
				out = append(out, f)
			} else if f, evicted := s.firstEvicted(p, c); evicted {
				out = append(out, f)
			}
			if u, at := s.atLimit(p, c, corev1.ResourceCPU); at && s.jobOf(p) == nil && !starting(c) {
				f := s.ofUsage(p, c, "cpu-at-limit", u, corev1.ResourceCPU)
				f.Summary = fmt.Sprintf("%s uses all of the %s that it may", c.what(), amount(corev1.ResourceCPU, c.Resources.Limits[corev1.ResourceCPU]))
				f.Why = "it is held up for a part of each tenth of a second: its callers and its probes wait"
				f.Next = []string{"raise resources.limits.cpu, leave it out, or have more pods: " + f.edit()}
				out = append(out, f)
			}
		}
	}
	return out
}

// firstEvicted is about a container that uses more memory than it asks for, on a node that is short of it.
func (s *Snapshot) firstEvicted(p *pod, c container) (Finding, bool) {
	u, known := s.used(p, c)
	wants, used := c.Resources.Requests[corev1.ResourceMemory], u.ResourceList[corev1.ResourceMemory]
	short := slices.ContainsFunc(s.Nodes, func(n corev1.Node) bool { return n.Name == p.Spec.NodeName && shortOfMemory(n) })
	if !known || !short || used.Cmp(wants) <= 0 {
		return Finding{}, false
	}
	// What a pod asks for together is what the kubelet holds against it.
	if asked, set := together(p).Requests[corev1.ResourceMemory]; set {
		if sum, _ := s.usedTogether(p); sum.Memory().Cmp(asked) <= 0 {
			return Finding{}, false
		}
	}
	f := s.ofUsage(p, c, "memory-over-request", u, corev1.ResourceMemory)
	asks := "asks for none"
	if !wants.IsZero() {
		asks = "asks for " + figure(corev1.ResourceMemory, wants)
	}
	f.Direction = Node
	f.Summary = fmt.Sprintf("%s uses %s and %s, on %s, which is short of it", c.what(), amount(corev1.ResourceMemory, used), asks, nodeOf(p))
	f.Why = "the kubelet evicts those first that use more than they ask for"
	f.Next = []string{"set resources.requests.memory to what it needs: " + f.edit()}
	return f, true
}

// ofUsage begins a finding of what a container uses.
func (s *Snapshot) ofUsage(p *pod, c container, id string, u usage, name corev1.ResourceName) Finding {
	f := s.ofContainer(p, c, id, Warning, Program)
	f.State = append(f.State, u.evidence(p, c.what(), c.Resources, name))
	return f
}

// evidence is what those of p use beside what they ask for and may use.
func (u usage) evidence(p *pod, who string, r corev1.ResourceRequirements, name corev1.ResourceName) Evidence {
	bound := func(l corev1.ResourceList) string {
		if q, set := l[name]; set {
			return figure(name, q)
		}
		return "none"
	}
	says := fmt.Sprintf("%s, request %s, limit %s", amount(name, u.ResourceList[name]), bound(r.Requests), bound(r.Limits))
	if u.window > 0 {
		says += fmt.Sprintf(", over %v", u.window.Round(time.Second))
	}
	return Evidence{From: fmt.Sprintf("%s of %s, %s", refOf("pod", p), metricsGroup, who), Says: says, At: u.at}
}
