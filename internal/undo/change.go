package undo

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"
)

// Change is one field of one object. It is undone only if the object is the same (UID) and the
// field still has the value that was set: what somebody else wrote since then is theirs.
type Change struct {
	Object Object `json:"object"`
	// Path is the field, "spec.replicas" or "spec.selector".
	Path   string          `json:"path"`
	Before json.RawMessage `json:"before"`
	Set    json.RawMessage `json:"set"`
	// Owners are the field managers that owned the field before, and own it again afterwards.
	Owners []Owner `json:"owners,omitempty"`
}

// Field is one of the few things a swap changes. The zero value is none of them.
type Field int

// The fields. Both are numbers or flat maps, so that a value is compared by what it says.
const (
	Replicas Field = iota + 1 // spec.replicas of the target, a number
	Selector                  // spec.selector of a Service, a map
)

// Field tells which field c is about.
func (c Change) Field() Field {
	switch {
	case c.Object.scalable() && c.Path == "spec.replicas":
		return Replicas
	case c.Object.APIVersion == "v1" && c.Object.Kind == "Service" && c.Path == "spec.selector":
		return Selector
	}
	return 0
}

// check refuses what is no change of bridge's: a record is read from the cluster, where others can write it.
func (c Change) check() error {
	switch c.Field() {
	case Replicas:
		var before, set int32
		return errors.Join(json.Unmarshal(c.Before, &before), json.Unmarshal(c.Set, &set))
	case Selector:
		var before, set map[string]string
		return errors.Join(json.Unmarshal(c.Before, &before), json.Unmarshal(c.Set, &set))
	}
	return fmt.Errorf("change of %s %s: not a change that bridge makes", c.Object, c.Path)
}

// ErrMoved says that somebody else changed what was about to be changed.
var ErrMoved = errors.New("changed by somebody else meanwhile")

// Do is what to write into the field, which has the value now, to make the change; nil when there is nothing to change. The
// error is ErrMoved when the field has another value than c.Before.
func (c Change) Do(now json.RawMessage) (json.RawMessage, error) {
	if same, err := c.equal(now, c.Before); err != nil || !same {
		return nil, errors.Join(err, ErrMoved)
	}
	if same, err := c.equal(now, c.Set); same || err != nil {
		return nil, err
	}
	return c.Set, nil
}

// Undo is what to write into the field, which has the value now, to take the change back; nil when there is nothing
// to take back. The error is ErrMoved when the value is somebody else's, which stays; but a selector that somebody changed
// and left bridge's label in loses the label, and has again what bridge has removed.
func (c Change) Undo(now json.RawMessage) (json.RawMessage, error) {
	if same, err := c.equal(now, c.Before); same || err != nil {
		return nil, err // never made, or taken back already
	}
	if same, err := c.equal(now, c.Set); same || err != nil {
		return c.Before, err
	}
	if c.Field() != Selector {
		return nil, ErrMoved
	}
	var selector, set, before map[string]string
	if err := errors.Join(json.Unmarshal(now, &selector), json.Unmarshal(c.Set, &set), json.Unmarshal(c.Before, &before)); err != nil {
		return nil, err
	}
	if ours, ok := set[ProxyLabel]; !ok || selector[ProxyLabel] != ours {
		return nil, ErrMoved
	}
	delete(selector, ProxyLabel)
	for k, v := range before {
		_, kept := set[k]
		if _, theirs := selector[k]; !kept && !theirs {
			selector[k] = v
		}
	}
	return json.Marshal(selector)
}

// Held tells whether the field, which has the value now, is as the swap has made it, or in part: there is something to take back.
func (c Change) Held(now json.RawMessage) bool {
	to, err := c.Undo(now)
	return to != nil || err != nil && !errors.Is(err, ErrMoved)
}

// Left says of ErrMoved what was left.
func (c Change) Left(now json.RawMessage) string {
	return fmt.Sprintf("%s of %s is %s, set by somebody else: left as it is (it was %s before the swap)", c.Path, c.Object, now, c.Before)
}

// equal compares two values of the field. No value, null, is the empty selector.
func (c Change) equal(a, b json.RawMessage) (bool, error) {
	switch c.Field() {
	case Replicas:
		var x, y int32
		err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y))
		return x == y, err
	case Selector:
		var x, y map[string]string
		err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y))
		return maps.Equal(x, y), err
	}
	return false, c.check()
}

// Patch is the JSON merge patch (RFC 7396) that turns the field from now into to, for an object with this
// resourceVersion: one that has changed since is a conflict. With "" it is patched whatever it is.
func (c Change) Patch(now, to json.RawMessage, resourceVersion string) (map[string]any, error) {
	var spec map[string]any
	switch c.Field() {
	case Replicas:
		spec = map[string]any{"replicas": to}
	case Selector:
		var from, into map[string]string
		if err := errors.Join(json.Unmarshal(now, &from), json.Unmarshal(to, &into)); err != nil {
			return nil, err
		}
		selector := map[string]any{}
		for k := range from {
			selector[k] = nil
		}
		for k, v := range into {
			selector[k] = v
		}
		spec = map[string]any{"selector": selector}
	default:
		return nil, c.check()
	}
	return Versioned(map[string]any{"spec": spec}, resourceVersion), nil
}

// MarkPatch is the merge patch that puts r's copy on the target, and what of it concerns people beside it.
func (r *Record) MarkPatch(resourceVersion string) (map[string]any, error) {
	record, err := r.Marshal()
	return annotations(record, fmt.Sprintf("begun by %s at %s", r.Owner, r.Since.Format(time.RFC3339)), resourceVersion), err
}

// Marked tells whether an object with these annotations has one of the two.
func Marked(annotations map[string]string) bool {
	_, record := annotations[Annotation]
	_, swapped := annotations[SwappedAnnotation]
	return record || swapped
}

// Over tells whether a Lease with these annotations is of a swap of which nothing is left but the record's copies and itself.
func Over(annotations map[string]string) bool {
	_, over := annotations[OverAnnotation]
	return over
}

// UnmarkPatch is the merge patch that removes both, from the target or what a controller has copied them to.
func UnmarkPatch(resourceVersion string) map[string]any {
	return annotations(nil, nil, resourceVersion)
}

func annotations(record, swapped any, resourceVersion string) map[string]any {
	return Versioned(map[string]any{"metadata": map[string]any{"annotations": map[string]any{Annotation: record, SwappedAnnotation: swapped}}}, resourceVersion)
}

// FencePatch is the merge patch that writes value to an object of this UID, so that whoever has read it before can write to it no
// more.
func FencePatch(o Object, value string) map[string]any {
	return map[string]any{"metadata": map[string]any{"uid": o.UID, "annotations": map[string]any{FenceAnnotation: value}}}
}

// Versioned adds the resourceVersion, unless it is "", to a merge patch, which is its own to change.
func Versioned(patch map[string]any, resourceVersion string) map[string]any {
	if resourceVersion == "" {
		return patch
	}
	meta, _ := patch["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		patch["metadata"] = meta
	}
	meta["resourceVersion"] = resourceVersion
	return patch
}
