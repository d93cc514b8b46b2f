package diagnose

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"bridge/internal/kube"
)

const (
	// watchEvery is how often a watch looks: a dozen list calls each time.
	watchEvery = 2 * time.Second
	// unreadAgain is after how long it is said again that something cannot be read: that may last, and nobody in the cluster works at it.
	unreadAgain = 30 * time.Second
)

// Watch looks again and again until there is no problem and nothing to wait for, and returns the last report; nil before the first. say
// gets a line each time that changes. An error that may pass is said too, again and again, and what could not be read for one is looked at again before all is well. Ports are dialled when all else is well. It ends with ctx and
// its error.
func Watch(ctx context.Context, k *kube.Client, o Options, say func(line string)) (last *Report, err error) {
	quick, told := o, telling{}
	quick.NoDial = true
	for {
		r, err := Run(ctx, k, quick)
		if err == nil && r.settled() && !o.NoDial {
			r, err = Run(ctx, k, o)
		}
		var line string
		unread := true
		switch {
		case ctx.Err() != nil:
			return last, context.Cause(ctx)
		case kube.Transient(err):
			line = "not read, and tried again: " + err.Error()
		case err != nil:
			return last, err
		case r.missing() != "":
			line = r.missing() + "; of the rest: " + r.progress()
			if last == nil || last.missing() != "" {
				last = r // it only knows less than the last that was whole
			}
		case r.settled():
			return r, nil
		default:
			last, line, unread = r, r.progress(), false
		}
		if line = told.next(line, unread, time.Now()); line != "" {
			say(line)
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-time.After(watchEvery):
		}
	}
}

// telling is what a watch has said last.
type telling struct {
	line        string
	since, said time.Time
}

// next is what to say when there is line to be said; "" for nothing, as it has been said. Where something is unread it is said again and again.
func (t *telling) next(line string, unread bool, now time.Time) string {
	switch {
	case line != t.line:
		*t = telling{line, now, now}
		return line
	case unread && now.Sub(t.said) >= unreadAgain:
		t.said = now
		return fmt.Sprintf("still, after %v: %s", now.Sub(t.since).Round(time.Second), line)
	}
	return ""
}

// settled tells whether nothing is to change for the better.
func (r *Report) settled() bool {
	return r.Worst() != Problem && len(r.Waiting) == 0 && r.missing() == ""
}

// missing is a line about what could not be read just now, and may be in a moment; "" for nothing.
func (r *Report) missing() string {
	var what []string
	why := ""
	for _, u := range r.Unread {
		if u.passing {
			what, why = append(what, u.Resource), u.Why
		}
	}
	if len(what) == 0 {
		return ""
	}
	return fmt.Sprintf("not read, and tried again: %s (%s)", list(what), why)
}

// progress is a line: what is wrong, and what is waited for.
func (r *Report) progress() string {
	line := r.Summary()
	for i, f := range r.Findings {
		if i == 0 || f.Severity == Problem {
			line += fmt.Sprintf("; %s: %s", f.target(), f.ID)
		}
	}
	var names []string
	for _, w := range r.Waiting {
		names = append(names, w.String())
	}
	if len(names) > 0 {
		line += "; waiting for " + few(names)
	}
	return line
}

// waiting are the workloads and pods that are not yet as they are to be.
func (s *Snapshot) waiting(near map[Ref]bool) (out []Ref) {
	add := func(r Ref, yes bool) {
		if yes && (near == nil || near[r]) {
			out = append(out, r)
		}
	}
	for i := range s.Deployments {
		d := &s.Deployments[i]
		want := replicas(d.Spec.Replicas)
		add(refOf("deployment", d), !d.Spec.Paused && (d.Status.ObservedGeneration < d.Generation ||
			d.Status.UpdatedReplicas < want || d.Status.AvailableReplicas < want || d.Status.Replicas > d.Status.UpdatedReplicas))
	}
	for i := range s.StatefulSets {
		d := &s.StatefulSets[i]
		want := replicas(d.Spec.Replicas)
		partial := d.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType || d.Spec.UpdateStrategy.RollingUpdate != nil && d.Spec.UpdateStrategy.RollingUpdate.Partition != nil && *d.Spec.UpdateStrategy.RollingUpdate.Partition > 0
		add(refOf("statefulset", d), d.Status.ObservedGeneration < d.Generation || d.Status.AvailableReplicas < want || !partial && d.Status.UpdatedReplicas < want)
	}
	for i := range s.DaemonSets {
		d := &s.DaemonSets[i]
		add(refOf("daemonset", d), d.Status.ObservedGeneration < d.Generation || d.Status.NumberAvailable < d.Status.DesiredNumberScheduled)
	}
	for i := range s.Controllers {
		c := &s.Controllers[i]
		add(refOf(string(kube.ReplicationController), c), c.Status.ObservedGeneration < c.Generation || c.Status.AvailableReplicas < replicas(c.Spec.Replicas))
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		add(refOf("pod", p), unready(*p) && !over(p) && s.owner(p) == Ref{})
	}
	return out
}

// replicas is how many there are to be: 1 where that is not said.
func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}
