package swap

import "bridge/internal/undo"

// Undo, Object and Change are the record and its parts. internal/undo has them apart from this package for the cluster's side, which gives back by
// them too and links no Kubernetes client.
type (
	Undo   = undo.Record
	Object = undo.Object
	Change = undo.Change
)
