// The listeners that daemons reach the control server by, and what can be
// wrong with a network or a server in front of it.

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The faults that a policy can name.
const (
	faultNone      = "none"
	faultDown      = "down"                // connection refused
	faultHang      = "hang"                // accepts and never answers
	faultReset     = "reset"               // accepts and resets
	fault500       = "500"                 // answers every request with 500
	faultGarbage   = "garbage"             // answers bytes that are not HTTP
	faultSlow      = "slow"                // thinks for 3 s before each answer
	faultDropReply = "drop_register_reply" // registers, and cuts the connection before saying so
)

var faults = []string{faultNone, faultDown, faultHang, faultReset, fault500, faultGarbage, faultSlow, faultDropReply}

// slowness is how long faultSlow waits before each answer.
const slowness = 3 * time.Second

func checkFault(fault string) error {
	if !slices.Contains(faults, fault) {
		return fmt.Errorf("fault %q: there is %s", fault, strings.Join(faults, ", "))
	}
	return nil
}

// A door is a listener on one port that stays its own for good, with faults
// that apply to the connections it lets in. It is a [net.Listener] of those
// that are to be served.
type door struct {
	addr      *net.TCPAddr
	tlsConfig *tls.Config // nil: plain
	served    chan net.Conn

	mu     sync.Mutex
	fault  string
	ln     net.Listener // nil while down
	guests map[*guest]struct{}
}

// newDoor opens a door on a free port of listenAddress.
func newDoor(tlsConfig *tls.Config) (*door, error) {
	addr, err := reservePort()
	if err != nil {
		return nil, err
	}
	d := &door{
		addr:      addr,
		tlsConfig: tlsConfig,
		served:    make(chan net.Conn),
		fault:     faultNone,
		guests:    map[*guest]struct{}{},
	}
	return d, d.openLocked()
}

func (d *door) url() string {
	if d.tlsConfig != nil {
		return "https://" + d.addr.String()
	}
	return "http://" + d.addr.String()
}

// setFault cuts every open connection and lets the fault apply to new ones.
func (d *door) setFault(fault string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fault
	if fault == faultDown && d.ln != nil {
		d.ln.Close()
		d.ln = nil
	}
	d.cutLocked()
	if fault != faultDown && d.ln == nil {
		return d.openLocked()
	}
	return nil
}

func (d *door) currentFault() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fault
}

// cut closes every open connection, those that speak noise too.
func (d *door) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutLocked()
}

func (d *door) cutLocked() {
	for g := range d.guests {
		g.Conn.Close()
	}
	clear(d.guests)
}

// openLocked starts to accept connections. d.mu must be held, or d be new.
func (d *door) openLocked() error {
	ln, err := listenOn(d.addr)
	if err != nil {
		return err
	}
	d.ln = ln
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed by setFault
			}
			d.letIn(conn.(*net.TCPConn))
		}
	}()
	return nil
}

// letIn does to a new connection what the present fault says.
func (d *door) letIn(tcp *net.TCPConn) {
	g := &guest{Conn: tcp, door: d}
	d.mu.Lock()
	d.guests[g] = struct{}{}
	fault := d.fault
	d.mu.Unlock()

	conn := net.Conn(g)
	if d.tlsConfig != nil {
		conn = tls.Server(g, d.tlsConfig)
	}
	switch fault {
	case faultHang:
		// Stays open, unread, until the next fault is set.
	case faultReset, faultDown:
		tcp.SetLinger(0)
		g.Close()
	case faultGarbage:
		go answerGarbage(conn)
	default:
		d.served <- conn
	}
}

// answerGarbage answers the first bytes of a connection (within TLS, if it is
// spoken) with what no HTTP client understands.
func answerGarbage(conn net.Conn) {
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 4096)); err != nil {
		return
	}
	io.WriteString(conn, "\x00\x01\xfe\xff this is not HTTP \x00\r\n\r\n")
}

// Accept, Close and Addr make a door a [net.Listener].
func (d *door) Accept() (net.Conn, error) { return <-d.served, nil }
func (d *door) Close() error              { return nil } // it lives as long as the process
func (d *door) Addr() net.Addr            { return d.addr }

// A guest is a connection that its door can cut.
type guest struct {
	net.Conn
	door *door
}

func (g *guest) Close() error {
	g.door.mu.Lock()
	delete(g.door.guests, g)
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// reservePort binds a free port for the life of the process, without listening
// on it: nobody else can get the port while the door's own listener is closed,
// and connecting to it is refused then.
func reservePort() (*net.TCPAddr, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := sharePort(fd); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: listenAddress.As4()}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	return &net.TCPAddr{IP: listenAddress.AsSlice(), Port: bound.(*unix.SockaddrInet4).Port}, nil
}

// listenOn listens on a port that reservePort holds.
func listenOn(addr *net.TCPAddr) (net.Listener, error) {
	config := net.ListenConfig{
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			if controlErr := raw.Control(func(fd uintptr) { err = sharePort(int(fd)) }); controlErr != nil {
				return controlErr
			}
			return err
		},
	}
	return config.Listen(context.Background(), "tcp4", addr.String())
}

func sharePort(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("SO_REUSEPORT: %w", err)
	}
	return nil
}
