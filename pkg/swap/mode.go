package swap

import (
	"context"
	"fmt"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

// Mode is what becomes of the original while it is swapped.
type Mode string

// The values of Mode. The zero value is ModeAuto.
const (
	// ModeAuto takes ModeReplace when a keeper can restore it, without which the swap ends then, or nobody is wanted to
	// (SelfRestoreNever); else ModeStandby.
	ModeAuto    Mode = "auto"
	ModeReplace Mode = "replace" // it is stopped
	ModeStandby Mode = "standby" // it goes on, and answers what the laptop cannot take
)

// Check says what cannot be, without a look at the cluster.
func (o Options) Check() error {
	if o.Mode == ModeReplace && !o.Choice.All() {
		return hint.Newf(hint.Usage, "use --mode standby, or leave --mode out, which chooses that then", "%s leaves requests to the original, and --mode replace stops it", o.Choice)
	}
	if o.Mode == ModeStandby || !o.Choice.All() {
		return o.takesReplace()
	}
	return nil
}

// takesReplace says which option is about the pod's other containers, of which the proxies of ModeStandby have none.
func (o Options) takesReplace() error {
	flag := "--to-pod"
	switch {
	case len(o.ToPod) > 0:
	case o.Init:
		flag = "--init"
	default:
		return nil
	}
	return hint.Newf(hint.Usage, "use --mode replace, or leave "+flag+" out", "%s takes mode replace: the proxies of mode standby have none of the pod's other containers", flag)
}

// MakePlan plans a swap in the mode that o asks for, with a keeper as o asks for one. It reads and tries only.
func MakePlan(ctx context.Context, k *kube.Client, f Facts, o Options) (*Plan, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	mode := o.Mode
	if mode == ModeStandby {
		return standbyPlan(ctx, k, f, o)
	}
	if !o.Choice.All() {
		o.Mode = ModeStandby
		p, err := standbyPlan(ctx, k, f, o)
		if err == nil {
			p.why = "the original is needed beside this machine"
		}
		return p, err
	}
	if b := boundOf(f.Workload, f.Flags); b != nil && mode != ModeReplace {
		o.Mode = ModeStandby
		p, standErr := standbyPlan(ctx, k, f, o)
		if code := hint.CodeOf(standErr); code == hint.Usage || code == hint.Forbidden {
			return nil, hint.Newf(code, b.way, "%w; and %w", stoppable(f.Workload, f.Flags), standErr)
		}
		if standErr != nil {
			return nil, standErr
		}
		p.why = b.why
		return p, nil
	}
	o.Mode = ModeReplace
	p, err := keptPlan(ctx, k, f, o)
	if err != nil || mode == ModeReplace {
		return p, err
	}
	switch {
	case o.SelfRestore == SelfRestoreNever:
		p.why = "with --self-restore never nobody has to start the original again"
		return p, nil
	case p.Keeper != nil:
		p.why, p.forKeeper = "a keeper can start the original again", true
		return p, nil
	}
	o.Mode = ModeStandby
	q, err := standbyPlan(ctx, k, f, o)
	if code := hint.CodeOf(err); code == hint.Usage || code == hint.Forbidden {
		return nil, hint.Newf(code, "--mode replace swaps all the same; with deploy/keeper.yaml an admin prepares a keeper",
			"nobody would give %s in %s back when this machine is gone (%s), and the original cannot stand by: %w", p.Undo.Target, p.Undo.Target.Namespace, p.noKeeper, err)
	}
	if err != nil {
		return nil, err
	}
	q.why = "nobody could start the original again when this machine is gone"
	return q, nil
}

func keptPlan(ctx context.Context, k *kube.Client, f Facts, o Options) (*Plan, error) {
	p, err := NewPlan(f, o)
	if err != nil {
		return nil, err
	}
	return p, p.AddKeeper(ctx, k, o)
}

func standbyPlan(ctx context.Context, k *kube.Client, f Facts, o Options) (*Plan, error) {
	if err := o.takesReplace(); err != nil {
		return nil, err
	}
	if err := GatherStandby(ctx, k, &f); err != nil {
		return nil, err
	}
	if shareable(o.Choice) {
		lacking, err := rights.Missing(ctx, k, rights.Sharing())
		if err != nil {
			return nil, err
		}
		f.Standby.Lacking = append(f.Standby.Lacking, lacking...)
	}
	return keptPlan(ctx, k, f, o)
}

// Headline says which mode it is, why, and who gives the swap back when this machine is gone.
func (p *Plan) Headline(k *kube.Client) string {
	because := ""
	if p.why != "" {
		because = ", since " + p.why
	}
	kind := targetOf(p.Undo.Target).Kind
	what := fmt.Sprintf("the %s goes on, and answers what this machine cannot take", kind)
	switch {
	case p.Undo.Replaces():
		what = fmt.Sprintf("the %s is scaled to 0 while you have its traffic", kind)
	case p.Choice.Mirror:
		what = fmt.Sprintf("the %s answers, and this machine gets a copy of what its callers send", kind)
	case !p.Choice.All():
		what = fmt.Sprintf("requests of %s come here while this machine can take them, and the %s answers all others", p.Choice, kind)
	}
	return fmt.Sprintf("mode %s%s: %s; %s", modeOf(&p.Undo), because, what, p.Restores(k))
}

// SharingHeadline is the Headline of a swap that is joined.
func (p *Plan) SharingHeadline() string { return fmt.Sprintf("mode %s: %s", ModeStandby, p.Sharing()) }

// TakeUpHeadline is the Headline of a swap that is taken up.
func (p *Plan) TakeUpHeadline(k *kube.Client) string {
	return fmt.Sprintf("mode %s: taking up the swap that an earlier bridge of yours made at %s and did not give back; the cluster stays as it is; %s",
		modeOf(&p.Undo), p.Undo.Since.Local().Format("15:04:05 on 2 Jan"), p.Restores(k))
}

// modeOf is a record's, for people.
func modeOf(u *Undo) Mode {
	if u.Replaces() {
		return ModeReplace
	}
	return ModeStandby
}
