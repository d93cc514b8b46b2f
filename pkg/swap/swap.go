// Package swap puts a proxy in the place of a workload, so that the cluster's traffic for it reaches
// a process on the laptop, and gives everything back: plan (pure) -> apply -> run -> restore.
// cmd/bridge calls it. What it changes in the cluster is written into an undo record (SPEC.md) before
// the first change, so that anybody can give it back from anywhere.
package swap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/carry"
	"bridge/internal/child"
	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

const (
	// targetPeriod is how often the target is looked for while swapped.
	targetPeriod = 5 * time.Second
	// stopTimeout is how long the end of the original's pods is waited for.
	stopTimeout = 10 * time.Second
	// endpointsTimeout is how long the endpoint controller may take to follow.
	endpointsTimeout = time.Minute
)

// Swap is one workload being swapped.
type Swap struct {
	Kube  *kube.Client
	Plan  *Plan
	Parts []carry.Part // of a carried proxy; none with an image, and for a swap that is taken up
	// Session is this machine's half, from OpenSession.
	Session *Session
	// SelfRestore is what Plan.AddKeeper was asked for.
	SelfRestore SelfRestore
	// ReadyTimeout is how long the proxy's pod may take to be Ready.
	ReadyTimeout time.Duration
	ResumeWindow time.Duration // as tunnel.Client's
	Version      string
	// Program is started to answer; nil: a process answers already.
	Program *Program
	// Why adds to the error of a proxy that is not Ready, while its pod is still there, what is found of it; nil adds nothing.
	Why func(ctx context.Context, err error) error
	// Say gets each step as it begins, a line in plain words; from several goroutines.
	Say func(string)
	// Live gets what each probe gave last, in a line that takes the place of the one before, while it is swapped; nil: nobody looks.
	Live func(string)
	Log  *slog.Logger

	claim    *claim
	proxy    *proxypod.Proxy
	lines    *lines
	answers  chan struct{} // closed when Program does
	stands   chan struct{} // closed when the proxies are Ready
	ending   atomic.Bool   // giving back has begun
	wasReady atomic.Bool   // the local process has been ready, by its probe
	left     atomic.Bool   // this machine's share is out, and others go on
	absent   atomic.Bool   // in mode standby: the original has no Ready pod
	applying bool          // a change of the cluster may be under way, whose answer was lost
	watched  watched       // the others who share it
	refused  atomic.Bool   // the local process refused the last connection
	// A process, or a laptop short of ports, that takes every other connection would fill the screen.
	sayRefused rate.Sometimes
	guard      guard
	probes     *probe.Runner
	probed     chan struct{} // there is news of them for the Lease
	restarts   restarts
}

func (s *Swap) init() {
	if s.probes == nil {
		if s.Program != nil {
			s.Plan.leave()
		}
		s.probes, s.probed = probe.NewRunner(s.Plan.Probes), make(chan struct{}, 1)
		s.wasReady.Store(s.Program == nil) // AwaitLocal has seen to that
		s.sayRefused = rate.Sometimes{First: 3, Interval: 10 * time.Second}
	}
}

