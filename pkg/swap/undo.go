package swap

import (
	"encoding/json"
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

// internal/undo has the record and its parts apart from this package for the cluster's side, which gives back by them too and
// links no Kubernetes client.
type (
	// Undo is the record of what one swap changes.
	Undo = undo.Record
	// Object names one object of the cluster.
	Object = undo.Object
	// Change is one field of one object.
	Change = undo.Change
)

// recordOf is a Lease's record. One about another namespace is refused: who may write a Lease here need not be allowed to change
// anything there, and who gives back may be.
func recordOf(l *coordinationv1.Lease) (*Undo, error) {
	u, err := undo.Parse(l.Annotations[proxypod.UndoAnnotation])
	if err == nil && u.Target.Namespace != l.Namespace {
		return nil, fmt.Errorf("undo record: is about %s in %s", u.Target, u.Target.Namespace)
	}
	return u, err
}

// broughtBack is undo.BroughtBack.
func broughtBack(managed []metav1.ManagedFieldsEntry) (bool, error) {
	b, err := json.Marshal(managed)
	if err != nil {
		return false, err
	}
	return undo.BroughtBack(b)
}

// objectOf names a workload in a record.
func objectOf(w *kube.Workload) Object {
	return Object{APIVersion: w.Kind.APIVersion(), Kind: w.Kind.Object(), Namespace: w.Namespace, Name: w.Name, UID: string(w.UID)}
}

// targetOf is a record's object as a user names it.
func targetOf(o Object) kube.Target {
	return kube.Target{Kind: kube.Kind(strings.ToLower(o.Kind)), Name: o.Name}
}

// leaseName is that of the claim on t.
func leaseName(t kube.Target) string { return proxypod.LeaseName(string(t.Kind), t.Name) }
