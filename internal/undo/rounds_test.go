package undo

import (
	"errors"
	"strings"
	"testing"
)

// Each is tried in every round until it is taken back, has failed for good, or nothing more is to be tried; what is named then is not taken back.
func TestTakeBack(t *testing.T) {
	var (
		failed = errors.New("failed for good")
		later  = errors.New("for a moment")
		ended  = errors.New("ended")
	)
	outcome := func(err error) Outcome {
		switch {
		case errors.Is(err, later):
			return Later
		case errors.Is(err, ended):
			return Ended
		}
		return Failed
	}
	for _, c := range []struct {
		name   string
		tries  map[string][]error // what each change meets, one after the other, and then nothing
		rounds int                // so many pauses, and then the time is over
		tried  string
		want   string
	}{
		{"all at once", nil, 0, "a b c", ""},
		{"one that is refused keeps nobody", map[string][]error{"a": {failed}}, 0, "a b c", "a: failed for good"},
		{"each is tried before one is again", map[string][]error{"a": {later, later}, "b": {later}}, 5, "a b c a b a", ""},
		{"time is over", map[string][]error{"a": {later, later}, "c": {failed}}, 1, "a b c a", "c: failed for good\na: for a moment"},
		{"the end comes in the second round", map[string][]error{"a": {later}, "b": {later, ended}, "c": {later}}, 5, "a b c a b", "b: ended\nc: for a moment"},
		{"the end comes first", map[string][]error{"a": {ended}}, 5, "a", "a: ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var changes []Change
			for _, name := range []string{"a", "b", "c"} {
				changes = append(changes, Change{Object: Object{Kind: "Service", Name: name}})
			}
			var tried []string
			pauses := 0
			err := TakeBack(changes, func(change Change) (err error) {
				name := change.Object.Name
				tried = append(tried, name)
				if left := c.tries[name]; len(left) > 0 {
					err, c.tries[name] = left[0], left[1:]
				}
				return err
			}, outcome, func() error {
				if pauses++; pauses > c.rounds {
					return errors.New("no more")
				}
				return nil
			})
			said := ""
			if err != nil {
				said = strings.ReplaceAll(err.Error(), "service/", "")
			}
			if got := strings.Join(tried, " "); got != c.tried || said != c.want {
				t.Errorf("tried %q, want %q; said %q, want %q", got, c.tried, said, c.want)
			}
		})
	}
}
