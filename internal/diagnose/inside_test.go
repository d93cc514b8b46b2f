package diagnose

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fromPod is a pod of ours in shop that gets these at ports of addresses; what is not there it does not reach.
func fromPod(answers map[string]func() (net.Conn, error)) Inside {
	return func(ctx context.Context, use func(context.Context, From) error) error {
		return use(ctx, From{"shop", map[string]string{"proxy": "it"}, func(_ context.Context, _, address string) (net.Conn, error) {
			if answer := answers[address]; answer != nil {
				return answer()
			}
			return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
		}})
	}
}

func takes() (net.Conn, error) {
	near, far := net.Pipe()
	return near, far.Close()
}

func refuses() (net.Conn, error) { return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED) }

func lost() (net.Conn, error) { return nil, fmt.Errorf("%w: no session", ErrNotDialled) }

// A pod of ours tells what others in the cluster get at a port: which tells a port on the loopback alone without the right to pods/proxy, and one that
// something on the way keeps from them.
func TestPortsFromAPod(t *testing.T) {
	it := strings.Replace(dialledPod("ports: [{name: http, containerPort: 8080}]"), "status:", "status:\n  podIP: 10.1.0.7", 1)
	probed := strings.Replace(dialledPod("ports: [{name: http, containerPort: 8080}], readinessProbe: {tcpSocket: {port: http}}"), "status:", "status:\n  podIP: 10.1.0.7", 1)
	service := aService("selector: {app: it}, ports: [{port: 80, targetPort: 8080}]")
	policy := func(kind, selector string) string {
		return "\n---\nkind: NetworkPolicy\nmetadata: {name: some}\nspec: {podSelector: {" + selector + "}, policyTypes: [" + kind + "]}\n"
	}
	const kept = "; the pod may be kept from port 8080 of pod/it (networkpolicy/some)"
	for name, c := range map[string]struct {
		documents string
		outside   answer // what was found without it
		answer    func() (net.Conn, error)
		ids, note string
	}{
		"it listens":                   {it + service, answer{loopback: open}, takes, "", ""},
		"on the loopback alone":        {it + service, answer{loopback: open, mayNot: true}, refuses, "port-loopback", ""},
		"nobody listens":               {it + service, answer{loopback: closed, mayNot: true}, refuses, "port-closed", ""},
		"at its address alone":         {it + service, answer{loopback: closed, mayNot: true}, takes, "", ""},
		"a probe has found it open":    {probed + service, answer{address: open}, takes, "", ""},
		"something keeps it away":      {probed + service, answer{address: open}, nil, "port-not-reached", ""},
		"something refuses":            {probed + service, answer{address: open}, refuses, "port-not-reached", ""},
		"a policy of the other's":      {probed + service + policy("Ingress", "matchLabels: {app: it}"), answer{address: open}, nil, "networkpolicy-denies", kept},
		"a policy of its own":          {probed + service + policy("Egress", "matchExpressions: [{key: proxy, operator: Exists}]"), answer{address: open}, nil, "", kept},
		"a policy of others":           {probed + service + policy("Egress", "matchExpressions: [{key: proxy, operator: DoesNotExist}]"), answer{address: open}, nil, "port-not-reached", ""},
		"the way to it is lost":        {probed + service, answer{address: open}, lost, "", ""},
		"nothing is known from others": {it + service, answer{}, nil, "", ""},
	} {
		s := load(t, c.documents)
		at := place{"shop", "it", 8080}
		s.answers[at] = c.outside
		s.dialInside(t.Context(), fromPod(map[string]func() (net.Conn, error){"10.1.0.7:8080": c.answer}), nil)
		var ids []string
		for _, f := range s.report(nil).Findings {
			ids = append(ids, f.ID)
			if n := len(f.State); f.ID != "networkpolicy-denies" && !strings.Contains(f.State[n-1].From, "port 8080 at its address, from a pod") {
				t.Errorf("%s: its evidence is %+v", name, f.State)
			}
		}
		if got := strings.Join(ids, " "); got != c.ids {
			t.Errorf("%s: found %q, want %q", name, got, c.ids)
		}
		note := ""
		if s.Dialled != nil {
			note = s.Dialled.String()
		}
		if want := "dialled 1 port from a pod" + c.note; note != want && (note != "" || s.answers[at].inside != unknown) {
			t.Errorf("%s: %q, want %q", name, note, want)
		}
	}
}

// A probe that fails is run from a pod of ours, too, and what it gets is told beside what the kubelet has got.
func TestProbesFromAPod(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer server.Close()
	var d net.Dialer
	serve := func() (net.Conn, error) { return d.DialContext(t.Context(), "tcp", server.Listener.Addr().String()) }
	it := strings.Replace(withPod("readinessProbe: {httpGet: {port: 8080}}, livenessProbe: {tcpSocket: {port: 9090}}", "", notReady), "status:\n  phase: Pending", "status:\n  podIP: 10.1.0.7\n  phase: Running", 1) +
		event("Pod/it", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
	for name, c := range map[string]struct {
		answer func() (net.Conn, error)
		want   string
	}{
		"it is asked": {serve, "failure: status 418"}, "refused": {refuses, "failure: connection refused"}, "the way is lost": {lost, ""},
	} {
		s := load(t, it)
		s.answers[place{"shop", "it", 8080}] = answer{address: open}
		s.dialInside(t.Context(), fromPod(map[string]func() (net.Conn, error){"10.1.0.7:8080": c.answer, "10.1.0.7:9090": takes}), nil)
		got := ""
		for _, f := range s.report(nil).Findings {
			for _, e := range f.State {
				if f.ID == "probe-status" && strings.HasSuffix(e.From, "readinessProbe of container app, run from a pod") {
					got = e.Says
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if o, run := s.probed[probing{partOf(Ref{"pod", "shop", "it"}, "app"), "liveness"}]; !run || o.Why != "connected" {
			t.Errorf("%s: the liveness probe gives %+v", name, o)
		}
	}

	// As bridge probes runs them: the time is that of a connection, too.
	s := load(t, it)
	for _, r := range s.probesAt([]ask{{place: place{"shop", "it", 8080}}, {place: place{"shop", "it", 9090}}}) {
		slow := func(ctx context.Context, network, address string) (net.Conn, error) {
			time.Sleep(10 * time.Millisecond)
			return serve()
		}
		l := s.live(t.Context(), nil, r, &From{Dial: slow})
		want := map[string]string{"readiness": "status 418", "liveness": "connected"}[l.Kind]
		if l.Answer != want || !l.Inside || l.Seconds <= 0 {
			t.Errorf("%+v, want %q", l, want)
		}
	}
}

// No pod is started where there is nothing to dial.
func TestNoPodForNothing(t *testing.T) {
	s := load(t, aService("selector: {app: it}, ports: [{port: 80}]"))
	var asked []string
	s.dialInside(t.Context(), func(context.Context, func(context.Context, From) error) error {
		asked = append(asked, "a pod")
		return nil
	}, nil)
	if slices.Contains(asked, "a pod") || s.Dialled != nil || s.Beyond != nil {
		t.Errorf("asked for %q: %v, %v", asked, s.Dialled, s.Beyond)
	}
}
