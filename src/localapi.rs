//! A client of tailscaled's LocalAPI over its Unix socket. It knows no policy.
//!
//! Endpoints and fields: ipn/localapi/localapi.go, ipn/ipnstate/ipnstate.go and ipn/prefs.go
//! of tailscale v1.98.10.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::redact::excerpt;

/// tailscaled accepts only this host name (and none), see `validHost` in localapi.go.
const BASE: &str = "http://local-tailscaled.sock/localapi/v0";

/// The longest that one request may take. tailscaled answers in a millisecond, but leaves
/// requests without an answer until its backend exists.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes. A status without peers has about 2,000.
const MAX_BODY: usize = 1 << 20;

/// What rings the doorbell: the initial state (2), no private keys (16), the initial health
/// (128). Health and state changes are always sent. Bits 8 and 256 are refused by 1.104.
const WATCH_MASK: u32 = 2 | 16 | 128;

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
    /// An answer that cannot be worked with.
    #[error("{0}")]
    BadAnswer(String),
}

/// The preferences of a node: the fields of ipn.Prefs as they are, known or not.
pub type Prefs = Map<String, Value>;

/// `GET status`, the fields that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    #[serde(default)]
    pub version: String,
    /// Whether tailscaled has a network interface (not userspace networking).
    #[serde(default, rename = "TUN")]
    pub tun: bool,
    pub backend_state: String,
    /// Whether it has a node key, valid or not. Since 1.66; false before.
    #[serde(default)]
    pub have_node_key: bool,
    /// Where a person can log this node in; empty if tailscaled has no need of it.
    #[serde(default, rename = "AuthURL")]
    pub auth_url: String,
    #[serde(default, rename = "TailscaleIPs", deserialize_with = "null_is_default")]
    pub tailscale_ips: Vec<String>,
    #[serde(default, rename = "Self", deserialize_with = "null_is_default")]
    pub node: SelfNode,
    #[serde(default, deserialize_with = "null_is_default")]
    pub health: Vec<String>,
}

/// The `Self` part of a status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SelfNode {
    #[serde(default, rename = "DNSName")]
    pub dns_name: String,
    /// Whether a map poll to the control server is open now.
    #[serde(default)]
    pub online: bool,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub struct LocalApi {
    client: Client,
}

impl LocalApi {
    /// A client for the socket at `socket`; nothing is opened yet.
    pub fn new(socket: &Path) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A pooled connection would be dead after a restart of tailscaled.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client })
    }

    pub async fn status(&self) -> Result<Status, LocalApiError> {
        let request = self.client.get(format!("{BASE}/status?peers=false"));
        parse("status", &answer(request).await?)
    }

    pub async fn prefs(&self) -> Result<Prefs, LocalApiError> {
        parse(
            "prefs",
            &answer(self.client.get(format!("{BASE}/prefs"))).await?,
        )
    }

    /// Changes preferences. `masked` is an ipn.MaskedPrefs: fields with their `…Set` marks.
    pub async fn edit_prefs(&self, masked: &Value) -> Result<(), LocalApiError> {
        let request = self.client.patch(format!("{BASE}/prefs")).json(masked);
        answer(request).await.map(drop)
    }

    /// Restarts the login without an auth key: tailscaled forgets the key that it may hold and
    /// comes up on its node key, if it has one. Preferences stay.
    pub async fn restart_login(&self) -> Result<(), LocalApiError> {
        let request = self
            .client
            .post(format!("{BASE}/start"))
            .json(&json!({ "UpdatePrefs": null }));
        answer(request).await.map(drop)
    }

    /// Opens the bus of notifications.
    pub async fn watch(&self) -> Result<Doorbell, LocalApiError> {
        let request = self
            .client
            .get(format!("{BASE}/watch-ipn-bus?mask={WATCH_MASK}"));
        let response = timeout(REQUEST_LIMIT, request.send())
            .await
            .map_err(|_| LocalApiError::NoAnswer)?
            .map_err(|error| classify(&error))?;
        if response.status() != StatusCode::OK {
            let text = format!("watch-ipn-bus: {}", response.status());
            return Err(LocalApiError::BadAnswer(text));
        }
        Ok(Doorbell {
            response,
            rang: false,
            ended: false,
        })
    }
}

