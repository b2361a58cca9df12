//! Facts in plain words. Pure functions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;

use crate::check::seen::Seen;
use crate::failure::in_words;
use crate::file_system::FileFacts;
use crate::key::KeyKind;
use crate::tailscaled::Status;

/// The time in UTC, to the second.
pub fn clock(now: SystemTime) -> String {
    format_rfc3339_seconds(now).to_string().replace(['T', 'Z'], " ").trim_end().to_owned() + " UTC"
}

/// What a `BackendState` means.
pub fn state(status: &Status) -> &'static str {
    let online = status.node.online;
    let asks = !status.auth_url.is_empty();
    match status.backend_state.as_str() {
        "NoState" if status.have_node_key => {
            "it has a node key, and tries to reach its control server with it"
        }
        "NoState" => "it has just started, or a login is under way",
        "Starting" => "it is logged in, and about to connect",
        "Running" if online => "it is on its tailnet",
        "Running" if asks => "it uses its last network map, but needs a login",
        "Running" => "it uses its last network map",
        "Stopped" => "it was stopped with `tailscale down`",
        "NeedsLogin" if status.have_node_key => "its node key is no longer accepted",
        "NeedsLogin" => "it is new, or was logged out",
        "NeedsMachineAuth" => "it is logged in, and an admin has to approve it",
        _ => "a state that this program does not know",
    }
}

/// Why a node needs a login, for `this node needs a login (…)`.
pub fn cause_of_login(seen: &Seen) -> &'static str {
    match seen.status.as_ref().map(|status| node_key(status, seen.now)) {
        Err(_) => "it has none",
        Ok(NodeKey::None) => "it is new, or was logged out",
        Ok(NodeKey::Expired(_)) => "its node key has expired",
        Ok(NodeKey::Good(_)) => "its node key is no longer accepted",
    }
}

/// How the node key of a node is, and when it expires or has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKey {
    None,
    Expired(Option<SystemTime>),
    Good(Option<SystemTime>),
}

/// How the node key of this node is.
pub fn node_key(status: &Status, now: SystemTime) -> NodeKey {
    let expiry = status.node.expiry();
    // Before 1.66 tailscaled doesn't say whether it has one.
    let has_one = status.have_node_key || status.node.online || expiry.is_some();
    match expiry {
        _ if !has_one => NodeKey::None,
        _ if status.node.expired => NodeKey::Expired(expiry),
        Some(at) if at <= now => NodeKey::Expired(expiry),
        _ => NodeKey::Good(expiry),
    }
}

/// What kind of key a key file holds: its name in `--json`, and in words.
pub fn kind(kind: KeyKind) -> (&'static str, &'static str) {
    match kind {
        KeyKind::Auth => ("auth-key", "an auth key of Tailscale"),
        KeyKind::Wrapped => {
            ("wrapped-auth-key", "an auth key of Tailscale, signed for tailnet lock")
        }
        KeyKind::OAuthSecret { .. } => ("oauth-client-secret", "an OAuth client secret"),
        KeyKind::Headscale => ("headscale-auth-key", "an auth key of headscale"),
    }
}

/// Like `owner root, mode 0400, written 3 days ago`.
pub fn file(facts: &FileFacts, now: SystemTime) -> String {
    let written = match facts.modified.map(|modified| now.duration_since(modified)) {
        None => String::new(),
        Some(Ok(age)) => format!(", written {} ago", in_words(age)),
        Some(Err(_)) => ", written in the future".to_owned(),
    };
    format!("owner {}, mode {:04o}{written}", facts.owner, facts.mode)
}

/// The same of a time in seconds since 1970.
pub fn date_of(at: u64, now: SystemTime) -> String {
    date(UNIX_EPOCH.checked_add(Duration::from_secs(at)).unwrap_or(now), now)
}

/// Like `2026-11-24 (in 3 days)`.
pub fn date(at: SystemTime, now: SystemTime) -> String {
    let date = format_rfc3339_seconds(at).to_string();
    let date = date.split('T').next().unwrap_or_default();
    match at.duration_since(now) {
        Ok(left) => format!("{date} (in {})", in_words(left)),
        Err(error) => format!("{date} ({} ago)", in_words(error.duration())),
    }
}
