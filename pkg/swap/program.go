package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/child"
	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/netns"
	"bridge/internal/podview"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

// Program is a process that is started on the laptop to answer for the workload, with the environment and the files of its container,
// and where this machine allows it in a network of its own.
type Program struct {
	connect.Program
	// Restart has it ended and started again when the target's liveness or startup probe wants that.
	Restart bool
	// Token hands out tokens of the workload's ServiceAccount.
	Token bool
	// LocalTimeout is how long it may take until it answers on the local ports; 0: as long as it likes. The original serves meanwhile.
	LocalTimeout time.Duration
}

// Check says what keeps the program from being started, before anything is changed.
func (p *Program) Check(ctx context.Context, k *kube.Client) error {
	if err := p.Program.Check(ctx); err != nil {
		return err
	}
	if !p.Token {
		return nil
	}
	return rights.CheckTokens(ctx, k)
}

// run starts the program when the tunnel stands, unless the swap, held, is over by then, and calls ready when it answers. It returns when
// the program has ended, to which ctx brings it: with a *child.ExitError, or with why it did not come that far.
func (p *Program) run(ctx, held context.Context, s *Swap, ready func()) error {
	if err := s.lines.waitAny(held); err != nil {
		return err
	}
	view, mirror, err := p.look(held, s)
	if err != nil {
		return err
	}
	vars, kept := podview.Variables(view)
	if len(kept) > 0 {
		s.Say(hint.Printable("as on this machine, not as in the container: " + strings.Join(kept, ", ")))
	}
	following, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	if mirror != nil {
		defer func() {
			stop()
			running.Wait()
			if err := mirror.Folder.Close(); err != nil {
				s.Say(fmt.Sprintf("the container's files are not removed: %v", err))
			}
		}()
	}

	c := p.Program
	c.Say, c.Env = s.Say, podview.Environ(p.Env, vars)
	if p.Restart {
		c.Grace = s.Plan.grace
	}
	if c.Inside() {
		ranges, _ := s.Kube.Ranges(held)
		c.Ranges = append(slices.Clone(c.Ranges), ranges...)
	}
	for _, port := range s.Plan.Ports {
		local := uint16(port.Local)
		switch {
		case port.UDP:
			c.Free = append(slices.Clone(c.Free), local)
		case !slices.Contains(c.Publish, local):
			c.Publish = append(slices.Clone(c.Publish), local)
		}
	}
	said := "starting " + strings.Join(p.Args, " ")
	if mirror != nil {
		c.Env = append(c.Env, podview.RootEnv+"="+mirror.Folder.Root())
		c.Files = netns.Files{Root: mirror.Folder.Root(), Paths: mirror.Folder.Tops()}
		said += ", files of the container below " + mirror.Folder.Root()
		running.Go(func() { mirror.Run(following) })
	}
	s.Say(hint.Printable(said))
	starting, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	answered := false
	var awaited sync.Once
	var published sync.Map
	c.Published = func(port uint16, has bool) {
		if has {
			published.Store(port, nil)
		} else {
			published.Delete(port)
		}
	}
	c.Started = func(reach connect.Dial, inside, placed bool) {
		own := "it has a network of its own, in which the cluster's names and addresses answer"
		if placed {
			own += "; the files are at their paths too"
		}
		s.Plan.place.Store(&place{reach, inside, &published})
		awaited.Do(func() { // of one that is started again it is known
			if inside {
				s.Say(own)
			}
			running.Go(func() {
				if err := p.await(starting, s); err != nil {
					giveUp(err)
					return
				}
				answered = true
				ready()
			})
		})
	}
	err = s.keepProgram(starting, held, &c)
	giveUp(errEnded)
	stop()
	running.Wait()
	exit, ran := err.(*child.ExitError) //nolint:errorlint // nobody wraps it
	cause := context.Cause(starting)
	switch {
	case !answered && cause != errEnded: //nolint:errorlint // nobody wraps it
		return cause
	case !answered && ran:
		return fmt.Errorf("%w, before it answered on %s", exit, localList(s.Plan.Ports))
	}
	return err
}

var errEnded = errors.New("the program has ended")

// restarts has Program started anew, unless it was told to end for good.
type restarts struct {
	mu       sync.Mutex
	pass     func(os.Signal) // to the program; nil while none runs
	asked    bool            // the one that runs ends for a new one
	unwanted bool            // whoever has started bridge wants no other
}

// ask has the program end for a new one, and tells whether there may be one. As in a pod it keeps its network until it has ended.
func (r *restarts) ask() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unwanted {
		return false
	}
	if r.pass != nil && !r.asked {
		r.asked = true
		r.pass(syscall.SIGTERM)
	}
	return true
}

