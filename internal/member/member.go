// Package member is who has which requests of a swapped workload: the list on the swap's Lease, and the one of it that the swap's
// proxies read, as internal/undo/SPEC.md describes them. All of it is pure. pkg/swap writes both, cmd/proxy reads the second.
package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bridge/internal/route"
	"bridge/pkg/tunnel"
)

// Version is that of both lists. It is raised when a bridge or a proxy of before could no longer take part.
const Version = 1

// Max is how many may share a workload: a proxy keeps a breaker and a tunnel for each, and asks all of them for each request.
const Max = 16

// List is who shares a swap, and what a bridge has to know that joins them.
type List struct {
	Version int `json:"version"`
	// Protocol is the tunnel's, of the proxies; Bridge is the version of the bridge that has made the swap.
	Protocol int    `json:"protocol"`
	Bridge   string `json:"bridge,omitempty"`
	// Made is whether the swap is made entirely: before, nobody joins.
	Made bool `json:"made,omitempty"`
	// Container and Ports, TCP ports of the pod, are what the proxies stand in for.
	Container string  `json:"container"`
	Ports     []int32 `json:"ports"`
	// Tunnel is the tunnel's port on the proxies' loopback, PodProxy that on their address; 0: there is none.
	Tunnel   int32    `json:"tunnel"`
	PodProxy int32    `json:"podProxy,omitempty"`
	Members  []Member `json:"members"`

	unknown unknown
}

// Member is one of those who share a swap.
type Member struct {
	Owner  string             `json:"owner"`  // "user@host"
	Client tunnel.Fingerprint `json:"client"` // of the key, by which it is known
	// Choice is which requests are whose. A swap with a mirror has one member alone.
	route.Choice
	Since   time.Time `json:"since"`
	Renewed time.Time `json:"renewed"` // the last heartbeat, by the member's own clock
	Bridge  string    `json:"bridge,omitempty"`
	// Tunnel, Probes and Notes are of the last heartbeat, each as the annotation of that name has it for a swap without members.
	Tunnel string          `json:"tunnel,omitempty"`
	Probes json.RawMessage `json:"probes,omitempty"`
	Notes  []string        `json:"notes,omitempty"`

	unknown unknown
}

// unknown are fields that a later bridge of the same Version has written: whoever writes the list leaves them as they are.
type unknown map[string]json.RawMessage

// read reads the object text into what it points at, and returns what that does not know of it; nil when there is nothing.
func read(text []byte, into any) (more unknown, err error) {
	if err := json.Unmarshal(text, into); err != nil {
		return nil, err
	}
	known, err := json.Marshal(into)
	if err != nil {
		return nil, err
	}
	return unknownIn(text, known)
}

// write is v, an object with a field or more, and u behind its fields.
func (u unknown) write(v any) ([]byte, error) {
	known, err := json.Marshal(v)
	if err != nil || len(u) == 0 {
		return known, err
	}
	all, err := json.Marshal(map[string]json.RawMessage(u))
	if err != nil {
		return nil, err
	}
	more, err := unknownIn(all, known) // a field of ours that was empty, and is left out then, may have a value by now
	if err != nil || more == nil {
		return known, err
	}
	if all, err = json.Marshal(map[string]json.RawMessage(more)); err != nil {
		return nil, err
	}
	return slices.Concat(known[:len(known)-1], []byte(","), all[1:]), nil
}

func unknownIn(text, known []byte) (more unknown, err error) {
	var ours unknown
	if err := errors.Join(json.Unmarshal(text, &more), json.Unmarshal(known, &ours)); err != nil {
		return nil, err
	}
	maps.DeleteFunc(more, func(field string, _ json.RawMessage) bool {
		for name := range ours {
			if strings.EqualFold(name, field) { // so it was read
				return true
			}
		}
		return false
	})
	if len(more) == 0 {
		return nil, nil
	}
	return more, nil
}

// UnmarshalJSON keeps what is unknown, for MarshalJSON.
func (l *List) UnmarshalJSON(text []byte) (err error) {
	type plain List
	l.unknown, err = read(text, (*plain)(l))
	return err
}

// MarshalJSON writes what UnmarshalJSON has kept too.
func (l List) MarshalJSON() ([]byte, error) {
	type plain List
	return l.unknown.write(plain(l))
}

// UnmarshalJSON keeps what is unknown, for MarshalJSON.
func (m *Member) UnmarshalJSON(text []byte) (err error) {
	type plain Member
	m.unknown, err = read(text, (*plain)(m))
	return err
}

// MarshalJSON writes what UnmarshalJSON has kept too.
func (m Member) MarshalJSON() ([]byte, error) {
	type plain Member
	return m.unknown.write(plain(m))
}

// New is the list of a swap that first makes, of this version of bridge.
func New(first Member) List {
	return List{Version: Version, Protocol: tunnel.Protocol, Bridge: first.Bridge, Members: []Member{first}}
}

// Parse reads what Marshal wrote. The error is a *VersionError when it is of another version; Bridge is known all the same, then.
func Parse(text string) (l List, err error) {
	var head struct {
		Version, Protocol int
		Bridge            string
	}
	if err := json.Unmarshal([]byte(text), &head); err != nil {
		return List{}, fmt.Errorf("list of members: %w", err)
	}
	l = List{Version: head.Version, Protocol: head.Protocol, Bridge: head.Bridge}
	if head.Version != Version || head.Protocol != tunnel.Protocol {
		older := head.Version < Version || head.Version == Version && head.Protocol < tunnel.Protocol
		return l, &VersionError{Theirs: head.Bridge, TheirsIsOlder: older}
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return l, fmt.Errorf("list of members: %w", err)
	}
	if len(l.Members) == 0 {
		return l, errors.New("list of members: nobody is in it")
	}
	for i, m := range l.Members {
		if m.Client == (tunnel.Fingerprint{}) {
			return l, fmt.Errorf("list of members: %s has no key", m.Owner)
		}
		if slices.ContainsFunc(l.Members[:i], func(other Member) bool { return other.Client == m.Client }) {
			return l, fmt.Errorf("list of members: %s is in it twice", m.Owner)
		}
	}
	return l, nil
}

