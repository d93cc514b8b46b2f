package main

import "testing"

// What --allow-cidr takes is what the pod refuses without it.
func TestWhatMayBeAllowed(t *testing.T) {
	for text, want := range map[string]string{
		"169.254.20.10/32": "169.254.20.10/32", "169.254.20.10/24": "169.254.20.0/24", "169.254.0.0/16": "169.254.0.0/16", "fe80::1/64": "fe80::/64",
		"64:ff9b::a9fe:1400/120": "64:ff9b::a9fe:1400/120", "fd00:ec2::254/128": "fd00:ec2::254/128", "168.63.129.16/32": "168.63.129.16/32",
		"169.254.0.0/15": "", "0.0.0.0/0": "", "::/0": "", "10.0.0.0/8": "", "fe00::/8": "", "64:ff9b::/96": "", "127.0.0.1/32": "", "::1/128": "",
		"64:ff9b::7f00:1/128": "", "0.0.0.0/32": "", "::/128": "", "224.0.0.1/32": "", "ff02::1/128": "",
		"::ffff:169.254.20.10/128": "", "169.254.20.10": "", "": "",
	} {
		got, err := parseAllow(text)
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}
