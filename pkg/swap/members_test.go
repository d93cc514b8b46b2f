//go:build unix

package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	appsv1client "k8s.io/client-go/kubernetes/typed/apps/v1"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/util/retry"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// shop is a cluster whose objects have versions, as an API server's have: an update of an older one is a conflict.
type shop struct {
	*fake.Clientset
	apps appsv1client.AppsV1Interface

	mu        sync.Mutex
	version   int
	contended bool // somebody writes to it before every other update
	updates   int
}

func (s *shop) AppsV1() appsv1client.AppsV1Interface {
	if s.apps == nil {
		return s.Clientset.AppsV1()
	}
	return s.apps
}

func newShop(objects ...runtime.Object) *shop {
	s := &shop{Clientset: fake.NewClientset()}
	s.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return false, nil, s.stamp(a.(clienttesting.CreateAction).GetObject())
	})
	s.PrependReactor("update", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		o := a.(clienttesting.UpdateAction).GetObject()
		m, err := meta.Accessor(o)
		if err != nil {
			return true, nil, err
		}
		now, err := s.Tracker().Get(a.GetResource(), a.GetNamespace(), m.GetName())
		if err != nil {
			return true, nil, err
		}
		n, err := meta.Accessor(now)
		if err != nil {
			return true, nil, err
		}
		if s.updates++; s.contended && s.updates%2 == 1 {
			if err := errors.Join(s.stamp(now), s.Tracker().Update(a.GetResource(), now, a.GetNamespace())); err != nil {
				return true, nil, err
			}
		}
		if n.GetResourceVersion() != m.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), m.GetName(), errors.New("somebody has written meanwhile"))
		}
		if len(a.(clienttesting.UpdateActionImpl).UpdateOptions.DryRun) > 0 {
			return true, o, nil
		}
		if err := s.stamp(o); err != nil {
			return true, nil, err
		}
		return true, o, s.Tracker().Update(a.GetResource(), o, a.GetNamespace())
	})
	s.PrependReactor("create", "selfsubjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil
	})
	for _, o := range objects {
		s.mu.Lock()
		err := errors.Join(s.stamp(o), s.Tracker().Add(o))
		s.mu.Unlock()
		if err != nil {
			panic(err)
		}
	}
	return s
}

// stamp needs mu.
func (s *shop) stamp(o runtime.Object) error {
	m, err := meta.Accessor(o)
	if err == nil {
		s.version++
		m.SetResourceVersion(strconv.Itoa(s.version))
	}
	return err
}

// person is somebody with a bridge.
type person struct {
	*Swap
	said []string
}

