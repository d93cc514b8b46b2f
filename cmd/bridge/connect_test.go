package main

import (
	"bytes"
	"net/netip"
	"os/exec"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestConnectExampleIsAWebServer(t *testing.T) {
	service := func(name string, change func(*corev1.Service), ports ...corev1.ServicePort) corev1.Service {
		s := corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: ports},
		}
		if change != nil {
			change(&s)
		}
		return s
	}
	port := func(name string, number int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, Protocol: corev1.ProtocolTCP}
	}
	db := service("db", nil, port("", 5432))
	for _, tt := range []struct {
		name     string
		services []corev1.Service
		want     string
	}{
		{"none", nil, "https://kubernetes.default/version"},
		{"no web server", []corev1.Service{db}, "https://kubernetes.default/version"},
		{"port 80 wins", []corev1.Service{db, service("a", nil, port("", 8080)), service("b", nil, port("", 80))}, "http://b.shop/"},
		{"a name tells", []corev1.Service{service("a", nil, port("grpc", 9090), port("http-api", 9191))}, "http://a.shop:9191/"},
		{"TLS", []corev1.Service{service("a", nil, port("https", 8443))}, "https://a.shop:8443/"},
		{"first by name", []corev1.Service{service("b", nil, port("", 443)), service("a", nil, port("", 443))}, "https://a.shop/"},
		{"not UDP", []corev1.Service{service("a", nil, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolUDP})}, "https://kubernetes.default/version"},
		{"not what lies outside", []corev1.Service{service("a", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeExternalName
		}, port("", 80))}, "https://kubernetes.default/version"},
	} {
		if got := chooseExample(tt.services); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestConnectPrintsAShellScript(t *testing.T) {
	var b bytes.Buffer
	printConnect(&b, connectLines{
		proxy: "127.0.0.1:1080", dns: netip.MustParseAddrPort("127.0.0.1:5300"),
		direct: hostOf("https://10.0.0.1:6443"), example: "http://web.shop/", domain: "cluster.local",
		pac: "http://127.0.0.1:1080/proxy.pac",
	})
	const want = `# For programs started from this shell:
export ALL_PROXY=socks5h://127.0.0.1:1080 HTTP_PROXY=http://127.0.0.1:1080 HTTPS_PROXY=http://127.0.0.1:1080 NO_PROXY=localhost,127.0.0.1,::1,10.0.0.1
export http_proxy=$HTTP_PROXY https_proxy=$HTTPS_PROXY no_proxy=$NO_PROXY
# Without them:
curl --proxy socks5h://127.0.0.1:1080 http://web.shop/
dig @127.0.0.1 -p 5300 kubernetes.default.svc.cluster.local
# A browser's proxy auto-config file, for the cluster only: http://127.0.0.1:1080/proxy.pac
`
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
	}
	if sh, err := exec.LookPath("sh"); err == nil {
		if out, err := exec.CommandContext(t.Context(), sh, "-n", "-c", b.String()).CombinedOutput(); err != nil {
			t.Errorf("a shell does not take it: %v\n%s", err, out)
		}
	}
}

func TestHostOfServer(t *testing.T) {
	for server, want := range map[string]string{
		"https://10.0.0.1:6443":      "10.0.0.1",
		"https://k8s.example/prefix": "k8s.example",
		"https://[fd00::1]:6443":     "fd00::1",
		"10.0.0.1:6443":              "10.0.0.1",
		"":                           "",
	} {
		if got := hostOf(server); got != want {
			t.Errorf("%s: %q, want %q", server, got, want)
		}
	}
}

func TestServerOnLoopback(t *testing.T) {
	for server, want := range map[string]string{
		"https://127.0.0.1:6443":  "127.0.0.1:6443",
		"https://127.0.0.2:6443/": "127.0.0.2:6443",
		"https://localhost:6443":  "127.0.0.1:6443",
		"https://localhost":       "127.0.0.1:443",
		"http://127.0.0.1":        "127.0.0.1:80",
		"127.0.0.1:8080":          "127.0.0.1:8080",
		"https://[::1]:6443":      "[::1]:6443",
		"https://10.0.0.1:6443":   "invalid AddrPort",
		"https://k8s.example":     "invalid AddrPort",
		"":                        "invalid AddrPort",
	} {
		if got := onLoopback(server); got.String() != want {
			t.Errorf("%s: %s, want %s", server, got, want)
		}
	}
}
