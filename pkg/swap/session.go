package swap

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/private"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/pkg/tunnel"
)

// Session is what this machine keeps of the swap of one workload, from before its claim until it is given back: the key
// and what else a bridge needs that is started again after a kill, to take its swap up. One process holds it at a time.
type Session struct {
	kube *kube.Client
	key  tunnel.Key
	// lease is that of the swap which TakeUp took up, or which is others' too (joins); nil: a new one is made.
	lease *coordinationv1.Lease
	joins bool
	// displaces are members whose place is taken, as they were when they had lapsed.
	displaces []member.Member

	mu    sync.Mutex
	file  *private.File // nil: nothing is kept
	saved savedSession
	kept  bool // the file has something in it
}

// savedSession is the file's content. What the swap changed is not in it: the record in the cluster says that.
type savedSession struct {
	Version int    `json:"version"`
	Process int    `json:"process"` // for people
	Server  string `json:"server"`  // likewise, as the rest of the target
	Target  Object `json:"target"`
	Lease   string `json:"lease"`
	// LeaseUID is not known before Held. The Lease has the fingerprint of Key in any case.
	LeaseUID types.UID `json:"leaseUID,omitempty"`
	// Since is the Lease's creation by the cluster's clock; zero until Held, too.
	Since time.Time `json:"since,omitzero"`

	Key   tunnel.Key                    `json:"key"`
	Epoch uint64                        `json:"epoch"`
	Pins  map[string]tunnel.Fingerprint `json:"pins,omitempty"`

	// Held is whether the swap was made entirely, and giving back has not begun.
	Held bool `json:"held"`

	// What was asked for, and what --port chose from.
	Container string         `json:"container"`
	Image     string         `json:"image,omitempty"`
	Arch      string         `json:"arch,omitempty"`
	PodProxy  bool           `json:"podProxy,omitempty"`
	Choice    route.Choice   `json:"choice,omitzero"`
	Have      []Port         `json:"have"`
	Ports     []Port         `json:"ports"`
	Own       proxypod.Ports `json:"proxyPorts"`
	ToPod     []int32        `json:"toPod,omitempty"`
	Init      bool           `json:"init,omitempty"`
}

// notKept is what a user is told when nothing can be kept.
const notKept = "after a kill this swap can be given back, but not taken up again"

// sessionVersion is the file's. A file of another one is not taken up.
const sessionVersion = 2

// sessionPath is where the session of a Lease is kept.
func sessionPath(k *kube.Client, lease string) (string, error) {
	dir, err := private.Dir()
	if err != nil {
		return "", err
	}
	server := sha256.Sum256([]byte(k.Config.Host))
	return filepath.Join(dir, fmt.Sprintf("%s.%s.%s.json", k.Namespace, lease, hex.EncodeToString(server[:4]))), nil
}

// OpenSession takes hold of what is kept about the swap of the workload in k's namespace. note says in words why nothing is
// kept, if so: then a killed swap can only be given back. The error has the code Conflict when a bridge on this machine
// holds the swap and runs, and says what to do about a file that others may read.
func OpenSession(k *kube.Client, t kube.Target) (s *Session, note string, err error) {
	s = &Session{kube: k}
	if s.key, err = tunnel.NewKey(); err != nil {
		return nil, "", err
	}
	target := Object{Kind: t.Kind.Object(), Namespace: k.Namespace, Name: t.Name}
	path, err := sessionPath(k, leaseName(t))
	if err == nil {
		s.file, err = private.Open(path)
	}
	var unsafe *private.UnsafeError
	switch {
	case errors.Is(err, private.ErrHeld):
		return nil, "", hint.Newf(hint.Conflict, "end it with Ctrl-C there, or give it back: "+Command(k, target),
			"%s in %s is already swapped by a bridge on this machine%s", target, k.Namespace, processOf(path))
	case errors.As(err, &unsafe):
		next := "the key in it may be known to others: give back with " + Command(k, target) + ", which removes it"
		if unsafe.Path != path {
			next = "keys are kept there: chmod 700 " + unsafe.Path + ", or set XDG_STATE_HOME"
		}
		return nil, "", hint.New(hint.Other, err, next)
	case err != nil:
		return s, fmt.Sprintf("%s: %v", notKept, err), nil
	}
	switch err := s.file.Read(&s.saved); {
	case errors.Is(err, io.EOF):
	case err != nil:
		note = fmt.Sprintf("%v: an earlier swap cannot be taken up", err)
		s.saved, s.kept = savedSession{}, true
	case s.saved.Version == 0: // forgotten
	case s.saved.Version != sessionVersion:
		note = fmt.Sprintf("%s is of another version of bridge: an earlier swap cannot be taken up", path)
		s.saved, s.kept = savedSession{}, true
	default:
		s.kept = true
	}
	return s, note, nil
}

