package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// askTries is how often a question that is sent over UDP is sent again, and askTime how long each is waited for.
const (
	askTries = 4
	askTime  = 5 * time.Second
)

// ask sends DNS questions as they are: each line is "udp HEX" or "tcp HEX", and gets one of HEX, the answer, or "error: ...".
// server is "host:port"; "" is the first of /etc/resolv.conf. The line "search" gets that file's search list and options, as they are there.
func ask(server string, stdin io.Reader, stdout io.Writer) error {
	if server == "" {
		var err error
		if server, err = nameserver(); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(stdout)
	lines := bufio.NewScanner(stdin)
	for lines.Scan() {
		if lines.Text() == "search" {
			fmt.Fprintln(out, search())
			continue
		}
		network, question, _ := strings.Cut(lines.Text(), " ")
		q, err := hex.DecodeString(question)
		if err != nil {
			return err
		}
		answer, err := askOnce(network, server, q)
		if err != nil {
			fmt.Fprintln(out, "error:", err)
			continue
		}
		fmt.Fprintln(out, hex.EncodeToString(answer))
	}
	return errors.Join(lines.Err(), out.Flush())
}

const resolvConf = "/etc/resolv.conf"

func nameserver() (string, error) {
	b, err := os.ReadFile(resolvConf)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			return net.JoinHostPort(f[1], "53"), nil
		}
	}
	return "", errors.New("no nameserver in " + resolvConf)
}

// search is "DOMAIN ... ndots:N": the words of the lines search and options.
func search() string {
	b, err := os.ReadFile(resolvConf)
	if err != nil {
		return "error: " + err.Error()
	}
	var words []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "options") {
			words = append(words, f[1:]...)
		}
	}
	return strings.Join(words, " ")
}

func askOnce(network, server string, q []byte) (answer []byte, err error) {
	for range askTries {
		if answer, err = exchange(network, server, q); err == nil || network != "udp" {
			return answer, err
		}
	}
	return nil, err
}

func exchange(network, server string, q []byte) ([]byte, error) {
	c, err := net.DialTimeout(network, server, askTime)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(askTime)); err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	if network == "udp" {
		if _, err := c.Write(q); err != nil {
			return nil, err
		}
		n, err := c.Read(b)
		return b[:n], err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return nil, err
	}
	b = b[:binary.BigEndian.Uint16(b)]
	_, err = io.ReadFull(c, b)
	return b, err
}
