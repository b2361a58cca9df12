//! What a run would do as things stand: the machine of a run is driven from what was seen, time
//! passes, and nothing else changes. A pure function. A run may do otherwise where things do change,
//! such as a socket that tailscaled opens to us a moment later.

use std::time::Duration;

use crate::check::seen::{Access, Seen};
use crate::failure::{Failure, Waiting};
use crate::key::NoKey;
use crate::policy::{Action, Event, KeyFacts, Machine, Setup, Time, Why};
use crate::prefs::{self, Prefs};
use crate::tailscaled::LocalApiError;
use crate::up::{Ended, NoVersion, NotStarted};

/// More steps than any walk has.
const MOST_STEPS: usize = 200;

/// So long a wait lasts for ever.
const FOREVER: Time = Duration::from_secs(100 * 365 * 24 * 3600);

/// What can be told beforehand of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prospect {
    Possible,
    /// The command would not be started.
    NotStarted(NotStarted),
    /// The command would end like this.
    Ends(Ended),
    /// The command would do nothing.
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
    /// It would take back a login that a run before has begun.
    TakeBack,
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
            End::Fails(Failure::KeyFile(_) | Failure::RefusedBefore { .. })
                | End::Waits(Waiting::OtherRun)
        );
        wants_it || self.steps.contains(&Step::LogIn)
    }
}

/// What would become of a login, as far as it shows before.
pub fn prospect(seen: &Seen) -> Prospect {
    match &seen.cli.version {
        Err(NoVersion::CannotRun(why)) => return Prospect::NotStarted(why.clone()),
        Err(NoVersion::Silent) => return Prospect::Hangs,
        Ok(_) | Err(NoVersion::Failed(_)) => {}
    }
    if let Some(why) = &seen.distrust {
        return Prospect::NotStarted(NotStarted::Untrusted(why.clone()));
    }
    let has_tags = |prefs: &Prefs| {
        let tags = prefs.get("AdvertiseTags").and_then(|tags| tags.as_array());
        tags.is_some_and(|tags| !tags.is_empty())
    };
    let tags = prefs::flag_value(&seen.setup.flags, "advertise-tags");
    let has_tags =
        tags.is_some_and(|tags| !tags.is_empty()) || seen.prefs.as_ref().is_some_and(has_tags);
    match &seen.access {
        Access::Denied(why) => Prospect::Ends(Ended::Denied(why.clone())),
        Access::Locked(_) => Prospect::Ends(Ended::Locked),
        _ if seen.key.kind.as_ref().is_ok_and(|kind| kind.is_oauth_secret()) && !has_tags => {
            Prospect::Ends(Ended::BadSettings("oauth authkeys require --advertise-tags".to_owned()))
        }
        _ => Prospect::Possible,
    }
}

