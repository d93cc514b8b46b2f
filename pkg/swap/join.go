package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/undo"
)

// madeTimeout is how long a swap that is being made is waited for: an image may have to be pulled for it first.
const madeTimeout = 5 * time.Minute

// Join plans to share the swap that others have of the workload; nil when there is none, or o has no requests of its own that could be
// shared. It waits for one that is being made, and for the lapse of whom it displaces: with o.TakeOver of those who have the same requests, and
// where there is no place left of one who is gone.
// The error has the code Conflict, with the owner, when somebody has the same requests, and says which bridge is too old when two cannot share.
// It changes nothing: Run does.
func (s *Session) Join(ctx context.Context, t kube.Target, o Options, src proxypod.Source, say func(string)) (*Plan, error) {
	if !shareable(o.Choice) {
		return nil, nil
	}
	leases := s.kube.Clientset.CoordinationV1().Leases(s.kube.Namespace)
	begin := time.Now()
	for waited := false; ; waited = true {
		lease, err := leases.Get(ctx, leaseName(t), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, kube.Explain(err, "get the swap's Lease in "+s.kube.Namespace)
		}
		u, l, err := s.joinable(lease, t, o)
		if err != nil {
			return nil, err
		}
		claiming := l.Claiming(o.Choice)
		if len(claiming) > 0 && !o.TakeOver {
			return nil, errOverlap(s.kube, u.Target, &member.OverlapError{Other: claiming[0]}, false)
		}
		if !l.Made {
			if time.Since(begin) > madeTimeout {
				return nil, errHeld(s.kube, lease, u.Target)
			}
			if !waited {
				say(fmt.Sprintf("%s in %s is being swapped by %s: waiting, to share it", u.Target, lease.Namespace, holder(lease)))
			}
			if err := sleep(ctx, time.Second); err != nil {
				return nil, context.Cause(ctx)
			}
			continue
		}
		if err := s.makeRoom(ctx, lease, u, l, claiming, say); errors.Is(err, errChanged) {
			continue
		} else if err != nil {
			return nil, err
		}
		if err := rights.Swap.For(t.Kind).Check(ctx, s.kube, "swap "+t.String(), false); err != nil {
			return nil, err
		}
		// The last to leave moves callers back, whoever has moved them.
		lacking, err := rights.Missing(ctx, s.kube, slices.Concat(rights.Sharing(), rights.Moving()))
		if err != nil {
			return nil, err
		}
		if len(lacking) > 0 {
			return nil, hint.Newf(hint.Forbidden, "the built-in role edit has that", "%s in %s cannot be shared with %s: your account may not %s",
				u.Target, lease.Namespace, l.Owners(), rightList(lacking))
		}
		p, err := s.sharing(ctx, u, lease, l, o, src)
		if err != nil {
			return nil, err
		}
		s.lease, s.joins = lease, true
		return p, fault.After(fault.PlanRead, nil)
	}
}

// joinable are the record and the list of a swap that can be shared.
func (s *Session) joinable(lease *coordinationv1.Lease, t kube.Target, o Options) (*Undo, member.List, error) {
	target := Object{Kind: t.Kind.Object(), Namespace: lease.Namespace, Name: t.Name}
	l, err := membersOf(lease)
	var version *member.VersionError
	switch {
	case strings.HasPrefix(holder(lease), proxypod.RestoreBy), errors.Is(err, errUnshared):
		return nil, l, errHeld(s.kube, lease, target)
	case errors.As(err, &version):
		return nil, l, hint.Newf(hint.Conflict, version.Advice(holder(lease), o.Version), "%s in %s is swapped by %s: %w", target, lease.Namespace, holder(lease), err)
	}
	var u *Undo
	if err == nil {
		u, err = recordOf(lease)
	}
	if err == nil && targetOf(u.Target) != t {
		err = fmt.Errorf("undo record: is about %s", u.Target)
	}
	if err != nil {
		return nil, l, hint.Newf(hint.Conflict, "is this bridge older than theirs? to give it back: "+Command(s.kube, target), "%s in %s is swapped by %s: %w", target, lease.Namespace, holder(lease), err)
	}
	return u, l, nil
}

