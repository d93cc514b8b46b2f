package main

import (
	"encoding/json"
	"io"

	"sigs.k8s.io/yaml"

	"bridge/internal/hint"
)

// printOr prints v as json or yaml, whichever output names, or has table print it for people: "" and "wide". command is what knows -o.
func printOr(w io.Writer, v any, output, command string, table func(wide bool) error) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case "", "wide":
		return table(output == "wide")
	}
	return hint.Newf(hint.Usage, "bridge "+command+" --help", "-o %s: not a format; there are json, yaml and wide", output)
}
