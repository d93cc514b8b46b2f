//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namesYAML has a Service of each kind that the Kubernetes DNS specification 1.0.1 tells apart, beside orders.
const namesYAML = `
apiVersion: v1
kind: Service
metadata: {name: pods}
spec:
  clusterIP: None
  selector: {app: orders}
  ports: [{name: http, port: 8080}, {name: tcp, port: 7000}]
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  clusterIP: None
  selector: {app: named}
  ports: [{name: web, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec:
  selector: {app: orders}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec:
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: void}
spec:
  clusterIP: None
  selector: {app: nobody}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: orders.%[1]s.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: some}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: mixed}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: named-0, labels: {app: named}}
spec:
  hostname: busy
  subdomain: named
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: %[2]s
    args: [wait]
    imagePullPolicy: IfNotPresent
    securityContext:
      runAsNonRoot: true
      runAsUser: 1000
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
`

// Addresses of endpoints that no pod has. some fits into 1,232 bytes and not into 512; many into no datagram.
const (
	someEndpoints = 60
	manyEndpoints = 300
)

var publicEndpoint = netip.MustParseAddr("203.0.113.7")

// privateEndpoints are addresses that are no other world's.
func (w *world) privateEndpoints() (four, six netip.Addr) {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(w.ns))
	h := binary.BigEndian.AppendUint32(nil, sum.Sum32())
	return netip.AddrFrom4([4]byte{10, 202 + h[0]%50, h[1], 1 + h[2]%250}), netip.AddrFrom16([16]byte{0xfd, 0, h[0], h[1], h[2], h[3], 15: 5})
}

// withNames is withOrders with namesYAML and the endpoints of those Services that select no pods.
func (w *world) withNames() *world {
	w.t.Helper()
	w.withOrders()
	w.apply(fmt.Sprintf(namesYAML, w.ns, s.image))
	w.endpointSlices("some", addresses(1, someEndpoints)...)
	w.endpointSlices("many", addresses(2, manyEndpoints)...)
	mixed := func(name string, e discoveryv1.Endpoint, addr netip.Addr) discoveryv1.Endpoint {
		e.Addresses = []string{addr.String()}
		if name != "" {
			e.Hostname = &name
		}
		return e
	}
	no := false
	privateEndpoint, sixthEndpoint := w.privateEndpoints()
	w.endpointSlices("mixed",
		mixed("first", discoveryv1.Endpoint{}, privateEndpoint), mixed("", discoveryv1.Endpoint{}, publicEndpoint),
		mixed("", discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: &no}}, privateEndpoint.Next()))
	w.endpointSlices("mixed", mixed("sixth", discoveryv1.Endpoint{}, sixthEndpoint))
	w.awaitReady("app=named", 1)
	return w
}

// addresses are n endpoints in 10.201.(32*block).0 and on.
func addresses(block byte, n int) (list []discoveryv1.Endpoint) {
	addr := netip.AddrFrom4([4]byte{10, 201, 32 * block, 1})
	for range n {
		list = append(list, discoveryv1.Endpoint{Addresses: []string{addr.String()}})
		addr = addr.Next()
	}
	return list
}

// endpointSlices gives a Service endpoints, a hundred to a slice.
func (w *world) endpointSlices(service string, endpoints ...discoveryv1.Endpoint) {
	w.t.Helper()
	kind := discoveryv1.AddressTypeIPv4
	if strings.Contains(endpoints[0].Addresses[0], ":") {
		kind = discoveryv1.AddressTypeIPv6
	}
	svc, err := s.client.CoreV1().Services(w.ns).Get(w.t.Context(), service, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var ports []discoveryv1.EndpointPort
	for _, p := range svc.Spec.Ports {
		ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	for part := range slices.Chunk(endpoints, 100) {
		_, err := s.client.DiscoveryV1().EndpointSlices(w.ns).Create(w.t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				GenerateName: service + "-", Labels: map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "a-test"},
			},
			AddressType: kind, Endpoints: part, Ports: ports,
		}, metav1.CreateOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// question is one that is asked in all places; EDNS 0 is none.
type question struct {
	network string
	edns    int
	name    string
	kind    dnsmessage.Type
}

func (q question) String() string {
	return fmt.Sprintf("%s %s over %s, EDNS %d", q.name, strings.TrimPrefix(q.kind.String(), "Type"), q.network, q.edns)
}

// line is q as the sample's ask reads it.
func (q question) line(t *testing.T) string {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 0xb71d, RecursionDesired: true})
	name, err := dnsmessage.NewName(q.name)
	var opt dnsmessage.ResourceHeader
	err = errors.Join(err, b.StartQuestions(), b.Question(dnsmessage.Question{Name: name, Type: q.kind, Class: dnsmessage.ClassINET}))
	if q.edns > 0 {
		err = errors.Join(err, b.StartAdditionals(), opt.SetEDNS0(q.edns, dnsmessage.RCodeSuccess, false), b.OPTResource(opt, dnsmessage.OPTResource{}))
	}
	m, ferr := b.Finish()
	if err := errors.Join(err, ferr); err != nil {
		t.Fatalf("%v: %v", q, err)
	}
	return q.network + " " + hex.EncodeToString(m) + "\n"
}

