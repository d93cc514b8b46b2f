//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// headlessYAML is a Service whose pods have names of their own; it needs none here.
const headlessYAML = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
`

// browse has a headless Chromium open an address and returns the page as it then is. The browser is alone with its profile.
func browse(t *testing.T, address string, flags ...string) string {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: test/tools.sh installs it", err)
	}
	profile, err := os.MkdirTemp("", "bridge-browser")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(profile)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, append(flags, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--user-data-dir="+profile, "--dump-dom", address)...)
	// Reports of crashes and the like are beside the profile; helpers that have left the group may hold a pipe.
	cmd.Env = append(os.Environ(), "HOME="+profile, "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=")
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var said strings.Builder
	cmd.Stderr = &said
	page, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", address, err, said.String())
	}
	return string(page)
}

// pac waits for the URL of connect's proxy auto-config file.
func (p *process) pac() string {
	p.t.Helper()
	return regexp.MustCompile(`http://\S+`).FindString(p.prints("proxy auto-config file"))
}

// fetch gets an URL without any proxy.
func fetch(t *testing.T, address string) string {
	t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(b)
}

// ownAddress is an address of the laptop's that is not on its loopback: to those a browser never uses a proxy.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; ip.IsGlobalUnicast() && ip.To4() != nil {
			return ip.String()
		}
	}
	t.Fatalf("no address in %v", addrs)
	return ""
}

// A browser that has the proxy auto-config file opens the cluster's pages by their names, and all others directly.
func TestBrowser(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	w.apply(headlessYAML)
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := w.snapshot()
	c := w.connect(s.kubeconfig, nil, "--pac")
	pac := c.pac()
	// Whatever this browser resolves itself is the laptop. Names of the cluster it must leave to the proxy.
	own := ownAddress(t)
	flags := []string{"--proxy-pac-url=" + pac, "--host-resolver-rules=MAP * " + own + ", EXCLUDE 127.0.0.1"}

	for what, address := range map[string]string{
		"short name":     "http://orders/",
		"with namespace": "http://orders." + w.ns + "/",
		"full name":      "http://orders." + w.ns + ".svc.cluster.local/",
		"address":        "http://" + svc.Spec.ClusterIP + "/",
	} {
		if page := browse(t, address, flags...); !strings.Contains(page, ">original") {
			t.Errorf("%s, %s: %s", what, address, page)
		}
	}

	// The laptop's page, by names that could be the cluster's, says who has asked for it.
	laptop, err := net.Listen("tcp", net.JoinHostPort(own, "0"))
	if err != nil {
		t.Fatal(err)
	}
	script := fetch(t, pac)
	hosts := w.pacHosts(svc.Spec.ClusterIP, w.pods("app=orders")[0].Status.PodIP)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		w.Header().Set("Content-Type", "text/html")
		if r.URL.Path == "/table" {
			_, _ = io.WriteString(w, tablePage(script, hosts))
			return
		}
		fmt.Fprintf(w, "<p>%s from %s via %q</p>", html.EscapeString(r.Host), from, r.Header["Via"])
	}))
	_ = web.Listener.Close()
	web.Listener = laptop
	web.Start()
	defer web.Close()
	_, port, _ := net.SplitHostPort(laptop.Addr().String())
	for _, host := range []string{"wiki", "other." + w.ns, "www.orders." + w.ns, "orders." + w.ns + ".example", own} {
		page := browse(t, "http://"+net.JoinHostPort(host, port)+"/", flags...)
		if want := fmt.Sprintf("<p>%s from %s via []</p>", net.JoinHostPort(host, port), own); !strings.Contains(page, want) {
			t.Errorf("%s: %s, want %s", host, page, want)
		}
	}

	// What the file says of many names, without loading each.
	page := browse(t, "http://"+net.JoinHostPort(own, port)+"/table")
	_, answers, _ := strings.Cut(page, "<pre>")
	answers, _, _ = strings.Cut(answers, "</pre>")
	var got []string
	if err := json.Unmarshal([]byte(html.UnescapeString(answers)), &got); err != nil || len(got) != len(hosts) {
		t.Fatalf("%v in %s", err, page)
	}
	u, err := url.Parse(pac)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		want := map[bool]string{true: "PROXY " + u.Host, false: "DIRECT"}[h.cluster]
		if got[i] != want {
			t.Errorf("%q: %s, want %s", h.name, got[i], want)
		}
	}

	// A Service that comes later is known later.
	w.apply(strings.ReplaceAll(headlessYAML, "name: db", "name: later"))
	w.await("the new Service in the file", func() bool { return strings.Contains(fetch(t, pac), `"later"`) })
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "later", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.terminate()
	w.assertSnapshot(before)
}

