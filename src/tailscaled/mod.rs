//! A client of tailscaled's LocalAPI over its Unix socket. It knows no policy.
//!
//! Endpoints: ipn/localapi/localapi.go of tailscale v1.98.10.

mod bus;
mod status;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub use crate::tailscaled::bus::{Bus, Notice};
pub use crate::tailscaled::status::Status;

use crate::prefs::{Prefs, masked, want_running};
use crate::redact::excerpt;

/// tailscaled accepts only this host name (and none), see `validHost` in localapi.go.
const BASE: &str = "http://local-tailscaled.sock/localapi/v0";

/// The longest that a request of a run may take. tailscaled answers in a millisecond, but leaves
/// requests without an answer until its backend exists.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes. A status without peers has about 2,000.
const MAX_BODY: usize = 1 << 20;

/// How many values and how many objects preferences may have. Those of an app connector have
/// thousands of routes, but no preference has more than a few objects.
const MOST_VALUES: usize = 50_000;
const MOST_OBJECTS: usize = 1_000;

/// How many peers are pinged, and how long an answer is waited for.
const MOST_PEERS: usize = 64;
const PING_LIMIT: Duration = Duration::from_millis(300);

/// The peers in a status.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Peers {
    peer: Option<HashMap<String, Peer>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Peer {
    active: bool,
    #[serde(rename = "TailscaleIPs")]
    tailscale_ips: Option<Vec<IpAddr>>,
}

/// A profile of tailscaled's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Profile {
    /// Empty before its first login, which gives it one.
    pub id: String,
    /// Before that, the IDs of those that there are.
    #[serde(default)]
    pub others: Vec<String>,
}

impl Profile {
    /// Whether it can be this one by `now`.
    pub fn may_be(&self, now: &Self) -> bool {
        match self.id.is_empty() {
            true => !self.others.contains(&now.id),
            false => self.id == now.id,
        }
    }
}

/// Why the LocalAPI could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalApiError {
    /// No socket, nobody behind it, or it broke off.
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {} s", REQUEST_LIMIT.as_secs())]
    NoAnswer,
    /// We may not connect, or may not do this.
    #[error("{0}")]
    Denied(String),
    /// tailscaled takes no changes but by its config file, which is locked.
    #[error("{0}")]
    Locked(String),
    /// An answer that cannot be worked with.
    #[error("{0}")]
    BadAnswer(String),
}

impl LocalApiError {
    /// Whether tailscaled will not do it for us, however often it is asked.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::Locked(_))
    }

    /// Whether nothing was heard of tailscaled.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer)
    }
}

/// tailscaled's API for programs on the same machine, on its socket. Each request has a connection
/// of its own and a time limit.
pub struct LocalApi {
    client: Client,
}

impl LocalApi {
    /// A client for the socket at `socket`, each request of which is given `limit`; nothing is opened
    /// yet.
    pub fn new(socket: &Path, limit: Duration) -> Result<Self, LocalApiError> {
        let client = Client::builder()
            .unix_socket(socket)
            .timeout(limit)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A pooled connection would be dead after a restart of tailscaled.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(classify)?;
        Ok(Self { client })
    }

    /// How the node is, without its peers.
    pub async fn status(&self) -> Result<Status, LocalApiError> {
        parse("status", &self.get("status?peers=false").await?)
    }

    /// The node's preferences.
    pub async fn prefs(&self) -> Result<Prefs, LocalApiError> {
        let body = self.get("prefs").await?;
        if swells(&body) {
            let text = "preferences with too many values".to_owned();
            return Err(LocalApiError::BadAnswer(text));
        }
        parse("prefs", &body)
    }

    /// The profile in use.
    pub async fn profile(&self) -> Result<Profile, LocalApiError> {
        #[derive(Deserialize)]
        struct Named {
            #[serde(default, rename = "ID")]
            id: String,
        }
        let Named { id } = parse("profile", &self.get("profiles/current").await?)?;
        let mut others = Vec::new();
        if id.is_empty() {
            let all = self.get("profiles/").await?;
            let all: Vec<Named> = match swells(&all) {
                true => Vec::new(),
                // Without any it may be null.
                false => serde_json::from_slice(&all).unwrap_or_default(),
            };
            others.extend(all.into_iter().map(|other| other.id));
        }
        Ok(Profile { id, others })
    }

    /// Changes these preferences and no others.
    pub async fn edit_prefs(&self, prefs: &Prefs) -> Result<(), LocalApiError> {
        let request = self.client.patch(format!("{BASE}/prefs"));
        answer(request.json(&masked(prefs))).await.map(drop)
    }

