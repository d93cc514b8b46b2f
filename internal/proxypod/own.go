package proxypod

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// cleanUpTimeout bounds removing a proxy of one's own.
const cleanUpTimeout = 3 * goneTimeout

// Own is a proxy pod that stands in for nothing: the cluster's end of connect or forward, or one to dial or look by.
type Own struct {
	Kube *kube.Client
	// Kind is KindConnect, KindForward, KindDiagnose or KindEnv.
	Kind string
	// Like is the workload whose container the pod is to be like; nil for the others.
	Like *Like
	// Image is the proxy's; empty carries it on the image of a pod that runs in the namespace.
	Image string
	// Arch of a carried proxy; empty asks the cluster.
	Arch    string
	Owner   string // "user@host"
	Version string
	// ReadyTimeout is how long the pod may take to be Ready.
	ReadyTimeout time.Duration
	ResumeWindow time.Duration // as tunnel.Client's
	// Pings has the pod be let send the laptop's echo requests, and Allow are link-local and metadata addresses that it dials.
	Pings bool
	Allow []netip.Prefix
	// PodProxy has the tunnel go through the API server's proxy to the pod where that works (Carriers).
	PodProxy bool
	// OnCreate is told the Lease's name, by which bridge restore removes what is left after a kill.
	OnCreate func(lease string)
	// Why adds to the error of a proxy that is not Ready, while its pod is still there, what is found of it; nil adds nothing.
	Why func(ctx context.Context, err error) error
	// More is what else the heartbeat writes.
	More More
	Say  func(string)
	Log  *slog.Logger
}

// Run starts the pod, opens the tunnel to it, calls use, and removes everything when use returns or
// ctx ends. It returns use's error, or why there was no tunnel for it. Where a pod with the sysctl that pings take is refused it starts one without.
func (o *Own) Run(ctx context.Context, use func(ctx context.Context, p *Proxy, t *tunnel.Client) error) error {
	err := o.run(ctx, use)
	refused := new(pingsRefusedError)
	if !errors.As(err, &refused) || hint.CodeOf(err) == hint.RestoreIncomplete || ctx.Err() != nil {
		return err
	}
	o.Say(refused.note())
	without := *o
	without.Pings = false
	return without.run(ctx, use)
}

func (o *Own) run(ctx context.Context, use func(ctx context.Context, p *Proxy, t *tunnel.Client) error) error {
	key, err := tunnel.NewKey()
	if err != nil {
		return err
	}
	template, container, donors, err := o.template(ctx)
	if err != nil {
		return err
	}
	lease := OwnLease(o.Kind, o.Kube.Namespace, o.Owner)
	src := Source{Image: o.Image, Arch: o.Arch}
	var parts []carry.Part
	if src.Image == "" {
		if src.Arch == "" {
			src.Arch = Arch(ctx, o.Kube, template.Spec, donors)
		}
		if parts, err = carry.Parts(src.Arch); err != nil {
			return err
		}
		src.ConfigMaps = ConfigMapNames(lease.Name, parts)
	}
	ports := FreePorts(&template.Spec, nil, o.PodProxy)
	d, notes, err := Deployment(Spec{
		Name: lease.Name, Namespace: lease.Namespace, Lease: lease.Name,
		Template: template, Container: container, Alone: o.Like != nil,
		Source: src, Ports: ports, Client: key.Fingerprint(),
		LimitCPU: WantsCPULimit(ctx, o.Kube, lease.Namespace), Pings: o.Pings, Allow: o.Allow,
	})
	if err != nil {
		return err
	}
	created, err := o.createLease(ctx, lease)
	if err != nil {
		return err
	}
	if o.OnCreate != nil {
		o.OnCreate(lease.Name)
	}
	for _, n := range notes {
		o.Say("note: " + n)
	}
	p := &Proxy{Kube: o.Kube, Namespace: lease.Namespace, Lease: lease.Name, pings: o.Pings}
	o.Say("starting a proxy pod in " + lease.Namespace)
	if ports.PodProxy != 0 {
		o.Say(ports.PodProxyNote())
	}
	err = o.pingsRefused(Create(ctx, o.Kube, created, ConfigMaps(lease.Namespace, lease.Name, parts), d))
	if err == nil {
		err = o.hold(ctx, p, NewCarriers(p, ports, o.Say), created, key, func(ctx context.Context, t *tunnel.Client) error { return use(ctx, p, t) })
	} else if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		err = hint.New(0, err, o.Kind+" needs to create a deployment and configmaps in "+lease.Namespace+": the built-in role edit has that")
	}
	o.Say("removing the proxy pod")
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	if e := Remove(bounded, o.Kube, o.Kind, lease.Namespace, lease.Name, nil, o.Say); e != nil && hint.CodeOf(e) != hint.NotFound {
		return hint.New(hint.RestoreIncomplete, errors.Join(err, fmt.Errorf("the proxy is not removed: %w", e)),
			"finish with: "+RemoveCommand(o.Kube, o.Kind, lease.Namespace, lease.Name))
	}
	return err
}

