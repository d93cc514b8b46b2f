package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/image"

	"github.com/spf13/cobra"
)

func newImageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make the proxy's container image, for clusters that shall pull it",
		Long: `The proxy usually travels through the API server and needs no image. Where it shall be an image, these
commands make it from what bridge carries, without Docker: linux/amd64 and linux/arm64, from scratch,
not root. Name it with --proxy-image or BRIDGE_PROXY_IMAGE.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageSaveCommand(a), newImagePushCommand(a))
	return cmd
}

func newImageSaveCommand(a *app) *cobra.Command {
	var file, name string
	cmd := &cobra.Command{
		Use:   "save -o FILE",
		Short: "Write the proxy's image to an OCI archive",
		Example: `  bridge image save -o bridge-proxy.tar
  ctr -n k8s.io images import bridge-proxy.tar    # on a node`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError(cmd, fmt.Errorf("--output is needed: the archive's file, or - for standard output"))
			}
			if file == "-" {
				return image.Save(a.stdout, proxyProgram(), name)
			}
			if err := writeFile(file, func(w io.Writer) error { return image.Save(w, proxyProgram(), name) }); err != nil {
				return err
			}
			a.say("saved " + name + " to " + file)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the archive's file, or - for standard output")
	cmd.Flags().StringVar(&name, "name", defaultImageName(versionString()), "the image's name where the archive is imported")
	return cmd
}

func newImagePushCommand(a *app) *cobra.Command {
	var insecure bool
	cmd := &cobra.Command{
		Use:     "push REFERENCE",
		Short:   "Push the proxy's image to a registry",
		Long:    "Push the proxy's image to a registry, with the credentials of docker login. It prints the image with its digest.",
		Example: "  bridge image push registry.example.com/team/bridge-proxy:1.0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pushed, err := image.Push(cmd.Context(), proxyProgram(), args[0], insecure)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, pushed)
			return err
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "use plain HTTP where the registry has no HTTPS")
	return cmd
}

// defaultImageName is the image's name for a version; a tag has no "+", which versions may have.
func defaultImageName(version string) string {
	return "bridge-proxy:" + strings.ReplaceAll(version, "+", "-")
}

// writeFile writes a file whole or not at all.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".bridge-*")
	if err != nil {
		return hint.New(hint.Other, fmt.Errorf("write %s: %w", path, err), "does the folder exist, and may you write in it?")
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// proxyProgram is what bridge carries.
func proxyProgram() image.Program { return image.Program{Name: "proxy", Executable: carry.Proxy} }
