package diagnose

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/hint"
)

func TestPodsThatAreRefused(t *testing.T) {
	set := "kind: ReplicaSet\nmetadata: {name: it-1}\nspec: {replicas: 2, selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {replicas: 0}\n"
	refused := func(why string) string {
		return set + event("ReplicaSet/it-1", "FailedCreate", `Error creating: pods "it-1-2fzz7" is forbidden: `+why)
	}
	job := func(spec, status, reason string) string {
		return "\n---\nkind: Job\nmetadata: {name: it, uid: j1}\nspec: {" + spec + ", template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {" + status + "}\n" +
			event("Job/it", reason, `Error creating: pods "it-2fzz7" is forbidden: exceeded quota: small`)
	}
	ofJob := "\n---\n" + strings.Replace(withPod("", "", running), "uid: u1", "uid: u1, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: it, uid: j1, controller: true}]", 1)
	try(t, []tried{
		{"a ReplicationController", "kind: ReplicationController\nmetadata: {name: it}\nspec: {replicas: 2}\nstatus: {replicas: 0, conditions: [{type: ReplicaFailure, status: 'True', message: 'exceeded quota: small'}]}\n", "pods-refused-quota", "2 of 2 pods cannot be made"},
		{"a Job", job("parallelism: 1", "", "FailedCreate"), "pods-refused-quota", "1 of 1 pods cannot be made"},
		{"some of a Job's", job("parallelism: 3, completions: 6", "active: 1", "FailedCreate") + ofJob, "pods-refused-quota", "2 of 3 pods cannot be made"},
		{"a Job that needs no more", job("parallelism: 3, completions: 6", "active: 1, succeeded: 5", "FailedCreate") + ofJob, "", ""},
		{"a Job that empties a queue", job("parallelism: 3", "active: 1, succeeded: 1", "FailedCreate") + ofJob, "", ""},
		{"a Job that is not refused", job("parallelism: 3", "active: 1", "SuccessfulCreate") + ofJob, "", ""},
		{"a Job that is held", job("parallelism: 3, suspend: true", "", "FailedCreate"), "", ""},
		{"quota", refused("exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0"), "pods-refused-quota", "quota small is used up: pods 1 asked for, and 0 of 0 used"},
		{"more than a quota has", refused("exceeded quota: small, requested: requests.cpu=200m, used: requests.cpu=0, limited: requests.cpu=100m"), "pods-refused-quota", "asks for more than quota small has in all: requests.cpu 200m asked for, and 0 of 100m used"},
		{"quota that is used up", refused("exceeded quota: small, requested: pods=1,requests.cpu=100m, used: pods=2,requests.cpu=200m, limited: pods=2,requests.cpu=1"), "pods-refused-quota", "quota small is used up: pods 1 asked for, and 2 of 2 used and requests.cpu 100m asked for, and 200m of 1 used"},
		{"quota that wants limits", refused("failed quota: small: must specify limits.cpu for: app"), "pods-refused-quota", "resources.requests"},
		{"Pod Security", refused(`violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false`), "pods-refused-podsecurity", "kubectl get namespace shop --show-labels"},
		{"ServiceAccount", refused(`error looking up service account shop/nobody: serviceaccount "nobody" not found`), "pods-refused-serviceaccount", "does not exist (nobody)"},
		{"a policy of OpenShift's", refused("unable to validate against any security context constraint: [provider anyuid: Forbidden: not usable by user or serviceaccount, provider privileged: Forbidden: not usable by user or serviceaccount]"), "pods-refused", "unable to validate"},
		{"LimitRange", refused("maximum memory usage per Container is 64Mi, but limit is 1Gi"), "pods-refused-limitrange", ""},
		{"PriorityClass", refused("no PriorityClass with name urgent was found"), "pods-refused-priorityclass", "does not exist (urgent)"},
		{"webhook", refused(`admission webhook "policy.example.test" denied the request: no`), "pods-refused-webhook", ""},
		{"webhook that does not answer", set + event("ReplicaSet/it-1", "FailedCreate", `Error creating: Internal error occurred: failed calling webhook "policy.example.test": failed to call webhook: Post "https://hook.shop.svc:443/?timeout=10s": service "hook" not found`), "pods-refused-webhook", "does not answer"},
		{"policy", refused("ValidatingAdmissionPolicy ''small'' with binding ''small'' denied request: the maximum is 1"), "pods-refused-policy", "validatingadmissionpolicies"},
		{"webhook that speaks of a ServiceAccount", refused(`admission webhook "policy.example.test" denied the request: set automountServiceAccountToken: false, serviceAccountToken volumes are at the maximum `), "pods-refused-webhook", ""},
		{"something else", refused("it is a Monday"), "pods-refused", "it is a Monday"},
		{"in the past", strings.Replace(refused("exceeded quota: small"), "replicas: 0", "replicas: 2", 1), "", ""},
		{"one was made since", refused("exceeded quota: small") + "\n---\n" + strings.Replace(withPod("", "", running), "uid: u1", "uid: u1, creationTimestamp: '2026-11-28T11:59:30Z', ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: it-1, uid: '', controller: true}]", 1), "", ""},
		{"in a condition", strings.Replace(set, "status: {replicas: 0}", `status: {replicas: 0, conditions: [{type: ReplicaFailure, status: "True", reason: FailedCreate, message: "exceeded quota: small"}]}`, 1), "pods-refused-quota", "2 of 2 pods"},
	})
}

