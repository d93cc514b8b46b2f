package diagnose

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"bridge/internal/hint"
)

// beyondYAML are Services that lead to no pods, at 10.0.0.1 to 10.0.0.6 and by three names, and one that leads to a pod.
const beyondYAML = `
kind: Service
metadata: {name: db}
spec: {ports: [{port: 5432}]}
---
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 5432}, {name: syslog, port: 514, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2, 10.0.0.9]}
- {addresses: [10.0.0.3], conditions: {ready: false}}
- {addresses: [10.0.0.4], targetRef: {kind: Pod, name: it}}
---
kind: Service
metadata: {name: mail}
spec: {ports: [{port: 25}]}
---
kind: EndpointSlice
metadata: {name: mail-1, labels: {kubernetes.io/service-name: mail}}
addressType: IPv4
ports: [{port: 25}]
endpoints: [{addresses: [10.0.0.5]}]
---
kind: Service
metadata: {name: meta}
spec: {ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: meta-1, labels: {kubernetes.io/service-name: meta}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.0.0.6]}]
---
kind: Service
metadata: {name: nowhere}
spec: {type: ExternalName, externalName: nowhere.example}
---
kind: Service
metadata: {name: shut}
spec: {type: ExternalName, externalName: shut.example, ports: [{name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]}
---
kind: Service
metadata: {name: open}
spec: {type: ExternalName, externalName: open.example}
---
kind: Service
metadata: {name: asked}
spec: {type: ExternalName, externalName: asked.example}
---
kind: Service
metadata: {name: lost}
spec: {type: ExternalName, externalName: lost.example, ports: [{port: 80}]}
---
kind: Service
metadata: {name: address}
spec: {type: ExternalName, externalName: 10.1.2.3}
`

// What Services lead to that is no pod is dialled from within the cluster, where that is wanted: each once, by the name its callers use; what does not
// answer is told, and what the pod does not dial is none of it.
func TestWhatIsBeyondThePods(t *testing.T) {
	const policy = "kind: NetworkPolicy\nmetadata: {name: deny}\nspec: {podSelector: {matchExpressions: [{key: bridge.example/proxy, operator: Exists}]}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}\n"
	s := load(t, beyondYAML, policy)
	answers := map[string]error{
		"tcp 10.0.0.1:5432":      nil,
		"tcp 10.0.0.2:5432":      syscall.ECONNREFUSED,
		"tcp 10.0.0.5:25":        syscall.ETIMEDOUT,
		"tcp 10.0.0.6:80":        fmt.Errorf("metadata addresses are not reachable through the proxy: %w", syscall.EACCES),
		"udp nowhere.shop.svc:9": &net.DNSError{Name: "nowhere.shop.svc", IsNotFound: true},
		"tcp shut.shop.svc:443":  syscall.EHOSTUNREACH,
		"udp asked.shop.svc:9":   &net.DNSError{Name: "asked.shop.svc", IsTemporary: true},
		"tcp lost.shop.svc:80":   fmt.Errorf("%w: %w", ErrNotDialled, syscall.ECONNREFUSED),
		"udp open.shop.svc:9":    nil,
	}
	var dialled []string
	lock := make(chan struct{}, 1)
	inside := func(ctx context.Context, use func(context.Context, From) error) error {
		return use(ctx, From{"shop", map[string]string{"bridge.example/proxy": "it"}, func(_ context.Context, network, address string) (net.Conn, error) {
			lock <- struct{}{}
			defer func() { <-lock }()
			dialled = append(dialled, network+" "+address)
			err, known := answers[network+" "+address]
			switch {
			case !known:
				t.Errorf("%s %s is dialled", network, address)
				return nil, errors.ErrUnsupported
			case err != nil:
				return nil, fmt.Errorf("dial: %w", err)
			}
			near, far := net.Pipe()
			_ = far.Close()
			return near, nil
		}})
	}
	s.dialInside(t.Context(), inside, nil)
	if len(dialled) != len(answers) {
		t.Errorf("dialled %q", dialled)
	}
	if got := s.Beyond.String(); got != "dialled 7 addresses of Services without pods, from a pod, and 2 more not" {
		t.Error(got)
	}
	var got []string
	for _, f := range s.report(nil).Findings {
		got = append(got, fmt.Sprintf("%s %s %s: %s", f.Severity, f.ID, f.Object, f.Summary))
	}
	want := `problem service-external-name service/address: its externalName 10.1.2.3 is an address; DNS answers with it as a name, which does not resolve
problem endpoint-not-answering service/db: 1 of the 2 addresses that it leads to do not answer: 10.0.0.2:5432 (connection refused)
problem service-external-name service/nowhere: its externalName nowhere.example does not resolve in the cluster
warning service-external-name service/asked: whether its externalName asked.example resolves the cluster's DNS could not tell
warning endpoint-not-answering service/mail: the address that it leads to does not answer: 10.0.0.5:25 (no answer in 3s)
warning endpoint-not-answering service/shut: the address that it leads to does not answer: shut.shop.svc:443 (there is no way to it)`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("found:\n%s\nwant:\n%s", text, want)
	}

	// Of targets it is theirs alone; without a pod none; and why there is no pod is said.
	s = load(t, beyondYAML)
	s.dialInside(t.Context(), nil, map[Ref]bool{{"service", "shop", "db"}: true})
	if got := s.Beyond.String(); !strings.HasPrefix(got, "not dialled: 2 addresses ") {
		t.Error(got)
	}
	s.dialInside(t.Context(), func(context.Context, func(context.Context, From) error) error {
		return hint.Newf(hint.Forbidden, "bridge rbac connect prints\nthe Role", "your account may not do this:\n  get pods\n  create leases")
	}, nil)
	if len(s.Unread) != 1 || s.Unread[0].Why != "your account may not do this: get pods; create leases; bridge rbac connect prints; the Role" || s.Beyond.String() != "dialled 0 addresses of Services without pods, from a pod, and 9 more not" {
		t.Errorf("without a pod: %+v, %v", s.Unread, s.Beyond)
	}
}