// answer is what was said to a question, without what may differ: the order of records, and how long they live.
type answer struct {
	code                           dnsmessage.RCode
	truncated                      bool
	records, authority, additional []string
	life                           uint32 // the longest of all records, in seconds
}

// read takes the line that ask printed apart. It holds the question against the answer's, letter by letter, and follows the aliases.
func (q question) read(line string) (answer, error) {
	b, err := hex.DecodeString(line)
	if err != nil {
		return answer{}, errors.New(line)
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return answer{}, err
	}
	if len(m.Questions) != 1 || m.Questions[0].Name.String() != q.name || m.Questions[0].Type != q.kind || !m.Response || m.ID != 0xb71d {
		return answer{}, fmt.Errorf("an answer to %v", m.Questions)
	}
	if size := max(512, q.edns); q.network == "udp" && len(b) > size {
		return answer{}, fmt.Errorf("%d bytes", len(b))
	}
	a := answer{code: m.RCode, truncated: m.Truncated}
	at := strings.ToLower(q.name)
	for i, section := range [][]dnsmessage.Resource{m.Answers, m.Authorities, m.Additionals} {
		for _, r := range section {
			owner := strings.ToLower(r.Header.Name.String())
			if r.Header.Type == dnsmessage.TypeOPT {
				continue
			}
			if i == 0 && owner != at {
				return answer{}, fmt.Errorf("a record of %s, where %s was reached", owner, at)
			}
			switch body := r.Body.(type) {
			case *dnsmessage.CNAMEResource:
				at = strings.ToLower(body.CNAME.String())
			case *dnsmessage.SOAResource:
				body.Serial = 0 // a time
			}
			a.life = max(a.life, r.Header.TTL)
			to := []*[]string{&a.records, &a.authority, &a.additional}[i]
			*to = append(*to, record(owner, r.Body))
		}
	}
	for _, list := range [][]string{a.records, a.authority, a.additional} {
		slices.Sort(list)
	}
	return a, nil
}

// record is one as it is compared.
func record(owner string, body dnsmessage.ResourceBody) string {
	return strings.ToLower(owner + " " + body.GoString())
}

// differs says how got differs from what the pod was told; "" is not at all. Of a truncated answer it matters only that it is one.
func (a answer) differs(got answer) string {
	switch {
	case a.code != got.code:
		return fmt.Sprintf("%v, in the pod %v", got.code, a.code)
	case a.truncated != got.truncated:
		return fmt.Sprintf("truncated %v, in the pod %v", got.truncated, a.truncated)
	case a.truncated:
		return ""
	case !slices.Equal(a.records, got.records):
		return fmt.Sprintf("%q, in the pod %q", got.records, a.records)
	case !slices.Equal(a.authority, got.authority):
		return fmt.Sprintf("authority %q, in the pod %q", got.authority, a.authority)
	case !slices.Equal(a.additional, got.additional):
		return fmt.Sprintf("additional %q, in the pod %q", got.additional, a.additional)
	}
	return ""
}

// place is one where questions are asked: it takes the lines of the sample's ask and returns what that printed.
type place func(lines string) (string, error)

// askAll asks all questions in one place.
func askAll(t *testing.T, where place, questions []question) []answer {
	t.Helper()
	var in strings.Builder
	for _, q := range questions {
		in.WriteString(q.line(t))
	}
	out, err := where(in.String())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(questions) {
		t.Fatalf("%d answers to %d questions: %q", len(lines), len(questions), out)
	}
	answers := make([]answer, len(questions))
	for i, q := range questions {
		if answers[i], err = q.read(lines[i]); err != nil {
			t.Fatalf("%v: %v", q, err)
		}
	}
	return answers
}

