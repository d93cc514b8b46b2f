// Package diagnose says why things in a namespace do not work. It reads the namespace once, with the user's own rights, into a
// Snapshot; each check, in a file of its own, looks at that and returns findings: what is wrong, what it was read from, why it
// matters and what to do next. A finding that another one explains stands behind it. It changes nothing. cmd/bridge
// calls it, also from within internal/proxypod and pkg/swap, for a proxy that is not Ready.
package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bridge/internal/kube"
)

// Options say what to look at. The zero value is all of the client's namespace.
type Options struct {
	// AllNamespaces looks at all of them.
	AllNamespaces bool
	// Targets are what the findings are to concern, as ParseTarget gives them; none: everything.
	Targets []Ref
	// Swaps reads bridge's own in what is looked at, if it is set: that is pkg/swap's trade, which this package serves.
	Swaps func(ctx context.Context) ([]Swap, error)
	// Tried are the objects of a manifest, as kube.TryManifests gives them. Where there are some and no Targets, it is those of them that are there.
	Tried []kube.Tried
	// NoDial leaves out the ports: nothing is connected to.
	NoDial bool
	// Inside has a pod of the client's namespace dial, too: the ports, and what no pod stands behind; nil leaves that out.
	Inside Inside

	// known is whether Targets are known to be there, also where their kind may not be listed.
	known bool
	// brief leaves out what the pods use, for which a server of its own is asked, and what other namespaces have: somebody waits to end.
	brief bool
}

// Swap is a swap of bridge's, or a connect.
type Swap struct {
	Namespace string
	Target    string // "deployment/orders"
	Owner     string
	Heartbeat time.Time // zero for never
	// Left is whether its owner is gone.
	Left bool
	// IfLost is what becomes of it then, and Restore the command that gives it back.
	IfLost, Restore string
}

// Report is what was found.
type Report struct {
	// Namespace is what was looked at; "" for all.
	Namespace string    `json:"namespace,omitempty"`
	Time      time.Time `json:"time"`
	Looked    int       `json:"objects"` // at how many objects
	Findings  []Finding `json:"findings"`
	// Unread is what was not looked at, and why.
	Unread []Unread `json:"unread,omitempty"`
	// Waiting are workloads and pods that are on their way, or held up by a finding.
	Waiting []Ref `json:"waiting,omitempty"`
	// Dialled is how many ports were; nil for none.
	Dialled *Dialled `json:"dialled,omitempty"`
	// Beyond is how many addresses no pod stands behind; nil for none, and where nothing is dialled.
	Beyond *Beyond `json:"beyond,omitempty"`
}

// mayNot is why most of it could not be read.
const mayNot = "your account may not"

// Unread is a kind of object that could not be read.
type Unread struct {
	Resource string `json:"resource"`
	Why      string `json:"why"`
	// Checks are those that were left out for it, "configuration (in part)" for a part; none when they only say less.
	Checks []string `json:"checks,omitempty"`

	// passing is whether it may be readable in a moment.
	passing bool
}

// Worst is the gravest severity of the findings; "" without any.
func (r *Report) Worst() Severity {
	worst := Severity("")
	for _, f := range r.Findings {
		if f.Severity == Problem || worst == "" {
			worst = f.Severity
		}
	}
	return worst
}

// Summary is a line: "1 problem, 2 warnings in namespace shop, of 12 objects".
func (r *Report) Summary() string {
	problems, where := 0, "all namespaces"
	for _, f := range r.Findings {
		if f.Severity == Problem {
			problems++
		}
	}
	switch in := r.namespaces(); {
	case len(in) == 1:
		where = "namespace " + in[0]
	case len(in) > 1:
		where = "namespaces " + list(in)
	}
	found := counted(problems, "problem") + ", " + counted(len(r.Findings)-problems, "warning")
	if len(r.Findings) == 0 {
		found = "nothing wrong found"
	}
	return fmt.Sprintf("%s in %s, of %s", found, where, counted(r.Looked, "object"))
}

// Several tells whether findings are of several namespaces.
func (r *Report) Several() bool { return len(r.namespaces()) != 1 }

// namespaces are that which was looked at, and those of a manifest's objects; none for all.
func (r *Report) namespaces() (out []string) {
	if r.Namespace == "" {
		return nil
	}
	out = []string{r.Namespace}
	for _, f := range r.Findings {
		if in := f.Object.Namespace; in != "" && !slices.Contains(out, in) {
			out = append(out, in)
		}
	}
	return out
}

