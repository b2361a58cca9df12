// What is pure in the control server: which keys are good, what a register
// comes to, and how long a node key lives.

package main

import (
	"slices"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func TestKeyFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		key  *authKey
		want string
	}{
		{"unknown or deleted", nil, "invalid key: API key does not exist"},
		{"new", &authKey{id: "k1"}, ""},
		{"used", &authKey{id: "k1", used: true}, "authkey already used"},
		{"used, reusable", &authKey{id: "k1", used: true, reusable: true}, ""},
		{"expired", &authKey{id: "k1", expired: true}, "authkey expired"},
		{"expired, reusable", &authKey{id: "k1", expired: true, reusable: true}, "authkey expired"},
		{"revoked", &authKey{id: "k1", revoked: true}, "invalid key: API key k1 not valid"},
	} {
		if got := c.key.fault(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestTagFaults(t *testing.T) {
	for _, c := range []struct {
		requested, permitted []string
		want                 string
	}{
		{nil, nil, ""},
		{nil, []string{"tag:x"}, ""},
		{[]string{"tag:x"}, []string{"tag:x", "tag:y"}, ""},
		{[]string{"tag:x"}, nil, "requested tags [tag:x] are invalid or not permitted"},
		{[]string{"tag:x", "tag:y", "tag:z"}, []string{"tag:y"}, "requested tags [tag:x tag:z] are invalid or not permitted"},
	} {
		if got := tagFault(c.requested, c.permitted); got != c.want {
			t.Errorf("%v of %v: %q, want %q", c.requested, c.permitted, got, c.want)
		}
	}
}

func TestRegisterDecisions(t *testing.T) {
	for _, c := range []struct {
		name  string
		claim claim
		want  answer
		text  string
	}{
		{"a new node without a key", claim{}, visitURL, ""},
		{"a new node without a key, asking for tags", claim{tagFault: "tags"}, visitURL, ""},
		{"a new node with a good key", claim{hasKey: true}, admit, ""},
		{"a new node with a dead key", claim{hasKey: true, keyFault: "dead"}, refuse, "dead"},
		{"a new node with a dead key, leniently", claim{hasKey: true, keyFault: "dead", lenient: true}, refuse, "dead"},
		{"a new node with tags that the key hasn't", claim{hasKey: true, tagFault: "tags"}, refuse, "tags"},
		{"a known node without a key", claim{known: true}, welcome, ""},
		{"a known node that asks for tags it hasn't", claim{known: true, tagFault: "tags"}, refuse, "tags"},
		{"a known node with a good key", claim{known: true, hasKey: true}, admit, ""},
		{"a known node with a dead key", claim{known: true, hasKey: true, keyFault: "dead"}, refuse, "dead"},
		{"a known node with a dead key, leniently", claim{known: true, hasKey: true, keyFault: "dead", lenient: true}, welcome, ""},
		{"an expired node without a key", claim{known: true, expired: true}, needsNew, ""},
		{"an expired node with a good key", claim{known: true, expired: true, hasKey: true}, needsNew, ""},
		{"an expired node with a dead key", claim{known: true, expired: true, hasKey: true, keyFault: "dead"}, needsNew, ""},
		{"any key, when all are refused", claim{hasKey: true, refuseAll: "closed"}, refuse, "closed"},
		{"a known node's key, when all are refused", claim{known: true, hasKey: true, refuseAll: "closed", lenient: true}, refuse, "closed"},
		{"a good key, when registering fails", claim{hasKey: true, failure: "locked"}, refuse, "locked"},
		{"a dead key, when registering fails", claim{hasKey: true, keyFault: "dead", failure: "locked"}, refuse, "locked"},
		{"no key, when all keys are refused", claim{known: true, refuseAll: "closed"}, welcome, ""},
	} {
		if got, text := decide(c.claim); got != c.want || text != c.text {
			t.Errorf("%s: %v %q, want %v %q", c.name, got, text, c.want, c.text)
		}
	}
}

func TestNodeKeysLiveAnewWhenAdmitted(t *testing.T) {
	tailnet := newTailnet(nil)
	tailnet.policy.nodeExpiry = 20 * time.Second
	machine := key.NewMachine().Public()
	admit := func(k authKey) node {
		req := &tailcfg.RegisterRequest{NodeKey: key.NewNode().Public(), Hostinfo: &tailcfg.Hostinfo{Hostname: "x"}}
		return *tailnet.admitLocked(machine, req, &k)
	}
	lives := func(n node, want time.Duration) {
		t.Helper()
		if left := time.Until(n.expiry); left > want || left < want-5*time.Second {
			t.Errorf("it lives for %v, want %v", left, want)
		}
	}
	first := admit(authKey{})
	lives(first, 20*time.Second)
	tailnet.nodes[0].expiry = time.Now().Add(-time.Second)
	tailnet.nodes[0].expiredByAdmin = time.Now().Add(-time.Hour)
	if !tailnet.nodes[0].expired() {
		t.Error("it has not expired")
	}
	again := admit(authKey{})
	lives(again, 20*time.Second)
	if again.expired() || again.key == first.key {
		t.Error("the node key is not a new one")
	}
	if again.id != first.id || again.name != first.name || !slices.Equal(again.addresses, first.addresses) {
		t.Errorf("it is another node: %+v, was %+v", again, first)
	}
	tailnet.policy.nodeExpiry = 0
	lives(admit(authKey{}), keyLifetime)
	if tagged := admit(authKey{tags: []string{"tag:x"}}); !tagged.keyExpiry().IsZero() {
		t.Errorf("a tagged node expires: %v", tagged.keyExpiry())
	}
}
