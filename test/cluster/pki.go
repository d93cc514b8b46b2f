//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is the cluster's certificate authority. Its certificates live for a year, longer than any
// cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// frontProxy is the API server's name to the servers behind it.
const frontProxy = "front-proxy-client"

const certificateLife = 365 * 24 * time.Hour

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bridge-cluster"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(certificateLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key, pemBlock("CERTIFICATE", der)}, nil
}

// loadAuthority reads what save wrote.
func loadAuthority(dir string) (*authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s: ca.crt or ca.key is not PEM", dir)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key.(*ecdsa.PrivateKey), certPEM}, nil
}

func (a *authority) save(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), a.pem, 0o644); err != nil {
		return err
	}
	return saveKey(filepath.Join(dir, "ca.key"), a.key)
}

// issue writes dir/name.crt and dir/name.key: a certificate for user, a member of group, and for the
// hosts it serves, if any.
func (a *authority) issue(dir, name, user, group string, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if group != "" {
		template.Subject.Organization = []string{group}
	}
	for _, h := range hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), pemBlock("CERTIFICATE", der), 0o644); err != nil {
		return err
	}
	return saveKey(filepath.Join(dir, name+".key"), key)
}

func saveKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pemBlock("PRIVATE KEY", der), 0o600)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// makeCredentials writes the cluster's authority, the certificates and kubeconfigs of all components, the
// key that signs ServiceAccount tokens, and the kubeconfig for people.
func (c *cluster) makeCredentials() error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	dir := c.dir("pki")
	if err := ca.save(dir); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := saveKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "sa.pub"), pemBlock("PUBLIC KEY", public), 0o644); err != nil {
		return err
	}
	err = ca.issue(dir, "apiserver", "kube-apiserver", "", c.apiAddress(), c.serviceAddress(1), "127.0.0.1", "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	if err := ca.issue(dir, "apiserver-kubelet-client", "kube-apiserver", "system:masters"); err != nil {
		return err
	}
	front, err := newAuthority() // of its own, so that no certificate of the cluster's passes for the API server's
	if err != nil {
		return err
	}
	if err := errors.Join(front.save(filepath.Join(dir, "front-proxy")), front.issue(filepath.Join(dir, "front-proxy"), "client", frontProxy, "")); err != nil {
		return err
	}
	for _, who := range []struct{ file, user, group string }{
		{c.kubeconfig(), "kubernetes-admin", "system:masters"},
		{c.dir("controller-manager.kubeconfig"), "system:kube-controller-manager", ""},
		{c.dir("scheduler.kubeconfig"), "system:kube-scheduler", ""},
		{c.dir("proxy.kubeconfig"), "system:kube-proxy", ""},
	} {
		if err := c.writeKubeconfig(ca, who.file, who.user, who.group); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes a kubeconfig with a certificate of its own in it.
func (c *cluster) writeKubeconfig(ca *authority, file, user, group string) error {
	name := filepath.Base(file)
	if err := ca.issue(c.dir("pki"), name, user, group); err != nil {
		return err
	}
	cert, err := os.ReadFile(c.dir("pki", name+".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.dir("pki", name+".key"))
	if err != nil {
		return err
	}
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: https://%[2]s:%[3]d
    certificate-authority-data: %[4]s
users:
- name: %[1]s-%[5]s
  user:
    client-certificate-data: %[6]s
    client-key-data: %[7]s
contexts:
- name: %[1]s
  context:
    cluster: %[1]s
    user: %[1]s-%[5]s
current-context: %[1]s
`, c.Name, c.apiAddress(), apiPort, base64.StdEncoding.EncodeToString(ca.pem), user,
		base64.StdEncoding.EncodeToString(cert), base64.StdEncoding.EncodeToString(key))
	return os.WriteFile(file, []byte(content), 0o600)
}
