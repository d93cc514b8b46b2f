package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/undo"
)

// maxRestores is how many swaps are given back at once: each asks the API server several times a second.
const maxRestores = 4

// RestoreAll gives back every swap and removes every connect of the namespace, of all namespaces with "", that was left
// behind: its Lease has lapsed, or is gone. With held it takes those as well that somebody holds. It says what it leaves, goes
// on after a failure, and returns an error with the code RestoreIncomplete at the end if there was one. by is as for Restore.
func (r *Restorer) RestoreAll(ctx context.Context, namespace, by string, held bool) error {
	entries, err := r.leftBehind(ctx, namespace, held)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		r.Say("there is nothing to give back " + in(namespace))
		return nil
	}
	failed := make([]error, len(entries))
	var group errgroup.Group
	group.SetLimit(maxRestores)
	for i, e := range entries {
		group.Go(func() error {
			failed[i] = r.restoreEntry(ctx, e, by, held)
			return nil
		})
	}
	_ = group.Wait()
	var left []string
	unready := 0
	for i, err := range failed {
		switch e := new(notReadyError); {
		case errors.As(err, &e):
			unready++
		case err != nil:
			left = append(left, entries[i].Restore)
		}
	}
	switch {
	case len(left) > 0:
		return hint.Newf(hint.RestoreIncomplete, strings.Join(left, "\n"), "%d of %d are not given back; once more, one by one:", len(left), len(entries))
	case unready > 0:
		return hint.Newf(hint.RestoreIncomplete, "", "%d of %d are given back, and not Ready", unready, len(entries))
	}
	return nil
}

// restoreEntry gives one back and says how that failed, if it did. Without held one that is held again by now is left.
func (r *Restorer) restoreEntry(ctx context.Context, e Entry, by string, held bool) error {
	what := e.Target + " in " + e.Namespace
	k := r.Kube.In(e.Namespace)
	say := func(line string) {
		if !strings.HasPrefix(line, what+" ") {
			line = what + ": " + line
		}
		r.Say(line)
	}
	_, name, _ := strings.Cut(e.Target, "/")
	var err error
	if e.Kind == proxypod.KindSwap {
		var t kube.Target
		if t, err = kube.ParseTarget(e.Target); err == nil {
			err = rights.Restore.For(t.Kind).Check(ctx, k, "restore "+what, false)
		}
		if err == nil {
			err = (&Restorer{Kube: k, Say: say}).restore(ctx, t, by, nil, e.unchanged(held))
		}
	} else if err = rights.CheckRemove(ctx, k, e.Kind, name); err == nil {
		unchanged := func(now *coordinationv1.Lease) error { return e.unchanged(held)(now, nil) }
		if err = proxypod.Remove(ctx, k, e.Kind, e.Namespace, name, unchanged, say); err == nil {
			say("removed")
		}
	}
	if err != nil {
		say(err.Error())
	}
	if hint.CodeOf(err) == hint.NotFound {
		return nil // somebody else was faster
	}
	return err
}

// unchanged refuses what is no longer the entry: another swap, or without held one whose holder is back.
func (e Entry) unchanged(held bool) which {
	return func(now *coordinationv1.Lease, _ *Undo) error {
		switch {
		case now == nil:
			return nil // the copy of its record is left
		case e.lease == nil || now.UID != e.lease.UID:
			return hint.Newf(hint.NotFound, "", "another one by now: left")
		case !held && !sameHeartbeat(now, e.lease):
			return hint.Newf(hint.NotFound, "", "held again by %s: left", holder(now))
		}
		return nil
	}
}

// sameHeartbeat is whether nobody has renewed or taken the Lease between the two.
func sameHeartbeat(a, b *coordinationv1.Lease) bool {
	return holder(a) == holder(b) && (a.Spec.RenewTime == nil) == (b.Spec.RenewTime == nil) &&
		(a.Spec.RenewTime == nil || a.Spec.RenewTime.Equal(b.Spec.RenewTime))
}

