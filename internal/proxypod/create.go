package proxypod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
)

// OwnedBy names the Lease as owner, so that deleting it removes what is ours. It is no controller
// and blocks nothing.
func OwnedBy(l *coordinationv1.Lease) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: "coordination.k8s.io/v1", Kind: "Lease", Name: l.Name, UID: l.UID}}
}

const (
	// goneTimeout is how long a proxy's pods may take to end: their grace period and a slow node.
	goneTimeout = time.Minute
	// collectTimeout is how long the garbage collector may take with what a Lease owned that somebody has deleted.
	collectTimeout = 30 * time.Second
)

// Create creates the proxy's ConfigMaps and its Deployment, owned by the Lease. An earlier Lease's ConfigMaps may be there for a
// moment still, when AwaitNone has returned.
func Create(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, maps []*corev1.ConfigMap, d *appsv1.Deployment) error {
	options := metav1.CreateOptions{FieldManager: FieldManager}
	for _, m := range maps {
		m = m.DeepCopy()
		m.OwnerReferences = OwnedBy(lease)
		err := Afresh(ctx, func() error {
			_, err := k.Clientset.CoreV1().ConfigMaps(m.Namespace).Create(ctx, m, options)
			return err
		})
		if err := fault.After(fault.MapCreated, err); err != nil {
			return kube.Explain(err, "create configmap "+m.Name+" in "+m.Namespace)
		}
	}
	return fault.After(fault.ProxyCreated, CreateDeployment(ctx, k, lease, d))
}

// CreateDeployment creates d, owned by the Lease.
func CreateDeployment(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, d *appsv1.Deployment) error {
	d = d.DeepCopy()
	d.OwnerReferences = OwnedBy(lease)
	err := Afresh(ctx, func() error {
		_, err := k.Clientset.AppsV1().Deployments(d.Namespace).Create(ctx, d, metav1.CreateOptions{FieldManager: FieldManager})
		return err
	})
	return kube.Explain(err, "create deployment "+d.Name+" in "+d.Namespace)
}

// Afresh creates something whose name may still be taken for a moment.
func Afresh(ctx context.Context, create func() error) error {
	var err error
	_ = wait.PollUntilContextTimeout(ctx, Poll, collectTimeout, true, func(context.Context) (bool, error) {
		err = create()
		return !apierrors.IsAlreadyExists(err), nil
	})
	return err
}

// AwaitNone waits until an earlier proxy is gone whose Lease somebody has deleted: its pods know another key, and a tunnel that
// comes to one of them would end. A pod that lingers is not waited for.
func (p *Proxy) AwaitNone(ctx context.Context) error {
	var answer error
	err := wait.PollUntilContextTimeout(ctx, Poll, collectTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := p.Kube.Clientset.AppsV1().Deployments(p.Namespace).Get(ctx, p.Lease, metav1.GetOptions{})
		if ctx.Err() == nil {
			answer = err
		}
		return apierrors.IsNotFound(err), nil
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && answer != nil:
		return kube.Explain(answer, "get deployment "+p.Lease+" in "+p.Namespace)
	case err != nil:
		return hint.Newf(hint.Conflict, "is it of an earlier swap? kubectl delete deployment "+p.Lease+" -n "+p.Namespace+p.Kube.Flags,
			"deployment/%s in %s, which has the proxy's name, is there already, and no Lease of that name", p.Lease, p.Namespace)
	}
	_, err = p.WaitGone(ctx)
	return err
}

// Delete deletes the proxy's Deployment, waits until its pods are gone (they drain), and deletes
// its ConfigMaps: those that the Lease with this UID owns. What is gone already is fine, and what an
// earlier Lease of the name owned goes by garbage collection. A pod that is deleted but does not end, since its node
// is lost, it leaves to the cluster, and says so.
func (p *Proxy) Delete(ctx context.Context, lease types.UID, say func(string)) error {
	deployments := p.Kube.Clientset.AppsV1().Deployments(p.Namespace)
	d, err := deployments.Get(ctx, p.Lease, metav1.GetOptions{})
	if err == nil && ownedBy(d, lease) {
		policy := metav1.DeletePropagationBackground
		err = deployments.Delete(ctx, p.Lease, metav1.DeleteOptions{
			PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &d.UID},
		})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return kube.Explain(err, "delete deployment "+p.Lease+" in "+p.Namespace)
	}
	if err := fault.After(fault.ProxyDeleted, nil); err != nil {
		return err
	}
	lingering, err := p.WaitGone(ctx)
	if err := fault.After(fault.ProxyGone, err); err != nil {
		return err
	}
	if len(lingering) > 0 {
		say(fmt.Sprintf("deleted, but not ended in %v, for the node does not answer: pod %s; it goes with the node, or when that is back",
			goneTimeout, strings.Join(lingering, ", ")))
	}
	maps := p.Kube.Clientset.CoreV1().ConfigMaps(p.Namespace)
	list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: ProxyLabel + "=" + LabelValue(p.Lease)})
	if err != nil {
		return kube.Explain(err, "list configmaps in "+p.Namespace)
	}
	for _, m := range list.Items {
		if !ownedBy(&m, lease) {
			continue
		}
		err := maps.Delete(ctx, m.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &m.UID}}) // a later swap has the same name
		if err := fault.After(fault.MapDeleted, err); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return kube.Explain(err, "delete configmap "+m.Name+" in "+p.Namespace)
		}
	}
	return nil
}

func ownedBy(o metav1.Object, lease types.UID) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == lease })
}

// WaitGone waits until the proxy has no pod any more, or none but those that linger: deleted, and not ending. A pod that is not deleted yet is
// waited for as long again: the garbage collector of a busy cluster takes its time.
func (p *Proxy) WaitGone(ctx context.Context) (lingering []string, err error) {
	lingering, err = p.waitGone(ctx)
	if errors.Is(err, errUndeleted) {
		lingering, err = p.waitGone(ctx)
	}
	return lingering, err
}

// errUndeleted says that nobody has deleted a pod whose Deployment is.
var errUndeleted = errors.New("is not deleted")

func (p *Proxy) waitGone(ctx context.Context) (lingering []string, err error) {
	bounded, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	var left []corev1.Pod
	var answer error
	asked := false
	err = wait.PollUntilContextCancel(bounded, Poll, true, func(ctx context.Context) (bool, error) {
		pods, err := p.Pods(ctx)
		if ctx.Err() == nil && (!asked || !kube.GaveUp(err)) { // what was not asked any more changes nothing of the last answer
			left, answer, asked = pods, err, true
		}
		return len(pods) == 0 && err == nil, kube.IgnoreTransient(err)
	})
	switch {
	case err == nil, ctx.Err() != nil, !errors.Is(err, context.DeadlineExceeded):
		return nil, err
	case answer != nil:
		return nil, answer // whether they are gone is not known
	}
	for _, pod := range left {
		if pod.DeletionTimestamp == nil {
			return nil, hint.Newf(hint.Other, fmt.Sprintf("the cluster's garbage collector has not come to it; kubectl delete pod %s -n %s%s", pod.Name, p.Namespace, p.Kube.Flags),
				"the proxy's pod %s in %s %w", pod.Name, p.Namespace, errUndeleted)
		}
		lingering = append(lingering, pod.Name)
	}
	return lingering, nil
}
