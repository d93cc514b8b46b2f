// Package logs prints what the containers of a workload's pods have printed, and goes on printing, over restarts, rollouts and lost
// connections. cmd/bridge calls it.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

const (
	// maxFollowed bounds how many logs are followed at once, and the memory: of each some 4 MB may wait for a slow reader.
	maxFollowed = 50
	// lookEvery is how often the pods are looked at while their logs are followed.
	lookEvery = time.Second
)

// Options say what is printed. The zero value but for Tail is all of it, once.
type Options struct {
	Container string // this one alone; "" for all
	Follow    bool
	Previous  bool // of each container that which ran before
	// Timestamps has each line begin with the time at which the node got it.
	Timestamps bool
	// Since leaves out what is older. Zero leaves out nothing.
	Since time.Duration
	// Tail is how many lines of each container are printed of what there is at the start; negative for all.
	Tail int64
	// Prefix has each line say where it is from; Colour is of that.
	Prefix, Colour bool
}

// Log is that of a target's pods.
type Log struct {
	Kube   *kube.Client
	Target kube.Target
	UID    types.UID // of the pod that is meant alone, and not of another with its name; "" for any
	Options
	Out io.Writer
	Say func(string) // for what is not from a log

	printer printer
	begun   map[key]bool
	last    types.UID // the pod that came last
	turn    int       // its colour
	full    bool      // that there are too many has been said
	left    bool      // some were not begun at the last look, for want of room

	mu      sync.Mutex
	said    map[types.UID][]string    // of each pod, by sayOnce
	seen    map[types.UID]*corev1.Pod // nil before the first look
	at      time.Time                 // the look was begun then
	changed chan struct{}             // closed and replaced at each look
}

type key struct {
	uid       types.UID
	container string
}

// Run prints. With Follow it goes on until ctx ends or there is nothing left that could come, which is nil.
func (l *Log) Run(ctx context.Context) error {
	l.printer = printer{out: l.Out, prefix: l.Prefix, stamps: l.Timestamps}
	l.begun, l.changed, l.said = map[key]bool{}, make(chan struct{}), map[types.UID][]string{}
	pods, err := l.pods(ctx)
	if err != nil {
		return err
	}
	if err := l.hasContainer(pods); err != nil {
		return err
	}
	if l.Follow {
		return l.follow(ctx)
	}
	if len(pods) == 0 {
		return hint.Newf(hint.Other, fmt.Sprintf("it may be scaled to 0, suspended, done or refused: bridge diagnose %s -n %s%s", l.Target, l.Kube.Namespace, l.Kube.Flags),
			"%s in %s has no pod", l.Target, l.Kube.Namespace)
	}
	var none []string
	var failed []error
	all := l.sources(pods, math.MaxInt)
	most := tries
	for i, s := range all {
		at := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.UID == s.uid })
		nothing, err := s.once(ctx, &pods[at], most)
		switch {
		case err == nil:
		case ctx.Err() != nil, hint.CodeOf(err) == hint.Forbidden, errors.As(err, new(*writeError)): // as all would be
			return err
		default: // such as of a node that does not answer
			failed = append(failed, err)
			if lost(err) {
				most = 1 // the next may be of the same node, and those that can be read are not to wait for it again and again
			}
			switch {
			case i < len(all)-1:
				l.Say("note: " + err.Error() + "; the others go on")
			case len(failed) == 1:
				return err
			default:
				l.Say("note: " + err.Error())
			}
		}
		if nothing != "" {
			none = append(none, nothing)
			l.Say("note: " + nothing)
		}
	}
	switch {
	case len(failed) > 0: // which is said by then
		return hint.Worded(fmt.Sprintf("%d of %d logs could not be read", len(failed), len(all)), failed[0])
	case len(none) == len(all):
		return hint.Newf(hint.NotFound, fmt.Sprintf("bridge diagnose %s -n %s%s says what state it is in", l.Target, l.Kube.Namespace, l.Kube.Flags), "%s in %s has no such log", l.Target, l.Kube.Namespace)
	}
	return nil
}

// pods are those that are meant. Without one that was meant alone, there is none to be found.
func (l *Log) pods(ctx context.Context) ([]corev1.Pod, error) {
	pods, err := l.Kube.Pods(ctx, l.Kube.Namespace, l.Target)
	if err == nil && l.UID != "" && !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.UID == l.UID }) {
		return nil, hint.Newf(hint.NotFound, "", "%s in %s is another one by now", l.Target, l.Kube.Namespace)
	}
	return pods, err
}

// allOver tells whether nothing of a pod's that is followed will run again.
func (l *Log) allOver(p *corev1.Pod) bool {
	if kube.Ended(p) {
		return true
	}
	status, _ := kube.ContainerStatus(p, l.Container)
	return l.Container != "" && over(p, l.Container, status)
}

// jobOver tells whether a Job has ended with all its pods: then it makes no more.
func (l *Log) jobOver(ctx context.Context, pods []corev1.Pod) bool {
	if slices.ContainsFunc(pods, func(p corev1.Pod) bool { return !kube.Ended(&p) }) {
		return false
	}
	j, err := l.Kube.Clientset.BatchV1().Jobs(l.Kube.Namespace).Get(ctx, l.Target.Name, metav1.GetOptions{})
	return err == nil && slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed)
	})
}