// pingsRefusedError is that a pod with the sysctl for pings is not to be had.
type pingsRefusedError struct{ error }

// Unwrap returns who refuses it.
func (e *pingsRefusedError) Unwrap() error { return e.error }

func (e *pingsRefusedError) note() string {
	allow := "the rule has to except it"
	switch text := e.Error(); {
	case strings.Contains(text, sysctlForbidden):
		allow = "the kubelet's --allowed-unsafe-sysctls " + pingSysctl
	case strings.Contains(text, sandboxFailed):
		allow = "a node whose kernel and container runtime can set it"
	}
	return hint.Printable(fmt.Sprintf("note: without the sysctl %s, and so without ping where the container runtime does not let all pods ping: a pod that has it is refused: %v; what would allow it: %s",
		pingSysctl, e.error, allow))
}

// pingsRefused marks err, why there is no pod, if it may be for the sysctl. Admission has no word of its own for that.
func (o *Own) pingsRefused(err error) error {
	if o.Pings && err != nil && (errors.As(err, new(*kube.Unhealthy)) || errors.As(err, new(*apierrors.StatusError))) && mentionsPings(err.Error()) {
		return &pingsRefusedError{err}
	}
	return err
}

// mentionsPings tells whether a refusal may be for the sysctl.
func mentionsPings(text string) bool {
	return strings.Contains(strings.ToLower(text), "sysctl") || strings.Contains(text, pingFile)
}

// createLease creates the Lease whatever becomes of ctx, and tries again when the answer was lost:
// its name is known nowhere else.
func (o *Own) createLease(ctx context.Context, lease *coordinationv1.Lease) (created *coordinationv1.Lease, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	leases := o.Kube.Clientset.CoordinationV1().Leases(lease.Namespace)
	for try := 0; ; try++ {
		created, err = leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: FieldManager})
		if try > 0 && apierrors.IsAlreadyExists(err) {
			created, err = leases.Get(ctx, lease.Name, metav1.GetOptions{})
		}
		if err == nil || try == 1 || !kube.Transient(err) {
			return created, kube.Explain(err, "create a Lease in "+lease.Namespace)
		}
	}
}

// hold runs the tunnel and the heartbeat beside use. It returns nil when outer ends.
func (o *Own) hold(outer context.Context, p *Proxy, c *Carriers, lease *coordinationv1.Lease, key tunnel.Key, use func(context.Context, *tunnel.Client) error) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	t := &tunnel.Client{Carrier: c.Dial, Key: key, Version: o.Version, ResumeWindow: o.ResumeWindow, OnState: c.OnState, Log: o.Log}
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	running.Go(func() {
		if err := t.Run(ctx); ctx.Err() == nil {
			cancel(hint.Newf(hint.TunnelLost, "", "the tunnel is lost: %w", err))
		}
	})
	running.Go(func() {
		if err := Heartbeat(ctx, o.Kube, lease, t.Watch, o.More, o.Say); err != nil {
			cancel(fmt.Errorf("%s ends: %w", o.Kind, err))
		}
	})
	ready, stop := context.WithTimeout(ctx, o.ReadyTimeout)
	err := o.pingsRefused(p.WaitReady(ready))
	if err != nil && o.Why != nil && !errors.As(err, new(*pingsRefusedError)) {
		err = o.Why(ctx, err)
	}
	if err == nil {
		err = t.WaitReady(ready)
	}
	stop()
	if err == nil {
		err = use(ctx, t)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if outer.Err() != nil {
		err = nil // the user's own wish
	}
	cancel(nil)
	running.Wait()
	return err
}