// Run swaps, or goes on with the swap that Session has taken up, holds it until ctx ends, and gives it back. It returns nil
// after a swap that ctx ended, or whose target was deleted. Any other end is an error, after everything was given back as far
// as it could be; its code is Conflict when somebody else has given back. Only when a later bridge has taken the swap up
// (tunnel.ErrDisplaced) nothing is given back. With Program its end ends the swap too: with a *child.ExitError.
func (s *Swap) Run(ctx context.Context) error {
	s.init()
	if err := s.Session.begin(s.Plan); err != nil {
		s.Say(fmt.Sprintf("note: %s: %v", notKept, err))
	}
	var err error
	if s.claim, err = s.enter(ctx); err != nil {
		return err
	}
	lease := s.claim.lease
	s.proxy = &proxypod.Proxy{Kube: s.Kube, Namespace: lease.Namespace, Lease: lease.Name}
	s.lines = newLines(s.Plan.proxies(), s.proxy, s.Plan.Own, s.Session, s.newTunnel, s.Log, func(line string) {
		if !s.ending.Load() { // the proxy goes, and its tunnel with it
			s.Say(line)
		}
	})

	s.stands = make(chan struct{})
	s.answers = make(chan struct{})
	if s.Program == nil {
		close(s.answers) // AwaitLocal has seen to that
	}
	// The tunnel and the heartbeat outlive ctx: traffic flows until the proxy is gone.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	held, release := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		s.lines.run(background, func(err error) { release(hint.Newf(hint.TunnelLost, "", "the tunnel is lost: %w", err)) })
	})
	for _, t := range s.lines.clients {
		running.Go(func() { s.Session.follow(background, t) })
	}
	s.probes.OnChange(s.sayProbe)
	running.Go(func() {
		if s.answered(background) {
			s.probes.Run(background)
		}
	})
	running.Go(func() {
		if s.answered(background) {
			s.awaitStanding(background)
			s.followProbes(background)
		}
	})
	running.Go(func() {
		if err := s.watchOthers(background); err != nil {
			release(err)
		}
	})
	running.Go(func() {
		more := proxypod.More{Annotations: s.annotations, News: s.probed}
		if s.claim.share != nil {
			more.Write = s.beat
		}
		if err := proxypod.Heartbeat(background, s.Kube, lease, s.lines.watch, more, s.Say); err != nil {
			release(err)
		}
	})

	if s.Program != nil {
		running.Go(func() { release(s.Program.run(background, held, s, func() { close(s.answers) })) })
	}

	switch {
	case s.Session.TakenUp(), s.Session.Joins():
		s.guard.changed(s.Plan.Undo.Changes...)
		err = s.takeUp(held)
	default:
		if err = s.apply(held); err == nil {
			s.applying = false
			err = s.made(held)
		}
	}
	swapped := err == nil
	if swapped {
		if err := s.Session.held(lease); err != nil {
			s.Say(fmt.Sprintf("note: %s: %v", notKept, err))
		}
		running.Go(func() { s.narrate(background) })
		s.Say(fmt.Sprintf("swapped: %s in %s is %s (Ctrl-C gives it back)", s.Plan.Undo.Target, lease.Namespace, s.Plan.comes()))
		err = s.hold(held)
	}
	if cause := context.Cause(held); cause != nil {
		err = cause
	}
	if errors.Is(err, tunnel.ErrDisplaced) {
		stop()
		running.Wait()
		return err
	}
	// Whatever went wrong: if the claim is no longer ours, that is why.
	if taken := new(proxypod.TakenError); err != nil && errors.As(s.claim.check(ctx), &taken) {
		err = taken
	}
	if ctx.Err() != nil {
		err = nil // the user's own wish
	}
	if swapped {
		s.sayWhy(err)
	}
	s.Session.ends()
	err = s.end(context.WithoutCancel(ctx), err)
	if hint.CodeOf(err) != hint.RestoreIncomplete {
		s.Session.forget()
	}
	stop()
	running.Wait()
	return err
}

// sayWhy says why a swap ends before anything is given back, where nobody else does: of CMD's end whoever started it knows, the tunnel's has been said,
// and who has taken the claim, or that nobody knows who shares it, will be.
func (s *Swap) sayWhy(err error) {
	switch {
	case err == nil, errors.As(err, new(*child.ExitError)), errors.As(err, new(*proxypod.TakenError)):
	case hint.CodeOf(err) == hint.TunnelLost, errors.Is(err, errNoList):
	default:
		s.Say(err.Error())
	}
}

// newTunnel is one of the lines, without what is about its proxy. A proxy that does not know this machine yet is no reason to end a share that
// another one carries; whether the share is ours still the Lease says.
func (s *Swap) newTunnel() *tunnel.Client {
	t := &tunnel.Client{Version: s.Version, ResumeWindow: s.ResumeWindow, Handle: s.handle}
	if shareable(s.Plan.Choice) {
		t.KeyPatience = forever
	}
	return t
}

