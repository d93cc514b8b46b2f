package swap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

const (
	// nudgeEvery is how often the kubelets are asked to look while a proxy does not yet know a member.
	nudgeEvery = 3 * time.Second
	// knownTimeout is how long a kubelet may take that is not asked: it looks every minute, or half as often again.
	knownTimeout = 2 * time.Minute
)

// shareable is whether others may have requests beside c's.
func shareable(c route.Choice) bool { return !c.All() && !c.Mirror }

// newMember is one who begins now.
func newMember(owner string, client tunnel.Fingerprint, c route.Choice, now time.Time, version string) member.Member {
	now = now.UTC()
	return member.Member{Owner: owner, Client: client, Choice: c, Since: now.Truncate(time.Second), Renewed: now, Bridge: version}
}

// Shared is whether others may have requests beside this machine's.
func (p *Plan) Shared() bool { return shareable(p.Choice) }

// firstMember lists who makes the swap, on its Lease, and for the proxies.
func (p *Plan) firstMember(o Options) error {
	if p.Choice.All() {
		return nil
	}
	l := member.New(newMember(o.Owner, o.Client, o.Choice, o.Now, o.Version))
	l.Container, l.Tunnel, l.PodProxy = p.container, p.Own.Tunnel, p.Own.PodProxy
	for _, q := range p.Ports {
		l.Ports = append(l.Ports, q.Remote)
	}
	if p.Standby.Members != nil {
		shares, err := l.Shares()
		if err != nil {
			return err
		}
		p.Standby.Members = proxypod.Members(p.Lease.Name, p.Lease.Namespace, shares)
	}
	return setMembers(p.Lease, l)
}

// setMembers writes the list into the Lease, whose holder all of them are.
func setMembers(lease *coordinationv1.Lease, l member.List) error {
	text, err := l.Marshal()
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, proxypod.MembersAnnotation, text)
	owners := l.Owners()
	lease.Spec.HolderIdentity = &owners
	return nil
}

// errUnshared says that all of a swap is its holder's.
var errUnshared = errors.New("it is not shared")

// membersOf are a Lease's; errUnshared when there is no list, and a *member.VersionError when it is another version's. Any other error says where
// what cannot be read is.
func membersOf(lease *coordinationv1.Lease) (member.List, error) {
	text, ok := lease.Annotations[proxypod.MembersAnnotation]
	if !ok {
		return member.List{}, errUnshared
	}
	l, err := member.Parse(text)
	if version := new(member.VersionError); err != nil && !errors.As(err, &version) {
		err = fmt.Errorf("annotation %s of lease/%s cannot be read: %w", proxypod.MembersAnnotation, lease.Name, err)
	}
	return l, err
}

// errNoList says that nobody can tell any more who shares a swap.
var errNoList = errors.New("who shares it is not known any more, so it ends for all")

// lost is errNoList, because of err.
func lost(err error) error {
	return hint.New(hint.Conflict, fmt.Errorf("%w: %w", errNoList, err), "swap it again when it is given back")
}

// changeMembers writes the list as change makes it of the one that is there, in one step with whatever others write: again when they have
// written meanwhile, and while the API server is away. The error is change's, or a *proxypod.TakenError when the swap is being
// given back. It returns the Lease as it is then.
func changeMembers(ctx context.Context, k *kube.Client, of *coordinationv1.Lease, change func(*member.List) error) (now *coordinationv1.Lease, err error) {
	leases := k.Clientset.CoordinationV1().Leases(of.Namespace)
	err = wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		now, err = leases.Get(ctx, of.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return false, &proxypod.TakenError{}
		case err != nil:
			return false, kube.IgnoreTransient(kube.Explain(err, "get the swap's Lease in "+of.Namespace))
		case now.UID != of.UID, strings.HasPrefix(holder(now), proxypod.RestoreBy):
			return false, &proxypod.TakenError{By: holder(now)}
		}
		l, err := membersOf(now)
		if err != nil {
			return false, lost(err)
		}
		if err = change(&l); err == nil {
			err = setMembers(now, l)
		}
		if err != nil {
			return false, err
		}
		now, err = leases.Update(ctx, now, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
		if apierrors.IsConflict(err) {
			return false, nil
		}
		return err == nil, kube.IgnoreTransient(kube.Explain(err, "update the swap's Lease in "+of.Namespace))
	})
	return now, err
}

// made lets others join.
func (s *Swap) made(ctx context.Context) error {
	if s.claim.share == nil {
		return nil
	}
	_, err := changeMembers(ctx, s.Kube, s.claim.lease, func(l *member.List) error {
		l.Made = true
		return nil
	})
	return fault.After(fault.Shared, err)
}

