package swap

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// undoVersion is the format's version (SPEC.md). A reader refuses a higher one: it cannot know
// what it would leave behind.
const undoVersion = 1

// maxUndo bounds a record, in bytes: the API server allows 256 KiB of annotations on an object,
// and the target has its own.
const maxUndo = 64 << 10

// Undo is what a swap changes and how to change it back: the durable format of SPEC.md.
type Undo struct {
	Version int    `json:"version"`
	Target  Object `json:"target"`
	// Changes are in the order they are made; giving back goes through them in the order that keeps
	// the service answering (Restore).
	Changes []Change `json:"changes"`
	// Created are the objects that were not there before, in the order they are created.
	Created []Object `json:"created"`
	// Owner is who swapped, "user@host"; Since is when.
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// Object names one object. UID is empty for one that bridge is about to create.
type Object struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Namespace  string    `json:"namespace"`
	Name       string    `json:"name"`
	UID        types.UID `json:"uid,omitempty"`
}

func (o Object) String() string { return fmt.Sprintf("%s/%s", strings.ToLower(o.Kind), o.Name) }

// Change is one field of one object. It is undone only if the object is the same (UID) and the
// field still has the value that was set: what somebody else wrote since then is theirs.
type Change struct {
	Object Object `json:"object"`
	// Path is the field, "spec.replicas" or "spec.selector".
	Path   string          `json:"path"`
	Before json.RawMessage `json:"before"`
	Set    json.RawMessage `json:"set"`
	// Owners are the field managers that owned the field before, and own it again afterwards.
	Owners []FieldOwner `json:"owners,omitempty"`
}

// FieldOwner is an entry of metadata.managedFields without its fields.
type FieldOwner struct {
	Manager     string                            `json:"manager"`
	Operation   metav1.ManagedFieldsOperationType `json:"operation"`
	APIVersion  string                            `json:"apiVersion"`
	Subresource string                            `json:"subresource,omitempty"`
	Time        *metav1.Time                      `json:"time,omitempty"`
}

// Marshal is the record as it is written into the cluster.
func (u *Undo) Marshal() (string, error) {
	b, err := json.Marshal(u)
	if err != nil {
		return "", fmt.Errorf("undo record: %w", err)
	}
	if len(b) > maxUndo {
		return "", fmt.Errorf("undo record of %d bytes: more than %d: too many Services select this workload", len(b), maxUndo)
	}
	return string(b), nil
}

// equal is whether v is the same record.
func (u *Undo) equal(v *Undo) bool {
	a, err := u.Marshal()
	b, err2 := v.Marshal()
	return err == nil && err2 == nil && a == b
}

// ParseUndo reads a record. It refuses what a newer bridge wrote, and what names no target.
func ParseUndo(s string) (*Undo, error) {
	if len(s) > maxUndo {
		return nil, fmt.Errorf("undo record of %d bytes: more than %d", len(s), maxUndo)
	}
	var u Undo
	if err := json.Unmarshal([]byte(s), &u); err != nil {
		return nil, fmt.Errorf("undo record: %w", err)
	}
	switch {
	case u.Version > undoVersion:
		return nil, fmt.Errorf("undo record has version %d, this bridge knows %d: use the bridge that made the swap, or a newer one", u.Version, undoVersion)
	case u.Version < 1:
		return nil, errors.New("undo record: no version")
	case u.Target.Kind == "" || u.Target.Namespace == "" || u.Target.Name == "" || u.Target.UID == "":
		return nil, errors.New("undo record: names no target")
	}
	for _, c := range u.Changes {
		if c.Object.Namespace != u.Target.Namespace {
			return nil, fmt.Errorf("undo record: %s is in namespace %q, not the target's", c.Object, c.Object.Namespace)
		}
		f, err := changedField(c)
		if err != nil {
			return nil, fmt.Errorf("undo record: %w", err)
		}
		if f == replicas && c.Object != u.Target {
			return nil, fmt.Errorf("undo record: %s is not the target", c.Object)
		}
	}
	for _, o := range u.Created {
		if o.Namespace != u.Target.Namespace || o.Name == "" {
			return nil, fmt.Errorf("undo record: %s is in namespace %q, not the target's", o, o.Namespace)
		}
	}
	return &u, nil
}

// summary is what the target had: its replicas, and the Services that were moved.
func (u *Undo) summary() (n int32, services []string) {
	for _, c := range u.Changes {
		switch f, _ := changedField(c); f {
		case replicas:
			_ = json.Unmarshal(c.Before, &n) // ParseUndo has checked it
		case selector:
			services = append(services, c.Object.Name)
		}
	}
	return n, services
}

// field is one of the few things a swap changes.
type field int

const (
	replicas field = iota + 1 // spec.replicas of the target
	selector                  // spec.selector of a Service
)

// changedField tells which field a change is about, and refuses any other: a record is read from
// the cluster, where others can write it.
func changedField(c Change) (field, error) {
	switch {
	case c.Object.Kind == "Deployment" && c.Path == "spec.replicas":
		var before, set int32
		return replicas, errors.Join(json.Unmarshal(c.Before, &before), json.Unmarshal(c.Set, &set))
	case c.Object.Kind == "Service" && c.Path == "spec.selector":
		var before, set map[string]string
		return selector, errors.Join(json.Unmarshal(c.Before, &before), json.Unmarshal(c.Set, &set))
	}
	return 0, fmt.Errorf("change of %s %s: not a change that bridge makes", c.Object, c.Path)
}
