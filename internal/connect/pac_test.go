package connect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// in lists services as the API server does.
func in(services []Service) func(context.Context, string) ([]Service, bool, error) {
	return func(_ context.Context, namespace string) (list []Service, more bool, err error) {
		for _, s := range services {
			if namespace == "" || namespace == s.Namespace {
				list = append(list, s)
			}
		}
		return list, false, nil
	}
}

// names tells whether the file has a name.
func (p *PAC) names(name string) bool {
	return strings.Contains(string(p.file(netip.AddrPort{}, "cluster.local")), `"`+name+`"`)
}

func TestPACFile(t *testing.T) {
	p := &PAC{
		Namespace: "shop",
		Services:  in([]Service{{"orders", "shop", false}, {"db", "shop", true}, {"localhost", "shop", false}, {"web", "app", false}}),
		Ranges: func(context.Context) ([]netip.Prefix, bool) {
			return []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00::/108"), netip.MustParsePrefix("10.244.1.7/24")}, true
		},
		Direct: []string{"10.96.0.1"},
	}
	if err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := string(p.file(netip.MustParseAddrPort("127.0.0.1:1080"), "k8s.example"))
	_, file, _ = strings.Cut(file, "var cluster = ")
	data, program, _ := strings.Cut(file, ";\n")
	const want = `{
 "proxy": "PROXY 127.0.0.1:1080",
 "names": {
  "db": true,
  "db.shop": true,
  "kubernetes.default": true,
  "localhost": true,
  "localhost.shop": true,
  "orders": true,
  "orders.shop": true,
  "web.app": true
 },
 "headless": {
  "db": true,
  "db.shop": true
 },
 "suffixes": [
  ".svc",
  ".svc.k8s.example",
  ".pod.k8s.example"
 ],
 "ranges": [
  [
   "10.96.0.0",
   "255.240.0.0"
  ],
  [
   "10.244.1.0",
   "255.255.255.0"
  ]
 ],
 "direct": {
  "10.96.0.1": true,
  "localhost": true
 }
}`
	if data != want {
		t.Errorf("data:\n%s\nwant:\n%s", data, want)
	}
	// What that makes of names is asked of a browser (test/e2e). It must not resolve any.
	for _, call := range []string{"dnsResolve", "isResolvable"} {
		if strings.Contains(program, call) {
			t.Errorf("the program calls %s", call)
		}
	}
}

// Services are asked for again after a while only, and those that were known stay when that fails.
func TestPACRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		var list []Service
		var fails error
		p := &PAC{Namespace: "shop", Services: func(ctx context.Context, namespace string) ([]Service, bool, error) {
			if namespace == "shop" {
				asked++
			}
			if fails != nil {
				return nil, false, fails
			}
			return in(list)(ctx, namespace)
		}}
		refused := errors.New("forbidden")
		for _, step := range []struct {
			list  []Service
			fails error
			after time.Duration
			asked int
			err   error
			has   bool
		}{
			{nil, refused, 0, 1, refused, false},
			{[]Service{{Name: "orders", Namespace: "shop"}}, nil, pacFresh - 1, 1, refused, false},
			{[]Service{{Name: "orders", Namespace: "shop"}}, nil, 1, 2, nil, true},
			{nil, refused, pacFresh, 3, refused, true},
			{nil, nil, pacFresh, 4, nil, false},
		} {
			list, fails = step.list, step.fails
			time.Sleep(step.after)
			if err := p.Refresh(t.Context()); !errors.Is(err, step.err) || asked != step.asked || p.names("orders.shop") != step.has {
				t.Errorf("%+v: %v, asked %d times, known: %v", step, err, asked, p.names("orders.shop"))
			}
		}
	})
}

// Whatever becomes of the question for all namespaces, that for connect's own has its answer, and what was known of others stays,
// unless they are too many.
func TestPACKnowsItsOwnNamespaceFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []Service{{Name: "new", Namespace: "shop"}, {Name: "web", Namespace: "app"}}
		never := func(ctx context.Context) ([]Service, bool, error) { <-ctx.Done(); return nil, false, ctx.Err() }
		answers := func(list []Service, more bool, err error) func(context.Context) ([]Service, bool, error) {
			return func(context.Context) ([]Service, bool, error) { return slices.Clone(list), more, err }
		}
		for name, tt := range map[string]struct {
			wide       func(context.Context) ([]Service, bool, error)
			known, web bool // before, and after
		}{
			"all":                     {answers(all, false, nil), false, true},
			"never":                   {never, false, false},
			"never, and known before": {never, true, true},
			"forbidden":               {answers(nil, false, errors.New("forbidden")), true, true},
			"too many":                {answers(all, true, nil), true, false},
		} {
			p := &PAC{Namespace: "shop", Services: func(ctx context.Context, namespace string) ([]Service, bool, error) {
				if namespace == "" {
					return tt.wide(ctx)
				}
				return in(all)(ctx, namespace)
			}}
			if tt.known {
				p.others = all[1:]
			}
			if err := p.Refresh(t.Context()); err != nil || !p.names("new") || p.names("web.app") != tt.web {
				t.Errorf("%s: %v, new: %v, web.app: %v", name, err, p.names("new"), p.names("web.app"))
			}
		}
	})
}

