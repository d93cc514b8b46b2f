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
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

const (
	// restoreTimeout bounds giving back as a whole: the original's start, the proxy's drain, room.
	restoreTimeout = readyTimeout + goneTimeout + 2*time.Minute
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
	Parts []carry.Part // of a carried proxy; none with an image
	Key   tunnel.Key
	// ReadyTimeout is how long the proxy's pod may take to be Ready.
	ReadyTimeout time.Duration
	Version      string
	// Say gets each step as it begins, a line in plain words.
	Say func(string)
	Log *slog.Logger

	lease  *coordinationv1.Lease
	proxy  *proxypod.Proxy
	tunnel *tunnel.Client
	ending atomic.Bool // giving back has begun
}

// Run swaps, holds the swap until ctx ends, and gives it back. It returns nil after a swap that ctx
// ended, that somebody else gave back, or whose target was deleted. Any other end is an error, after
// everything was given back as far as it could be.
func (s *Swap) Run(ctx context.Context) error {
	if err := s.claim(ctx); err != nil {
		return err
	}
	s.proxy = &proxypod.Proxy{Kube: s.Kube, Namespace: s.lease.Namespace, Lease: s.lease.Name, Port: s.Plan.Own.Tunnel}
	s.tunnel = &tunnel.Client{
		Carrier: s.proxy.Carrier, Key: s.Key, Version: s.Version,
		Handle: s.handle, OnState: s.state, Log: s.Log,
	}

	// The tunnel and the heartbeat outlive ctx: traffic flows until the proxy is gone.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	held, release := context.WithCancelCause(ctx)
	var group errgroup.Group
	group.Go(func() error {
		err := s.tunnel.Run(background)
		if background.Err() == nil {
			release(hint.Newf(hint.TunnelLost, "", "the tunnel is lost: %w", err))
		}
		return nil
	})
	group.Go(func() error {
		release(proxypod.Heartbeat(background, s.Kube, s.lease, proxypod.HeartbeatPeriod))
		return nil
	})

	err := s.apply(held)
	if err == nil {
		s.Say(fmt.Sprintf("swapped: %s in %s is answered here (Ctrl-C gives it back)", s.Plan.Undo.Target, s.lease.Namespace))
		err = s.hold(held)
	}
	if cause := context.Cause(held); cause != nil {
		err = cause
	}
	if ctx.Err() != nil {
		err = nil // the user's own wish
	}
	err = s.end(context.WithoutCancel(ctx), err)
	stop()
	return errors.Join(err, group.Wait())
}

// hold waits until ctx ends or the target is deleted, and says the latter.
func (s *Swap) hold(ctx context.Context) error {
	target := s.Plan.Undo.Target
	for {
		if sleep(ctx, targetPeriod) != nil {
			return nil
		}
		d, err := s.Kube.Clientset.AppsV1().Deployments(target.Namespace).Get(ctx, target.Name, metav1.GetOptions{})
		if errors.Is(gone(err, target, uidOf(d)), errGone) {
			s.Say(fmt.Sprintf("%s in %s was deleted", target, target.Namespace))
			return nil
		}
	}
}

// end gives back, or stands by while somebody else does; cause is why the swap ends.
func (s *Swap) end(ctx context.Context, cause error) error {
	s.ending.Store(true)
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	var taken *proxypod.TakenError
	if errors.As(cause, &taken) {
		s.Say(taken.Error())
		if taken.By != "" {
			// The restorer ends the proxy; until then its connections still need this end.
			return s.proxy.WaitGone(ctx)
		}
		cause = nil
	}
	r := &Restorer{Kube: s.Kube, Say: s.Say}
	return errors.Join(cause, r.giveBack(ctx, &s.Plan.Undo, s.lease))
}

