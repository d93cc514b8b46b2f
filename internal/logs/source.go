package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/kube"
)

const (
	// longest is for reading a whole log: internal/kube gives one without an end of its own half a minute. A path that is dead
	// is noticed without.
	longest = 24 * time.Hour
	// tries are how often a log that is printed once is begun at most when its connection is lost, or its container has just been removed,
	// tryEvery apart.
	tries    = 5
	tryEvery = time.Second
)

// source is the log of one container of one pod, over the container's restarts.
type source struct {
	log            *Log
	pod, container string
	uid            types.UID
	colour         string
	first          bool // it was there at the start, so that Tail and Since are for it
	opened         bool // what it has since is new
	silent         bool // that there is no connection has been said

	reached mark
}

// errRemoved is of a log whose container the kubelet has just removed: it may know its successor in a moment.
var errRemoved = errors.New("the container is not there any more, and neither is its log")

func (s *source) String() string { return "pod/" + s.pod + "/" + s.container }

// options of a request. What was printed already is not asked for again, but for that of its last second.
func (s *source) options() *corev1.PodLogOptions {
	o := &corev1.PodLogOptions{Container: s.container, Timestamps: true}
	switch {
	case !s.reached.last.IsZero():
		since := metav1.NewTime(s.reached.last)
		o.SinceTime = &since
	case s.first && (!s.log.Follow || !s.opened):
		if s.log.Since > 0 {
			seconds := int64((s.log.Since + time.Second - 1) / time.Second)
			o.SinceSeconds = &seconds
		}
		if s.log.Tail >= 0 {
			o.TailLines = &s.log.Tail
		}
	}
	return o
}

// read makes one request and prints what it has not printed before. The error is nil at the log's end.
func (s *source) read(ctx context.Context, o *corev1.PodLogOptions, print func(line) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	body, err := s.log.Kube.Clientset.CoreV1().Pods(s.log.Kube.Namespace).GetLogs(s.pod, o).Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	s.opened, s.silent = true, false
	removed, printed, was := false, false, s.reached
	err = s.reached.read(body, func(l line) error {
		if !printed && l.stamp == nil && bytes.HasPrefix(l.text, []byte(kube.LogRemoved)) {
			removed = true
			return nil
		}
		printed = true
		return print(l)
	})
	if err == nil && removed {
		s.reached = was
		return errRemoved
	}
	return err
}

func (s *source) print(l line) error { return s.log.printer.print(s, l) }

// once prints the log as it is, of a container as p has it. nothing says why there is none. most is how often it is tried without an answer.
func (s *source) once(ctx context.Context, p *corev1.Pod, most int) (nothing string, err error) {
	s.first = true
	for try := 1; ; try++ {
		o := s.options()
		o.Previous = s.log.Previous
		err := s.read(ctx, o, s.print)
		switch {
		case err == nil && s.reached.last.IsZero():
			// The API server has an empty log, too, for what has never run.
			status, _ := kube.ContainerStatus(p, s.container)
			if who, why := s.heldUp(p, status); why != "" && (status.LastTerminationState.Terminated == nil || status.LastTerminationState.Terminated.StartedAt.Unix() <= 0) {
				return fmt.Sprintf("%s does not start: %s", who, why), nil
			}
			return "", nil
		case err == nil:
			return "", nil
		case errors.Is(err, errRemoved) && try < tries:
		case errors.Is(err, errRemoved) && o.Previous:
			return s.String() + ": " + err.Error() + "; without --previous it is that of the run after it", nil
		case errors.Is(err, errRemoved), apierrors.IsBadRequest(err), apierrors.IsNotFound(err):
			return s.String() + ": " + err.Error(), nil
		case try == tries || try >= most && !s.opened || ctx.Err() != nil || !lost(err):
			return "", kube.Explain(err, "read the log of "+s.String())
		}
		select {
		case <-ctx.Done():
		case <-time.After(tryEvery):
		}
	}
}

// lost tells whether the connection is, so that another may go on: no answer at all, or an end in the middle.
func lost(err error) bool {
	var write *writeError
	status := apierrors.APIStatus(nil)
	if errors.As(err, &write) || errors.Is(err, errRemoved) {
		return false
	}
	return kube.Transient(err) || !errors.As(err, &status)
}

