//! The policy: what is seen of tailscaled, and what was tried in this run, decide what to do.
//!
//! Pure functions, without clock and I/O. [`situation`] names the row of the table in README.md
//! that a status stands for; [`decide`] is the table.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::authkey::KeyFileError;
use crate::localapi::{LocalApiError, Status};
use crate::outcome::Failure;
use crate::redact::excerpt;
use crate::verdict::{LoginError, last_login_error, trouble};

/// How long a node may run on the last network map it knew before its login is restarted.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node without a node key may take to say what it needs.
const SETTLING_PATIENCE: Duration = Duration::from_secs(10);
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
/// How long a login may take that tailscaled has to itself, or that someone else seems to have
/// started, without any sign of it.
const OTHERS_PATIENCE: Duration = Duration::from_secs(30);
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
        /// It has nothing to come up with: no node key.
        is_new: bool,
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
    NeedsLogin {
        error: Option<LoginError>,
        /// tailscaled has given up on keys and asks for a person.
        asks: bool,
        has_node_key: bool,
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
    let has_node_key = status.have_node_key;
    match status.backend_state.as_str() {
        "NoState" | "Starting" | "Running"
            if !online
                && !asks
                && let Some(LoginError::Refused(refusal)) = error =>
        {
            Situation::Stranded { refusal }
        }
        "NoState" | "Starting" => Situation::Settling {
            trouble: trouble(&status.health),
            is_new: tells_of_node_key(status.major_and_minor()) && !has_node_key,
        },
        "Running" if online => match unbound {
            Some(address) => Situation::AddressPending(address),
            None => Situation::Connected,
        },
        "Running" if asks => Situation::NeedsLogin {
            error,
            asks,
            has_node_key,
        },
        "Running" => Situation::Offline {
            trouble: trouble(&status.health),
            may_restart: keeps_map_over_restart(status.major_and_minor()),
        },
        "Stopped" => Situation::Stopped,
        "NeedsLogin" => Situation::NeedsLogin {
            error,
            asks,
            has_node_key,
        },
        "NeedsMachineAuth" => Situation::NeedsApproval,
        other => Situation::Unknown(excerpt(other, 40)),
    }
}

/// Since 1.66 a status says whether there is a node key; before, it never does.
fn tells_of_node_key(version: (u32, u32)) -> bool {
    version >= (1, 66)
}

/// Names the situation in which there is no status, but this error.
pub fn without_status(error: &LocalApiError) -> Situation {
    match error {
        LocalApiError::Unreachable(_) | LocalApiError::NoAnswer => Situation::NoDaemon,
        LocalApiError::Denied(why) => Situation::Denied(why.clone()),
        LocalApiError::BadAnswer(why) => Situation::Unintelligible(why.clone()),
    }
}

/// Since 1.82 a restart of the login leaves the network map in place; before, it cuts the node
/// off until the control server answers (measured on 1.80.3, 1.98.10 and 1.102.5).
fn keeps_map_over_restart(version: (u32, u32)) -> bool {
    version >= (1, 82)
}

/// What this run has done so far.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub brought_up: bool,
    /// The login was restarted without a key.
    pub rescued: bool,
    /// On a node without a node key, the preferences looked as if a login were under way. Known
    /// once the key is ready.
    pub others_login: bool,
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
        lasted: Duration,
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

impl Action {
    /// Its name in the journal; documented.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Wait(_) => "wait",
            Self::BringUp => "bring_up",
            Self::ReadKey => "read_key",
            Self::LogIn => "log_in",
            Self::AbandonLogin => "abandon_login",
            Self::Rescue { .. } => "rescue",
            Self::ForgetKey { .. } => "forget_key",
            Self::Finish => "finish",
            Self::Fail(_) => "fail",
        }
    }
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

