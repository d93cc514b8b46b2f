// Package podview makes on the laptop what a pod's container has around it, as pkg/tunnel's View tells it: an environment, for a
// process or in a file's format, and files in a private folder. cmd/bridge and pkg/swap call it.
package podview

import (
	"slices"
	"strings"

	"bridge/pkg/tunnel"
)

// RootEnv is the variable that names the folder below which the container's files are.
const RootEnv = "BRIDGE_ROOT"

// laptops are the variables that stay the laptop's: they name programs, folders and devices of this machine.
var laptops = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_"}

// Variable is one of an environment.
type Variable struct{ Name, Value string }

// Variables are the container's, by name, without those that stay the laptop's; kept names these.
func Variables(v *tunnel.View) (list []Variable, kept []string) {
	for _, e := range v.Entries {
		switch {
		case e.Type != tunnel.Variable:
		case slices.Contains(laptops, e.Name):
			kept = append(kept, e.Name)
		default:
			list = append(list, Variable{e.Name, string(e.Data)})
		}
	}
	slices.SortFunc(list, func(a, b Variable) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(kept)
	return list, kept
}

// Environ lays the variables over an environment ("NAME=value"), for os/exec: of two with one name it takes the later.
func Environ(laptop []string, over []Variable) []string {
	out := slices.Clone(laptop)
	for _, v := range over {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}