// someone is owner, with a filter of x-user and the key that digit names, in the swap of that Lease.
func someone(t *testing.T, k *kube.Client, lease *coordinationv1.Lease, u *Undo, owner, digit, user string) *person {
	t.Helper()
	c, err := route.ParseChoice([]string{"x-user=" + user}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tunnel.ParseFingerprint(strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	p := &person{Swap: &Swap{
		Kube: k, Plan: &Plan{Undo: *u, Choice: c, owner: owner}, Session: &Session{kube: k, lease: lease, joins: true},
		proxy: &proxypod.Proxy{Kube: k, Namespace: lease.Namespace, Lease: lease.Name}, lines: &lines{},
		claim: &claim{kube: k, lease: lease, share: &member.Member{Owner: owner, Client: key, Choice: c, Since: noon, Renewed: noon}},
	}}
	p.init()
	p.Say = func(line string) { p.said = append(p.said, line) }
	return p
}

// sharedShop has a swap that ada has made for x-user=ada, and the person ada.
func sharedShop(t *testing.T) (*kube.Client, *coordinationv1.Lease, *Undo, *person) {
	t.Helper()
	u := undo.New(Object{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "shop", Name: "orders", UID: "uid-orders"}, "ada@laptop", noon)
	record, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	lease := newLease(&u, record, "ada@laptop", "", noon)
	lease.UID = "uid-lease"
	client, err := kube.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	ada := someone(t, client, lease, &u, "ada@laptop", "a", "ada")
	l := member.New(*ada.claim.share)
	l.Made, l.Container, l.Ports, l.Tunnel = true, "app", []int32{8080}, 27100
	if err := setMembers(lease, l); err != nil {
		t.Fatal(err)
	}
	client.Clientset = newShop(lease)
	return client, lease, &u, ada
}

// withTarget has the workload there too, which is read in another way.
func withTarget(t *testing.T, k *kube.Client) {
	t.Helper()
	d := deploymentWith(metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "uid-orders"})
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	k.Clientset.(*shop).apps = apiServer(t, map[string]any{deploymentPath + "orders": d}, noWrite(t)).Clientset.AppsV1()
}

// list is what the Lease says now.
func list(t *testing.T, k *kube.Client) (member.List, *coordinationv1.Lease) {
	t.Helper()
	lease, err := k.Clientset.CoordinationV1().Leases("shop").Get(t.Context(), "bridge-deployment-orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := membersOf(lease)
	if err != nil {
		t.Fatal(err)
	}
	return l, lease
}

// known is what the proxies read.
func known(t *testing.T, k *kube.Client) (clients []string) {
	t.Helper()
	m, err := k.Clientset.CoreV1().ConfigMaps("shop").Get(t.Context(), "bridge-deployment-orders-members", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	shares, err := member.ParseShares(proxypod.MembersOf(m))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shares {
		clients = append(clients, s.Client.String()[:1])
	}
	slices.Sort(clients)
	return clients
}

// Of those who come at once each has a place, and of two who want the same requests one; the proxies know all of them in the end,
// whoever writes last.
func TestMembersJoinAtOnce(t *testing.T) {
	k, lease, u, _ := sharedShop(t)
	k.Clientset.(*shop).contended = true
	var people []*person
	for i, digit := range []string{"1", "2", "3", "4", "5", "6"} {
		people = append(people, someone(t, k, lease, u, fmt.Sprintf("p%d@pc", i), digit, fmt.Sprintf("p%d", i/2))) // two by two the same
	}
	errs := make([]error, len(people))
	var wg sync.WaitGroup
	for i, p := range people {
		wg.Go(func() {
			if _, errs[i] = p.join(t.Context(), p.claim.share); errs[i] == nil {
				errs[i] = p.tellProxies(t.Context())
			}
		})
	}
	wg.Wait()
	for i := 0; i < len(people); i += 2 {
		one, other := errs[i], errs[i+1]
		if (one == nil) == (other == nil) {
			t.Errorf("both or none of two with the same requests: %v, %v", one, other)
			continue
		}
		refused, winner := i, i+1
		if one == nil {
			refused, winner = i+1, i
		}
		if err := errs[refused]; hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("could be p%d@pc's too, who has --header x-user=p%d", winner, i/2)) {
			t.Errorf("refused with %v", err)
		}
	}
	l, now := list(t, k)
	if len(l.Members) != 4 || holder(now) != l.Owners() || !strings.HasPrefix(holder(now), "ada@laptop, ") {
		t.Errorf("%d members, held by %s", len(l.Members), holder(now))
	}
	if got := known(t, k); len(got) != 4 || got[3] != "a" {
		t.Errorf("the proxies know %q", got)
	}
	// Whoever is there makes the proxies' list anew when somebody has deleted it.
	if err := k.Clientset.CoreV1().ConfigMaps("shop").Delete(t.Context(), "bridge-deployment-orders-members", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := people[0].tellProxies(t.Context()); err != nil {
		t.Error(err)
	}
	if got := known(t, k); len(got) != 4 {
		t.Errorf("the proxies know %q", got)
	}
}

// Of those who leave at once one is the last, whoever that is, and takes the Lease to give back; the first may leave before the others.
func TestMembersLeaveAtOnce(t *testing.T) {
	for range 4 {
		k, lease, u, ada := sharedShop(t)
		k.Clientset.(*shop).contended = true
		people := []*person{ada}
		for i, digit := range []string{"1", "2", "3"} {
			p := someone(t, k, lease, u, fmt.Sprintf("p%d@pc", i), digit, fmt.Sprintf("p%d", i))
			if _, err := p.join(t.Context(), p.claim.share); err != nil {
				t.Fatal(err)
			}
			people = append(people, p)
		}
		last := make([]*claim, len(people))
		var wg sync.WaitGroup
		for i, p := range people {
			wg.Go(func() {
				goOn, _, c, err := p.leaving().leave(t.Context())
				if err != nil || (c == nil) != (len(goOn) > 0) {
					t.Errorf("%s: %v, others %d", p.Plan.owner, err, len(goOn))
				}
				last[i] = c
			})
		}
		wg.Wait()
		_, now := list(t, k)
		n := 0
		for i, c := range last {
			if c != nil {
				n++
				if holder(now) != proxypod.RestoreBy+people[i].Plan.owner || c.check(t.Context()) != nil {
					t.Errorf("the last is %s, the Lease is held by %s", people[i].Plan.owner, holder(now))
				}
			}
		}
		if n != 1 {
			t.Errorf("%d were the last", n)
		}
	}
}

// leaving is as leave has it.
func (p *person) leaving() *leaving {
	return &leaving{
		r: &Restorer{Kube: p.Kube, Say: func(string) {}}, lease: p.claim.lease, client: p.claim.share.Client, owner: p.Plan.owner,
		record: &p.Plan.Undo, alive: p.watched.alive,
	}
}

// Who comes while the last one leaves has a place, or is told; never is somebody in a swap that is being given back.
func TestMembersJoinWhileTheLastLeaves(t *testing.T) {
	joined, told := 0, 0
	for range 30 {
		k, lease, u, ada := sharedShop(t)
		bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
		var gave *claim
		var leaveErr, joinErr error
		var wg sync.WaitGroup
		wg.Go(func() { _, _, gave, leaveErr = ada.leaving().leave(t.Context()) })
		wg.Go(func() { _, joinErr = bob.join(t.Context(), bob.claim.share) })
		wg.Wait()
		switch {
		case leaveErr != nil:
			t.Error(leaveErr)
		case joinErr == nil && gave == nil:
			joined++
			if l, now := list(t, k); holder(now) != "bob@pc" || len(l.Members) != 1 {
				t.Errorf("held by %s", holder(now))
			}
		case hint.CodeOf(joinErr) == hint.Conflict && gave != nil:
			told++
			if !strings.Contains(joinErr.Error(), "is being given back") {
				t.Errorf("told %v", joinErr)
			}
		default:
			t.Errorf("joined with %v, given back %v", joinErr, gave != nil)
		}
	}
	t.Logf("%d joined, %d were told", joined, told)
}

// heartbeat is one that comes through.
func (p *person) heartbeat(t *testing.T) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		_, now := list(t, p.Kube)
		if err := p.beat(now, proxypod.State{Phase: "ready"}); err != nil {
			return err
		}
		_, err := p.Kube.Clientset.CoordinationV1().Leases("shop").Update(t.Context(), now, metav1.UpdateOptions{})
		return err
	})
}

