package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/machine"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/witness"
	"bridge/pkg/tunnel"
)

type connectOptions struct {
	listen, dnsListen string
	image, arch       string
	podProxy          bool
	proxyTimeout      time.Duration
	resumeWindow      time.Duration
	dialTimeout       time.Duration
	pac               bool
	program           []string // CMD
	network           network
	tun, undo         bool
	allow             []netip.Prefix
}

func newConnectCommand(a *app) *cobra.Command {
	var o connectOptions
	cmd := &cobra.Command{
		Use:   "connect [--tun | -- CMD...]",
		Short: "Reach the cluster's names and addresses from this machine",
		Long: `connect starts a pod of its own in the namespace and opens two ports on this machine's loopback: a
proxy (SOCKS5, HTTP CONNECT and plain HTTP) and a DNS server that knows the cluster's names and leaves
all others to this machine's resolvers. Nothing else on this machine changes.

It prints what to paste into a shell, and ends with Ctrl-C. With --pac also the URL of a proxy auto-config file, by which a
browser asks the proxy for the cluster's names and addresses only.

With CMD no port is opened. On Linux CMD runs in a network of its own, without root: there the cluster's names
and addresses are as in a pod, for every program, and all others as on this machine, whose loopback
is ` + connect.HostName + `. Where that is not allowed, and on other systems, CMD gets variables that name the
proxy. Signals and the exit code are CMD's.

With --tun, as root on Linux, the whole machine sees the cluster: a network device with routes to the cluster's
ranges of Services and pods, or to those of --cidr, and the cluster's names in its resolver. All that is changed back at the end,
after a kill by the next --tun or by --undo.`,
		Example: `  bridge connect -n shop
  bridge connect -n shop --pac
  bridge connect -n shop -- curl http://orders/
  bridge connect -- psql -h db.shop
  sudo bridge connect --tun --kubeconfig ~/.kube/config -n shop
  curl --proxy socks5h://127.0.0.1:1080 http://orders/`,
		Args: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			switch {
			case dash > 0:
				return hint.Newf(hint.Usage, "leave it out", "what is %q? A CMD stands behind --", args[0])
			case dash < 0 && len(args) > 0:
				return hint.Newf(hint.Usage, "write: bridge connect -- "+args[0]+" ...", "what is %q? A CMD stands behind --", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() >= 0 && len(args) == 0 {
				return hint.Newf(hint.Usage, "see: bridge connect --help", "there is nothing behind --")
			}
			if err := o.checkWhole(cmd.Flags().Changed, len(args) > 0); err != nil {
				return err
			}
			if o.tun || o.undo {
				outliveReaders()
			}
			if o.undo {
				return machine.Undo(a.say)
			}
			for _, name := range []string{"cidr", "local-port", "publish"} {
				if len(args) == 0 && cmd.Flags().Changed(name) && (!o.tun || name != "cidr") {
					what := "a CMD"
					if name == "cidr" {
						what += ", and for --tun"
					}
					return hint.Newf(hint.Usage, fmt.Sprintf("write: bridge connect --%s ... -- CMD", name), "--%s is for %s", name, what)
				}
			}
			if len(args) > 0 && o.pac {
				return hint.Newf(hint.Usage, "leave out --pac, or write: bridge connect --pac", "--pac is for a browser beside, and there is a CMD")
			}
			if err := o.network.check(nil); err != nil {
				return err
			}
			o.program = args
			return a.connect(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "", "loopback address of the proxy (default "+connect.DefaultListen+", or a free port)")
	f.StringVar(&o.dnsListen, "dns-listen", "", "loopback address of the DNS server (default "+connect.DefaultDNSListen+", or a free port)")
	f.BoolVar(&o.pac, "pac", false, "serve a proxy auto-config file, by which a browser uses the proxy for the cluster only")
	f.StringVar(&o.image, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "image of the proxy (default: none is needed, the proxy is carried to the node on the image of a running pod)")
	f.StringVar(&o.arch, "arch", "", "architecture of a carried proxy, amd64 or arm64 (default: that of the cluster's nodes)")
	networkFlags(cmd, &o.network)
	f.BoolVar(&o.tun, "tun", false, "have the whole machine see the cluster; as root, on Linux. With --cidr those ranges alone are routed")
	f.BoolVar(&o.undo, "undo", false, "change back what a killed connect --tun has left, and do no more")
	allowFlag(cmd, &o.allow)
	carrierFlag(cmd, &o.podProxy)
	f.DurationVar(&o.proxyTimeout, "proxy-timeout", 90*time.Second, "how long the proxy's pod may take to be Ready")
	dialTimeoutFlag(cmd, "a connection", &o.dialTimeout)
	resumeWindowFlag(cmd, &o.resumeWindow)
	return cmd
}

func (a *app) connect(ctx context.Context, o connectOptions) (err error) {
	var whole *machine.Machine
	if o.tun {
		// Before the cluster is asked: what a killed one has left may keep the API server's name from being found
		if whole, err = machine.Hold(a.say); err != nil {
			return err
		}
		defer func() {
			if e := whole.Close(); e != nil { // whatever else: this has to be seen
				err = errors.Join(e, err)
			}
		}()
	}
	k, err := a.kube()
	if err != nil {
		return err
	}
	if err := rights.Connect.Check(ctx, k, "connect", o.image == ""); err != nil {
		return err
	}
	services, err := witness.New(k.Config, k.Namespace, a.log)
	if err != nil {
		return err
	}
	entrance := connect.Options{Listen: o.listen, DNSListen: o.dnsListen, Unchanged: services.Unchanged, DialTimeout: o.dialTimeout, Log: a.log}
	if o.pac {
		entrance.PAC = newPAC(k, a.log)
	}
	var program *connect.Program
	var e *connect.Entrance
	if whole != nil {
		err = a.planWhole(ctx, k, whole, o.network, o.allow)
	} else if len(o.program) > 0 {
		if program, err = a.connectProgram(k, o.program, o.network, entrance); err == nil {
			err = program.Check(ctx)
		}
	} else if e, err = connect.Open(entrance); err == nil {
		defer e.Close()
	}
	if err != nil {
		return err
	}
	step := a.progress()
	defer a.onSecondSignal(nil)
	var more []string
	if o.tun {
		more = []string{"the resolver may not be as before; bring it back with: bridge connect --undo"}
	}
	own := &proxypod.Own{
		OnCreate: a.ownCreated(k, proxypod.KindConnect, more...),
		Kube:     k, Kind: proxypod.KindConnect, Image: o.image, Arch: o.arch, Owner: identity(), Version: versionString(),
		ReadyTimeout: o.proxyTimeout, Why: whyOf(k), ResumeWindow: o.resumeWindow, Pings: whole != nil || program != nil && program.Inside(),
		Allow: o.allow, PodProxy: o.podProxy, Say: step, Log: a.log,
	}
	return own.Run(ctx, func(ctx context.Context, _ *proxypod.Proxy, t *tunnel.Client) error {
		ctx, cancel := context.WithCancel(ctx)
		var beside sync.WaitGroup
		defer beside.Wait()
		defer cancel()
		beside.Go(func() { services.Run(ctx) })
		if program != nil {
			known, _ := k.Ranges(ctx)
			program.Ranges = slices.Concat(program.Ranges, o.allow, known) // what is allowed is meant
			return program.Run(ctx, func() *tunnel.Client { return t })
		}
		if whole != nil {
			w := &connect.Whole{Machine: whole, Unchanged: services.Unchanged, DialTimeout: o.dialTimeout, Log: a.log, Ready: func() {
				a.say("this machine is connected through namespace " + k.Namespace + "; Ctrl-C ends it")
			}}
			return w.Run(ctx, func() *tunnel.Client { return t })
		}
		info, _ := t.Info()
		pac := ""
		if o.pac {
			pac = e.PAC()
			beside.Go(func() { a.askForPAC(ctx, k, entrance.PAC) })
		}
		printConnect(a.stdout, connectLines{
			proxy: e.Proxy().String(), dns: e.DNS(), direct: hostOf(k.Config.Host),
			example: exampleURL(ctx, k), domain: connect.Domain(info), pac: pac,
		})
		a.say("connected through namespace " + k.Namespace + "; Ctrl-C ends it")
		return e.Run(ctx, func() *tunnel.Client { return t })
	})
}

// askForPAC has the Services asked for before a browser does, and says when not even the namespace's own are told.
func (a *app) askForPAC(ctx context.Context, k *kube.Client, pac *connect.PAC) {
	err := pac.Refresh(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	a.say("list services: " + err.Error() + "; until that is possible, the proxy auto-config file knows names in .svc only")
	if apierrors.IsForbidden(err) {
		a.say("the rights that are needed: bridge rbac connect -n " + k.Namespace)
	}
}

// onLoopback is the address of a kubeconfig's server when that is on this machine's loopback, else not valid.
func onLoopback(server string) netip.AddrPort {
	u, err := serverURL(server)
	if err != nil {
		return netip.AddrPort{}
	}
	host, port := u.Hostname(), u.Port()
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if port == "" {
		if port = "443"; u.Scheme == "http" {
			port = "80"
		}
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil || !at.Addr().Unmap().IsLoopback() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// ownCreated has a second signal say how to remove the pod that there is from now on, and more lines.
func (a *app) ownCreated(k *kube.Client, kind string, more ...string) func(lease string) {
	return func(lease string) {
		a.onSecondSignal(func() {
			for _, line := range append([]string{"not removed; do it with: " + proxypod.RemoveCommand(k, kind, k.Namespace, lease)}, more...) {
				a.say(line)
			}
		})
	}
}

type connectLines struct {
	proxy   string // host:port
	dns     netip.AddrPort
	direct  string // the API server: kubectl in the same shell goes there as before
	example string // a URL that answers
	domain  string // of the cluster
	pac     string // URL, or ""
}

// printConnect prints a text for a shell. Programs differ in which names they read, and curl reads
// http_proxy in lower case only.
func printConnect(w io.Writer, l connectLines) {
	insecure := ""
	if strings.HasPrefix(l.example, "https:") {
		insecure = "-k " // the certificate is the cluster's
	}
	fmt.Fprintf(w, `# For programs started from this shell:
export ALL_PROXY=socks5h://%[1]s HTTP_PROXY=http://%[1]s HTTPS_PROXY=http://%[1]s NO_PROXY=%[2]s
export http_proxy=$HTTP_PROXY https_proxy=$HTTPS_PROXY no_proxy=$NO_PROXY
# Without them:
curl %[3]s--proxy socks5h://%[1]s %[4]s
dig @%[5]s -p %[6]d kubernetes.default.svc.%[7]s
`, l.proxy, connect.NoProxy([]string{l.direct}), insecure, l.example, l.dns.Addr(), l.dns.Port(), l.domain)
	if l.pac != "" {
		fmt.Fprintln(w, "# A browser's proxy auto-config file, for the cluster only:", l.pac)
	}
}

// newPAC makes a proxy auto-config file of what the account may read.
func newPAC(k *kube.Client, log *slog.Logger) *connect.PAC {
	return &connect.PAC{
		Namespace: k.Namespace, Direct: []string{hostOf(k.Config.Host)}, Log: log, Ranges: k.Ranges,
		Services: func(ctx context.Context, namespace string) (list []connect.Service, more bool, err error) {
			services, more, err := k.Services(ctx, namespace, connect.MaxPACServices)
			for _, s := range services {
				list = append(list, connect.Service{Name: s.Name, Namespace: s.Namespace, Headless: s.Spec.ClusterIP == corev1.ClusterIPNone})
			}
			return list, more, err
		},
	}
}

// serverURL is a kubeconfig's server, which may be a URL or "host:port".
func serverURL(server string) (*url.URL, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	return url.Parse(server)
}

// hostOf is the host name or address in a kubeconfig's server.
func hostOf(server string) string {
	u, err := serverURL(server)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// exampleURL names a Service of the namespace that looks like a web server, else the API server's own:
// without the right to list Services the example is less interesting, no more.
func exampleURL(ctx context.Context, k *kube.Client) string {
	const enough = 100
	list, err := k.Clientset.CoreV1().Services(k.Namespace).List(ctx, metav1.ListOptions{Limit: enough})
	if err != nil {
		return defaultExample
	}
	return chooseExample(list.Items)
}

const defaultExample = "https://kubernetes.default/version"

func chooseExample(services []corev1.Service) string {
	best, bestRank := defaultExample, 0
	slices.SortFunc(services, func(a, b corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range services {
		if s.Spec.Type == corev1.ServiceTypeExternalName || len(s.Spec.Selector) == 0 {
			continue
		}
		for _, p := range s.Spec.Ports {
			if rank := webRank(p); rank > bestRank {
				best, bestRank = serviceURL(s, p), rank
			}
		}
	}
	return best
}

// webRank says how much a port looks like a web server's; 0 is not at all.
func webRank(p corev1.ServicePort) int {
	switch {
	case p.Protocol != corev1.ProtocolTCP && p.Protocol != "":
		return 0
	case p.Port == 80:
		return 3
	case strings.HasPrefix(p.Name, "http"):
		return 2
	case p.Port == 443, p.Port == 8080, p.Port == 8000, p.Port == 3000:
		return 1
	}
	return 0
}

func serviceURL(s corev1.Service, p corev1.ServicePort) string {
	host := s.Name + "." + s.Namespace
	switch {
	case p.Port == 80:
		return "http://" + host + "/"
	case p.Port == 443:
		return "https://" + host + "/"
	case strings.HasPrefix(p.Name, "https"):
		return "https://" + net.JoinHostPort(host, strconv.Itoa(int(p.Port))) + "/"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(int(p.Port))) + "/"
}
