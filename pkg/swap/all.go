package swap

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
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
			failed[i] = r.restoreEntry(ctx, e, by)
			return nil
		})
	}
	_ = group.Wait()
	var left []string
	for i, err := range failed {
		if err != nil {
			left = append(left, entries[i].Restore)
		}
	}
	if len(left) > 0 {
		return hint.Newf(hint.RestoreIncomplete, strings.Join(left, "\n"), "%d of %d are not given back; once more, one by one:", len(left), len(entries))
	}
	return nil
}

// restoreEntry gives one back and says how that failed, if it did.
func (r *Restorer) restoreEntry(ctx context.Context, e Entry, by string) error {
	what := e.Target + " in " + e.Namespace
	k := r.Kube.In(e.Namespace)
	say := func(line string) { r.Say(what + ": " + line) }
	_, name, _ := strings.Cut(e.Target, "/")
	var err error
	if e.Kind == proxypod.KindSwap {
		if err = rights.Restore.Check(ctx, k, "restore "+what, false); err == nil {
			err = (&Restorer{Kube: k, Say: say}).Restore(ctx, name, by)
		}
	} else if err = rights.CheckRemove(ctx, k, e.Kind, name); err == nil {
		if err = proxypod.Remove(ctx, k, e.Kind, e.Namespace, name, say); err == nil {
			say("removed")
		}
	}
	if hint.CodeOf(err) == hint.NotFound {
		return nil // somebody else was faster
	}
	if err != nil {
		say(err.Error())
	}
	return err
}

// leftBehind lists what nobody holds, or with held everything.
func (r *Restorer) leftBehind(ctx context.Context, namespace string, held bool) ([]Entry, error) {
	entries, err := List(ctx, r.Kube, namespace)
	if err != nil {
		return nil, err
	}
	orphans, err := orphans(ctx, r.Kube, namespace, entries)
	if err != nil {
		return nil, err
	}
	if held {
		return append(entries, orphans...), nil
	}
	if slices.ContainsFunc(entries, func(e Entry) bool { return !e.Alive }) {
		// By this machine's clock, which may be wrong: the holder of one that is alive renews it within that time.
		r.Say(fmt.Sprintf("looking for %v whether anybody holds them", proxypod.StaleAfter))
		if err := sleep(ctx, proxypod.StaleAfter); err != nil {
			return nil, err
		}
		now, err := List(ctx, r.Kube, namespace)
		if err != nil {
			return nil, err
		}
		for i, e := range entries {
			entries[i].Alive = e.Alive || !slices.ContainsFunc(now, func(n Entry) bool {
				return n.Namespace == e.Namespace && n.Target == e.Target && n.Owner == e.Owner && n.Heartbeat.Equal(e.Heartbeat)
			})
		}
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		if e.Alive {
			r.Say(fmt.Sprintf("%s in %s is left to %s, who holds it; with --held it is given back too", e.Target, e.Namespace, e.Owner))
		}
		return e.Alive
	})
	return append(entries, orphans...), nil
}

// orphans are the swaps whose Lease is gone: only copies of their records are left.
func orphans(ctx context.Context, k *kube.Client, namespace string, leased []Entry) ([]Entry, error) {
	deployments, err := k.Clientset.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, kube.Explain(err, "list deployments "+in(namespace))
	}
	sets, err := k.Clientset.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, kube.Explain(err, "list replicasets "+in(namespace))
	}
	var out []Entry
	add := func(record string, target types.UID) {
		u, err := undo.Parse(record)
		if err != nil || u.Target.UID != string(target) {
			return // of another object, copied from there
		}
		known := func(e Entry) bool { return e.Namespace == u.Target.Namespace && e.Target == u.Target.String() }
		if slices.ContainsFunc(leased, known) || slices.ContainsFunc(out, known) {
			return
		}
		out = append(out, Entry{
			Namespace: u.Target.Namespace, Kind: proxypod.KindSwap, Target: u.Target.String(), Owner: u.Owner, Since: u.Since,
			State: "left behind", Reason: "its Lease is gone", Restore: Command(k, u.Target),
		})
	}
	for _, d := range deployments.Items {
		add(d.Annotations[proxypod.UndoAnnotation], d.UID)
	}
	for _, rs := range sets.Items {
		if owner := metav1.GetControllerOf(&rs); owner != nil {
			add(rs.Annotations[proxypod.UndoAnnotation], owner.UID)
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