// A Job's pod in which the work is done and a sidecar goes on, and CronJobs of which the events alone tell.
func TestJobsThatAreHeldOrNotMade(t *testing.T) {
	job := "\n---\nkind: Job\nmetadata: {name: it, uid: j1}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {active: 1}\n---\n"
	held := func(exit, at string) string {
		return job + strings.Replace(strings.Replace(withPod("", "", `containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {exitCode: `+exit+`, finishedAt: "2026-11-28T`+at+`Z"}}}, {name: proxy, ready: true, restartCount: 0, image: "", imageID: "", state: {running: {startedAt: "2026-11-28T11:00:00Z"}}}]`),
			"uid: u1", "uid: u1, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: it, uid: j1, controller: true}]", 1), "restartPolicy: Always", "restartPolicy: Never", 1)
	}
	two := func(documents string) string {
		return strings.NewReplacer("phase: Pending", "phase: Running", "containers: [{name: app, image: registry.example/app:1}]", "containers: [{name: app, image: x}, {name: proxy, image: x, ports: [{containerPort: 15090}]}]").Replace(documents)
	}
	at := func(clock, documents string) string {
		return strings.Replace(documents, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T"+clock+"Z", 1)
	}
	refused := at("11:50:00", event("CronJob/nightly", "FailedCreate", "Error creating job: jobs.batch is forbidden: exceeded quota: none"))
	left := at("11:50:00", event("CronJob/nightly", "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid"))
	ofCron := func(condition string) string {
		return "\n---\nkind: Job\nmetadata: {name: nightly-1, creationTimestamp: '2026-11-28T11:40:00Z', ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: nightly, uid: c1, controller: true}]}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {active: 1, conditions: [" + condition + "]}\n"
	}
	try(t, []tried{
		{"a sidecar holds it", two(held("0", "11:50:00")), "job-held", "app has done its work, and proxy goes on"},
		{"another worker goes on", strings.Replace(two(held("0", "11:55:00")), ", ports: [{containerPort: 15090}]", "", 1), "", ""},
		{"for a moment", two(held("0", "11:59:50")), "", ""},
		{"a CronJob whose run is refused", refused, "cronjob-refused", "its Job cannot be made"},
		{"... and was made since", refused + at("11:55:00", event("CronJob/nightly", "SuccessfulCreate", "Created job nightly-1")), "", ""},
		{"... and was made before", refused + at("11:45:00", event("CronJob/nightly", "SuccessfulCreate", "Created job nightly-1")), "cronjob-refused", ""},
		{"a CronJob whose last run goes on", left + at("11:45:00", event("CronJob/nightly", "SuccessfulCreate", "Created job nightly-1")) + ofCron(""), "cronjob-skipped", "kubectl get jobs -n shop"},
		{"... and has ended", left + at("11:45:00", event("CronJob/nightly", "SuccessfulCreate", "Created job nightly-1")) + ofCron(`{type: Complete, status: "True"}`), "", ""},
		{"... and one was made since, of which no event tells", refused + strings.Replace(ofCron(""), "11:40", "11:55", 1), "", ""},
	})
}

// What comes in a moment is not missing: a claim, or a volume for one, that is applied after a pod.
func TestClaimsThatComeInAMoment(t *testing.T) {
	young := func(documents string) string {
		return strings.Replace(documents, "metadata: {", "metadata: {creationTimestamp: '2026-11-28T11:59:50Z', ", 1)
	}
	try(t, []tried{
		{"a pod's claim", young(withPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", "")), "", ""},
		{"... by the scheduler's words", young(unscheduledPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", `0/1 nodes are available: persistentvolumeclaim "data" not found.`)), "", ""},
		{"... that does not come", withPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", waits("ContainerCreating", "")), "claim-absent", ""},
		{"a claim's volume", young("\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {storageClassName: ''}\nstatus: {phase: Pending}\n"), "", ""},
	})
}

func TestClaimsWithoutAVolume(t *testing.T) {
	claim := func(spec, phase string) string {
		return "\n---\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {" + spec + "}\nstatus: {phase: " + phase + "}\n"
	}
	class := func(more string) string {
		return "\n---\nkind: StorageClass\nmetadata: {name: fast}\nprovisioner: example.test/disk" + more + "\n"
	}
	mounts := withPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", running)
	try(t, []tried{
		{"bound", claim("storageClassName: fast", "Bound"), "", ""},
		{"no such class", claim("storageClassName: fst", "Pending") + class(""), "claim-class-absent", "if fast is meant"},
		{"no class, and no default", claim("", "Pending") + class(""), "claim-no-class", "there are fast"},
		{"no volume", claim(`storageClassName: ""`, "Pending"), "claim-no-volume", "kubectl get pv"},
		{"nobody makes it", claim("storageClassName: fast", "Pending") + class(""), "claim-unbound", ""},
		{"its class has come since it failed", claim("storageClassName: fast", "Pending") + strings.NewReplacer("kind: StorageClass", "kind: StorageClass\nvolumeBindingMode: WaitForFirstConsumer", "metadata: {", "metadata: {creationTimestamp: '2026-11-28T11:59:30Z', ").Replace(class("")) + event("PersistentVolumeClaim/data", "ProvisioningFailed", "no class"), "", ""},
		{"making it fails", claim("storageClassName: fast", "Pending") + class("") + event("PersistentVolumeClaim/data", "ProvisioningFailed", "no room"), "claim-provisioning-failed", "no room"},
		{"it waits for a pod", claim("storageClassName: fast", "Pending") + class("\nvolumeBindingMode: WaitForFirstConsumer"), "", ""},
		{"... that has a node", strings.Replace(claim("storageClassName: fast", "Pending"), "{name: data}", "{name: data, annotations: {volume.kubernetes.io/selected-node: node1}}", 1) + class("\nvolumeBindingMode: WaitForFirstConsumer") + "\n---\n" + mounts, "claim-unbound", ""},
		{"... that finds no node", claim("storageClassName: fast", "Pending") + class("\nvolumeBindingMode: WaitForFirstConsumer") + "\n---\n" +
			unscheduledPod("resources: {requests: {cpu: 64}}", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", "0/1 nodes are available: 1 Insufficient cpu.") + aNode("node1", "", ""), "unschedulable-resources", "64 cpu"},
		{"its volume is gone", claim("storageClassName: fast, volumeName: v1", "Lost"), "claim-lost", "v1"},
		{"no claim", mounts, "claim-absent", "persistentvolumeclaim/data"},
		{"being deleted, in use", strings.Replace(claim("storageClassName: fast", "Bound"), "{name: data}", "{name: data, deletionTimestamp: '2026-11-28T11:00:00Z', finalizers: [kubernetes.io/pvc-protection]}", 1), "deletion-stuck", "Used By"},
	})
}

func TestNodesThatAreNotWell(t *testing.T) {
	node := func(kind, status string) string {
		return "\n---\nkind: Node\nmetadata: {name: node1}\nstatus: {conditions: [{type: " + kind + ", status: '" + status + "', reason: R, message: m}]}\n"
	}
	here := withPod("", "", running)
	try(t, []tried{
		{"well", here + node("Ready", "True"), "", ""},
		{"not ready", here + node("Ready", "False"), "node-not-ready", "1 pod of those"},
		{"silent", here + node("Ready", "Unknown"), "node-not-ready", "does not report"},
		{"under pressure", here + node("DiskPressure", "True"), "node-disk-pressure", ""},
		{"somebody else's", node("Ready", "False"), "", ""},
		{"a pod that does not go with it", strings.Replace(here, "uid: u1", "uid: u1, deletionTimestamp: '2026-11-28T11:00:00Z', deletionGracePeriodSeconds: 30", 1) + node("Ready", "Unknown"), "node-not-ready", ""},
	})
}

func TestWorkloadsThatStandStill(t *testing.T) {
	triedOnce := strings.NewReplacer("Always", "Never", "phase: Pending", "phase: Failed", "metadata: {", "metadata: {ownerReferences: [{apiVersion: batch/v1, kind: Job, name: it, uid: j1, controller: true}], ").Replace(
		withPod("", "", `containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {reason: Error, exitCode: 1}}}]`))
	cronJob := func(condition, at string) string {
		return "\n---\nkind: Job\nmetadata: {name: it-" + at[:2] + ", creationTimestamp: '2026-11-28T" + at + ":00Z', ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: it, uid: c1, controller: true}]}\n" +
			"spec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {conditions: [{type: " + condition + ", status: 'True'}]}\n"
	}
	deployment := func(spec, status string) string {
		return "\n---\nkind: Deployment\nmetadata: {name: orders}\nspec: {" + spec + "selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {" + status + "}\n"
	}
	stuck := `conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded, message: 'ReplicaSet "orders-2" has timed out progressing.'}], updatedReplicas: 1, availableReplicas: 0`
	scaler := func(metrics, conditions string) string {
		return "\n---\nkind: HorizontalPodAutoscaler\nmetadata: {name: orders}\nspec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: orders}, metrics: [" + metrics + "]}\nstatus: {desiredReplicas: 0, currentMetrics: null, conditions: [" + conditions + "]}\n"
	}
	const cpu = "{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}"
	const noAPI = `{type: ScalingActive, status: "False", reason: FailedGetResourceMetric, message: "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)"}`
	going := func(at, finalizer string) string {
		return "kind: Service\nmetadata: {name: it, deletionTimestamp: '2026-11-28T" + at + ":00Z', finalizers: [" + finalizer + "]}\nspec: {type: ExternalName, externalName: example.test}\n"
	}
	statefulSet := func(strategy, pod string) string {
		return "kind: StatefulSet\nmetadata: {name: it}\nspec: {updateStrategy: {" + strategy + "}, selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {replicas: 1, currentRevision: it-1, updateRevision: it-2}\n---\n" +
			strings.Replace(unreadyPod("", "11:00:00"), "metadata: {name: it, labels: {app: it}", "metadata: {"+pod+"name: it-0, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: it, uid: '', controller: true}], labels: {app: it, controller-revision-hash: it-1}", 1)
	}
	try(t, []tried{
		{"rollout", deployment("", stuck), "rollout-stuck", "kubectl rollout undo deployment orders -n shop"},
		{"rollout, on a node that is gone", strings.NewReplacer(`"True"`, `"False"`, "uid: u1", "uid: u1, deletionTimestamp: '2026-11-28T11:59:58Z'").Replace(owned(withPod("", "", running))) + orders +
			"\n---\nkind: Node\nmetadata: {name: node1}\nstatus: {conditions: [{type: Ready, status: Unknown, reason: R, message: m}]}\n", "node-not-ready", ""},
		{"paused", deployment("paused: true, ", "updatedReplicas: 0"), "rollout-paused", "kubectl rollout resume"},
		{"job", "kind: Job\nmetadata: {name: it}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {conditions: [{type: Failed, status: 'True', reason: BackoffLimitExceeded, message: m}]}\n", "job-failed", "BackoffLimitExceeded"},
		{"a job's first try", "kind: Job\nmetadata: {name: it}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {conditions: [{type: Complete, status: 'True'}]}\n---\n" + triedOnce, "", ""},
		{"a job's first try, and no other yet", "kind: Job\nmetadata: {name: it}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\n---\n" + triedOnce, "program-exits", ""},
		{"a CronJob's failure, overtaken", cronJob("Failed", "10:00") + cronJob("Complete", "11:00"), "", ""},
		{"a CronJob's failure, the last", cronJob("Failed", "11:00") + cronJob("Complete", "10:00"), "job-failed", ""},
		{"no metrics", deployment("", "") + scaler("", noAPI), "autoscaler-no-metrics", "apiservices"},
		{"no request", deployment("", "") + scaler(cpu, noAPI), "autoscaler-no-request", "resources.requests.cpu"},
		{"no target", scaler(cpu, `{type: AbleToScale, status: "False", reason: FailedGetScale, message: 'deployments.apps "orders" not found'}`), "autoscaler-target-absent", "deployment/orders"},
		{"two for one", deployment("", "") + scaler("", `{type: ScalingActive, status: "False", reason: AmbiguousSelector, message: 'pods by selector app=it are controlled by multiple HPAs'}`), "autoscaler-inactive", "multiple HPAs"},
		{"scaled to 0 by hand", deployment("", "") + scaler(cpu, `{type: ScalingActive, status: "False", reason: ScalingDisabled, message: m}`), "", ""},
		{"evicted", strings.Replace(withPod("", "", "reason: Evicted\nmessage: The node was low on resource"), "phase: Pending", "phase: Failed", 1), "pod-evicted", "low on resource"},
		{"finalizer", strings.Replace(withPod("", "", running), "uid: u1", "uid: u1, finalizers: [example.test/keep], deletionTimestamp: '2026-11-28T11:00:00Z'", 1), "deletion-stuck", "example.test/keep"},
		{"a load balancer that is cleaned up", going("11:57", "service.kubernetes.io/load-balancer-cleanup"), "", ""},
		{"... for long", going("11:50", "service.kubernetes.io/load-balancer-cleanup"), "deletion-stuck", "kubectl describe service it"},
		{"somebody else's finalizer", going("11:57", "example.test/keep"), "deletion-stuck", "kubectl patch"},
		{"a StatefulSet's old pod", statefulSet("", ""), "pod-not-ready rollout-blocked", ""},
		{"... that goes", statefulSet("", "deletionTimestamp: '2026-11-28T12:00:00Z', "), "", ""},
		{"... that is deleted by hand", statefulSet("type: OnDelete", ""), "pod-not-ready", ""},
		{"... below the partition", statefulSet("rollingUpdate: {partition: 1}", ""), "pod-not-ready", ""},
		{"the namespace goes", "kind: Namespace\nmetadata: {name: shop, deletionTimestamp: '2026-11-28T11:00:00Z'}\nstatus: {conditions: [{type: NamespaceFinalizersRemaining, status: 'True', reason: R, message: m}]}\n", "namespace-terminating", ""},
		{"typing error of a budget", "kind: PodDisruptionBudget\nmetadata: {name: it, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{\"apiVersion\":\"policy/v1\",\"kind\":\"PodDisruptionBudget\",\"spec\":{\"minAvailble\":1}}'}}\n", "unknown-field", `"spec.minAvailble"`},
		{"typing error", "kind: Service\nmetadata: {name: it, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"spec\":{\"extrnalIPs\":[]}}'}}\nspec: {type: ExternalName, externalName: example.test}\n", "unknown-field", `"spec.extrnalIPs"`},
	})
}

// The pods of a Deployment's last revision are the new ones, whatever the Deployment says is available.
func TestRolloutsThatAreStuck(t *testing.T) {
	deployment := func(available string) string {
		return strings.NewReplacer("status: {conditions", "status: {replicas: 2, updatedReplicas: 1, availableReplicas: "+available+", conditions").Replace(orders[:strings.Index(orders, "\n---\nkind: ReplicaSet")])
	}
	set := func(name, revision, available string) string {
		return "\n---\nkind: ReplicaSet\nmetadata: {name: " + name + ", annotations: {deployment.kubernetes.io/revision: '" + revision + "'}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: orders, uid: d1, controller: true}]}\n" +
			"spec: {replicas: 1, selector: {matchLabels: {app: it}}}\nstatus: {replicas: 1, availableReplicas: " + available + "}\n"
	}
	for _, tt := range []struct{ name, documents, says, why string }{
		{"an old pod serves", deployment("1") + set("orders-9", "9", "1") + set("orders-10", "10", "0"), "0 of 1 new pods are available", "an old pod goes on serving"},
		{"a new one, too", deployment("3") + set("orders-2", "2", "1") + set("orders-1", "1", "2"), "1 of 1 new pods are available", "2 old pods go on serving"},
		{"the new one alone", deployment("1") + set("orders-2", "2", "1") + set("orders-1", "1", "0"), "1 of 1 new pods are available", "the new version does not serve as it is wanted to"},
		{"none", deployment("0") + set("orders-2", "2", "0"), "0 of 1 new pods are available", "none of the wanted pods serve"},
		{"the ReplicaSets are not read", deployment("1"), "is not known", "the new version does not serve as it is wanted to"},
	} {
		found := load(t, tt.documents).report(nil).Findings
		if len(found) != 1 || found[0].ID != "rollout-stuck" || !strings.Contains(found[0].Summary, tt.says) || !strings.Contains(found[0].Why, tt.why) {
			t.Errorf("%s: %+v", tt.name, found)
		}
	}
}

func TestSwapsThatWereLeftBehind(t *testing.T) {
	s := load(t, withPod("", "", running))
	s.Swaps = []Swap{
		{Namespace: "shop", Target: "deployment/orders", Owner: "ada@laptop", Heartbeat: now.Add(-2 * time.Minute), Left: true, Restore: "bridge restore deployment orders -n shop"},
		{Namespace: "shop", Target: "deployment/payments", Owner: "bob@laptop", Heartbeat: now},
	}
	found := s.report(nil).Findings
	if len(found) != 1 || found[0].ID != "swap-left-behind" || found[0].Object != (Ref{"deployment", "shop", "orders"}) || found[0].Next[0] != "bridge restore deployment orders -n shop" {
		t.Errorf("found %+v", found)
	}
}

func TestBudgetsThatLetNoPodGo(t *testing.T) {
	budget := func(allowed, healthy, desired, expected int, more string) string {
		return fmt.Sprintf("\n---\nkind: PodDisruptionBudget\nmetadata: {name: it}\nspec: {selector: {matchLabels: {app: it}}}\n"+
			"status: {disruptionsAllowed: %d, currentHealthy: %d, desiredHealthy: %d, expectedPods: %d%s}\n", allowed, healthy, desired, expected, more)
	}
	node := func(more string) string {
		return "\n---\nkind: Node\nmetadata: {name: node1}\nspec: {" + more + "}\nstatus: {conditions: [{type: Ready, status: 'True'}]}\n"
	}
	well := withPod("", "", running)
	crashes := withPod("", "", waits("CrashLoopBackOff", "back-off"))
	try(t, []tried{
		{"it lets one go", well + budget(1, 2, 1, 2, "") + node("unschedulable: true"), "", ""},
		{"it is about none", budget(0, 0, 0, 0, ""), "", ""},
		{"... by mistake", strings.Replace(well, "app: it}", "app: orders}", 1) + strings.Replace(budget(0, 0, 0, 0, ""), "app: it}", "app: ordres}", 1), "budget-selector-mismatch", "its spec.selector selects no pod; nearest is pod/it, whose labels differ: -app=ordres +app=orders"},
		{"... of which there may be some", well + strings.Replace(budget(0, 0, 0, 0, ""), "app: it}", "app: batch}", 1), "", ""},
		{"it has no selector", well + strings.Replace(budget(0, 0, 0, 0, ""), "selector: {matchLabels: {app: it}}", "minAvailable: 1", 1), "", ""},
		{"none, ever", well + budget(0, 1, 1, 1, "") + node(""), "budget-allows-none", "maxUnavailable: 1"},
		{"a drain", well + budget(0, 1, 1, 1, "") + node("unschedulable: true"), "drain-blocked", "kubectl uncordon node1"},
		{"none for now", crashes + budget(0, 1, 1, 2, "") + node(""), "program-exits", ""},
		{"a drain that goes on", well + budget(0, 1, 1, 2, "") + node("unschedulable: true"), "", ""},
		{"a drain, and a pod that is not well", crashes + budget(0, 1, 1, 2, "") + node("unschedulable: true"), "program-exits", ""},
		{"it is not seen yet", well + strings.Replace(budget(0, 1, 1, 1, ""), "{name: it}", "{name: it, generation: 1}", 1), "", ""},
		{"it fails", well + budget(0, 0, 0, 0, `, conditions: [{type: DisruptionAllowed, status: "False", reason: SyncFailed, message: "jobs.batch does not implement the scale subresource"}]`), "budget-failed", "does not implement"},
		{"it has failed from the first", well + strings.Replace(budget(0, 0, 0, 0, `, conditions: [{type: DisruptionAllowed, status: "False", reason: SyncFailed, message: "jobs.batch does not implement the scale subresource"}]`), "{name: it}", "{name: it, generation: 1}", 1), "budget-failed", "does not implement"},
	})
}

func TestArgosRollouts(t *testing.T) {
	rollout := func(spec, status string) string {
		return "\n---\nkind: Rollout\nmetadata: {name: it}\nspec: {replicas: 2" + spec + "}\nstatus: {" + status + "}\n"
	}
	const set = "\n---\nkind: ReplicaSet\nmetadata: {name: it-1, ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: Rollout, name: it, uid: '', controller: true}]}\nspec: {selector: {matchLabels: {app: it}}}\nstatus: {replicas: 1}\n"
	ofSet := func(p string) string {
		return strings.Replace(p, "uid: u1", "uid: u1, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: it-1, uid: '', controller: true}]", 1)
	}
	try(t, []tried{
		{"well", rollout("", "phase: Healthy"), "", ""},
		{"a step that waits", rollout("", "phase: Paused, message: CanaryPauseStep"), "", ""},
		{"degraded", rollout("", "phase: Degraded, message: 'ProgressDeadlineExceeded: it has timed out', availableReplicas: 1"), "rollout-degraded", "undo it -n shop"},
		{"given up", rollout("", "phase: Degraded, abort: true, message: 'RolloutAborted: metric failed'"), "rollout-aborted", "retry rollout it -n shop"},
		{"paused", rollout(", paused: true", "phase: Paused, updatedReplicas: 1"), "rollout-paused", "spec.paused"},
		{"its pods do not run", rollout("", "phase: Degraded, message: 'ProgressDeadlineExceeded: it has timed out'") + set + "\n---\n" + ofSet(withPod("", "", waits("CrashLoopBackOff", "back-off"))), "program-exits", ""},
	})
	s := load(t, rollout("", "phase: Degraded")+set+"\n---\n"+ofSet(withPod("", "", running))+"\n---\nkind: Service\nmetadata: {name: other}\nspec: {type: ExternalName, externalName: x.test}\n")
	r, err := ParseTarget("rollout/it", "shop")
	if err != nil || s.exist([]Ref{r}) != nil {
		t.Fatal(err, s.exist([]Ref{r}))
	}
	near := s.around([]Ref{r})
	for _, want := range []Ref{{"pod", "shop", "it"}, {"replicaset", "shop", "it-1"}, r} {
		if !near[want] {
			t.Errorf("%s is not near: %v", want, near)
		}
	}
	if found := s.report([]Ref{r}).Findings; len(found) != 1 || found[0].ID != "rollout-degraded" {
		t.Errorf("%+v", found)
	}
	if r.Name = "none"; hint.CodeOf(s.exist([]Ref{r})) != hint.NotFound {
		t.Error("one that does not exist is found")
	}
}
