//go:build linux

package tools

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func run(t *testing.T, in string, args ...string) (out, wrong string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = Run(t.Context(), args, Streams{strings.NewReader(in), &o, &e})
	return o.String(), e.String(), code
}

func want(t *testing.T, code int, words string, args ...string) {
	t.Helper()
	out, wrong, got := run(t, "", args...)
	if got != code || !strings.Contains(out+wrong, words) {
		t.Errorf("%q: exit code %d, want %d, with %q:\n%s%s", args, got, code, words, out, wrong)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("text\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	want(t, 0, "file\nlink\n", "ls", dir)
	want(t, 0, "link -> nowhere", "ls", "-l", dir)
	want(t, 0, fmt.Sprintf("-rw-r----- %d:%d 5 ", os.Getuid(), os.Getgid()), "ls", "-l", path)
	want(t, 1, "no such file", "ls", path+"2", path)
	want(t, 0, "link -> nowhere", "ls", dir, "-la")
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	want(t, 0, "file\nlink\n", "ls", "-t", dir)
	want(t, 0, "link\nfile\n", "ls", "-tr", dir)
	want(t, 0, "link\nfile\n", "ls", "-r", dir)
	want(t, 1, "-la: no such file", "ls", "--", "-la")
	want(t, 2, "not defined: -q", "ls", "-lq", dir)
	want(t, 0, "text\n", "cat", path)
	want(t, 1, "no such file", "cat", path+"2", path)
	want(t, 1, "no such file or directory\ncat: open", "cat", path+"2", path+"3")
	if out, _, code := run(t, "from stdin", "cat"); out != "from stdin" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	want(t, 2, "there are cat, curl", "vim")
	want(t, 2, "usage: ls", "ls", "-q")
	want(t, 2, "usage: ps", "ps", "1")
	want(t, 2, "usage: ps", "ps", "")
	for _, flags := range []string{"auxww", "axf", "-aux", "-ef"} {
		want(t, 0, "PARENT", "ps", flags)
	}
	want(t, 0, "http-probe [-timeout", "help")
}

// What others have named is shown without what a terminal would act on.
func TestNamesAreOnlyText(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a\x1b]0;b\nc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BRIDGE_TEST_SEEN", "\x1b[2Jyes")
	cmd := exec.Command("sh", "-c", "echo; read x", "\x1b]0;d")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = out.Read(make([]byte, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	for _, c := range []struct {
		args  []string
		words string
	}{{[]string{"ls", dir}, "a]0;bc\n"}, {[]string{"ls", "-l", dir}, "a]0;bc\n"}, {[]string{"env"}, "BRIDGE_TEST_SEEN=[2Jyes\n"}, {[]string{"ps", "aux"}, "read x ]0;d\n"}} {
		out, _, _ := run(t, "", c.args...)
		if !strings.Contains(out, c.words) || strings.Contains(out, "\x1b") {
			t.Errorf("%q: %q", c.args, out)
		}
	}
	name := dnsmessage.MustNewName("\x1b[2J.shop.")
	var shown bytes.Buffer
	_, err = show(&shown, dnsmessage.Message{Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeCNAME}, Body: &dnsmessage.CNAMEResource{CNAME: name}}}}, "here")
	if err != nil || strings.Contains(shown.String(), "\x1b") || strings.Count(shown.String(), "[2J.shop.") != 2 {
		t.Errorf("%v: %q", err, shown.String())
	}
}

// Ctrl-C ends what nothing else would: a FIFO without a writer, a read of what nobody types.
func TestAToolThatHangsIsInterrupted(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"cat", fifo}, {"cat"}} {
		in, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan int, 1)
		go func() { ended <- Run(ctx, args, Streams{in, io.Discard, io.Discard}) }()
		cancel()
		select {
		case code := <-ended:
			if code != interrupted {
				t.Errorf("%q: %d", args, code)
			}
		case <-time.After(time.Minute):
			t.Errorf("%q goes on", args)
		}
		_ = w.Close()
	}
	// What waits to open it is let go.
	if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil {
		_ = f.Close()
	}
}

