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

	"bridge/internal/kube"
)

// OwnedBy names the Lease as owner, so that deleting it removes what is ours. It is no controller
// and blocks nothing.
func OwnedBy(l *coordinationv1.Lease) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: "coordination.k8s.io/v1", Kind: "Lease", Name: l.Name, UID: l.UID}}
}

// Create creates the proxy's ConfigMaps and its Deployment, owned by the Lease.
func Create(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, maps []*corev1.ConfigMap, d *appsv1.Deployment) error {
	options := metav1.CreateOptions{FieldManager: FieldManager}
	for _, m := range maps {
		m = m.DeepCopy()
		m.OwnerReferences = OwnedBy(lease)
		err := OnceFree(ctx, func() error {
			_, err := k.Clientset.CoreV1().ConfigMaps(m.Namespace).Create(ctx, m, options)
			return err
		})
		if err != nil {
			return kube.Explain(err, "create configmap "+m.Name+" in "+m.Namespace)
		}
	}
	return CreateDeployment(ctx, k, lease, d)
}

// CreateDeployment creates d, owned by the Lease.
func CreateDeployment(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, d *appsv1.Deployment) error {
	d = d.DeepCopy()
	d.OwnerReferences = OwnedBy(lease)
	err := OnceFree(ctx, func() error {
		_, err := k.Clientset.AppsV1().Deployments(d.Namespace).Create(ctx, d, metav1.CreateOptions{FieldManager: FieldManager})
		return err
	})
	return kube.Explain(err, "create deployment "+d.Name+" in "+d.Namespace)
}

// garbageTimeout is how long the garbage collector may take for what an earlier Lease of the same name owned.
const garbageTimeout = 15 * time.Second

// OnceFree calls create until the name that it creates is free: what an earlier Lease owned goes by garbage collection, a
// moment after it.
func OnceFree(ctx context.Context, create func() error) error {
	bounded, cancel := context.WithTimeout(ctx, garbageTimeout)
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(bounded, Poll, true, func(context.Context) (bool, error) {
		last = create()
		if apierrors.IsAlreadyExists(last) {
			return false, nil
		}
		return true, last
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

// Delete deletes the proxy's Deployment, waits until its pods are gone (they drain), and deletes
// its ConfigMaps: those that the Lease with this UID owns. What is gone already is fine, and what an
// earlier Lease of the name owned goes by garbage collection.
func (p *Proxy) Delete(ctx context.Context, lease types.UID) error {
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
	if err := p.WaitGone(ctx); err != nil {
		return err
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
		if err := maps.Delete(ctx, m.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return kube.Explain(err, "delete configmap "+m.Name+" in "+p.Namespace)
		}
	}
	return nil
}

func ownedBy(o metav1.Object, lease types.UID) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == lease })
}

// WaitGone waits until the proxy has no pod any more.
func (p *Proxy) WaitGone(ctx context.Context) error {
	var left []string
	err := wait.PollUntilContextCancel(ctx, Poll, true, func(ctx context.Context) (bool, error) {
		pods, err := p.list(ctx)
		if err != nil {
			return false, kube.IgnoreTransient(err)
		}
		left = nil
		for _, pod := range pods {
			left = append(left, pod.Name)
		}
		return len(left) == 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the proxy's pods have not ended: %s in %s", strings.Join(left, ", "), p.Namespace)
	}
	return err
}
