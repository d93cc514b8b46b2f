package reach

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/kube"
)

// external is a Service at localhost, which a proxy pod reaches.
func external(name string, ports ...string) *corev1.Service {
	s := service(name)
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "localhost"
	for _, p := range ports {
		n, _ := strconv.Atoi(p)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "p" + p, Port: int32(n)})
	}
	return &s
}

// targetOf is a Service's, with any free local ports.
func targetOf(s *corev1.Service) Target {
	t := targetsOf([]corev1.Service{*s})[0]
	t.Address = netip.MustParseAddr("127.0.0.1")
	for i := range t.Ports {
		t.Ports[i].Local = 0
	}
	return t
}

func host(t *testing.T, port string) Target {
	t.Helper()
	parsed, err := forward.ParseArgs([]string{":localhost:" + port})
	if err != nil {
		t.Fatal(err)
	}
	target, err := ParseTarget(parsed, "")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// told is a Set that is told its targets.
type told struct {
	*running
	now chan []Target
}

func follow(t *testing.T, set *fake.Clientset, change func(*Set)) *told {
	t.Helper()
	f := &told{now: make(chan []Target)}
	f.running = start(t, func(s *Set) {
		s.Kube = &kube.Client{Clientset: set, Namespace: "shop"}
		s.Check = func(context.Context, kube.Target) error { return nil }
		s.Many = true
		s.Follow = func(ctx context.Context, changed func([]Target)) {
			for {
				select {
				case list := <-f.now:
					changed(list)
				case <-ctx.Done():
					return
				}
			}
		}
		if change != nil {
			change(s)
		}
	})
	return f
}

// until tells the targets again and again until there is a line.
func (f *told) until(lines <-chan string, now ...Target) string {
	f.t.Helper()
	for end := time.After(time.Minute); ; {
		select {
		case line := <-lines:
			return line
		default:
		}
		select {
		case line := <-lines:
			return line
		case f.now <- now:
			time.Sleep(time.Millisecond)
		case err := <-f.done:
			f.t.Fatalf("it ended: %v", err)
		case <-end:
			f.t.Fatal("no line comes")
		}
	}
}

func (f *told) end() {
	f.t.Helper()
	f.stop()
	if err := f.ends(); err != nil {
		f.t.Error(err)
	}
}

// local is the local end that a line tells.
func local(line string) string { return strings.Fields(line)[1] }

func awaitClosed(t *testing.T, address string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			_ = c.Close()
		}
		if time.Now().After(end) {
			t.Fatalf("%s is open", address)
		}
	}
}

// stay is a connection that was answered once.
func stay(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	again(t, c)
	return c
}

func again(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, err := io.WriteString(c, "x")
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		t.Fatalf("an open connection: %v", err)
	}
}

// A port that comes, or another order, leaves the others and their connections; the connections of one that goes are reset.
func TestPortsOfAServiceComeAndGo(t *testing.T) {
	a, b := echo(t), echo(t)
	set := fake.NewClientset(external("x", a))
	services := set.CoreV1().Services("shop")
	f := follow(t, set, nil)
	at := local(f.until(f.printed, targetOf(external("x", a))))
	c := stay(t, at)
	if _, err := services.Update(t.Context(), external("x", b, a), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	line := f.until(f.printed, targetOf(external("x", b, a)))
	if !strings.HasSuffix(line, "service/x:"+b) {
		t.Errorf("%q", line)
	}
	stay(t, local(line))
	again(t, c)
	if len(f.Stats()) != 2 {
		t.Errorf("%+v", f.Stats())
	}
	f.now <- []Target{targetOf(external("x", b))}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of the port that went: %v, want a reset", err)
	}
	awaitClosed(t, at)
	stay(t, local(line))
	f.end()
}

