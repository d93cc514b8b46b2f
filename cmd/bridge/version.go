package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker for a release: -ldflags "-X main.version=v1.2.3".
var version string

// versionString is the release's version, else what Go knows of the source, else "devel".
func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

func newVersionCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of bridge",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version  string `json:"version"`
				Platform string `json:"platform"`
				Go       string `json:"go"`
			}{versionString(), runtime.GOOS + "/" + runtime.GOARCH, runtime.Version()}
			switch output {
			case "":
				_, err := fmt.Fprintf(a.stdout, "bridge %s %s %s\n", v.Version, v.Platform, v.Go)
				return err
			case "json":
				return json.NewEncoder(a.stdout).Encode(v)
			default:
				return usageError(cmd, fmt.Errorf("--output is json or nothing, not %q", output))
			}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for a program")
	return cmd
}
