//go:build linux

// Package e2e runs the real bridge against a real Kubernetes. With KUBECONFIG set it uses that
// cluster. Otherwise it starts the embedded one under a name of its own, and runs itself again inside
// the network namespace of its laptop, from where the API server is all of the cluster that answers:
// nothing here can pass by reaching a pod directly.
package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// clusterEnv names the tests' cluster, "bridge-e2e" if not set: apart from a person's demo.
	clusterEnv = "BRIDGE_E2E_CLUSTER"
	// insideEnv marks the run inside the laptop's namespace.
	insideEnv = "BRIDGE_E2E_INSIDE"
	// keepEnv keeps the cluster up afterwards, for the next run.
	keepEnv = "BRIDGE_E2E_KEEP"
	// kubernetesEnv is the version of Kubernetes, if not the usual one.
	kubernetesEnv = "BRIDGE_E2E_KUBERNETES"
	// sampleImage is the image of test/sample on the embedded cluster; with a cluster of one's own,
	// BRIDGE_SAMPLE_IMAGE names it.
	sampleImage = "bridge-sample:dev"
)

// suite is what all tests share.
type suite struct {
	embedded   bool // the cluster is ours, and the laptop is a namespace
	config     *rest.Config
	kubeconfig string
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	bridge     string // the executable, built with the race detector
	sample     string
	image      string
	root       string // of the repository
}

var (
	s           suite
	clusterName = cmp.Or(os.Getenv(clusterEnv), "bridge-e2e")
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	s.root = root
	s.kubeconfig, s.image = os.Getenv("KUBECONFIG"), os.Getenv("BRIDGE_SAMPLE_IMAGE")
	inside := os.Getenv(insideEnv) != ""
	switch {
	case inside:
		s.embedded, s.image = true, sampleImage
	case s.kubeconfig != "":
		if s.image == "" {
			fmt.Fprintln(os.Stderr, "e2e: BRIDGE_SAMPLE_IMAGE must name the image of test/sample in a registry that your cluster reaches: make sample-image")
			return 1
		}
	case runtime.GOOS != "linux" || os.Getuid() != 0:
		fmt.Fprintln(os.Stderr, "e2e: skipped: the embedded cluster needs root on Linux; or set KUBECONFIG")
		return 0
	default:
		return outside()
	}
	if err := s.open(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := m.Run()
	if err := reportRecoveries(code); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}

// outside starts the cluster and runs this test again inside the laptop's namespace.
func outside() (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.build(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if os.Getenv(keepEnv) == "" {
		defer func() {
			if err := s.cluster(context.WithoutCancel(ctx), "down"); err != nil {
				fmt.Fprintln(os.Stderr, "e2e:", err)
				code = 1
			}
		}()
	}
	if err := s.up(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + clusterName + "-laptop", self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideEnv+"=1", "KUBECONFIG="+s.kubeconfig)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return 0
}

// up starts the cluster and gives it the sample's image.
func (s *suite) up(ctx context.Context) error {
	var args []string
	if v := os.Getenv(kubernetesEnv); v != "" {
		args = []string{"--kubernetes", v}
	}
	if os.Getenv(ipv6Env) != "" {
		args = append(args, "--ipv6")
	}
	if err := s.cluster(ctx, "up", args...); err != nil {
		return err
	}
	s.kubeconfig = filepath.Join("/var/lib/bridge-cluster", clusterName, "kubeconfig")
	// A test may ask for them, and from inside the laptop's namespace nothing can be downloaded. Those that do not go on without.
	for _, what := range []string{"rollouts", "metrics"} {
		if err := s.cluster(ctx, "build", what); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: without %s: %v\n", what, err)
		}
	}
	return s.cluster(ctx, "load", sampleImage+"="+filepath.Join(s.root, "bin", "sample"))
}

func (s *suite) cluster(ctx context.Context, verb string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "bin", "cluster"), append([]string{verb, "--name", clusterName}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cluster %s: %w", verb, err)
	}
	return nil
}

// build builds what the tests run, by the same rules as everybody else.
func (s *suite) build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "make", "-C", s.root, "--no-print-directory", "e2e-programs")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

func (s *suite) open() (err error) {
	s.bridge, s.sample = filepath.Join(s.root, "bin", "bridge-race"), filepath.Join(s.root, "bin", "sample")
	if !s.embedded {
		if err := s.build(context.Background()); err != nil {
			return err
		}
	}
	if s.config, err = clientcmd.BuildConfigFromFlags("", s.kubeconfig); err != nil {
		return err
	}
	s.config.QPS, s.config.Burst = 100, 200
	if s.client, err = kubernetes.NewForConfig(s.config); err != nil {
		return err
	}
	s.dynamic, err = dynamic.NewForConfig(s.config)
	return err
}