/// The open bus. It says only that something has changed: what, is for the status to say.
pub struct Doorbell {
    response: Response,
    rang: bool,
    ended: bool,
}

impl Doorbell {
    /// Waits until bytes arrive, or until a bus that has brought some ends: tailscaled may be
    /// restarting then. The end of one that never did is no news, and waits for ever. Nothing is
    /// lost if this is dropped.
    pub async fn ring(&mut self) {
        if !self.ended {
            self.ended = !matches!(self.response.chunk().await, Ok(Some(_)));
        }
        if self.ended && !self.rang {
            std::future::pending::<()>().await;
        }
        self.rang = true;
        // What has arrived together is one ring. Bounded, for a bus that never falls silent.
        for _ in 0..64 {
            match timeout(Duration::ZERO, self.response.chunk()).await {
                Ok(Ok(Some(_))) => {}
                Ok(_) => self.ended = true,
                Err(_) => break,
            }
            if self.ended {
                break;
            }
        }
    }

    /// Whether the bus has ended.
    pub fn is_over(&self) -> bool {
        self.ended
    }
}

/// Sends `request` and returns the body of a good answer, within the limits of time and size.
async fn answer(request: RequestBuilder) -> Result<Vec<u8>, LocalApiError> {
    let exchange = async {
        let mut response = request.send().await.map_err(|error| classify(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
            if body.len() + chunk.len() > MAX_BODY {
                let text = format!("an answer of more than {} KiB", MAX_BODY / 1024);
                return Err(LocalApiError::BadAnswer(text));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body))
    };
    let (status, body) = timeout(REQUEST_LIMIT, exchange)
        .await
        .map_err(|_| LocalApiError::NoAnswer)??;
    if status.is_success() {
        return Ok(body);
    }
    let said = String::from_utf8_lossy(&body);
    let said = excerpt(&said, 200);
    if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        return Err(LocalApiError::Denied(said));
    }
    Err(LocalApiError::BadAnswer(format!("{status}: {said}")))
}

fn parse<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, LocalApiError> {
    serde_json::from_slice(body).map_err(|error| {
        LocalApiError::BadAnswer(format!("{what} is not what tailscaled sends ({error})"))
    })
}

/// Names the cause at the bottom of a reqwest error.
fn classify(error: &reqwest::Error) -> LocalApiError {
    let mut cause: &dyn Error = error;
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
        None if cause
            .to_string()
            .contains("connection closed before message completed") =>
        {
            LocalApiError::Unreachable("it hung up without an answer".into())
        }
        None => LocalApiError::BadAnswer(cause.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_with_nulls_and_unknown_fields_is_read() {
        let status: Status = parse(
            "status",
            br#"{"Version":"1.98.10-t1-g2","TUN":true,"BackendState":"NeedsLogin","New":[1],
                "AuthURL":"","TailscaleIPs":null,"Self":{"DNSName":"","Online":false},"Health":null}"#,
        )
        .unwrap();
        assert_eq!(status.backend_state, "NeedsLogin");
        assert!(status.tun && status.tailscale_ips.is_empty() && status.health.is_empty());
    }

    #[test]
    fn a_status_without_a_state_is_a_bad_answer() {
        for body in [
            "{}",
            "[]",
            "",
            "null",
            "{\"BackendState\":7}",
            "{\"BackendState",
        ] {
            let error = parse::<Status>("status", body.as_bytes()).unwrap_err();
            assert!(matches!(error, LocalApiError::BadAnswer(_)), "{body}");
        }
    }
}
