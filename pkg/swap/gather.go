package swap

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
)

// besideGone is the next step for a pod or a ReplicaSet that is not there: that of a workload is gone while that is swapped.
const besideGone = "check the name and the namespace; while a workload is swapped its pods are gone, so name the workload itself: bridge status lists what is"

// Gather checks the user's rights and reads what a plan by o is made from. It changes nothing. With o.PodProxy it asks
// for the right to pods/proxy too. Where somebody else has begun to swap t FirstWasFaster tells whether that can be shared.
func Gather(ctx context.Context, k *kube.Client, t kube.Target, src proxypod.Source, o Options) (Facts, error) {
	ns := k.Namespace
	if err := k.Serves(ctx, t.Kind); err != nil {
		return Facts{}, kube.Explain(err, fmt.Sprintf("swap %s in %s", t, ns))
	}
	if err := rights.Swap.For(t.Kind).Check(ctx, k, "swap "+t.String(), src.Image == ""); err != nil {
		return Facts{}, err
	}
	f := Facts{Source: src, Flags: k.Flags}
	var err error
	if f.Workload, err = k.Settled(ctx, ns, t); err == nil {
		err = k.Complete(ctx, f.Workload)
	}
	if apierrors.IsNotFound(err) && (t.Kind == kube.Pod || t.Kind == kube.ReplicaSet) {
		err = hint.New(hint.NotFound, err, besideGone)
	}
	if err != nil {
		return Facts{}, kube.Explain(err, fmt.Sprintf("swap %s in %s", t, ns))
	}
	untaken := func() error {
		held, err := k.Clientset.CoordinationV1().Leases(ns).Get(ctx, leaseName(t), metav1.GetOptions{})
		switch {
		case err == nil:
			return errTaken(k, held, objectOf(f.Workload), o.Choice)
		case !apierrors.IsNotFound(err):
			return kube.Explain(err, "get the swap's Lease in "+ns)
		}
		return nil
	}
	if err := untaken(); err != nil {
		return Facts{}, err
	}
	if err := (&proxypod.Proxy{Kube: k, Namespace: ns, Lease: leaseName(t)}).AwaitNone(ctx); err != nil {
		if taken := untaken(); hint.CodeOf(taken) == hint.Conflict { // the proxy is that of who came meanwhile
			err = taken
		}
		return Facts{}, err
	}
	if f.Copies, err = replicaSetCopies(ctx, k, f.Workload); err != nil {
		return Facts{}, err
	}
	services, err := k.Clientset.CoreV1().Services(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return Facts{}, kube.Explain(err, "list services in "+ns)
	}
	f.Services = services.Items
	lacking, err := rights.Missing(ctx, k, rights.Moving())
	if err != nil {
		return Facts{}, err
	}
	f.MayPatchServices = len(lacking) == 0
	if o.PodProxy {
		if lacking, err = rights.Missing(ctx, k, rights.PodProxy()); err != nil {
			return Facts{}, err
		}
		f.MayPodProxy = len(lacking) == 0
	}
	pods, err := k.Clientset.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return Facts{}, kube.Explain(err, "list pods in "+ns)
	}
	f.Pods = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return kube.Ended(&p)
	})
	if f.Source.Image == "" && f.Source.Arch == "" {
		mine, err := metav1.LabelSelectorAsSelector(f.Workload.Selector)
		if err != nil {
			return Facts{}, err
		}
		f.Source.Arch = proxypod.Arch(ctx, k, f.Workload.Template.Spec, slices.DeleteFunc(slices.Clone(f.Pods), func(p corev1.Pod) bool {
			return !mine.Matches(labels.Set(p.Labels))
		}))
	}
	f.LimitCPU = proxypod.WantsCPULimit(ctx, k, ns)
	return f, fault.After(fault.PlanRead, nil)
}

// sharedWith are the pods that the Service selects beside the target's: moving its endpoints would
// take their traffic too.
func sharedWith(s corev1.Service, d *kube.Workload, pods []corev1.Pod) ([]string, error) {
	mine, err := metav1.LabelSelectorAsSelector(d.Selector)
	if err != nil {
		return nil, hint.Newf(hint.Other, "", "%s: %w", d.Target(), err)
	}
	if d.Kind == kube.Pod { // it alone, and none that is like it
		mine = labels.Nothing()
	}
	chosen := labels.SelectorFromSet(s.Spec.Selector)
	var out []string
	for _, p := range pods {
		if l := labels.Set(p.Labels); p.DeletionTimestamp == nil && p.UID != d.UID && chosen.Matches(l) && !mine.Matches(l) {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func serviceList(names []string) string {
	if len(names) == 1 {
		return "service " + names[0]
	}
	return "services " + strings.Join(names, ", ")
}
