//! The policy: what is seen of tailscaled, and what was tried in this run, decide what to do.
//!
//! Pure functions, without clock and I/O. [`situation`] names the row of the table in README.md
//! that a status stands for; [`decide`] is the table.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::authkey::KeyFileError;
use crate::localapi::Status;
use crate::outcome::Failure;
use crate::verdict::{LoginError, last_login_error};

/// How long a node may run on the last network map it knew before its login is restarted.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(30);
/// How long an address that cannot be bound yet is waited for.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a refusal is looked at before it's believed: it may be an older login's.
const REFUSAL_DOUBT: Duration = Duration::from_secs(2);
/// The same, where an older login was refused in the very same words.
const STALE_DOUBT: Duration = Duration::from_secs(30);
/// How long a node may take to come up on its node key after a refused auth key.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How long the CLI may run without tailscaled showing any sign of it.
const CLI_PATIENCE: Duration = Duration::from_secs(30);
/// How long permission to open the socket is waited for: tailscaled sets its mode after it
/// listens (safesocket/unixsocket.go).
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);

/// A row of the state table: what a status (or the lack of one) stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// tailscaled isn't there yet.
    NoDaemon,
    /// tailscaled answers, but with nothing that can be understood.
    Unintelligible(String),
    /// tailscaled does not let us in.
    Denied(String),
    /// Coming up, or trying to reach the control server.
    Settling {
        trouble: Option<String>,
    },
    /// An auth key that someone sent was refused, and keeps a node from its tailnet.
    Stranded {
        refusal: String,
    },
    /// Running and online.
    Connected,
    /// Connected, but an address isn't on the interface yet.
    AddressPending(IpAddr),
    /// Running on the last network map it knew.
    Offline {
        trouble: Option<String>,
        /// Whether a restart of the login leaves the network map in place.
        may_restart: bool,
    },
    Stopped,
    /// A login is needed. `asks`: tailscaled has given up on keys and asks for a person.
    NeedsLogin {
        error: Option<LoginError>,
        asks: bool,
    },
    NeedsApproval,
    /// A state that this program does not know.
    Unknown(String),
}

/// Names the situation that `status` shows. `unbound` is the first of the node's addresses that
/// cannot be bound yet.
pub fn situation(status: &Status, unbound: Option<IpAddr>) -> Situation {
    let error = last_login_error(&status.health);
    let asks = !status.auth_url.is_empty();
    let online = status.node.online;
    match status.backend_state.as_str() {
        "NoState" | "Starting" | "Running"
            if !online
                && !asks
                && let Some(LoginError::Refused(refusal)) = error =>
        {
            Situation::Stranded { refusal }
        }
        "NoState" | "Starting" => Situation::Settling {
            trouble: error.map(LoginError::into_text),
        },
        "Running" if online => match unbound {
            Some(address) => Situation::AddressPending(address),
            None => Situation::Connected,
        },
        "Running" if asks => Situation::NeedsLogin { error, asks },
        "Running" => Situation::Offline {
            trouble: error.map(LoginError::into_text),
            may_restart: keeps_map_over_restart(&status.version),
        },
        "Stopped" => Situation::Stopped,
        "NeedsLogin" => Situation::NeedsLogin { error, asks },
        "NeedsMachineAuth" => Situation::NeedsApproval,
        other => Situation::Unknown(other.chars().take(40).collect()),
    }
}

/// Since 1.82 a restart of the login leaves the network map in place; before, it cuts the node
/// off until the control server answers (measured on 1.80.3, 1.98.10 and 1.102.5).
fn keeps_map_over_restart(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (1, 82),
        _ => false,
    }
}

/// What this run has done so far.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub brought_up: bool,
    /// The login was restarted without a key.
    pub rescued: bool,
    pub login: Login,
    pub key: Key,
}

/// How the login of this run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    #[default]
    NotTried,
    /// The CLI runs.
    InFlight {
        lasted: Duration,
        /// tailscaled has shown a sign of it.
        begun: bool,
    },
    /// The CLI has ended; tailscaled has the key and tries by itself.
    WithDaemon {
        /// The refusal that tailscaled showed before, of an older login.
        stale: Option<String>,
    },
    /// It failed in a way that may pass, and tailscaled does not have the key.
    Failed {
        error: String,
        /// The time to wait is over.
        may_retry: bool,
    },
    /// The control server refused the key, `ago`.
    Refused {
        refusal: String,
        ago: Duration,
        /// tailscaled was made to forget the key.
        forgotten: bool,
    },
    /// It cannot work as things are.
    Impossible(Failure),
}

