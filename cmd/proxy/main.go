// Command proxy is bridge's end in a pod: it stands where the target's program stood and passes its
// callers to the laptop (--listen), and dials from inside the cluster for it. `proxy keep`, in a pod of its own, gives
// the swap back when the laptop is gone. Both are started by bridge, never by hand; internal/proxypod writes their
// arguments. `proxy tool NAME` is one of the tools that bridge debug brings. It links no Kubernetes client and stays small.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bridge/internal/tools"
	"bridge/pkg/tunnel"
)

// memoryLimit is where the collector begins to work harder: below the pod's limit of 256 MiB (internal/proxypod), with room for
// what the kernel counts for the pod's connections, some 3 KB each. 10,000 idle ones fit.
const memoryLimit = 200 << 20

// version is set by the linker.
var version = "devel"

func main() {
	debug.SetMemoryLimit(memoryLimit)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "tool" {
		os.Exit(tools.Run(ctx, os.Args[2:], tools.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit status, 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var serve func(context.Context, *slog.Logger) error
	var err error
	if len(args) > 0 && args[0] == "keep" {
		var c keepConfig
		c, err = parseKeep(args[1:], stderr)
		serve = c.serve
	} else {
		var c config
		if c, err = parse(args, os.Environ(), stderr); err == nil && c.version {
			_, _ = fmt.Fprintln(stdout, "proxy", version)
			return 0
		}
		serve = c.serve
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "proxy:", err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := serve(ctx, log); err != nil {
		log.Error("proxy ends", "error", err)
		return 1
	}
	return 0
}

// config is the command line.
type config struct {
	version     bool
	client      tunnel.Fingerprint
	tunnel      string // the tunnel's listener, on loopback
	podProxy    string // the tunnel's listener for the API server's proxy, on the pod's address; "" for none
	health      string // the readiness listener
	listen      []int  // the target's TCP ports
	listenUDP   []int  // and UDP ports; none of either for connect
	originalsAt string // the address of the originals' Service, in standby; "" when none runs
	pass        []int  // TCP ports whose callers all go there
	mirror      bool   // the originals answer at the other ports, and the laptop gets a copy
	membersAt   string // the file that says which requests of the other ports are whose; "" when there is one laptop alone
	serveDials  bool
	toPod       []int // TCP ports of the pod's loopback that are dialled for the laptop; no others of it are
	allow       []netip.Prefix
	view        view
	drainDelay  time.Duration // new connections are still taken after SIGTERM
	drain       time.Duration // open ones may take this long after that
}

// parse reads args; environ is the process's. Usage errors of the flag package itself are printed to stderr by it, too.
func parse(args, environ []string, stderr io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("proxy", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&c.version, "version", false, "print the version and exit")
	f.Func("client", "`fingerprint` of the laptop's key (hex)", func(s string) (err error) {
		c.client, err = tunnel.ParseFingerprint(s)
		return err
	})
	f.StringVar(&c.tunnel, "tunnel", "", "`address` for the tunnel, on loopback")
	f.StringVar(&c.podProxy, "podproxy", "", "`address` for the tunnel by HTTP Upgrade, where the API server's proxy to pods reaches it")
	f.StringVar(&c.health, "health", "", "`address` that answers the readiness probe")
	f.Func("listen", "`port`, or port/udp, whose traffic goes to the laptop (repeatable)", func(s string) error {
		number, udp := strings.CutSuffix(s, "/udp")
		port, err := parsePort(number)
		if err != nil {
			return fmt.Errorf("%w, and /udp behind it for one of UDP", err)
		}
		if udp {
			c.listenUDP = append(c.listenUDP, port)
		} else {
			c.listen = append(c.listen, port)
		}
		return nil
	})
	f.StringVar(&c.originalsAt, "originals", "", "`address` of the Service of the originals, where callers go whom the laptop does not take")
	f.Func("pass", "`port` whose callers all go to the originals (repeatable)", func(s string) error {
		port, err := parsePort(s)
		c.pass = append(c.pass, port)
		return err
	})
	f.BoolVar(&c.mirror, "mirror", false, "the originals answer, and the laptop gets a copy of what callers send")
	f.StringVar(&c.membersAt, "members", "", "`file` that says whose keys are let in, in the place of --client, and which requests are whose; the originals have all others")
	f.Func("files", "`path` of a volume whose files the laptop gets (repeatable)", c.view.addFiles)
	f.Func("absent", "`path:why` of what the laptop does not get (repeatable)", c.view.addAbsent)
	f.Func("token", "`path:audience` of a token of the target's, which the laptop does not get (repeatable)", c.view.addToken)
	f.BoolVar(&c.serveDials, "serve-dials", true, "dial from the pod for the laptop")
	f.Func("to-pod", "`port` of the pod's other containers that is dialled for the laptop on the pod's loopback (repeatable)", func(s string) error {
		port, err := parsePort(s)
		c.toPod = append(c.toPod, port)
		return err
	})
	f.Func("allow-cidr", "`addresses` of the link, or a metadata service's, that are dialled for the laptop (repeatable)", func(s string) error {
		p, err := netip.ParsePrefix(s)
		c.allow = append(c.allow, p)
		return err
	})
	f.DurationVar(&c.drainDelay, "drain-delay", 3*time.Second, "how long new connections are taken after SIGTERM")
	f.DurationVar(&c.drain, "drain", 10*time.Second, "how long open connections may take after that")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.view.environ = environ
	switch {
	case c.version:
		return c, nil
	case f.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case (c.client == tunnel.Fingerprint{}) == (c.membersAt == ""):
		return c, errors.New("--client or --members is needed, one of them")
	case c.tunnel == "" || c.health == "":
		return c, errors.New("--tunnel and --health are needed")
	case c.originalsAt == "" && len(c.pass) > 0:
		return c, errors.New("--pass is for --originals")
	case c.originalsAt == "" && c.chooses():
		return c, errors.New("--members and --mirror are for --originals")
	case c.membersAt != "" && c.mirror:
		return c, errors.New("--mirror copies whole connections, and --members chooses among their requests")
	case c.originalsAt != "" && len(c.listenUDP) > 0:
		return c, errors.New("--originals is for TCP alone")
	case c.drainDelay < 0 || c.drain < 0:
		return c, errors.New("--drain-delay and --drain are not negative")
	}
	return c, nil
}

// standsIn says whether the proxy has ports of a target: it does for swap, and not for connect.
func (c config) standsIn() bool { return len(c.listen)+len(c.listenUDP)+len(c.pass) > 0 }

// chooses says whether not all that the laptop can take is its own.
func (c config) chooses() bool { return c.membersAt != "" || c.mirror }

func parsePort(s string) (int, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("want a port, 1 to 65535")
	}
	return int(port), nil
}
