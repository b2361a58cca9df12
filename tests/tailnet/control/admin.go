// The admin endpoint: how tests change the tailnet, see what daemons did, and
// wait for it. JSON in and out; what can't be done is a 4xx with {"error": …}.
//
//	POST /keys {reusable, expired, revoked, preapproved, ephemeral, tags}   makes an auth key: {key}
//	POST /keys/delete, /keys/revoke, /keys/expire {key}
//	POST /oauth-clients {tags, scopeless}           makes an OAuth client: {secret}
//	POST /policy {…}                                any subset of setPolicy's fields
//	POST /nodes/ID/approve, …/expire, …/unexpire, …/delete    takes effect at once
//	POST /nodes/ID/expiry {in_s}                    when its node key expires, from now; null for never
//	POST /auth-urls/ID/complete, …/refuse           what the person at AuthURL decides
//	GET  /state                                     everything there is to see
//	GET  /state?after=SEQ&timeout_ms=T              the same, once seq is beyond SEQ or T has passed

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tailscale.com/util/rands"
)

type adminEndpoint struct {
	tailnet   *tailnet
	frontend  *frontend
	certs     *certificates
	encrypted *door
}

func (a *adminEndpoint) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /keys", reply(a.addKey))
	mux.HandleFunc("POST /keys/{change}", reply(a.changeKey))
	mux.HandleFunc("POST /oauth-clients", reply(a.addOAuthClient))
	mux.HandleFunc("POST /policy", reply(a.setPolicy))
	mux.HandleFunc("GET /state", reply(a.state))
	mux.HandleFunc("POST /nodes/{id}/{change}", reply(a.changeNode))
	mux.HandleFunc("POST /auth-urls/{id}/{verdict}", reply(a.endLogin))
	mux.HandleFunc("/", reply(func(r *http.Request) (any, error) {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, errNotFound)
	}))
	return mux
}