// RemoveCommand is the command line that removes such a pod.
func RemoveCommand(k *kube.Client, kind, namespace, name string) string {
	return fmt.Sprintf("bridge restore %s %s -n %s%s", kind, name, namespace, k.Flags)
}

// OwnLease is a new claim of kind connect, forward or env.
func OwnLease(kind, namespace, owner string) *coordinationv1.Lease {
	seconds := int32(LeaseSeconds)
	now := metav1.NowMicro()
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: "bridge-" + kind + "-" + strings.ToLower(rand.Text()[:8]), Namespace: namespace,
			Labels:      map[string]string{ManagedByLabel: ManagedBy, KindLabel: kind},
			Annotations: map[string]string{TargetAnnotation: kind},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &owner, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now},
	}
}

// Remove removes a proxy of kind connect, forward or env, and its Lease last, unless check, which may be nil, refuses that Lease. The error has the code
// NotFound when no such Lease is there, or it is of another kind.
func Remove(ctx context.Context, k *kube.Client, kind, namespace, name string, check func(*coordinationv1.Lease) error, say func(string)) error {
	leases := k.Clientset.CoordinationV1().Leases(namespace)
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if err == nil && lease.Labels[KindLabel] != kind || apierrors.IsNotFound(err) {
		return hint.Newf(hint.NotFound, "bridge status -n "+namespace+k.Flags+" lists what there is", "there is no %s %q in %s", kind, name, namespace)
	}
	if err != nil {
		return kube.Explain(err, "get lease "+name+" in "+namespace)
	}
	if check != nil {
		if err := check(lease); err != nil {
			return err
		}
	}
	p := &Proxy{Kube: k, Namespace: namespace, Lease: name}
	if err := p.Delete(ctx, lease.UID, say); err != nil {
		return err
	}
	err = leases.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return kube.Explain(err, "delete lease "+name+" in "+namespace)
}

// template is the pod's, and the container in it that becomes the proxy. donors run on the nodes that have its image.
func (o *Own) template(ctx context.Context) (t corev1.PodTemplateSpec, container string, donors []corev1.Pod, err error) {
	if o.Like != nil {
		donors, err = o.Like.pods(ctx, o.Kube)
		return o.Like.Template, o.Like.Container.Name, donors, err
	}
	t, donors, err = o.bare(ctx)
	return t, t.Spec.Containers[0].Name, donors, err
}

// bare is a pod of one container. A carried proxy borrows the image, and what is needed to pull
// it, from a pod that runs already: the nodes have it. donors is that pod, if any.
func (o *Own) bare(ctx context.Context) (t corev1.PodTemplateSpec, donors []corev1.Pod, err error) {
	no, yes := false, true
	t = corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		AutomountServiceAccountToken: &no,
		EnableServiceLinks:           &no,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:   &yes,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{Name: "proxy"}},
	}}
	if o.Image != "" {
		return t, nil, nil
	}
	ns := o.Kube.Namespace
	list, err := o.Kube.Clientset.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return t, nil, kube.Explain(err, "list pods in "+ns)
	}
	i := slices.IndexFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil && p.Labels[ProxyLabel] == "" && p.Labels[KeeperLabel] == ""
	})
	if i < 0 {
		// A namespace that is not there has an empty list of pods. Who may not ask gets the other answer.
		if _, err := o.Kube.Clientset.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return t, nil, hint.Newf(hint.NotFound, "name another one with -n: kubectl get namespaces"+o.Kube.Flags, "there is no namespace %s", ns)
		}
		return t, nil, hint.Newf(hint.ProxyNotReady, "name a namespace that has one with -n, or an image of the proxy with --proxy-image",
			"no pod runs in %s whose image the proxy could be carried on", ns)
	}
	donor := list.Items[i].Spec
	t.Spec.Containers[0].Image = donor.Containers[0].Image
	t.Spec.ImagePullSecrets = donor.ImagePullSecrets
	t.Spec.Tolerations = donor.Tolerations
	return t, list.Items[i : i+1], nil
}