    /// Asks whether we may change preferences; nothing is changed.
    pub async fn check_access(&self) -> Result<(), LocalApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Objection {
            #[serde(default)]
            error: String,
        }
        // There can be no objection to what they are like.
        let request = self.client.post(format!("{BASE}/check-prefs")).json(&json!({}));
        let objection: Objection = parse("check-prefs", &answer(request).await?)?;
        match objection.error.as_str() {
            "" => Ok(()),
            error => Err(objected(excerpt(error, 200))),
        }
    }

    /// Starts anew, without an auth key: tailscaled forgets the key that it may hold and comes up
    /// on its node key, if it has one. `prefs` take the place of its preferences (but of those that it
    /// keeps for itself); without any, those stay as they are.
    pub async fn start(&self, prefs: Option<&Prefs>) -> Result<(), LocalApiError> {
        let request = self.client.post(format!("{BASE}/start"));
        let body = json!({ "UpdatePrefs": prefs });
        answer(request.json(&body)).await.map(drop)
    }

    /// Brings a node up that is stopped, and touches no setting. tailscaled remembers the auth key of its
    /// last login, and would send it again.
    pub async fn bring_up(&self) -> Result<(), LocalApiError> {
        self.start(None).await?;
        self.edit_prefs(&want_running()).await
    }

    /// Renews the node key of a node that is online: `start` is the body of a request with an auth key
    /// that a start takes. Preferences stay.
    pub async fn renew(&self, start: Zeroizing<String>) -> Result<(), LocalApiError> {
        let request = self.client.post(format!("{BASE}/start"));
        answer(request.body(start.as_str().to_owned())).await?;
        answer(self.client.post(format!("{BASE}/login-interactive"))).await.map(drop)
    }

    /// Pings the peers that the node is in touch with three times each, so that they hear of its new
    /// node key at once. Without, an open connection stalls for about five seconds (measured). None of
    /// it is needed.
    pub async fn ping_peers(&self) {
        let Ok(body) = self.get("status").await else {
            return;
        };
        let peers: Peers = parse("status", &body).unwrap_or_default();
        let active = peers.peer.unwrap_or_default().into_values().filter(|peer| peer.active);
        let addresses = active.filter_map(|peer| peer.tailscale_ips?.into_iter().next());
        let mut pings = JoinSet::new();
        for address in addresses.take(MOST_PEERS) {
            let client = self.client.clone();
            pings.spawn(async move {
                for _ in 0..3 {
                    let what = format!("{BASE}/ping?ip={address}&type=TSMP");
                    let _ = timeout(PING_LIMIT, answer(client.post(what))).await;
                }
            });
        }
        pings.join_all().await;
    }

    async fn get(&self, what: &str) -> Result<Vec<u8>, LocalApiError> {
        answer(self.client.get(format!("{BASE}/{what}"))).await
    }
}

/// The user who listens on the socket.
pub async fn listener(socket: &Path) -> io::Result<u32> {
    let peer = UnixStream::connect(socket).await?.peer_cred()?;
    Ok(peer.uid())
}

/// Sends `request` and returns the body of a good answer, within the limits of time and size.
async fn answer(request: RequestBuilder) -> Result<Vec<u8>, LocalApiError> {
    let mut response = request.send().await.map_err(classify)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(classify)? {
        if body.len() + chunk.len() > MAX_BODY {
            let text = format!("an answer of more than {} KiB", MAX_BODY / 1024);
            return Err(LocalApiError::BadAnswer(text));
        }
        body.extend_from_slice(&chunk);
    }
    let status = response.status();
    if status.is_success() {
        return Ok(body);
    }
    let said = String::from_utf8_lossy(&body);
    let said = excerpt(&said, 200);
    if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        return Err(LocalApiError::Denied(said));
    }
    Err(objected(format!("{status}: {said}")))
}

/// An objection in tailscaled's own words. That of a locked config file is
/// `errors.New("can't reconfigure tailscaled when using a config file; config file is locked")`.
fn objected(words: String) -> LocalApiError {
    match words.contains("config file is locked") {
        true => LocalApiError::Locked(words),
        false => LocalApiError::BadAnswer(words),
    }
}

/// Whether JSON would take up far more memory as a [`Value`] than it has bytes: about 30 times as
/// much for many small values, 100 times for many small objects.
fn swells(json: &[u8]) -> bool {
    let count = |signs: &[u8]| json.iter().filter(|byte| signs.contains(byte)).count();
    count(b",[{") > MOST_VALUES || count(b"{") > MOST_OBJECTS
}

fn parse<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, LocalApiError> {
    let bad = |why: &str| {
        LocalApiError::BadAnswer(format!("{what} is not what tailscaled sends ({why})"))
    };
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(bad("an array"));
    }
    // serde repeats what it has read.
    serde_json::from_slice(body).map_err(|error| bad(&excerpt(&error.to_string(), 200)))
}

/// Names the cause at the bottom of a reqwest error.
fn classify(error: reqwest::Error) -> LocalApiError {
    if error.is_timeout() {
        return LocalApiError::NoAnswer;
    }
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::NotFound) => LocalApiError::Unreachable("no such socket".into()),
        Some(io::ErrorKind::ConnectionRefused) => {
            LocalApiError::Unreachable("nobody listens on the socket".into())
        }
        Some(io::ErrorKind::PermissionDenied) => {
            LocalApiError::Denied("the socket may not be opened".into())
        }
        Some(_) => LocalApiError::Unreachable(cause.to_string()),
        // hyper's own error, which has no kind: it hung up before it had answered.
        None if cause.to_string().contains("connection closed before message completed") => {
            LocalApiError::Unreachable("it hung up without an answer".into())
        }
        None => LocalApiError::BadAnswer(cause.to_string()),
    }
}
