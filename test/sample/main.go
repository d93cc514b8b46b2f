// Command sample is what the tests and the demo put in front of and behind a bridge: a server that
// says who it is, a client that counts what failed, and checks of what a TCP connection must keep.
// It runs as pods in the cluster and as the local process on the laptop. Standard library only.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: sample serve|load|busy|get|put|check|dial|look|ports|wait|talk|ask|count|hog|spin|kill|hang|registry|tls [flags]")
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	switch args[0] {
	case "serve":
		var s server
		flags.StringVar(&s.name, "name", hostname(), "who answers")
		flags.StringVar(&s.http, "http", ":8080", "HTTP address")
		flags.StringVar(&s.tcp, "tcp", "", "address of the TCP server that check talks to")
		flags.StringVar(&s.udp, "udp", "", "address of a UDP server that sends back what it gets, with its name before it")
		flags.StringVar(&s.health.pattern, "health", "S", "what probes get, one letter each: S good, F bad, H no answer; the last goes on")
		flags.DurationVar(&s.startup, "startup", 0, "how long to wait before listening")
		_ = flags.Parse(args[1:])
		exitOnSIGTERM()
		return s.run()
	case "load":
		var l load
		flags.StringVar(&l.url, "url", "", "what to GET")
		flags.StringVar((*string)(&l.header), "header", "", "NAME=VALUE of each request")
		flags.IntVar(&l.rate, "rate", 50, "requests a second")
		flags.BoolVar(&l.pooled, "pooled", false, "keep connections between requests")
		flags.DurationVar(&l.stall, "stall", 5*time.Second, "how long a request may take without having stalled")
		flags.BoolVar(&l.first, "first", false, "connect to the first address of the URL's name alone")
		_ = flags.Parse(args[1:])
		return l.run(os.Stdin, os.Stdout)
	case "check":
		var c check
		flags.StringVar(&c.address, "address", "", "host:port of a serve -tcp, or -udp for datagrams")
		flags.StringVar(&c.name, "name", "", "who is to answer datagrams")
		flags.StringVar(&c.what, "what", "", "half-close, reset, send-reset, upload, download, many or datagrams")
		flags.Int64Var(&c.bytes, "bytes", 100<<20, "for upload and download")
		flags.IntVar(&c.connections, "connections", 500, "for many")
		flags.BoolVar(&c.hold, "hold", false, "for many: say \"held\" when all are open, and keep them until the standard input ends")
		_ = flags.Parse(args[1:])
		return c.run(os.Stdout)
	case "busy":
		var b busy
		flags.StringVar(&b.address, "address", "", "host:port of a serve -tcp")
		flags.StringVar(&b.via, "via", "", "host:port of an HTTP proxy")
		flags.IntVar(&b.connections, "connections", 32, "how many")
		_ = flags.Parse(args[1:])
		return b.run(os.Stdin, os.Stdout)
	case "dial":
		address := flags.String("address", "", "host:port to join the standard streams to")
		_ = flags.Parse(args[1:])
		return dial(*address, os.Stdin, os.Stdout)
	case "get":
		url := flags.String("url", "", "what to GET, once")
		with := flags.String("header", "", "NAME=VALUE of the request")
		_ = flags.Parse(args[1:])
		client := http.Client{Timeout: 10 * time.Second}
		who, err := get(&client, *url, header(*with))
		if err == nil {
			fmt.Println(who)
		}
		return err
	case "count":
		var c count
		flags.DurationVar(&c.every, "every", 10*time.Millisecond, "how often a line is printed")
		flags.IntVar(&c.until, "until", 0, "end with exit code 1 after so many; 0 for never")
		flags.IntVar(&c.width, "width", 0, "how many characters more each line has")
		_ = flags.Parse(args[1:])
		exitOnSIGTERM()
		return c.run(os.Stdout)
	case "talk":
		return talk(os.Stdin, os.Stdout)
	case "ask":
		server := flags.String("server", "", "host:port of the DNS server, if not that of /etc/resolv.conf")
		_ = flags.Parse(args[1:])
		return ask(*server, os.Stdin, os.Stdout)
	case "look":
		return json.NewEncoder(os.Stdout).Encode(look(args[1:]))
	case "ports":
		host := flags.String("host", "", "whose ports to look at, all of them")
		_ = flags.Parse(args[1:])
		return ports(*host, os.Stdout)
	case "put":
		url, body := flags.String("url", "", "where to PUT"), flags.String("body", "", "what")
		_ = flags.Parse(args[1:])
		return put(*url, *body)
	case "hog":
		keep := flags.Int("keep", 0, "MiB to take, and keep; without it, until it is killed")
		_ = flags.Parse(args[1:])
		return hog(*keep)
	case "spin":
		exitOnSIGTERM()
		for { //nolint:staticcheck // all the CPU it gets
		}
	case "kill":
		return kill()
	case "hang":
		address := flags.String("listen", ":8080", "where")
		_ = flags.Parse(args[1:])
		exitOnSIGTERM()
		return hang(*address)
	case "registry":
		address := flags.String("listen", "127.0.0.1:5007", "where")
		_ = flags.Parse(args[1:])
		exitOnSIGTERM()
		return registry(*address)
	case "tls":
		address := flags.String("listen", ":8443", "where")
		_ = flags.Parse(args[1:])
		exitOnSIGTERM()
		return serveTLS(*address)
	case "wait": // a pod to run the others in
		exitOnSIGTERM()
		select {}
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// exitOnSIGTERM ends the process at once, in the middle of whatever it does: the hardest original
// there is for a swap.
func exitOnSIGTERM() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	go func() {
		<-c
		os.Exit(0)
	}()
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "sample"
	}
	return name
}
