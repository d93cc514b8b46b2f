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
	// uses are those without which it still runs, and knows less.
	uses []plural
	// behind are the checks whose findings explain this one's, where they are about the objects that its findings name as their
	// cause.
	behind []string
	// problems, warnings and either are the ids of the findings that it may have, by how grave they are: always the one, the other, or as it comes.
	problems, warnings, either string

	run func(s *Snapshot) []Finding
	// rest is what to run instead when all others have run, with what they found.
	rest func(s *Snapshot, found []Finding) []Finding
}

// starting are the checks of what keeps a pod from running and being ready.
var starting = []string{"nodes", "volume claims", "configuration", "images", "programs", "scheduling", "admission", "ports", "probes", "evictions", "deletion", "sandboxes", "unexplained pods"}

// checks is the table. The order means nothing: what is behind what does.
func checks() []check {
	return []check{
		{name: "nodes", needs: []plural{nodes}, run: checkNodes,
			problems: "node-not-ready node-absent",
			warnings: "node-memory-pressure node-disk-pressure node-pid-pressure node-network-unavailable"},
		{name: "admission", run: checkAdmission,
			problems: "pods-refused-quota pods-refused-limitrange pods-refused-podsecurity pods-refused-serviceaccount pods-refused-priorityclass pods-refused-webhook pods-refused-policy pods-refused"},
		{name: "scheduling", behind: []string{"volume claims", "nodes"}, run: checkScheduling,
			problems: "unschedulable-resources unschedulable-taint unschedulable-selector unschedulable-affinity unschedulable-spread unschedulable-ports unschedulable-volume unschedulable-cordoned unschedulable-no-nodes unschedulable pod-no-scheduler pod-gated"},
		{name: "volume claims", needs: []plural{claims}, run: checkClaims,
			problems: "claim-absent claim-class-absent claim-no-class claim-no-volume claim-unbound claim-provisioning-failed claim-lost"},
		{name: "configuration", uses: []plural{configMaps, secrets}, behind: []string{"nodes"}, run: checkConfiguration,
			problems: "config-key-absent run-as-root-refused program-no-command mount-subpath container-create-failed volume-mount-failed",
			either:   "configmap-absent secret-absent"},
		{name: "images", behind: []string{"nodes"}, run: checkImages,
			problems: "image-name-invalid image-never-pull image-not-found image-architecture image-rate-limit image-pull-secret-none image-pull-secret-absent image-pull-secret-type image-pull-secret-host image-unauthorized registry-unreachable registry-tls image-pull-failed"},
		{name: "programs", behind: []string{"nodes"}, run: checkPrograms,
			either: "program-exits program-killed program-completes program-oom program-killed-by-liveness program-killed-by-startup program-hook-failed program-command-not-found program-not-executable program-architecture program-start-failed"},
		{name: "ports", behind: []string{"nodes", "programs"}, run: checkPorts,
			warnings: "port-not-reached port-silent probe-tls",
			either:   "port-closed port-loopback"},
		{name: "probes", behind: []string{"nodes", "programs", "ports"}, run: checkProbes,
			problems: "probe-port-name-absent",
			warnings: "probe-timing probe-early readiness-lost",
			either:   "probe-refused probe-timeout probe-path probe-status probe-scheme probe-unauthorized probe-command probe-exec probe-failing readiness-gate"},
		{name: "evictions", behind: []string{"nodes"}, run: checkEvictions,
			warnings: "pod-evicted pod-failed"},
		{name: "deletion", behind: []string{"nodes"}, run: checkDeletion,
			problems: "namespace-terminating pod-terminating",
			either:   "deletion-stuck"},
		{name: "sandboxes", behind: []string{"nodes"}, run: checkSandboxes,
			problems: "pod-sandbox-failed"},
		{name: "unexplained pods", behind: []string{"nodes"}, rest: checkUnexplained,
			either: "pod-not-ready"},
		{name: "services", needs: []plural{services}, uses: []plural{endpointSlices}, behind: starting, run: checkServices,
			problems: "service-selector-mismatch service-no-pods",
			warnings: "service-scaled-to-zero service-port-undeclared service-headless-port statefulset-service-absent service-no-address",
			either:   "service-port-name-absent service-pods-not-ready service-protocol service-port-closed service-no-selector service-external-name endpoint-not-answering"},
		{name: "ingresses", needs: []plural{ingresses, services}, uses: []plural{endpointSlices, secrets, ingressClasses, events}, behind: append([]string{"services"}, starting...), run: checkIngresses,
			problems: "ingress-service-absent ingress-port-absent ingress-no-endpoints ingress-certificate-absent",
			warnings: "ingress-class-absent"},
		{name: "rollouts", needs: []plural{deployments}, behind: starting, run: checkRollouts,
			problems: "rollout-stuck rollout-blocked",
			warnings: "rollout-paused"},
		{name: "Argo rollouts", behind: starting, run: checkArgoRollouts,
			problems: "rollout-degraded rollout-aborted",
			warnings: "rollout-paused"},
		{name: "disruption budgets", needs: []plural{budgets}, uses: makers, behind: starting, run: checkBudgets,
			warnings: "budget-allows-none budget-failed budget-selector-mismatch drain-blocked"},
		{name: "jobs", needs: []plural{jobs}, uses: []plural{cronJobs}, behind: starting, run: checkJobs,
			problems: "job-failed cronjob-refused",
			warnings: "job-held cronjob-skipped cronjob-suspended"},
		{name: "autoscalers", needs: []plural{autoscalers}, behind: append([]string{"rollouts"}, starting...), run: checkAutoscalers,
			problems: "autoscaler-target-absent",
			warnings: "autoscaler-no-metrics autoscaler-no-request autoscaler-inactive"},
		{name: "resource use", needs: []plural{metrics}, run: checkUsage,
			warnings: "memory-near-limit cpu-at-limit memory-over-request"},
		{name: "network policies", needs: []plural{policies}, uses: append([]plural{allNamespaces}, makers...), run: checkPolicies,
			warnings: "networkpolicy-denies networkpolicy-no-dns networkpolicy-selector-mismatch"},
		{name: "swaps", needs: []plural{leases}, run: checkSwaps,
			problems: "swap-left-behind"},
		{name: "manifests", // of -f, whose findings are there before any other
			problems: "manifest-unknown-field manifest-invalid manifest-kind-unknown", either: "manifest-refused"},
		{name: "fields", run: checkFields,
			warnings: "unknown-field"},
	}
}

// aFew is how many requests, or checks, are under way at a time.
const aFew = 8

// atOnce calls do for 0 to n-1, limit at a time, and returns when all are done.
func atOnce(limit, n int, do func(i int)) {
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
	atOnce(aFew, len(list), func(i int) {
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