/// The policy. `lasted` says how long the situation and the kind of the login have been the same.
pub fn decide(situation: &Situation, lasted: Duration, tried: &Tried) -> Action {
    use Situation as S;
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

        (
            _,
            Login::InFlight {
                lasted,
                begun: false,
            },
        ) if *lasted >= CLI_PATIENCE => Action::AbandonLogin,

        (S::NoDaemon, _) => Action::Wait(Waiting::Tailscaled),
        (S::Unintelligible(why), _) => Action::Wait(Waiting::Answer(why.clone())),
        (S::Unknown(state), _) => Action::Wait(Waiting::Unknown(state.clone())),

        // Nothing comes of it by itself: a login has failed half-way, as on a disk that was full.
        (
            S::Settling {
                trouble: None,
                is_new: true,
            },
            Login::NotTried
            | Login::WithDaemon { .. }
            | Login::Failed {
                may_retry: true, ..
            },
        ) if lasted
            >= match tried.others_login {
                true => OTHERS_PATIENCE,
                false => SETTLING_PATIENCE,
            } =>
        {
            with_key(&tried.key)
        }
        // The auth key is never sent here: it would not help, and could take the node off.
        (S::Settling { trouble: None, .. }, Login::NotTried) => Action::Wait(Waiting::Settling),
        (S::Settling { trouble: None, .. }, Login::Failed { error, .. }) => {
            Action::Wait(Waiting::Retry(error.clone()))
        }
        (S::Settling { trouble: None, .. }, _) => under_way(None, None, lasted, tried),
        (S::Settling { trouble, .. }, _) => Action::Wait(Waiting::ControlServer(trouble.clone())),

        (S::Stranded { refusal }, Login::NotTried | Login::Failed { .. }) if !tried.rescued => {
            Action::Rescue {
                refusal: Some(refusal.clone()),
            }
        }
        (S::Stranded { refusal }, Login::NotTried | Login::Failed { .. }) => {
            Action::Wait(Waiting::ControlServer(Some(refusal.clone())))
        }
        (S::Stranded { refusal }, _) => under_way(Some(refusal), None, lasted, tried),

        (
            S::Offline {
                may_restart: true, ..
            },
            Login::NotTried,
        ) if lasted >= OFFLINE_PATIENCE && !tried.rescued => Action::Rescue { refusal: None },
        (S::Offline { trouble, .. }, _) => Action::Wait(Waiting::ControlServer(trouble.clone())),

        (S::Stopped, Login::NotTried) if !tried.brought_up => Action::BringUp,
        (S::Stopped, _) => Action::Wait(Waiting::StoppedByOther),

        // Someone else's dead key is still being sent: its error would be taken for ours.
        (
            S::NeedsLogin {
                error: Some(LoginError::Refused(text)),
                asks: false,
                ..
            },
            Login::NotTried
            | Login::Failed {
                may_retry: true, ..
            },
        ) if !tried.rescued => Action::Rescue {
            refusal: Some(text.clone()),
        },
        // Someone's login is under way, perhaps that of a run before this one: a second one
        // would burn a single-use key.
        (
            S::NeedsLogin {
                error, asks: false, ..
            },
            Login::NotTried,
        ) if tried.others_login
            && !tried.rescued
            && (lasted < OTHERS_PATIENCE || error.is_some()) =>
        {
            Action::Wait(match error.clone() {
                Some(error) => Waiting::ControlServer(Some(error.into_text())),
                None => Waiting::LoggingIn,
            })
        }
        (S::NeedsLogin { .. }, Login::NotTried) => with_key(&tried.key),
        (S::NeedsLogin { .. }, Login::Failed { error, may_retry }) => {
            if *may_retry {
                with_key(&tried.key)
            } else {
                Action::Wait(Waiting::Retry(error.clone()))
            }
        }
        // It asks for a person: it has lost the key, by a restart or by somebody else's login.
        (S::NeedsLogin { asks: true, .. }, Login::WithDaemon { .. }) if lasted >= REFUSAL_DOUBT => {
            with_key(&tried.key)
        }
        (S::NeedsLogin { asks: true, .. }, Login::InFlight { begun: true, .. })
            if lasted >= REFUSAL_DOUBT =>
        {
            Action::AbandonLogin
        }
        // It has the key and does nothing with it: the CLI was ended before it had said so.
        (
            S::NeedsLogin {
                error: None,
                asks: false,
                ..
            },
            Login::WithDaemon { .. },
        ) if lasted >= OTHERS_PATIENCE => with_key(&tried.key),
        (S::NeedsLogin { error, .. }, _) => {
            let (refusal, trouble) = match error {
                Some(LoginError::Refused(text)) => (Some(text), None),
                Some(LoginError::Transient(text)) => (None, Some(text)),
                None => (None, None),
            };
            under_way(refusal, trouble, lasted, tried)
        }
    }
}