// enter makes the claim, or finds that it is ours already.
func (s *Swap) enter(ctx context.Context) (c *claim, err error) {
	var share *member.Member
	if !s.Plan.Choice.All() {
		one := newMember(s.Plan.owner, s.Session.Fingerprint(), s.Plan.Choice, time.Now(), s.Version)
		share = &one
	}
	switch {
	case s.Session.TakenUp():
		return &claim{kube: s.Kube, lease: s.Session.lease, share: share}, nil
	case s.Session.Joins():
		c, err = s.join(ctx, share)
	default:
		if c, err = newClaim(ctx, s.Kube, s.Plan.Lease, &s.Plan.Undo); err == nil {
			c.share = share
		}
	}
	if hint.CodeOf(err) == hint.Conflict {
		s.Session.forget() // another's
	}
	return c, err
}

// takeUp waits until the proxies of the earlier bridge, or of those who share the swap, have this one.
func (s *Swap) takeUp(ctx context.Context) error {
	timeout := s.ReadyTimeout
	if shareable(s.Plan.Choice) {
		timeout = max(timeout, knownTimeout)
		told := wait.PollUntilContextTimeout(ctx, proxypod.Poll, timeout, true, func(ctx context.Context) (bool, error) {
			err := s.tellProxies(ctx)
			return err == nil, kube.IgnoreTransient(err)
		})
		if err := fault.After(fault.JoinTold, told); err != nil {
			return err
		}
		nudging, stop := context.WithTimeout(ctx, timeout) // the program may take for ever
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { s.nudge(nudging) })
	}
	if err := s.awaitProgram(ctx, timeout); err != nil {
		return err
	}
	if err := s.awaitProxies(ctx, timeout); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return fault.After(fault.TakeUpReady, s.lines.waitAny(ready)) // the pod may have been Ready still, from before
}

// hold waits until ctx ends or there is nothing left to hold: the target is deleted (nil), the claim
// is taken (*proxypod.TakenError), or the proxy is deleted.
func (s *Swap) hold(ctx context.Context) error {
	target := s.Plan.Undo.Target
	deployments := s.Kube.Clientset.AppsV1().Deployments(target.Namespace)
	for {
		if sleep(ctx, targetPeriod) != nil {
			return nil
		}
		// First: with its Lease the proxy goes too.
		var taken *proxypod.TakenError
		switch err := s.claim.check(ctx); {
		case errors.As(err, &taken):
			return taken
		case errors.Is(err, errNoList):
			return err
		}
		d, err := s.Kube.Workload(ctx, target.Namespace, targetOf(target))
		if errors.Is(same(err, target, d.UID), errGone) {
			s.Say(fmt.Sprintf("%s in %s was deleted", target, target.Namespace))
			return nil
		}
		if err == nil && s.Plan.standby() {
			s.originalStands(d.Ready > 0)
		}
		if _, err := deployments.Get(ctx, s.claim.lease.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return hint.Newf(hint.ProxyNotReady, "swap it again", "somebody has deleted the proxy, deployment/%s in %s", s.claim.lease.Name, target.Namespace)
		}
		if shareable(s.Plan.Choice) {
			if err := s.tellProxies(ctx); err != nil && ctx.Err() == nil {
				s.Log.Debug("the proxies' list", "error", err) // whoever shares the swap looks again
			}
		}
		if err := fault.After(fault.Watched, nil); err != nil {
			return err
		}
	}
}

