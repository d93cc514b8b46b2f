// Package undo is what a swap changes and how to change it back: the durable record of SPEC.md, what to write to take
// a change back, and whose the fields are afterwards. All of it is pure, and knows JSON and no Kubernetes client: pkg/swap
// on the laptop and internal/keeper in the cluster give back by it.
package undo

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// What else SPEC.md names.
const (
	// Annotation holds the record, on the Lease and on the target.
	Annotation = "bridge.internal/undo"
	// SwappedAnnotation is beside the record on the target, for people: "begun by OWNER at TIME".
	SwappedAnnotation = "bridge.internal/swapped"
	// ProxyLabel is in a selector that bridge has set.
	ProxyLabel = "bridge.internal/proxy"
	// FenceAnnotation is on a Service while its swap is given back by another than made it.
	FenceAnnotation = "bridge.internal/fence"
	// OverAnnotation is on a Lease of which nothing is swapped any more: what is given back but for the record's copies and the Lease itself, and one
	// that was made to remove the copies of a record that is over.
	OverAnnotation = "bridge.internal/over"
	// FieldManager is bridge's name in managedFields.
	FieldManager = "bridge"
	// GivenBack is the reason of the event that tells so.
	GivenBack = "GivenBack"
	// RestoreBy begins the holder of a Lease whose swap is being given back.
	RestoreBy = "restore by "
)

// version is the format's. A reader refuses a higher one: it cannot know what it would leave behind.
const version = 1

// maxRecord bounds a record, in bytes: the API server allows 256 KiB of annotations on an object,
// and the target has its own.
const maxRecord = 64 << 10

// Record is what one swap changes.
type Record struct {
	Version int    `json:"version"`
	Target  Object `json:"target"`
	// Changes are in the order they are made; giving back goes through them in the order that keeps
	// the service answering (SPEC.md).
	Changes []Change `json:"changes"`
	// Created are the objects that were not there before, in the order they are created.
	Created []Object `json:"created"`
	// Owner is who swapped, "user@host"; Since is when.
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// New is a record without changes.
func New(target Object, owner string, now time.Time) Record {
	return Record{Version: version, Target: target, Owner: owner, Since: now.UTC().Truncate(time.Second)}
}

// Object names one object. UID is empty for one that bridge is about to create.
type Object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
}

func (o Object) String() string { return fmt.Sprintf("%s/%s", strings.ToLower(o.Kind), o.Name) }

// Resource is the object's kind in the API's paths, "deployments".
func (o Object) Resource() string { return strings.ToLower(o.Kind) + "s" }

// Group is the object's API group, "" for the core group.
func (o Object) Group() string {
	group, _, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		return ""
	}
	return group
}

// Path is where the API has the object: "/apis/apps/v1/namespaces/shop/deployments/orders".
func (o Object) Path() string {
	root := "/apis/"
	if o.Group() == "" {
		root = "/api/"
	}
	return root + o.APIVersion + "/namespaces/" + o.Namespace + "/" + o.Resource() + "/" + o.Name
}

// named tells whether namespace and name are parts of a path, and no more: a record is read from the cluster, where others can write it.
func (o Object) named() bool {
	part := func(s string) bool {
		return s != "" && s != "." && s != ".." && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" // RFC 1123
	}
	return part(o.Namespace) && part(o.Name)
}

// rollout tells whether it is Argo's.
func (o Object) rollout() bool { return o.APIVersion == "argoproj.io/v1alpha1" && o.Kind == "Rollout" }

// Copied tells whether a controller copies the record from the target o to others: those of Deployments and Rollouts do, to ReplicaSets. (That of
// StatefulSets has it in each new ControllerRevision, which nobody reads it from, and which is not the user's to write.)
func (o Object) Copied() bool { return o.Kind == "Deployment" || o.rollout() }

// workload tells whether the object is of a kind that a swap is about.
func (o Object) workload() bool { return o.scalable() || o.APIVersion == "v1" && o.Kind == "Pod" }

// scalable tells whether it has replicas, which mode replace changes.
func (o Object) scalable() bool {
	return o.APIVersion == "apps/v1" && (o.Kind == "Deployment" || o.Kind == "StatefulSet" || o.Kind == "ReplicaSet") || o.rollout()
}

