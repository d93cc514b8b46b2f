//go:build unix

package swap

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

var orders = kube.Target{Kind: kube.Deployment, Name: "orders"}

func openSession(t *testing.T, k *kube.Client) (*Session, string) {
	t.Helper()
	s, note, err := OpenSession(k, orders)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, note
}

func sessionFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(os.Getenv("XDG_STATE_HOME"), "bridge", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What one bridge keeps the next one finds, and one alone holds it.
func TestSessionIsKeptUntilItIsForgotten(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	k, err := kube.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	plan := ordersPlan(t)
	s, _ := openSession(t, k)
	s.Close()
	if files := sessionFiles(t); len(files) > 0 {
		t.Errorf("a session that never began has left %q", files)
	}

	s, _ = openSession(t, k)
	if err := s.begin(plan); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenSession(k, orders); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), "process ") {
		t.Errorf("a second one: %v", err)
	}
	if err := s.held(plan.Lease); err != nil {
		t.Fatal(err)
	}
	key := s.Fingerprint()
	s.saved.Epoch = math.MaxUint64 / 2 // a clock that was ahead
	s.Close()

	s, note := openSession(t, k)
	if note != "" || !s.saved.Held || s.saved.Key.Fingerprint() != key {
		t.Errorf("kept: %+v, %s", s.saved, note)
	}
	s.lease = plan.Lease // as TakeUp does
	s.saved.Epoch = math.MaxUint64 / 2
	if err := s.begin(plan); err != nil || s.saved.Epoch != math.MaxUint64/2+1 {
		t.Errorf("the next epoch is %d, %v", s.saved.Epoch, err)
	}
	s.ends()
	s.Close()
	if s, _ = openSession(t, k); s.saved.Held {
		t.Error("held while given back")
	}
	s.forget()
	s.Close()
	if files := sessionFiles(t); len(files) > 0 {
		t.Errorf("forgotten, and left: %q", files)
	}
}

// What cannot be read is not taken up, and said; it does not stand in the way.
func TestSessionOfAnotherKind(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	k, err := kube.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := openSession(t, k)
	path := s.file.Path()
	for content, want := range map[string]string{
		`{"version": 2, "key": "-----BEG`:  "an earlier swap cannot be taken up",
		`{"version": 2, "key": "nothing"}`: "an earlier swap cannot be taken up",
		`{"version": 3}`:                   "of another version",
		`{}`:                               "",
		``:                                 "",
		`{"version": "one"}`:               "an earlier swap cannot be taken up",
		strings.Repeat("x", 100):           "an earlier swap cannot be taken up",
		`{"version": 2, "pins": {"pod/0": "not a fingerprint"}}`: "an earlier swap cannot be taken up",
	} {
		s.Close()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var note string
		if s, note = openSession(t, k); !strings.Contains(note, want) || want == "" && note != "" {
			t.Errorf("%s: %q, want %q", content, note, want)
		}
		if plan, err := s.TakeUp(t.Context(), orders, Options{}, proxypod.Source{}, func(string) {}); plan != nil || err != nil { // without a request
			t.Errorf("%s: taken up: %v, %v", content, plan, err)
		}
		if err := s.begin(ordersPlan(t)); err != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
	s.Close()
	if err := forgetSession(k, orders); err != nil {
		t.Error(err)
	}
	if files := sessionFiles(t); len(files) > 0 {
		t.Errorf("left: %q", files)
	}
}

// Who swaps with a keeper or not at all takes no swap up whose keeper is not there to give it back.
func TestTakingUpAlwaysNeedsItsKeeper(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan := kept(t, kube.Deployment)
	keeper := plan.Keeper.Deployment.DeepCopy()
	target := deploymentWith(plan.target.ObjectMeta)
	target.Spec.Template = plan.target.Template
	objects := map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": target, deploymentPath + keeper.Name: keeper}
	k := apiServer(t, objects, noWrite(t))
	s, _ := openSession(t, k)
	if err := s.begin(plan); err != nil {
		t.Fatal(err)
	}
	plan.Lease.Annotations[proxypod.ClientAnnotation] = s.Fingerprint().String()
	if err := s.held(plan.Lease); err != nil {
		t.Fatal(err)
	}
	takeUp := func(o Options) (*Plan, error) {
		return s.TakeUp(t.Context(), orders, o, proxypod.Source{}, func(string) {})
	}
	always := Options{SelfRestore: SelfRestoreAlways}
	if p, err := takeUp(always); p != nil || s.TakenUp() || hint.CodeOf(err) != hint.ProxyNotReady || !strings.Contains(err.Error(), "its keeper is not ready") {
		t.Errorf("without its keeper: %v", err)
	}
	if p, err := takeUp(Options{}); err != nil || !strings.Contains(p.Restores(k), "its keeper is not ready") {
		t.Errorf("without its keeper, by default: %v", err)
	}
	keeper.Status.ReadyReplicas = 1
	if _, err := takeUp(Options{Init: true}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), "with another --init: false and not true") {
		t.Errorf("its init containers were not run: %v", err)
	}
	if p, err := takeUp(always); err != nil || p == nil || !s.TakenUp() {
		t.Errorf("with its keeper: %v", err)
	}
}
