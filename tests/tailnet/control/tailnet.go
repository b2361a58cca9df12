// The tailnet itself: its nodes, keys, logins in progress and policy, all in
// memory, and a number that rises with every change.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/rands"
)

const (
	domain         = "example.test"
	magicDNSSuffix = "tail0000.ts.net"

	keyLifetime = 180 * 24 * time.Hour // of a user's node, unless the policy says otherwise
)

// The owners of nodes: the user, and the stand-in owner of tagged nodes.
var (
	owner       = tailcfg.UserProfile{ID: 1, LoginName: "user@" + domain, DisplayName: "Test User"}
	taggedOwner = tailcfg.UserProfile{ID: 2, LoginName: "tagged-devices", DisplayName: "Tagged Devices"}
)

// policy is what tests set with POST /policy, except for what the doors and
// certificates do.
type policy struct {
	approval           bool
	nodeExpiry         time.Duration // from when a node key is admitted; 0: keyLifetime
	acceptDeadIfValid  bool          // valid_node_with_dead_key: "accept"
	registerDelay      time.Duration
	mapDelay           time.Duration
	apiDelay           time.Duration
	rateLimited        int // registers still to be answered with 429
	rateLimitedSeconds int // their Retry-After
	refuseAll          string
	toFail             int // registers with an auth key still to be answered with failWords
	failWords          string
	refusalStatus      int // HTTP status of refusals; 0: they come in the answer
}

// node is a member of the tailnet.
type node struct {
	id                 tailcfg.NodeID
	machine            key.MachinePublic
	key                key.NodePublic
	disco              key.DiscoPublic
	version            tailcfg.CapabilityVersion
	hostinfo           *tailcfg.Hostinfo
	name               string // FQDN with a trailing dot
	addresses          []netip.Prefix
	endpoints          []netip.AddrPort
	tags               []string
	approved           bool
	ephemeral          bool
	created            time.Time
	expiry             time.Time // zero: never
	expiredByAdmin     time.Time // overrides expiry unless zero
	lastSeen           time.Time
	lastRegisterHadKey bool
	stream             *mapStream // its open map poll, if any
}

// keyExpiry is when its node key expires; zero means never.
func (n *node) keyExpiry() time.Time {
	if !n.expiredByAdmin.IsZero() {
		return n.expiredByAdmin
	}
	return n.expiry
}

func (n *node) expired() bool {
	at := n.keyExpiry()
	return !at.IsZero() && !at.After(time.Now())
}

func (n *node) owner() tailcfg.UserProfile {
	if len(n.tags) > 0 {
		return taggedOwner
	}
	return owner
}

// authURL is an interactive login that waits for a person.
type authURL struct {
	id      string
	url     string
	machine key.MachinePublic
	request tailcfg.RegisterRequest
	done    chan struct{} // closed once it is over
	refused bool
}

type counters struct {
	Total       int `json:"total"`
	WithKey     int `json:"with_key"`
	WithoutKey  int `json:"without_key"`
	RateLimited int `json:"rate_limited"`
}

type keyCounters struct {
	Attempts int `json:"attempts"`
	Uses     int `json:"uses"`
}

type apiRequest struct {
	Path string `json:"path"`
	Body any    `json:"body"`
}

// tailnet is the state of everything. Methods whose name ends in Locked need
// mu to be held; the others take it.
type tailnet struct {
	noiseKey  key.MachinePrivate
	legacyKey key.MachinePrivate
	derpMap   *tailcfg.DERPMap

	mu           sync.Mutex
	seq          int64
	changed      chan struct{} // closed and replaced with every change
	policy       policy
	registers    counters
	keys         map[string]*authKey
	keyCounters  map[string]*keyCounters // of unknown keys too
	oauthClients map[string]oauthClient  // by secret
	oauthTokens  map[string]oauthClient  // by access token
	apiRequests  []apiRequest
	nodes        []*node // by rising id
	lastNodeID   tailcfg.NodeID
	authURLs     []*authURL
}

func newTailnet(derpMap *tailcfg.DERPMap) *tailnet {
	return &tailnet{
		noiseKey:     key.NewMachine(),
		legacyKey:    key.NewMachine(),
		derpMap:      derpMap,
		changed:      make(chan struct{}),
		keys:         map[string]*authKey{},
		keyCounters:  map[string]*keyCounters{},
		oauthClients: map[string]oauthClient{},
		oauthTokens:  map[string]oauthClient{},
	}
}

// changeLocked tells everyone who waits that something changed.
func (t *tailnet) changeLocked() {
	t.seq++
	close(t.changed)
	t.changed = make(chan struct{})
}

// nodeOfLocked finds the node that has this node key on this machine.
func (t *tailnet) nodeOfLocked(nodeKey key.NodePublic, machine key.MachinePublic) *node {
	for _, n := range t.nodes {
		if n.key == nodeKey && n.machine == machine {
			return n
		}
	}
	return nil
}

