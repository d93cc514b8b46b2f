package main

import (
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/member"
)

// Two laptops have a tunnel each, and each the requests that its filter says, one by one on the same connection; who comes, leaves or is away
// costs the other nothing.
func TestEachMemberHasItsRequests(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := stand(t, choose(t, false, "x-user=ada"), true)
		caller := s.asker(h2)
		s.ask(caller, "ada", "laptop")
		s.ask(caller, "bob", "original")

		adas := s.proxy.members.seats[0].server

		// Bob asks for a tunnel before the proxy knows him.
		key := newKey(t)
		bobs := named(t, "127.0.0.1:0", "bob's", s.got)
		bob, cut := s.connect(key, at(bobs), true)
		ada := member.Share{Client: s.proxy.members.seats[0].Client, Filter: choose(t, false, "x-user=ada").Filter}
		s.share(ada, member.Share{Client: key.Fingerprint(), Filter: choose(t, false, "x-user=bob").Filter})
		if err := bob.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.takes(true)
		for range 3 {
			s.ask(caller, "ada", "laptop")
			s.ask(caller, "bob", "bob's")
			s.ask(caller, "eve", "original")
		}

		s.laptop.SetReady(false)
		s.takes(false)
		s.ask(caller, "ada", "original")
		s.ask(caller, "bob", "bob's")
		s.laptop.SetReady(true)
		s.takes(true)
		s.ask(caller, "ada", "laptop")

		// A file that lets two have the same changes nothing.
		s.share(ada, member.Share{Client: key.Fingerprint(), Filter: ada.Filter})
		for s.unread() == "" {
			time.Sleep(time.Millisecond)
		}
		s.ask(caller, "bob", "bob's")

		// The first leaves before the second, and is not let in again.
		s.share(member.Share{Client: key.Fingerprint(), Filter: choose(t, false, "x-user=bob").Filter})
		for s.members() > 1 {
			time.Sleep(time.Millisecond)
		}
		s.ask(caller, "ada", "original")
		s.ask(caller, "bob", "bob's")
		for adas.Connected() {
			time.Sleep(time.Millisecond)
		}
		cut()
		s.takes(false)
		s.ask(caller, "bob", "original")
		if !s.proxy.taken() {
			t.Error("not ready without laptops")
		}
		caller.CloseIdleConnections()
	}
}

func at(address string) *atomic.Pointer[string] {
	p := &atomic.Pointer[string]{}
	p.Store(&address)
	return p
}

// unread is why the file could not be read last.
func (s *standing) unread() string {
	s.proxy.members.mu.Lock()
	defer s.proxy.members.mu.Unlock()
	return s.proxy.members.failed
}

func (s *standing) members() int {
	s.proxy.members.mu.Lock()
	defer s.proxy.members.mu.Unlock()
	return len(s.proxy.members.seats)
}

// A note is for all of them, and for who comes later.
func TestNotesAreForAllMembers(t *testing.T) {
	s := stand(t, choose(t, false, "x-user=ada"), true)
	s.proxy.members.note("port 1: TLS")
	if note := <-s.notes; note != "port 1: TLS" {
		t.Errorf("told %q", note)
	}
	key := newKey(t)
	s.share(s.proxy.members.seats[0].Share, member.Share{Client: key.Fingerprint(), Filter: choose(t, false, "x-user=bob").Filter})
	bob, _ := s.connect(key, at("127.0.0.1:1"), true)
	if err := bob.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if note := <-s.notes; note != "port 1: TLS" {
		t.Errorf("who came later is told %q", note)
	}
}
