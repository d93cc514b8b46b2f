package tunnel

import (
	"fmt"
	"strings"
	"testing"
)

func TestKeyText(t *testing.T) {
	k := newKey(t)
	text, err := k.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back Key
	if err := back.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	if back.Fingerprint() != k.Fingerprint() {
		t.Error("another fingerprint after a round trip")
	}
	if newKey(t).Fingerprint() == k.Fingerprint() {
		t.Error("two keys are the same")
	}
	for _, bad := range []string{"", "nonsense", strings.Replace(string(text), "PRIVATE KEY", "PUBLIC KEY", 2), string(text[:40])} {
		if err := new(Key).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("read a key from %q", bad)
		}
	}
	if _, err := (Key{}).MarshalText(); err == nil {
		t.Error("wrote the zero key")
	}
	if got := fmt.Sprintf("%v", k); got != "key "+k.Fingerprint().String() {
		t.Errorf("prints as %s", got)
	}
}

func TestFingerprintText(t *testing.T) {
	f := newKey(t).Fingerprint()
	back, err := ParseFingerprint(f.String())
	if err != nil || back != f {
		t.Errorf("%v, %v, want %v", back, err, f)
	}
	for _, bad := range []string{"", "00", strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		if _, err := ParseFingerprint(bad); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
	if (Fingerprint{}).equal(Fingerprint{}) {
		t.Error("the zero fingerprint is nobody's")
	}
}
