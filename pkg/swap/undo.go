package swap

import "bridge/internal/undo"

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