// A lapsed member is no reason to stay, and its place may be taken; one whose heartbeat comes keeps it.
func TestLapsedMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, lease, u, ada := sharedShop(t)
		bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
		c, err := bob.join(t.Context(), bob.claim.share)
		if err != nil {
			t.Fatal(err)
		}
		bob.claim = c
		beat := func(p *person) error { return p.heartbeat(t) }
		for range 5 {
			if err := errors.Join(beat(bob), beat(ada)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		l, _ := list(t, k)
		if n := len(bob.watched.alive(l.Others(bob.claim.share.Client))); n != 1 {
			t.Errorf("%d others are alive, with a heartbeat each ten seconds", n)
		}

		// Eve wants ada's requests: while ada is there she has no chance.
		choice, _ := route.ParseChoice([]string{"x-user=ada"}, "/api", false)
		o := Options{Owner: "eve@pc", Choice: choice, Now: noon, Version: "v1.2.0"}
		var said []string
		say := func(line string) { said = append(said, line) }
		join := func() error {
			s := &Session{kube: k}
			_, l, err := s.joinable(leaseNow(t, k), orders, o)
			if err != nil {
				return err
			}
			if err := s.makeRoom(t.Context(), leaseNow(t, k), u, l, l.Claiming(o.Choice), say); err != nil {
				return err
			}
			eve := someone(t, k, lease, u, "eve@pc", "e", "ada")
			eve.Session.displaces = s.displaces
			_, err = eve.join(t.Context(), eve.claim.share)
			return err
		}
		beating := make(chan error, 1)
		go func() {
			time.Sleep(9 * time.Second)
			beating <- beat(ada)
		}()
		if err := join(); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), "could be ada@laptop's too") {
			t.Errorf("a living one is displaced: %v", err)
		}
		if err := <-beating; err != nil {
			t.Fatal(err)
		}

		// Ada is gone, bob is not.
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for sleep(ctx, 10*time.Second) == nil {
				if err := beat(bob); err != nil {
					t.Error(err)
				}
			}
		}()
		start := time.Now()
		if err := join(); err != nil {
			t.Errorf("a lapsed one is not displaced: %v", err)
		}
		if took := time.Since(start); took < time.Minute || took > 70*time.Second {
			t.Errorf("after %v", took)
		}
		stop()
		<-done
		l, _ = list(t, k)
		if got := l.Owners(); got != "bob@pc, eve@pc" {
			t.Errorf("shared by %s", got)
		}
		// Ada wakes up.
		taken := new(proxypod.TakenError)
		if err := beat(ada); !errors.As(err, &taken) || !taken.Share || taken.By != "eve@pc" {
			t.Errorf("the displaced one's heartbeat: %v", err)
		}
		if err := ada.claim.check(t.Context()); !errors.As(err, &taken) || !taken.Share {
			t.Errorf("the displaced one's claim: %v", err)
		}
		if len(said) != 2 || !strings.Contains(said[0], "looking whether ada@laptop is there, for up to 1m0s") {
			t.Errorf("said %q", said)
		}

		// Eve lapses too, and bob, who has seen it, is the last.
		for range 8 {
			if err := beat(bob); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		goOn, _, gave, err := bob.leaving().leave(t.Context())
		if err != nil || gave == nil || len(goOn) > 0 {
			t.Errorf("the last one alive goes: %v, %d go on", err, len(goOn))
		}
	})
}