// leftBehind lists what nobody holds, or with held everything.
func (r *Restorer) leftBehind(ctx context.Context, namespace string, held bool) ([]Entry, error) {
	entries, err := List(ctx, r.Kube, namespace)
	if err != nil {
		return nil, err
	}
	orphans, err := r.orphans(ctx, namespace, entries)
	if err != nil {
		return nil, err
	}
	if held {
		return append(entries, orphans...), nil
	}
	if err := r.lookAgain(ctx, namespace, entries); err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		if e.Alive {
			how := "who holds it"
			if e.State == "unknown" { // killed, perhaps
				how += " (" + e.Reason + ")"
			}
			r.Say(fmt.Sprintf("%s in %s is left to %s, %s; with --held it is given back too", e.Target, e.Namespace, e.Owner, how))
		}
		return e.Alive
	})
	return append(entries, orphans...), nil
}

// lookAgain watches those of which this machine's clock, which may be wrong, says that nobody holds them, or that their
// heartbeat is yet to come: who holds one renews it meanwhile.
func (r *Restorer) lookAgain(ctx context.Context, namespace string, entries []Entry) error {
	start := time.Now()
	doubtful := func(e Entry) bool { return !e.Alive || e.Heartbeat.After(start) }
	var long time.Duration
	for _, e := range entries {
		if doubtful(e) {
			long = max(long, proxypod.Stale(e.lease))
		}
	}
	if long == 0 {
		return nil
	}
	r.Say(fmt.Sprintf("looking for %v whether anybody holds them", long))
	if err := sleep(ctx, long); err != nil {
		return err
	}
	now, err := List(ctx, r.Kube, namespace)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if doubtful(e) {
			entries[i].Alive = !slices.ContainsFunc(now, func(n Entry) bool { return n.lease.UID == e.lease.UID && sameHeartbeat(n.lease, e.lease) })
		}
	}
	return nil
}

// orphans are the swaps whose Lease is gone: only copies of their records are left. It says what it may not look at.
func (r *Restorer) orphans(ctx context.Context, namespace string, leased []Entry) ([]Entry, error) {
	var out []Entry
	add := func(record, namespace string, target types.UID) {
		u, err := undo.Parse(record)
		if err != nil || u.Target.UID != string(target) || u.Target.Namespace != namespace {
			return // of another object, copied from there
		}
		known := func(e Entry) bool { return e.Namespace == u.Target.Namespace && e.Target == u.Target.String() }
		if slices.ContainsFunc(leased, known) || slices.ContainsFunc(out, known) {
			return
		}
		out = append(out, Entry{
			Namespace: u.Target.Namespace, Kind: proxypod.KindSwap, Target: u.Target.String(), Owner: u.Owner, Since: u.Since,
			State: "left behind", Reason: "its Lease is gone: a copy of its record is left, which may be of a swap that was given back", Restore: Command(r.Kube, u.Target),
		})
	}
	for _, kind := range kube.WorkloadKinds() {
		list, err := r.Kube.Annotated(ctx, namespace, kind, proxypod.UndoAnnotation)
		if kind == kube.Rollout && (apierrors.IsNotFound(err) || hint.CodeOf(err) == hint.NotFound) {
			continue // not every cluster has them
		}
		if apierrors.IsForbidden(err) {
			r.Say(fmt.Sprintf("note: your account may not list %s %s: a swap of one whose Lease is gone is not found", kind.Resource(), in(namespace)))
			continue
		}
		if err != nil {
			return nil, kube.Explain(err, "list "+kind.Resource()+" "+in(namespace))
		}
		for _, w := range list {
			uid, owner := w.UID, metav1.GetControllerOf(&w)
			switch {
			case kind == kube.ReplicaSet && owner != nil:
				uid = owner.UID // the deployment controller copies its deployment's
			case kind == kube.Pod && owner != nil:
				continue // its workload is what is swapped
			}
			add(w.Annotations[proxypod.UndoAnnotation], w.Namespace, uid)
		}
	}
	return out, nil
}

// in says where, "" being everywhere.
func in(namespace string) string {
	if namespace == "" {
		return "in any namespace"
	}
	return "in " + namespace
}
