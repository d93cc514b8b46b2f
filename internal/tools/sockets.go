package tools

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"bridge/internal/procnet"
)

// states of TCP sockets, as the kernel numbers them.
var states = [...]string{1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT", 7: "CLOSED", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW-SYN-RECV"}

func ss(_ context.Context, s Streams, f *flag.FlagSet, args []string) error {
	only, tcpOnly, udpOnly := f.Bool("l", false, ""), f.Bool("t", false, ""), f.Bool("u", false, "")
	ignore(f, "anpe")
	if err := parse(f, args, 0, 0); err != nil {
		return err
	}
	owners := socketOwners()
	w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "PROTO\tSTATE\tUNREAD\tUNSENT\tLOCAL\tREMOTE\tPROCESS")
	read := 0
	var wrong error
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		tcp := strings.HasPrefix(proto, "tcp")
		if *tcpOnly != *udpOnly && tcp != *tcpOnly {
			continue
		}
		b, err := os.ReadFile("/proc/net/" + proto)
		if err != nil {
			wrong = err // a node without IPv6 has two of them
			continue
		}
		read++
		for line := range strings.Lines(string(b)) {
			sock, ok := procnet.Parse(line)
			if !ok {
				continue
			}
			open := tcp && sock.State == procnet.Listening || !tcp && sock.State == procnet.Closed
			if *only && !open {
				continue
			}
			state := ""
			if tcp && sock.State < len(states) {
				state = states[sock.State]
			} else if open {
				state = "UNCONN"
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", proto, state, sock.Waiting, sock.Sent, sock.Local, sock.Remote, owners[sock.Inode])
		}
	}
	if err := w.Flush(); err != nil || read > 0 {
		return err
	}
	return wrong
}

// socketOwners are the processes that have sockets, by inode: those that may be looked at.
func socketOwners() map[string]string {
	owners := map[string]string{}
	list, _ := processes()
	for _, p := range list {
		dir := fmt.Sprintf("/proc/%d/fd", p.pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			to, _ := os.Readlink(filepath.Join(dir, e.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				program, _, _ := strings.Cut(p.command, " ")
				owners[strings.TrimSuffix(inode, "]")] = fmt.Sprintf("%d %s", p.pid, program)
			}
		}
	}
	return owners
}
