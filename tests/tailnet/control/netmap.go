// The network map: what a node is told of itself, its peers and the rules, and
// the long poll by which it hears of changes.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/opt"
	"tailscale.com/util/zstdframe"
)

// keepAliveEvery is how often an idle map poll hears from us; daemons give up
// after two minutes of silence.
const keepAliveEvery = 50 * time.Second

// mapStream is an open map poll. A node has one at most: the newest.
type mapStream struct {
	compress  bool
	lastPeers []byte // what was sent last, to send changes only
	lastSelf  []byte
	peerIDs   []tailcfg.NodeID
}

// serveMap answers POST /machine/map, in all its forms: the long poll, a
// single map, and a node's news about itself.
func (t *tailnet) serveMap(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.MapRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(&req); err != nil {
		http.Error(w, "bad map request: "+err.Error(), http.StatusBadRequest)
		return
	}
	from := callerOf(r.Context())

	t.mu.Lock()
	delay := t.policy.mapDelay
	n := t.nodeOfLocked(req.NodeKey, from.machine)
	// A stream only asks, since version 68; news come in requests of their own.
	if n != nil && !req.ReadOnly && !(req.Stream && req.Version >= 68) {
		n.disco = req.DiscoKey
		n.endpoints = slices.DeleteFunc(req.Endpoints, func(ep netip.AddrPort) bool { return ep.Addr().IsLinkLocalUnicast() })
		t.noteHostinfoLocked(n, req.Hostinfo)
		t.changeLocked()
	}
	if n != nil {
		n.version = req.Version
	}
	t.mu.Unlock()

	if n == nil {
		http.Error(w, "node not found", http.StatusNotFound)
		return
	}
	if !req.Stream && req.OmitPeers {
		w.WriteHeader(http.StatusOK)
		return
	}
	if !pause(r.Context(), delay) {
		return
	}
	stream := &mapStream{compress: req.Compress == "zstd"}
	if !req.Stream {
		t.mu.Lock()
		res := t.nextMapLocked(n, stream)
		t.mu.Unlock()
		stream.send(w, res)
		return
	}
	t.stream(r.Context(), w, n, stream)
}