// inPod asks the pod's own nameserver, from the client's pod.
func (w *world) inPod(lines string) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	err := w.exec(ctx, strings.NewReader(lines), &out, "ask")
	return out.String(), err
}

// inProgram asks from within bridge connect -- CMD.
func (w *world) inProgram(system func(*exec.Cmd)) place {
	return func(lines string) (string, error) {
		b := w.bridgeWith(func(c *exec.Cmd) {
			system(c)
			c.Stdin = strings.NewReader(lines)
		}, s.kubeconfig, nil, "connect", "--", s.sample, "ask")
		b.exits(0)
		return strings.Join(b.stdout.all(), "\n"), nil
	}
}

// atServer asks the DNS server of bridge connect.
func atServer(address string) place {
	return func(lines string) (string, error) {
		cmd := exec.Command(s.sample, "ask", "--server", address)
		cmd.Stdin = strings.NewReader(lines)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// dnsServer waits for connect's DNS server and returns its address.
func (p *process) dnsServer() string {
	p.t.Helper()
	m := regexp.MustCompile(`dig @(\S+) -p (\d+)`).FindStringSubmatch(p.prints("dig @"))
	return net.JoinHostPort(m[1], m[2])
}

// systemResolver is a DNS server of the laptop's that knows one name, printer, until the test ends. The function has a program see it in
// /etc/resolv.conf.
func systemResolver(t *testing.T, ip string) func(*exec.Cmd) {
	t.Helper()
	pc, err := net.ListenPacket("udp", net.JoinHostPort(ip, "53"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1<<12)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if m, err := systemAnswer(b[:n]); err == nil {
				_, _ = pc.WriteTo(m, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = pc.Close()
		<-ended
	})
	return withResolver(t, ip)
}

// withResolver has a program see another /etc/resolv.conf, in a mount namespace of its own.
func withResolver(t *testing.T, ip string) func(*exec.Cmd) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+ip+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	return func(c *exec.Cmd) {
		c.Path, c.Args = unshare, append([]string{unshare, "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, file}, c.Args...)
	}
}

// systemAnswer knows the A record of printer.
func systemAnswer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil, errors.Join(err, errors.New("not one question"))
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: m.RecursionDesired, RecursionAvailable: true}
	m.Additionals = nil
	switch {
	case !strings.EqualFold(q.Name.String(), "printer."):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 300},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 2}},
		}}
	}
	return m.Pack()
}

// reverse is the name of an address's PTR record.
func reverse(addr netip.Addr) string {
	if addr.Is4() {
		b := addr.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
	}
	var name strings.Builder
	b := addr.As16()
	for _, octet := range slices.Backward(b[:]) {
		fmt.Fprintf(&name, "%x.%x.", octet&15, octet>>4)
	}
	return name.String() + "ip6.arpa."
}

func dashed(addr string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(addr) }

// What the table expects of the pod's answer, where it is no number of records.
const (
	nobody   = -1 // NXDOMAIN
	whatever = -2 // what the pod says, for it is this resolver's own
)