// Where there are as many as there may be, who comes has the place of the one who was silent for longest; whoever is heard of keeps theirs.
func TestFullListMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, lease, u, ada := sharedShop(t)
		people := []*person{ada}
		for i := 1; i < member.Max; i++ {
			p := someone(t, k, lease, u, fmt.Sprintf("p%d@pc", i), fmt.Sprintf("%x", i%10), fmt.Sprintf("p%d", i))
			p.claim.share.Client[0] = byte(i)
			c, err := p.join(t.Context(), p.claim.share)
			if err != nil {
				t.Fatal(err)
			}
			p.claim = c
			people = append(people, p)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		// keep has these people's heartbeats come, until ctx is done.
		keep := func(ctx context.Context, people []*person) (done chan struct{}) {
			done = make(chan struct{})
			go func() {
				defer close(done)
				for sleep(ctx, 10*time.Second) == nil {
					for _, p := range people {
						if err := p.heartbeat(t); err != nil {
							t.Error(err)
						}
					}
				}
			}()
			return done
		}
		var said []string
		eve := someone(t, k, lease, u, "eve@pc", "e", "eve")
		join := func() error {
			l, now := list(t, k)
			if err := eve.Session.makeRoom(t.Context(), now, u, l, l.Claiming(eve.Plan.Choice), func(line string) { said = append(said, line) }); err != nil {
				return err
			}
			_, err := eve.join(t.Context(), eve.claim.share)
			return err
		}
		all, stopAll := context.WithCancel(ctx)
		done := keep(all, people)
		if err := join(); !errors.Is(err, member.ErrFull) || hint.CodeOf(err) != hint.Conflict {
			t.Errorf("beside as many as there may be: %v", err)
		}
		stopAll()
		<-done

		time.Sleep(time.Second)
		gone := people[member.Max-2]
		for _, p := range people {
			if p == gone {
				continue
			}
			if err := p.heartbeat(t); err != nil {
				t.Fatal(err)
			}
		}
		done = keep(ctx, people[:member.Max-3])
		if err := join(); err != nil {
			t.Errorf("three of them are gone: %v", err)
		}
		stop()
		<-done
		l, _ := list(t, k)
		if _, there := l.Of(gone.claim.share.Client); there || len(l.Members) != member.Max || !strings.HasSuffix(l.Owners(), "p13@pc, p15@pc, eve@pc") {
			t.Errorf("shared by %s", l.Owners())
		}
		taken := new(proxypod.TakenError)
		if err := gone.claim.check(t.Context()); !errors.As(err, &taken) || !taken.Share || !strings.Contains(err.Error(), "share was dropped") || GivenBackMeanwhile(err) {
			t.Errorf("the claim of who was dropped: %v", err)
		}
		if len(said) != 2 {
			t.Errorf("said %q", said)
		}
	})
}

