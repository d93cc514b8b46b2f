package lookout

import (
	"context"
	"fmt"
	"maps"
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
	for _, q := range list {
		if !concerns(q.Spec) {
			continue
		}
		if short := shortOf(q, needed(s, s.Pod)); short != "" {
			notes = append(notes, fmt.Sprintf("resourcequota/%s has no room for the proxy beside the original: %s; it will be refused (exit code 7)", q.Name, short))
		} else if s.Keeper == nil {
			continue
		} else if short := shortOf(q, needed(s, s.Pod, *s.Keeper)); short != "" {
			notes = append(notes, fmt.Sprintf("resourcequota/%s has room for the proxy or its keeper, not both: %s", q.Name, short))
		}
	}
	return notes
}

// shortOf names what the quota has not enough of; "" when there is room.
func shortOf(q corev1.ResourceQuota, needs corev1.ResourceList) string {
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
	slices.Sort(short)
	return strings.Join(short, ", ")
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

// needed is what a swap asks of a quota with these pods, each of a Deployment.
func needed(s *Subject, pods ...corev1.PodTemplateSpec) corev1.ResourceList {
	count := func(n int) resource.Quantity { return *resource.NewQuantity(int64(n), resource.DecimalSI) }
	deployments, maps := count(len(pods)), count(s.ConfigMaps)
	services := count(0)
	if s.Standby {
		pods = append(pods, s.Pod) // the second proxy
		services = count(2)
	}
	each := count(len(pods))
	out := corev1.ResourceList{
		corev1.ResourcePods: each, "count/pods": each, "count/deployments.apps": deployments, "count/replicasets.apps": deployments,
		"count/leases.coordination.k8s.io": count(1), corev1.ResourceConfigMaps: maps, "count/configmaps": maps,
		corev1.ResourceServices: services, "count/services": services,
	}
	requests, limits := totals(pods)
	for name, q := range requests {
		out[name], out["requests."+name] = q, q
	}
	for name, q := range limits {
		out["limits."+name] = q
	}
	return out
}

// totals are what the pods ask for together. A limit without a request is one too.
func totals(pods []corev1.PodTemplateSpec) (requests, limits corev1.ResourceList) {
	requests, limits = corev1.ResourceList{}, corev1.ResourceList{}
	for _, pod := range pods {
		kube.Sum(requests, kube.Together(&pod.Spec, func(r corev1.ResourceRequirements) corev1.ResourceList {
			all := maps.Clone(r.Limits)
			if all == nil {
				return r.Requests
			}
			maps.Copy(all, r.Requests)
			return all
		}))
		kube.Sum(limits, kube.Together(&pod.Spec, func(r corev1.ResourceRequirements) corev1.ResourceList { return r.Limits }))
	}
	return requests, limits
}