/// Drives the machine until something is done that nobody knows the outcome of, or nothing more
/// would change.
pub fn foresee(seen: &Seen) -> Foresight {
    // The last of the chances that a machine has does not matter: time passes until it is there.
    let mut machine = Machine::new(Setup { stay: false, ..seen.setup.clone() }, 0);
    let mut prefs = seen.prefs.clone();
    let mut now = Time::ZERO;
    let mut steps: Vec<Step> = Vec::new();
    // What is waited for, while nothing is done.
    let mut waited: Option<Waiting> = None;
    for _ in 0..MOST_STEPS {
        let action = machine.next(now);
        let is_done = !matches!(
            action,
            Action::Wait(..)
                | Action::Look
                | Action::ReadKey
                | Action::ReadPrefs
                | Action::ReadRecord
                | Action::Write(_)
                | Action::ReleaseKey
        );
        let is_rescued = steps.contains(&Step::Rescue);
        if matches!(&action, Action::Restart(why) if *why != Why::BringUp) && is_rescued {
            // What it leads to is not known; that it is done again and again is.
            return Foresight { steps, end: again(seen) };
        }
        if is_done && let Some(waiting) = waited.take() {
            steps.push(Step::Wait(waiting));
        }
        let event = match action {
            Action::ReadRecord => Event::Record(seen.record.clone()),
            Action::Look => Event::Seen {
                status: seen.status.clone(),
                unbound: seen.unbound,
                prefs: prefs.clone(),
            },
            Action::ReadPrefs => Event::Prefs {
                prefs: prefs.clone().ok_or(LocalApiError::NoAnswer),
                profile: None,
                live: true,
            },
            Action::ReadKey => Event::Key(key(seen)),
            Action::ReleaseKey => Event::Released,
            Action::Write(record) => {
                Event::Written { asked: record.clone(), written: record, saved: true }
            }
            Action::Wait(waiting, until) => {
                let is_same = waited.as_ref() == Some(&waiting);
                if now >= FOREVER {
                    return Foresight { steps, end: End::Waits(waiting) };
                }
                // Time is taken in ever longer steps, so that each limit is met.
                now = until.max(now + now / 2);
                if !is_same && let Some(before) = waited.replace(waiting) {
                    steps.push(Step::Wait(before));
                }
                Event::Woke
            }
            Action::Finish(_) => return Foresight { steps, end: End::Connected },
            Action::Fail(failure) => return Foresight { steps, end: End::Fails(failure) },
            Action::Restart(Why::BringUp) => match &seen.access {
                Access::Denied(why) => {
                    steps.push(Step::BringUp);
                    Event::Restarted(Err(LocalApiError::Denied(why.clone())))
                }
                Access::Locked(why) => {
                    steps.push(Step::BringUp);
                    Event::Restarted(Err(LocalApiError::Locked(why.clone())))
                }
                Access::Granted | Access::Unknown => Event::Restarted(Ok(())),
            },
            Action::Restart(_) => {
                steps.push(Step::Rescue);
                Event::Restarted(Ok(()))
            }
            Action::BringUp => {
                steps.push(Step::BringUp);
                return Foresight { steps, end: End::Tries };
            }
            Action::LogIn(_) => {
                steps.push(Step::LogIn);
                match prospect(seen) {
                    Prospect::Possible => return Foresight { steps, end: End::Tries },
                    Prospect::NotStarted(why) => Event::Started(Err(why)),
                    Prospect::Hangs => {
                        let why = "the tailscale command does nothing".to_owned();
                        return Foresight { steps, end: End::Waits(Waiting::Retry(why)) };
                    }
                    Prospect::Ends(ended) => {
                        machine.on(Event::Started(Ok(())), now);
                        Event::Ended(ended)
                    }
                }
            }
            Action::TakeBack { prefs: before, .. } => {
                steps.push(Step::TakeBack);
                prefs = Some(before.clone());
                Event::TookBack(Ok(Some(before)))
            }
            Action::PutBack { .. } => Event::PutBack(Ok(Some(Vec::new()))),
            Action::StopCommand => Event::CommandStopped,
            // These are for a run that stays.
            Action::Renew => Event::Renewed(Ok(())),
            Action::Postpone(obstacle) => Event::Postponed(obstacle),
            Action::Ping => Event::Pinged,
            Action::Stopped => return Foresight { steps, end: End::Tries },
        };
        machine.on(event, now);
    }
    Foresight { steps, end: End::Waits(waited.unwrap_or(Waiting::Settling)) }
}

/// A run would restart the login without a key again and again.
fn again(seen: &Seen) -> End {
    End::Waits(Waiting::ControlServer(
        seen.situation().login_error().map(|error| error.words().to_owned()),
    ))
}

fn key(seen: &Seen) -> Result<KeyFacts, NoKey> {
    match &seen.key.kind {
        _ if seen.key.locked => Err(NoKey::Busy),
        Ok(kind) => Ok(KeyFacts { kind: *kind, digest: seen.key.digest.clone() }),
        Err(error) => Err(NoKey::File(error.clone())),
    }
}
