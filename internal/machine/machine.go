// Package machine changes the network of this whole machine for as long as bridge runs, and changes it back: a device whose packets bridge
// gets, routes to the cluster's ranges through it, and a resolver. internal/connect uses it for bridge connect --tun; it alone imports
// vishvananda/netlink. It works on Linux, as root.
//
// What outlives the process is written into a journal before it is changed, so that after a kill the next one, or Undo, can change it back.
// Device and routes end with the process, whatever ends it; the resolver does not. What somebody else has changed meanwhile is left alone.
package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"bridge/internal/hint"
	"bridge/internal/private"
)

const (
	// Device is the device's name. It begins as resolvconf likes it, which sorts resolvers by it.
	Device = "tun-bridge"

	// stateFolder has the journal. It outlives a reboot, as a resolver file does, and is not the user's own: whoever becomes root finds it.
	stateFolder = "/var/lib/bridge"
	journalName = "machine.json"
)

// record is what the journal has: how to change back what has been changed, or is about to be.
type record struct {
	PID        int         `json:"pid"` // of who holds the journal, or has been killed
	File       *fileChange `json:"file,omitempty"`
	Resolvconf bool        `json:"resolvconf,omitempty"` // it has our resolver
	// Left are changes of before, oldest first, of a file that somebody else has written since, which is theirs. They may yet put ours back, which
	// they have seen there.
	Left []*fileChange `json:"left,omitempty"`
}

// maxLeft bounds Left.
const maxLeft = 4

func (r *record) empty() bool { return !r.pending() && len(r.Left) == 0 }

// pending tells whether there is something to undo at the end, apart from what is left to others.
func (r *record) pending() bool { return r.File != nil || r.Resolvconf }

// journal is held by one process at a time.
type journal struct {
	file *private.File
	record
}

// hold takes the journal in folder. The error has a hint, and names who has it.
func hold(folder string) (*journal, error) {
	path := filepath.Join(folder, journalName)
	f, err := private.Open(path)
	switch unsafe := new(private.UnsafeError); {
	case errors.Is(err, private.ErrHeld):
		who := holder(path)
		return nil, hint.Newf(hint.Conflict, fmt.Sprintf("one at a time; end that one first, with Ctrl-C or: kill %s", who), "bridge connect --tun runs already, as process %s", who)
	case errors.As(err, &unsafe):
		return nil, hint.New(hint.Other, err, "nobody else should write what is trusted there: chown root and chmod go= "+unsafe.Path)
	case err != nil:
		return nil, fmt.Errorf("the journal of what is changed on this machine: %w", err)
	}
	j := &journal{file: f}
	if err := f.Read(&j.record); err != nil && !errors.Is(err, io.EOF) {
		_ = f.Close()
		return nil, hint.New(hint.RestoreIncomplete, fmt.Errorf("the journal of what is changed on this machine: %w", err),
			"look at /etc/resolv.conf yourself, then remove "+path)
	}
	return j, nil
}

// holder is the process that holds the journal, as that tells, or "PID" when it does not.
func holder(path string) string {
	var r record
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &r) == nil && r.PID != 0 {
		return fmt.Sprint(r.PID)
	}
	return "PID"
}

// write has the journal be r from now on.
func (j *journal) write(r record) error {
	r.PID = os.Getpid()
	if err := j.file.Write(r); err != nil {
		return fmt.Errorf("the journal of what is changed on this machine: %w", err)
	}
	j.record = r
	return nil
}

// begin has the journal know of a change that is about to be made, besides what is left.
func (j *journal) begin(r record) error {
	r.Left = j.Left
	return j.write(r)
}

// undo changes back what the journal has, and says what it does. What fails stays in it, and what may yet be to be undone.
func (j *journal) undo(say func(string)) error {
	next := record{}
	var errs []error
	changes := slices.Clone(j.Left)
	if j.File != nil {
		changes = append(changes, j.File)
	}
	left, did, err := undoChanges(changes)
	if err != nil {
		errs = append(errs, fmt.Errorf("bring back %s: %w", changes[0].Path, err))
		next.File, next.Left = j.File, j.Left
	} else {
		if did != "" {
			say(did)
		}
		next.Left = left
		if more := len(left) - maxLeft; more > 0 { // the oldest knows what was there before all of them
			next.Left = slices.Delete(left, 1, 1+more)
		}
	}
	if j.Resolvconf {
		if err := resolvconfDelete(); err != nil {
			next.Resolvconf = true
			errs = append(errs, err)
		} else {
			say("resolvconf has this machine's own resolvers again")
		}
	}
	if next.empty() {
		j.record = next // end removes what says otherwise, which undoes nothing any more and takes no room
	} else if err := j.write(next); err != nil {
		errs = append(errs, err)
	}
	return hint.New(hint.RestoreIncomplete, errors.Join(errs...), "when that is mended: bridge connect --undo")
}

// end lets go of the journal, and removes it when nothing is left to undo.
func (j *journal) end() {
	if j.empty() {
		_ = j.file.Remove()
		_ = os.Remove(filepath.Dir(j.file.Path())) // unless it has something else
		return
	}
	_ = j.file.Close()
}

// leftover is what a killed one has left.
func (j *journal) leftover(say func(string)) error {
	if j.empty() {
		return nil
	}
	if j.pending() {
		say(fmt.Sprintf("undoing what bridge, process %d, could not: it was killed", j.PID))
	}
	return j.undo(say)
}

// undoAll is Undo with the journal in folder and the resolver file at path.
func undoAll(folder, path string, say func(string)) error {
	if _, err := os.Stat(filepath.Join(folder, journalName)); errors.Is(err, os.ErrNotExist) {
		return nothing(path, say)
	}
	j, err := hold(folder)
	if err != nil {
		return err
	}
	defer j.end()
	if j.empty() {
		return nothing(path, say)
	}
	return j.leftover(say)
}

// nothing says that there is nothing to undo.
func nothing(path string, say func(string)) error {
	if err := orphan(path); err != nil {
		return err
	}
	say("nothing to undo")
	return nil
}

// orphan is an error when the resolver file at path names a server of ours, which nobody runs, and nobody knows the one before. The error has a hint.
func orphan(path string) error {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, s := range nameservers(b) {
		if slices.Contains(own4s, s) {
			return hint.Newf(hint.RestoreIncomplete, "write the address of a DNS server into it, or have your network written anew, as NetworkManager does at each connection",
				"%s names %s, bridge's DNS server, which does not run, and what was there before is not known any more", path, s)
		}
	}
	return nil
}

// take holds the journal in folder for one that is to change this machine, whose resolver file is at path: what a killed one has left is undone.
func take(folder, path string, say func(string)) (*journal, error) {
	j, err := hold(folder)
	if err != nil {
		return nil, err
	}
	err = j.leftover(say)
	if err == nil {
		err = orphan(path)
	}
	if err == nil {
		err = j.write(j.record) // so that others are told who has it
	}
	if err != nil {
		j.end()
		return nil, err
	}
	return j, nil
}
