// Command control is the control server of a test tailnet: real tailscaled
// daemons join it, and an admin endpoint decides what they run into.
//
// It needs no flags. Once it serves, it prints one line of JSON on standard
// output that says where; everything listens on 127.0.0.1, on ports that were
// free. With TAILNET_ADDRESS, an IPv4 address, what daemons reach listens there.
// It ends when standard input does, or on SIGTERM or SIGINT, so it never
// outlives the test that started it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// place is the line that says where everything is.
type place struct {
	URL    string `json:"url"`     // the control server over HTTP
	TLSURL string `json:"tls_url"` // the same one over TLS
	// And once more, by name: daemons don't compare an address with what a
	// certificate is for, so "wrong-name" shows here only.
	NamedTLSURL string `json:"named_tls_url"`
	CAFile      string `json:"ca_file"` // for the daemon's SSL_CERT_FILE
	Admin       string `json:"admin"`   // what tests steer it with; faults never touch it
	API         string `json:"api"`     // the stand-in for Tailscale's API
	Dir         string `json:"dir"`     // removed at the end
}

// listenAddress is where daemons reach everything.
var listenAddress = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	log.SetPrefix("control: ")
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if text := os.Getenv("TAILNET_ADDRESS"); text != "" {
		address, err := netip.ParseAddr(text)
		if err != nil || !address.Is4() {
			return fmt.Errorf("TAILNET_ADDRESS %q: not an IPv4 address", text)
		}
		listenAddress = address
	}
	ended := make(chan string, 2)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { ended <- (<-signals).String() }()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended <- "end of standard input"
	}()

	dir, err := os.MkdirTemp("", "test-tailnet-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	where, err := serve(dir)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(where); err != nil {
		return fmt.Errorf("saying where it serves: %w", err)
	}
	log.Printf("ending: %s", <-ended)
	return nil
}

// serve starts every listener and returns where they are. They end with the
// process.
func serve(dir string) (*place, error) {
	certs, err := newCertificates()
	if err != nil {
		return nil, fmt.Errorf("making certificates: %w", err)
	}
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, certs.caPEM, 0o644); err != nil {
		return nil, err
	}
	derpMap, err := serveDERP(certs.good)
	if err != nil {
		return nil, fmt.Errorf("starting DERP and STUN: %w", err)
	}

	tailnet := newTailnet(derpMap)
	plain, err := newDoor(nil)
	if err != nil {
		return nil, fmt.Errorf("listening for HTTP: %w", err)
	}
	encrypted, err := newDoor(certs.config())
	if err != nil {
		return nil, fmt.Errorf("listening for TLS: %w", err)
	}
	front := &frontend{tailnet: tailnet, doors: []*door{plain, encrypted}}
	front.serveOn(plain)
	front.serveOn(encrypted)

	admin, err := serveLocal((&adminEndpoint{tailnet: tailnet, frontend: front, certs: certs, encrypted: encrypted}).handler())
	if err != nil {
		return nil, err
	}
	api, err := serveLocal((&apiEndpoint{tailnet: tailnet}).handler())
	if err != nil {
		return nil, err
	}
	return &place{
		URL:         plain.url(),
		TLSURL:      encrypted.url(),
		NamedTLSURL: fmt.Sprintf("https://localhost:%d", encrypted.addr.Port),
		CAFile:      caFile,
		Admin:       admin,
		API:         api,
		Dir:         dir,
	}, nil
}

// serveLocal serves handler on a free port of 127.0.0.1 and returns its URL.
func serveLocal(handler http.Handler) (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go http.Serve(ln, handler)
	return "http://" + ln.Addr().String(), nil
}
