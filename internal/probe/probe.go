// Package probe runs the startup, readiness and liveness probes of a container against a process on the laptop, with the
// kubelet's semantics (Kubernetes 1.35). pkg/swap starts it. It restarts nothing: it tells what the kubelet would have done.
// internal/diagnose runs single probes where the container is (Pod).
//
// A process on the laptop is not started by what probes it, so one thing is added. While nobody listens at a probe's port it
// is as if the container did not run: it is not ready at once, and with the next answer a new container has begun, whose
// startup probe runs again. Until a new container is ready for the first time, its startup and readiness probes run more
// often than they say, and before their initial delay; such a run counts if it succeeds only.
//
// The kubelet's random delay before the first run is left out: it spreads the probes of a whole node after its restart.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Kind is which of a container's probes it is.
type Kind string

// The three kinds.
const (
	Startup   Kind = "startup"
	Readiness Kind = "readiness"
	Liveness  Kind = "liveness"
)

// Result is of one run of a probe, or of as many as its thresholds want. Unknown changes nothing: the run itself went wrong.
type Result int

// The three results.
const (
	Unknown Result = iota
	Success
	Failure
)

func (r Result) String() string { return [...]string{"unknown", "success", "failure"}[r] }

// MarshalText is String.
func (r Result) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText takes a word that it does not know for Unknown.
func (r *Result) UnmarshalText(b []byte) error {
	*r = Unknown
	for _, known := range []Result{Success, Failure} {
		if known.String() == string(b) {
			*r = known
		}
	}
	return nil
}

// Outcome is what a run of a probe gave.
type Outcome struct {
	Result Result
	// Why says it in a few words: "status 503".
	Why string
	// Absent is whether nobody listens at the port; then Result is Failure.
	Absent bool
}

// Probe is one probe of a container.
type Probe struct {
	Kind Kind
	// What it does, in words: "GET http://localhost:3000/healthz".
	What                               string
	InitialDelay, Period, Timeout      time.Duration
	SuccessThreshold, FailureThreshold int
	// Check runs it once, at most until ctx ends.
	Check func(ctx context.Context) Outcome

	prints bool // an Outcome's Why has what a command has printed
}

// String is a line for people: "readiness: GET http://localhost:3000/healthz every 10s".
func (p *Probe) String() string { return fmt.Sprintf("%s: %s every %v", p.Kind, p.What, p.Period) }

// MarshalText is String.
func (p *Probe) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Options say where a container's probes go on the laptop.
type Options struct {
	// Local is the port of localhost that stands for the container's TCP port; its error says in words why there is none.
	Local func(port int32) (int32, error)
	// Port is the first of those ports, for an exec probe that is not run.
	Port int32
	// Exec has the commands of exec probes run on the laptop. They are the cluster's.
	Exec bool
	// Dial reaches the process on the laptop. Nil is a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Pod, if there is one, is where they go instead: then none of the others is asked.
	Pod *Pod
}

// Pod is how probes reach a container where it runs.
type Pod struct {
	Address string // its IP, for words and the Host of requests
	// Dial connects to a port; that nobody listens may be the first Read's error, and wraps ECONNREFUSED as Knock's does.
	Dial  func(ctx context.Context, port int) (net.Conn, error)
	Knock func(ctx context.Context, port int) error
	// Exec runs a command in the container, with what it prints to out, and returns its exit code.
	Exec func(ctx context.Context, command []string, out io.Writer) (code int, err error)
}