// A bridge that stands back, since somebody else gives back, has nothing to do with that one's heartbeat, whatever they are called: whoever
// gives back renews the Lease while at work, and who dies at it has lapsed.
func TestDeadRestorerLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _, u, ada := sharedShop(t)
		r := &Restorer{Kube: k, Say: func(string) {}}
		restorer := func() *claim {
			_, c, err := r.takeLease(t.Context(), orders, proxypod.RestoreBy+ada.Plan.owner, nil, swapOf(u))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		c := restorer()
		ada.ending.Store(true)
		_, now := list(t, k)
		if err := ada.beat(now, proxypod.State{}); !errors.As(err, new(*proxypod.TakenError)) {
			t.Errorf("the heartbeat of who stands back: %v", err)
		}

		// The restorer is at work for long, and then it dies.
		working, die := context.WithTimeout(t.Context(), 5*time.Minute)
		defer die()
		var running sync.WaitGroup
		running.Go(func() { c.renew(working, func(line string) { t.Error(line) }) })
		start := time.Now()
		err := ada.claim.awaitEnd(t.Context(), u)
		if took := time.Since(start); !errors.Is(err, errLapsed) || took < 6*time.Minute-10*time.Second || took > 6*time.Minute+10*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		running.Wait()

		// Another one is at work, until it has given back.
		c = restorer()
		working, stop := context.WithCancel(t.Context())
		running.Go(func() { c.renew(working, func(line string) { t.Error(line) }) })
		running.Go(func() {
			time.Sleep(5 * time.Minute)
			stop()
			if err := c.release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		if err := ada.claim.awaitEnd(t.Context(), u); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
}

// A list that nobody can read any more ends the swap for all who share it: one of them gives back, as does whoever restores, and all of them say why.
func TestUnreadableList(t *testing.T) {
	for name, text := range map[string]string{"no JSON": `{"version":1,"prot`, "nobody": `{"version":1,"protocol":2,"members":[]}`, "none": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, lease, u, ada := sharedShop(t)
				bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
				var err error
				if bob.claim, err = bob.join(t.Context(), bob.claim.share); err != nil {
					t.Fatal(err)
				}
				_, now := list(t, k)
				if now.Annotations[proxypod.MembersAnnotation] = text; text == "" {
					delete(now.Annotations, proxypod.MembersAnnotation)
				}
				if _, err := k.Clientset.CoordinationV1().Leases("shop").Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				where := "annotation bridge.internal/members of lease/bridge-deployment-orders"
				if text == "" {
					where = "it is not shared"
				}
				for what, err := range map[string]error{"holding": bob.hold(t.Context()), "the heartbeat": bob.beat(now, proxypod.State{}), "making it": ada.made(t.Context())} {
					if !errors.Is(err, errNoList) || hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), where) {
						t.Errorf("%s: %v", what, err)
					}
				}
				if text != "" {
					e := Entry{}
					if e.judge(now, noon); !strings.Contains(e.Reason, where) {
						t.Errorf("status says %q of %q", e.Reason, e.State)
					}
					s := &Session{kube: k, saved: savedSession{Version: sessionVersion, Lease: lease.Name, LeaseUID: lease.UID, Target: u.Target, Held: true, Key: newKey(t)}}
					if _, err := s.TakeUp(t.Context(), orders, Options{}, proxypod.Source{}, func(string) {}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), where) || s.saved.Version == 0 {
						t.Errorf("taking it up: %v", err)
					}
					if _, err := s.Join(t.Context(), orders, Options{Choice: bob.Plan.Choice}, proxypod.Source{}, func(string) {}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), where) {
						t.Errorf("joining: %v", err)
					}
				}
				v, said := bob.leaving(), []string{}
				v.r.Say = func(line string) { said = append(said, line) }
				if goOn, _, c, err := v.leave(t.Context()); err != nil || len(goOn) > 0 || c == nil || !strings.Contains(strings.Join(said, ""), where) {
					t.Errorf("the end of one who shares it: %v, and says %q", err, said)
				}
				if err := ada.hold(t.Context()); !errors.As(err, new(*proxypod.TakenError)) {
					t.Errorf("the other one: %v", err)
				}
				if _, c, err := (&Restorer{Kube: k, Say: func(string) {}}).takeLease(t.Context(), orders, proxypod.RestoreBy+"eve@pc", nil, anySwap); err != nil || c == nil {
					t.Errorf("restore: %v", err)
				}
			})
		})
	}
}

