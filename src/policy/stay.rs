//! Staying after the node is connected: what keeps it on its tailnet, and what is left alone.
//!
//! The times are parts of the life of the node key, so what holds for a life of 180 days holds for
//! one of 20 seconds. How a renewal goes was measured on 1.66, 1.98 and 1.102.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::{format_rfc3339_seconds, parse_rfc3339_weak};

use crate::failure::{Connected, Note, Obstacle, Waiting};
use crate::key::KeyKind;
use crate::policy::login::Login;
use crate::policy::{Action, Key, Machine, Situation, Time, Why, locked_out};
use crate::record::{NodeKey, RefusedKey};
use crate::tailscaled::{LocalApiError, Status};
use crate::up::{LoginError, Refusal};

/// A time of the wall clock, counted from 1970.
pub type Clock = Duration;

/// A node key is renewed from a random part of its life on, so that a fleet spreads: from this one…
const RENEW_FROM: f64 = 0.7;
/// … to this one.
const RENEW_BY: f64 = 0.9;
/// Between two tries lies this part of its life at least.
const BETWEEN_TRIES: u32 = 100;
/// The longest that a renewal may take.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing is looked at while nothing is told.
const QUIET: Duration = Duration::from_secs(60);
/// A clock before this is not set: 2024.
const SANE: Clock = Duration::from_secs(1_704_067_200);

/// Whether the process goes on when the node is connected.
#[derive(Clone, Debug, PartialEq)]
pub enum Stay {
    /// It ends then.
    No,
    /// It goes on, once the node has been connected.
    Asked,
    /// The node has been connected, and is renewed in time.
    Begun(Renewal),
}

/// How the renewal of the node key stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Renewal {
    /// None is under way; the next may come then.
    Resting { until: Clock },
    /// tailscaled has the auth key, and had this node key before.
    Sent { since: Time, before: String },
    /// It has failed; tailscaled is to forget the auth key.
    Failed { refusal: Option<Refusal> },
    /// There is a new node key, and the peers are to hear of it.
    Came,
}

impl Machine {
    /// The time of the wall clock at the next look.
    pub(super) fn on_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// What was seen of a node that we stay with.
    pub(super) fn look_after(&mut self, situation: &Situation, now: Time) {
        if situation.is_connected() && self.stay == Stay::Asked && self.is_settled() {
            self.stay = Stay::Begun(Renewal::Resting { until: Clock::ZERO });
        }
        let Stay::Begun(renewal) = &self.stay else {
            return;
        };
        let key = self.node_key();
        let next = match (renewal, situation.login_error()) {
            (Renewal::Sent { before, .. }, _) if situation.is_connected() && key.as_ref() != Some(before) => {
                Some(Renewal::Came)
            }
            (Renewal::Sent { .. }, Some(LoginError::Refused(refusal))) => {
                Some(Renewal::Failed { refusal: Some(refusal.clone()) })
            }
            (Renewal::Sent { .. }, _) if let Situation::ConnectedWithDeadKey(words) = situation => {
                let refusal = Refusal { what: crate::up::Refused::Key, words: words.clone() };
                Some(Renewal::Failed { refusal: Some(refusal) })
            }
            (Renewal::Sent { since, .. }, _) if now >= since.saturating_add(self.renewal_patience()) => {
                Some(Renewal::Failed { refusal: None })
            }
            _ => None,
        };
        if let Some(next) = next {
            self.stay = Stay::Begun(next);
        }
        if situation.is_connected() {
            self.remember_node_key();
        }
    }

    fn is_settled(&self) -> bool {
        !matches!(self.login, Login::Came | Login::Found)
    }

    /// Keeps in the record since when the node has its node key, and how long that lives.
    fn remember_node_key(&mut self) {
        let (Some(key), Some(expiry), clock) = (self.node_key(), self.expiry(), self.clock) else {
            return;
        };
        let left = expiry.saturating_sub(clock);
        let Some(record) = self.record.as_mut().filter(|_| clock >= SANE) else {
            return;
        };
        let known = record.node.take().filter(|node| node.key == key);
        record.node = Some(match known {
            Some(node) if node.expiry == expiry => node,
            // The longest life that was seen, since its start is not known.
            known => {
                let longest = known.map_or(Duration::ZERO, |node| node.life).max(left);
                NodeKey { key, expiry, life: longest }
            }
        });
    }

