package swap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/undo"
)

const (
	// keeperTimeout is how long a keeper may take to be Ready once the proxy is: both were started at once.
	keeperTimeout = 30 * time.Second
	// keeperGoneTimeout bounds the wait for the garbage collector, when all else is given back.
	keeperGoneTimeout = 10 * time.Second
)

// SelfRestore is whether a swap is given back by itself when this machine is gone.
type SelfRestore string

// The values of SelfRestore. The zero value is SelfRestoreAuto.
const (
	SelfRestoreAuto   SelfRestore = "auto"   // if it can be; what keeps it from that is said
	SelfRestoreAlways SelfRestore = "always" // or there is no swap
	SelfRestoreNever  SelfRestore = "never"
)

// Keeper is the pod that gives a swap back when the laptop is gone, and its rights.
type Keeper struct {
	// Account, Role and Binding are bridge's own; nil with the account that an admin has prepared.
	Account    *corev1.ServiceAccount
	Role       *rbacv1.Role
	Binding    *rbacv1.RoleBinding
	Deployment *appsv1.Deployment
}

// AddKeeper adds a keeper to a plan, which is not made yet, if the cluster lets this user have one: with a Role of its own, or
// with the account that is prepared. It asks and tries only. With SelfRestoreAlways it is an error (code Forbidden) if there
// can be none.
func (p *Plan) AddKeeper(ctx context.Context, k *kube.Client, o Options) error {
	seconds := int32(o.RestoreAfter / time.Second)
	p.Lease.Spec.LeaseDurationSeconds = &seconds
	if o.SelfRestore == SelfRestoreNever {
		p.noKeeper = "--self-restore never"
		return nil
	}
	ns := p.Undo.Target.Namespace
	lacking, err := rights.Missing(ctx, k, rights.Keeping(p.target.Kind))
	if err != nil {
		return err
	}
	sets, err := p.replicaSets(ctx, k)
	if err != nil {
		return err
	}
	if len(lacking) == 0 {
		mute, err := rights.Missing(ctx, k, rights.Telling())
		if err != nil {
			return err
		}
		keeper := newKeeper(p, sets, len(mute) == 0)
		_, err = k.Clientset.RbacV1().Roles(ns).Create(ctx, keeper.Role, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: proxypod.FieldManager})
		if err == nil || apierrors.IsAlreadyExists(err) { // an earlier swap's is on its way out
			return p.add(keeper)
		}
		if kube.Transient(err) {
			return kube.Explain(err, "try a Role in "+ns)
		}
		p.noKeeper = "its Role is refused: " + err.Error()
	} else {
		p.noKeeper = "your account may not " + rightList(lacking)
	}
	_, err = k.Clientset.CoreV1().ServiceAccounts(ns).Get(ctx, rights.KeeperAccount, metav1.GetOptions{})
	switch {
	case err == nil:
		return p.add(&Keeper{Deployment: proxypod.Keeper(p.Proxy, p.container, rights.KeeperAccount, sets)})
	case kube.Transient(err):
		return kube.Explain(err, "get serviceaccount "+rights.KeeperAccount+" in "+ns)
	case apierrors.IsNotFound(err):
		p.noKeeper += ", and no admin has prepared " + rights.KeeperAccount
	default:
		p.noKeeper += ", nor see whether an admin has prepared " + rights.KeeperAccount
	}
	if o.SelfRestore == SelfRestoreAlways {
		return hint.Newf(hint.Forbidden, "ask an admin for deploy/keeper.yaml, or swap without --self-restore always",
			"nobody would give %s in %s back when this machine is gone: %s", p.Undo.Target, ns, p.noKeeper)
	}
	return nil
}

func rightList(list []rights.Right) string {
	var names []string
	for _, r := range list {
		names = append(names, r.String())
	}
	return strings.Join(names, ", ")
}

// add puts the keeper into the plan, its objects into the record and its name on the Lease.
func (p *Plan) add(k *Keeper) error {
	p.Keeper, p.noKeeper = k, ""
	name, ns := k.Deployment.Name, k.Deployment.Namespace
	created := func(apiVersion, kind string) {
		p.Undo.Created = append(p.Undo.Created, Object{APIVersion: apiVersion, Kind: kind, Namespace: ns, Name: name})
	}
	if k.Role != nil {
		created("v1", "ServiceAccount")
		created(rbacv1.SchemeGroupVersion.String(), "Role")
		created(rbacv1.SchemeGroupVersion.String(), "RoleBinding")
	}
	created("apps/v1", "Deployment")
	record, err := p.Undo.Marshal()
	if err != nil {
		return err
	}
	p.Lease.Annotations[proxypod.UndoAnnotation] = record
	p.Lease.Annotations[proxypod.KeeperAnnotation] = name
	return nil
}

