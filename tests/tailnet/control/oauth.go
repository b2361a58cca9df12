// A stand-in for the two calls of Tailscale's API by which an OAuth client's
// secret becomes an auth key.

package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"strings"
	"time"

	"tailscale.com/util/rands"
)

// oauthClient is what an OAuth client may do.
type oauthClient struct {
	tags      []string
	scopeless bool // it may not make auth keys
}

type apiEndpoint struct {
	tailnet *tailnet
}

func (a *apiEndpoint) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v2/oauth/token", a.issueToken)
	mux.HandleFunc("POST /api/v2/tailnet/{tailnet}/keys", a.createKey)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.tailnet.mu.Lock()
		delay := a.tailnet.policy.apiDelay
		a.tailnet.mu.Unlock()
		if pause(r.Context(), delay) {
			mux.ServeHTTP(w, r)
		}
	})
}

// issueToken exchanges a client's secret for an access token. The secret comes
// as HTTP basic authentication or in the form; the client's id is ignored, as
// the CLI makes one up.
func (a *apiEndpoint) issueToken(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		apiError(w, r, http.StatusBadRequest, "bad form: "+err.Error())
		return
	}
	form := map[string]string{}
	for name := range r.PostForm {
		form[name] = r.PostForm.Get(name)
	}
	secret := form["client_secret"]
	if _, password, ok := r.BasicAuth(); ok {
		secret = password
	}

	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noteAPILocked(r, form)
	client, ok := t.oauthClients[secret]
	if !ok {
		apiError(w, r, http.StatusUnauthorized, "API token invalid")
		return
	}
	token := "tskey-api-" + rands.HexString(24)
	t.oauthTokens[token] = client
	sendJSON(w, http.StatusOK, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
}

// createKey makes an auth key of this tailnet, of the kind that is asked for.
func (a *apiEndpoint) createKey(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil {
		apiError(w, r, http.StatusBadRequest, err.Error())
		return
	}
	var want struct {
		Capabilities struct {
			Devices struct {
				Create struct {
					Reusable      bool     `json:"reusable"`
					Ephemeral     bool     `json:"ephemeral"`
					Preauthorized bool     `json:"preauthorized"`
					Tags          []string `json:"tags"`
				} `json:"create"`
			} `json:"devices"`
		} `json:"capabilities"`
	}
	if err := json.Unmarshal(body, &want); err != nil {
		apiError(w, r, http.StatusBadRequest, "bad request: "+err.Error())
		return
	}
	create := want.Capabilities.Devices.Create

	t := a.tailnet
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noteAPILocked(r, json.RawMessage(body))
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	client, ok := t.oauthTokens[token]
	if !ok {
		apiError(w, r, http.StatusUnauthorized, "API token invalid")
		return
	}
	if client.scopeless {
		apiError(w, r, http.StatusForbidden, "calling actor does not have enough permissions to perform this function")
		return
	}
	if fault := tagFault(create.Tags, client.tags); fault != "" || len(create.Tags) == 0 {
		if fault == "" {
			fault = "tailnet-owned auth key must have tags set"
		}
		apiError(w, r, http.StatusBadRequest, fault)
		return
	}
	key := t.addKeyLocked("tskey-auth-", authKey{
		reusable:    create.Reusable,
		ephemeral:   create.Ephemeral,
		preapproved: create.Preauthorized,
		tags:        create.Tags,
	})
	t.changeLocked()
	now := time.Now().UTC().Round(time.Second)
	sendJSON(w, http.StatusOK, map[string]any{
		"id":           t.keys[key].id,
		"key":          key,
		"created":      now,
		"expires":      now.Add(24 * time.Hour),
		"capabilities": want.Capabilities,
	})
}

func (t *tailnet) noteAPILocked(r *http.Request, body any) {
	t.apiRequests = append(t.apiRequests, apiRequest{Path: r.URL.Path, Body: body})
	t.changeLocked()
}

func apiError(w http.ResponseWriter, r *http.Request, status int, message string) {
	log.Printf("api: %s: %d %s", r.URL.Path, status, message)
	sendJSON(w, status, map[string]string{"message": message})
}

func sendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}
