package tunnel

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Key is one end's identity for one session: an Ed25519 key with a self-signed certificate.
// The zero Key is not usable; NewKey and UnmarshalText make one. It prints as its fingerprint.
type Key struct {
	cert tls.Certificate
	fp   Fingerprint
}

const keyPEM = "PRIVATE KEY" // PKCS #8

// NewKey makes a key from the system's randomness.
func NewKey() (Key, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("tunnel key: %w", err)
	}
	return keyOf(priv)
}

// keyOf signs the certificate. Nothing in it is ever checked but the public key, so the dates are
// wide enough for every clock.
func keyOf(priv ed25519.PrivateKey) (Key, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "bridge"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		return Key{}, fmt.Errorf("tunnel key: certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return Key{}, fmt.Errorf("tunnel key: certificate: %w", err)
	}
	return Key{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: priv, Leaf: leaf},
		fp:   fingerprintOf(leaf),
	}, nil
}

// Fingerprint is the public half's, safe to publish.
func (k Key) Fingerprint() Fingerprint { return k.fp }

func (k Key) String() string { return "key " + k.fp.String() }

func (k Key) isZero() bool { return k.cert.PrivateKey == nil }

// MarshalText gives the private key as PEM (PKCS #8): keep it in a file of mode 0600.
func (k Key) MarshalText() ([]byte, error) {
	if k.isZero() {
		return nil, errors.New("tunnel key: empty")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("tunnel key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyPEM, Bytes: der}), nil
}

// UnmarshalText reads what MarshalText wrote.
func (k *Key) UnmarshalText(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != keyPEM {
		return fmt.Errorf("tunnel key: no PEM block %q", keyPEM)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("tunnel key: %w", err)
	}
	priv, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return fmt.Errorf("tunnel key: %T, want Ed25519", parsed)
	}
	key, err := keyOf(priv)
	if err != nil {
		return err
	}
	*k = key
	return nil
}

// Fingerprint is the SHA-256 of a key's SubjectPublicKeyInfo (DER). The zero value is nobody's.
type Fingerprint [sha256.Size]byte

func fingerprintOf(cert *x509.Certificate) Fingerprint {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// String is 64 lower-case hex digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText is String as bytes.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is ParseFingerprint.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	parsed, err := ParseFingerprint(string(text))
	if err != nil {
		return err
	}
	*f = parsed
	return nil
}

// equal compares in constant time, and never matches the zero fingerprint.
func (f Fingerprint) equal(g Fingerprint) bool {
	return f != Fingerprint{} && subtle.ConstantTimeCompare(f[:], g[:]) == 1
}

// ParseFingerprint reads what String gives.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	if len(s) != hex.EncodedLen(len(f)) {
		return f, fmt.Errorf("fingerprint %q: %d characters, want %d hex digits", s, len(s), hex.EncodedLen(len(f)))
	}
	if _, err := hex.Decode(f[:], []byte(s)); err != nil {
		return Fingerprint{}, fmt.Errorf("fingerprint %q: %w", s, err)
	}
	return f, nil
}