// replicaSets are the target's, to which the deployment controller will copy the record, by name, for a keeper that may not list them; none of
// another kind's.
func (p *Plan) replicaSets(ctx context.Context, k *kube.Client) (names []string, err error) {
	if !p.Undo.Target.Copied() {
		return nil, nil
	}
	list, err := k.Clientset.AppsV1().ReplicaSets(p.Undo.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, kube.Explain(err, "list replicasets in "+p.Undo.Target.Namespace)
	}
	for _, rs := range list.Items {
		if o := metav1.GetControllerOf(&rs); o != nil && string(o.UID) == p.Undo.Target.UID {
			names = append(names, rs.Name)
		}
	}
	return names, nil
}

// newKeeper is a keeper with a Role that names each object whose name is known before: what internal/keeper does, and nothing else. tells is
// whether it may tell in the target's events that it has given back.
func newKeeper(p *Plan, replicaSets []string, tells bool) *Keeper {
	name := proxypod.KeeperName(p.Lease.Name)
	meta := metav1.ObjectMeta{
		Name: name, Namespace: p.Lease.Namespace,
		Labels: map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy, proxypod.KeeperLabel: proxypod.LabelValue(p.Lease.Name)},
	}
	rule := func(group, resource string, names []string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names, Verbs: verbs}
	}
	target, resource := []string{p.Undo.Target.Name}, p.Undo.Target.Resource()
	rules := []rbacv1.PolicyRule{
		rule("coordination.k8s.io", "leases", []string{p.Lease.Name}, "get", "patch", "delete"),
	}
	if p.Undo.Replaces() {
		rules = append(rules, rule(p.Undo.Target.Group(), resource+"/scale", target, "get", "patch"))
	}
	rules = append(rules,
		rule(p.Undo.Target.Group(), resource, target, "get", "patch"), // the record's copy, the field ownership; is it Ready
		rule("apps", "deployments", []string{p.Proxy.Name}, "get", "delete"))
	if len(p.Services) > 0 {
		rules = append(rules, rule("", "services", p.Services, "get", "patch"))
	}
	if p.Undo.Target.Copied() {
		rules = append(rules, rule("apps", "replicasets", nil, "list", "patch")) // one of a rollout meanwhile has no name yet
	}
	if tells {
		rules = append(rules, rule("", "events", nil, "create"))
	}
	return &Keeper{
		Account: &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta},
		Role: &rbacv1.Role{
			TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: meta, Rules: rules,
		},
		Binding: &rbacv1.RoleBinding{
			TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"}, ObjectMeta: meta,
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: p.Lease.Namespace}},
		},
		Deployment: proxypod.Keeper(p.Proxy, p.container, name, replicaSets),
	}
}

// Restores says who gives the swap back when this machine is gone, for people.
func (p *Plan) Restores(k *kube.Client) string {
	if p.noKeeper == "" {
		return fmt.Sprintf("%v after this machine's last heartbeat a keeper in the cluster gives it back by itself", proxypod.Duration(p.Lease))
	}
	return fmt.Sprintf("nobody gives it back when this machine is gone (%s): then start bridge again, or run `%s`", p.noKeeper, Command(k, p.Undo.Target))
}

// noKeeper says why a swap that was made is not given back by itself; "" when it is.
func noKeeper(ctx context.Context, k *kube.Client, l *coordinationv1.Lease) string {
	name := l.Annotations[proxypod.KeeperAnnotation]
	if name == "" {
		return "it has no keeper"
	}
	d, err := k.Clientset.AppsV1().Deployments(l.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return "whether its keeper is ready cannot be read"
	case err != nil || d.Status.ReadyReplicas == 0:
		return "its keeper is not ready"
	}
	return ""
}

// create makes the keeper's objects, owned by the Lease.
func (kp *Keeper) create(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease) error {
	options := metav1.CreateOptions{FieldManager: proxypod.FieldManager}
	if kp.Role != nil {
		account, role, binding := kp.Account.DeepCopy(), kp.Role.DeepCopy(), kp.Binding.DeepCopy()
		for _, o := range []metav1.Object{account, role, binding} {
			o.SetOwnerReferences(proxypod.OwnedBy(lease))
		}
		for _, create := range []func() error{
			func() error {
				_, err := k.Clientset.CoreV1().ServiceAccounts(lease.Namespace).Create(ctx, account, options)
				return err
			},
			func() error {
				_, err := k.Clientset.RbacV1().Roles(lease.Namespace).Create(ctx, role, options)
				return err
			},
			func() error {
				_, err := k.Clientset.RbacV1().RoleBindings(lease.Namespace).Create(ctx, binding, options)
				return err
			},
		} {
			if err := proxypod.Afresh(ctx, create); err != nil {
				return kube.Explain(err, "create "+kp.Deployment.Name+" in "+lease.Namespace)
			}
		}
	}
	return proxypod.CreateDeployment(ctx, k, lease, kp.Deployment)
}