/// The CLI runs, or has ended and left the key with tailscaled, which tries by itself. A second
/// login now could burn a single-use key.
fn under_way(
    refusal: Option<&String>,
    trouble: Option<&String>,
    lasted: Duration,
    tried: &Tried,
) -> Action {
    match (&tried.login, refusal) {
        // `up` says 0 on a node with a network map even if the key was refused.
        (
            Login::WithDaemon {
                stale,
                lasted: in_all,
            },
            Some(text),
        ) => {
            // tailscaled takes the message away for a moment with each new try, so it's not long the
            // same.
            let is_doubtful = stale.as_ref() == Some(text) && *in_all < STALE_DOUBT;
            if lasted < REFUSAL_DOUBT || is_doubtful {
                return Action::Wait(Waiting::Verdict(text.clone()));
            }
            let refusal = text.clone();
            match tried.rescued {
                // It may be of a key that somebody else has sent meanwhile. Ours is sent once more.
                false => Action::Rescue {
                    refusal: Some(refusal),
                },
                true => Action::ForgetKey { refusal },
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
    let may_recover = match situation {
        // The last refusal is shown until the answer to the node key is there.
        Situation::Settling { .. } | Situation::Offline { .. } | Situation::Stranded { .. } => true,
        // Either that lets it in, or it asks for a person.
        Situation::NeedsLogin {
            asks, has_node_key, ..
        } => *has_node_key && !asks,
        _ => false,
    };
    match tried.key {
        Key::Unread => Action::ReadKey,
        _ if may_recover && *ago < RECOVERY_PATIENCE => Action::Wait(Waiting::Settling),
        // The secret was replaced in the meantime.
        Key::Ready { refused: false } if needs_login => Action::LogIn,
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::localapi::SelfNode;
    use crate::samples::{REFUSAL, any_text, asking, keyed, status, with_error};

    const NOW: Duration = Duration::ZERO;
    const AN_AGE: Duration = Duration::from_secs(3600);

    const TROUBLE: &str = "fetch control key: dial tcp: connection refused";

    fn online(mut status: Status) -> Status {
        status.node.online = true;
        status
    }

    fn version(mut status: Status, version: &str) -> Status {
        status.version = version.into();
        status
    }

    fn tried(login: Login) -> Tried {
        Tried {
            login,
            ..Tried::default()
        }
    }

    fn ready(refused: bool) -> Key {
        Key::Ready { refused }
    }

    fn missing(overdue: bool) -> Key {
        Key::Wanting {
            error: KeyFileError::Missing("/k".into()),
            overdue,
        }
    }

    fn in_flight(seconds: u64, begun: bool) -> Login {
        Login::InFlight {
            lasted: Duration::from_secs(seconds),
            begun,
        }
    }

    fn with_daemon(stale: Option<&str>, seconds: u64) -> Login {
        Login::WithDaemon {
            lasted: Duration::from_secs(seconds),
            stale: stale.map(str::to_owned),
        }
    }

    fn refused(seconds: u64, forgotten: bool) -> Login {
        Login::Refused {
            refusal: REFUSAL.into(),
            ago: Duration::from_secs(seconds),
            forgotten,
        }
    }

    fn first(status: &Status) -> Action {
        decide(&situation(status, None), NOW, &Tried::default())
    }

    fn may_send_the_key(action: &Action) -> bool {
        matches!(action, Action::ReadKey | Action::LogIn)
    }

    #[test]
    fn the_table_row_by_row() {
        let address: IpAddr = "100.64.0.1".parse().unwrap();
        let stranded = Action::Rescue {
            refusal: Some(REFUSAL.into()),
        };
        let control =
            |why: Option<&str>| Action::Wait(Waiting::ControlServer(why.map(str::to_owned)));
        assert_eq!(
            decide(&Situation::NoDaemon, AN_AGE, &Tried::default()),
            Action::Wait(Waiting::Tailscaled)
        );
        for state in ["NoState", "Starting"] {
            assert_eq!(first(&status(state)), Action::Wait(Waiting::Settling));
            assert_eq!(
                first(&with_error(status(state), TROUBLE)),
                control(Some(TROUBLE))
            );
            assert_eq!(first(&with_error(status(state), REFUSAL)), stranded);
        }
        assert_eq!(first(&with_error(status("Running"), REFUSAL)), stranded);
        assert_eq!(first(&online(status("Running"))), Action::Finish);
        assert_eq!(
            decide(
                &situation(&online(status("Running")), Some(address)),
                NOW,
                &Tried::default()
            ),
            Action::Wait(Waiting::Address(address))
        );
        assert_eq!(
            decide(
                &Situation::AddressPending(address),
                ADDRESS_PATIENCE,
                &Tried::default()
            ),
            Action::Finish
        );
        assert_eq!(first(&asking(status("Running"))), Action::ReadKey);
        assert_eq!(first(&status("Running")), control(None));
        assert_eq!(
            first(&with_error(status("Running"), TROUBLE)),
            control(Some(TROUBLE))
        );
        assert_eq!(first(&status("Stopped")), Action::BringUp);
        assert_eq!(first(&status("NeedsLogin")), Action::ReadKey);
        assert_eq!(
            first(&status("NeedsMachineAuth")),
            Action::Wait(Waiting::Approval)
        );
        assert_eq!(
            first(&status("Dancing")),
            Action::Wait(Waiting::Unknown("Dancing".into()))
        );
    }

    #[test]
    fn the_key_is_sent_only_where_a_login_is_needed() {
        let mut tried = Tried::default();
        for key in [Key::Unread, ready(false)] {
            tried.key = key;
            for lasted in [NOW, AN_AGE] {
                for state in [
                    "NoState",
                    "Starting",
                    "Running",
                    "Stopped",
                    "NeedsMachineAuth",
                    "?",
                ] {
                    let status = |state| keyed(status(state));
                    for status in [
                        status(state),
                        online(status(state)),
                        with_error(status(state), REFUSAL),
                        with_error(status(state), TROUBLE),
                    ] {
                        let action = decide(&situation(&status, None), lasted, &tried);
                        assert!(!may_send_the_key(&action), "{status:?}: {action:?}");
                    }
                }
                for other in [Situation::NoDaemon, Situation::Unintelligible("x".into())] {
                    assert!(!may_send_the_key(&decide(&other, lasted, &tried)));
                }
            }
        }
    }

    #[test]
    fn no_second_login_while_one_is_under_way() {
        for login in [
            in_flight(0, false),
            in_flight(3600, true),
            with_daemon(None, 0),
        ] {
            for key in [Key::Unread, ready(false), missing(true)] {
                let tried = Tried {
                    key,
                    ..tried(login.clone())
                };
                for status in [
                    status("NeedsLogin"),
                    with_error(status("NeedsLogin"), TROUBLE),
                    with_error(status("NeedsLogin"), REFUSAL),
                    status("NoState"),
                    with_error(status("NoState"), REFUSAL),
                ] {
                    let action = decide(&situation(&status, None), NOW, &tried);
                    assert!(
                        !may_send_the_key(&action),
                        "{status:?} {tried:?}: {action:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_node_that_a_broken_login_left_with_nothing_logs_in_after_a_while() {
        let new = situation(&status("NoState"), None);
        let after = |login| Tried {
            login,
            key: ready(false),
            ..Tried::default()
        };
        for login in [Login::NotTried, with_daemon(None, 0)] {
            let tried = after(login);
            assert!(matches!(decide(&new, NOW, &tried), Action::Wait(_)));
            assert_eq!(decide(&new, SETTLING_PATIENCE, &tried), Action::LogIn);
            // One that has a node key comes up on it when it can; before 1.66 nobody can tell.
            for old in [
                keyed(status("NoState")),
                version(status("NoState"), "1.64.2"),
                version(status("NoState"), "odd"),
            ] {
                let action = decide(&situation(&old, None), AN_AGE, &tried);
                assert!(matches!(action, Action::Wait(_)), "{action:?}");
            }
        }
        let mut others = after(Login::NotTried);
        others.others_login = true;
        assert!(matches!(
            decide(&new, SETTLING_PATIENCE, &others),
            Action::Wait(_)
        ));
        assert_eq!(decide(&new, OTHERS_PATIENCE, &others), Action::LogIn);
    }

    #[test]
    fn a_login_that_tailscaled_has_lost_is_made_again() {
        let (quiet, begun) = (status("NeedsLogin"), in_flight(3600, true));
        let lost = asking(quiet.clone());
        for (seen, login, patience, action) in [
            // The CLI was ended between its two requests.
            (&quiet, with_daemon(None, 0), OTHERS_PATIENCE, Action::LogIn),
            (
                &keyed(quiet.clone()),
                with_daemon(None, 0),
                OTHERS_PATIENCE,
                Action::LogIn,
            ),
            // tailscaled was restarted.
            (&lost, with_daemon(None, 0), REFUSAL_DOUBT, Action::LogIn),
            // Somebody else's `tailscale up` has taken the place of ours, which goes on waiting.
            (&lost, begun, REFUSAL_DOUBT, Action::AbandonLogin),
        ] {
            let seen = situation(seen, None);
            let tried = Tried {
                login,
                key: ready(false),
                ..Tried::default()
            };
            let before = patience - Duration::from_millis(1);
            assert_eq!(
                decide(&seen, before, &tried),
                Action::Wait(Waiting::LoggingIn)
            );
            assert_eq!(decide(&seen, patience, &tried), action);
        }
    }

    #[test]
    fn someone_elses_login_is_let_come_to_its_end() {
        let mut tried = Tried {
            others_login: true,
            key: ready(false),
            ..Tried::default()
        };
        let quiet = situation(&status("NeedsLogin"), None);
        assert_eq!(
            decide(&quiet, NOW, &tried),
            Action::Wait(Waiting::LoggingIn)
        );
        assert_eq!(decide(&quiet, OTHERS_PATIENCE, &tried), Action::LogIn);
        let unreachable = situation(&with_error(status("NeedsLogin"), TROUBLE), None);
        assert_eq!(
            decide(&unreachable, AN_AGE, &tried),
            Action::Wait(Waiting::ControlServer(Some(TROUBLE.into())))
        );
        // It is over: a person is asked for, or we have ended it.
        let asking = situation(&asking(status("NeedsLogin")), None);
        assert_eq!(decide(&asking, NOW, &tried), Action::LogIn);
        tried.rescued = true;
        assert_eq!(decide(&quiet, NOW, &tried), Action::LogIn);
    }

    #[test]
    fn a_walk_through_a_fresh_join() {
        let mut tried = Tried::default();
        let needs_login = situation(&status("NeedsLogin"), None);
        assert_eq!(decide(&needs_login, NOW, &tried), Action::ReadKey);
        tried.key = missing(false);
        assert_eq!(
            decide(&needs_login, NOW, &tried),
            Action::Wait(Waiting::KeyFile(KeyFileError::Missing("/k".into())))
        );
        tried.key = Key::Busy;
        assert_eq!(
            decide(&needs_login, NOW, &tried),
            Action::Wait(Waiting::OtherRun)
        );
        tried.key = ready(false);
        assert_eq!(decide(&needs_login, NOW, &tried), Action::LogIn);
        tried.login = in_flight(0, true);
        for state in ["NeedsLogin", "NoState", "Starting"] {
            assert_eq!(
                decide(&situation(&status(state), None), NOW, &tried),
                Action::Wait(Waiting::LoggingIn)
            );
        }
        assert_eq!(
            decide(&situation(&status("NeedsMachineAuth"), None), NOW, &tried),
            Action::Wait(Waiting::Approval)
        );
        assert_eq!(
            decide(&situation(&online(status("Running")), None), NOW, &tried),
            Action::Finish
        );
    }

    #[test]
    fn a_walk_through_a_refused_key() {
        let needs_login = situation(&status("NeedsLogin"), None);
        let settling = situation(&status("NoState"), None);
        assert_eq!(
            decide(&needs_login, NOW, &tried(refused(1, false))),
            Action::Wait(Waiting::Verdict(REFUSAL.into()))
        );
        assert_eq!(
            decide(&needs_login, NOW, &tried(refused(2, false))),
            Action::ForgetKey {
                refusal: REFUSAL.into()
            }
        );
        let with = |login, key| Tried {
            key,
            ..tried(login)
        };
        assert_eq!(
            decide(&needs_login, NOW, &with(refused(2, true), Key::Unread)),
            Action::ReadKey
        );
        // The secret was replaced in the meantime.
        assert_eq!(
            decide(&needs_login, NOW, &with(refused(2, true), ready(false))),
            Action::LogIn
        );
        // It may have a node key to come up on.
        let mut keyed = status("NeedsLogin");
        keyed.have_node_key = true;
        assert_eq!(
            decide(
                &situation(&keyed, None),
                NOW,
                &with(refused(2, true), ready(false))
            ),
            Action::Wait(Waiting::Settling)
        );
        assert_eq!(
            decide(
                &situation(&asking(keyed), None),
                NOW,
                &with(refused(2, true), ready(false))
            ),
            Action::LogIn
        );
        assert_eq!(
            decide(&settling, NOW, &with(refused(2, true), ready(true))),
            Action::Wait(Waiting::Settling)
        );
        for (seen, login) in [
            (&needs_login, refused(2, true)),
            (&settling, refused(10, true)),
        ] {
            assert_eq!(
                decide(seen, NOW, &with(login, ready(true))),
                Action::Fail(Failure::KeyRefused(REFUSAL.into()))
            );
        }
        // The error was an older login's.
        assert_eq!(
            decide(&Situation::Connected, NOW, &tried(refused(1, false))),
            Action::Finish
        );
    }

    #[test]
    fn a_key_file_that_stays_away_ends_the_run_and_one_that_cannot_be_used_does_at_once() {
        let needs_login = situation(&status("NeedsLogin"), None);
        let with = |key| Tried {
            key,
            ..Tried::default()
        };
        assert_eq!(
            decide(&needs_login, NOW, &with(missing(true))),
            Action::Fail(Failure::KeyFile(KeyFileError::Missing("/k".into())))
        );
        let error = KeyFileError::Unusable {
            path: "/k".into(),
            problem: "is a directory",
        };
        let key = Key::Wanting {
            error: error.clone(),
            overdue: false,
        };
        assert_eq!(
            decide(&needs_login, NOW, &with(key)),
            Action::Fail(Failure::KeyFile(error))
        );
    }

    #[test]
    fn someone_elses_dead_key_is_cleared_away_once_and_never_by_a_key() {
        let mut tried = Tried::default();
        let needs_login = situation(&with_error(status("NeedsLogin"), REFUSAL), None);
        let running = situation(&with_error(status("Running"), REFUSAL), None);
        for seen in [&needs_login, &running] {
            assert!(matches!(decide(seen, NOW, &tried), Action::Rescue { .. }));
        }
        tried.rescued = true;
        assert_eq!(decide(&needs_login, NOW, &tried), Action::ReadKey);
        assert!(matches!(decide(&running, AN_AGE, &tried), Action::Wait(_)));
        // Nor did a login of ours get through that would have cleared it away.
        let failed = Tried {
            login: Login::Failed {
                error: "EOF".into(),
                may_retry: true,
            },
            ..Tried::default()
        };
        for seen in [&needs_login, &running] {
            assert!(matches!(decide(seen, NOW, &failed), Action::Rescue { .. }));
        }
        // It has given up on the key already: nothing to clear away.
        let asking = situation(&asking(with_error(status("Running"), REFUSAL)), None);
        assert_eq!(decide(&asking, NOW, &Tried::default()), Action::ReadKey);
    }

    #[test]
    fn the_rescue_of_a_node_that_stays_offline_is_for_daemons_that_keep_their_network_map() {
        let rescue = Action::Rescue { refusal: None };
        for (daemon, action) in [
            ("1.98.10", &rescue),
            ("1.82.0-t12", &rescue),
            ("2.0.1", &rescue),
            ("1.80.3-tdd4e", &Action::Wait(Waiting::ControlServer(None))),
            ("odd", &Action::Wait(Waiting::ControlServer(None))),
        ] {
            let offline = situation(&version(status("Running"), daemon), None);
            assert_eq!(
                &decide(&offline, OFFLINE_PATIENCE, &Tried::default()),
                action,
                "{daemon}"
            );
            for tried in [
                Tried {
                    rescued: true,
                    ..Tried::default()
                },
                // It would make tailscaled forget our key.
                tried(with_daemon(None, 0)),
            ] {
                assert!(matches!(decide(&offline, AN_AGE, &tried), Action::Wait(_)));
            }
        }
    }

    #[test]
    fn a_refusal_that_up_did_not_tell_of_is_believed_when_it_stays_and_comes_again() {
        for status in [status("Running"), status("NeedsLogin"), status("NoState")] {
            let seen = situation(&with_error(status, REFUSAL), None);
            let action = |lasted, stale, seconds, rescued| {
                let mut tried = tried(with_daemon(stale, seconds));
                tried.rescued = rescued;
                decide(&seen, lasted, &tried)
            };
            assert!(matches!(action(NOW, None, 99, true), Action::Wait(_)));
            // The message of an older login, which tailscaled shows again and again.
            let stale = |seconds| action(REFUSAL_DOUBT, Some(REFUSAL), seconds, false);
            assert!(matches!(stale(29), Action::Wait(_)));
            assert!(matches!(stale(30), Action::Rescue { .. }));
            let ours = |rescued| action(REFUSAL_DOUBT, None, 2, rescued);
            assert!(matches!(ours(false), Action::Rescue { .. }));
            assert!(matches!(ours(true), Action::ForgetKey { .. }));
        }
    }

    #[test]
    fn a_cli_that_does_nothing_is_ended_and_one_that_waits_for_the_control_server_is_not() {
        for state in ["NeedsLogin", "NoState", "Running", "Stopped"] {
            let seen = situation(&status(state), None);
            let decided = |seconds| decide(&seen, NOW, &tried(in_flight(seconds, false)));
            assert!(matches!(decided(29), Action::Wait(_)), "{state}");
            assert_eq!(decided(30), Action::AbandonLogin, "{state}");
        }
        let unreachable = situation(&with_error(status("NeedsLogin"), TROUBLE), None);
        assert_eq!(
            decide(&unreachable, AN_AGE, &tried(in_flight(3600, true))),
            Action::Wait(Waiting::ControlServer(Some(TROUBLE.into())))
        );
    }

    #[test]
    fn a_login_that_failed_in_passing_is_tried_again_after_a_while() {
        let needs_login = situation(&status("NeedsLogin"), None);
        let failed = |may_retry| {
            tried(Login::Failed {
                error: "EOF".into(),
                may_retry,
            })
        };
        assert_eq!(
            decide(&needs_login, NOW, &failed(false)),
            Action::Wait(Waiting::Retry("EOF".into()))
        );
        assert_eq!(decide(&needs_login, NOW, &failed(true)), Action::ReadKey);
    }

    #[test]
    fn whoever_stops_tailscale_while_we_wait_is_left_alone() {
        let mut tried = Tried::default();
        assert_eq!(decide(&Situation::Stopped, NOW, &tried), Action::BringUp);
        tried.brought_up = true;
        assert_eq!(
            decide(&Situation::Stopped, AN_AGE, &tried),
            Action::Wait(Waiting::StoppedByOther)
        );
    }

    fn some_status() -> impl Strategy<Value = Status> {
        let state = prop_oneof![
            4 => Just("NeedsLogin".to_owned()),
            8 => select(&["NoState", "Starting", "Running", "Stopped", "NeedsLogin",
                "NeedsMachineAuth", ""][..]).prop_map(str::to_owned),
            1 => any_text(),
        ];
        let version = prop_oneof![
            select(
                &[
                    "1.98.10",
                    "1.80.3-t1",
                    "",
                    "1",
                    "99999999999.1",
                    "-.",
                    "1.82"
                ][..]
            )
            .prop_map(str::to_owned),
            any_text(),
        ];
        let health = prop_oneof![
            any_text(),
            any_text().prop_map(|text| format!("The last login error was: {text}")),
            Just(format!("last login error={REFUSAL}")),
            Just(format!("last login error={TROUBLE}")),
            Just("last login error=".to_owned()),
        ];
        (
            state,
            version,
            vec(health, 0..3),
            any::<(bool, bool, bool, bool)>(),
        )
            .prop_map(|(backend_state, version, health, flags)| Status {
                version,
                tun: flags.0,
                backend_state,
                have_node_key: flags.1,
                auth_url: if flags.2 {
                    "https://x".into()
                } else {
                    String::new()
                },
                node: SelfNode {
                    online: flags.3,
                    ..SelfNode::default()
                },
                health,
                ..Status::default()
            })
    }

    fn some_time() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            (0..100u64).prop_map(Duration::from_secs),
            any::<Duration>(),
        ]
    }

    fn some_login() -> impl Strategy<Value = Login> {
        let text = || prop_oneof![Just(REFUSAL.to_owned()), any_text()];
        prop_oneof![
            Just(Login::NotTried),
            (some_time(), any::<bool>())
                .prop_map(|(lasted, begun)| Login::InFlight { lasted, begun }),
            (option::of(text()), some_time())
                .prop_map(|(stale, lasted)| Login::WithDaemon { stale, lasted }),
            (text(), any::<bool>())
                .prop_map(|(error, may_retry)| Login::Failed { error, may_retry }),
            (text(), some_time(), any::<bool>()).prop_map(|(refusal, ago, forgotten)| {
                Login::Refused {
                    refusal,
                    ago,
                    forgotten,
                }
            }),
            text().prop_map(|text| Login::Impossible(Failure::Misconfigured(text))),
        ]
    }

    fn some_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Unread),
            any::<bool>().prop_map(|refused| Key::Ready { refused }),
            Just(Key::Busy),
            any::<bool>().prop_map(|overdue| Key::Wanting {
                error: KeyFileError::Missing("/x".into()),
                overdue,
            }),
        ]
    }

    proptest! {
        // There is much to be combined, and it costs little.
        #![proptest_config({
            let usual = ProptestConfig::default();
            ProptestConfig { cases: usual.cases.saturating_mul(8), ..usual }
        })]

        #[test]
        fn whatever_is_seen_no_key_is_read_or_sent_but_where_a_login_is_needed(
            status in some_status(),
            unbound: Option<IpAddr>,
            trouble in option::weighted(0.2, any_text()),
            lasted in some_time(),
            flags: (bool, bool, bool),
            login in some_login(),
            key in some_key(),
        ) {
            let seen = match &trouble {
                None => situation(&status, unbound),
                Some(text) if text.len() % 3 == 0 => Situation::NoDaemon,
                Some(text) if text.len() % 3 == 1 => Situation::Denied(text.clone()),
                Some(text) => Situation::Unintelligible(text.clone()),
            };
            let (brought_up, rescued, others_login) = flags;
            let tried = Tried { brought_up, rescued, others_login, login, key };
            let state = status.backend_state.as_str();
            let online = state == "Running" && status.node.online && trouble.is_none();
            let needs_login = trouble.is_none()
                && (state == "NeedsLogin"
                    || (state == "Running" && !online && !status.auth_url.is_empty()));
            let after_refusal = matches!(tried.login, Login::Refused { forgotten: true, .. });
            // A login that ended half-way.
            let is_stuck = trouble.is_none()
                && ["NoState", "Starting"].contains(&state)
                && !status.have_node_key
                && tells_of_node_key(status.major_and_minor())
                && lasted >= SETTLING_PATIENCE;
            let needs_login = needs_login || is_stuck;
            let action = decide(&seen, lasted, &tried);
            let holds = match &action {
                Action::LogIn => {
                    // A second login burns a single-use key.
                    let is_first = match tried.login {
                        Login::NotTried | Login::Failed { may_retry: true, .. } => true,
                        Login::WithDaemon { .. } => {
                            !status.auth_url.is_empty() || is_stuck || lasted >= OTHERS_PATIENCE
                        }
                        _ => after_refusal && tried.key == Key::Ready { refused: false },
                    };
                    needs_login && is_first && matches!(tried.key, Key::Ready { .. })
                }
                Action::ReadKey => (needs_login || after_refusal) && tried.key == Key::Unread,
                Action::BringUp => state == "Stopped" && !tried.brought_up,
                Action::Finish => online,
                Action::Rescue { .. } => {
                    !tried.rescued
                        && matches!(
                            tried.login,
                            Login::NotTried | Login::WithDaemon { .. } | Login::Failed { .. }
                        )
                }
                Action::ForgetKey { .. } => matches!(
                    tried.login,
                    Login::WithDaemon { .. } | Login::Refused { forgotten: false, .. }
                ),
                Action::AbandonLogin => match tried.login {
                    Login::InFlight { begun, .. } => !begun || !status.auth_url.is_empty(),
                    _ => false,
                },
                Action::Wait(waiting) => !waiting.to_string().is_empty(),
                Action::Fail(_) => !online,
            };
            prop_assert!(holds, "{:?} on {:?} after {:?}", action, seen, tried);
        }
    }

    #[test]
    fn no_way_to_the_socket_is_final_after_a_moment() {
        let denied = Situation::Denied("the socket may not be opened".into());
        assert!(matches!(
            decide(&denied, NOW, &Tried::default()),
            Action::Wait(_)
        ));
        assert!(matches!(
            decide(&denied, SOCKET_PATIENCE, &Tried::default()),
            Action::Fail(Failure::Denied(_))
        ));
    }
}