// reply makes a handler of a function that returns what is to be sent as JSON.
func reply(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := f(r)
		status := http.StatusOK
		if err != nil {
			status = http.StatusBadRequest
			if errors.Is(err, errNotFound) {
				status = http.StatusNotFound
			}
			body = map[string]string{"error": err.Error()}
			log.Printf("admin: %s %s: %v", r.Method, r.URL.Path, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(body)
	}
}

// read reads a request's JSON into v. No body is an empty object, and a field
// that doesn't exist is an error, so that a test's typo isn't a test that
// passes.
func read(r *http.Request, v any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil && err != io.EOF {
		return fmt.Errorf("request body: %w", err)
	}
	return nil
}

type empty struct{}

func (a *adminEndpoint) addKey(r *http.Request) (any, error) {
	var want struct {
		Reusable, Expired, Revoked, Preapproved, Ephemeral bool
		Tags                                               []string
	}
	if err := read(r, &want); err != nil {
		return nil, err
	}
	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.changeLocked()
	return map[string]string{"key": t.addKeyLocked("hskey-auth-", authKey{
		reusable:    want.Reusable,
		expired:     want.Expired,
		revoked:     want.Revoked,
		preapproved: want.Preapproved,
		ephemeral:   want.Ephemeral,
		tags:        want.Tags,
	})}, nil
}

func (a *adminEndpoint) changeKey(r *http.Request) (any, error) {
	var which struct{ Key string }
	if err := read(r, &which); err != nil {
		return nil, err
	}
	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.keys[which.Key]
	if k == nil {
		return nil, fmt.Errorf("key %q: %w", which.Key, errNotFound)
	}
	switch change := r.PathValue("change"); change {
	case "delete":
		delete(t.keys, which.Key)
	case "revoke":
		k.revoked = true
	case "expire":
		k.expired = true
	default:
		return nil, fmt.Errorf("keys/%s: %w", change, errNotFound)
	}
	t.changeLocked()
	return empty{}, nil
}

func (a *adminEndpoint) addOAuthClient(r *http.Request) (any, error) {
	var want struct {
		Tags []string
		// Scopeless: it gets its token, and may not make auth keys with it.
		Scopeless bool
	}
	if err := read(r, &want); err != nil {
		return nil, err
	}
	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.changeLocked()
	secret := "tskey-client-" + rands.HexString(12) + "-" + rands.HexString(32)
	t.oauthClients[secret] = oauthClient{tags: want.Tags, scopeless: want.Scopeless}
	return map[string]string{"secret": secret}, nil
}

// setPolicy changes those parts of the policy that the request names. Naming a
// fault, even "none", cuts the connections that are open; naming a certificate
// cuts those over TLS.
func (a *adminEndpoint) setPolicy(r *http.Request) (any, error) {
	var want struct {
		// Approval: a new node needs it, unless its key is preapproved.
		Approval *bool `json:"approval"`
		// NodeExpiryS: how many seconds a user's node key lives from when it is
		// admitted, the first time and anew; 0 for 180 days.
		NodeExpiryS *float64 `json:"node_expiry_s"`
		// ValidNodeWithDeadKey: whether a dead auth key from a node whose node
		// key is valid is refused, as the public service does, or accepted.
		ValidNodeWithDeadKey *string `json:"valid_node_with_dead_key"`
		RegisterDelayMS      *int    `json:"register_delay_ms"`
		MapDelayMS           *int    `json:"map_delay_ms"`
		// APIDelayMS: how long each call of the API takes.
		APIDelayMS *int `json:"api_delay_ms"`
		// RateLimit: the next Count registers are answered with 429.
		RateLimit *struct {
			Count       int `json:"count"`
			RetryAfterS int `json:"retry_after_s"`
		} `json:"rate_limit"`
		// RefuseAll: the answer to every register with a key; "" for none.
		RefuseAll *string `json:"refuse_all"`
		// FailRegisters: the next Count registers with a key are answered with
		// this error, whatever the key.
		FailRegisters *struct {
			Count int    `json:"count"`
			Error string `json:"error"`
		} `json:"fail_registers"`
		// RefusalStatus: the HTTP status that refusals are answered with, as
		// headscale did up to 0.24; 0 for 200 with an error in the answer.
		RefusalStatus *int    `json:"refusal_status"`
		Fault         *string `json:"fault"`
		Certificate   *string `json:"certificate"`
	}
	if err := read(r, &want); err != nil {
		return nil, err
	}
	if v := want.ValidNodeWithDeadKey; v != nil && *v != "refuse" && *v != "accept" {
		return nil, fmt.Errorf("valid_node_with_dead_key %q: there is refuse, accept", *v)
	}
	if want.Fault != nil {
		if err := checkFault(*want.Fault); err != nil {
			return nil, err
		}
	}
	if want.Certificate != nil {
		if err := a.certs.show(*want.Certificate); err != nil {
			return nil, err
		}
		a.encrypted.cut()
	}
	if want.Fault != nil {
		if err := a.frontend.setFault(*want.Fault); err != nil {
			return nil, err
		}
	}

	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.changeLocked()
	p := &t.policy
	if v := want.Approval; v != nil {
		p.approval = *v
	}
	if v := want.NodeExpiryS; v != nil {
		p.nodeExpiry = seconds(*v)
	}
	if v := want.ValidNodeWithDeadKey; v != nil {
		p.acceptDeadIfValid = *v == "accept"
	}
	if v := want.RegisterDelayMS; v != nil {
		p.registerDelay = time.Duration(*v) * time.Millisecond
	}
	if v := want.MapDelayMS; v != nil {
		p.mapDelay = time.Duration(*v) * time.Millisecond
	}
	if v := want.APIDelayMS; v != nil {
		p.apiDelay = time.Duration(*v) * time.Millisecond
	}
	if v := want.RateLimit; v != nil {
		p.rateLimited, p.rateLimitedSeconds = v.Count, v.RetryAfterS
	}
	if v := want.RefuseAll; v != nil {
		p.refuseAll = *v
	}
	if v := want.FailRegisters; v != nil {
		p.toFail, p.failWords = v.Count, v.Error
	}
	if v := want.RefusalStatus; v != nil {
		p.refusalStatus = *v
	}
	return empty{}, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (a *adminEndpoint) changeNode(r *http.Request) (any, error) {
	var want struct {
		InS *float64 `json:"in_s"` // of …/expiry
	}
	if err := read(r, &want); err != nil {
		return nil, err
	}
	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.nodeLocked(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	switch change := r.PathValue("change"); change {
	case "approve":
		n.approved = true
	case "expire":
		n.expiredByAdmin = time.Now().Add(-time.Minute)
	case "unexpire":
		n.expiredByAdmin = time.Time{}
	case "expiry":
		n.expiredByAdmin, n.expiry = time.Time{}, time.Time{}
		if want.InS != nil {
			n.expiry = time.Now().Add(seconds(*want.InS))
		}
	case "delete":
		t.removeLocked(n)
	default:
		return nil, fmt.Errorf("nodes/…/%s: %w", change, errNotFound)
	}
	t.changeLocked()
	return empty{}, nil
}

func (a *adminEndpoint) endLogin(r *http.Request) (any, error) {
	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	login, err := t.authURLLocked(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if login.closed() {
		return nil, fmt.Errorf("login %s is over: completed, refused, or its machine got in otherwise", login.id)
	}
	switch verdict := r.PathValue("verdict"); verdict {
	case "complete":
		t.admitLocked(login.machine, &login.request, nil)
	case "refuse":
		login.refused = true
		close(login.done)
	default:
		return nil, fmt.Errorf("auth-urls/…/%s: %w", verdict, errNotFound)
	}
	t.changeLocked()
	return empty{}, nil
}

// nodeState is a node in GET /state.
type nodeState struct {
	ID                 int64          `json:"id"`
	Hostname           string         `json:"hostname"`
	Name               string         `json:"name"`
	NodeKey            string         `json:"node_key"`
	Addresses          []netip.Addr   `json:"addresses"`
	Online             bool           `json:"online"`
	Approved           bool           `json:"approved"`
	Expired            bool           `json:"expired"`
	ExpiresInS         *float64       `json:"expires_in_s"` // null: never
	Tags               []string       `json:"tags"`
	Routes             []netip.Prefix `json:"routes"`
	Ephemeral          bool           `json:"ephemeral"`
	LastRegisterHadKey bool           `json:"last_register_had_key"`
}

// state is the tailnet as it is, or as it is after its next change.
func (a *adminEndpoint) state(r *http.Request) (any, error) {
	t := a.tailnet
	if after := r.FormValue("after"); after != "" {
		seq, err := strconv.ParseInt(after, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("after: %w", err)
		}
		ctx := r.Context()
		if text := r.FormValue("timeout_ms"); text != "" {
			timeout, err := strconv.Atoi(text)
			if err != nil {
				return nil, fmt.Errorf("timeout_ms: %w", err)
			}
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Millisecond)
			defer cancel()
		}
		t.waitBeyond(ctx, seq)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	nodes := []nodeState{}
	for _, n := range t.nodes {
		s := nodeState{
			ID:                 int64(n.id),
			Hostname:           n.hostinfo.Hostname,
			Name:               n.name,
			NodeKey:            n.key.String(),
			Online:             n.stream != nil,
			Approved:           n.approved,
			Expired:            n.expired(),
			Tags:               append([]string{}, n.tags...),
			Routes:             append([]netip.Prefix{}, n.routes()...),
			Ephemeral:          n.ephemeral,
			LastRegisterHadKey: n.lastRegisterHadKey,
		}
		if at := n.keyExpiry(); !at.IsZero() {
			left := time.Until(at).Seconds()
			s.ExpiresInS = &left
		}
		for _, prefix := range n.addresses {
			s.Addresses = append(s.Addresses, prefix.Addr())
		}
		nodes = append(nodes, s)
	}
	urls := []string{}
	for _, login := range t.authURLs {
		urls = append(urls, login.url)
	}
	keys := map[string]keyCounters{}
	for text, c := range t.keyCounters {
		keys[text] = *c
	}
	return map[string]any{
		"seq":          t.seq,
		"registers":    t.registers,
		"keys":         keys,
		"nodes":        nodes,
		"auth_urls":    urls,
		"api_requests": append([]apiRequest{}, slices.Clone(t.apiRequests)...),
	}, nil
}
