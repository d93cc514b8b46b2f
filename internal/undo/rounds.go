package undo

import (
	"errors"
	"fmt"
)

// Outcome is of a change that could not be taken back.
type Outcome int

// The outcomes.
const (
	Failed Outcome = iota // for good
	Later                 // the same may work in a moment
	Ended                 // nothing more is to be tried
)

// TakeBack has try take back every change, and each of those that may work in a moment again after all the others, with a pause between two
// rounds: one that is refused, however long, is no reason to leave the others, whose callers have nobody else. The error says what is not
// taken back; an error of pause ends it.
func TakeBack(changes []Change, try func(Change) error, outcome func(error) Outcome, pause func() error) error {
	type attempt struct {
		Change
		err error
	}
	var pending []attempt
	for _, c := range changes {
		pending = append(pending, attempt{Change: c})
	}
	var failed []error
	left := func() error {
		for _, a := range pending {
			failed = append(failed, a.err)
		}
		return errors.Join(failed...)
	}
	for {
		var again []attempt
		for i, a := range pending {
			err := try(a.Change)
			if err == nil {
				continue
			}
			named := fmt.Errorf("%s: %w", a.Object, err)
			switch outcome(err) {
			case Ended:
				pending = append(again, pending[i+1:]...)
				return errors.Join(named, left())
			case Later:
				again = append(again, attempt{a.Change, named})
			default:
				failed = append(failed, named)
			}
		}
		if pending = again; len(pending) == 0 || pause() != nil {
			return left()
		}
	}
}
