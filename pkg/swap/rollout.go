package swap

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

// The controller of Argo's Rollouts writes the hash of the pods that are to serve into the selectors of the Services that a Rollout names
// as its own (activeService, stableService, ...), and calls the Rollout invalid, and leaves it alone, while one of these has a label in its selector that
// the template does not have. So they are not touched while it is to be scaled, and the proxies have the hash.

// owns tells whether the Service is one that w's controller writes.
func owns(w *kube.Workload, s corev1.Service) bool { return slices.Contains(w.Owned, s.Name) }

// ownLabels are those by which a Rollout's controller has its own Services, and a mesh's subsets, select the proxies: those without the hash
// now, as after kubectl replace, get it when the rollout is written to. It is nil for other kinds.
func ownLabels(w *kube.Workload) map[string]string {
	if w.Hash == "" {
		return nil
	}
	return map[string]string{kube.RolloutHashLabel: w.Hash}
}

// older are those of the pods that a Rollout has left from before an update: ready to serve again, until scaleDownDelaySeconds are over.
func older(w *kube.Workload, pods []corev1.Pod) ([]string, error) {
	mine, err := metav1.LabelSelectorAsSelector(w.Selector)
	if err != nil {
		return nil, hint.Newf(hint.Other, "", "%s: %w", w.Target(), err)
	}
	return names(slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		hash := p.Labels[kube.RolloutHashLabel]
		return p.DeletionTimestamp != nil || hash == "" || hash == w.Hash || p.Labels[proxypod.ProxyLabel] != "" || !mine.Matches(labels.Set(p.Labels))
	})), nil
}

// aside takes out of services, which select the target's pods, the Rollout's own, which stay as they are in mode replace. The notes say
// what that means, and what moving them means.
func (p *Plan) aside(services []corev1.Service, standby bool) (moving []corev1.Service) {
	for _, s := range services {
		switch {
		case !owns(p.target, s):
			moving = append(moving, s)
		case standby:
			moving = append(moving, s)
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s is the rollout's own: until it is given back the rollout's controller calls the rollout invalid (InvalidSpec, Degraded), "+
				"and neither scales nor updates it", s.Name))
		default:
			p.beside = append(p.beside, s.Name)
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s is the rollout's own, and stays as it is: its callers reach the original "+
				"beside the proxy until it is stopped, and requests that it has not answered then are lost", s.Name))
		}
	}
	return moving
}

// updated is an error when the controller of a Rollout at 0 replicas has had one of the Rollout's own Services select the pods of an update,
// and with them not the proxy. One that selects others, as one of ping and pong always does, is no sign of that. What cannot be read is
// looked at the next time.
func (s *Swap) updated(ctx context.Context, w *kube.Workload) error {
	if len(w.Owned) == 0 || w.Current == "" {
		return nil
	}
	proxy, err := s.Kube.Clientset.AppsV1().Deployments(w.Namespace).Get(ctx, s.claim.lease.Name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	if hash := proxy.Spec.Template.Labels[kube.RolloutHashLabel]; hash == "" || hash == w.Current {
		return nil
	}
	// To list them is what a swap has to be allowed.
	services, err := s.Kube.Clientset.CoreV1().Services(w.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	for _, v := range services.Items {
		if owns(w, v) && v.Spec.Selector[kube.RolloutHashLabel] == w.Current {
			return hint.Newf(hint.Conflict, "swap it again when the update is done", "the swap does not hold: %s was updated, and service/%s selects the pods of the update, and not the proxy",
				w.Target(), v.Name)
		}
	}
	return nil
}

// unseen is why nothing is known of a Rollout's update, and unseenWay what to do.
const (
	unseen    = "its controller has not seen its last change"
	unseenWay = "see that the controller of Argo Rollouts runs, and swap again"
)

// unchanged asks once more, when the first of a Rollout's own Services is about to be moved: from then on its controller leaves the rollout
// alone, in the middle of an update too, and the proxies and originals are those of the version that was planned for.
func (x changer) unchanged(ctx context.Context, p *Plan) error {
	if p.target.Kind != kube.Rollout || !slices.ContainsFunc(p.Services, func(name string) bool { return slices.Contains(p.target.Owned, name) }) {
		return nil
	}
	w, err := x.kube.Settled(ctx, p.Undo.Target.Namespace, targetOf(p.Undo.Target))
	if err := same(err, p.Undo.Target, w.UID); err != nil {
		return err
	}
	if w.Unseen {
		return hint.Newf(hint.Conflict, unseenWay, "%s cannot be swapped in mode standby: %s, and may be updating it", w.Target(), unseen)
	}
	if w.Updating || w.Hash != p.target.Hash {
		return hint.Newf(hint.Conflict, "swap it again when the update is done", "%s cannot be swapped in mode standby: an update has begun meanwhile, for which its controller needs the Services that are its own (%s)",
			w.Target(), hint.Printable(serviceList(w.Owned)))
	}
	return nil
}
