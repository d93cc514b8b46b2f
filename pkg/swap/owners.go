package swap

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"bridge/internal/proxypod"
)

// Field ownership (KEP-555, metadata.managedFields): whoever changes a field takes it from the
// manager that had it, and that manager's next server-side apply is a conflict. So a swap notes the
// owners of what it changes, and giving back includes them.

// fieldPath is "spec.selector" as a path of managedFields.
func fieldPath(path string) fieldpath.Path {
	var p fieldpath.Path
	for name := range strings.SplitSeq(path, ".") {
		p = append(p, fieldpath.PathElement{FieldName: &name})
	}
	return p
}

// fieldSet decodes an entry's fields.
func fieldSet(e metav1.ManagedFieldsEntry) (*fieldpath.Set, error) {
	set := &fieldpath.Set{}
	if e.FieldsV1 == nil {
		return set, nil
	}
	if err := set.FromJSON(e.FieldsV1.GetRawReader()); err != nil {
		return nil, fmt.Errorf("managed fields of %q: %w", e.Manager, err)
	}
	return set, nil
}

// ownersOf lists the managers that own the field.
func ownersOf(entries []metav1.ManagedFieldsEntry, path string) ([]FieldOwner, error) {
	var owners []FieldOwner
	for _, e := range entries {
		set, err := fieldSet(e)
		if err != nil {
			return nil, err
		}
		if set.Has(fieldPath(path)) {
			owners = append(owners, FieldOwner{e.Manager, e.Operation, e.APIVersion, e.Subresource, e.Time})
		}
	}
	return owners, nil
}

// giveBackOwnership takes bridge out of the entries and, for each path in owners, gives the field
// to those who had it before, unless somebody else has it by now.
func giveBackOwnership(entries []metav1.ManagedFieldsEntry, owners map[string][]FieldOwner) ([]metav1.ManagedFieldsEntry, error) {
	out := slices.DeleteFunc(slices.Clone(entries), func(e metav1.ManagedFieldsEntry) bool {
		return e.Manager == proxypod.FieldManager
	})
	for path, before := range owners {
		now, err := ownersOf(out, path)
		if err != nil {
			return nil, err
		}
		if len(now) > 0 {
			continue
		}
		for _, o := range before {
			if out, err = own(out, o, path); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// own adds the field to o's entry, which is made anew when it is gone (it vanishes with its last field).
func own(entries []metav1.ManagedFieldsEntry, o FieldOwner, path string) ([]metav1.ManagedFieldsEntry, error) {
	i := slices.IndexFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Manager == o.Manager && e.Operation == o.Operation && e.APIVersion == o.APIVersion && e.Subresource == o.Subresource
	})
	if i < 0 {
		entries = append(entries, metav1.ManagedFieldsEntry{
			Manager: o.Manager, Operation: o.Operation, APIVersion: o.APIVersion, Subresource: o.Subresource,
			Time: o.Time, FieldsType: "FieldsV1",
		})
		i = len(entries) - 1
	}
	set, err := fieldSet(entries[i])
	if err != nil {
		return nil, err
	}
	set.Insert(fieldPath(path))
	raw, err := set.ToJSON()
	if err != nil {
		return nil, fmt.Errorf("managed fields of %q: %w", o.Manager, err)
	}
	entries[i].FieldsV1 = metav1.NewFieldsV1(string(bytes.TrimSpace(raw)))
	return entries, nil
}
