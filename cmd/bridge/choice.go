package main

import (
	"errors"
	"slices"
	"strings"
)

// choice is the value of a flag that is one of some words.
type choice struct {
	words []string
	word  string // "" while there is no default and nothing was said
	set   func(word string)
}

// newChoice has set called with what is said.
func newChoice(byDefault string, set func(word string), words ...string) *choice {
	return &choice{words, byDefault, set}
}

// Set takes one of the words.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		last := len(c.words) - 1
		return errors.New("want " + strings.Join(c.words[:last], ", ") + " or " + c.words[last])
	}
	c.word = s
	c.set(s)
	return nil
}

func (c *choice) String() string { return c.word }

// Type is for the help.
func (c *choice) Type() string { return strings.Join(c.words, "|") }