// processOf names the process that holds a session, as far as it can be read.
func processOf(path string) string {
	if b, err := os.ReadFile(path); err == nil {
		var saved savedSession
		if json.Unmarshal(b, &saved) == nil && saved.Process > 0 {
			return fmt.Sprintf(", process %d", saved.Process)
		}
	}
	return ""
}

// Fingerprint is that of the laptop's key.
func (s *Session) Fingerprint() tunnel.Fingerprint { return s.key.Fingerprint() }

// Close lets go of the session. What is kept stays, if there is something.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.file == nil:
	case s.kept:
		_ = s.file.Close()
	default:
		_ = s.file.Remove()
	}
	s.file = nil
}

// TakeUp plans to go on with the swap that an earlier bridge made and did not give back; nil when there is none, or it is no
// longer ours. One that was not made entirely, or is half given back, it gives back first. What o and src ask
// for has to be what the swap was made with, but for the laptop's ports. src is as the user gave it. With SelfRestoreAlways it is an
// error (code ProxyNotReady) if the swap's keeper is not Ready.
func (s *Session) TakeUp(ctx context.Context, t kube.Target, o Options, src proxypod.Source, say func(string)) (*Plan, error) {
	k, saved := s.kube, s.saved
	if saved.Version == 0 {
		return nil, nil
	}
	lease, err := k.Clientset.CoordinationV1().Leases(k.Namespace).Get(ctx, saved.Lease, metav1.GetOptions{})
	ours, with, readErr := s.has(lease)
	another := err == nil && saved.LeaseUID != "" && lease.UID != saved.LeaseUID // a later swap's
	var version *member.VersionError
	switch {
	case err == nil && !another && errors.As(readErr, &version):
		return nil, hint.Newf(hint.Conflict, "take it up with bridge "+with.Bridge+", or give back: "+Command(k, saved.Target),
			"an earlier bridge of yours has a share of the swap of %s in %s: %w", saved.Target, k.Namespace, version)
	case err == nil && !another && readErr != nil && !errors.Is(readErr, errUnshared):
		return nil, hint.Newf(hint.Conflict, "give back: "+Command(k, saved.Target),
			"an earlier bridge of yours has a share of the swap of %s in %s: %w", saved.Target, k.Namespace, readErr)
	case apierrors.IsNotFound(err), err == nil && !ours, another:
		switch {
		case saved.Held && err == nil && lease.UID == saved.LeaseUID:
			say("the share that an earlier bridge of yours had of the swap was taken over meanwhile; it is shared by " + with.Owners())
		case saved.Held:
			gone := "is gone: it was given back, or its Lease was deleted"
			if since := servesSince(ctx, k, saved.Target, saved.Since); since != "" {
				gone = "was given back meanwhile" + since
			}
			say("the swap that an earlier bridge of yours made " + gone)
		}
		s.forget()
		return nil, nil
	case err != nil:
		return nil, kube.Explain(err, "get the swap's Lease in "+k.Namespace)
	case saved.Held && strings.HasPrefix(holder(lease), proxypod.RestoreBy):
		return nil, nil // who swaps anew is told
	}
	u, err := recordOf(lease)
	if err == nil && targetOf(u.Target) != t {
		err = fmt.Errorf("undo record: is about %s", u.Target)
	}
	if err != nil {
		return nil, hint.New(hint.Conflict, err, "give back: "+Command(k, saved.Target))
	}
	if !saved.Held && with.Made && !strings.HasPrefix(holder(lease), proxypod.RestoreBy) {
		say("an earlier bridge of yours was killed in between: its share of the swap ends first")
		if err := s.leaveFirst(ctx, lease, u, o, say); err != nil {
			return nil, err
		}
		s.forget()
		return nil, nil
	}
	if !saved.Held {
		say("an earlier swap was killed in between: giving it back first")
		if err := (&Restorer{Kube: k, Say: say}).restore(ctx, t, o.Owner, u, swapOf(u)); err != nil {
			return nil, err
		}
		s.forget()
		return nil, nil
	}
	p, err := s.sameOptions(ctx, u, o, src)
	if err != nil {
		return nil, err
	}
	p.Undo, p.Lease, p.Own, p.owner, p.noKeeper = *u, lease, saved.Own, o.Owner, noKeeper(ctx, k, lease)
	if o.SelfRestore == SelfRestoreAlways && p.noKeeper != "" {
		return nil, hint.Newf(hint.ProxyNotReady, "take it up without --self-restore always, or give back first: "+Command(k, u.Target),
			"nobody would give %s in %s back when this machine is gone: %s", u.Target, k.Namespace, p.noKeeper)
	}
	s.key, s.lease = saved.Key, lease
	return p, fault.After(fault.TakeUpRead, nil)
}