// Marshal is l for the Lease.
func (l List) Marshal() (string, error) {
	b, err := json.Marshal(l)
	return string(b), err
}

// VersionError says that the bridge which has made a swap and this one cannot share it.
type VersionError struct {
	Theirs        string // that bridge's version; may be empty
	TheirsIsOlder bool
}

func (e *VersionError) Error() string {
	if e.TheirsIsOlder {
		return fmt.Sprintf("the bridge that made it (%s) is too old to share it with this one", orUnknown(e.Theirs))
	}
	return fmt.Sprintf("this bridge is too old to share it with the one that made it (%s)", orUnknown(e.Theirs))
}

// Advice says what to do; owner has made the swap, and ours is this bridge's version.
func (e *VersionError) Advice(owner, ours string) string {
	if e.TheirsIsOlder {
		return fmt.Sprintf("have %s give it back, upgrade bridge to %s and swap anew; or use bridge %s here", owner, orUnknown(ours), orUnknown(e.Theirs))
	}
	return "upgrade bridge here to " + orUnknown(e.Theirs)
}

func orUnknown(version string) string {
	if version == "" {
		return "another version"
	}
	return version
}

// Of is the member with that key.
func (l List) Of(client tunnel.Fingerprint) (m Member, ok bool) {
	if i := l.index(client); i >= 0 {
		return l.Members[i], true
	}
	return Member{}, false
}

func (l List) index(client tunnel.Fingerprint) int {
	return slices.IndexFunc(l.Members, func(m Member) bool { return m.Client == client })
}

// Others are all but the one with that key.
func (l List) Others(client tunnel.Fingerprint) []Member {
	return slices.DeleteFunc(slices.Clone(l.Members), func(m Member) bool { return m.Client == client })
}

// Claiming are those who could have a request that is c's.
func (l List) Claiming(c route.Choice) []Member {
	return slices.DeleteFunc(slices.Clone(l.Members), func(m Member) bool { return !c.Mirror && !m.Mirror && !m.Overlaps(c.Filter) })
}

// Owners are all of them, for people; each once.
func (l List) Owners() string { return Owners(l.Members) }

// Owners are those of some members.
func Owners(members []Member) string {
	var names []string
	for _, m := range members {
		if !slices.Contains(names, m.Owner) {
			names = append(names, m.Owner)
		}
	}
	return strings.Join(names, ", ")
}

// ErrFull says that there are Max members.
var ErrFull = fmt.Errorf("%d share it already", Max)

// Join adds m. The error is an *OverlapError, or ErrFull.
func (l *List) Join(m Member) error {
	if claiming := l.Claiming(m.Choice); len(claiming) > 0 {
		return &OverlapError{claiming[0]}
	}
	if len(l.Members) >= Max {
		return ErrFull
	}
	l.Members = append(slices.Clone(l.Members), m)
	return nil
}

// OverlapError says that requests could be another member's too.
type OverlapError struct{ Other Member }

func (e *OverlapError) Error() string {
	return fmt.Sprintf("some requests could be %s's too, who has %s", e.Other.Owner, e.Other.Choice)
}

// Leave takes out the member with that key.
func (l *List) Leave(client tunnel.Fingerprint) { l.Members = l.Others(client) }

// Put writes m in the place of the member with its key; false when there is none.
func (l *List) Put(m Member) bool {
	i := l.index(m.Client)
	if i < 0 {
		return false
	}
	l.Members = slices.Clone(l.Members)
	l.Members[i] = m
	return true
}

// Share is what a proxy knows of a member.
type Share struct {
	Client tunnel.Fingerprint `json:"client"`
	route.Filter
}

// shares is the document that proxies read.
type shares struct {
	Version int     `json:"version"`
	Shares  []Share `json:"shares"`
}

// Shares is the document for proxies.
func (l List) Shares() ([]byte, error) {
	doc := shares{Version: Version}
	for _, m := range l.Members {
		doc.Shares = append(doc.Shares, Share{m.Client, m.Filter})
	}
	return json.MarshalIndent(doc, "", "  ")
}

// ParseShares reads what Shares wrote. It refuses what would let two have the same request, or one all of them.
func ParseShares(text []byte) ([]Share, error) {
	var doc shares
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("list of shares: %w", err)
	}
	switch {
	case doc.Version != Version:
		return nil, fmt.Errorf("list of shares: its version is %d, and not %d", doc.Version, Version)
	case len(doc.Shares) > Max:
		return nil, fmt.Errorf("list of shares: %d of them, and not %d at most", len(doc.Shares), Max)
	}
	for i, s := range doc.Shares {
		if s.Client == (tunnel.Fingerprint{}) {
			return nil, errors.New("list of shares: one has no key")
		}
		for _, other := range doc.Shares[:i] {
			if other.Client == s.Client || other.Overlaps(s.Filter) {
				return nil, errors.New("list of shares: two have the same requests")
			}
		}
		if (route.Choice{Filter: s.Filter}).All() {
			return nil, errors.New("list of shares: one has all requests")
		}
	}
	return doc.Shares, nil
}