// The same question has the same answer in a pod, at connect's DNS server and in a program of connect's.
func TestNamesAreAsInAPod(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withNames()
	service, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := w.pods("app=orders")[0].Status.PodIP
	busy := w.pods("app=named")[0].Status.PodIP
	ip := netip.MustParseAddr
	privateEndpoint, sixthEndpoint := w.privateEndpoints()
	const (
		A, AAAA, SRV, PTR, CNAME = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV, dnsmessage.TypePTR, dnsmessage.TypeCNAME
		TXT, MX, NS, SOA         = dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeNS, dnsmessage.TypeSOA
		HTTPS                    = dnsmessage.Type(65)
	)
	table := []struct {
		name  string // within the namespace, or with a final dot
		kind  dnsmessage.Type
		count int // of the pod's records
	}{
		// A Service with an address.
		{"orders", A, 1}, {"orders", AAAA, 0}, {"orders", SRV, whatever}, {"orders", TXT, 0}, {"orders", MX, 0}, {"orders", CNAME, 0}, {"orders", HTTPS, 0},
		{"oRdErS", A, 1}, {"ORDERS", AAAA, 0}, {"bare", A, 1},
		{"_http._tcp.orders", SRV, 1}, {"_tcp._tcp.orders", SRV, 1}, {"_HTTP._TCP.Orders", SRV, 1}, {"_http._tcp.orders", A, whatever},
		{"_http._udp.orders", SRV, nobody}, {"_no._tcp.orders", SRV, nobody}, {"_tcp.orders", SRV, whatever}, {"_http._tcp.bare", SRV, nobody},
		{"_dns._udp.udp", SRV, 1}, {"_dns-tcp._tcp.udp", SRV, 1}, {"_dns._tcp.udp", SRV, nobody},
		{reverse(ip(service.Spec.ClusterIP)), PTR, 1},
		{"kubernetes.default.svc.cluster.local.", A, 1}, {"_https._tcp.kubernetes.default.svc.cluster.local.", SRV, 1},
		// Headless ones.
		{"pods", A, 2}, {"pods", AAAA, 0}, {"_http._tcp.pods", SRV, 2}, {"_tcp._tcp.pods", SRV, 2}, {"_web._tcp.pods", SRV, nobody},
		{dashed(pod) + ".pods", A, 1}, {"10-0-0-1.pods", A, nobody}, {reverse(ip(pod)), PTR, 3},
		{"named", A, 1}, {"busy.named", A, 1}, {"Busy.Named", A, 1}, {"busy.named", AAAA, 0}, {"nobody.named", A, nobody}, {"a.busy.named", A, nobody},
		{"_web._tcp.named", SRV, 1}, {reverse(ip(busy)), PTR, 1}, {"void", A, whatever}, {"_http._tcp.void", SRV, whatever},
		{"some", A, someEndpoints}, {"_http._tcp.some", SRV, someEndpoints}, {"many", A, manyEndpoints}, {"_http._tcp.many", SRV, manyEndpoints}, {"many", AAAA, 0},
		{"mixed", A, 2}, {"mixed", AAAA, 1}, {"_http._tcp.mixed", SRV, 3}, {"first.mixed", A, 1}, {"first.mixed", AAAA, 0}, {"sixth.mixed", AAAA, 1},
		{reverse(privateEndpoint), PTR, 1}, {reverse(privateEndpoint.Next()), PTR, nobody}, {reverse(sixthEndpoint), PTR, 1}, {reverse(sixthEndpoint.Next()), PTR, nobody},
		// ExternalName.
		{"alias", A, 2}, {"alias", AAAA, whatever}, {"alias", CNAME, 1}, {"outside", CNAME, 1}, {"outside", A, 1}, {"outside", AAAA, 1}, {"_http._tcp.alias", SRV, whatever},
		// Pods by their address.
		{dashed(pod) + "." + w.ns + ".pod.cluster.local.", A, 1}, {dashed(pod) + "." + w.ns + ".pod.cluster.local.", AAAA, 0},
		{"10-0-0-1." + w.ns + ".pod.cluster.local.", A, whatever}, {"orders." + w.ns + ".pod.cluster.local.", A, nobody}, {w.ns + ".pod.cluster.local.", A, whatever},
		// Nothing of the kind, and the zone itself.
		{"nobody", A, nobody}, {"nobody", AAAA, nobody}, {"nobody", SRV, nobody}, {"a.b.c.d.e.nobody", A, nobody}, {"*", A, whatever}, {"_", A, whatever},
		{"orders.no-such-namespace.svc.cluster.local.", A, nobody}, {w.ns + ".svc.cluster.local.", A, 0}, {"no-such-namespace.svc.cluster.local.", A, nobody},
		{"svc.cluster.local.", A, 0}, {"pod.cluster.local.", A, 0}, {"cluster.local.", A, 0}, {"cluster.local.", SOA, 1}, {"cluster.local.", NS, whatever},
		{"orders.cluster.local.", A, nobody}, {"dns-version.cluster.local.", TXT, 1}, {"dns-version.cluster.local.", A, whatever},
	}
	var questions []question
	var counts []int
	for _, row := range table {
		name := row.name
		if !strings.HasSuffix(name, ".") {
			name += "." + w.ns + ".svc.cluster.local."
		}
		for _, way := range []question{{network: "udp"}, {network: "udp", edns: 1232}, {network: "udp", edns: 4096}, {network: "tcp"}} {
			questions = append(questions, question{way.network, way.edns, name, row.kind})
			counts = append(counts, row.count)
		}
	}
	// The pod's resolver learns of Services, endpoints and pods one after the other.
	var want []answer
	var wrong []string
	defer func() {
		for _, line := range wrong {
			t.Error(line)
		}
	}()
	w.await("the pod's resolver", func() bool {
		want, wrong = askAll(t, w.inPod, questions), nil
		for i, a := range want {
			count := len(a.records)
			if a.code == dnsmessage.RCodeNameError {
				count = nobody
			}
			if (counts[i] != whatever && count != counts[i] && !a.truncated) || (a.code != dnsmessage.RCodeSuccess && a.code != dnsmessage.RCodeNameError && counts[i] != whatever) {
				wrong = append(wrong, fmt.Sprintf("in the pod %v: %v %q, want %d records", questions[i], a.code, a.records, counts[i]))
			}
		}
		return len(wrong) == 0
	})
	life := slices.MaxFunc(want, func(a, b answer) int { return int(a.life) - int(b.life) }).life
	truncated := 0
	system := systemResolver(t, "127.0.53.1")
	server := w.bridgeWith(system, s.kubeconfig, nil, "connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0").dnsServer()
	for where, ask := range map[string]place{
		"at connect's DNS server": atServer(server), "there again, from the cache": atServer(server), "in connect's program": w.inProgram(system),
	} {
		for i, got := range askAll(t, ask, questions) {
			if questions[i].kind == PTR && want[i].code == dnsmessage.RCodeNameError {
				got.authority = want[i].authority // the laptop's resolver had the last word
			}
			if d := want[i].differs(got); d != "" {
				t.Errorf("%s %v: %s", where, questions[i], d)
			}
			if got.life > life {
				t.Errorf("%s %v: it may be kept for %d s, in the pod for %d s at most", where, questions[i], got.life, life)
			}
			if got.truncated {
				truncated++
			}
		}
	}
	if truncated == 0 {
		t.Error("no answer was too long: this proves nothing of such")
	}
}