// claim creates the Lease with the undo record: the compare-and-swap by which of two racing users
// one wins. The other learns who did.
func (s *Swap) claim(ctx context.Context) error {
	l := s.Plan.Lease
	leases := s.Kube.Clientset.CoordinationV1().Leases(l.Namespace)
	created, err := leases.Create(ctx, l, metav1.CreateOptions{FieldManager: proxypod.FieldManager})
	if !apierrors.IsAlreadyExists(err) {
		s.lease = created
		return kube.Explain(err, "create the swap's Lease in "+l.Namespace)
	}
	u := &s.Plan.Undo
	held, err := leases.Get(ctx, l.Name, metav1.GetOptions{})
	if err != nil {
		return kube.Explain(err, "get the swap's Lease in "+l.Namespace)
	}
	holder := "somebody"
	if held.Spec.HolderIdentity != nil {
		holder = *held.Spec.HolderIdentity
	}
	return hint.Newf(hint.Conflict, "talk to them, or give it back: "+Command(u),
		"%s in %s is already swapped by %s since %s (last heartbeat %s)", u.Target, l.Namespace, holder,
		held.CreationTimestamp.Local().Format("15:04:05 on 2 Jan"), ago(held.Spec.RenewTime))
}

// apply makes the swap: proxy, tunnel, endpoints, scale. Everything before the scale leaves the
// original serving.
func (s *Swap) apply(ctx context.Context) error {
	x := changer{kube: s.Kube}
	u := &s.Plan.Undo
	s.Say("creating the proxy " + s.lease.Name)
	maps := proxypod.ConfigMaps(s.lease.Namespace, s.lease.Name, s.Parts)
	if err := proxypod.Create(ctx, s.Kube, s.lease, maps, s.Plan.Proxy); err != nil {
		return proxyError(err)
	}
	ready, cancel := context.WithTimeout(ctx, s.ReadyTimeout)
	defer cancel()
	s.tunnel.SetReady(true) // the local ports have answered before the claim
	if err := s.proxy.WaitReady(ready); err != nil {
		return err
	}
	pods, err := s.proxy.Pods(ctx)
	if err != nil {
		return err
	}

	record, err := u.Marshal()
	if err != nil {
		return err
	}
	if err := x.annotate(ctx, u.Target, record); err != nil {
		return err
	}
	if err := s.moveEndpoints(ctx, x, pods); err != nil {
		return err
	}
	s.Say(fmt.Sprintf("scaling %s from %d to 0", u.Target, s.Plan.Replicas))
	for _, c := range u.Changes {
		if c.Object == u.Target {
			if err := x.apply(ctx, c); err != nil {
				return err
			}
		}
	}
	return s.awaitStopped(ctx, pods)
}

// awaitStopped waits until the original's pods have ended, so that "swapped" means that the laptop
// alone answers. Pods that take their time are named, and not waited for.
func (s *Swap) awaitStopped(ctx context.Context, proxies []corev1.Pod) error {
	selector, err := metav1.LabelSelectorAsSelector(s.Plan.selector)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var left []string
	err = wait.PollUntilContextCancel(bounded, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		list, err := s.Kube.Clientset.CoreV1().Pods(s.lease.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
		if err != nil {
			return false, nil // stopping is under way; nothing depends on seeing it
		}
		left = slices.DeleteFunc(names(list.Items), func(name string) bool { return slices.Contains(names(proxies), name) })
		return len(left) == 0, nil
	})
	if err != nil && ctx.Err() == nil {
		s.Say("still ending, and answering those who are connected to them: " + strings.Join(left, ", "))
		return nil
	}
	return err
}

// moveEndpoints sends all callers to the proxy while the original still runs.
func (s *Swap) moveEndpoints(ctx context.Context, x changer, pods []corev1.Pod) error {
	if len(s.Plan.Services) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endpointsTimeout)
	defer cancel()
	ours := names(pods)
	s.Say("moving callers to it: " + serviceList(s.Plan.Services))
	// The endpoint controller has to know the proxy as Ready before the selector leaves it alone:
	// at no time is there no endpoint.
	if err := x.awaitEndpoints(ctx, s.lease.Namespace, s.Plan.Services, func(e endpoints) bool { return e.has(ours) }); err != nil {
		return err
	}
	for _, c := range s.Plan.Undo.Changes {
		if c.Object.Kind == "Service" {
			if err := x.apply(ctx, c); err != nil {
				return err
			}
		}
	}
	if err := x.awaitEndpoints(ctx, s.lease.Namespace, s.Plan.Services, func(e endpoints) bool { return e.only(ours) }); err != nil {
		return err
	}
	return sleep(ctx, settle)
}

// proxyError gives what the cluster refuses to create (a quota, an admission rule) its exit code.
func proxyError(err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		return hint.New(hint.ProxyNotReady, err, hint.Of(err))
	}
	return err
}
