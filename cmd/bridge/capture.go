package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"bridge/internal/debug"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
	"bridge/internal/terminal"
)

type captureOptions struct{ port, file, proxyImage, arch string }

func newCaptureCommand(a *app) *cobra.Command {
	var o captureOptions
	cmd := &cobra.Command{
		Use:   "capture TYPE/NAME --port PORT [-w FILE|-]",
		Short: "See what passes on a port of a pod, as Wireshark and tcpdump read it",
		Long: `capture writes the packets from and to a TCP or UDP port of a pod, on all of its network interfaces and its loopback, as pcapng, until Ctrl-C.
Of a workload or a Service it takes a pod that is ready, or else one that runs, and says which.

It adds a container to the pod, on the image of one that runs there or beside it on its node and has a shell, by which the program is carried there, or on the
proxy's image, which --proxy-image names. To see packets takes CAP_NET_RAW, which a namespace of Pod Security level restricted lets nobody have.`,
		Example: `  bridge capture deployment/orders --port http -w orders.pcapng
  bridge capture svc/orders --port 80 | tcpdump -A -r -
  bridge capture pod/orders-0 --port 8080 | wireshark -k -i -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return errors.New("name one pod or workload")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := kube.ParseTarget(args...)
			if err != nil {
				return err
			}
			if err := o.check(a.stdout); err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			if err := rights.CheckCapture(cmd.Context(), k, t); err != nil {
				return err
			}
			return a.capture(cmd.Context(), k, t, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.port, "port", "", "the pod's port: its number, or the name that its container gives it; of a Service, a port of its own is that behind it")
	f.StringVarP(&o.file, "write", "w", "-", "the file to write, - for stdout")
	f.StringVar(&o.proxyImage, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "the image with the program that sees packets: bridge image push makes it (default: none is needed where an image with a shell runs, by which it is carried)")
	f.StringVar(&o.arch, "arch", "", "architecture of the program that is carried, amd64 or arm64 (default: that of the pod's node)")
	return cmd
}

func (o *captureOptions) check(stdout io.Writer) error {
	switch {
	case o.port == "":
		return hint.Newf(hint.Usage, "see: bridge capture --help", "--port is needed")
	case o.arch != "" && o.proxyImage != "":
		return hint.Newf(hint.Usage, "leave it out: the image's is taken", "--arch is of a program that is carried, which this one is not")
	case o.file == "-" && terminal.Is(stdout):
		return hint.Newf(hint.Usage, "write it to a file, -w FILE, or read it: bridge capture ... | tcpdump -A -r -", "a capture is nothing that a terminal can show")
	}
	return nil
}

func (a *app) capture(ctx context.Context, k *kube.Client, t kube.Target, o captureOptions) (err error) {
	out := a.stdout
	if o.file != "-" {
		file, openErr := openCapture(o.file)
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, closeCapture(file)) }()
		out = file
	}
	c := &debug.Capture{Kube: k, Target: t, Port: o.port, ProxyImage: o.proxyImage, Arch: o.arch, Out: out, Err: a.stderr, Say: a.say}
	return c.Run(ctx)
}

// openCapture makes the file, which only its owner may read: there may be secrets in it. One that is there is never written over; a pipe or a device is opened.
func openCapture(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if info, statErr := os.Stat(name); errors.Is(err, os.ErrExist) && statErr == nil {
		if info.Mode().IsRegular() {
			return nil, hint.Newf(hint.Usage, "name another file, or remove it", "%s is there already, and may be an earlier capture", name)
		}
		file, err = os.OpenFile(name, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, hint.New(hint.Usage, err, "name a file that can be written")
	}
	return file, nil
}

// closeCapture closes the file, and removes it when nothing was written.
func closeCapture(file *os.File) error {
	info, err := file.Stat()
	closed := file.Close()
	if err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		err = os.Remove(file.Name())
	}
	return errors.Join(err, closed)
}