func leaseNow(t *testing.T, k *kube.Client) *coordinationv1.Lease {
	t.Helper()
	_, lease := list(t, k)
	return lease
}

// What a second person is told, before anything is changed.
func TestJoinPlans(t *testing.T) {
	header := func(flags ...string) route.Choice {
		c, err := route.ParseChoice(flags, "", false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	other := func(change func(*member.List)) func(*coordinationv1.Lease) {
		return func(lease *coordinationv1.Lease) {
			l, err := membersOf(lease)
			if err != nil {
				t.Fatal(err)
			}
			change(&l)
			if err := setMembers(lease, l); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		o      Options
		lease  func(*coordinationv1.Lease)
		err    string // contained; "" none
		next   string
		nobody bool // nothing to join
	}{
		{name: "another value", o: Options{Choice: header("x-user=bob")}},
		{name: "without a choice", nobody: true},
		{name: "a copy", o: Options{Choice: route.Choice{Mirror: true}}, nobody: true},
		{name: "the same", o: Options{Choice: header("x-user=ada")}, err: "could be ada@laptop's too, who has --header x-user=ada since 1", next: "--take-over"},
		{name: "another container", o: Options{Choice: header("x-user=bob")}, lease: other(func(l *member.List) { l.Container = "web" }), err: "another --container: web and not app"},
		{name: "another port", o: Options{Choice: header("x-user=bob"), Ports: []string{"3000:9090"}}, err: "another --port: 8080 (http) and not 9090"},
		{name: "the port by its name", o: Options{Choice: header("x-user=bob"), Ports: []string{"3000:http"}}},
		{name: "given back", o: Options{Choice: header("x-user=bob")}, lease: func(l *coordinationv1.Lease) {
			by := "restore by eve@pc"
			l.Spec.HolderIdentity = &by
		}, err: "is being given back by eve@pc", next: "run the same command again"},
		{name: "all is ada's", o: Options{Choice: header("x-user=bob")}, lease: func(l *coordinationv1.Lease) { delete(l.Annotations, proxypod.MembersAnnotation) }, err: "already swapped by ada@laptop"},
		{name: "ada has a copy", o: Options{Choice: header("x-user=bob")}, lease: other(func(l *member.List) { l.Members[0].Choice = route.Choice{Mirror: true} }), err: "ada@laptop's too, who has --mirror"},
		{name: "a newer bridge", o: Options{Choice: header("x-user=bob")}, lease: other(func(l *member.List) { l.Version, l.Bridge = 2, "v2.0.0" }), err: "this bridge is too old to share it with the one that made it (v2.0.0)", next: "upgrade bridge here to v2.0.0"},
		{name: "an older bridge", o: Options{Choice: header("x-user=bob")}, lease: other(func(l *member.List) { l.Protocol, l.Bridge = 1, "v0.9.0" }), err: "the bridge that made it (v0.9.0) is too old", next: "upgrade bridge to v1.2.0"},
		{name: "a newer record", o: Options{Choice: header("x-user=bob")}, lease: func(l *coordinationv1.Lease) {
			l.Annotations[proxypod.UndoAnnotation] = strings.Replace(l.Annotations[proxypod.UndoAnnotation], `"version":1`, `"version":2`, 1)
		}, err: "version", next: "is this bridge older than theirs?"},
	} {
		k, lease, _, _ := sharedShop(t)
		withTarget(t, k)
		if c.lease != nil {
			c.lease(lease)
		}
		lease.ResourceVersion = leaseNow(t, k).ResourceVersion
		if _, err := k.Clientset.CoordinationV1().Leases("shop").Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.o.Owner, c.o.Version, c.o.Now = "bob@pc", "v1.2.0", noon
		s := &Session{kube: k}
		p, err := s.Join(t.Context(), orders, c.o, proxypod.Source{}, func(string) {})
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(hint.Of(err), c.next) || hint.CodeOf(err) != hint.Conflict || s.Joins() {
				t.Errorf("%s: %v (%s)", c.name, err, hint.Of(err))
			}
		case c.nobody:
			if err != nil || p != nil || s.Joins() {
				t.Errorf("%s: %v, %v", c.name, p, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case len(p.Ports) != 1 || p.Ports[0].Name != "http" || p.Own.Tunnel != 27100 || !s.Joins() || s.TakenUp() || !strings.Contains(p.Sharing(), "is shared with ada@laptop (--header x-user=ada)"):
			t.Errorf("%s: %+v, %s", c.name, p, p.Sharing())
		}
	}
}

// A dry run of joining says what would be written, and writes nothing.
func TestDryJoin(t *testing.T) {
	k, _, _, _ := sharedShop(t)
	withTarget(t, k)
	before := leaseNow(t, k)
	c, err := route.ParseChoice([]string{"x-user=bob"}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Owner: "bob@pc", Client: key.Fingerprint(), Choice: c, Now: noon}
	d, err := DryJoin(t.Context(), k, orders, o, proxypod.Source{}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1. patch lease/bridge-deployment-orders:", "ada@laptop, bob@pc", "2. patch configmap/bridge-deployment-orders-members:", key.Fingerprint().String()} {
		if !strings.Contains(string(text), want) {
			t.Errorf("without %q:\n%s", want, text)
		}
	}
	if now := leaseNow(t, k); now.ResourceVersion != before.ResourceVersion {
		t.Error("the Lease was written")
	}
	k.Clientset.(*shop).contended = true // heartbeats come meanwhile
	if err := d.Steps[0].try(t.Context()); err != nil {
		t.Error(err)
	}
	if l, _ := list(t, k); len(l.Members) != 1 {
		t.Errorf("shared by %s", l.Owners())
	}
	if d, err := DryJoin(t.Context(), k, orders, Options{}, proxypod.Source{}, func(string) {}); d != nil || err != nil {
		t.Errorf("without a choice: %v, %v", d, err)
	}
}

// What status tells of each, and of the whole.
func TestStatusOfMembers(t *testing.T) {
	k, lease, u, _ := sharedShop(t)
	bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
	var err error
	if bob.claim, err = bob.join(t.Context(), bob.claim.share); err != nil {
		t.Fatal(err)
	}
	_, now := list(t, k)
	if err := bob.beat(now, proxypod.State{Phase: "ready", Since: time.Now().UTC().Truncate(time.Second)}); err != nil {
		t.Fatal(err)
	}
	stamp := metav1.NowMicro()
	now.Spec.RenewTime = &stamp
	e := Entry{}
	e.judge(now, time.Now())
	if len(e.Members) != 2 || e.Members[0].State != "left behind" || e.Members[1].State != "ready" || !e.Members[1].Alive || e.State != "ready" || !e.Alive {
		b, _ := json.MarshalIndent(e, "", " ")
		t.Errorf("%s", b)
	}
	by := "restore by eve@pc"
	now.Spec.HolderIdentity = &by
	e = Entry{}
	if e.judge(now, time.Now()); e.State != "restoring" || len(e.Members) > 0 {
		t.Errorf("%+v", e)
	}
}

// Who finds nobody's swap, and then somebody's who was faster, shares it where that can be shared.
func TestSomebodyWasFasterWhileItWasPlanned(t *testing.T) {
	header := func(value string) route.Choice {
		c, err := route.ParseChoice([]string{"x-user=" + value}, "", false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	_, lease, _, _ := sharedShop(t)
	unshared, goes := lease.DeepCopy(), lease.DeepCopy()
	delete(unshared.Annotations, proxypod.MembersAnnotation)
	by := proxypod.RestoreBy + "eve@pc"
	goes.Spec.HolderIdentity = &by
	for name, c := range map[string]struct {
		mine   route.Choice
		theirs *coordinationv1.Lease
		faster bool
	}{
		"other requests":          {header("bob"), lease, true},
		"the same requests":       {header("ada"), lease, false},
		"all of them":             {route.Choice{}, lease, false},
		"a copy":                  {route.Choice{Mirror: true}, lease, false},
		"all of it is ada's":      {header("bob"), unshared, false},
		"it is given back":        {header("bob"), goes, false},
		"all of it is to be mine": {route.Choice{}, unshared, false},
	} {
		k := apiServer(t, map[string]any{
			deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "uid-orders"}),
			"/apis/coordination.k8s.io/v1/namespaces/shop/leases/" + lease.Name: c.theirs,
		}, noWrite(t))
		_, err := Gather(t.Context(), k, orders, proxypod.Source{}, Options{Choice: c.mine})
		if FirstWasFaster(err) != c.faster || hint.CodeOf(err) != hint.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}