// end gives back, or stands by while somebody else does; cause is why the swap ends.
func (s *Swap) end(ctx context.Context, cause error) error {
	s.ending.Store(true)
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, restoreTimeout)
	defer cancel()
	r := &Restorer{Kube: s.Kube, Say: s.Say}
	var taken *proxypod.TakenError
	u, c := &s.Plan.Undo, s.claim
	var err error
	if !errors.As(cause, &taken) && c.share != nil {
		var stays bool
		if stays, u, c, err = s.leave(ctx, r); stays {
			return cause
		}
		switch {
		case errors.As(err, &taken):
		case hint.CodeOf(err) == hint.NotFound: // given back meanwhile
			taken = &proxypod.TakenError{}
		case err != nil:
			next := "finish with: " + Command(s.Kube, s.Plan.Undo.Target)
			if shareable(s.Plan.Choice) { // that would take it from those who go on
				next = "start the same command again and end it, which ends this machine's share; to end the swap of all who share it: " + Command(s.Kube, s.Plan.Undo.Target)
			}
			err = hint.New(hint.RestoreIncomplete, err, hint.Then(err, next))
		}
	}
	if taken != nil && taken.Share {
		return hint.Newf(hint.Conflict, "talk to them, or choose other requests", "the swap of %s in %s goes on without this machine: %w", s.Plan.Undo.Target, s.claim.lease.Namespace, taken)
	}
	if taken == nil {
		if err == nil {
			if s.applying {
				r.fence(ctx, u, c)
			}
			err = r.giveBack(ctx, u, c)
		}
		if err == nil {
			return cause
		}
		if cause == nil {
			return err
		}
		return hint.New(hint.RestoreIncomplete, errors.Join(cause, err), hint.Of(err))
	}
	over := func() error {
		next := "to have its traffic again run the same command"
		if GivenBackMeanwhile(taken) {
			next += "; with --rejoin bridge does so by itself"
		}
		return hint.Newf(hint.Conflict, next, "the swap of %s in %s is over: %w%s",
			s.Plan.Undo.Target, s.claim.lease.Namespace, taken, servesSince(ctx, s.Kube, s.Plan.Undo.Target, s.claim.lease.CreationTimestamp.Time))
	}
	s.Say(taken.Error())
	if taken.By != "" {
		// The restorer ends the proxy; until then its connections still need this end of the tunnel.
		if err := s.claim.awaitEnd(ctx, &s.Plan.Undo); err != nil {
			s.Say(err.Error())
		}
		ctx, cancel = context.WithTimeout(whole, restoreTimeout) // the restorer has used up the other
		defer cancel()
	}
	// The Lease is gone, or whoever took it is: the record is here as well.
	err = r.again(ctx, func() (err error) {
		u, c, err = r.take(ctx, targetOf(s.Plan.Undo.Target), proxypod.RestoreBy+s.Plan.owner, &s.Plan.Undo, swapOf(&s.Plan.Undo))
		return err
	})
	if hint.CodeOf(err) == hint.NotFound {
		return over() // given back entirely
	}
	if err != nil {
		return hint.New(hint.RestoreIncomplete, err, "finish with: "+Command(s.Kube, s.Plan.Undo.Target))
	}
	if err := r.giveBack(ctx, u, c); err != nil {
		return err
	}
	return over()
}

