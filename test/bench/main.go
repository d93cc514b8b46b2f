//go:build linux

// Command bench compares the ways to a port of a pod, all in one run: kubectl port-forward over
// WebSocket and over SPDY, yamux as it comes, bridge forward, bridge connect, and what TCP itself does.
// It writes docs/benchmarks.md; make bench builds what it needs and runs it, as root on Linux.
//
// Each way is a variant (variant.go): real programs that end in a port of the laptop. Each measure
// (measure.go) is a function of one variant. The runner (run.go) goes through conditions, rounds,
// measures and variants, in this order, so that what is compared was measured within seconds.
// The same program is the server in the pod (server.go), the ends of yamux (yamux.go), a device with its stack and a redirect (entrance.go), and an echo of datagrams (names.go).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"bridge/internal/netns"
	"bridge/internal/packet"
)

// options are what the flags say.
type options struct {
	out    string
	rounds int
	time   time.Duration
	idle   int
	quick  bool
	only   string
	what   string
	ways   string
	keep   bool
}

func main() {
	netns.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	verb := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(verb, flag.ExitOnError)
	switch verb {
	case "run", insideVerb:
		var o options
		flags.StringVar(&o.out, "out", "docs/benchmarks.md", "the file to write")
		flags.IntVar(&o.rounds, "rounds", 5, "how often everything is measured")
		flags.DurationVar(&o.time, "time", time.Second, "how long one measure takes, without its start")
		flags.IntVar(&o.idle, "idle", maxIdle, "how many idle connections are held for their memory")
		flags.BoolVar(&o.quick, "quick", false, "see that everything works: one short round, printed and not written")
		flags.StringVar(&o.only, "only", "", "a regular expression for the names of the conditions to measure; of the others the file keeps what it has")
		flags.StringVar(&o.what, "measures", "", "one for the names of the figures, likewise")
		flags.StringVar(&o.ways, "variants", "", "one for the names of the variants, likewise")
		flags.BoolVar(&o.keep, "keep", false, "leave the cluster up, for the next run")
		_ = flags.Parse(args)
		if o.quick {
			o.rounds, o.time, o.idle = 1, 200*time.Millisecond, min(o.idle, 200)
		}
		if verb == insideVerb {
			return inside(ctx, o)
		}
		return outside(ctx, o, args)
	case "serve":
		listen := flags.String("listen", ":7000", "the server's address")
		_ = flags.Parse(args)
		return serve(ctx, *listen)
	case "relay":
		listen := flags.String("listen", "127.0.0.1:0", "the relay's address")
		to := flags.String("to", "", "where it connects to")
		_ = flags.Parse(args)
		return relay(ctx, *listen, *to)
	case "redirect":
		return redirect(ctx, os.Stdout)
	case "echo-datagrams":
		listen := flags.String("listen", "127.0.0.1:0", "its address")
		_ = flags.Parse(args)
		return echoDatagrams(ctx, *listen)
	case "device":
		mtu := flags.Int("mtu", packet.MTU, "the device's")
		to := flags.String("to", "", "where it connects to")
		_ = flags.Parse(args)
		return device(ctx, os.Stdout, *mtu, *to)
	case "yamux-pod":
		listen := flags.String("listen", "127.0.0.1:7001", "the address of the session")
		_ = flags.Parse(args)
		return yamuxPod(ctx, *listen)
	case "yamux-laptop":
		listen := flags.String("listen", "127.0.0.1:0", "the address of the connections")
		pod := flags.String("pod", "", "the pod that runs yamux-pod")
		to := flags.String("to", "", "what the pod connects to")
		_ = flags.Parse(args)
		return yamuxLaptop(ctx, *listen, *pod, *to)
	}
	return fmt.Errorf("unknown command %q", verb)
}
