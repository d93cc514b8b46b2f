package diagnose

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// explainTimeout bounds looking into why something is not well, for a command that ends over it.
const explainTimeout = 10 * time.Second

// Explain is err, and where it is a kube.Unhealthy, with what a diagnosis of that says first as its next step, before err's own. Whatever keeps it
// from that leaves err as it is. It looks also when ctx has ended, by its deadline as a rule. The commands that need something of the cluster to be well call it.
func Explain(ctx context.Context, k *kube.Client, err error) error {
	var u *kube.Unhealthy
	if !errors.As(err, &u) || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	r, diagnoseErr := ParseTarget(u.Target.String(), u.Namespace)
	if diagnoseErr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), explainTimeout)
	defer cancel()
	report, diagnoseErr := Run(ctx, k.In(u.Namespace), Options{Targets: []Ref{r}, NoDial: true})
	if diagnoseErr != nil || report.Worst() != Problem {
		return err
	}
	f := report.Findings[0] // problems come first
	lines := []string{
		hint.Printable(fmt.Sprintf("%s: %s (%s)", f.Object, f.Summary, f.ID)),
		hint.Printable(f.Next[0]),
		fmt.Sprintf("all of it: bridge diagnose %s -n %s%s", r, u.Namespace, k.Flags),
	}
	if own := hint.Of(err); own != "" {
		lines = append(lines, own)
	}
	return hint.New(0, err, strings.Join(lines, "\n"))
}
