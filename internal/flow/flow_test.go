package flow

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A table takes no more flows than maxFlows, goes on with those it has, and takes others when one was silent.
func TestFlowsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = time.Minute
		dialled, answered := make(chan int, 2*maxFlows), make(chan int, 2*maxFlows)
		full := 0
		table := &Table[int]{
			Full: func() { full++ },
			Dial: func(_ context.Context, k int) (net.Conn, error) {
				dialled <- k
				near, far := net.Pipe()
				go func() {
					defer far.Close()
					b := make([]byte, MaxDatagram)
					for {
						n, err := far.Read(b)
						if err != nil {
							return
						}
						if _, err := far.Write(b[:n]); err != nil {
							return
						}
					}
				}()
				return near, nil
			},
			Answer: func(k int, _ []byte) error { answered <- k; return nil },
			Idle:   func(int) time.Duration { return idle },
		}
		ctx, cancel := context.WithCancel(t.Context())
		for k := range maxFlows + 2 {
			table.Put(ctx, k, []byte("x"))
			if (full != 0) != (k >= maxFlows) || full > 1 {
				t.Fatalf("full %d times after %d flows", full, k+1)
			}
		}
		synctest.Wait()
		if len(dialled) != maxFlows || len(answered) != maxFlows {
			t.Fatalf("%d flows, %d answers", len(dialled), len(answered))
		}
		time.Sleep(idle / 2)
		table.Put(ctx, 0, []byte("y"))
		synctest.Wait()
		if len(dialled) != maxFlows || len(answered) != maxFlows+1 {
			t.Fatalf("%d flows, %d answers after one more datagram", len(dialled), len(answered))
		}
		time.Sleep(idle/2 + time.Second)
		table.Put(ctx, maxFlows, []byte("x"))
		synctest.Wait()
		if len(dialled) != maxFlows+1 || len(table.open) != 2 {
			t.Fatalf("%d flows were made, %d are left", len(dialled), len(table.open))
		}
		cancel()
		table.Wait()
	})
}

// Flows of which there are to be few leave the others their room, and have it from one another again.
func TestFewFlowsLeaveRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = time.Second
		var dialled [2]int
		var mu sync.Mutex
		table := &Table[int]{
			Dial: func(_ context.Context, k int) (net.Conn, error) {
				near, far := net.Pipe()
				context.AfterFunc(t.Context(), func() { _ = far.Close() })
				mu.Lock()
				dialled[k%2]++
				mu.Unlock()
				go func() { _, _ = io.Copy(io.Discard, far) }()
				return near, nil
			},
			Answer: func(int, []byte) error { return nil },
			Idle:   func(int) time.Duration { return idle },
			Few:    func(k int) bool { return k%2 == 1 },
		}
		ctx, cancel := context.WithCancel(t.Context())
		put := func(want [2]int) {
			t.Helper()
			for k := range 2 * (maxFlows + 1) {
				table.Put(ctx, k, []byte("x"))
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if dialled != want {
				t.Errorf("dialled %v, want %v", dialled, want)
			}
		}
		put([2]int{maxFlows, maxFew})
		time.Sleep(2 * idle)
		put([2]int{2 * maxFlows, 2 * maxFew})
		cancel()
		table.Wait()
		if table.few.flows != 0 || table.many.flows != 0 {
			t.Errorf("%d and %d are left", table.few.flows, table.many.flows)
		}
	})
}

// What waits in all flows together is bounded, and there is room again when it has gone or its flow has ended.
func TestWhatWaitsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Int64
		dialled := make(chan struct{})
		table := &Table[int]{
			Dial: func(ctx context.Context, k int) (net.Conn, error) {
				select {
				case <-dialled:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				near, far := net.Pipe()
				go func() {
					b := make([]byte, MaxDatagram)
					for {
						n, err := far.Read(b)
						if err != nil {
							return
						}
						sent.Add(int64(n))
					}
				}()
				return near, nil
			},
			Answer: func(int, []byte) error { return nil },
			Idle:   func(int) time.Duration { return time.Minute },
			Few:    func(k int) bool { return k < 0 },
		}
		const most = maxQueued / MaxDatagram
		b := make([]byte, MaxDatagram)
		fill := func(ctx context.Context) {
			for i := range most + 1 {
				table.Put(ctx, i%(most/maxQueue+1), b)
			}
		}
		ending, cancel := context.WithCancel(t.Context())
		for i := range most { // those of a few leave the others their room
			table.Put(ending, -1-i%maxFew, b)
		}
		fill(ending)
		if n, few := table.many.queued.Load(), table.few.queued.Load(); n != maxQueued || few != maxFewQueued {
			t.Errorf("%d and %d bytes wait, want %d and %d", n, few, maxQueued, maxFewQueued)
		}
		cancel()
		table.Wait()
		if n := table.many.queued.Load() + table.few.queued.Load(); n != 0 {
			t.Errorf("%d bytes wait, and no flow is left", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		fill(ctx)
		close(dialled)
		synctest.Wait()
		if n := table.many.queued.Load(); n != 0 || sent.Load() != maxQueued {
			t.Errorf("%d bytes wait, %d are sent", n, sent.Load())
		}
		cancel()
		table.Wait()
	})
}

// A flow that cannot be made refuses what waits for it, and the next datagram begins another.
func TestAFlowThatIsNotMadeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialled, gone := 0, errors.New("gone")
		var refused []string
		table := &Table[int]{
			Dial: func(context.Context, int) (net.Conn, error) {
				dialled++
				time.Sleep(time.Second)
				return nil, gone
			},
			Answer: func(int, []byte) error { return nil },
			Idle:   func(int) time.Duration { return time.Minute },
			Refuse: func(k int, b []byte, err error) {
				if k != 7 || !errors.Is(err, gone) {
					t.Errorf("%d, %v", k, err)
				}
				refused = append(refused, string(b))
			},
		}
		for _, s := range []string{"a", "b"} {
			table.Put(t.Context(), 7, []byte(s))
		}
		table.Wait()
		table.Put(t.Context(), 7, []byte("c"))
		table.Wait()
		if !slices.Equal(refused, []string{"a", "b", "c"}) || dialled != 2 || table.many.queued.Load() != 0 {
			t.Errorf("%q after %d dials, %d bytes wait", refused, dialled, table.many.queued.Load())
		}
	})
}
