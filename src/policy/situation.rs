//! What tailscaled shows, named: a row of the state table. Pure.

use std::net::IpAddr;

use crate::redact::excerpt;
use crate::tailscaled::{LocalApiError, Status};
use crate::up::{LoginError, last_login_error, trouble};

/// A row of the state table: what a status (or the lack of one) stands for. What is in it are its
/// words; its kind alone says how long it has lasted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// tailscaled isn't there yet.
    NoDaemon,
    /// tailscaled answers, but with nothing that can be understood.
    Unintelligible(String),
    /// tailscaled does not let us in.
    Denied(String),
    /// Coming up, or trying to reach the control server, with a node key.
    Settling {
        error: Option<LoginError>,
    },
    /// The same with nothing to come up with.
    SettlingNew {
        error: Option<LoginError>,
    },
    /// Running and online.
    Connected,
    /// The same, while tailscaled sends a dead key again and again, as after `tailscale down` and
    /// `tailscale up` (seen on 1.66 to 1.102).
    ConnectedWithDeadKey(String),
    /// Connected, but an address isn't on the interface yet.
    AddressPending(IpAddr),
    /// Running on the last network map it knew.
    Offline {
        error: Option<LoginError>,
    },
    Stopped,
    /// tailscaled needs an auth key.
    NeedsLogin {
        error: Option<LoginError>,
    },
    /// tailscaled has given up on keys and asks for a person.
    AsksForPerson {
        error: Option<LoginError>,
    },
    NeedsApproval,
    /// tailscaled cannot open its state, in its words: no login can work.
    StoreFailed(String),
    /// A state that this program does not know.
    Unknown(String),
}

impl Situation {
    /// What a status shows, or that there is none. `unbound` is the first of the node's addresses that
    /// cannot be bound yet.
    pub fn of(status: Result<&Status, &LocalApiError>, unbound: Option<IpAddr>) -> Self {
        let status = match status {
            Ok(status) => status,
            Err(LocalApiError::Unreachable(_) | LocalApiError::NoAnswer) => return Self::NoDaemon,
            Err(LocalApiError::Denied(why)) => return Self::Denied(why.clone()),
            Err(LocalApiError::Locked(why) | LocalApiError::BadAnswer(why)) => {
                return Self::Unintelligible(why.clone());
            }
        };
        let error = last_login_error(&status.health);
        let trouble = || trouble(&status.health);
        let asks = !status.auth_url.is_empty();
        let state = status.backend_state.as_str();
        if state == "NoState"
            && let Some(words) = health_with(status, "State store failed")
        {
            return Self::StoreFailed(words);
        }
        match state {
            "NoState" | "Starting" => match tells_of_node_key(status) && !status.have_node_key {
                true => Self::SettlingNew { error: trouble() },
                false => Self::Settling { error: trouble() },
            },
            "Running" if status.node.online => match (unbound, error) {
                (Some(address), _) => Self::AddressPending(address),
                (None, Some(LoginError::Refused(refusal))) => {
                    Self::ConnectedWithDeadKey(refusal.words)
                }
                (None, _) => Self::Connected,
            },
            "Running" | "NeedsLogin" if asks => Self::AsksForPerson { error },
            "Running" => Self::Offline { error: trouble() },
            "Stopped" => Self::Stopped,
            "NeedsLogin" => Self::NeedsLogin { error },
            "NeedsMachineAuth" => Self::NeedsApproval,
            other => Self::Unknown(excerpt(other, 40)),
        }
    }

    /// The error of the last login that tailscaled shows.
    pub fn login_error(&self) -> Option<&LoginError> {
        match self {
            Self::Settling { error }
            | Self::SettlingNew { error }
            | Self::Offline { error }
            | Self::NeedsLogin { error }
            | Self::AsksForPerson { error } => error.as_ref(),
            _ => None,
        }
    }

    /// Whether the node is on its tailnet.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected | Self::ConnectedWithDeadKey(_) | Self::AddressPending(_))
    }
}

/// What tailnet lock has against the node, which is online and reaches nobody.
pub fn locked_out(status: &Status) -> Option<String> {
    health_with(status, "locked out")
}

fn health_with(status: &Status, words: &str) -> Option<String> {
    let message = status.health.iter().find(|message| message.contains(words));
    message.map(|message| excerpt(message, 200))
}

/// Since 1.66 a status says whether there is a node key; before, it never does.
fn tells_of_node_key(status: &Status) -> bool {
    status.major_and_minor() >= (1, 66)
}