// What fails for a while is tried again, and said once; what is refused is not.
func TestAServiceThatCouldNotBeLookedUpIsTriedAgain(t *testing.T) {
	port := echo(t)
	var broken atomic.Bool
	broken.Store(true)
	set := fake.NewClientset(external("x", port))
	set.PrependReactor("list", "services", func(k8stesting.Action) (bool, runtime.Object, error) {
		return broken.Load(), nil, apierrors.NewInternalError(errors.New("no leader"))
	})
	target := targetOf(external("x", port))
	for _, atStart := range []bool{true, false} {
		broken.Store(true)
		f := follow(t, set, func(s *Set) {
			if atStart {
				s.Targets = []Target{target}
			}
		})
		if line := f.until(f.said, target); !strings.Contains(line, "no leader") {
			t.Errorf("%q", line)
		}
		f.now <- []Target{target}
		f.now <- []Target{target}
		broken.Store(false)
		greet(t, "tcp", local(f.until(f.printed, target)))
		n := 1
		for len(f.said) > 0 {
			n += strings.Count(<-f.said, "no leader")
		}
		if n > 2 { // at the start, and at the first change
			t.Errorf("it is said %d times", n)
		}
		f.end()
	}
	var asked atomic.Int32
	refused := hint.Newf(hint.Forbidden, "", "your account may not")
	f := follow(t, set, func(s *Set) { s.CheckProxy = func(context.Context) error { asked.Add(1); return refused } })
	f.until(f.said, target)
	for range 3 {
		f.now <- []Target{target}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it is asked %d times", n)
	}
	f.end()
}

// Nothing of a Service is followed that has no local end.
func TestARefusedServiceIsNotFollowed(t *testing.T) {
	target := targetOf(external("x", "80"))
	for _, atStart := range []bool{true, false} {
		set := fake.NewClientset(external("x", "80"))
		watches := make(chan *watch.RaceFreeFakeWatcher, 10)
		set.PrependWatchReactor("*", func(k8stesting.Action) (bool, watch.Interface, error) {
			w := watch.NewRaceFreeFake()
			watches <- w
			return true, w, nil
		})
		var began []*watch.RaceFreeFakeWatcher
		f := follow(t, set, func(s *Set) {
			if atStart {
				s.Targets = []Target{target}
			}
			s.CheckProxy = func(context.Context) error {
				began = append(began, <-watches, <-watches)
				return hint.Newf(hint.Forbidden, "", "your account may not")
			}
		})
		if !atStart {
			f.now <- []Target{target}
		}
		f.next(f.said)
		for end := time.Now().Add(time.Minute); !began[0].IsStopped() || !began[1].IsStopped(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is followed")
			}
		}
		f.end()
	}
}

// A proxy pod that ends takes what needs it along, with its local ports; others go on, and what comes later has a proxy pod of its own.
func TestOthersOutliveTheProxyPod(t *testing.T) {
	s := service("pods", corev1.ServicePort{Port: 80})
	s.Spec.Selector = map[string]string{"app": "pods"}
	pods, port := targetOf(&s), echo(t)
	lost := hint.Newf(hint.TunnelLost, "", "the tunnel is lost")
	for _, ready := range []bool{true, false} {
		var began atomic.Int32
		end := make(chan struct{})
		f := follow(t, fake.NewClientset(&s), func(set *Set) {
			set.Targets = []Target{pods, host(t, "1")}
			set.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
				if began.Add(1) > 1 {
					return use(ctx, new(net.Dialer).DialContext)
				}
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				go func() { <-end; cancel() }()
				if ready {
					_ = use(ctx, new(net.Dialer).DialContext)
				}
				<-ctx.Done()
				return lost
			}
		})
		line := f.next(f.printed)
		if ready { // in any order
			if other := f.next(f.printed); strings.HasPrefix(other, "pods ") {
				line = other
			}
		}
		podsAt := local(line)
		var at string
		for at == "" {
			for _, st := range f.Stats() {
				if st.Target == "localhost:1" {
					at = st.Local[0]
				}
			}
		}
		close(end)
		if line := f.next(f.said); line != "localhost:1: the tunnel is lost" {
			t.Errorf("%q", line)
		}
		awaitClosed(t, at)
		if st := f.Stats(); len(st) != 1 || st[0].Target != "service/pods:80" {
			t.Errorf("%+v", st)
		}
		f.now <- []Target{pods, host(t, "1"), host(t, port)}
		greet(t, "tcp", strings.Fields(f.next(f.printed))[2])
		if c, err := net.Dial("tcp", podsAt); err != nil {
			t.Error(err)
		} else {
			_ = c.Close()
		}
		f.end()
	}
	// Where nothing else is left, that is the end.
	f := follow(t, fake.NewClientset(), func(set *Set) { set.Targets = []Target{host(t, "1")} })
	f.next(f.printed)
	f.lose(lost)
	if err := f.ends(); hint.CodeOf(err) != hint.TunnelLost {
		t.Error(err)
	}
	f.stop()
}