// apply makes the swap: proxy, tunnel, endpoints, scale. Everything before the scale leaves the
// original serving; in standby there is none.
func (s *Swap) apply(ctx context.Context) error {
	x := changer{kube: s.Kube, claim: s.claim}
	u, lease := &s.Plan.Undo, s.claim.lease
	if err := fault.After(fault.Claimed, nil); err != nil {
		return err
	}
	s.Say("creating the proxy " + lease.Name)
	proxy := s.Plan.Proxy
	if s.Plan.Standby != nil {
		address, err := s.Plan.Standby.create(ctx, x)
		if err != nil {
			return proxyError(err)
		}
		proxy = proxypod.WithOriginals(proxy, address)
	}
	maps := proxypod.ConfigMaps(lease.Namespace, lease.Name, s.Parts)
	if s.Plan.Standby != nil && s.Plan.Standby.Members != nil {
		maps = append(maps, s.Plan.Standby.Members)
	}
	if err := proxypod.Create(ctx, s.Kube, lease, maps, proxy); err != nil {
		return proxyError(err)
	}
	if err := s.startKeeper(ctx); err != nil {
		return proxyError(err)
	}
	if err := s.awaitProgram(ctx, s.ReadyTimeout); err != nil {
		return err
	}
	if err := fault.After(fault.ProxyReady, s.awaitProxies(ctx, s.ReadyTimeout)); err != nil {
		return err
	}
	if err := s.awaitKeeper(ctx); err != nil {
		return err
	}
	if err := fault.After(fault.Recorded, x.record(ctx, s.Plan)); err != nil {
		return explainMoved(err, u.Target)
	}
	if err := s.moveEndpoints(ctx, x); err != nil {
		return err
	}
	if s.Plan.standby() {
		return nil
	}
	s.Say(fmt.Sprintf("scaling %s from %d to 0", u.Target, s.Plan.Replicas))
	s.applying = true
	for _, c := range u.Changes {
		if c.Object == u.Target {
			if err := fault.After(fault.Scaled, x.apply(ctx, c)); err != nil {
				return err
			}
			s.guard.changed(c)
		}
	}
	return fault.After(fault.Stopped, s.awaitStopped(ctx))
}

// awaitStopped waits until the original's pods have ended, so that "swapped" means that the laptop
// alone answers. Pods that take their time are named, and not waited for.
func (s *Swap) awaitStopped(ctx context.Context) error {
	selector, err := metav1.LabelSelectorAsSelector(s.Plan.selector)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var left []string
	err = wait.PollUntilContextCancel(bounded, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		list, err := s.Kube.Clientset.CoreV1().Pods(s.claim.lease.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
		if err != nil {
			return false, kube.IgnoreTransient(err)
		}
		list.Items = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
			return kube.Ended(&p) || p.Labels[proxypod.ProxyLabel] != ""
		})
		left = names(list.Items)
		return len(left) == 0, nil
	})
	if err != nil && ctx.Err() == nil {
		s.Say("still ending, and answering those who are connected to them: " + strings.Join(left, ", "))
		return nil
	}
	return err
}

// moveEndpoints sends all callers to the proxy while the original still runs.
func (s *Swap) moveEndpoints(ctx context.Context, x changer) error {
	services := slices.Concat(s.Plan.Services, s.Plan.joined)
	if len(services) == 0 {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, endpointsTimeout)
	defer cancel()
	s.Say("moving callers to it: " + serviceList(services))
	// The endpoint controller has to know the proxy as Ready before the selector leaves it alone:
	// at no time is there no endpoint.
	var err error
	if s.Plan.standby() {
		err = s.awaitKnown(bounded, x)
	} else {
		err = x.awaitEndpoints(bounded, s.proxy, services, endpoints.reachProxy)
	}
	if err := fault.After(fault.Reachable, err); err != nil {
		return err
	}
	if s.Plan.standby() {
		if err := x.unchanged(bounded, s.Plan); err != nil {
			return err
		}
	}
	s.applying = true
	for _, c := range s.Plan.Undo.Changes {
		if c.Object.Kind == "Service" {
			if err := fault.After(fault.Moved, x.apply(bounded, c)); err != nil {
				return err
			}
			s.guard.changed(c)
		}
	}
	headless := false
	err = x.awaitEndpoints(bounded, s.proxy, s.Plan.Services, func(e endpoints) bool {
		headless = headless || e.headless
		return e.reachProxyOnly()
	})
	if err != nil {
		return err
	}
	wait := settle
	if headless && !s.Plan.standby() {
		wait += dnsTTL
		s.Say(fmt.Sprintf("waiting for %v: so long callers of a headless service may go to the original, by what DNS has told them", wait))
	}
	return fault.After(fault.Alone, sleep(ctx, wait))
}

// proxyError gives what the cluster refuses to create (a quota, an admission rule) its exit code.
func proxyError(err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		return hint.New(hint.ProxyNotReady, err, hint.Of(err))
	}
	return err
}