// A tool that waits ends with who has started it; one that has its answer does not wait for that.
func TestAnAttendedToolEndsWithItsInput(t *testing.T) {
	in, end := io.Pipe()
	defer end.Close()
	ended := make(chan int, 1)
	go func() {
		ended <- Run(t.Context(), []string{Attended, "nc", "-l", "0"}, Streams{in, io.Discard, io.Discard})
	}()
	_ = end.Close()
	select {
	case code := <-ended:
		if code != interrupted {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	open, still := io.Pipe()
	defer still.Close()
	var out bytes.Buffer
	if code := Run(t.Context(), []string{Attended, "ls", "/"}, Streams{open, &out, io.Discard}); code != 0 || !strings.Contains(out.String(), "proc") {
		t.Errorf("exit code %d, %q", code, out.String())
	}
}

func TestProcesses(t *testing.T) {
	want(t, 0, strings.Join(os.Args, " "), "ps")
	t.Setenv("BRIDGE_TEST_SEEN", "yes")
	want(t, 0, "BRIDGE_TEST_SEEN=yes", "env")
	cmd := exec.Command("sh", "-c", "echo; read x")
	cmd.Env = []string{"ITS=own"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = out.Read(make([]byte, 1)) // it is no longer the test, about to be another
	}
	if err != nil {
		t.Fatal(err)
	}
	want(t, 0, "ITS=own\n", "env", fmt.Sprint(cmd.Process.Pid))
	_ = in.Close()
	_ = cmd.Wait()
	want(t, 1, "no such", "env", fmt.Sprint(cmd.Process.Pid))
	want(t, 2, "usage", "env", "x")
}

func TestSockets(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		out, _, code := run(t, "", "ss", "-l")
		found := false
		for line := range strings.Lines(out) {
			found = found || strings.Contains(line, "LISTEN") && strings.Contains(line, ln.Addr().String()) && strings.Contains(line, fmt.Sprintf("%d %s", os.Getpid(), os.Args[0]))
		}
		if !found || code != 0 {
			t.Errorf("%s is not there:\n%s", ln.Addr(), out)
		}
		_ = ln.Close()
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, args := range [][]string{{"ss"}, {"ss", "-lunp"}, {"ss", "-tua"}, {"ss", "-tulpen"}} {
		want(t, 0, conn.LocalAddr().String(), args...)
	}
	if out, _, code := run(t, "", "ss", "-tlnp"); code != 0 || strings.Contains(out, "udp") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestHTTP(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/bad":
			w.WriteHeader(503)
		case "/moved":
			http.Redirect(w, r, "/to", http.StatusFound)
		case "/none":
			w.WriteHeader(404)
		case "/circle":
			http.Redirect(w, r, "/circle", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
		case "/hangs":
			<-r.Context().Done()
		default:
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %q %s", r.Method, r.Host, r.Header.Get("X-User"), b, r.UserAgent())
		}
	}))
	defer server.Close()
	want(t, 0, `GET shop ada "" bridge-tools`, "curl", "-k", "-H", "X-User: ada", "-H", "Host: shop", server.URL)
	want(t, 0, `POST`, "curl", "-k", "-d", "x=1", server.URL)
	want(t, 0, "HTTP/1.1 503", "curl", "-k", "-i", server.URL+"/bad")
	want(t, 0, "> PUT / HTTP", "curl", "-k", "-v", "-X", "PUT", server.URL)
	want(t, 0, "* connected to 127.0.0.1:", "curl", "-kv", server.URL)
	want(t, 0, "> GET /to HTTP", "curl", "-kvL", server.URL+"/moved")
	for code, url := range map[string]string{"404": server.URL + "/none", "000": "127.0.0.1:1"} {
		if out, _, _ := run(t, "", "curl", "-skf", "-w", "%{http_code}", url); out != code {
			t.Errorf("%s: %q, want %s", url, out, code)
		}
	}
	if _, wrong, _ := run(t, "", "curl", "-kv", server.URL); strings.Contains(wrong, "Accept-Encoding") {
		t.Errorf("what is not sent is shown:\n%s", wrong)
	}
	want(t, 0, "\n503 ", "curl", "-sk", "-w", `\n%{http_code} %{time_total}`, server.URL+"/bad")
	if _, wrong, code := run(t, "", "curl", "-v", "--connect-timeout", "5", "127.0.0.1:1"); code != 1 || strings.Contains(wrong, "> GET") {
		t.Errorf("%q, %d", wrong, code)
	}
	want(t, 0, `PUT 127.0.0.1`, "curl", "-skXPUT", server.URL)
	want(t, 0, "Location: /to", "curl", "-sk", "-I", server.URL+"/moved")
	want(t, 0, "GET ", "curl", "-skL", server.URL+"/moved")
	for _, flags := range []string{"-skLi", "-skLv"} {
		want(t, 0, "302 Found", "curl", flags, server.URL+"/moved")
	}
	want(t, 1, "ten redirects", "curl", "-skL", server.URL+"/circle")
	for _, flag := range []string{"-X", "-d", "-o", "-H", "-m"} {
		want(t, 2, "needs an argument", "curl", server.URL, flag)
	}
	want(t, 22, "status 503", "curl", server.URL+"/bad", "-sfk")
	file := filepath.Join(t.TempDir(), "answer")
	want(t, 0, "", "curl", "-sko", file, server.URL)
	if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), "GET ") {
		t.Errorf("%q, %v", b, err)
	}
	want(t, 22, "status 503", "curl", server.URL+"/bad", "-sfk", "-o", file)
	if b, err := os.ReadFile(file); err != nil || len(b) == 0 {
		t.Errorf("a request that failed leaves %q, %v", b, err)
	}
	want(t, 1, "certificate", "curl", server.URL)
	want(t, 1, "Client.Timeout", "curl", "-k", "-m", "0.05", server.URL+"/hangs")
	want(t, 2, "want NAME: VALUE", "curl", "-H", "x", server.URL)
	want(t, 0, "status 200", "http-probe", "-timeout", "30s", server.URL)
	want(t, 1, "status 503", "http-probe", server.URL+"/bad")
	want(t, 0, "status 302", "http-probe", server.URL+"/away")
	want(t, 1, "failure after", "http-probe", "-timeout", "50ms", server.URL+"/hangs")
	want(t, 1, "refused", "http-probe", "127.0.0.1:1")
}