// Run reads and checks. Its error is that of the pods' list, without which there is nothing to say, or that of a target that does not
// exist; whatever else may not be read is in the report.
func Run(ctx context.Context, k *kube.Client, o Options) (*Report, error) {
	namespace := k.Namespace
	if o.AllNamespaces {
		namespace = ""
	}
	manifest, untried := manifestFindings(o.Tried)
	if len(o.Tried) > 0 && len(o.Targets) == 0 {
		targets, elsewhere := targetsOf(o.Tried, k.Namespace)
		o.Targets, o.known, untried = targets, true, append(untried, elsewhere...)
		if len(o.Targets) == 0 {
			goTo(k.Flags, manifest)
			return &Report{Namespace: namespace, Time: time.Now(), Looked: len(o.Tried), Findings: append([]Finding{}, manifest...), Unread: untried}, nil
		}
	}
	s, err := read(ctx, k, namespace, o)
	if err != nil {
		return nil, err
	}
	if !o.known {
		if err := s.exist(o.Targets); err != nil {
			return nil, err
		}
	}
	if !o.NoDial {
		near := s.around(o.Targets)
		s.dial(ctx, k, near)
		s.dialInside(ctx, o.Inside, near)
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	r := s.report(o.Targets)
	r.Findings = append(append([]Finding{}, manifest...), r.Findings...) // a list for programs, also with nothing in it
	r.Unread = append(r.Unread, untried...)
	addLogs(ctx, k, r.Findings)
	goTo(k.Flags, r.Findings)
	return r, nil
}

// goTo has the commands that findings propose go to the cluster that was looked at.
func goTo(flags string, found []Finding) {
	for i := range found {
		for j, next := range found[i].Next {
			found[i].Next[j] = kube.Commands(next, flags)
		}
		goTo(flags, found[i].Symptoms)
	}
}

// report runs the checks and keeps what concerns the targets.
func (s *Snapshot) report(targets []Ref) *Report {
	found := runChecks(s, checks())
	near := s.around(targets)
	if near != nil {
		found = slices.DeleteFunc(found, func(f Finding) bool { return !f.concerns(near) })
	}
	r := &Report{Namespace: s.Namespace, Time: s.Now, Looked: s.size(), Findings: found, Unread: s.unreadOf(checks()), Waiting: s.waiting(near), Dialled: s.Dialled, Beyond: s.Beyond}
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	return r
}

// unreadOf names, for each kind that could not be read, the checks that were left out, or a part of them.
func (s *Snapshot) unreadOf(list []check) (out []Unread) {
	for _, u := range s.Unread {
		for _, c := range list {
			switch of := plural(u.Resource); {
			case slices.Contains(c.needs, of):
				u.Checks = append(u.Checks, c.name)
			case slices.Contains(c.uses, of) && !slices.ContainsFunc(c.needs, s.isUnread):
				u.Checks = append(u.Checks, c.name+" (in part)")
			}
		}
		out = append(out, u)
	}
	return out
}

const (
	// logLines is how much of a container's log a finding shows: an error and what led to it.
	logLines = 10
	// logContainers is of how many containers: who has more findings reads the first ones first.
	logContainers = 8
)

// addLogs reads the ends of the logs that findings ask for.
func addLogs(ctx context.Context, k *kube.Client, found []Finding) {
	var wanted []*Finding
	for i := range found {
		if found[i].log != noLog && len(wanted) < logContainers {
			wanted = append(wanted, &found[i])
		}
	}
	atOnce(aFew, len(wanted), func(i int) {
		f := wanted[i]
		text, err := f.readLog(ctx, k)
		if err != nil {
			f.State = append(f.State, Evidence{From: f.Object.String() + " log", Says: "not readable: " + kube.Explain(err, "read the log").Error()})
			return
		}
		if trimmed := strings.TrimSpace(string(text)); trimmed != "" {
			f.Log = strings.Split(trimmed, "\n")
			f.explainLog()
		}
	})
}

// readLog reads the end of a container's log. It is asked again for that of one that has just been removed.
func (f *Finding) readLog(ctx context.Context, k *kube.Client) (text []byte, err error) {
	const tries, pause = 3, time.Second
	for range tries {
		body, err := k.Clientset.CoreV1().Pods(f.Object.Namespace).GetLogs(f.Object.Name, f.logOptions()).Stream(ctx) // whose error says what is refused
		if err != nil {
			return nil, err
		}
		text, err = io.ReadAll(body)
		_ = body.Close()
		if err != nil || !strings.HasPrefix(string(text), kube.LogRemoved) {
			return text, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil, errors.New("its container is not there any more")
}

// list joins words as people do: "a, b and c".
func list(words []string) string {
	if n := len(words); n > 1 {
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
	return strings.Join(words, "")
}

// few is list of the first three, with how many more there are.
func few(words []string) string {
	const shown = 3
	if len(words) <= shown+1 {
		return list(words)
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:shown], ", "), len(words)-shown)
}

// counted is "1 pod" or "2 pods".
func counted(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
