package swap

import (
	"context"

	"bridge/internal/kube"
	"bridge/internal/lookout"
)

// LookAround adds to the notes what else in the cluster concerns the workload. It reads only what the user may, and fails never.
func (p *Plan) LookAround(ctx context.Context, k *kube.Client) {
	s := lookout.Subject{
		Target: p.target, Services: p.Services,
		Pod: p.Proxy.Spec.Template, Container: p.container, ConfigMaps: len(p.source.ConfigMaps),
		Standby: p.Standby != nil,
	}
	if p.Standby != nil && p.Standby.Members != nil {
		s.ConfigMaps++
	}
	if p.Keeper != nil {
		s.Keeper = &p.Keeper.Deployment.Spec.Template
	}
	p.Notes = append(p.Notes, lookout.Look(ctx, k, s)...)
}