// sharing is the plan of one more member.
func (s *Session) sharing(ctx context.Context, u *Undo, lease *coordinationv1.Lease, l member.List, o Options, src proxypod.Source) (*Plan, error) {
	target := u.Target
	differs := func(flag, now, before string) error {
		return hint.Newf(hint.Conflict, "who shares a swap takes it as it is", "%s in %s is swapped by %s with another %s: %s and not %s",
			target, target.Namespace, l.Owners(), flag, before, now)
	}
	d, err := s.kube.Workload(ctx, target.Namespace, targetOf(target))
	if err := same(err, target, d.UID); err != nil {
		return nil, explainMoved(err, target)
	}
	if err := s.kube.Complete(ctx, d); err != nil {
		return nil, err
	}
	app, err := proxypod.AppContainer(d.Template, o.Container)
	if err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	declared, _ := podPorts(app, nil, nil)
	var have []Port
	for _, number := range l.Ports {
		p := Port{Remote: number, Local: number}
		if i := slices.IndexFunc(declared, func(q Port) bool { return q.at() == p.at() }); i >= 0 {
			p = declared[i]
		}
		have = append(have, p)
	}
	ports, err := mapPorts(o.Ports, have)
	if err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	switch {
	case u.Replaces(): // nobody writes such a list
		return nil, errHeld(s.kube, lease, target)
	case app.Name != l.Container:
		return nil, differs("--container", app.Name, l.Container)
	case remotes(ports) != remotes(have):
		return nil, differs("--port", remotes(ports), remotes(have))
	}
	p := &Plan{
		Undo: *u, Lease: lease, Ports: ports, Choice: o.Choice, Own: proxypod.Ports{Tunnel: l.Tunnel}, owner: o.Owner,
		container: app.Name, have: have, podProxy: o.PodProxy, source: src,
		noKeeper: noKeeper(ctx, s.kube, lease), with: slices.DeleteFunc(slices.Clone(l.Members), func(m member.Member) bool { return s.displacing(m) }),
	}
	p.probeLikeThePod(app, d.Template.Spec, o)
	if o.SelfRestore == SelfRestoreAlways && p.noKeeper != "" {
		return nil, hint.Newf(hint.ProxyNotReady, "share it without --self-restore always", "nobody would give %s in %s back when those who share it are gone: %s", target, target.Namespace, p.noKeeper)
	}
	if len(s.displaces) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s has not been heard of: this machine takes the place", member.Owners(s.displaces)))
	}
	switch {
	case o.PodProxy && l.PodProxy == 0:
		p.Notes = append(p.Notes, "the proxies have no port for podproxy, so the tunnel goes by port-forward")
	case o.PodProxy:
		p.Own.PodProxy = l.PodProxy
	}
	return p, nil
}

// errChanged says that what was found is no longer so.
var errChanged = errors.New("it has changed meanwhile")

// makeRoom decides who is displaced: those who claim the same requests, when they have lapsed, and where the list is full one who has. Each is asked
// for when there is need alone: a member who comes back before has its share still.
func (s *Session) makeRoom(ctx context.Context, lease *coordinationv1.Lease, u *Undo, l member.List, claiming []member.Member, say func(string)) (err error) {
	s.displaces = nil
	switch {
	case len(claiming) > 0:
		s.displaces, err = s.awaitLapse(ctx, lease, claiming, say, func(m member.Member) error {
			return errOverlap(s.kube, u.Target, &member.OverlapError{Other: m}, true)
		})
	case len(l.Members) >= member.Max:
		lapsed, err := s.awaitLapse(ctx, lease, l.Members, say, func(member.Member) error { return nil })
		if err != nil {
			return err
		}
		if len(lapsed) == 0 {
			return errFull(lease, u.Target)
		}
		// By their own clocks: it matters little which one.
		s.displaces = []member.Member{slices.MinFunc(lapsed, func(a, b member.Member) int { return a.Renewed.Compare(b.Renewed) })}
	}
	return err
}

