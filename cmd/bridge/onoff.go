package main

import "errors"

// offValue is a flag that is on or off, and true for off.
type offValue bool

// Set takes one of the two.
func (o *offValue) Set(s string) error {
	switch s {
	case "on", "off":
		*o = s == "off"
		return nil
	}
	return errors.New("want on or off")
}

func (o *offValue) String() string {
	if *o {
		return "off"
	}
	return "on"
}

// Type is for the help.
func (o *offValue) Type() string { return "on|off" }
