//! What a run would do as things stand: a walk through the policy of `decide`, in which time passes
//! and nothing else changes. A pure function. A run may do otherwise where things do change, such as
//! a socket that tailscaled opens to us a moment later.

use std::time::Duration;

use crate::authkey::KeyKind;
use crate::check::seen::{Access, Seen};
use crate::decide::{Action, Key, Login, Situation, Tried, Waiting, decide};
use crate::localapi::Prefs;
use crate::login::NoVersion;
use crate::outcome::Failure;
use crate::settings::{flag_value, login_under_way};
use crate::verdict::{Verdict, judge, locked};

const NOW: Duration = Duration::ZERO;
const FOREVER: Duration = Duration::MAX;

/// More steps than any walk has.
const MOST_STEPS: usize = 16;

/// What a walk starts from.
#[derive(Clone, Debug)]
pub struct Start {
    pub situation: Situation,
    pub key: Key,
    /// There is no node key, and the preferences look as if a login were under way.
    pub login_under_way: bool,
    pub login: Prospect,
    pub access: Access,
}

/// What can be told beforehand of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prospect {
    Possible,
    /// It would end like this.
    Impossible(Failure),
    /// The CLI would do nothing.
    Hangs,
}

/// What a run would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foresight {
    pub steps: Vec<Step>,
    pub end: End,
}

/// What it would do on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It would wait, for a while.
    Wait(Waiting),
    Rescue,
    BringUp,
    LogIn,
}

/// What it would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Connected,
    Fails(Failure),
    /// Without end, unless something changes.
    Waits(Waiting),
    /// It has sent something to tailscaled or to the control server, whose answer nobody knows.
    Tries,
}

impl Foresight {
    /// Whether a run would use the auth key, or wants to.
    pub fn needs_key(&self) -> bool {
        let wants_it = matches!(
            self.end,
            End::Fails(Failure::KeyFile(_)) | End::Waits(Waiting::OtherRun)
        );
        wants_it || self.steps.contains(&Step::LogIn)
    }
}

impl Start {
    /// As it was seen.
    pub fn new(seen: &Seen) -> Self {
        Self {
            situation: seen.situation(),
            key: match &seen.key.kind {
                _ if seen.key.locked => Key::Busy,
                Ok(_) => Key::Ready { refused: false },
                Err(error) => Key::Wanting {
                    error: error.clone(),
                    overdue: false,
                },
            },
            login_under_way: seen.prefs.as_ref().is_some_and(login_under_way)
                && !seen
                    .status
                    .as_ref()
                    .is_ok_and(|status| status.have_node_key),
            login: prospect(seen),
            access: seen.access.clone(),
        }
    }
}

/// What would become of a login, as far as it shows before. The sentences are those that a run
/// makes of what the CLI says then.
fn prospect(seen: &Seen) -> Prospect {
    match &seen.cli.version {
        Err(NoVersion::CannotRun(failure)) => return Prospect::Impossible(failure.clone()),
        Err(NoVersion::Silent) => return Prospect::Hangs,
        Ok(_) | Err(NoVersion::Failed(_)) => {}
    }
    if let Some(failure) = &seen.distrust {
        return Prospect::Impossible(failure.clone());
    }
    let runs = seen
        .status
        .as_ref()
        .is_ok_and(|status| status.backend_state == "Running");
    let has_tags = |prefs: &Prefs| {
        let tags = prefs.get("AdvertiseTags").and_then(|tags| tags.as_array());
        tags.is_some_and(|tags| !tags.is_empty())
    };
    let tags_given = flag_value(&seen.asked, "advertise-tags").is_some_and(|tags| !tags.is_empty())
        || seen.prefs.as_ref().is_some_and(has_tags);
    let said = match &seen.access {
        Access::Denied(why) => format!("Access denied: {why}"),
        Access::Locked(why) => why.clone(),
        _ if runs && seen.servers_differ() => {
            "can't change --login-server without --force-reauth".to_owned()
        }
        _ if seen.key.kind == Ok(KeyKind::OAuthSecret) && !tags_given => {
            "oauth authkeys require --advertise-tags".to_owned()
        }
        _ => return Prospect::Possible,
    };
    match judge(Some(1), &said) {
        Verdict::Impossible(failure) => Prospect::Impossible(failure),
        _ => Prospect::Possible,
    }
}

/// Walks until something is done that nobody knows the outcome of, or nothing more would change.
pub fn foresee(start: &Start) -> Foresight {
    let mut tried = Tried::default();
    let mut steps = Vec::new();
    let end = loop {
        if steps.len() > MOST_STEPS {
            break End::Waits(Waiting::Settling);
        }
        let mut action = decide(&start.situation, NOW, &tried);
        if let Action::Wait(waiting) = action {
            if let Key::Wanting { overdue, .. } = &mut tried.key {
                *overdue = true;
            }
            action = decide(&start.situation, FOREVER, &tried);
            if !matches!(action, Action::Wait(_)) {
                steps.push(Step::Wait(waiting));
            }
        }
        match action {
            Action::Finish => break End::Connected,
            Action::Fail(failure) => break End::Fails(failure),
            Action::Wait(waiting) => break End::Waits(waiting),
            Action::ReadKey if tried.key == Key::Unread => {
                tried.key = start.key.clone();
                tried.others_login =
                    start.login_under_way && matches!(start.key, Key::Ready { .. });
            }
            Action::Rescue { .. } if !tried.rescued => {
                steps.push(Step::Rescue);
                tried.rescued = true;
            }
            Action::BringUp => {
                steps.push(Step::BringUp);
                break match &start.access {
                    Access::Denied(why) => End::Fails(Failure::Denied(why.clone())),
                    Access::Locked(_) => End::Fails(locked()),
                    Access::Granted | Access::Unknown => End::Tries,
                };
            }
            Action::LogIn if tried.login == Login::NotTried => {
                steps.push(Step::LogIn);
                match &start.login {
                    Prospect::Possible => break End::Tries,
                    Prospect::Impossible(failure) => {
                        tried.login = Login::Impossible(failure.clone());
                    }
                    Prospect::Hangs => {
                        tried.login = Login::Failed {
                            error: "the tailscale command does nothing".to_owned(),
                            may_retry: false,
                        };
                    }
                }
            }
            // These need a login of our own that has begun, or were done before.
            Action::ReadKey
            | Action::Rescue { .. }
            | Action::LogIn
            | Action::AbandonLogin
            | Action::ForgetKey { .. } => break End::Tries,
        }
    };
    Foresight { steps, end }
}
