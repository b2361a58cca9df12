// Certificates of the TLS listener: one good one, and the ways in which a real
// one goes wrong. They are made anew at every start.

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"time"
)

// certificates holds one certificate of every kind, and which one is shown.
type certificates struct {
	caPEM []byte
	good  *tls.Certificate
	kinds map[string]*tls.Certificate
	shown atomic.Pointer[tls.Certificate]
}

func newCertificates() (*certificates, error) {
	now := time.Now()
	ca, err := issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "test tailnet CA"},
		NotBefore:             now.AddDate(-1, 0, 0),
		NotAfter:              now.AddDate(1, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return nil, err
	}

	c := &certificates{
		caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]}),
		kinds: map[string]*tls.Certificate{},
	}
	for kind, signer := range map[string]*tls.Certificate{"good": ca, "expired": ca, "wrong-name": ca, "self-signed": nil} {
		template := &x509.Certificate{
			Subject:     pkix.Name{CommonName: "test tailnet control server"},
			NotBefore:   now.AddDate(0, 0, -30),
			NotAfter:    now.AddDate(0, 0, 30),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames:    []string{"localhost"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		}
		switch kind {
		case "expired":
			template.NotAfter = now.AddDate(0, 0, -1)
		case "wrong-name":
			template.DNSNames, template.IPAddresses = []string{"elsewhere.example.test"}, nil
		}
		if c.kinds[kind], err = issue(template, signer); err != nil {
			return nil, err
		}
	}
	c.good = c.kinds["good"]
	c.shown.Store(c.good)
	return c, nil
}

// config is a server's TLS configuration that shows whichever certificate is
// shown at the time of the handshake.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.shown.Load(), nil
		},
		// Otherwise a client could resume a session that began under another certificate.
		SessionTicketsDisabled: true,
	}
}

// show changes the certificate for the connections to come.
func (c *certificates) show(kind string) error {
	cert, ok := c.kinds[kind]
	if !ok {
		return fmt.Errorf("certificate %q: there is good, expired, wrong-name, self-signed", kind)
	}
	c.shown.Store(cert)
	return nil
}

// issue makes a key and a certificate for it, signed by signer, or by itself
// if signer is nil.
func issue(template *x509.Certificate, signer *tls.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 62)); err != nil {
		return nil, err
	}
	parent, parentKey := template, any(key)
	if signer != nil {
		parent, parentKey = signer.Leaf, signer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