// Marshal is the record as it is written into the cluster.
func (r *Record) Marshal() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("undo record: %w", err)
	}
	if len(b) > maxRecord {
		return "", fmt.Errorf("undo record of %d bytes: more than %d: too many Services select this workload", len(b), maxRecord)
	}
	return string(b), nil
}

// Equal is whether o is the same swap's.
func (r *Record) Equal(o *Record) bool {
	a, err := r.Marshal()
	b, err2 := o.Marshal()
	return err == nil && err2 == nil && a == b
}

// Removes tells whether who gives r back removes what the target has for a record, with these metadata.managedFields as JSON: that is r, or one
// that was brought back, of a swap that was given back before r's began. Another is another swap's.
func (r *Record) Removes(record string, managedFields json.RawMessage) bool {
	if found, err := Parse(record); err == nil && r.Equal(found) {
		return true
	}
	back, err := BroughtBack(managedFields)
	return back && err == nil
}

// Parse reads a record. It refuses what a newer bridge wrote, and what names no target.
func Parse(s string) (*Record, error) {
	if len(s) > maxRecord {
		return nil, fmt.Errorf("undo record of %d bytes: more than %d", len(s), maxRecord)
	}
	var r Record
	if err := json.Unmarshal([]byte(s), &r); err != nil {
		return nil, fmt.Errorf("undo record: %w", err)
	}
	switch {
	case r.Version > version:
		return nil, fmt.Errorf("undo record has version %d, this bridge knows %d: use the bridge that made the swap, or a newer one", r.Version, version)
	case r.Version < 1:
		return nil, errors.New("undo record: no version")
	case r.Target.Kind == "" || r.Target.Namespace == "" || r.Target.Name == "" || r.Target.UID == "":
		return nil, errors.New("undo record: names no target")
	case !r.Target.workload():
		return nil, fmt.Errorf("undo record: %s is of a kind that this bridge does not swap: use the bridge that made the swap, or a newer one", r.Target)
	}
	if !r.Target.named() {
		return nil, fmt.Errorf("undo record: %q in %q is no name", r.Target.Name, r.Target.Namespace)
	}
	for _, c := range r.Changes {
		if !c.Object.named() {
			return nil, fmt.Errorf("undo record: %q is no name", c.Object.Name)
		}
		if c.Object.Namespace != r.Target.Namespace {
			return nil, fmt.Errorf("undo record: %s is in namespace %q, not the target's", c.Object, c.Object.Namespace)
		}
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("undo record: %w", err)
		}
		if c.Field() == Replicas && c.Object != r.Target {
			return nil, fmt.Errorf("undo record: %s is not the target", c.Object)
		}
	}
	for _, o := range r.Created {
		if o.Namespace != r.Target.Namespace || o.Name == "" {
			return nil, fmt.Errorf("undo record: %s is in namespace %q, not the target's", o, o.Namespace)
		}
	}
	return &r, nil
}

// Replaces tells whether the original is stopped (mode replace). Else it goes on (mode standby).
func (r *Record) Replaces() bool { return len(r.Of(Replicas)) > 0 }

// Of are the changes of one field, in the record's order.
func (r *Record) Of(f Field) (list []Change) {
	for _, c := range r.Changes {
		if c.Field() == f {
			list = append(list, c)
		}
	}
	return list
}

// ByObject groups the changes by the object they are about, in the record's order.
func (r *Record) ByObject() [][]Change {
	var out [][]Change
	index := map[Object]int{}
	for _, c := range r.Changes {
		i, ok := index[c.Object]
		if !ok {
			i = len(out)
			index[c.Object] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], c)
	}
	return out
}

// Summary is what the target had: its replicas, and the Services that were moved.
func (r *Record) Summary() (replicas int32, services []string) {
	for _, c := range r.Of(Replicas) {
		_ = json.Unmarshal(c.Before, &replicas) // Parse has checked it
	}
	for _, c := range r.Of(Selector) {
		services = append(services, c.Object.Name)
	}
	return replicas, services
}
