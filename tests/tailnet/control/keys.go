// Auth keys: what makes one good, and how the service words why one isn't.

package main

import (
	"fmt"
	"slices"
	"strings"

	"tailscale.com/util/rands"
)

// authKey is a key that the tailnet made and has not deleted.
type authKey struct {
	id          string
	reusable    bool
	expired     bool
	revoked     bool
	used        bool
	preapproved bool
	ephemeral   bool
	tags        []string
}

// fault says, in the service's words, why this key lets nobody in; it is empty
// if it does. A nil key is one that the tailnet doesn't know.
func (k *authKey) fault() string {
	switch {
	case k == nil:
		return "invalid key: API key does not exist"
	case k.revoked:
		return fmt.Sprintf("invalid key: API key %s not valid", k.id)
	case k.expired:
		return "authkey expired"
	case k.used && !k.reusable:
		return "authkey already used"
	}
	return ""
}

// tagFault says why a node that may have the tags permitted can't have those
// that it asks for; it is empty if it can.
func tagFault(requested, permitted []string) string {
	var refused []string
	for _, tag := range requested {
		if !slices.Contains(permitted, tag) {
			refused = append(refused, tag)
		}
	}
	if refused == nil {
		return ""
	}
	return fmt.Sprintf("requested tags [%s] are invalid or not permitted", strings.Join(refused, " "))
}

// addKeyLocked makes a key of the given kind and returns its text. The prefix
// tells this service's own keys from those that the API makes.
func (t *tailnet) addKeyLocked(prefix string, k authKey) string {
	k.id = rands.HexString(12)
	text := prefix + k.id + "-" + rands.HexString(48)
	t.keys[text] = &k
	t.keyCountersLocked(text)
	return text
}

// keyCountersLocked returns the counters of a key, known or not.
func (t *tailnet) keyCountersLocked(text string) *keyCounters {
	c := t.keyCounters[text]
	if c == nil {
		c = &keyCounters{}
		t.keyCounters[text] = c
	}
	return c
}