    fn node_key(&self) -> Option<String> {
        let key = &self.status.as_ref()?.node.public_key;
        (!key.is_empty()).then(|| key.clone())
    }

    /// When the node key expires; none if it never does, or nobody knows.
    fn expiry(&self) -> Option<Clock> {
        let expiry = self.status.as_ref()?.node.key_expiry.as_deref()?;
        parse_rfc3339_weak(expiry).ok()?.duration_since(UNIX_EPOCH).ok()
    }

    fn life(&self) -> Option<(Clock, Duration)> {
        let node = self.record.as_ref()?.node.as_ref()?;
        Some((node.expiry, node.life))
    }

    fn renewal_patience(&self) -> Duration {
        let life = self.life().map_or(RENEWAL_PATIENCE, |(_, life)| life);
        (life / 10).min(RENEWAL_PATIENCE)
    }

    /// When the node key is to be renewed: at a part of its life that is fixed for node and node key.
    fn renew_at(&self) -> Option<Clock> {
        let (expiry, life) = self.life()?;
        let mut hasher = DefaultHasher::new();
        self.node_key()?.hash(&mut hasher);
        let part = RENEW_FROM + (RENEW_BY - RENEW_FROM) * fastrand::Rng::with_seed(hasher.finish()).f64();
        Some(expiry.saturating_sub(life.mul_f64(1.0 - part)))
    }

    /// What to do for a node that is connected and that we stay with.
    pub(super) fn look_after_connected(&self, renewal: &Renewal, now: Time) -> Action {
        match renewal {
            Renewal::Failed { .. } => Action::Restart(Why::Renewal),
            Renewal::Came => Action::Ping,
            Renewal::Sent { since, .. } => {
                self.wait_until(self.staying(), since.saturating_add(self.renewal_patience()), now)
            }
            Renewal::Resting { until } => {
                let due = self.renew_at().map(|at| at.max(*until));
                match due {
                    Some(due) if self.clock >= due => self.renew(now),
                    due => {
                        let left = due.map_or(QUIET, |due| due.saturating_sub(self.clock));
                        Action::Wait(self.staying(), now.saturating_add(left.min(QUIET)))
                    }
                }
            }
        }
    }

    /// It is time.
    fn renew(&self, now: Time) -> Action {
        let is_tagged = self.status.as_ref().is_some_and(|status| !status.node.tags.is_empty());
        let facts = match &self.key {
            Key::Unread => return Action::ReadKey,
            Key::Ready(facts) => Some(facts),
            Key::Busy => return self.wait(self.staying(), now),
            Key::Wanting(_) => None,
        };
        let refused = self.stored.refused.as_ref();
        let obstacle = match facts {
            _ if self.version() < (1, 82) => Some(Obstacle::OldVersion),
            _ if self.clock < SANE => Some(Obstacle::Clock),
            _ if self.status.as_ref().and_then(locked_out).is_some() => Some(Obstacle::LockedOut),
            _ if is_tagged => Some(Obstacle::Tags),
            None => Some(Obstacle::NoKey),
            Some(facts) => match facts.kind {
                KeyKind::OAuthSecret { .. } => Some(Obstacle::OAuthSecret),
                _ if refused.is_some_and(|refused| refused.digest == facts.digest) => {
                    Some(Obstacle::RefusedKey)
                }
                _ => None,
            },
        };
        match obstacle {
            Some(obstacle) => Action::Postpone(obstacle),
            None => Action::Renew,
        }
    }

    /// The renewal is put off: it's thought of again after a part of the life.
    pub(super) fn on_postponed(&mut self, obstacle: Obstacle) {
        let left = self.expiry().map_or(Duration::ZERO, |expiry| expiry.saturating_sub(self.clock));
        self.notes.push(Note::NotRenewed { obstacle, left });
        self.key = Key::Unread;
        self.rest();
    }