// follow prints the log, and that of each restart, until the pod is gone or the container will not be started again.
func (s *source) follow(ctx context.Context) error {
	if s.first && s.log.Tail == 0 {
		// Where it is now, so that nothing is lost from here on.
		one := int64(1)
		err := s.read(ctx, &corev1.PodLogOptions{Container: s.container, Timestamps: true, TailLines: &one}, func(line) error { return nil })
		if apierrors.IsBadRequest(err) {
			s.first = false // it has not started: all that it will have is new
		}
	}
	const never = int32(-1)
	begun, final := never, never // by the number of restarts: what was read last, what was read when it had ended
	var after time.Time
	for {
		p, at := s.log.podAfter(ctx, s.uid, after)
		if p == nil {
			return nil
		}
		status, known := kube.ContainerStatus(p, s.container)
		n, running := status.RestartCount, status.State.Running != nil
		started := known && (running || status.State.Terminated != nil || status.LastTerminationState.Terminated != nil)
		if !started || !running && n == final {
			if over(p, s.container, status) {
				return nil
			}
			s.sayStuck(p, status)
			after = at
			continue
		}
		if begun != never && n > begun {
			if n > begun+1 {
				s.log.Say(fmt.Sprintf("note: %s was restarted %d times at once, and only the log of the last time is kept", s, n-begun))
			}
			switch done, err := s.before(ctx, n); {
			case err != nil:
				return err
			case !done:
				continue
			}
			if steppedBack(status) {
				s.reached = mark{}
			}
		}
		begun = n
		o := s.options()
		o.Follow = true
		err := s.read(ctx, o, s.print)
		after = time.Now()
		var write *writeError
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && !running:
			final = n
		case errors.Is(err, errRemoved) && !running:
			if final = n; over(p, s.container, status) {
				s.log.Say("note: " + s.String() + ": " + err.Error())
			}
		case err == nil, errors.Is(err, errRemoved), apierrors.IsBadRequest(err), apierrors.IsNotFound(err):
			// It has ended meanwhile, or somebody on the way has ended it; it is not started after all; its pod goes.
		case errors.As(err, &write), !lost(err):
			return kube.Explain(err, "follow the log of "+s.String())
		default:
			s.sayLost(err)
		}
	}
}

// sayLost says it once, until there is a connection again.
func (s *source) sayLost(err error) {
	if !s.silent {
		s.log.Say("the connection for the log of " + s.String() + " is lost, it goes on: " + err.Error())
	}
	s.silent = true
}

// before prints the rest of what the container printed before its restart number n. That may not be kept. It is not done when there was
// another restart before it had been read.
func (s *source) before(ctx context.Context, n int32) (done bool, err error) {
	for removed := 1; ; {
		o := s.options()
		o.Previous, o.TailLines, o.SinceSeconds = true, nil, nil
		err := s.read(ctx, o, s.print)
		var write *writeError
		switch {
		case err == nil || ctx.Err() != nil:
			return true, nil
		case errors.As(err, &write):
			return true, err
		case errors.Is(err, errRemoved) && removed < tries, lost(err):
			if errors.Is(err, errRemoved) {
				removed++
			} else {
				s.sayLost(err)
			}
			if p, _ := s.log.podAfter(ctx, s.uid, time.Now()); p != nil {
				if status, _ := kube.ContainerStatus(p, s.container); status.RestartCount != n {
					return false, nil
				}
				continue
			}
		}
		if ctx.Err() == nil {
			s.log.Say("note: " + s.String() + ", what it printed at the end before its restart: " + err.Error())
		}
		return true, nil
	}
}

// sayStuck says what holds up the start of the container, if something is known to, each once: of a pod without a node for all of its containers.
func (s *source) sayStuck(p *corev1.Pod, status corev1.ContainerStatus) {
	if who, why := s.heldUp(p, status); why != "" && why != "ErrImagePull" { // which goes on to ImagePullBackOff
		s.log.sayOnce(s.uid, fmt.Sprintf("note: %s does not start: %s. See bridge diagnose pod/%s -n %s%s", who, why, s.pod, s.log.Kube.Namespace, s.log.Kube.Flags))
	}
}

// heldUp is what keeps the container, or its pod, from starting; "" for nothing that is known.
func (s *source) heldUp(p *corev1.Pod, status corev1.ContainerStatus) (who, why string) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "pod/" + s.pod, c.Reason
		}
	}
	if w := status.State.Waiting; w != nil {
		switch w.Reason {
		case "ContainerCreating", "PodInitializing", "CrashLoopBackOff": // it is on its way, or has been there
		default:
			return s.String(), w.Reason
		}
	}
	return "", ""
}

// steppedBack tells whether the node's clock was set back between the container's last two runs, so that the new one's lines seem older than
// the old one's.
func steppedBack(status corev1.ContainerStatus) bool {
	was := status.LastTerminationState.Terminated
	switch {
	case was == nil:
		return false
	case status.State.Running != nil:
		return status.State.Running.StartedAt.Time.Before(was.FinishedAt.Time)
	case status.State.Terminated != nil:
		return status.State.Terminated.StartedAt.Time.Before(was.FinishedAt.Time)
	}
	return false
}

// over tells whether the container will not run again.
func over(p *corev1.Pod, container string, status corev1.ContainerStatus) bool {
	if kube.Ended(p) {
		return true
	}
	t := status.State.Terminated
	if t == nil {
		return false
	}
	is := func(name string) bool { return name == container }
	if slices.ContainsFunc(p.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return is(c.Name) }) {
		return true
	}
	if slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return is(c.Name) && c.RestartPolicy == nil }) {
		return t.ExitCode == 0
	}
	switch p.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return true
	case corev1.RestartPolicyOnFailure:
		return t.ExitCode == 0
	}
	return false
}

// writeError is of who reads bridge's output.
type writeError struct{ error }

func (w *writeError) Unwrap() error { return w.error }