// What comes while a proxy pod that has lost its tunnel is being removed waits for no end of that: it has another one.
func TestWhatComesAfterALossHasAnotherProxyPod(t *testing.T) {
	port := echo(t)
	var began atomic.Int32
	lose, removed := make(chan struct{}), make(chan struct{})
	left := make(chan struct{}, 1)
	f := follow(t, fake.NewClientset(), func(set *Set) {
		set.Targets = []Target{host(t, "1")}
		set.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
			if began.Add(1) > 1 {
				return use(ctx, new(net.Dialer).DialContext)
			}
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() { <-lose; cancel() }()
			_ = use(ctx, new(net.Dialer).DialContext)
			left <- struct{}{}
			<-removed
			return hint.Newf(hint.TunnelLost, "", "the tunnel is lost")
		}
	})
	f.next(f.printed)
	close(lose)
	<-left
	f.now <- []Target{host(t, "1"), host(t, port)}
	greet(t, "tcp", strings.Fields(f.next(f.printed))[2])
	close(removed)
	if line := f.next(f.said); line != "localhost:1: the tunnel is lost" {
		t.Errorf("%q", line)
	}
	f.end()
}

// A port that cannot be reached as asked takes none of its Service's others along, from the start neither.
func TestARefusedPortIsNotTheWholeService(t *testing.T) {
	s := service("pods", corev1.ServicePort{Name: "web", Port: 80}, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP})
	s.Spec.Selector = map[string]string{"app": "pods"}
	for _, atStart := range []bool{true, false} {
		f := follow(t, fake.NewClientset(&s), func(set *Set) {
			set.Via = Pods
			if atStart {
				set.Targets = []Target{targetOf(&s)}
			}
		})
		if !atStart {
			f.now <- []Target{targetOf(&s)}
		}
		if line := f.next(f.said); !strings.Contains(line, "service/pods: service/pods:53/udp: ") {
			t.Errorf("at the start %v: %q", atStart, line)
		}
		if line := f.next(f.printed); !strings.HasSuffix(line, "80") {
			t.Errorf("at the start %v: %q", atStart, line)
		}
		f.end()
	}
}

// byHand is a Service without a selector, and endpoints: a pod that is not ready, and addresses.
func byHand(port int32, addresses ...string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	s := service("x", corev1.ServicePort{Port: port})
	no := false
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "x-1", Labels: map[string]string{discoveryv1.LabelServiceName: "x"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a", UID: "a"},
			Conditions: discoveryv1.EndpointConditions{Ready: &no},
		}},
	}
	for _, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return &s, slice
}

func TestThereIsNoEndOfWhatIsNoPod(t *testing.T) {
	service, slice := byHand(80, "192.0.2.1")
	set := fake.NewClientset(service, slice)
	target := targetOf(service)
	target.Address = netip.Addr{}
	r := start(t, func(s *Set) {
		s.Kube = &kube.Client{Clientset: set, Namespace: "shop"}
		s.Check = func(context.Context, kube.Target) error { return nil }
		s.Targets, s.Via, s.Once = []Target{target}, Proxy, true
	})
	if err := r.ends(); hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "192.0.2.1:80 is no pod") {
		t.Errorf("%v", err)
	}
	r.stop()
}

