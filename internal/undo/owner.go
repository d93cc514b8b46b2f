package undo

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Field ownership (KEP-555, metadata.managedFields): whoever changes a field takes it from the
// manager that had it, and that manager's next server-side apply is a conflict. So a swap notes the
// owners of what it changes, and giving back includes them.

// Owner is an entry of metadata.managedFields without its fields.
type Owner struct {
	Manager     string     `json:"manager"`
	Operation   string     `json:"operation"`
	APIVersion  string     `json:"apiVersion"`
	Subresource string     `json:"subresource,omitempty"`
	Time        *time.Time `json:"time,omitempty"`
}

// managed is a whole entry, as the API server gives it.
type managed struct {
	Owner
	FieldsType string `json:"fieldsType,omitempty"`
	// FieldsV1 is a tree: each field is a key "f:NAME" with what is below it, {} for a leaf. The field itself
	// is in the set when it is a leaf, or has the key ".".
	FieldsV1 fields `json:"fieldsV1,omitempty"`
}

type fields map[string]fields

// has tells whether the field is in the set; names are those on the way down to it.
func (f fields) has(names ...string) bool {
	for _, name := range names {
		if f = f["f:"+name]; f == nil {
			return false
		}
	}
	_, self := f["."]
	return self || len(f) == 0
}

// insert adds the field to the set.
func (f fields) insert(path string) {
	names := strings.Split(path, ".")
	for i, name := range names {
		next := f["f:"+name]
		if next == nil {
			next = fields{}
			f["f:"+name] = next
		} else if leaf := len(next) == 0; leaf != (i == len(names)-1) {
			next["."] = fields{}
		}
		f = next
	}
}

func entries(managedFields json.RawMessage) (list []managed, err error) {
	if len(managedFields) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(managedFields, &list); err != nil {
		return nil, fmt.Errorf("managed fields: %w", err)
	}
	return list, nil
}

// OwnersOf lists who owns the field at path, by an object's metadata.managedFields as JSON.
func OwnersOf(managedFields json.RawMessage, path string) ([]Owner, error) {
	list, err := entries(managedFields)
	if err != nil {
		return nil, err
	}
	return ownersOf(list, strings.Split(path, ".")...), nil
}

func ownersOf(list []managed, names ...string) (owners []Owner) {
	for _, e := range list {
		if e.FieldsV1.has(names...) {
			owners = append(owners, e.Owner)
		}
	}
	return owners
}

// BroughtBack tells of an object's copy of the record, by its metadata.managedFields as JSON, whether somebody else than bridge has written it:
// kubectl rollout undo takes all annotations from the ReplicaSet that it goes back to. Where nobody is noted it is bridge's.
func BroughtBack(managedFields json.RawMessage) (bool, error) {
	list, err := entries(managedFields)
	if err != nil {
		return false, err
	}
	owners := slices.DeleteFunc(ownersOf(list, "metadata", "annotations", Annotation), func(o Owner) bool {
		return o.Manager == "ancient-changes" || o.Manager == "before-first-apply" // the API server's: it does not know whose they were
	})
	return len(owners) > 0 && !slices.ContainsFunc(owners, Owner.Bridge), nil
}

// OwnershipPatch is the merge patch that takes bridge out of an object's managedFields and gives the field of changes, all
// of this object, which has the value now, to those who had it before: unless somebody else has it by now, or it has another value than
// before, which was never theirs. It removes the fence, too. It is nil when nothing is noted as bridge's, the fence neither, and nobody is to have the field again,
// and where the selector leads to a proxy: what is noted is another swap's then.
func OwnershipPatch(managedFields, now json.RawMessage, changes []Change, resourceVersion string) (map[string]any, error) {
	var selector map[string]string
	if json.Unmarshal(now, &selector) == nil && selector[ProxyLabel] != "" {
		return nil, nil
	}
	list, err := entries(managedFields)
	if err != nil {
		return nil, err
	}
	were := len(list)
	list = slices.DeleteFunc(list, func(e managed) bool { return e.Bridge() })
	nothing := len(list) == were
	for _, c := range changes {
		same, err := c.equal(now, c.Before)
		if err != nil {
			return nil, err
		}
		if !same || len(ownersOf(list, strings.Split(c.Path, ".")...)) > 0 {
			continue
		}
		for _, o := range c.Owners {
			list, nothing = own(list, o, c.Path), false
		}
	}
	if nothing {
		return nil, nil
	}
	if len(list) == 0 {
		list = []managed{{}} // an empty list would mean "leave it" to the API server
	}
	return Versioned(map[string]any{"metadata": map[string]any{
		"managedFields": list, "annotations": map[string]any{FenceAnnotation: nil},
	}}, resourceVersion), nil
}

// Unfinished are those of changes, all of one object, whose fields others do not have again, by its metadata.managedFields as JSON; not those of which it does not tell.
func Unfinished(changes []Change, managedFields json.RawMessage) []Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c Change) bool {
		unfinished, err := c.unfinished(managedFields)
		return err != nil || !unfinished
	})
}

// unfinished tells whether c's owners are yet to have its field again: bridge has it, or nobody, as after it was scaled to
// zero, and none of them has written to the object since.
func (c Change) unfinished(managedFields json.RawMessage) (bool, error) {
	list, err := entries(managedFields)
	if err != nil {
		return false, err
	}
	if now := ownersOf(list, strings.Split(c.Path, ".")...); len(now) > 0 {
		return slices.ContainsFunc(now, Owner.Bridge), nil
	}
	return !slices.ContainsFunc(list, func(e managed) bool {
		return slices.ContainsFunc(c.Owners, func(o Owner) bool {
			return e.is(o) && (o.Time == nil || e.Time == nil || e.Time.After(*o.Time))
		})
	}), nil
}

// Bridge tells whether it is bridge.
func (o Owner) Bridge() bool { return o.Manager == FieldManager }

// is tells whether it is the same one's, whenever that was.
func (o Owner) is(other Owner) bool {
	return o.Manager == other.Manager && o.Operation == other.Operation && o.APIVersion == other.APIVersion && o.Subresource == other.Subresource
}

// own adds the field to o's entry, which is made anew when it is gone (it vanishes with its last field).
func own(list []managed, o Owner, path string) []managed {
	i := slices.IndexFunc(list, func(e managed) bool { return e.is(o) })
	if i < 0 {
		list = append(list, managed{Owner: o, FieldsType: "FieldsV1"})
		i = len(list) - 1
	}
	if list[i].FieldsV1 == nil {
		list[i].FieldsV1 = fields{}
	}
	list[i].FieldsV1.insert(path)
	return list
}
