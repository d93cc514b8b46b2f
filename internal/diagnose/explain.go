package diagnose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// explainTimeout bounds looking into why something is not well, for a command that ends over it, and may have to give back what it has changed.
const explainTimeout = 3 * time.Second

// Explain is err, and where it is a kube.Unhealthy, with what a diagnosis of that says first as its next step, before err's own. Of what
// goes with the command the log's last line is told, and no step that is about it. Whatever keeps it from that leaves err as it is. It ends with ctx, which is that of the command, not the one whose deadline made err. Who ends over such an error calls it, while
// what it is about is still there.
func Explain(ctx context.Context, k *kube.Client, err error) error {
	var u *kube.Unhealthy
	if ctx.Err() != nil || !errors.As(err, &u) || errors.As(err, new(*explained)) {
		return err
	}
	r, diagnoseErr := ParseTarget(u.Target.String(), u.Namespace)
	if diagnoseErr != nil {
		return err
	}
	targets := []Ref{r}
	for _, name := range u.Pods {
		targets = append(targets, Ref{"pod", r.Namespace, name})
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	report, diagnoseErr := Run(ctx, k.In(u.Namespace), Options{Targets: targets, NoDial: true, known: true, brief: true})
	if diagnoseErr != nil {
		return err
	}
	i := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Severity == Problem && slices.ContainsFunc(targets, f.stops) })
	if i < 0 {
		return err
	}
	f := report.Findings[i]
	lines := []string{hint.Printable(fmt.Sprintf("%s: %s (%s)", f.Object, f.Summary, f.ID))}
	if u.Goes && len(f.Log) > 0 {
		lines = append(lines, hint.Printable("its log ends with: "+f.Log[len(f.Log)-1]))
	}
	if len(f.Next) > 0 && (!u.Goes || !strings.Contains(f.Next[0], r.Name)) { // its pods' names begin with it
		lines = append(lines, hint.Printable(f.Next[0]))
	}
	if !u.Goes {
		lines = append(lines, fmt.Sprintf("all of it: bridge diagnose %s -n %s%s", r, u.Namespace, k.Flags))
	}
	if own := hint.Of(err); own != "" {
		lines = append(lines, own)
	}
	return &explained{hint.New(0, err, strings.Join(lines, "\n"))}
}

// explained is an error that Explain has looked into.
type explained struct{ error }

// Unwrap returns it with its hint.
func (e *explained) Unwrap() error { return e.error }

// stops tells whether it, or something it explains, is about r or what r has made: not about what is near it alone.
func (f *Finding) stops(r Ref) bool {
	return f.Object == r || f.Owner == r || slices.Contains(f.Also, r) || slices.ContainsFunc(f.Symptoms, func(s Finding) bool { return s.stops(r) })
}