// join makes the claim of one who shares what others have swapped.
func (s *Swap) join(ctx context.Context, share *member.Member) (*claim, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	lease, err := changeMembers(ctx, s.Kube, s.Session.lease, func(l *member.List) error {
		if _, there := l.Of(share.Client); there {
			return nil // written, and only the answer was lost
		}
		return s.Session.addTo(l, *share)
	})
	target := s.Plan.Undo.Target
	var overlap *member.OverlapError
	var taken *proxypod.TakenError
	switch {
	case errors.As(err, &overlap):
		return nil, errOverlap(s.Kube, target, overlap, false)
	case errors.As(err, &taken):
		return nil, hint.Newf(hint.Conflict, "run the same command again in a moment", "%s in %s is being given back", target, target.Namespace)
	case errors.Is(err, member.ErrFull):
		return nil, errFull(s.Session.lease, target)
	}
	return &claim{kube: s.Kube, lease: lease, share: share}, fault.After(fault.Joined, err)
}

func errFull(lease *coordinationv1.Lease, target Object) error {
	return hint.Newf(hint.Conflict, "talk to them: "+holder(lease), "%s in %s: %w", target, target.Namespace, member.ErrFull)
}

// errOverlap says whose the requests are, and what to do about it beside what was done: takingOver is whether --take-over has found them at work.
func errOverlap(k *kube.Client, target Object, o *member.OverlapError, takingOver bool) error {
	next := "choose requests that cannot be theirs, or talk to them; "
	if !takingOver {
		next += "with --take-over you have the place of one whose machine is gone; "
	}
	return hint.Newf(hint.Conflict, next+"to give all back: "+Command(k, target),
		"%s in %s: %w since %s (last heartbeat %s)", target, target.Namespace, o, o.Other.Since.Local().Format("15:04:05 on 2 Jan"), ago(&metav1.MicroTime{Time: o.Other.Renewed}))
}