func TestNetcat(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(conn) // until the half-close
			_, _ = fmt.Fprintf(conn, "got %s", b)
			_ = conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	if out, wrong, code := run(t, "hello", "nc", "127.0.0.1", port); out != "got hello" || code != 0 {
		t.Errorf("%q %q %d", out, wrong, code)
	}
	want(t, 0, "open", "nc", "-z", "127.0.0.1", port)
	want(t, 0, "open", "nc", "-zvw5", "127.0.0.1", port)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_, deaf, _ := net.SplitHostPort(silent.LocalAddr().String())
	want(t, 0, "not refused, and no answer", "nc", "-zu", "127.0.0.1", deaf)
	_ = silent.Close()
	want(t, 1, "refused", "nc", "-zu", "127.0.0.1", deaf)
	want(t, 1, "refused", "nc", "-z", "127.0.0.1", "1")
	want(t, 2, "usage", "nc", "127.0.0.1")
	want(t, 2, "usage", "nc")
	want(t, 2, "needs an argument", "nc", "-z", "127.0.0.1", port, "-w")
	want(t, 2, "usage", "nc", "-l", "a", "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range []string{"-l 0", "-lvnp 0"} {
		if code := Run(ctx, append([]string{"nc"}, strings.Fields(args)...), Streams{strings.NewReader(""), io.Discard, io.Discard}); code != interrupted {
			t.Errorf("%s: exit code %d", args, code)
		}
	}
}

// nameserver answers A queries for one name, by UDP cut short.
func nameserver(t *testing.T) string {
	t.Helper()
	answer := func(b []byte, cut bool) []byte {
		var m dnsmessage.Message
		if m.Unpack(b) != nil {
			return nil
		}
		m.Response, m.Truncated = true, cut
		q := m.Questions[0]
		switch {
		case q.Name.String() != "orders.shop.svc.cluster.local.":
			m.RCode = dnsmessage.RCodeNameError
		case !cut && q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 5}, Body: &dnsmessage.AResource{A: [4]byte{10, 96, 1, 2}}}}
		}
		out, _ := m.Pack()
		return out
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close(); _ = conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte("not an answer"), from)
			_, _ = conn.WriteTo(answer(buf[:n], true), from)
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1500)
			if _, err := io.ReadFull(c, b[:2]); err == nil {
				n := binary.BigEndian.Uint16(b)
				if _, err := io.ReadFull(c, b[:n]); err == nil {
					out := answer(b[:n], false)
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
				}
			}
			_ = c.Close()
		}
	}()
	return ln.Addr().String()
}

