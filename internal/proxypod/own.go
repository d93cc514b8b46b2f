package proxypod

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// LeaseSeconds is the duration of bridge's Leases: after this long without a heartbeat one counts as
// left behind. HeartbeatPeriod renews it six times as often, so one slow answer means nothing.
const (
	LeaseSeconds    = 60
	HeartbeatPeriod = LeaseSeconds * time.Second / 6
)

// cleanUpTimeout bounds removing a proxy of one's own.
const cleanUpTimeout = time.Minute

// Own is a proxy pod that stands in for nothing: the cluster's end of connect.
type Own struct {
	Kube *kube.Client
	// Image is the proxy's; empty carries it on the image of a pod that runs in the namespace.
	Image string
	// Arch of a carried proxy; empty asks the cluster.
	Arch    string
	Owner   string // "user@host"
	Version string
	// ReadyTimeout is how long the pod may take to be Ready.
	ReadyTimeout time.Duration
	OnState      func(tunnel.State)
	Say          func(string)
	Log          *slog.Logger
}

// Run starts the pod, opens the tunnel to it, calls use, and removes everything when use returns or
// ctx ends. It returns use's error, or why there was no tunnel for it.
func (o *Own) Run(ctx context.Context, use func(ctx context.Context, t *tunnel.Client) error) error {
	key, err := tunnel.NewKey()
	if err != nil {
		return err
	}
	template, err := o.template(ctx)
	if err != nil {
		return err
	}
	lease := OwnLease(o.Kube.Namespace, o.Owner)
	src := Source{Image: o.Image, Arch: o.Arch}
	var parts []carry.Part
	if src.Image == "" {
		if src.Arch == "" {
			src.Arch = Arch(ctx, o.Kube, template.Spec, nil)
		}
		if parts, err = carry.Parts(src.Arch); err != nil {
			return err
		}
		src.ConfigMaps = ConfigMapNames(lease.Name, parts)
	}
	ports := FreePorts(&template.Spec, nil)
	d, _, err := Deployment(Spec{
		Name: lease.Name, Namespace: lease.Namespace, Lease: lease.Name,
		Template: template, Container: template.Spec.Containers[0].Name,
		Source: src, Ports: ports, Client: key.Fingerprint(),
	})
	if err != nil {
		return err
	}
	created, err := o.Kube.Clientset.CoordinationV1().Leases(lease.Namespace).Create(ctx, lease, metav1.CreateOptions{FieldManager: FieldManager})
	if err != nil {
		return kube.Explain(err, "create a Lease in "+lease.Namespace)
	}
	p := &Proxy{Kube: o.Kube, Namespace: lease.Namespace, Lease: lease.Name, Port: ports.Tunnel}
	o.Say("starting a proxy pod in " + lease.Namespace)
	err = Create(ctx, o.Kube, created, ConfigMaps(lease.Namespace, lease.Name, parts), d)
	if err == nil {
		err = o.hold(ctx, p, created, key, use)
	} else if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		err = hint.New(0, err, "connect needs to create a deployment and configmaps in "+lease.Namespace+": the built-in role edit has that")
	}
	o.Say("removing the proxy pod")
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	if e := Remove(bounded, o.Kube, lease.Namespace, lease.Name); e != nil {
		err = errors.Join(err, hint.Newf(hint.RestoreIncomplete,
			fmt.Sprintf("finish with: bridge restore connect %s -n %s", lease.Name, lease.Namespace), "the proxy is not removed: %w", e))
	}
	return err
}

// hold runs the tunnel and the heartbeat beside use.
func (o *Own) hold(ctx context.Context, p *Proxy, lease *coordinationv1.Lease, key tunnel.Key, use func(context.Context, *tunnel.Client) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &tunnel.Client{Carrier: p.Carrier, Key: key, Version: o.Version, OnState: o.OnState, Log: o.Log}
	var group errgroup.Group
	group.Go(func() error {
		if err := t.Run(ctx); ctx.Err() == nil {
			cancel(hint.Newf(hint.TunnelLost, "", "the tunnel is lost: %w", err))
		}
		return nil
	})
	group.Go(func() error {
		if err := Heartbeat(ctx, o.Kube, lease, HeartbeatPeriod); err != nil {
			cancel(fmt.Errorf("connect ends: %w", err))
		}
		return nil
	})
	ready, stop := context.WithTimeout(ctx, o.ReadyTimeout)
	err := p.WaitReady(ready)
	if err == nil {
		err = t.WaitReady(ready)
	}
	stop()
	if err == nil {
		err = use(ctx, t)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	cancel(nil)
	return errors.Join(err, group.Wait())
}

// OwnLease is a new claim of kind connect.
func OwnLease(namespace, owner string) *coordinationv1.Lease {
	seconds := int32(LeaseSeconds)
	now := metav1.NowMicro()
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: "bridge-connect-" + strings.ToLower(rand.Text()[:8]), Namespace: namespace,
			Labels:      map[string]string{ManagedByLabel: ManagedBy, KindLabel: "connect"},
			Annotations: map[string]string{TargetAnnotation: "connect"},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &owner, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now},
	}
}

// Remove removes a proxy of kind connect, and its Lease last.
func Remove(ctx context.Context, k *kube.Client, namespace, lease string) error {
	p := &Proxy{Kube: k, Namespace: namespace, Lease: lease}
	if err := p.Delete(ctx); err != nil {
		return err
	}
	err := k.Clientset.CoordinationV1().Leases(namespace).Delete(ctx, lease, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return kube.Explain(err, "delete lease "+lease+" in "+namespace)
}

// template is a pod of one container. A carried proxy borrows the image, and what is needed to pull
// it, from a pod that runs already: the nodes have it.
func (o *Own) template(ctx context.Context) (corev1.PodTemplateSpec, error) {
	no, yes := false, true
	t := corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		AutomountServiceAccountToken: &no,
		EnableServiceLinks:           &no,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:   &yes,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{Name: "proxy"}},
	}}
	if o.Image != "" {
		return t, nil
	}
	ns := o.Kube.Namespace
	list, err := o.Kube.Clientset.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return t, kube.Explain(err, "list pods in "+ns)
	}
	i := slices.IndexFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil && p.Labels[ProxyLabel] == ""
	})
	if i < 0 {
		return t, hint.Newf(hint.ProxyNotReady, "name a namespace that has one with -n, or an image of the proxy with --proxy-image",
			"no pod runs in %s whose image the proxy could be carried on", ns)
	}
	donor := list.Items[i].Spec
	t.Spec.Containers[0].Image = donor.Containers[0].Image
	t.Spec.ImagePullSecrets = donor.ImagePullSecrets
	t.Spec.Tolerations = donor.Tolerations
	return t, nil
}