// Of are the probes of a container that can be run on the laptop. The notes say, a sentence each, what is done otherwise than in
// the pod: probes that are not run here, and commands.
func Of(c corev1.Container, o Options) (probes []*Probe, notes []string) {
	for _, s := range []struct {
		kind Kind
		spec *corev1.Probe
	}{{Startup, c.StartupProbe}, {Readiness, c.ReadinessProbe}, {Liveness, c.LivenessProbe}} {
		if s.spec == nil {
			continue
		}
		p := &Probe{
			Kind:         s.kind,
			InitialDelay: seconds(s.spec.InitialDelaySeconds, 0), Period: seconds(s.spec.PeriodSeconds, 10), Timeout: seconds(s.spec.TimeoutSeconds, 1),
			SuccessThreshold: int(max(s.spec.SuccessThreshold, 1)), FailureThreshold: 3,
		}
		if s.spec.FailureThreshold > 0 {
			p.FailureThreshold = int(s.spec.FailureThreshold)
		}
		note, err := p.handle(s.spec.ProbeHandler, &c, o)
		if err != nil {
			notes = append(notes, fmt.Sprintf("the %sProbe is not run here: %v", s.kind, err))
			continue
		}
		if note != "" {
			notes = append(notes, fmt.Sprintf("the %sProbe %s", s.kind, note))
		}
		p.What = words(p.What)
		probes = append(probes, p)
	}
	return probes, notes
}

func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// handle fills in what the probe does. note says of what is not the same as in the pod, in words that follow "the probe".
func (p *Probe) handle(h corev1.ProbeHandler, c *corev1.Container, o Options) (note string, err error) {
	switch {
	case h.Exec != nil && len(h.Exec.Command) > 0:
		command := expand(h.Exec.Command, c.Env)
		if o.Pod != nil {
			p.What, p.prints = "exec "+strings.Join(h.Exec.Command, " "), true
			p.Check = func(ctx context.Context) Outcome { return o.Pod.execute(ctx, command) }
			return "", nil
		}
		if o.Exec {
			// What others may read has the names of variables, not their values.
			p.What, p.prints = "exec "+strings.Join(h.Exec.Command, " "), true
			p.Check = func(ctx context.Context) Outcome { return execute(ctx, command) }
			return fmt.Sprintf("runs a command of the cluster's on this machine: %q", command), nil
		}
		if o.Port == 0 {
			return "", fmt.Errorf("its command %q is the cluster's, and runs on this machine with --allow-exec-probes only", command)
		}
		p.What, p.Check = tcp(o.local(o.Port))
		return fmt.Sprintf("is a command of the cluster's, %q: it is not run on this machine without --allow-exec-probes, and a TCP connection to localhost:%d takes its place", command, o.Port), nil
	case h.HTTPGet != nil:
		to, err := o.at(h.HTTPGet.Host, h.HTTPGet.Port, c)
		if err != nil {
			return "", err
		}
		p.What, p.Check = httpGet(h.HTTPGet, to)
	case h.TCPSocket != nil:
		to, err := o.at(h.TCPSocket.Host, h.TCPSocket.Port, c)
		if err != nil {
			return "", err
		}
		p.What, p.Check = tcp(to)
	case h.GRPC != nil:
		to, err := o.at("", intstr.FromInt32(h.GRPC.Port), c)
		if err != nil {
			return "", err
		}
		service := ""
		if h.GRPC.Service != nil {
			service = *h.GRPC.Service
		}
		p.What, p.Check = grpc(to, service)
	default:
		return "", errors.New("it has no handler that is known")
	}
	return "", nil
}

// at is where a probe's port is.
func (o Options) at(host string, port intstr.IntOrString, c *corev1.Container) (end, error) {
	if host != "" {
		return end{}, fmt.Errorf("it asks another host than the pod, %q", host)
	}
	n := port.IntVal
	if port.Type == intstr.String {
		var err error
		if n, err = named(port.StrVal, c); err != nil {
			return end{}, err
		}
	}
	if o.Pod != nil {
		return o.Pod.at(n), nil
	}
	n, err := o.Local(n)
	return o.local(n), err
}

// named is the container's port of that name, or a number written as one.
func named(name string, c *corev1.Container) (int32, error) {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort, nil
		}
	}
	n, err := strconv.ParseUint(name, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("the container has no port %q", name)
	}
	return int32(n), nil
}

// maxTries is how often a run is tried that gives no result.
const maxTries = 3

// run is one run, tried again when it gives no result.
func (p *Probe) run(ctx context.Context) (out Outcome) {
	for range maxTries {
		bounded, cancel := context.WithTimeout(ctx, p.Timeout)
		out = p.Check(bounded)
		cancel()
		if out.Result != Unknown || ctx.Err() != nil {
			break
		}
	}
	return out
}
