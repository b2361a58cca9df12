//! What a run would do as things stand: the machine of a run is driven from what was seen, time
//! passes, and nothing else changes. A pure function. A run may do otherwise where things do change,
//! such as a socket that tailscaled opens to us a moment later.

use std::time::Duration;

use crate::check::seen::Seen;
use crate::failure::{Failure, Mistake, Waiting};
use crate::flags;
use crate::key::NoKey;
use crate::policy::{Action, Event, Machine, Setup, Time};
use crate::tailscaled::LocalApiError;
use crate::up::{Ended, NoVersion};

/// More steps than any walk has.
const MOST_STEPS: usize = 200;

/// So long a wait lasts for ever.
const FOREVER: Time = Duration::from_secs(100 * 365 * 24 * 3600);

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

/// Drives the machine until something is done that nobody knows the outcome of, or nothing more
/// would change.
pub fn foresee(seen: &Seen) -> Foresight {
    let mut steps = Vec::new();
    let end = walk(seen, &mut steps);
    if let (End::Waits(_), Some(Step::Wait(_))) = (&end, steps.last()) {
        // That one has no end.
        steps.pop();
    }
    Foresight { steps, end }
}

fn walk(seen: &Seen, steps: &mut Vec<Step>) -> End {
    // The last of the chances that a machine has does not matter: time passes until it is there.
    let mut machine = Machine::new(Setup { stay: false, ..seen.setup.clone() }, 0);
    let mut prefs = seen.prefs.clone();
    let mut now = Time::ZERO;
    for _ in 0..MOST_STEPS {
        let action = machine.next(now);
        if matches!(action, Action::Restart(_)) && steps.contains(&Step::Rescue) {
            // What it leads to is not known; that it is done again and again is.
            let error = seen.situation().login_error().map(|error| error.words().to_owned());
            return End::Waits(Waiting::ControlServer(error));
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
            Action::ReadKey => Event::Key(match seen.key.locked {
                true => Err(NoKey::Busy),
                false => seen.key.key.clone().map_err(NoKey::File),
            }),
            Action::ReleaseKey => Event::Released,
            Action::Write(record) => {
                Event::Written { asked: record.clone(), written: Box::new(record), saved: true }
            }
            Action::Wait(waiting, _) if now >= FOREVER => return End::Waits(waiting),
            Action::Wait(mut waiting, until) => {
                if let Waiting::Retry(_, left) = &mut waiting {
                    // One wait, however much of it is left.
                    *left = Duration::ZERO;
                }
                // Time is taken in ever longer steps, so that each limit is met.
                now = until.max(now + now / 2);
                let step = Step::Wait(waiting);
                if steps.last() != Some(&step) {
                    steps.push(step);
                }
                Event::Woke
            }
            Action::Finish(_) => return End::Connected,
            Action::Fail(failure) => return End::Fails(failure),
            Action::Restart(_) => {
                steps.push(Step::Rescue);
                Event::Restarted(Ok(()))
            }
            Action::BringUp => {
                steps.push(Step::BringUp);
                match seen.objection() {
                    Some(error) => Event::BroughtUp(Err(error.clone())),
                    None => return End::Tries,
                }
            }
            Action::LogIn(_) => {
                steps.push(Step::LogIn);
                if seen.version == Err(NoVersion::Silent) {
                    let why = "the tailscale command does nothing".to_owned();
                    return End::Waits(Waiting::Retry(why, Duration::ZERO));
                }
                if let Some(mistake) = not_started(seen) {
                    Event::Started(Err(mistake.into()))
                } else if let Some(ended) = ended(seen) {
                    machine.on(Event::Started(Ok(())), now);
                    Event::Ended(ended)
                } else {
                    return End::Tries;
                }
            }
            Action::TakeBack { prefs: before, .. } => {
                steps.push(Step::TakeBack);
                prefs = Some(before.clone());
                Event::TookBack(Ok(Some(before)))
            }
            Action::PutBack { .. } => Event::PutBack(Ok(Some(Vec::new()))),
            Action::StopCommand => Event::CommandStopped,
            // These are for a run that stays, or is told to end.
            Action::Renew | Action::Postpone(_) | Action::Ping | Action::Stopped => {
                return End::Tries;
            }
        };
        machine.on(event, now);
    }
    match steps.last() {
        Some(Step::Wait(waiting)) => End::Waits(waiting.clone()),
        _ => End::Waits(Waiting::Settling),
    }
}

/// Why `tailscale up` would not be started, as far as that shows before.
fn not_started(seen: &Seen) -> Option<Mistake> {
    match &seen.version {
        Err(NoVersion::CannotRun(mistake)) => Some(mistake.clone()),
        _ => seen.distrust.clone(),
    }
}

/// How `tailscale up` would end, as far as that shows before.
fn ended(seen: &Seen) -> Option<Ended> {
    let asked = flags::value(&seen.setup.flags, "advertise-tags").unwrap_or_default();
    let own = seen.prefs.as_ref().and_then(|prefs| prefs.get("AdvertiseTags")?.as_array());
    let has_tags = !asked.is_empty() || own.is_some_and(|tags| !tags.is_empty());
    match seen.objection() {
        Some(error) => Some(Ended::Final(Failure::of_change(error))),
        None if seen.key.key.as_ref().is_ok_and(|key| key.kind.is_oauth_secret()) && !has_tags => {
            Some(Mistake::Settings("oauth authkeys require --advertise-tags".to_owned()).into())
        }
        None => None,
    }
}