func TestDig(t *testing.T) {
	server := "@" + nameserver(t)
	want(t, 0, "10.96.1.2", "dig", server, "orders.shop.svc.cluster.local")
	want(t, 0, "by tcp", "dig", server, "orders.shop.svc.cluster.local.")
	if out, _, code := run(t, "", "dig", "+short", server, "orders.shop.svc.cluster.local"); out != "10.96.1.2\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	want(t, 1, ";; NameError", "dig", server, "-x", "10.96.1.2")
	want(t, 1, ";; NameError", "dig", server, "-x", "10.96.1.2", "A")
	want(t, 2, "usage", "dig", server, "-x", "orders")
	want(t, 2, "usage", "dig", server)
	want(t, 1, ";; NameError", "dig", server, "none.shop")
	want(t, 1, ";; Success", "dig", server, "orders.shop.svc.cluster.local", "SRV")
	want(t, 2, "usage", "dig", server, "x", "NONE")
	want(t, 1, ";; Success", "dig", server, "SRV", "+noall", "+answer", "orders.shop.svc.cluster.local")
	want(t, 1, ";; NameError", "dig", server, "mx")
	want(t, 1, "refused", "dig", "@127.0.0.1:1", "x")
	servers, domains := resolvConf("nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n")
	if !slices.Equal(servers, []string{"10.96.0.10"}) || len(domains) != 2 {
		t.Errorf("%q %q", servers, domains)
	}
}

func TestProgramsThatAreNoneOfTheTools(t *testing.T) {
	for name, want := range map[string]string{"netstat": "; ss does such things: ss [-l] [-t] [-u]\n", "vim": "ss\n"} {
		if _, wrong, code := run(t, "", name, "-a"); code != 2 || !strings.HasPrefix(wrong, `no tool "`+name+`": there are cat, `) || !strings.HasSuffix(wrong, want) {
			t.Errorf("%s: %q, %d", name, wrong, code)
		}
	}
	for _, instead := range []string{Instead("wget"), Instead("nslookup"), Instead("telnet"), Instead("top"), Instead("printenv"), Instead("tail"), Instead("find")} {
		if _, ok := table()[instead]; !ok {
			t.Errorf("%q is no tool", instead)
		}
	}
}

func TestPrompt(t *testing.T) {
	dir := t.TempDir()
	// What is typed behind cat is cat's, to the end.
	out, wrong, code := run(t, "help\ncd "+dir+"\n\nls \"/no where\"\nnone\nsh -c 'echo from a program; exit 7'\nexit 9\nls\n", Prompt)
	for _, words := range []string{"tools: cat, curl", dir + "> ", "/no where: no such file", "none: no tool, and no program here"} {
		if !strings.Contains(wrong, words) {
			t.Errorf("no %q in %q", words, wrong)
		}
	}
	if code != 9 || !strings.Contains(out, "from a program") {
		t.Errorf("exit code %d, %q", code, out)
	}
	out, _, code = run(t, "cat\none\ntwo\n", Prompt)
	if out != "one\ntwo\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	if _, wrong, code = run(t, "ls 'x\n", Prompt); code != 2 || !strings.Contains(wrong, "quote") {
		t.Errorf("%q, %d", wrong, code)
	}
	if _, _, code = run(t, "sh -c 'exit 3'\n", Prompt); code != 3 {
		t.Errorf("%d: the last one's exit code", code)
	}
}

func TestSplit(t *testing.T) {
	for line, words := range map[string][]string{
		"":                       nil,
		" a  b\tc\n":             {"a", "b", "c"},
		`a "b c" 'd "e' f\ g ""`: {"a", "b c", `d "e`, "f g", ""},
		`x"y"'z'`:                {"xyz"},
		`'\' "\""`:               {`\`, `"`},
	} {
		if got, err := split(line); err != nil || !slices.Equal(got, words) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}
