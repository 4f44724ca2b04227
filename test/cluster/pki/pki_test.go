package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"slices"
	"testing"
	"time"
)

func TestIssued(t *testing.T) {
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	trust := func(a *Authority) *x509.CertPool {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(a.PEM()) {
			t.Fatal("authority is no PEM certificate")
		}
		return pool
	}
	for name, tc := range map[string]struct {
		r          Request
		use, notTo x509.ExtKeyUsage
		host, not  string
	}{
		"client": {
			Request{Name: "system:node:n", Organizations: []string{"system:nodes"}},
			x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, "", "",
		},
		"server": {
			Request{Name: "api", IPs: []net.IP{net.ParseIP("10.96.0.1")}, DNS: []string{"kubernetes"}},
			x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth, "10.96.0.1", "10.96.0.2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ca.Issue(tc.r)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(p.Cert, p.Key) // also: the key is the certificate's
			if err != nil {
				t.Fatal(err)
			}
			cert := pair.Leaf
			if cert.Subject.CommonName != tc.r.Name || !slices.Equal(cert.Subject.Organization, tc.r.Organizations) {
				t.Errorf("subject %v", cert.Subject)
			}
			verify := func(a *Authority, use x509.ExtKeyUsage, host string) error {
				_, err := cert.Verify(x509.VerifyOptions{Roots: trust(a), KeyUsages: []x509.ExtKeyUsage{use}, DNSName: host})
				return err
			}
			if err := verify(ca, tc.use, tc.host); err != nil {
				t.Error(err)
			}
			if verify(other, tc.use, tc.host) == nil {
				t.Error("another authority of the same name verifies it")
			}
			if verify(ca, tc.notTo, tc.host) == nil {
				t.Error("good for the other side of a connection too")
			}
			if tc.not != "" && verify(ca, tc.use, tc.not) == nil {
				t.Errorf("good for %s", tc.not)
			}
			if left := time.Until(cert.NotAfter); left < 24*time.Hour || left > 8*24*time.Hour {
				t.Errorf("valid for %v", left)
			}
		})
	}
}

// TestLoadedAuthorityIssues: what a loaded authority signs, the first one's certificate verifies.
func TestLoadedAuthorityIssues(t *testing.T) {
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadAuthority(ca.PEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := loaded.Issue(Request{Name: "late"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: usages}); err != nil {
		t.Error(err)
	}
	if _, err := LoadAuthority(p.Cert, p.Key); err == nil {
		t.Error("a client's certificate became an authority")
	}
}

func TestServiceAccountKeysBelongTogether(t *testing.T) {
	private, public, err := ServiceAccountKeys()
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) []byte {
		block, rest := pem.Decode(b)
		if block == nil || len(rest) > 0 {
			t.Fatalf("not one PEM block: %s", b)
		}
		return block.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(read(private))
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.ParsePKIXPublicKey(read(public))
	if err != nil {
		t.Fatal(err)
	}
	if !key.(*ecdsa.PrivateKey).PublicKey.Equal(want) {
		t.Error("the public key is another one's")
	}
}