// tellProxies has the ConfigMap say what the list says, if it does not, and the kubelets look at it. What was written by somebody else
// meanwhile is read again: the list is read after the ConfigMap, so the last to write has the last list.
func (s *Swap) tellProxies(ctx context.Context) error {
	lease, maps := s.claim.lease, s.Kube.Clientset.CoreV1().ConfigMaps(s.claim.lease.Namespace)
	told := ""
	err := retry.OnError(retry.DefaultBackoff, func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }, func() error {
		m, err := maps.Get(ctx, proxypod.MembersName(lease.Name), metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return err
		}
		now, err := s.Kube.Clientset.CoordinationV1().Leases(lease.Namespace).Get(ctx, lease.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && (now.UID != lease.UID || strings.HasPrefix(holder(now), proxypod.RestoreBy)) {
			return nil // whoever gives back ends the proxies
		}
		if err != nil {
			return err
		}
		l, err := membersOf(now)
		if err != nil {
			return err
		}
		shares, err := l.Shares()
		if err != nil || !missing && bytes.Equal(proxypod.MembersOf(m), shares) {
			return err
		}
		want := proxypod.Members(lease.Name, lease.Namespace, shares)
		if missing {
			want.OwnerReferences = proxypod.OwnedBy(lease)
			m, err = maps.Create(ctx, want, metav1.CreateOptions{FieldManager: proxypod.FieldManager})
		} else {
			m.Data = want.Data
			m, err = maps.Update(ctx, m, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
		}
		if err == nil {
			told = m.ResourceVersion
		}
		return err
	})
	if err != nil {
		return kube.Explain(err, "tell the proxies in "+lease.Namespace+" who shares them")
	}
	if told != "" {
		_ = s.proxy.Nudge(ctx, told)
	}
	return nil
}

// nudge has the kubelets look until every proxy knows this machine, or ctx is done. Who may not ask them waits, and is told.
func (s *Swap) nudge(ctx context.Context) {
	for i := 0; ; i++ {
		state, changed := s.lines.watch()
		if state.Phase == tunnel.Ready {
			return
		}
		err := s.proxy.Nudge(ctx, fmt.Sprintf("%s.%d", s.Session.Fingerprint().String()[:8], i))
		if apierrors.IsForbidden(err) {
			s.Say(fmt.Sprintf("note: your account may not patch pods, so it may take the proxies up to %v to know of this machine", knownTimeout))
			return
		}
		bounded, cancel := context.WithTimeout(ctx, nudgeEvery)
		select {
		case <-bounded.Done():
		case <-changed:
			_ = sleep(bounded, nudgeEvery/3)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

// beat is what a heartbeat writes for this machine's share.
func (s *Swap) beat(now *coordinationv1.Lease, state proxypod.State) error {
	if err := s.claim.ours(now); err != nil {
		return err
	}
	l, err := membersOf(now)
	if err != nil {
		return err
	}
	s.watched.saw(l.Others(s.claim.share.Client), proxypod.Duration(now))
	m, _ := l.Of(s.claim.share.Client)
	m.Renewed, m.Bridge, m.Tunnel, m.Notes = time.Now().UTC(), s.Version, state.String(), s.notes()
	if m.Probes = nil; len(s.probeStates()) > 0 {
		if m.Probes, err = json.Marshal(s.probeStates()); err != nil {
			return err
		}
	}
	l.Put(m)
	return setMembers(now, l)
}

// watched is what this machine has seen of the others' heartbeats.
type watched struct {
	mu     sync.Mutex
	of     map[tunnel.Fingerprint]*undo.Lapse
	lapsed map[tunnel.Fingerprint]time.Time // their last heartbeat
}

// saw notes what the list says of them now.
func (w *watched) saw(others []member.Member, period time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of, w.lapsed = map[tunnel.Fingerprint]*undo.Lapse{}, map[tunnel.Fingerprint]time.Time{}
	}
	for _, m := range others {
		if w.of[m.Client] == nil {
			w.of[m.Client] = &undo.Lapse{}
		}
		now := time.Now()
		if w.of[m.Client].Answer(now, now, m.Renewed.String(), period) {
			w.lapsed[m.Client] = m.Renewed
		}
	}
}

// alive are those who have not been seen to lapse.
func (w *watched) alive(others []member.Member) []member.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(others), func(m member.Member) bool {
		at, ok := w.lapsed[m.Client]
		return ok && at.Equal(m.Renewed)
	})
}

// leaving is the end of one share.
type leaving struct {
	r      *Restorer
	lease  *coordinationv1.Lease
	client tunnel.Fingerprint
	owner  string
	record *Undo
	alive  func(others []member.Member) []member.Member // those who are at work, as far as is known
	asked  bool                                         // to have the Lease, and the answer was lost
}

// errOthers says that others go on, errLast that nobody does.
var (
	errOthers = errors.New("others go on")
	errLast   = errors.New("nobody goes on")
)

// leave takes the share out of the swap, and returns who goes on. When that is nobody it takes the Lease instead, and returns the
// claim: to give back. Of two who leave at once, one is the last.
func (v *leaving) leave(ctx context.Context) (goOn []member.Member, u *Undo, c *claim, err error) {
	r := *v.r
	r.own = true
	for {
		var lapsed []member.Member
		var unread error
		u, c, err = r.take(ctx, targetOf(v.record.Target), proxypod.RestoreBy+v.owner, v.record, func(now *coordinationv1.Lease, found *Undo) error {
			if err := swapOf(v.record)(now, found); err != nil || now == nil {
				return err
			}
			switch by := holder(now); {
			case now.UID != v.lease.UID:
				return &proxypod.TakenError{By: by}
			case v.asked && by == proxypod.RestoreBy+v.owner:
				return nil
			case strings.HasPrefix(by, proxypod.RestoreBy):
				return &proxypod.TakenError{By: by}
			}
			var l member.List
			if l, unread = membersOf(now); unread != nil {
				return nil // it is all ours
			}
			if lapsed = l.Others(v.client); len(v.alive(lapsed)) > 0 {
				return errOthers
			}
			return nil
		})
		if !errors.Is(err, errOthers) {
			v.asked = v.asked || kube.Transient(err)
			switch {
			case err != nil:
			case unread != nil:
				r.Say(lost(unread).Error())
			case len(lapsed) > 0:
				r.Say("of those who share it nobody else is there: " + whose(lapsed) + " without a heartbeat for long")
			}
			return nil, u, c, err
		}
		_, err = changeMembers(ctx, v.r.Kube, v.lease, func(l *member.List) error {
			if goOn = v.alive(l.Others(v.client)); len(goOn) == 0 {
				return errLast
			}
			l.Leave(v.client)
			return nil
		})
		if !errors.Is(err, errLast) && !errors.Is(err, errNoList) {
			return goOn, nil, nil, fault.After(fault.Left, err)
		}
	}
}

// leave ends this machine's share, as leaving has it. Those who go on have the callers, and this machine what it has begun for a moment.
func (s *Swap) leave(ctx context.Context, r *Restorer) (stays bool, u *Undo, c *claim, err error) {
	v := &leaving{r: r, lease: s.claim.lease, client: s.claim.share.Client, owner: s.Plan.owner, record: &s.Plan.Undo, alive: s.watched.alive}
	var goOn []member.Member
	err = r.again(ctx, func() (err error) {
		goOn, u, c, err = v.leave(ctx)
		return err
	})
	if err != nil || len(goOn) == 0 {
		return false, u, c, err
	}
	s.left.Store(true)
	s.lines.setReady(false)
	target := s.Plan.Undo.Target
	s.Say(fmt.Sprintf("%s in %s stays swapped for %s", target, target.Namespace, whose(goOn)))
	if err := fault.After(fault.LeftTold, s.tellProxies(ctx)); err != nil {
		s.Say(fmt.Sprintf("note: %v: they know it by the tunnel's end", err))
	}
	_ = tell(ctx, s.Kube, target, corev1.EventTypeNormal, reasonLeft, s.Plan.owner+" has left; it stays swapped for "+member.Owners(goOn), time.Now())
	return true, nil, nil, sleep(ctx, settle)
}

// whose are members with what they have, for people.
func whose(members []member.Member) string {
	var out []string
	for _, m := range members {
		out = append(out, fmt.Sprintf("%s (%s)", m.Owner, m.Choice))
	}
	return strings.Join(out, ", ")
}