// Short names mean what they mean in a pod, where the C library goes through the search list; others are the laptop's.
func TestShortNamesAreAsInAPod(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withNames()
	const A, AAAA, SRV = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV
	table := []question{
		{name: "orders.", kind: A}, {name: "OrDeRs.", kind: A}, {name: "orders.", kind: AAAA}, {name: "orders." + w.ns + ".", kind: A},
		{name: "orders." + w.ns + ".svc.", kind: A}, {name: "orders." + w.ns + ".svc.cluster.local.", kind: A}, {name: "pods.", kind: A},
		{name: "busy.named.", kind: A}, {name: "busy.named." + w.ns + ".svc.", kind: A}, {name: "kubernetes.default.", kind: A}, {name: "kube-dns.kube-system.svc.", kind: A},
		{name: "_http._tcp.orders.", kind: SRV}, {name: "_http._tcp.orders." + w.ns + ".", kind: SRV}, {name: "_http._tcp.orders." + w.ns + ".svc.", kind: SRV},
		{name: "alias.", kind: A}, {name: "outside.", kind: A}, {name: "many.", kind: A}, {name: "sixth.mixed.", kind: AAAA},
	}
	for i := range table {
		table[i].network = "tcp"
	}
	resolver, err := w.inPod("search\n")
	if err != nil {
		t.Fatal(err)
	}
	var search []string
	ndots := 1
	for word := range strings.FieldsSeq(resolver) {
		if n, ok := strings.CutPrefix(word, "ndots:"); ok {
			if ndots, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
		} else {
			search = append(search, word)
		}
	}
	if len(search) < 3 || ndots < 1 {
		t.Fatalf("the pod's resolver file has %q", resolver)
	}
	// What the C library in a pod asks, one after the other, until a name exists: of a name with enough dots first what it is.
	tries := make([][]question, len(table))
	for i, q := range table {
		for _, domain := range search {
			tries[i] = append(tries[i], question{q.network, q.edns, q.name + domain + ".", q.kind})
		}
		at := len(search)
		if strings.Count(q.name, ".")-1 >= ndots {
			at = 0
		}
		tries[i] = slices.Insert(tries[i], at, q)
	}
	var want []answer
	w.await("the pod's resolver", func() bool {
		want = nil
		answers := askAll(t, w.inPod, slices.Concat(tries...))
		for i, q := range table {
			those := answers[:len(tries[i])]
			answers = answers[len(tries[i]):]
			n := slices.IndexFunc(those, func(a answer) bool { return a.code == dnsmessage.RCodeSuccess })
			if n < 0 {
				return false
			}
			if full := tries[i][n].name; full != q.name {
				alias := dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(full)}
				those[n].records = append(those[n].records, record(q.name, &alias))
				slices.Sort(those[n].records)
			}
			want = append(want, those[n])
		}
		return true
	})
	system := systemResolver(t, "127.0.53.2")
	server := w.bridgeWith(system, s.kubeconfig, nil, "connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0").dnsServer()
	local := []question{{name: "printer.", kind: A}, {name: "printer.", kind: AAAA}, {name: "nobody.", kind: A}, {name: "www.nobody.example.", kind: A}}
	for i := range local {
		local[i].network = "udp"
	}
	for where, ask := range map[string]place{"at connect's DNS server": atServer(server), "in connect's program": w.inProgram(system)} {
		got := askAll(t, ask, append(slices.Clone(table), local...))
		for i, q := range table {
			if d := want[i].differs(got[i]); d != "" {
				t.Errorf("%s %v: %s", where, q, d)
			}
		}
		got = got[len(table):]
		if a := got[0]; a.code != dnsmessage.RCodeSuccess || len(a.records) != 1 || !strings.Contains(a.records[0], "192, 0, 2, 2") {
			t.Errorf("%s %v: %+v", where, local[0], a)
		}
		if a := got[1]; a.code != dnsmessage.RCodeSuccess || len(a.records) != 0 {
			t.Errorf("%s %v: %+v", where, local[1], a)
		}
		for i, a := range got[2:] {
			if a.code != dnsmessage.RCodeNameError {
				t.Errorf("%s %v: %+v", where, local[i+2], a)
			}
		}
	}
}

