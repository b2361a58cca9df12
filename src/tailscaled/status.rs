//! What tailscaled says of itself: `GET status` (ipn/ipnstate/ipnstate.go of tailscale v1.98.10), the
//! fields that matter here, within limits.

use std::net::IpAddr;
use std::time::SystemTime;

use humantime::parse_rfc3339_weak;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// How many addresses of a node are looked at; it has two.
const MOST_ADDRESSES: usize = 16;

/// The longest name in the DNS, with its final dot.
const LONGEST_NAME: usize = 254;

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
    #[serde(default, rename = "TailscaleIPs", deserialize_with = "addresses")]
    pub tailscale_ips: Vec<String>,
    #[serde(default, rename = "Self", deserialize_with = "self_node")]
    pub node: SelfNode,
    #[serde(default, deserialize_with = "null_is_default")]
    pub health: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub current_tailnet: Tailnet,
}

/// The `CurrentTailnet` part of a status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Tailnet {
    pub name: String,
}

impl Status {
    /// The first two numbers of the daemon's version; zeros if it has none to be read.
    pub fn major_and_minor(&self) -> (u32, u32) {
        let mut numbers = self.version.split(['.', '-']).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => (0, 0),
        }
    }
}

/// The `Self` part of a status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SelfNode {
    #[serde(rename = "DNSName", deserialize_with = "dns_name")]
    pub dns_name: String,
    /// Its node key, as `nodekey:` and hexadecimal digits.
    pub public_key: String,
    #[serde(deserialize_with = "null_is_default")]
    pub tags: Vec<String>,
    /// Whether a map poll to the control server is open now.
    pub online: bool,
    /// Whether the control server says that its node key has expired.
    pub expired: bool,
    /// When its node key expires, as RFC 3339; none if it never does, or nobody knows yet.
    pub key_expiry: Option<String>,
}

impl SelfNode {
    /// When its node key expires, if that can be read.
    pub fn expiry(&self) -> Option<SystemTime> {
        parse_rfc3339_weak(self.key_expiry.as_deref()?).ok()
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Takes no array for the object, which serde would, its elements for the fields in their order.
fn self_node<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SelfNode, D::Error> {
    let text = Option::<&RawValue>::deserialize(deserializer)?.map_or("{}", RawValue::get);
    match text.starts_with('[') {
        true => Err(D::Error::custom("Self is an array")),
        false => serde_json::from_str(text).map_err(D::Error::custom),
    }
}

/// What is none is left out.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut addresses: Vec<String> = null_is_default(deserializer)?;
    addresses.retain(|address| address.parse::<IpAddr>().is_ok());
    addresses.truncate(MOST_ADDRESSES);
    Ok(addresses)
}

/// What cannot be one is taken for none.
fn dns_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut name = String::deserialize(deserializer)?;
    if name.len() > LONGEST_NAME {
        name.clear();
    }
    Ok(name)
}