// heed passes on what bridge is told of the program's signals, and takes note of those that end it: a program that ends for them,
// however long that takes, is not started again. What SIGINT and SIGQUIT do is its own affair, unless it ends already.
func (r *restarts) heed(tell func(func(os.Signal))) func(func(os.Signal)) {
	return func(pass func(os.Signal)) {
		r.mu.Lock()
		r.pass = pass
		unwanted := r.unwanted
		r.mu.Unlock()
		if pass == nil {
			tell(nil)
			return
		}
		if unwanted { // the signal came when one had just ended
			pass(syscall.SIGTERM)
		}
		tell(func(sig os.Signal) {
			r.mu.Lock()
			r.unwanted = r.unwanted || sig == syscall.SIGTERM || sig == syscall.SIGHUP || (sig == os.Interrupt || sig == syscall.SIGQUIT) && r.asked
			r.mu.Unlock()
			pass(sig)
		})
	}
}

// again tells whether the program, which has ended, is to be started anew. A terminal's Ctrl-C or Ctrl-\ may have gone to it alone.
func (r *restarts) again(exit *child.ExitError) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	again := r.asked && !r.unwanted && exit.Code != 128+int(syscall.SIGINT) && exit.Code != 128+int(syscall.SIGQUIT)
	r.asked = false
	return again
}

// askRestart has Program started anew, and tells whether that can be.
func (s *Swap) askRestart() bool {
	return s.Program != nil && s.Program.Restart && s.restarts.ask()
}

// keepProgram runs the program, and again when it is restarted while the swap is held. It returns how the last one has ended.
func (s *Swap) keepProgram(ctx, held context.Context, c *connect.Program) error {
	c.OnSignal = s.restarts.heed(c.OnSignal)
	for {
		err := c.Run(ctx, s.lines.main)
		s.Plan.leave()
		exit, ran := err.(*child.ExitError) //nolint:errorlint // nobody wraps it
		if !ran || ctx.Err() != nil || !s.restarts.again(exit) {
			return err
		}
		s.probes.Ended("it is restarted")
		if held.Err() != nil {
			return err
		}
		s.Say(fmt.Sprintf("%v: starting it again", err))
	}
}

// await waits until the program answers.
func (p *Program) await(ctx context.Context, s *Swap) error {
	timeout := p.LocalTimeout
	if timeout == 0 {
		timeout = forever
	}
	return s.AwaitLocal(ctx, timeout)
}

// forever is longer than anybody waits.
const forever = 365 * 24 * time.Hour

// look is what the container has around it, and what keeps its files here; nil where this machine cannot keep them private.
func (p *Program) look(ctx context.Context, s *Swap) (*tunnel.View, *podview.Mirror, error) {
	folder, err := podview.NewFolder()
	if errors.Is(err, errors.ErrUnsupported) {
		s.Say("note: bridge cannot keep files private on this system, so the container's are not here")
		v, err := s.lines.main().View(ctx, "")
		return v, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	look := func(ctx context.Context, known string) (*tunnel.View, error) { return s.lines.main().View(ctx, known) }
	m := &podview.Mirror{Folder: folder, Look: look, Account: proxypod.AccountPath, Say: s.Say}
	if p.Token {
		m.Tokens = s.proxy.Tokens(true)
	}
	v, err := m.First(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, folder.Close())
	}
	return v, m, nil
}

// localList names the TCP ports that AwaitLocal waits for.
func localList(ports []Port) string {
	var list []string
	for _, p := range ports {
		if !p.UDP {
			list = append(list, fmt.Sprintf("localhost:%d", p.Local))
		}
	}
	return strings.Join(list, ", ")
}

// awaitProgram waits until the local process answers: there is one already, or Program is started when the tunnel stands, which may take
// that long.
func (s *Swap) awaitProgram(ctx context.Context, timeout time.Duration) error {
	if s.Program != nil {
		bounded, cancel := context.WithTimeout(ctx, timeout)
		err := s.proxy.WaitTunnel(bounded, func() tunnel.State { return s.lines.main().State() })
		cancel()
		if err != nil {
			return err
		}
	}
	if !s.answered(ctx) {
		return context.Cause(ctx)
	}
	return nil
}

// answered waits until the local process answers, and tells whether it does before ctx is done. From then on its probes are run, and
// followed: until then nobody may be sent to it.
func (s *Swap) answered(ctx context.Context) bool {
	select {
	case <-s.answers:
		return true
	case <-ctx.Done():
		return false
	}
}