// hasContainer is an error if no pod has the container named.
func (l *Log) hasContainer(pods []corev1.Pod) error {
	if l.Container == "" || len(pods) == 0 {
		return nil
	}
	var names []string
	for i := range pods {
		for _, name := range kube.ContainerNames(&pods[i]) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if !slices.Contains(names, l.Container) {
		return hint.Newf(hint.Usage, "its containers: "+strings.Join(names, ", "), "%s in %s has no container %q", l.Target, l.Kube.Namespace, l.Container)
	}
	return nil
}

// sources are the logs of pods that were not begun yet, room of them at most, in the order of the pods' names and of their containers' starts.
func (l *Log) sources(pods []corev1.Pod, room int) (out []*source) {
	l.left = false
	maps.DeleteFunc(l.begun, func(k key, _ bool) bool {
		return !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.UID == k.uid })
	})
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := range pods {
		p := &pods[i]
		names := kube.ContainerNames(p)
		// Init containers first.
		first := len(p.Spec.Containers)
		last := first + len(p.Spec.InitContainers)
		for _, name := range slices.Concat(names[first:last], names[:first], names[last:]) {
			k := key{p.UID, name}
			ours := strings.HasPrefix(name, kube.DebugPrefix) // what bridge debug has added says nothing of the workload
			if l.begun[k] || l.Container != "" && name != l.Container || l.Container == "" && ours {
				continue
			}
			if len(out) == room {
				if !l.full {
					l.Say(fmt.Sprintf("note: %d logs are followed, and no more: name a pod, or a container with -c", maxFollowed))
				}
				l.full, l.left = true, true
				return out
			}
			l.begun[k] = true
			out = append(out, &source{log: l, pod: p.Name, uid: p.UID, container: name, colour: l.colour(p.UID)})
		}
	}
	return out
}

// colours are of prefixes, by the pods in turn: those that are seen on dark and on light.
var colours = [...]string{"\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[33m", "\x1b[34m", "\x1b[31m"}

func (l *Log) colour(pod types.UID) string {
	if !l.Colour {
		return ""
	}
	if l.last != pod {
		l.last, l.turn = pod, l.turn+1
	}
	return colours[l.turn%len(colours)]
}

// follow looks at the pods again and again, and begins with each log that there is then.
func (l *Log) follow(outer context.Context) error {
	group, ctx := errgroup.WithContext(outer)
	defer func() { _ = group.Wait() }()
	running, enough := context.WithCancel(ctx) // until there is nothing left to come
	defer enough()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	first, some, silent, checked, active := true, false, false, false, 0
	ended := make(chan struct{}, maxFollowed)
	for over := false; ; {
		began := time.Now()
		pods, err := l.pods(running)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			if silent {
				l.Say("the API server answers again")
			}
			silent = false
			if !checked && len(pods) > 0 {
				if err := l.hasContainer(pods); err != nil {
					return err
				}
				checked = true
			}
			if first && len(pods) == 0 {
				l.Say(fmt.Sprintf("%s has no pod yet: it may be scaled to 0, suspended, done or refused: bridge diagnose %s -n %s%s", l.Target, l.Target, l.Kube.Namespace, l.Kube.Flags))
			}
			l.look(began, pods) // before who looks for its pod there
			for _, s := range l.sources(pods, maxFollowed-active) {
				s.first = first
				some = true
				active++
				group.Go(func() error {
					defer func() { ended <- struct{}{} }()
					return s.follow(running)
				})
			}
			first = false
			over = !l.left && (l.Target.Kind == kube.Pod && l.allOver(&pods[0]) || l.Target.Kind == kube.Job && l.jobOver(running, pods))
			if over && !some {
				return hint.Newf(hint.NotFound, "", "%s in %s has ended, and its pods are gone, with their logs", l.Target, l.Kube.Namespace)
			}
		case hint.CodeOf(err) == hint.NotFound:
			if !over {
				l.Say(l.Target.String() + " is gone")
			}
			over = true
			l.look(began, nil)
		case kube.Transient(err):
			if !silent {
				l.Say("the API server does not answer, it is asked again: " + err.Error())
			}
			silent = true
		default:
			return err
		}
		for waiting := true; waiting; {
			if over && active == 0 {
				return group.Wait()
			}
			select {
			case <-ctx.Done():
				return group.Wait()
			case <-ended:
				active--
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// sayOnce says something of a pod that may be found again and again.
func (l *Log) sayOnce(pod types.UID, text string) {
	l.mu.Lock()
	again := slices.Contains(l.said[pod], text)
	if !again {
		l.said[pod] = append(l.said[pod], text)
	}
	l.mu.Unlock()
	if !again {
		l.Say(text)
	}
}

// look has the sources see the pods as they are.
func (l *Log) look(began time.Time, pods []corev1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen, l.at = map[types.UID]*corev1.Pod{}, began
	for i := range pods {
		l.seen[pods[i].UID] = &pods[i]
	}
	maps.DeleteFunc(l.said, func(pod types.UID, _ []string) bool { return l.seen[pod] == nil })
	close(l.changed)
	l.changed = make(chan struct{})
}

// podAfter is a pod at a look that was begun after a time, and when that was; nil when it is gone or ctx ends.
func (l *Log) podAfter(ctx context.Context, uid types.UID, after time.Time) (*corev1.Pod, time.Time) {
	for {
		l.mu.Lock()
		seen, at, changed := l.seen, l.at, l.changed
		l.mu.Unlock()
		if seen != nil && at.After(after) {
			return seen[uid], at
		}
		select {
		case <-ctx.Done():
			return nil, at
		case <-changed:
		}
	}
}
