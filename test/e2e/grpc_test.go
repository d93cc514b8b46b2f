//go:build linux

package e2e

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// What a real gRPC client calls comes to a real gRPC server here if it has the metadata, with its stream and its trailers; its other calls, on the
// same connection, stay with the original.
func TestChoiceOfGRPC(t *testing.T) {
	t.Parallel()
	const serving, notServing = grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING
	w := newWorld(t).withOrders()
	before := w.snapshot()
	ln := listen(t)
	local, laptop := grpc.NewServer(), health.NewServer()
	laptop.SetServingStatus("", notServing) // the original is
	grpc_health_v1.RegisterHealthServer(local, laptop)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = local.Serve(ln) })
	defer local.Stop()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b := w.bridge("swap", "deployment", "orders", "--port", port+":http", "--header", "x-user=ada", "--probes", "off", "--mode", "standby")
	b.says("answered here for --header x-user=ada")

	var conns atomic.Int32
	conn, err := grpc.NewClient("passthrough:///orders:80", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			conns.Add(1)
			return w.conn("orders:80"), nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	as := func(user string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "x-user", user)
	}
	check := func(user string) grpc_health_v1.HealthCheckResponse_ServingStatus {
		t.Helper()
		ctx, cancel := context.WithTimeout(as(user), patience)
		defer cancel()
		answer, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatalf("as %s: %v", user, err)
		}
		return answer.Status
	}
	w.await("an answer by laptop", func() bool { return check("ada") == notServing })
	watch, err := client.Watch(as("ada"), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := watch.Recv(); err != nil || first.Status != notServing {
		t.Fatalf("the stream begins with %v, %v", first, err)
	}
	begun := conns.Load()
	for range 20 {
		if is := check("bob"); is != serving {
			t.Errorf("bob's call: %v", is)
		}
		if is := check("ada"); is != notServing {
			t.Errorf("ada's call: %v", is)
		}
	}
	if n := conns.Load() - begun; n != 0 {
		t.Errorf("%d more connections", n)
	}
	laptop.SetServingStatus("", serving)
	if next, err := watch.Recv(); err != nil || next.Status != serving {
		t.Errorf("the stream goes on with %v, %v", next, err)
	}
	local.Stop()
	if _, err := watch.Recv(); err == nil {
		t.Error("the stream goes on without a server")
	}
	b.terminate()
	w.assertGivenBack(before)
}
