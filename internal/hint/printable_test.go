package hint

import "testing"

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"/etc/größe a": "/etc/größe a", "\x1b[2J/etc\r\n": "[2J/etc", "a\u202eb\u009b": "ab"} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
