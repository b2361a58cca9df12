// Registering: how a daemon gets its node key accepted, with an auth key, by a
// person, or because the tailnet knows it.

package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"strconv"
	"time"

	"tailscale.com/tailcfg"
)

// maxRequest limits what is read of a request.
const maxRequest = 1 << 20

// refusedLogin is what a daemon hears when a person refuses it.
const refusedLogin = "login was refused"

// claim is all that the answer to a register depends on.
type claim struct {
	known     bool   // the node key is that of a node of this machine
	expired   bool   // and has expired
	hasKey    bool   // an auth key came along
	keyFault  string // why the auth key is no good
	tagFault  string // why the tags asked for can't be had
	failure   string // policy: what fails just now, whatever the auth key
	refuseAll string // policy: refuse every auth key with this text
	lenient   bool   // policy: a known node may bring a dead key
}

// answer is what a register comes to.
type answer int

const (
	welcome  answer = iota // it goes on as the node that it is
	admit                  // the auth key lets it in, and counts as used
	needsNew               // its node key has expired: it has to make a new one
	visitURL               // a person has to let it in
	refuse                 // with a text
)

// decide is the whole policy of registering.
func decide(c claim) (answer, string) {
	switch {
	case c.hasKey && c.failure != "":
		return refuse, c.failure
	case c.hasKey && c.refuseAll != "":
		return refuse, c.refuseAll
	case c.known && c.expired:
		return needsNew, ""
	case c.hasKey && c.keyFault != "" && c.known && c.lenient:
		return welcome, ""
	case c.hasKey && c.keyFault != "":
		return refuse, c.keyFault
	case (c.hasKey || c.known) && c.tagFault != "":
		return refuse, c.tagFault
	case c.hasKey:
		return admit, ""
	case c.known:
		return welcome, ""
	}
	return visitURL, ""
}

// serveRegister answers POST /machine/register.
func (t *tailnet) serveRegister(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.RegisterRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(&req); err != nil {
		http.Error(w, "bad register request: "+err.Error(), http.StatusBadRequest)
		return
	}
	delay, retryAfter, limited := t.noteRegister(&req)
	if !pause(r.Context(), delay) {
		return
	}
	if limited {
		log.Printf("register %s: rate limited", req.NodeKey.ShortString())
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}

	from := callerOf(r.Context())
	if req.Followup != "" && !t.waitForPerson(r.Context(), req.Followup) {
		return
	}
	res, status := t.register(from, &req)
	log.Printf("register %s (auth key: %v, followup: %v): %s",
		req.NodeKey.ShortString(), req.Auth != nil, req.Followup != "", describe(res))
	if from.door.currentFault() == faultDropReply {
		from.conn.Close()
		return
	}
	if res.Error != "" && status != 0 {
		http.Error(w, res.Error, status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(res)
}

// noteRegister counts a register as it comes in, and says how long it is to
// be delayed and whether the rate limit hits it.
func (t *tailnet) noteRegister(req *tailcfg.RegisterRequest) (delay time.Duration, retryAfter int, limited bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.registers.Total++
	if req.Auth != nil && req.Auth.AuthKey != "" {
		t.registers.WithKey++
		t.keyCountersLocked(req.Auth.AuthKey).Attempts++
	} else {
		t.registers.WithoutKey++
	}
	if t.policy.rateLimited > 0 {
		t.policy.rateLimited--
		t.registers.RateLimited++
		limited = true
	}
	t.changeLocked()
	return t.policy.registerDelay, t.policy.rateLimitedSeconds, limited
}

// waitForPerson waits until the login at url is completed or refused. It
// reports whether the daemon still waits for the answer.
func (t *tailnet) waitForPerson(ctx context.Context, url string) bool {
	t.mu.Lock()
	a := t.authURLByURLLocked(url)
	t.mu.Unlock()
	if a == nil {
		return true // it gets a URL of its own
	}
	select {
	case <-a.done:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *tailnet) authURLByURLLocked(url string) *authURL {
	for _, a := range t.authURLs {
		if a.url == url {
			return a
		}
	}
	return nil
}

// register carries a register request out and returns the answer to it, with
// the HTTP status of refusals.
func (t *tailnet) register(from caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.changeLocked()
	return t.registerLocked(from, req), t.policy.refusalStatus
}

func (t *tailnet) registerLocked(from caller, req *tailcfg.RegisterRequest) *tailcfg.RegisterResponse {

	n := t.nodeOfLocked(req.NodeKey, from.machine)
	if !req.Expiry.IsZero() && req.Expiry.Before(time.Now()) {
		return t.logOutLocked(n)
	}
	if a := t.authURLByURLLocked(req.Followup); a != nil && a.refused {
		return &tailcfg.RegisterResponse{Error: refusedLogin}
	}

	c := claim{
		known:     n != nil,
		expired:   n != nil && n.expired(),
		refuseAll: t.policy.refuseAll,
		lenient:   t.policy.acceptDeadIfValid,
	}
	var k *authKey
	var permitted []string
	if n != nil {
		permitted = n.tags
	}
	if req.Auth != nil && req.Auth.AuthKey != "" && req.Followup == "" {
		k = t.keys[req.Auth.AuthKey]
		c.hasKey, c.keyFault = true, k.fault()
		if k != nil {
			permitted = k.tags
		}
		if t.policy.toFail > 0 {
			t.policy.toFail--
			c.failure = t.policy.failWords
		}
	}
	if req.Hostinfo != nil {
		c.tagFault = tagFault(req.Hostinfo.RequestTags, permitted)
	}

	verdict, text := decide(c)
	switch verdict {
	case refuse:
		return &tailcfg.RegisterResponse{Error: text}
	case needsNew:
		return &tailcfg.RegisterResponse{NodeKeyExpired: true}
	case visitURL:
		a := t.newAuthURLLocked(from.door.url(), from.machine, req)
		return &tailcfg.RegisterResponse{AuthURL: a.url, User: user(owner), Login: login(owner)}
	case admit:
		k.used = true
		t.keyCountersLocked(req.Auth.AuthKey).Uses++
		n = t.admitLocked(from.machine, req, k)
	case welcome:
		t.noteHostinfoLocked(n, req.Hostinfo)
	}
	n.lastRegisterHadKey = c.hasKey
	return &tailcfg.RegisterResponse{
		User:              user(n.owner()),
		Login:             login(n.owner()),
		MachineAuthorized: n.approved,
	}
}

// logOutLocked expires the key of a node that logs out; an ephemeral one goes
// at once.
func (t *tailnet) logOutLocked(n *node) *tailcfg.RegisterResponse {
	if n != nil {
		n.expiredByAdmin = time.Now()
		if n.ephemeral {
			t.removeLocked(n)
		}
	}
	return &tailcfg.RegisterResponse{NodeKeyExpired: true}
}

func user(p tailcfg.UserProfile) tailcfg.User {
	return tailcfg.User{ID: p.ID, DisplayName: p.DisplayName}
}

func login(p tailcfg.UserProfile) tailcfg.Login {
	return tailcfg.Login{ID: tailcfg.LoginID(p.ID), Provider: "test", LoginName: p.LoginName, DisplayName: p.DisplayName}
}

// describe is the answer to a register in a few words, for the log.
func describe(res *tailcfg.RegisterResponse) string {
	switch {
	case res.Error != "":
		return "refused: " + res.Error
	case res.NodeKeyExpired:
		return "node key expired"
	case res.AuthURL != "":
		return "has to visit " + res.AuthURL
	case !res.MachineAuthorized:
		return "in, needs approval"
	}
	return "in"
}