// startKeeper creates the keeper, if there is to be one.
func (s *Swap) startKeeper(ctx context.Context) error {
	if s.Plan.Keeper == nil {
		return nil
	}
	return s.unkept(ctx, s.Plan.Keeper.create(ctx, s.Kube, s.claim.lease))
}

// awaitKeeper waits until the keeper has proven that it can give back.
func (s *Swap) awaitKeeper(ctx context.Context) error {
	if s.Plan.Keeper == nil {
		return nil
	}
	ready, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	err := proxypod.KeeperOf(s.Kube, s.claim.lease).WaitReady(ready)
	if err == nil {
		s.Say("keeper: ready")
	}
	return s.unkept(ctx, err)
}

// unkept says that there is no keeper, and why; with SelfRestoreAlways that ends the swap, and where nothing but the keeper made
// it one in mode replace.
func (s *Swap) unkept(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || s.SelfRestore == SelfRestoreAlways {
		return err
	}
	if s.Plan.forKeeper {
		return hint.Newf(hint.ProxyNotReady, "--mode standby has the original go on; --mode replace stops it all the same",
			"nobody would give %s in %s back when this machine is gone: %w", s.Plan.Undo.Target, s.claim.lease.Namespace, err)
	}
	s.Plan.Keeper, s.Plan.noKeeper = nil, err.Error()
	s.Say("note: " + s.Plan.Restores(s.Kube))
	return nil
}

// awaitKeeperGone waits until the garbage collector has taken the keeper away, which the Lease owned, as far as this user
// can see.
func awaitKeeperGone(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease) {
	name := lease.Annotations[proxypod.KeeperAnnotation]
	if name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperGoneTimeout)
	defer cancel()
	ns := lease.Namespace
	for _, get := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := k.Clientset.RbacV1().RoleBindings(ns).Get(ctx, name, metav1.GetOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := k.Clientset.RbacV1().Roles(ns).Get(ctx, name, metav1.GetOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := k.Clientset.CoreV1().ServiceAccounts(ns).Get(ctx, name, metav1.GetOptions{})
			return err
		},
	} {
		awaitGone(ctx, get)
	}
	_, _ = proxypod.KeeperOf(k, lease).WaitGone(ctx)
}

// awaitGone waits until what get reads is gone, or may not be seen.
func awaitGone(ctx context.Context, get func(context.Context) error) {
	_ = wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		err := get(ctx)
		return err != nil && !kube.Transient(err), nil
	})
}

// servesSince says since when the original answers again after a swap whose Lease was created at begun: the time that the longest Ready of its pods has been so. It is ""
// when none is, one was before that, begun is not known, or the pods cannot be read.
func servesSince(ctx context.Context, k *kube.Client, target Object, begun time.Time) string {
	if begun.IsZero() {
		return ""
	}
	d, err := k.Workload(ctx, target.Namespace, targetOf(target))
	if err != nil || string(d.UID) != target.UID || k.Complete(ctx, d) != nil {
		return ""
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Selector)
	if err != nil {
		return ""
	}
	pods, err := k.Clientset.CoreV1().Pods(target.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return ""
	}
	var since time.Time
	for _, p := range pods.Items {
		if !proxypod.Ready(p) || p.Labels[proxypod.ProxyLabel] != "" {
			continue
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && (since.IsZero() || c.LastTransitionTime.Time.Before(since)) {
				since = c.LastTransitionTime.Time
			}
		}
	}
	if !since.After(begun) {
		return "" // it has never ceased to: its pods stood by, or are another's
	}
	return "; the original serves again since " + since.Local().Format("15:04:05 on 2 Jan")
}

// GivenBackMeanwhile tells whether err, of Swap.Run, is that the swap was given back in this machine's absence, and nobody's
// wish that was seen.
func GivenBackMeanwhile(err error) bool {
	var taken *proxypod.TakenError
	return errors.As(err, &taken) && !taken.Share && (taken.By == "" || strings.HasPrefix(taken.By, undo.RestoreBy+"keeper "))
}
