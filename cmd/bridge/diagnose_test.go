package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"bridge/internal/diagnose"
	"bridge/internal/kube"
)

// Swaps that cannot be read, for whatever reason, are no reason not to diagnose the rest.
func TestSwapsThatCannotBeRead(t *testing.T) {
	for code, why := range map[int]string{http.StatusForbidden: "your account may not", http.StatusInternalServerError: "list leases"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if strings.HasSuffix(r.URL.Path, "/leases") {
				w.WriteHeader(code)
			}
			fmt.Fprint(w, `{"items":[]}`)
		}))
		k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		r, err := diagnose.Run(t.Context(), k, diagnose.Options{Swaps: knownSwaps(k, "shop"), NoDial: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Unread) != 1 || r.Unread[0].Resource != "leases" || !strings.HasPrefix(r.Unread[0].Why, why) || !slices.Equal(r.Unread[0].Checks, []string{"swaps"}) {
			t.Errorf("status %d: %+v, want %q", code, r.Unread, why)
		}
		server.Close()
	}
}

func TestFindingsInThreeSteps(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	service := diagnose.Finding{
		ID: "service-pods-not-ready", Severity: diagnose.Problem, Direction: diagnose.Network, Object: diagnose.Ref{Kind: "service", Namespace: "shop", Name: "orders"},
		Summary: "none of its 2 pods is ready", Why: "callers are refused", Next: []string{"look"},
		State: []diagnose.Evidence{{From: "service/orders spec.selector", Says: "app=orders"}},
	}
	r := &diagnose.Report{Namespace: "shop", Time: now, Findings: []diagnose.Finding{{
		ID: "program-exits", Severity: diagnose.Problem, Direction: diagnose.Program, Object: diagnose.Ref{Kind: "pod", Namespace: "shop", Name: "orders-1"},
		Owner: diagnose.Ref{Kind: "deployment", Namespace: "shop", Name: "orders"}, Also: []diagnose.Ref{{Kind: "pod", Namespace: "shop", Name: "orders-2"}},
		Container: "app", Summary: "it ends", Why: "it is not there", Next: []string{"first", "second"}, Log: []string{"one\x1b[2J", "two"},
		State:    []diagnose.Evidence{{From: "pod/orders-1 status.phase", Says: "Running", At: now.Add(-time.Minute)}},
		Events:   []diagnose.Evidence{{From: "pod/orders-1 BackOff", Says: strings.Repeat("x", 400), At: now.Add(-time.Second), Count: 3}},
		Symptoms: []diagnose.Finding{service},
	}}}
	const head = `problem program-exits: deployment/orders, pod/orders-1 and 1 more
  it ends
  state      pod/orders-1 status.phase: Running (60s ago)
  direction  program: it is not there
`
	const log = `  log        one [2J
             two
  next       first
             second
`
	for wide, want := range map[bool]string{
		false: head + "  events     pod/orders-1 BackOff: " + strings.Repeat("x", 120-len("pod/orders-1 BackOff: ")) + " … " + strings.Repeat("x", 140) + " (1s ago, 3 times)\n" + log + "  explains   service/orders: none of its 2 pods is ready (service-pods-not-ready)\n",
		true: head + "  events     pod/orders-1 BackOff: " + strings.Repeat("x", 400) + " (1s ago, 3 times)\n" + log + `  explains
    problem service-pods-not-ready: service/orders
      none of its 2 pods is ready
      state      service/orders spec.selector: app=orders
      direction  network: callers are refused
      next       look
`,
	} {
		var out strings.Builder
		if err := printFindings(&out, r, wide); err != nil || out.String() != want {
			t.Errorf("wide %v, %v:\n%s\nwant:\n%s", wide, err, out.String(), want)
		}
	}
}

func TestWhatWasNotRead(t *testing.T) {
	r := &diagnose.Report{Unread: []diagnose.Unread{
		{Resource: "nodes", Why: "your account may not", Checks: []string{"nodes"}},
		{Resource: "secrets", Why: "your account may not"},
		{Resource: "jobs", Why: "no answer", Checks: []string{"jobs"}},
	}}
	got := strings.Join(unread(r, true), "\n")
	if want := "not read: nodes, secrets (your account may not)\nnot read: jobs (no answer)\nso these checks were left out: jobs, nodes"; got != want {
		t.Errorf("it says:\n%s\nwant:\n%s", got, want)
	}
}

func TestATypeAndANameAreOneTarget(t *testing.T) {
	for in, want := range map[string]string{"deploy orders": "deploy/orders", "orders-1 orders-2": "orders-1 orders-2", "svc/a svc/b": "svc/a svc/b", "pvc data": "pvc/data", "orders": "orders"} {
		if got := strings.Join(asOne(strings.Fields(in)), " "); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
