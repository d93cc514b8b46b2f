package connect

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPACFile(t *testing.T) {
	p := &PAC{
		Namespace: "shop",
		Services: func(context.Context) ([]Service, error) {
			return []Service{{"orders", "shop", false}, {"db", "shop", true}, {"localhost", "shop", false}, {"web", "app", false}}, nil
		},
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00::/108"), netip.MustParsePrefix("10.244.1.7/24")},
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
		p := &PAC{Namespace: "shop", Services: func(context.Context) ([]Service, error) { asked++; return list, fails }}
		has := func(name string) bool {
			return strings.Contains(string(p.file(netip.AddrPort{}, "cluster.local")), `"`+name+`"`)
		}
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
			if err := p.Refresh(t.Context()); !errors.Is(err, step.err) || asked != step.asked || has("orders.shop") != step.has {
				t.Errorf("%+v: %v, asked %d times, known: %v", step, err, asked, has("orders.shop"))
			}
		}
	})
}

// A question that is not answered costs its time, and no more.
func TestPACWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &PAC{Services: func(ctx context.Context) ([]Service, error) { <-ctx.Done(); return nil, ctx.Err() }}
		begin := time.Now()
		if err := p.Refresh(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != pacTime {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestPACIsServed(t *testing.T) {
	info, dial := cluster(t)
	services := []Service{{Name: "orders", Namespace: "shop"}}
	client := startPod(t, info, dial).client
	e := run(t, client, func(o *Options) {
		o.PAC = &PAC{Namespace: "shop", Services: func(context.Context) ([]Service, error) { return services, nil }}
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
