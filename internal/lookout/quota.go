package lookout

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

func quota(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	list, err := k.Clientset.CoreV1().ResourceQuotas(s.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return quotaNotes(list.Items, s), nil
}

func quotaNotes(list []corev1.ResourceQuota, s *Subject) (notes []string) {
	needs := needed(s)
	for _, q := range list {
		if !concerns(q.Spec) {
			continue
		}
		var short []string
		for name, hard := range q.Status.Hard {
			need, asked := needs[name]
			used := q.Status.Used[name]
			left := hard.DeepCopy()
			left.Sub(used)
			if asked && need.Cmp(left) > 0 {
				short = append(short, fmt.Sprintf("%s (%s of %s used, %s more needed)", name, used.String(), hard.String(), need.String()))
			}
		}
		if len(short) > 0 {
			slices.Sort(short)
			notes = append(notes, fmt.Sprintf("resourcequota/%s has no room for the proxy beside the original: %s; it will be refused (exit code 7)", q.Name, strings.Join(short, ", ")))
		}
	}
	return notes
}

// concerns tells whether the quota counts a pod like the proxy's: one that runs for as long as it may, and asks for something. A
// quota for some priority classes is not judged.
func concerns(q corev1.ResourceQuotaSpec) bool {
	scopes := slices.Clone(q.Scopes)
	if q.ScopeSelector != nil {
		for _, e := range q.ScopeSelector.MatchExpressions {
			scopes = append(scopes, e.ScopeName)
		}
	}
	return !slices.ContainsFunc(scopes, func(scope corev1.ResourceQuotaScope) bool {
		return scope != corev1.ResourceQuotaScopeNotTerminating && scope != corev1.ResourceQuotaScopeNotBestEffort
	})
}

// needed is what a swap asks of a quota.
func needed(s *Subject) corev1.ResourceList {
	one, maps := resource.MustParse("1"), *resource.NewQuantity(int64(s.ConfigMaps), resource.DecimalSI)
	out := corev1.ResourceList{
		corev1.ResourcePods: one, "count/pods": one, "count/deployments.apps": one, "count/replicasets.apps": one,
		"count/leases.coordination.k8s.io": one, corev1.ResourceConfigMaps: maps, "count/configmaps": maps,
	}
	requests, limits := totals(s.Pod.Spec)
	for name, q := range requests {
		out[name], out["requests."+name] = q, q
	}
	for name, q := range limits {
		out["limits."+name] = q
	}
	return out
}

// totals are what the pod's containers ask for together. A limit without a request is one too.
func totals(pod corev1.PodSpec) (requests, limits corev1.ResourceList) {
	requests, limits = corev1.ResourceList{}, corev1.ResourceList{}
	add := func(to corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
		sum := to[name]
		sum.Add(q)
		to[name] = sum
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) { // those of the proxy's pod are sidecars
		for name, q := range c.Resources.Limits {
			add(limits, name, q)
			if _, has := c.Resources.Requests[name]; !has {
				add(requests, name, q)
			}
		}
		for name, q := range c.Resources.Requests {
			add(requests, name, q)
		}
	}
	return requests, limits
}