// What was pods when bridge began, and becomes addresses or a name, is reached through a proxy pod from the next connection on; also one that waits for a pod. Who may
// have none is told.
func TestWhatIsNoPodsAnyMoreIsReachedThroughTheProxy(t *testing.T) {
	text := echo(t)
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	port := int32(number)
	for _, may := range []bool{true, false} {
		service, slice := byHand(port)
		set := fake.NewClientset(service, slice)
		var began atomic.Int32
		f := follow(t, set, func(s *Set) {
			target := targetOf(service)
			s.Targets, s.Wait = []Target{target}, time.Minute
			run := s.Proxy
			s.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
				began.Add(1)
				return run(ctx, use)
			}
			if !may {
				s.CheckProxy = func(context.Context) error { return hint.Newf(hint.Forbidden, "", "your account may not") }
			}
		})
		at := local(f.next(f.printed))
		waits, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		_, slice = byHand(port, "127.0.0.1")
		slice.Endpoints = slice.Endpoints[1:]
		if _, err := set.DiscoveryV1().EndpointSlices("shop").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		line := f.next(f.said)
		if !may {
			if !strings.Contains(line, "needs a proxy pod now, because the endpoints of service/x are no pods: your account may not") {
				t.Errorf("%q", line)
			}
			if _, err := waits.Read(make([]byte, 1)); err == nil {
				t.Error("it is answered")
			}
			_ = waits.Close()
			f.end()
			continue
		}
		if !strings.HasPrefix(line, "note: service/x:"+text+" goes through a proxy pod now, because the endpoints of service/x are no pods") {
			t.Errorf("%q", line)
		}
		again(t, waits)
		_ = waits.Close()
		for _, name := range []string{"", "localhost"} {
			if name != "" {
				if _, err := set.CoreV1().Services("shop").Update(t.Context(), external("x", text), metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			stay(t, at)
		}
		if n := began.Load(); n != 1 {
			t.Errorf("%d proxy pods were begun", n)
		}
		f.end()
	}
}

// Connections that need a proxy pod which cannot be had begin one, or ask for one, now and then only, and it is noted once.
func TestAProxyPodThatCannotBeHadIsNotTriedWithEachConnection(t *testing.T) {
	for _, may := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			asked, began, noted := 0, 0, 0
			no := errors.New("there is no room")
			group, ctx := errgroup.WithContext(t.Context())
			w := &work{group: group, ctx: ctx, Set: &Set{
				DialTimeout: time.Minute, Log: slog.New(slog.DiscardHandler), Say: func(string) { noted++ },
				CheckProxy: func(context.Context) error {
					if asked++; !may {
						return no
					}
					return nil
				},
				Proxy: func(context.Context, func(context.Context, Dial) error) error {
					began++
					return no
				},
			}}
			e := &end{unit: &unit{eps: &kube.Endpoints{}}, fixed: kube.Endpoint{Pod: "x", Port: 80}}
			for range 30 {
				if _, err := w.dialBeyond(t.Context(), e, "tcp", "80"); !errors.Is(err, no) {
					t.Fatalf("may: %v: %v", may, err)
				}
				time.Sleep(time.Second)
			}
			want := [3]int{3, 0, 0}
			if may {
				want = [3]int{3, 3, 1}
			}
			if got := [3]int{asked, began, noted}; got != want {
				t.Errorf("may: %v: asked, begun and noted %v times, want %v", may, got, want)
			}
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheSameFailureIsSaidNowAndThenAndAlwaysCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		s := &Set{Say: func(line string) { said = append(said, line) }, Log: slog.New(slog.DiscardHandler)}
		e := &end{unit: &unit{Target: host(t, "1")}, port: host(t, "1").Ports[0], network: "udp"}
		for range 100 {
			s.failed(e, syscall.EACCES)
		}
		s.failed(e, syscall.ECONNREFUSED)
		if len(said) != 2 {
			t.Errorf("%q", said)
		}
		time.Sleep(repeatAfter)
		s.failed(e, syscall.ECONNREFUSED)
		if len(said) != 3 || !e.stats.Now().LastErrorAt.Equal(time.Now().UTC().Truncate(time.Second)) {
			t.Errorf("%q, %+v", said, e.stats.Now())
		}
	})
}

// A list that fails, with whatever code, changes nothing; an empty one does.
func TestAListThatFailsChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fake.NewClientset(external("x", "80"))
		var mu sync.Mutex // of the next two
		var failure error
		var told [][]Target
		set.PrependReactor("list", "services", func(k8stesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			return failure != nil, nil, failure
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() {
			FollowServices(ctx, &kube.Client{Clientset: set, Namespace: "shop"}, "", func(now []Target) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, now)
			}, slog.New(slog.DiscardHandler))
		})
		for i, err := range []error{nil, apierrors.NewNotFound(corev1.Resource("services"), ""), apierrors.NewInternalError(io.EOF), nil} {
			mu.Lock()
			failure = err
			mu.Unlock()
			time.Sleep(followEvery)
			synctest.Wait()
			mu.Lock()
			if want := []int{1, 1, 1, 2}[i]; len(told) != want || len(told[want-1]) != 1 {
				t.Errorf("with %v: %d", err, len(told))
			}
			mu.Unlock()
		}
		if err := set.CoreV1().Services("shop").Delete(ctx, "x", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(followEvery)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(told) != 3 || len(told[2]) != 0 {
			t.Errorf("without any: %d", len(told))
		}
	})
}

func TestServicesAreBounded(t *testing.T) {
	set := fake.NewClientset()
	k := &kube.Client{Clientset: set, Namespace: "shop"}
	if _, err := Services(t.Context(), k, ""); hint.CodeOf(err) != hint.NotFound {
		t.Errorf("none: %v", err)
	}
	for i := range maxServices + 1 {
		if err := set.Tracker().Add(external("x"+strconv.Itoa(i), "80")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Services(t.Context(), k, ""); hint.CodeOf(err) != hint.Usage || !strings.Contains(hint.Of(err), "-l") {
		t.Errorf("too many: %v", err)
	}
}
