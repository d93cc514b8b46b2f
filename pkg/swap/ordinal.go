package swap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bridge/internal/kube"
)

// The pods of a StatefulSet are no copies of each other: each has an ordinal, a name of its own in DNS by way of the governing
// Service, and volumes of its own. One proxy stands in for all of them, and has the first one's names.

// stoppable asks once more, when o is about to be scaled to 0: the policy may have been changed, or an update begun, since the plan was made. version is what is
// written on, so that a later change of it is a conflict.
func (x changer) stoppable(ctx context.Context, o Object, version string) error {
	if kind := targetOf(o).Kind; kind != kube.StatefulSet && kind != kube.Rollout {
		return nil
	}
	w, err := x.workload(ctx, o)
	if err != nil {
		return err
	}
	if w.ResourceVersion != version {
		return apierrors.NewConflict(schema.GroupResource{Group: o.Group(), Resource: o.Resource()}, o.Name, errors.New("changed between two reads"))
	}
	return stoppable(w, x.kube.Flags)
}

// withoutClaims is t, the first pod's, without the containers beside app that have one of the volumes that are that pod's own: it may have them still,
// or again.
func (p *Plan) withoutClaims(t corev1.PodTemplateSpec, app string) corev1.PodTemplateSpec {
	own := func(volume string) bool {
		return slices.ContainsFunc(t.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == volume && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == v.Name+"-"+t.Name
		})
	}
	has := func(c corev1.Container) bool {
		var volumes []string
		for _, m := range c.VolumeMounts {
			volumes = append(volumes, m.Name)
		}
		for _, d := range c.VolumeDevices {
			volumes = append(volumes, d.Name)
		}
		i := slices.IndexFunc(volumes, own)
		if c.Name == app || i < 0 {
			return false
		}
		p.Notes = append(p.Notes, fmt.Sprintf("container %q is not in the proxy's pod: volume %q belongs to %s", c.Name, volumes[i], t.Name))
		return true
	}
	if p.target.Kind == kube.StatefulSet {
		t.Spec.InitContainers = slices.DeleteFunc(slices.Clone(t.Spec.InitContainers), has)
		t.Spec.Containers = slices.DeleteFunc(slices.Clone(t.Spec.Containers), has)
	}
	return t
}

// ofOne tells whether a label is on one pod of a StatefulSet alone.
func ofOne(label, _ string) bool {
	return label == appsv1.StatefulSetPodNameLabel || label == appsv1.PodIndexLabel
}

// apart takes out of services, which select the target's pods, those that stay as they are: the StatefulSet's governing Service, and, while the
// original goes on, Services for one pod. The notes say what becomes of the callers of single pods. all are the namespace's.
func (p *Plan) apart(services, all []corev1.Service, standby bool) (moving []corev1.Service) {
	w := p.target
	if w.Kind != kube.StatefulSet {
		return services
	}
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	if !standby && p.Replicas > 1 {
		note("one proxy stands in for all %d pods of %s, with the host name %s: who calls one of the others by its own name (%s, ...) finds nobody while it is swapped",
			p.Replicas, w.Target(), w.PodName(0), w.PodName(1))
	}
	for _, s := range services {
		switch {
		case s.Name == w.Governing && s.Spec.ClusterIP == corev1.ClusterIPNone && standby:
			note("service/%s, which gives the pods their names, stays as it is: its callers reach the original and not this machine", s.Name)
		case s.Name == w.Governing && s.Spec.ClusterIP == corev1.ClusterIPNone:
			note("service/%s, which gives the pods their names, stays as it is, so that they find each other when they start again: its callers reach the original "+
				"beside the proxy until it is stopped, and requests that it has not answered then are lost", s.Name)
		case standby && hasKey(s.Spec.Selector, ofOne):
			note("service/%s is for one pod, and stays as it is: its callers reach that pod and not this machine", s.Name)
		default:
			moving = append(moving, s)
			continue
		}
		p.beside = append(p.beside, s.Name)
	}
	for _, s := range all {
		rest := maps.Clone(s.Spec.Selector)
		maps.DeleteFunc(rest, ofOne)
		if !standby && hasKey(s.Spec.Selector, ofOne) && !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.Template.Labels)) &&
			labels.SelectorFromSet(rest).Matches(labels.Set(w.Template.Labels)) && p.Replicas > 1 {
			note("service/%s is for one of the other pods: its callers are refused while it is swapped", s.Name)
		}
	}
	return moving
}

// noteHeadless says which of the Services that select the target's pods have callers whom DNS tells of the proxy, and who are not waited for when it ends:
// the record knows those alone that are changed.
func (p *Plan) noteHeadless(selecting []corev1.Service) {
	for _, s := range selecting {
		if s.Spec.ClusterIP == corev1.ClusterIPNone && !slices.Contains(p.Services, s.Name) {
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s is headless, and stays as it is: when you give back its callers may be refused for %v, by what DNS has told them", s.Name, dnsTTL))
		}
	}
}

func hasKey(m map[string]string, is func(key, value string) bool) bool {
	for k, v := range m {
		if is(k, v) {
			return true
		}
	}
	return false
}
