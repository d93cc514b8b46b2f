package diagnose

import (
	"slices"

	"golang.org/x/sync/errgroup"
)

// check is one look at the snapshot.
type check struct {
	// name is for people, in what is said when it is left out.
	name string
	// needs are the kinds of objects without which it cannot say anything true.
	needs []plural
	// behind are the checks whose findings explain this one's, where they are about the objects that its findings name as their
	// cause.
	behind []string
	run    func(s *Snapshot) []Finding
	// rest is what to run instead when all others have run, with what they found.
	rest func(s *Snapshot, found []Finding) []Finding
}

// starting are the checks of what keeps a pod from running and being ready.
var starting = []string{"nodes", "volume claims", "configuration", "images", "programs", "scheduling", "admission", "ports", "probes", "evictions", "deletion", "sandboxes", "unexplained pods"}

// checks is the table. The order means nothing: what is behind what does.
func checks() []check {
	return []check{
		{name: "nodes", needs: []plural{nodes}, run: checkNodes},
		{name: "admission", run: checkAdmission},
		{name: "scheduling", behind: []string{"volume claims", "nodes"}, run: checkScheduling},
		{name: "volume claims", needs: []plural{claims}, run: checkClaims},
		{name: "configuration", behind: []string{"nodes"}, run: checkConfiguration},
		{name: "images", behind: []string{"nodes"}, run: checkImages},
		{name: "programs", behind: []string{"nodes"}, run: checkPrograms},
		{name: "ports", behind: []string{"nodes", "programs"}, run: checkPorts},
		{name: "probes", behind: []string{"nodes", "programs", "ports"}, run: checkProbes},
		{name: "evictions", behind: []string{"nodes"}, run: checkEvictions},
		{name: "deletion", behind: []string{"nodes"}, run: checkDeletion},
		{name: "sandboxes", behind: []string{"nodes"}, run: checkSandboxes},
		{name: "unexplained pods", behind: []string{"nodes"}, rest: checkUnexplained},
		{name: "services", needs: []plural{services}, behind: starting, run: checkServices},
		{name: "ingresses", needs: []plural{ingresses, services}, behind: append([]string{"services"}, starting...), run: checkIngresses},
		{name: "rollouts", needs: []plural{deployments}, behind: starting, run: checkRollouts},
		{name: "Argo rollouts", behind: starting, run: checkArgoRollouts},
		{name: "disruption budgets", needs: []plural{budgets}, behind: starting, run: checkBudgets},
		{name: "jobs", needs: []plural{jobs}, behind: starting, run: checkJobs},
		{name: "autoscalers", needs: []plural{autoscalers}, behind: append([]string{"rollouts"}, starting...), run: checkAutoscalers},
		{name: "resource use", needs: []plural{metrics}, run: checkUsage},
		{name: "network policies", needs: []plural{policies}, run: checkPolicies},
		{name: "swaps", needs: []plural{leases}, run: checkSwaps},
		{name: "fields", run: checkFields},
	}
}

// atOnce calls do for 0 to n-1, a few at a time, and returns when all are done.
func atOnce(n int, do func(i int)) {
	const limit = 8
	var group errgroup.Group
	group.SetLimit(limit)
	for i := range n {
		group.Go(func() error {
			do(i)
			return nil
		})
	}
	_ = group.Wait()
}

// runChecks runs those that have what they need. They share nothing but the snapshot, which none changes, so all run at once;
// then symptoms go behind their causes.
func runChecks(s *Snapshot, list []check) []Finding {
	found := make([][]Finding, len(list))
	atOnce(len(list), func(i int) {
		if list[i].run != nil && !slices.ContainsFunc(list[i].needs, s.isUnread) {
			found[i] = merge(list[i].run(s))
		}
	})
	for i := range list {
		if list[i].rest != nil {
			found[i] = merge(list[i].rest(s, slices.Concat(found...)))
		}
	}
	return hide(list, found)
}

// hide puts each finding behind those that explain it, found[i] being those of list[i].
func hide(list []check, found [][]Finding) (out []Finding) {
	type place struct{ check, at int }
	about := map[Ref][]place{}
	for i := range list {
		for j := range found[i] {
			if !found[i][j].explaining() {
				continue
			}
			for _, r := range found[i][j].about() {
				about[r] = append(about[r], place{i, j})
			}
		}
	}
	// causes of each finding: places of findings by the checks it may stand behind.
	causes := map[place][]place{}
	for i, c := range list {
		for j, f := range found[i] {
			p := place{i, j}
			for _, r := range f.because {
				for _, cause := range about[r] {
					if slices.Contains(c.behind, list[cause.check].name) && !slices.Contains(causes[p], cause) {
						causes[p] = append(causes[p], cause)
					}
				}
			}
		}
	}
	// roots are the ends of the chains. The table has no circles, which a test holds it to.
	var roots func(p place) []place
	roots = func(p place) (out []place) {
		if len(causes[p]) == 0 {
			return []place{p}
		}
		for _, c := range causes[p] {
			for _, r := range roots(c) {
				if !slices.Contains(out, r) {
					out = append(out, r)
				}
			}
		}
		return out
	}
	symptoms := map[place][]Finding{}
	for i := range list {
		for j, f := range found[i] {
			p := place{i, j}
			if len(causes[p]) == 0 {
				continue
			}
			for _, r := range roots(p) {
				symptoms[r] = append(symptoms[r], f)
			}
		}
	}
	for i := range list {
		for j, f := range found[i] {
			p := place{i, j}
			if len(causes[p]) > 0 {
				continue
			}
			f.Symptoms = symptoms[p]
			slices.SortFunc(f.Symptoms, compare)
			out = append(out, f)
		}
	}
	slices.SortFunc(out, compare)
	return out
}
