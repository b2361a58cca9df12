// The outer face of the control server: its keys, and the noise channel inside
// which daemons register and ask for the network map.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// frontend serves a tailnet to daemons, through doors.
type frontend struct {
	tailnet *tailnet
	doors   []*door
}

// caller is who speaks in a noise channel.
type caller struct {
	machine key.MachinePublic
	door    *door
	conn    net.Conn // the noise channel itself
}

type callerKey struct{}

func callerOf(ctx context.Context) caller { return ctx.Value(callerKey{}).(caller) }

// setFault sets a fault at all doors.
func (f *frontend) setFault(fault string) error {
	for _, d := range f.doors {
		if err := d.setFault(fault); err != nil {
			return err
		}
	}
	return nil
}

// serveOn serves what comes through a door.
func (f *frontend) serveOn(d *door) {
	noiseKey, legacyKey := f.tailnet.noiseKey, f.tailnet.legacyKey

	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(tailcfg.OverTLSPublicKeyResponse{
			LegacyPublicKey: legacyKey.Public(),
			PublicKey:       noiseKey.Public(),
		})
	})
	mux.HandleFunc("GET /a/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Complete or refuse this login with POST /auth-urls/%s/… at the admin endpoint.\n", r.PathValue("id"))
	})
	mux.HandleFunc("POST /ts2021", func(w http.ResponseWriter, r *http.Request) {
		conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, noiseKey, nil)
		if err != nil {
			log.Printf("noise: %v", err)
			return
		}
		defer conn.Close()
		var inner http2.Server
		inner.ServeConn(conn, &http2.ServeConnOpts{
			Context: context.WithValue(context.Background(), callerKey{}, caller{conn.Peer(), d, conn}),
			Handler: faulty(d, f.inner()),
		})
	})

	server := &http.Server{
		Handler:  faulty(d, mux),
		ErrorLog: log.New(logger.FuncWriter(logger.Discard), "", 0), // handshakes that tests make fail
	}
	go server.Serve(d)
}

// inner serves what daemons ask for inside the noise channel.
func (f *frontend) inner() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", f.tailnet.serveRegister)
	mux.HandleFunc("POST /machine/map", f.tailnet.serveMap)
	mux.HandleFunc("POST /machine/update-health", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// faulty applies those faults of a door that show in its answers.
func faulty(d *door, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch d.currentFault() {
		case fault500:
			http.Error(w, "internal server error", http.StatusInternalServerError)
			return
		case faultSlow:
			if !pause(r.Context(), slowness) {
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// pause waits for d, and reports whether ctx was still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
