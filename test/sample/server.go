package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// server answers HTTP with its name, the orders of check over TCP, and datagrams with its name and what they hold.
type server struct {
	name, http, tcp, udp string
	startup              time.Duration
	health               health
}

func (s *server) run() error {
	time.Sleep(s.startup)
	if s.tcp != "" {
		ln, err := net.Listen("tcp", s.tcp)
		if err != nil {
			return err
		}
		go serveTCP(ln)
	}
	if s.udp != "" {
		conn, err := net.ListenPacket("udp", s.udp)
		if err != nil {
			return err
		}
		go s.serveUDP(conn)
	}
	log.Printf("%s listens on %s", s.name, s.http)
	mux := http.NewServeMux()
	mux.HandleFunc("/look", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(look(r.URL.Query()["path"]))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintln(w, s.name)
	})
	mux.HandleFunc("/upgrade", s.upgrade)
	mux.HandleFunc("/healthz", s.health.http)
	mux.HandleFunc("/grpc.health.v1.Health/Check", s.health.grpc)
	h := http.Server{Addr: s.http, Handler: mux, Protocols: new(http.Protocols)}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	return h.ListenAndServe()
}

// upgrade takes the connection over, as a WebSocket's server does, and says back each line of it behind its name.
func (s *server) upgrade(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	line := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n"
	for err == nil {
		if _, err = rw.WriteString(line); err == nil {
			err = rw.Flush()
		}
		if err == nil {
			line, err = rw.ReadString('\n')
			line = s.name + " " + line
		}
	}
	if !errors.Is(err, io.EOF) {
		log.Printf("%s: %v", conn.RemoteAddr(), err)
	}
}

func (s *server) serveUDP(conn net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := conn.WriteTo(append([]byte(s.name), buf[:n]...), from); err != nil {
			log.Printf("%s: %v", from, err)
		}
	}
}

func serveTCP(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if err := order(conn.(*net.TCPConn)); err != nil {
				log.Printf("%s: %v", conn.RemoteAddr(), err)
			}
		}()
	}
}

// order reads one line and does what it says:
//
//	half-close   read to the end, then answer with what came, and close
//	reset        close with a reset
//	copy         send back what comes, as it comes, and its end
//	upload       read to the end, answer with the SHA-256 of what came
//	download N   send N bytes and their SHA-256
//	echo         send back each line at once
//	log          say so, and log each line
func order(conn *net.TCPConn) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	what, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch what {
	case "half-close":
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		_, err = conn.Write(b)
		return err
	case "reset":
		return conn.SetLinger(0)
	case "copy":
		_, err := io.Copy(conn, r)
		return err
	case "upload":
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintln(conn, hex.EncodeToString(h.Sum(nil)))
		return err
	case "download":
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return err
		}
		return sendBytes(conn, n)
	case "log":
		if _, err := io.WriteString(conn, "log\n"); err != nil {
			return err
		}
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			log.Print(lines.Text())
		}
		return lines.Err()
	case "echo":
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				if err == io.EOF {
					return nil
				}
				return err
			}
			if _, err := io.WriteString(conn, line); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("unknown order %q", line)
}
