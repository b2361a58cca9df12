//! Facts in plain words. Pure functions.

use std::time::{Duration, SystemTime};

use humantime::{format_rfc3339_seconds, parse_rfc3339_weak};

use crate::check::seen::Seen;
use crate::key::{FileFacts, KeyKind};
use crate::tailscaled::Status;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A node key that expires sooner is worth a note.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

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
    let Ok(status) = &seen.status else {
        return "it has none";
    };
    match node_key(status, seen.now) {
        NodeKey::None => "it is new, or was logged out",
        NodeKey::Expired(_) => "its node key has expired",
        NodeKey::Good(_) | NodeKey::Soon(_) => "its node key is no longer accepted",
    }
}

/// How the node key of a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKey {
    None,
    Expired(Option<SystemTime>),
    /// It expires within days.
    Soon(SystemTime),
    Good(Option<SystemTime>),
}

/// How the node key of this node is.
pub fn node_key(status: &Status, now: SystemTime) -> NodeKey {
    let expiry = status.node.key_expiry.as_deref();
    let expiry = expiry.and_then(|text| parse_rfc3339_weak(text).ok());
    // Before 1.66 tailscaled doesn't say whether it has one.
    let has_one = status.have_node_key || status.node.online || expiry.is_some();
    match expiry {
        _ if !has_one => NodeKey::None,
        _ if status.node.expired => NodeKey::Expired(expiry),
        Some(at) if at <= now => NodeKey::Expired(expiry),
        Some(at) if at <= now + SOON => NodeKey::Soon(at),
        _ => NodeKey::Good(expiry),
    }
}

/// What kind of key a key file holds.
pub fn kind(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Auth => "an auth key of Tailscale",
        KeyKind::Wrapped => "an auth key of Tailscale, signed for tailnet lock",
        KeyKind::OAuthSecret { .. } => "an OAuth client secret",
        KeyKind::Headscale => "an auth key of headscale",
    }
}

/// The name of that kind in `--json`.
pub fn kind_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Auth => "auth-key",
        KeyKind::Wrapped => "wrapped-auth-key",
        KeyKind::OAuthSecret { .. } => "oauth-client-secret",
        KeyKind::Headscale => "headscale-auth-key",
    }
}

/// Like `owner root, mode 0400, written 3 days ago`.
pub fn file(facts: FileFacts, owner: &str, now: SystemTime) -> String {
    let mut text = format!("owner {owner}, mode {:04o}", facts.mode);
    if let Some(modified) = facts.modified {
        text.push_str(", written ");
        text.push_str(&match now.duration_since(modified) {
            Ok(age) => format!("{} ago", span(age)),
            Err(_) => "in the future".to_owned(),
        });
    }
    text
}

/// A length of time in its largest unit.
pub fn span(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] =
        [(DAY.as_secs(), "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let seconds = time.as_secs();
    let (unit, name) =
        UNITS.into_iter().find(|(unit, _)| seconds >= *unit).unwrap_or((1, "second"));
    let count = seconds / unit;
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {name}{plural}")
}

/// Like `2026-11-24 (in 3 days)`.
pub fn date(at: SystemTime, now: SystemTime) -> String {
    let date = format_rfc3339_seconds(at).to_string();
    let date = date.split('T').next().unwrap_or_default();
    match at.duration_since(now) {
        Ok(left) => format!("{date} (in {})", span(left)),
        Err(error) => format!("{date} ({} ago)", span(error.duration())),
    }
}