/// What is known of the auth key file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Key {
    #[default]
    Unread,
    Ready {
        /// It is the key that was refused before in this run.
        refused: bool,
    },
    /// Another run holds it.
    Busy,
    Wanting {
        error: KeyFileError,
        /// It has been waited for long enough.
        overdue: bool,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Wait(Waiting),
    /// Set WantRunning, and nothing else.
    BringUp,
    /// Read the auth key file, then look again.
    ReadKey,
    LogIn,
    /// End a CLI that does nothing.
    AbandonLogin,
    /// Restart the login without a key, to be rid of one that was refused before this run.
    Rescue {
        refusal: Option<String>,
    },
    /// Restart the login without a key: ours was refused.
    ForgetKey {
        refusal: String,
    },
    Finish,
    Fail(Failure),
}

/// What is being waited for. Its words are the STATUS= of the service, and documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    Tailscaled,
    Answer(String),
    Settling,
    ControlServer(Option<String>),
    LoggingIn,
    Verdict(String),
    Retry(String),
    Address(IpAddr),
    Approval,
    KeyFile(KeyFileError),
    OtherRun,
    StoppedByOther,
    Unknown(String),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tailscaled => f.write_str("waiting for tailscaled"),
            Self::Answer(why) => write!(f, "waiting for a usable answer of tailscaled: {why}"),
            Self::Settling => f.write_str("waiting for tailscaled to settle"),
            Self::ControlServer(None) => f.write_str("waiting for the control server"),
            Self::ControlServer(Some(why)) => write!(f, "waiting for the control server: {why}"),
            Self::LoggingIn => f.write_str("logging in"),
            Self::Verdict(why) => write!(f, "the login seems to be refused, looking again: {why}"),
            Self::Retry(why) => write!(f, "the login failed and is tried again: {why}"),
            Self::Address(address) => write!(f, "waiting for the address {address}"),
            Self::Approval => f.write_str("waiting for an admin to approve this device"),
            Self::KeyFile(error) => {
                let path = error.path().display();
                write!(f, "waiting for the auth key file {path} ({})", error.brief())
            }
            Self::OtherRun => {
                f.write_str("waiting for another tailscale-autoconnect that uses the auth key")
            }
            Self::StoppedByOther => f.write_str(
                "someone stopped tailscale while it was connecting; left alone until `tailscale up`",
            ),
            Self::Unknown(state) => {
                write!(f, "waiting: tailscaled is in the unknown state {state}")
            }
        }
    }
}

/// The policy. `lasted` says how long the situation has been the same.
pub fn decide(situation: &Situation, lasted: Duration, tried: &Tried) -> Action {
    use Situation as S;
    let first_login = tried.login == Login::NotTried;
    match (situation, &tried.login) {
        // However the login of this run stands: who is connected is done.
        (S::Connected, _) => Action::Finish,
        (S::AddressPending(_), _) if lasted >= ADDRESS_PATIENCE => Action::Finish,
        (S::AddressPending(address), _) => Action::Wait(Waiting::Address(*address)),
        (S::NeedsApproval, _) => Action::Wait(Waiting::Approval),

        (S::Denied(_), _) if lasted < SOCKET_PATIENCE => Action::Wait(Waiting::Tailscaled),
        (S::Denied(why), _) => Action::Fail(Failure::Denied(why.clone())),
        (_, Login::Impossible(failure)) => Action::Fail(failure.clone()),
        (_, Login::Refused { .. }) => after_refusal(situation, tried),

        (S::NoDaemon, _) => Action::Wait(Waiting::Tailscaled),
        (S::Unintelligible(why), _) => Action::Wait(Waiting::Answer(why.clone())),
        (S::Unknown(state), _) => Action::Wait(Waiting::Unknown(state.clone())),

        // The auth key is never sent here: it would not help, and could take the node off.
        (S::Settling { trouble: None }, Login::NotTried) => Action::Wait(Waiting::Settling),
        (S::Settling { trouble: None }, _) => Action::Wait(Waiting::LoggingIn),
        (S::Settling { trouble }, _) => Action::Wait(Waiting::ControlServer(trouble.clone())),

        (S::Stranded { refusal }, Login::NotTried) if !tried.rescued => Action::Rescue {
            refusal: Some(refusal.clone()),
        },
        (S::Stranded { refusal }, Login::NotTried) => {
            Action::Wait(Waiting::ControlServer(Some(refusal.clone())))
        }
        (S::Stranded { refusal }, login) => under_way(Some(refusal), None, lasted, login),

        (
            S::Offline {
                may_restart: true, ..
            },
            Login::NotTried,
        ) if lasted >= OFFLINE_PATIENCE && !tried.rescued => Action::Rescue { refusal: None },
        (S::Offline { trouble, .. }, _) => Action::Wait(Waiting::ControlServer(trouble.clone())),

        (S::Stopped, _) if first_login && !tried.brought_up => Action::BringUp,
        (S::Stopped, _) => Action::Wait(Waiting::StoppedByOther),

        // Someone else's dead key is still being sent: its error would be taken for ours.
        (
            S::NeedsLogin {
                error: Some(LoginError::Refused(text)),
                asks: false,
            },
            Login::NotTried,
        ) if !tried.rescued => Action::Rescue {
            refusal: Some(text.clone()),
        },
        (S::NeedsLogin { .. }, Login::NotTried) => with_key(&tried.key),
        (S::NeedsLogin { .. }, Login::Failed { error, may_retry }) => {
            if *may_retry {
                with_key(&tried.key)
            } else {
                Action::Wait(Waiting::Retry(error.clone()))
            }
        }
        // It asks for a person: it has lost the key, by a restart.
        (S::NeedsLogin { asks: true, .. }, Login::WithDaemon { .. }) if lasted >= REFUSAL_DOUBT => {
            with_key(&tried.key)
        }
        (S::NeedsLogin { error, .. }, login) => {
            let (refusal, trouble) = match error {
                Some(LoginError::Refused(text)) => (Some(text), None),
                Some(LoginError::Transient(text)) => (None, Some(text)),
                None => (None, None),
            };
            under_way(refusal, trouble, lasted, login)
        }
    }
}