// While the path to the cluster is dead the laptop's names go on, and the cluster's fail at once and say why.
func TestNamesWhileTheTunnelIsDown(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withOrders()
	p := newPath(t)
	b := w.bridgeWith(systemResolver(t, "127.0.53.3"), p.kubeconfig, nil, "connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0")
	host, port, _ := net.SplitHostPort(b.dnsServer())
	dig := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("dig", append([]string{"@" + host, "-p", port, "+tries=1", "+timeout=10"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	full := "orders." + w.ns + ".svc.cluster.local"
	if got := dig(full); !strings.Contains(got, "status: NOERROR") {
		t.Fatal(got)
	}
	kubernetes, err := s.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// fails asks for what the cluster has, or may have.
	fails := func(when, why string, questions ...string) {
		t.Helper()
		for _, q := range append(questions, "-x "+kubernetes.Spec.ClusterIP) {
			got := dig(strings.Fields(q)...)
			if !strings.Contains(got, "status: SERVFAIL") || !regexp.MustCompile(`EDE: 23 \(Network Error\): \(ask the cluster's resolver.*`+why).MatchString(got) {
				t.Errorf("%s, %s: %s", when, q, got)
			}
		}
	}
	p.swallow()
	// Nobody has noticed, or just has: the laptop's names are there, and nothing is said not to exist that may.
	fails("at once", "", "void."+w.ns+".svc.cluster.local", "named", "nobody.example", "www.nobody.example")
	if got := dig("+short", "printer"); strings.TrimSpace(got) != "192.0.2.2" {
		t.Errorf("printer, at once: %s", got)
	}
	b.says("tunnel: reconnecting (")
	// Another name: that one is remembered.
	w.await("failing at once", func() bool {
		got := dig("pods." + w.ns + ".svc.cluster.local")
		return strings.Contains(got, "status: SERVFAIL") && strings.Contains(got, "the tunnel is down")
	})
	fails("while it is down", "the tunnel is down",
		"kubernetes.default.svc.cluster.local", "kubernetes.default", "nobody", "nobody.example", "www.nobody.example")
	if got := dig("+short", "printer"); strings.TrimSpace(got) != "192.0.2.2" {
		t.Errorf("printer: %s", got)
	}
	if got := dig("host.sub.a.b.c.d.example"); !strings.Contains(got, "status: NXDOMAIN") {
		t.Error(got)
	}
	p.pass()
	b.saysTimes("tunnel: ready", 2)
	for _, args := range [][]string{{"kubernetes.default.svc.cluster.local"}, {"-x", kubernetes.Spec.ClusterIP}} {
		if got := dig(args...); !strings.Contains(got, "status: NOERROR") {
			t.Error(got)
		}
	}
	if got := dig("nobody.example"); !strings.Contains(got, "status: NXDOMAIN") {
		t.Error(got)
	}
}