// has tells whether the Lease is that of a swap of which this machine has a share, or all, and with whom.
// The error is membersOf's.
func (s *Session) has(lease *coordinationv1.Lease) (ours bool, with member.List, err error) {
	with, err = membersOf(lease)
	if errors.Is(err, errUnshared) {
		return lease.Annotations[proxypod.ClientAnnotation] == s.saved.Key.Fingerprint().String(), with, nil
	}
	_, ours = with.Of(s.saved.Key.Fingerprint())
	return ours, with, err
}

// leaveFirst ends the share of a bridge that was killed while it joined or left. When nobody else has one, all is given back.
func (s *Session) leaveFirst(ctx context.Context, lease *coordinationv1.Lease, u *Undo, o Options, say func(string)) error {
	r := &Restorer{Kube: s.kube, Say: say}
	all := func(others []member.Member) []member.Member { return others } // whether they are at work is not known
	v := &leaving{r: r, lease: lease, client: s.saved.Key.Fingerprint(), owner: o.Owner, record: u, alive: all}
	goOn, u, c, err := v.leave(ctx)
	if err == nil && len(goOn) == 0 {
		err = r.giveBack(ctx, u, c)
	}
	if hint.CodeOf(err) == hint.NotFound {
		return nil // given back meanwhile
	}
	return err
}

// sameOptions compares what is asked for with what the swap was made with, and returns the ports and probes in a plan: those
// of the laptop may be others now.
func (s *Session) sameOptions(ctx context.Context, u *Undo, o Options, src proxypod.Source) (*Plan, error) {
	target := u.Target
	differs := func(flag, now, before string) error {
		return hint.Newf(hint.Conflict, "swap it with the same options, or give back first: "+Command(s.kube, target),
			"%s in %s is swapped already, by an earlier bridge of yours, with another %s: %s and not %s", target, target.Namespace, flag, before, now)
	}
	d, err := s.kube.Workload(ctx, target.Namespace, targetOf(target))
	if err == nil {
		err = s.kube.Complete(ctx, d)
	}
	if err != nil {
		return nil, kube.Explain(err, fmt.Sprintf("swap %s in %s", target, target.Namespace))
	}
	app, err := proxypod.AppContainer(d.Template, o.Container)
	if err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	ports, err := mapPorts(o.Ports, s.saved.Have)
	if err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	if !u.Replaces() && len(o.Ports) == 0 {
		ports = slices.DeleteFunc(slices.Clone(ports), func(q Port) bool { return q.UDP })
	}
	now, before := remotes(ports), remotes(s.saved.Ports)
	switch {
	case !o.Choice.All() && u.Replaces():
		return nil, differs("--mode", fmt.Sprintf("%s, which %s takes", ModeStandby, o.Choice), string(ModeReplace))
	case o.Mode != "" && o.Mode != ModeAuto && o.Mode != modeOf(u):
		return nil, differs("--mode", string(o.Mode), string(modeOf(u)))
	case app.Name != s.saved.Container:
		return nil, differs("--container", app.Name, s.saved.Container)
	case now != before:
		return nil, differs("--port", now, before)
	case src.Image != s.saved.Image:
		return nil, differs("--proxy-image", cmp.Or(src.Image, "none"), cmp.Or(s.saved.Image, "none"))
	case src.Arch != "" && src.Arch != s.saved.Arch:
		return nil, differs("--arch", src.Arch, s.saved.Arch)
	case !o.Choice.Equal(s.saved.Choice):
		return nil, differs("choice of requests", o.Choice.String(), s.saved.Choice.String())
	case !slices.Equal(portSet(o.ToPod), portSet(s.saved.ToPod)):
		return nil, differs("--to-pod", cmp.Or(joinPorts(o.ToPod), "none"), cmp.Or(joinPorts(s.saved.ToPod), "none"))
	case o.Init != s.saved.Init:
		return nil, differs("--init", strconv.FormatBool(o.Init), strconv.FormatBool(s.saved.Init))
	case o.PodProxy != s.saved.PodProxy:
		return nil, differs("--carrier", carrierName(o.PodProxy), carrierName(s.saved.PodProxy))
	}
	p := &Plan{Ports: ports, Choice: o.Choice}
	p.probeLikeThePod(app, d.Template.Spec, o)
	return p, nil
}