    fn rest(&mut self) {
        let life = self.life().map_or(QUIET, |(_, life)| life);
        self.stay = Stay::Begun(Renewal::Resting { until: self.clock.saturating_add(life / BETWEEN_TRIES) });
    }

    pub(super) fn on_renewal_sent(&mut self, result: Result<(), LocalApiError>, now: Time) {
        self.situation = None;
        match result {
            Ok(()) => {
                let before = self.node_key().unwrap_or_default();
                self.stay = Stay::Begun(Renewal::Sent { since: now, before });
            }
            // It may have come to tailscaled all the same.
            Err(_) => self.stay = Stay::Begun(Renewal::Failed { refusal: None }),
        }
    }

    /// tailscaled has been made to forget the key of a renewal.
    pub(super) fn on_renewal_failed(&mut self) {
        let Stay::Begun(Renewal::Failed { refusal }) = self.stay.clone() else {
            return;
        };
        let left = self.expiry().map_or(Duration::ZERO, |expiry| expiry.saturating_sub(self.clock));
        let words = refusal.as_ref().map(|refusal| refusal.words.clone());
        if let (Some(refusal), Key::Ready(facts), Some(record)) = (refusal, &self.key, &mut self.record) {
            let (digest, server) = (facts.digest.clone(), self.server.clone().unwrap_or_default());
            record.refused = Some(RefusedKey { at: 0, digest, server, words: refusal.words });
        }
        self.notes.push(Note::RenewalFailed { words, left });
        self.key = Key::Unread;
        self.rest();
    }

    /// The peers have heard of the new node key.
    pub(super) fn on_pinged(&mut self) {
        self.situation = None;
        self.key = Key::Unread;
        self.notes.push(Note::Renewed(self.date_of_expiry().unwrap_or_default()));
        self.stay = Stay::Begun(Renewal::Resting { until: Clock::ZERO });
    }

    /// The words for a node that is connected.
    pub(super) fn staying(&self) -> Waiting {
        let none = Status::default();
        let connected = Connected::of(self.status.as_ref().unwrap_or(&none), self.logins > 0);
        Waiting::Staying(connected, self.date_of_expiry())
    }

    fn date_of_expiry(&self) -> Option<String> {
        let date = format_rfc3339_seconds(SystemTime::UNIX_EPOCH + self.expiry()?).to_string();
        Some(date.split('T').next().unwrap_or_default().to_owned())
    }

    /// What to do for a node that has been connected, and that needs a login now. Only where its node
    /// key has come to its end is it ours to log it in; anything else was somebody's will.
    pub(super) fn may_log_in_again(&self) -> bool {
        let Stay::Begun(_) = self.stay else {
            return true;
        };
        let known = self.life().map(|(expiry, _)| expiry);
        known.is_some_and(|expiry| self.clock >= expiry) || (self.setup.rejoin && self.was_deleted())
    }

    /// Whether the control server no longer knows the node, whose node key has not expired.
    fn was_deleted(&self) -> bool {
        let is_over = self.expiry().is_some_and(|expiry| expiry <= self.clock);
        let expired = self.status.as_ref().is_some_and(|status| status.node.expired);
        !is_over && !expired && matches!(self.situation, Some(Situation::AsksForPerson { .. }))
    }

    /// A node that is left alone. One whose expiry an admin has taken back comes up with a restart of
    /// its login, which tailscaled does not do by itself.
    pub(super) fn leave_alone(&self, lasted: Duration, now: Time) -> Action {
        let has_node_key = self.status.as_ref().is_some_and(|status| status.have_node_key);
        if has_node_key && lasted >= super::OFFLINE_PATIENCE && now >= self.offline.not_before {
            return Action::Restart(Why::Offline);
        }
        Action::Wait(Waiting::LeftAlone, now.saturating_add(QUIET))
    }
}