/// The CLI runs, or has ended and left the key with tailscaled, which tries by itself. A second
/// login now could burn a single-use key.
fn under_way(
    refusal: Option<&String>,
    trouble: Option<&String>,
    lasted: Duration,
    login: &Login,
) -> Action {
    match (login, refusal) {
        (
            Login::InFlight {
                lasted,
                begun: false,
            },
            _,
        ) if *lasted >= CLI_PATIENCE => Action::AbandonLogin,
        // `up` says 0 on a node with a network map even if the key was refused.
        (Login::WithDaemon { stale }, Some(text)) => {
            let doubt = if stale.as_ref() == Some(text) {
                STALE_DOUBT
            } else {
                REFUSAL_DOUBT
            };
            if lasted >= doubt {
                Action::ForgetKey {
                    refusal: text.clone(),
                }
            } else {
                Action::Wait(Waiting::Verdict(text.clone()))
            }
        }
        _ => Action::Wait(match trouble {
            Some(text) => Waiting::ControlServer(Some(text.clone())),
            None => Waiting::LoggingIn,
        }),
    }
}

/// The control server refused our key. It is looked at again, tailscaled is made to forget the
/// key, and a node that had a node key gets the time to come up on it.
fn after_refusal(situation: &Situation, tried: &Tried) -> Action {
    let Login::Refused {
        refusal,
        ago,
        forgotten,
    } = &tried.login
    else {
        return Action::Wait(Waiting::Settling);
    };
    if !forgotten {
        return if *ago < REFUSAL_DOUBT {
            Action::Wait(Waiting::Verdict(refusal.clone()))
        } else {
            Action::ForgetKey {
                refusal: refusal.clone(),
            }
        };
    }
    let needs_login = matches!(situation, Situation::NeedsLogin { .. });
    let may_recover = matches!(
        situation,
        Situation::Settling { .. } | Situation::Offline { .. }
    );
    match tried.key {
        Key::Unread => Action::ReadKey,
        // The secret was replaced in the meantime.
        Key::Ready { refused: false } if needs_login => Action::LogIn,
        _ if may_recover && *ago < RECOVERY_PATIENCE => Action::Wait(Waiting::Settling),
        _ => Action::Fail(Failure::KeyRefused(refusal.clone())),
    }
}

/// A login is needed and nothing stands against it but, perhaps, the key file.
fn with_key(key: &Key) -> Action {
    match key {
        Key::Unread => Action::ReadKey,
        Key::Ready { .. } => Action::LogIn,
        Key::Busy => Action::Wait(Waiting::OtherRun),
        Key::Wanting { error, overdue } if error.is_worth_a_wait() && !overdue => {
            Action::Wait(Waiting::KeyFile(error.clone()))
        }
        Key::Wanting { error, .. } => Action::Fail(Failure::KeyFile(error.clone())),
    }
}
