//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serversYAML has Services for servers outside of the cluster's pods.
const serversYAML = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{name: postgres, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: cache}
spec: {ports: [{name: redis, port: 6379}]}
`

// built are the programs of testdata, each made by what makes such programs.
type built struct{ musl, glibc, java, node string }

// build compiles them. Each is a program's own way to look a name up and to connect.
func build(t *testing.T) built {
	t.Helper()
	dir, source := t.TempDir(), filepath.Join(s.root, "test", "e2e", "testdata")
	b := built{
		musl: filepath.Join(dir, "musl"), glibc: filepath.Join(dir, "glibc"), node: "node " + filepath.Join(source, "get.js"),
		// Small and quick to start.
		java: "java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -cp " + dir + " Get",
	}
	for _, cmd := range [][]string{
		{"musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", b.musl, filepath.Join(source, "get.c")},
		{"gcc", "-O1", "-Wall", "-Werror", "-o", b.glibc, filepath.Join(source, "get.c")},
		{"javac", "-d", dir, filepath.Join(source, "Get.java")},
	} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", cmd, err, out)
		}
	}
	return b
}

// nodeAddress is node1's, where the API server listens.
func nodeAddress(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(s.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	return u.Hostname()
}

// onNode starts a program in the network of node1, with options of setpriv's. It ends with the test, however that ends.
func onNode(t *testing.T, options []string, args ...string) *process {
	t.Helper()
	// setpriv last: a change of user forgets who is to die with whom.
	before := append([]string{"--net=/run/netns/" + clusterName + "-node1", "setpriv", "--pdeathsig", "KILL"}, options...)
	return start(t, "nsenter", nil, append(before, args...)...)
}

// redis starts the real server, by its Service's name cache.
func (w *world) redis() {
	w.t.Helper()
	// Debian's redis-server is a link to this program, in a package that would start one.
	program, err := exec.LookPath("redis-check-rdb")
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	server := filepath.Join(dir, "redis-server")
	if err := os.Symlink(program, server); err != nil {
		w.t.Fatal(err)
	}
	at := nodeAddress(w.t)
	onNode(w.t, nil, server, "--bind", at, "--port", "6379", "--protected-mode", "no", "--save", "", "--dir", dir).prints("Ready to accept connections")
	w.endpointSlices("cache", discoveryv1.Endpoint{Addresses: []string{at}})
}

// postgres starts the real server, by its Service's name db. It takes everybody as postgres.
func (w *world) postgres() {
	w.t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		w.t.Fatalf("no PostgreSQL server is installed: test/tools.sh does it (%v)", err)
	}
	bin := filepath.Dir(found[len(found)-1])
	// It refuses to be root, and a test's own folder is root's.
	owner, err := user.Lookup("postgres")
	if err != nil {
		w.t.Fatal(err)
	}
	dir, err := os.MkdirTemp(filepath.Join("/var/lib/bridge-cluster", clusterName), "postgres")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		w.t.Fatal(err)
	}
	as := []string{"--reuid", owner.Uid, "--regid", owner.Gid, "--clear-groups"}
	initdb := append(append([]string{"setpriv"}, as...), filepath.Join(bin, "initdb"), "-D", dir, "-A", "trust", "-U", "postgres", "--locale=C", "--no-sync", "--no-instructions")
	if out, err := exec.Command(initdb[0], initdb[1:]...).CombinedOutput(); err != nil {
		w.t.Fatalf("initdb: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "pg_hba.conf"), []byte("host all all 0.0.0.0/0 trust\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	at := nodeAddress(w.t)
	p := onNode(w.t, as, filepath.Join(bin, "postgres"), "-D", dir, "-c", "listen_addresses="+at, "-c", "unix_socket_directories=", "-c", "fsync=off")
	w.t.Cleanup(func() { // its other processes go first
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		<-p.ended
	})
	p.says("ready to accept connections")
	w.endpointSlices("db", discoveryv1.Endpoint{Addresses: []string{at}})
}

// Programs of every make, each with a resolver and with sockets of its own, reach the cluster by its names, and real servers there.
func TestConnectRunsProgramsOfEveryMake(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withNames()
	w.apply(serversYAML)
	w.redis()
	w.postgres()
	b := build(t)
	service, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip := service.Spec.ClusterIP
	pod := w.pods("app=named")[0].Status.PodIP
	programs := []struct{ name, command, want string }{ // want is what its lines are to be, the last ones
		{"static Go", s.sample + " get --url http://orders", "original"},
		{"curl", "curl -sS --max-time 60 http://orders." + w.ns, "original"},
		{"getent", "getent ahostsv4 orders | awk 'NR == 1 {print $1}'", ip},
		{"getent, a long answer", "getent ahostsv4 many | awk '{print $1}' | sort -u | wc -l", strconv.Itoa(manyEndpoints)},
		{"glibc", b.glibc + " orders 80 GET | sed -n '1p;$p'", ip + "\noriginal"},
		{"musl", b.musl + " orders 80 GET | sed -n '1p;$p'", ip + "\noriginal"},
		{"JVM", b.java + " orders GET", ip + "\noriginal"},
		{"Node", b.node + " orders many GET", fmt.Sprintf("%s\n%[1]s\n%d\noriginal", ip, manyEndpoints)},
		{"psql", "PGCONNECT_TIMEOUT=60 psql -w -h db -U postgres -Atc 'select 6 * 7'", "42"},
		{"redis-cli", "redis-cli -h cache." + w.ns + ".svc set key value && redis-cli -h cache get key", "OK\nvalue"},
		{"dig", "dig +short orders", "orders." + w.ns + ".svc.cluster.local.\n" + ip},
		{"dig, a long answer", "dig +short many | tail -n +2 | sort -u | wc -l", strconv.Itoa(manyEndpoints)},
		{"ping", "ping -n -c 1 -W 60 named | sed -n 's/.* bytes from \\([^:]*\\):.*/\\1/p'", pod},
		{"ping, this machine", "ping -n -c 1 -W 60 host.bridge.internal >/dev/null && echo answered", "answered"},
	}
	// One bridge for all: a shell that runs them.
	var script strings.Builder
	for i, p := range programs {
		fmt.Fprintf(&script, "echo '== %d'\n{ %s; } 2>&1\necho\n", i, p.command)
	}
	out := w.runs(0, "sh", "-c", script.String())
	for i, p := range programs {
		_, said, _ := strings.Cut(out, fmt.Sprintf("== %d\n", i))
		said, _, _ = strings.Cut(said, "\n== ")
		if said = strings.TrimSpace(said); said != p.want && !strings.HasSuffix(said, "\n"+p.want) {
			t.Errorf("%s: %q, want %q", p.name, said, p.want)
		}
	}
}

// Each resolver there is has its answers from connect's DNS server, short and long ones.
func TestResolversAtTheDNSServer(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withNames()
	b := build(t)
	const server = "127.0.53.4"
	k := w.bridge("connect", "--listen", "127.0.0.1:0", "--dns-listen", server+":53")
	k.dnsServer()
	service, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip := service.Spec.ClusterIP
	w.await("the cluster's resolver to know all", func() bool {
		out, _ := exec.Command("dig", "@"+server, "+short", "many").CombinedOutput()
		return len(strings.Fields(string(out))) == manyEndpoints+1
	})
	see := withResolver(t, server)
	for name, c := range map[string]struct{ command, want string }{
		"getent":                {"getent ahostsv4 orders." + w.ns + " | awk 'NR == 1 {print $1}'", ip},
		"getent, a long answer": {"getent ahostsv4 many | awk '{print $1}' | sort -u | wc -l", strconv.Itoa(manyEndpoints)},
		"glibc":                 {b.glibc + " orders 80", ip},
		"musl":                  {b.musl + " orders." + w.ns + ".svc 80", ip},
		"JVM":                   {b.java + " orders", ip},
		"Node":                  {b.node + " orders." + w.ns + " many", fmt.Sprintf("%s\n%[1]s\n%d", ip, manyEndpoints)},
	} {
		cmd := exec.Command("sh", "-c", c.command)
		see(cmd)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
	// Go's own, as it is in a static binary.
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server+":53")
	}}
	if got, err := resolver.LookupNetIP(t.Context(), "ip4", "orders"); err != nil || len(got) != 1 || got[0] != netip.MustParseAddr(ip) {
		t.Errorf("Go: %v, %v, want %s", got, err, ip)
	}
	if got, err := resolver.LookupHost(t.Context(), "many"); err != nil || len(got) != manyEndpoints {
		t.Errorf("Go: %d addresses, %v, want %d", len(got), err, manyEndpoints)
	}
	if _, got, err := resolver.LookupSRV(t.Context(), "http", "tcp", "pods."+w.ns); err != nil || len(got) != 2 {
		t.Errorf("Go: %v, %v, want 2 SRV records", got, err)
	}
	if got, err := resolver.LookupCNAME(t.Context(), "alias."+w.ns+".svc.cluster.local."); err != nil || got != "orders."+w.ns+".svc.cluster.local." {
		t.Errorf("Go: %q, %v", got, err)
	}
}
