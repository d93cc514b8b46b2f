package tools

import (
	"context"
	"flag"
	"io"
	"strconv"

	"golang.org/x/net/bpf"

	"bridge/internal/pcapng"
)

// Capture is the name, beside the tools', of what bridge capture runs, with a port behind it. It ends when its input does.
const Capture = "capture"

// CaptureDenied is its exit code where it may not see packets.
const CaptureDenied = 3

func captureTool() tool {
	return tool{"capture PORT", "packets from and to a TCP and UDP port of the pod, as pcapng", func(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error {
		if err := parse(f, args, 1, 1); err != nil {
			return err
		}
		port, err := strconv.ParseUint(f.Arg(0), 10, 16)
		if err != nil || port == 0 {
			return errUsage
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		go func() { // until the input ends, which at the latest is when this process does
			_, _ = io.Copy(io.Discard, s.In)
			stop()
		}()
		return capture(ctx, s, uint16(port))
	}}
}

// portFilter lets pass what goes to or comes from a TCP or UDP port, given packets from their IP header: but the first no parts of a packet in several,
// and no IPv6 packets with headers between.
func portFilter(port uint16) []bpf.Instruction {
	const tcp, udp = 6, 17
	p := uint32(port)
	// Each Skip counts the instructions that are passed over.
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x40, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 10, SkipFalse: 18},
		// 4: of IPv4.
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcp, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: udp, SkipFalse: 15},
		bpf.LoadAbsolute{Off: 6, Size: 2}, // where in the whole it belongs
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 13},
		bpf.LoadMemShift{Off: 0}, // the header's length
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: p, SkipTrue: 9},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: p, SkipTrue: 7, SkipFalse: 8},
		// 14: of IPv6.
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcp, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: udp, SkipFalse: 5},
		bpf.LoadAbsolute{Off: 40, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: p, SkipTrue: 2},
		bpf.LoadAbsolute{Off: 42, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: p, SkipFalse: 1},
		// 21 and 22.
		bpf.RetConstant{Val: pcapng.MaxPacket},
		bpf.RetConstant{Val: 0},
	}
}