// The ranges are asked for beside the Services; those known before stay when not all are told.
func TestPACRangesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		services, pods, more := netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.244.1.0/24")
		var told []netip.Prefix
		var whole bool
		p := &PAC{
			Namespace: "shop",
			Services: func(context.Context, string) ([]Service, bool, error) {
				time.Sleep(time.Second)
				return nil, false, nil
			},
			Ranges: func(context.Context) ([]netip.Prefix, bool) {
				time.Sleep(2 * time.Second)
				return told, whole
			},
		}
		for _, c := range []struct {
			told  []netip.Prefix
			whole bool
			want  []netip.Prefix
		}{
			{[]netip.Prefix{services, pods}, true, []netip.Prefix{services, pods}},
			{nil, false, []netip.Prefix{services, pods}},
			{[]netip.Prefix{pods, more}, false, []netip.Prefix{pods, more, services}}, // those of Services were not told in time
			{[]netip.Prefix{services, pods}, true, []netip.Prefix{services, pods}},
			{nil, true, nil}, // the right is gone
		} {
			told, whole = c.told, c.whole
			begin := time.Now()
			if err := p.Refresh(t.Context()); err != nil || time.Since(begin) != 2*time.Second || !slices.Equal(p.ranges, c.want) {
				t.Errorf("%v, whole %v: %v after %v: %v", c.told, c.whole, err, time.Since(begin), p.ranges)
			}
			for _, r := range c.want {
				if !strings.Contains(string(p.file(netip.AddrPort{}, "cluster.local")), r.Addr().String()) {
					t.Errorf("%v is not in the file", r)
				}
			}
			time.Sleep(pacFresh)
		}
	})
}

// A question that is not answered costs a browser its time, and no more: less where there are Services already.
func TestPACWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &PAC{Services: func(ctx context.Context, _ string) ([]Service, bool, error) {
			<-ctx.Done()
			return nil, false, ctx.Err()
		}}
		for _, patience := range []time.Duration{pacTime, 0, pacPatience} {
			begin := time.Now()
			p.await(t.Context(), t.Context())
			if took := time.Since(begin); took != patience {
				t.Errorf("%v, want %v", took, patience)
			}
			if patience == 0 {
				p.own = []Service{{Name: "orders", Namespace: "shop"}}
				time.Sleep(pacFresh)
			}
		}
		if err := p.Refresh(t.Context()); !errors.Is(err, context.DeadlineExceeded) { // it joins the question
			t.Error(err)
		}
		p.wait()
	})
}

// A client that goes away does not end the question, whose answer is everybody's.
func TestPACClientsGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &PAC{Namespace: "shop", Services: func(ctx context.Context, namespace string) ([]Service, bool, error) {
			select {
			case <-time.After(time.Second):
				return in([]Service{{Name: "orders", Namespace: "shop"}})(ctx, namespace)
			case <-ctx.Done():
				return nil, false, ctx.Err()
			}
		}}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		p.await(t.Context(), gone)
		if err := p.Refresh(t.Context()); err != nil || !p.names("orders") {
			t.Errorf("%v, known: %v", err, p.names("orders"))
		}
	})
}

// The file stays below what a browser takes, with connect's own namespace in it.
func TestPACIsBounded(t *testing.T) {
	long := strings.Repeat("x", 60)
	p := &PAC{Namespace: "shop" + long[4:]}
	for i := range MaxPACServices {
		p.own = append(p.own, Service{fmt.Sprintf("%s%03x", long, i), p.Namespace, true})
		p.others = append(p.others, Service{fmt.Sprintf("%s%03x", long, i), "far" + long[3:], true})
		p.ranges = append(p.ranges, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(100 + i>>8), byte(100 + i), 0}), 24))
	}
	file := p.file(netip.AddrPort{}, "cluster.local")
	if len(file) >= 1<<20 || len(file) < maxPACFile/2 {
		t.Errorf("%d bytes", len(file))
	}
	if !p.names(p.own[0].Name) || !strings.Contains(string(file), "100.100.100.0") {
		t.Error("the own namespace or the ranges are missing")
	}
}

func TestPACIsServed(t *testing.T) {
	info, dial := cluster(t)
	services := []Service{{Name: "orders", Namespace: "shop"}}
	client := startPod(t, info, dial).client
	e := run(t, client, func(o *Options) {
		o.PAC = &PAC{Namespace: "shop", Services: in(services)}
	})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(e.PAC())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	for _, part := range []string{"function FindProxyForURL(url, host)", `"PROXY ` + e.Proxy().String() + `"`, `"orders": true`, `".svc.cluster.local"`} {
		if !strings.Contains(string(body), part) {
			t.Errorf("no %s in\n%s", part, body)
		}
	}
}