// pacHost is a name and whether it is the cluster's.
type pacHost struct {
	name    string
	cluster bool
}

func (w *world) pacHosts(serviceIP, podIP string) []pacHost {
	api, err := url.Parse(s.config.Host)
	if err != nil {
		w.t.Fatal(err)
	}
	ranges, _ := (&kube.Client{Clientset: s.client}).Ranges(w.t.Context())
	readable := func(ip string) bool { // not every cluster's nodes tell
		return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(netip.MustParseAddr(ip)) })
	}
	return []pacHost{
		{"orders", true},
		{"ORDERS", true},
		{"orders." + w.ns, true},
		{"orders." + w.ns + ".", true},
		{"orders." + w.ns + ".svc", true},
		{"orders." + w.ns + ".svc.cluster.local", true},
		{"nothing.anywhere.svc", true},
		{"10-0-0-1." + w.ns + ".pod.cluster.local", true},
		{"db." + w.ns, true},
		{"db-0.db." + w.ns, true},
		{"db-0.db", true},
		{"kubernetes.default", true},
		{serviceIP, readable(serviceIP)},
		{podIP, readable(podIP)},
		{"wiki", false},
		{w.ns, false},
		{"svc", false},
		{"cluster.local", false},
		{"printer.cluster.local", false},
		{"other." + w.ns, false},
		{"www.orders." + w.ns, false},
		{"a.db-0.db." + w.ns, false},
		{"orders." + w.ns + ".example", false},
		{"orders.example", false},
		{"www.example.com", false},
		{serviceIP + ".example", false},
		{"localhost", false},
		{"127.0.0.1", false},
		{"192.0.2.1", false},
		{"::1", false},
		{api.Hostname(), false},
		{"constructor", false},
		{"__proto__", false},
		{"", false},
	}
}

// tablePage is a page that shows what the file says of each host. The two functions are those of browsers that the file calls.
func tablePage(script string, hosts []pacHost) string {
	var names []string
	for _, h := range hosts {
		names = append(names, h.name)
	}
	list, _ := json.Marshal(names)
	return fmt.Sprintf(`<pre></pre><script>
function dnsDomainIs(host, domain) { return host.endsWith(domain); }
function isInNet(host, net, mask) {
  var n = function(a) { return a.split(".").reduce(function(sum, part) { return sum * 256 + Number(part); }, 0); };
  return (n(host) & n(mask)) === (n(net) & n(mask));
}
%s
document.querySelector("pre").textContent = JSON.stringify(%s.map(function(h) { return FindProxyForURL("http://" + h + "/", h); }));
</script>`, script, list)
}

// With the Role that bridge prints the file has the namespace's names; without the right to list Services it is said what is left.
func TestPACWithFewRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	role := deployed(t, "connect")
	ada := w.connect(w.as("ada", role), nil, "--pac")
	file := fetch(t, ada.pac())
	for name, has := range map[string]bool{`"orders"`: true, `"orders.` + w.ns + `"`: true, `"kube-dns.kube-system"`: false, `"ranges": []`: true} {
		if strings.Contains(file, name) != has {
			t.Errorf("%s in the file: %v in\n%s", name, !has, file)
		}
	}
	role.Name += "-less"
	role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "services") })
	bob := w.connect(w.as("bob", role), nil, "--pac")
	file = fetch(t, bob.pac())
	bob.says("the proxy auto-config file knows names in .svc only")
	if strings.Contains(file, `"orders"`) || !strings.Contains(file, `".svc"`) {
		t.Error(file)
	}
	ada.terminate()
	bob.terminate()
}