func carrierName(podProxy bool) string {
	if podProxy {
		return "podproxy"
	}
	return "portforward"
}

// remotes are the pod's ports, in order, for comparing.
func remotes(ports []Port) string {
	ports = slices.SortedFunc(slices.Values(ports), func(a, b Port) int { return cmp.Compare(a.Remote, b.Remote) })
	return portList(ports)
}

// portSet is the ports in order, each once.
func portSet(ports []int32) []int32 { return slices.Compact(slices.Sorted(slices.Values(ports))) }

func joinPorts(ports []int32) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
}

// TakenUp is whether the swap is an earlier bridge's.
func (s *Session) TakenUp() bool { return s.lease != nil && !s.joins }

// begin keeps the session from now on: before anything is claimed or, of an earlier swap, changed.
func (s *Session) begin(p *Plan) error {
	now := uint64(time.Now().UnixNano())
	err := s.keep(func(saved *savedSession) {
		epoch := max(now, saved.Epoch+1) // the clock may have been set back
		if s.TakenUp() {
			saved.Process, saved.Epoch, saved.Ports = os.Getpid(), epoch, p.Ports
			return
		}
		*saved = savedSession{
			Version: sessionVersion, Process: os.Getpid(), Server: s.kube.Config.Host, Target: p.Undo.Target, Lease: p.Lease.Name,
			Key: s.key, Epoch: epoch,
			Container: p.container, Image: p.source.Image, Arch: p.source.Arch, PodProxy: p.podProxy, Choice: p.Choice, Have: p.have, Ports: p.Ports, Own: p.Own, ToPod: p.toPod, Init: p.init,
		}
	})
	return fault.After(fault.SessionKept, err)
}

// keep makes a change to what is kept.
func (s *Session) keep(change func(*savedSession)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.saved)
	if s.file == nil {
		return nil
	}
	err := s.file.Write(s.saved)
	s.kept = s.kept || err == nil
	return err
}

// held notes that the swap is made: from now on it can be taken up.
func (s *Session) held(lease *coordinationv1.Lease) error {
	return fault.After(fault.SessionHeld, s.keep(func(saved *savedSession) {
		saved.Held, saved.LeaseUID, saved.Since = true, lease.UID, lease.CreationTimestamp.Time
	}))
}

// ends notes that giving back begins: from now on it can only be given back. What cannot be noted so is forgotten.
func (s *Session) ends() {
	if err := fault.After(fault.SessionEnding, s.keep(func(saved *savedSession) { saved.Held = false })); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.file.Remove()
		s.file = nil
	}
}

// forget has nothing kept any more; the file is still held, and goes with Close.
func (s *Session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved, s.kept = savedSession{}, false
	if s.file != nil {
		_ = fault.After(fault.SessionForgotten, s.file.Write(struct{}{}))
	}
}

// follow keeps the keys of the pods that t meets, until ctx ends.
func (s *Session) follow(ctx context.Context, t *tunnel.Client) {
	for {
		_, changed := t.Watch()
		pins := t.Pinned()
		s.mu.Lock()
		maps.Copy(pins, s.saved.Pins) // another tunnel's too; a key once pinned stays
		known := maps.Equal(pins, s.saved.Pins)
		s.mu.Unlock()
		if !known {
			_ = s.keep(func(saved *savedSession) { saved.Pins = pins }) // without them they are learnt anew
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// forgetSession removes what this machine keeps of a swap that is given back, unless its bridge still runs: that does it
// itself.
func forgetSession(k *kube.Client, t kube.Target) error {
	path, err := sessionPath(k, leaseName(t))
	if err != nil {
		return err
	}
	return private.Remove(path)
}
