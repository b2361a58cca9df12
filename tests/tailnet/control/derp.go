// A DERP relay and a STUN server beside the control server. Daemons settle in milliseconds
// when both answer, and in seconds when they don't.

package main

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const derpRegion = 900

// serveDERP starts both and returns the map that leads daemons to them. The
// map tells daemons not to verify the relay's certificate, so they need no
// settings of their own.
func serveDERP(cert *tls.Certificate) (*tailcfg.DERPMap, error) {
	stun := stunserver.New(context.Background())
	address := listenAddress.String()
	if err := stun.Listen(address + ":0"); err != nil {
		return nil, err
	}
	go stun.Serve()

	ln, err := net.Listen("tcp", address+":0")
	if err != nil {
		return nil, err
	}
	relay := derpserver.New(key.NewNode(), logger.Discard)
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(relay))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	server := &http.Server{
		Handler:  mux,
		ErrorLog: log.New(logger.FuncWriter(logger.Discard), "", 0),
		// DERP takes over an HTTP/1.1 connection.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	go server.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{*cert}}))

	return &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions: map[int]*tailcfg.DERPRegion{
			derpRegion: {
				RegionID:   derpRegion,
				RegionCode: "test",
				RegionName: "Loopback",
				Nodes: []*tailcfg.DERPNode{{
					Name:             "test-1",
					RegionID:         derpRegion,
					HostName:         address,
					IPv4:             address,
					IPv6:             "none",
					DERPPort:         ln.Addr().(*net.TCPAddr).Port,
					STUNPort:         stun.LocalAddr().(*net.UDPAddr).Port,
					STUNTestIP:       address,
					InsecureForTests: true,
				}},
			},
		},
	}, nil
}