// awaitLapse watches until each of those members has been heard of, or has lapsed by the rule for Leases, and returns those who have
// lapsed. An error of heard, for one who is at work, ends it. It is errChanged when one has left.
func (s *Session) awaitLapse(ctx context.Context, lease *coordinationv1.Lease, of []member.Member, say func(string), heard func(member.Member) error) (lapsed []member.Member, err error) {
	period := proxypod.Duration(lease)
	say(fmt.Sprintf("looking whether %s is there, for up to %v", member.Owners(of), period))
	seen := make([]undo.Lapse, len(of))
	for {
		lapsed = nil
		asked := time.Now()
		now, err := s.kube.Clientset.CoordinationV1().Leases(lease.Namespace).Get(ctx, lease.Name, metav1.GetOptions{})
		switch {
		case kube.Transient(err):
			for i := range seen {
				seen[i].Silence()
			}
		case apierrors.IsNotFound(err), err == nil && (now.UID != lease.UID || strings.HasPrefix(holder(now), proxypod.RestoreBy)):
			return nil, errChanged
		case err != nil:
			return nil, kube.Explain(err, "get the swap's Lease in "+lease.Namespace)
		default:
			l, err := membersOf(now)
			if err != nil {
				return nil, errChanged
			}
			waiting := false
			for i, m := range of {
				here, ok := l.Of(m.Client)
				switch {
				case !ok:
					return nil, errChanged
				case !here.Renewed.Equal(m.Renewed):
					if err := heard(here); err != nil {
						return nil, err
					}
				case seen[i].Answer(asked, time.Now(), m.Renewed.String(), period):
					lapsed = append(lapsed, m)
				default:
					waiting = true
				}
			}
			if !waiting {
				return lapsed, nil
			}
		}
		if err := sleep(ctx, undo.Pause(period)); err != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// addTo puts a share into the list, in the place of whom it displaces.
func (s *Session) addTo(l *member.List, share member.Member) error {
	if err := l.Join(share); err == nil {
		return nil // there is room by now
	}
	for _, m := range slices.Clone(l.Members) {
		if s.displacing(m) {
			l.Leave(m.Client)
		}
	}
	return l.Join(share)
}

// DryJoin is a dry run of Join; nil when that would be.
func DryJoin(ctx context.Context, k *kube.Client, t kube.Target, o Options, src proxypod.Source, say func(string)) (*DryRun, error) {
	s := &Session{kube: k}
	p, err := s.Join(ctx, t, o, src, say)
	if p == nil || err != nil {
		return nil, err
	}
	lease := p.Lease.DeepCopy()
	l, err := membersOf(lease)
	if err == nil {
		err = s.addTo(&l, newMember(o.Owner, o.Client, o.Choice, o.Now, o.Version))
	}
	if err == nil {
		err = setMembers(lease, l)
	}
	if err != nil {
		return nil, err
	}
	shares, err := l.Shares()
	if err != nil {
		return nil, err
	}
	told := proxypod.Members(lease.Name, lease.Namespace, shares)
	update := metav1.UpdateOptions{FieldManager: proxypod.FieldManager, DryRun: []string{metav1.DryRunAll}}
	d := p.dryRun(p.Sharing())
	d.Steps = []Step{{
		Verb: "patch", Name: "lease/" + lease.Name, Why: "who shares the swap; what it has changed stays as it is",
		Patch: map[string]any{
			"metadata": map[string]any{"annotations": map[string]string{proxypod.MembersAnnotation: lease.Annotations[proxypod.MembersAnnotation]}},
			"spec":     map[string]any{"holderIdentity": lease.Spec.HolderIdentity},
		},
		try: func(ctx context.Context) error {
			leases := k.Clientset.CoordinationV1().Leases(lease.Namespace)
			return retry.RetryOnConflict(retry.DefaultBackoff, func() error { // a heartbeat came between
				now, err := leases.Get(ctx, lease.Name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				now.Annotations, now.Spec.HolderIdentity = lease.Annotations, lease.Spec.HolderIdentity
				_, err = leases.Update(ctx, now, update)
				return err
			})
		},
	}, {
		Verb: "patch", Name: "configmap/" + told.Name, Why: "tells the proxies; the annotation " + proxypod.NudgeAnnotation + " of their pods has the kubelets look at once",
		Patch: map[string]any{"data": told.Data},
		try: func(ctx context.Context) error {
			_, err := k.Clientset.CoreV1().ConfigMaps(told.Namespace).Update(ctx, told, update)
			return err
		},
	}}
	return d, nil
}

// displacing tells whether m's place is taken.
func (s *Session) displacing(m member.Member) bool {
	return slices.ContainsFunc(s.displaces, func(d member.Member) bool { return d.Client == m.Client && d.Renewed.Equal(m.Renewed) })
}

// Joins is whether the swap is others' too, who have made it.
func (s *Session) Joins() bool { return s.joins }

// Sharing says with whom a swap that is joined is shared, and who gives it back when all of them are gone, for people.
func (p *Plan) Sharing() string {
	with := "nobody else"
	if len(p.with) > 0 {
		with = whose(p.with)
	}
	back := fmt.Sprintf("%v after the last heartbeat of all a keeper gives it back", proxypod.Duration(p.Lease))
	if p.noKeeper != "" {
		back = fmt.Sprintf("nobody gives it back when all are gone (%s)", p.noKeeper)
	}
	return fmt.Sprintf("requests of %s come here while this machine can take them; %s in %s is shared with %s; %s", p.Choice, p.Undo.Target, p.Undo.Target.Namespace, with, back)
}
