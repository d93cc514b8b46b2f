package proxypod

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"bridge/internal/undo"
)

// Prefix starts every label and annotation key of ours. ".internal" is reserved for private use,
// so it can never be somebody's domain.
const Prefix = "bridge.internal/"

// Keys of labels and annotations on objects in the cluster.
const (
	// ProxyLabel is on the pods of a proxy and is what its Deployment selects. Its value is the
	// name of the Lease that owns it, shortened to a label's length.
	ProxyLabel = undo.ProxyLabel
	// UndoAnnotation holds the undo record, on the Lease and on the target.
	UndoAnnotation = undo.Annotation
	// FenceAnnotation is on a Service while its swap is given back by another than made it.
	FenceAnnotation = undo.FenceAnnotation
	// KeeperLabel is on the pod of a swap's keeper, with the same value.
	KeeperLabel = Prefix + "keeper"
	// KeeperAnnotation on a Lease names its keeper's Deployment; a swap without a keeper has none.
	KeeperAnnotation = Prefix + "keeper"
	// TargetAnnotation on a Lease names what it is for: "deployment/orders", "connect", "forward" or "env".
	TargetAnnotation = Prefix + "target"
	// ClientAnnotation on a Lease is the fingerprint of the laptop's key, which no two sessions share.
	ClientAnnotation = Prefix + "client"
	// TunnelAnnotation on a Lease is the tunnel's state at the last heartbeat, as State's String gives it.
	TunnelAnnotation = Prefix + "tunnel"
	// ProbesAnnotation on a swap's Lease is what the target's probes gave on the laptop, by the last heartbeat.
	ProbesAnnotation = Prefix + "probes"
	// MembersAnnotation on a swap's Lease says who has which requests, where not all are its holder's (internal/member).
	MembersAnnotation = Prefix + "members"
	// NudgeAnnotation is on the proxies' pods, and written to have the kubelet look at them.
	NudgeAnnotation = Prefix + "nudge"
	// NotesAnnotation on a swap's Lease is what its proxies say, by the last heartbeat.
	NotesAnnotation = Prefix + "notes"
	// ForwardsAnnotation on a forward's Lease is what it forwards and has counted, by the last heartbeat.
	ForwardsAnnotation = Prefix + "forwards"
	// KindLabel on a Lease is "swap", "connect", "forward", "diagnose", or "env": of a pod to look by.
	KindLabel    = Prefix + "kind"
	KindSwap     = "swap"
	KindConnect  = "connect"
	KindForward  = "forward"
	KindDiagnose = "diagnose"
	KindEnv      = "env"

	// ManagedByLabel and ManagedBy mark everything bridge creates (the recommended label).
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "bridge"

	// FieldManager is bridge's name in managedFields.
	FieldManager = undo.FieldManager
)

const (
	maxLabelValue = 63
	// maxName leaves room for what controllers append to a Deployment's name ("-7d4b9c8f6-x2x4z")
	// within a pod's host name of 63 characters.
	maxName = 46
	// maxService is so for what serviceName's callers append, within a Service's name of 63 characters.
	maxService = 63 - len("-originals")
)

// shorten returns s, or as much of its beginning as fits in max characters with a hash of the
// whole, so that two long names that begin alike stay apart. No dot comes before the hash: a part of a name ends with a letter or
// a digit.
func shorten(s string, max int) string {
	if len(s) <= max {
		return s
	}
	tail := hashTail(s)
	return strings.TrimRight(s[:max-len(tail)], "-.") + tail
}

// hashTail keeps names apart that are made from different s and would be the same.
func hashTail(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "-" + hex.EncodeToString(sum[:4])
}

// LeaseName is the name of the claim on a workload: one per kind ("deployment") and name.
func LeaseName(kind, name string) string { return shorten("bridge-"+kind+"-"+name, maxName) }

// KeeperName is the name of everything that a Lease's keeper consists of.
func KeeperName(lease string) string { return shorten(lease+"-keeper", maxName) }

// LabelValue is s as the value of ProxyLabel.
func LabelValue(s string) string { return shorten(s, maxLabelValue) }