// nodeOnLocked finds the node of a machine, whatever its node key.
func (t *tailnet) nodeOnLocked(machine key.MachinePublic) *node {
	for _, n := range t.nodes {
		if n.machine == machine {
			return n
		}
	}
	return nil
}

// removeLocked takes a node off the tailnet; its map poll ends.
func (t *tailnet) removeLocked(n *node) {
	t.nodes = slices.DeleteFunc(t.nodes, func(other *node) bool { return other == n })
	n.stream = nil
}

// admitLocked lets a machine in with a new node key: as the node that it was,
// if it was one, otherwise as a new one. k is nil for a login by a person.
func (t *tailnet) admitLocked(machine key.MachinePublic, req *tailcfg.RegisterRequest, k *authKey) *node {
	n := t.nodeOnLocked(machine)
	if n == nil {
		t.lastNodeID++
		host := byte(t.lastNodeID)
		n = &node{
			id:      t.lastNodeID,
			machine: machine,
			addresses: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(t.lastNodeID >> 8), host}), 32),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 14: byte(t.lastNodeID >> 8), 15: host}), 128),
			},
			approved: !t.policy.approval,
			created:  time.Now(),
		}
		t.nodes = append(t.nodes, n)
	}
	n.key = req.NodeKey
	n.tags, n.ephemeral = nil, req.Ephemeral
	switch {
	case k != nil:
		n.tags = slices.Clone(k.tags)
		n.ephemeral = n.ephemeral || k.ephemeral
		n.approved = n.approved || k.preapproved
	case req.Hostinfo != nil:
		n.tags = slices.Clone(req.Hostinfo.RequestTags) // the user owns every tag
	}
	n.expiredByAdmin, n.expiry = time.Time{}, time.Time{}
	if len(n.tags) == 0 { // tagged nodes never expire
		n.expiry = time.Now().Add(cmp.Or(t.policy.nodeExpiry, keyLifetime))
	}
	t.noteHostinfoLocked(n, req.Hostinfo)
	for _, a := range t.authURLs {
		if a.machine == machine && !a.closed() {
			close(a.done) // nobody needs to visit it any more
		}
	}
	return n
}

// noteHostinfoLocked takes over what a node says of itself.
func (t *tailnet) noteHostinfoLocked(n *node, hostinfo *tailcfg.Hostinfo) {
	if hostinfo == nil {
		return
	}
	if n.hostinfo == nil || n.hostinfo.Hostname != hostinfo.Hostname {
		n.name = t.freeNameLocked(n, hostinfo.Hostname)
	}
	netInfo := hostinfo.NetInfo
	if netInfo == nil && n.hostinfo != nil {
		netInfo = n.hostinfo.NetInfo // a register has none
	}
	n.hostinfo = hostinfo.Clone()
	n.hostinfo.NetInfo = netInfo
}

// freeNameLocked is the FQDN for a node with this hostname: with a number
// appended if another one has it.
func (t *tailnet) freeNameLocked(n *node, hostname string) string {
	label := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, hostname), "-")
	if label == "" {
		label = "node"
	}
	for i := 0; ; i++ {
		name := label
		if i > 0 {
			name += "-" + strconv.Itoa(i)
		}
		name += "." + magicDNSSuffix + "."
		if !slices.ContainsFunc(t.nodes, func(other *node) bool { return other != n && other.name == name }) {
			return name
		}
	}
}

// newAuthURLLocked makes the URL at which a person lets a node in, or returns
// the one that this node key waits for already.
func (t *tailnet) newAuthURLLocked(base string, machine key.MachinePublic, req *tailcfg.RegisterRequest) *authURL {
	for _, a := range t.authURLs {
		if a.machine == machine && a.request.NodeKey == req.NodeKey && !a.closed() {
			return a
		}
	}
	id := rands.HexString(12)
	a := &authURL{id: id, url: base + "/a/" + id, machine: machine, request: *req, done: make(chan struct{})}
	t.authURLs = append(t.authURLs, a)
	return a
}

func (a *authURL) closed() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// errNotFound is the cause of an admin's 404.
var errNotFound = errors.New("not found")

func (t *tailnet) authURLLocked(id string) (*authURL, error) {
	for _, a := range t.authURLs {
		if a.id == id {
			return a, nil
		}
	}
	return nil, fmt.Errorf("login %q: %w", id, errNotFound)
}

func (t *tailnet) nodeLocked(id string) (*node, error) {
	for _, n := range t.nodes {
		if strconv.FormatInt(int64(n.id), 10) == id {
			return n, nil
		}
	}
	return nil, fmt.Errorf("node %q: %w", id, errNotFound)
}

// waitBeyond waits until seq is greater than after, or ctx is done.
func (t *tailnet) waitBeyond(ctx context.Context, after int64) {
	for {
		t.mu.Lock()
		seq, changed := t.seq, t.changed
		t.mu.Unlock()
		if seq > after {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
