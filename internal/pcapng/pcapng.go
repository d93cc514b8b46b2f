// Package pcapng writes packets in the format of that name (draft-ietf-opsawg-pcapng), little-endian, as Wireshark and tcpdump read it. A tool in
// the pod writes it, and internal/debug passes it on, whole blocks alone: what it has written can be read wherever it ends.
package pcapng

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

const (
	sectionBlock    = 0x0a0d0d0a
	interfaceBlock  = 1
	statisticsBlock = 5
	packetBlock     = 6
	byteOrderMagic  = 0x1a2b3c4d
	// linkRaw is LINKTYPE_RAW: packets begin with their IP header.
	linkRaw = 101

	optionName       = 2 // of an interface
	optionResolution = 9
	optionFlags      = 2 // of a packet
	optionReceived   = 4 // of statistics
	optionDropped    = 5
)

// MaxBlock bounds a block that is passed on, in bytes: a packet of MaxPacket with what is around it.
const MaxBlock = MaxPacket + 1<<10

// MaxPacket is the most of a packet that is written, in bytes: what a network device hands over at once, 64 KiB with its segments in one, and more.
const MaxPacket = 256 << 10

// Direction is where a packet went, as the format numbers it.
type Direction uint32

// The directions.
const (
	Unknown Direction = iota
	In
	Out
)

// Packet is one that was seen.
type Packet struct {
	Interface int // by number: the n-th that was added, from 0
	Time      time.Time
	Length    int    // what it had, of which Data may be the beginning
	Data      []byte // from its IP header
	Direction Direction
}

// Writer writes to one stream. The zero value with an Out is ready; Begin comes first. It is not for several goroutines at once.
type Writer struct {
	Out   io.Writer
	block []byte
}

// Begin writes the head.
func (w *Writer) Begin(application string) error {
	w.begin(sectionBlock)
	w.u32(byteOrderMagic)
	w.u16(1)
	w.u16(0)
	w.u64(1<<64 - 1) // the length is not known
	w.option(4, []byte(application))
	return w.end(true)
}

// Interface adds one, of which packets have snap bytes at most.
func (w *Writer) Interface(name string, snap int) error {
	w.begin(interfaceBlock)
	w.u16(linkRaw)
	w.u16(0)
	w.u32(uint32(snap))
	w.option(optionName, []byte(name))
	w.option(optionResolution, []byte{9}) // nanoseconds
	return w.end(true)
}

// Packet writes one.
func (w *Writer) Packet(p Packet) error {
	stamp := uint64(p.Time.UnixNano())
	w.begin(packetBlock)
	w.u32(uint32(p.Interface))
	w.u32(uint32(stamp >> 32))
	w.u32(uint32(stamp))
	w.u32(uint32(len(p.Data)))
	w.u32(uint32(p.Length))
	w.padded(p.Data)
	if p.Direction == Unknown {
		return w.end(false)
	}
	w.option(optionFlags, binary.LittleEndian.AppendUint32(nil, uint32(p.Direction)))
	return w.end(true)
}

// Statistics writes how many packets were seen in all, and how many of them were dropped, as those of interface 0.
func (w *Writer) Statistics(at time.Time, received, dropped uint64) error {
	stamp := uint64(at.UnixNano())
	w.begin(statisticsBlock)
	w.u32(0)
	w.u32(uint32(stamp >> 32))
	w.u32(uint32(stamp))
	w.option(optionReceived, binary.LittleEndian.AppendUint64(nil, received))
	w.option(optionDropped, binary.LittleEndian.AppendUint64(nil, dropped))
	return w.end(true)
}

func (w *Writer) u16(n uint16) { w.block = binary.LittleEndian.AppendUint16(w.block, n) }
func (w *Writer) u32(n uint32) { w.block = binary.LittleEndian.AppendUint32(w.block, n) }
func (w *Writer) u64(n uint64) { w.block = binary.LittleEndian.AppendUint64(w.block, n) }

// padded appends b up to a multiple of four bytes.
func (w *Writer) padded(b []byte) {
	w.block = append(w.block, b...)
	for len(w.block)%4 != 0 {
		w.block = append(w.block, 0)
	}
}

func (w *Writer) option(code uint16, value []byte) {
	w.u16(code)
	w.u16(uint16(len(value)))
	w.padded(value)
}

func (w *Writer) begin(kind uint32) {
	w.block = w.block[:0]
	w.u32(kind)
	w.u32(0) // the length, by end
}

// end writes the block, in one call. options says whether it has some.
func (w *Writer) end(options bool) error {
	if options {
		w.u32(0)
	}
	length := uint32(len(w.block) + 4)
	w.u32(length)
	binary.LittleEndian.PutUint32(w.block[4:], length)
	_, err := w.Out.Write(w.block)
	return err
}

// Whole passes on what Writer has written, as soon as a block is complete. The zero value with an Out is ready.
type Whole struct {
	Out     io.Writer
	Packets int // how many were passed on
	held    []byte
	begun   bool
}

// Write takes the next part of the stream. Its error is that of Out, or of a stream that is not Writer's.
func (w *Whole) Write(b []byte) (int, error) {
	w.held = append(w.held, b...)
	rest := w.held
	for len(rest) >= 8 {
		kind, length := binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
		if length < 12 || length%4 != 0 || length > MaxBlock || !w.begun && kind != sectionBlock {
			return 0, fmt.Errorf("a block of type %#x and %d bytes is none of a capture's", kind, length)
		}
		if int(length) > len(rest) {
			break
		}
		if _, err := w.Out.Write(rest[:length]); err != nil {
			return 0, err
		}
		w.begun = true
		if kind == packetBlock {
			w.Packets++
		}
		rest = rest[length:]
	}
	w.held = append(w.held[:0], rest...)
	return len(b), nil
}
