package diagnose

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

const (
	defaultClass = "storageclass.kubernetes.io/is-default-class"
	// selectedNode is what the scheduler sets on a claim when it has found a node for the pod that mounts it.
	selectedNode = "volume.kubernetes.io/selected-node"
)

// checkClaims is about volume claims that have no volume, and pods whose claims do not exist.
func checkClaims(s *Snapshot) (out []Finding) {
	for i := range s.Claims {
		c := &s.Claims[i]
		f := Finding{Severity: Problem, Direction: Storage, Object: refOf("persistentvolumeclaim", c), Owner: s.owner(c), Why: "a pod that mounts it does not start before it is bound"}
		f.State = []Evidence{{From: f.Object.String() + " status.phase", Says: string(c.Status.Phase), At: c.CreationTimestamp.Time}}
		f.Events = told(s.eventsOf("persistentvolumeclaim", c))
		switch c.Status.Phase {
		case corev1.ClaimLost:
			f.ID, f.Summary = "claim-lost", fmt.Sprintf("its volume %s is gone", c.Spec.VolumeName)
			f.Why = "the data is where the volume was; pods that mount it do not start"
			f.Next = []string{"kubectl describe pv " + c.Spec.VolumeName, "restore the volume, or delete the claim and make it anew"}
		case corev1.ClaimPending:
			if !s.explainPending(&f, c) {
				continue
			}
		default:
			continue
		}
		out = append(out, f)
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if over(p) || s.Now.Sub(p.CreationTimestamp.Time) < startPatience {
			continue
		}
		for _, r := range claimsOf(p) {
			if s.claimed[r] {
				continue
			}
			f := s.ofPod(p, "claim-absent", Problem, Storage)
			f.Summary = fmt.Sprintf("%s, which it mounts, does not exist in %s", r, r.Namespace)
			f.Why = "the pod does not start before it is there"
			f.State = []Evidence{{From: f.Object.String() + " spec.volumes", Says: r.String()}}
			f.Events = told(s.eventsOf("pod", p, "FailedScheduling"))
			var have []string
			for _, c := range s.Claims {
				if c.Namespace == r.Namespace {
					have = append(have, c.Name)
				}
			}
			if like := nearest(r.Name, have); like != "" {
				f.Next = append(f.Next, fmt.Sprintf("if %s is meant: %s", like, f.edit()))
			}
			f.Next = append(f.Next, fmt.Sprintf("make the PersistentVolumeClaim %s: kubectl apply%s -f FILE; or name another: %s", r.Name, inOf(p), f.edit()))
			out = append(out, f)
		}
	}
	return out
}

// explainPending says why a claim has no volume; false when it only waits, as it should.
func (s *Snapshot) explainPending(f *Finding, c *corev1.PersistentVolumeClaim) bool {
	failed := s.eventsOf("persistentvolumeclaim", c, "ProvisioningFailed")
	if slices.ContainsFunc(s.StorageClasses, func(sc storagev1.StorageClass) bool {
		return c.Spec.StorageClassName != nil && sc.Name == *c.Spec.StorageClassName && len(failed) > 0 && !lastSeen(failed[0]).After(sc.CreationTimestamp.Time)
	}) {
		failed = nil // its class has come since
	}
	classes := func() string {
		var names []string
		for _, sc := range s.StorageClasses {
			names = append(names, sc.Name)
		}
		if len(names) == 0 {
			return "the cluster has none"
		}
		return "there are " + list(names)
	}
	switch class := c.Spec.StorageClassName; {
	case class == nil && !s.has(storageClasses):
		f.ID, f.Summary = "claim-unbound", "it is not bound, and names no storage class"
		f.Next = []string{"kubectl describe pvc " + c.Name + f.Object.in()}
	case class == nil:
		if slices.ContainsFunc(s.StorageClasses, func(sc storagev1.StorageClass) bool { return sc.Annotations[defaultClass] == "true" }) {
			return false // it is given to the claim in a moment
		}
		f.ID, f.Summary = "claim-no-class", "it names no storage class, and the cluster has no default one: "+classes()
		f.Next = []string{"name one in storageClassName, for which the claim is made anew", "or have an admin mark a default: kubectl annotate storageclass NAME " + defaultClass + "=true"}
	case *class == "" && s.Now.Sub(c.CreationTimestamp.Time) < startPatience:
		return false
	case *class == "":
		f.ID, f.Summary = "claim-no-volume", `it wants a volume that is there already (storageClassName ""), and none fits it`
		f.Next = []string{"kubectl get pv: one that is Available, as large, with these access modes; or name a storage class"}
	default:
		i := slices.IndexFunc(s.StorageClasses, func(sc storagev1.StorageClass) bool { return sc.Name == *class })
		absent := s.has(storageClasses) && i < 0
		switch {
		case absent:
			f.ID, f.Summary = "claim-class-absent", fmt.Sprintf("its storage class %s does not exist: %s", *class, classes())
			var have []string
			for _, sc := range s.StorageClasses {
				have = append(have, sc.Name)
			}
			if like := nearest(*class, have); like != "" {
				f.Next = append(f.Next, "if "+like+" is meant: make the claim anew with that")
			}
			f.Next = append(f.Next, "make the claim anew with a class there is, since a claim's class cannot be changed; or have the class made")
		case len(failed) > 0:
			f.ID, f.Summary = "claim-provisioning-failed", "its volume cannot be made: "+firstLine(failed[0].Message)
			f.Next = []string{"the message is the storage driver's; look at its logs, and at the class: kubectl describe storageclass " + *class}
		case i >= 0 && s.StorageClasses[i].VolumeBindingMode != nil && *s.StorageClasses[i].VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer && c.Annotations[selectedNode] == "":
			return false // it waits, as its class says, for a pod that has found a node
		case s.Now.Sub(c.CreationTimestamp.Time) < startPatience:
			return false
		default:
			f.ID, f.Summary = "claim-unbound", fmt.Sprintf("it is not bound: nobody has made a volume of class %s for it", *class)
			f.Next = []string{"kubectl describe pvc " + c.Name + f.Object.in() + ": does the driver of the class run? kubectl describe storageclass " + *class}
		}
	}
	return true
}