// stream sends the map and its changes until the daemon goes, asks anew, or
// the node is deleted.
func (t *tailnet) stream(ctx context.Context, w http.ResponseWriter, n *node, stream *mapStream) {
	t.mu.Lock()
	if !slices.Contains(t.nodes, n) {
		t.mu.Unlock()
		http.Error(w, "node not found", http.StatusNotFound)
		return
	}
	n.stream = stream
	t.changeLocked()
	t.mu.Unlock()

	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if n.stream == stream {
			n.stream = nil
			n.lastSeen = time.Now()
		}
		t.changeLocked()
	}()

	keepAlive := time.NewTicker(keepAliveEvery)
	defer keepAlive.Stop()
	for {
		t.mu.Lock()
		if n.stream != stream {
			t.mu.Unlock()
			return
		}
		res := t.nextMapLocked(n, stream)
		changed := t.changed
		t.mu.Unlock()
		if res != nil && stream.send(w, res) != nil {
			return
		}
		select {
		case <-changed:
		case <-keepAlive.C:
			if stream.send(w, &tailcfg.MapResponse{KeepAlive: true}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// send writes one response, framed as daemons read it.
func (s *mapStream) send(w http.ResponseWriter, res *tailcfg.MapResponse) error {
	body, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if s.compress {
		body = zstdframe.AppendEncode(nil, body, zstdframe.FastestCompression)
	}
	frame := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// nextMapLocked is what the stream of node n hears next: everything the first
// time, then what changed, or nil if nothing that concerns it did.
func (t *tailnet) nextMapLocked(n *node, stream *mapStream) *tailcfg.MapResponse {
	self := t.wireNodeLocked(n, true)
	peers := []*tailcfg.Node{}
	var ids []tailcfg.NodeID
	for _, other := range t.nodes {
		if other != n && other.approved && n.approved {
			peers = append(peers, t.wireNodeLocked(other, false))
			ids = append(ids, other.id)
		}
	}
	selfJSON, peersJSON := mustJSON(self), mustJSON(peers)
	first := stream.lastSelf == nil
	selfChanged, peersChanged := !bytes.Equal(selfJSON, stream.lastSelf), !bytes.Equal(peersJSON, stream.lastPeers)
	if !selfChanged && !peersChanged {
		return nil
	}

	res := &tailcfg.MapResponse{UserProfiles: []tailcfg.UserProfile{owner, taggedOwner}}
	if first {
		res.Domain = domain
		res.DERPMap = t.derpMap
		res.DNSConfig = &tailcfg.DNSConfig{Proxied: true, Domains: []string{magicDNSSuffix}}
		res.CollectServices = opt.False
		res.PacketFilter = tailcfg.FilterAllowAll
		res.SSHPolicy = &tailcfg.SSHPolicy{Rules: []*tailcfg.SSHRule{{
			Principals: []*tailcfg.SSHPrincipal{{Any: true}},
			SSHUsers:   map[string]string{"*": "="},
			Action:     &tailcfg.SSHAction{Accept: true},
		}}}
		res.Peers = peers
	}
	if selfChanged {
		res.Node = self
	}
	if !first && peersChanged {
		res.PeersChanged = peers
		for _, id := range stream.peerIDs {
			if !slices.Contains(ids, id) {
				res.PeersRemoved = append(res.PeersRemoved, id)
			}
		}
	}
	stream.lastSelf, stream.lastPeers, stream.peerIDs = selfJSON, peersJSON, ids
	return res
}

// wireNodeLocked is a node as the map shows it, to itself or to a peer.
func (t *tailnet) wireNodeLocked(n *node, self bool) *tailcfg.Node {
	online := n.stream != nil
	wire := &tailcfg.Node{
		ID:                n.id,
		StableID:          stableID(n),
		Name:              n.name,
		User:              n.owner().ID,
		Key:               n.key,
		KeyExpiry:         n.keyExpiry(),
		Expired:           n.expired(),
		Machine:           n.machine,
		DiscoKey:          n.disco,
		Addresses:         n.addresses,
		AllowedIPs:        slices.Clone(n.addresses),
		Endpoints:         n.endpoints,
		Hostinfo:          n.hostinfo.View(),
		Created:           n.created,
		Cap:               n.version,
		Tags:              n.tags,
		Online:            &online,
		MachineAuthorized: n.approved,
	}
	if lastSeen := n.lastSeen; !online && !lastSeen.IsZero() {
		wire.LastSeen = &lastSeen
	}
	for _, route := range n.routes() {
		if route.Bits() == 0 {
			wire.AllowedIPs = append(wire.AllowedIPs, route)
		} else if t.primaryRouterLocked(route) == n {
			wire.AllowedIPs = append(wire.AllowedIPs, route)
			wire.PrimaryRoutes = append(wire.PrimaryRoutes, route)
		}
	}
	if n.hostinfo.NetInfo != nil && n.hostinfo.NetInfo.PreferredDERP != 0 {
		wire.HomeDERP = n.hostinfo.NetInfo.PreferredDERP
		wire.LegacyDERPString = "127.3.3.40:" + strconv.Itoa(wire.HomeDERP)
	}
	if self {
		// Both forms: daemons of different ages look for different ones.
		wire.Capabilities = []tailcfg.NodeCapability{tailcfg.CapabilitySSH}
		wire.CapMap = tailcfg.NodeCapMap{
			tailcfg.CapabilitySSH:            nil,
			tailcfg.NodeAttrCacheNetworkMaps: nil, // on disk; TS_USE_CACHED_NETMAP=false overrides it
		}
	}
	return wire
}

func stableID(n *node) tailcfg.StableNodeID {
	return tailcfg.StableNodeID("n" + strconv.FormatInt(int64(n.id), 10) + "CNTRL")
}

// routes are those that a node advertises; all are approved.
func (n *node) routes() []netip.Prefix {
	if n.hostinfo == nil {
		return nil
	}
	return n.hostinfo.RoutableIPs
}

// primaryRouterLocked is the node that serves a subnet route: the first one
// that advertises it.
func (t *tailnet) primaryRouterLocked(route netip.Prefix) *node {
	for _, n := range t.nodes {
		if slices.Contains(n.routes(), route) {
			return n
		}
	}
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a wire type that can't be marshalled is a bug here
	}
	return b
}
