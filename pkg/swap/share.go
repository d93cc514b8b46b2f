package swap

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
)

// comes is what of the workload comes to this machine, in words.
func (p *Plan) comes() string {
	switch {
	case p.Choice.Mirror:
		return "copied to here"
	case !p.Choice.All():
		return "answered here for " + p.Choice.String()
	}
	return "answered here"
}

// goesOn is what the original does in mode standby, in notes.
func (p *Plan) goesOn() []string {
	const beside = "does all that it does beside answering"
	switch {
	case p.Choice.Mirror:
		return []string{"the original goes on, and " + beside, "a copy is of a connection as it comes: one that this machine is too slow for, or was away for, is not copied to its end"}
	case !p.Choice.All():
		return []string{
			"the original goes on: it answers all other requests, and what this machine cannot take, and " + beside,
			"what cannot be read as HTTP (TLS, another protocol, what is malformed) goes to the original",
		}
	}
	return []string{"the original goes on: it answers what this machine cannot take, and " + beside}
}

// noted keeps what proxy i says, and says what of it is new: not that again which it says in another session, after one that was lost.
func (l *lines) noted(i int, text string, lost bool, say func(string)) {
	var now []string
	for line := range strings.Lines(text) {
		now = append(now, hint.Printable(line))
	}
	l.mu.Lock()
	l.notes[i] = now
	before := l.said[i]
	if !lost {
		l.said[i] = now
	}
	l.mu.Unlock()
	for _, line := range now {
		if !slices.Contains(before, line) {
			say(line)
		}
	}
}

// noteList is what the proxies say, each line once, with whose it is.
func (l *lines) noteList() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, notes := range l.notes {
		for _, line := range notes {
			if len(l.notes) > 1 {
				line = fmt.Sprintf("proxy %d: %s", i+1, line)
			}
			all = append(all, line)
		}
	}
	return all
}

// noOriginal is what is noted while the original that stands by has no Ready pod.
const noOriginal = "none of the original's pods is Ready: nobody answers what this machine does not take"

// originalStands says when what stands by can no longer answer, and when it can again.
func (s *Swap) originalStands(ready bool) {
	switch {
	case s.absent.Swap(!ready) != ready || s.ending.Load():
	case ready:
		s.Say("the original has a Ready pod again")
	default:
		s.Say(noOriginal)
	}
}

// notes are for `bridge status`.
func (s *Swap) notes() []string {
	notes := s.lines.noteList()
	if s.absent.Load() {
		notes = append(notes, noOriginal)
	}
	return notes
}

// annotations are for the Lease, with each heartbeat.
func (s *Swap) annotations() map[string]string {
	text := ""
	if notes := s.notes(); len(notes) > 0 {
		if b, err := json.Marshal(notes); err == nil {
			text = string(b)
		}
	}
	out := map[string]string{proxypod.NotesAnnotation: text}
	maps.Copy(out, s.probesAnnotation())
	return out
}
