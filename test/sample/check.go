package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// check makes one connection (many: several) to a server and fails when something is not as TCP has it.
type check struct {
	address, what, name string
	bytes               int64
	connections         int
	hold                bool
}

// checkTimeout bounds a whole check: a hang is a failure.
const checkTimeout = 2 * time.Minute

func (c *check) run(out io.Writer) error {
	f, ok := map[string]func() error{
		"half-close": c.halfClose, "reset": c.reset, "send-reset": c.sendReset, "upload": c.upload, "download": c.download, "many": c.many,
		"datagrams": c.datagrams,
	}[c.what]
	if !ok {
		return fmt.Errorf("unknown check %q", c.what)
	}
	if err := f(); err != nil {
		return fmt.Errorf("%s %s: %w", c.what, c.address, err)
	}
	_, err := fmt.Fprintln(out, c.what, "ok")
	return err
}

func (c *check) dial(order string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", c.address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(checkTimeout)); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(conn, order)
	return conn.(*net.TCPConn), err
}

// halfClose ends one direction and still gets the answer over the other.
func (c *check) halfClose() error {
	conn, err := c.dial("half-close")
	if err != nil {
		return err
	}
	defer conn.Close()
	const text = "said before the end"
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("got %q back, want %q", b, text)
	}
	return nil
}

// reset expects the server's reset to arrive as one, not as an end.
func (c *check) reset() error {
	conn, err := c.dial("reset")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("read: %w, want a reset", err)
	}
	return nil
}

// sendReset resets from this end, after the server is known to be there.
func (c *check) sendReset() error {
	conn, err := c.dial("echo")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return err
	}
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		return err
	}
	return conn.SetLinger(0)
}

func (c *check) upload() error {
	conn, err := c.dial("upload")
	if err != nil {
		return err
	}
	defer conn.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(conn, sum), random(c.bytes)); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if want := hex.EncodeToString(sum.Sum(nil)); strings.TrimSpace(line) != want {
		return fmt.Errorf("the server got %s, sent was %s", line, want)
	}
	return nil
}

func (c *check) download() error {
	conn, err := c.dial(fmt.Sprintf("download %d", c.bytes))
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	sum := sha256.New()
	if _, err := io.CopyN(sum, r, c.bytes); err != nil {
		return err
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); strings.TrimSpace(line) != got {
		return fmt.Errorf("got %s, the server sent %s", got, line)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		return fmt.Errorf("after the last byte: %w, want the end", err)
	}
	return nil
}

// many holds all its connections open at once, and has each of them echo.
func (c *check) many() error {
	conns := make([]*net.TCPConn, c.connections)
	for i := range conns {
		conn, err := c.dial("echo")
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		defer conn.Close()
		conns[i] = conn
	}
	for i, conn := range conns {
		if _, err := fmt.Fprintf(conn, "connection %d\n", i); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	for i, conn := range conns {
		line, err := bufio.NewReader(conn).ReadString('\n')
		if want := fmt.Sprintf("connection %d\n", i); err != nil || line != want {
			return fmt.Errorf("connection %d: got %q, %w", i, line, err)
		}
	}
	if c.hold {
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	return nil
}

// The longest that UDP carries over IPv4, and over IPv6 in a packet of the loopback device.
const (
	maxDatagram  = 65507
	maxDatagram6 = 65488
)

// datagrams expects each datagram back with the server's name before it, and no other. One that is lost is sent again, as
// UDP may lose it.
func (c *check) datagrams() error {
	conn, err := net.Dial("udp", c.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, maxDatagram+1)
	until := time.Now().Add(checkTimeout)
	longest := maxDatagram
	if conn.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		longest = maxDatagram6
	}
	for _, size := range []int64{0, 1, 1400, 30_000, int64(longest - len(c.name)), 2} {
		p, err := io.ReadAll(random(size))
		if err != nil {
			return err
		}
		for {
			if _, err := conn.Write(p); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return err
			}
			n, err := conn.Read(buf)
			if got := string(buf[:n]); err == nil && got == c.name+string(p) {
				break
			}
			if time.Now().After(until) || err == nil && !strings.HasPrefix(string(buf[:n]), c.name) {
				return fmt.Errorf("datagram of %d bytes: got %d, %.20q, %w", size, n, buf[:n], err)
			}
		}
	}
	return nil
}

// sendBytes sends n bytes and a line with their SHA-256.
func sendBytes(w io.Writer, n int64) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum), random(n)); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, hex.EncodeToString(sum.Sum(nil)))
	return err
}

// random is n bytes that do not compress and do not repeat.
func random(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}), n)
}
