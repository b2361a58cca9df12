//! Staying after the node is connected: what keeps it on its tailnet, and what is left alone.
//!
//! The times are parts of the life of the node key, so what holds for a life of 180 days holds for
//! one of 20 seconds. How a renewal goes was measured on 1.66, 1.98 and 1.102.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use serde_json::Value;

use crate::failure::{Connected, Note, Obstacle, Waiting};
use crate::key::{KeyFacts, belongs_to};
use crate::policy::login::Login;
use crate::policy::steps::END_PATIENCE;
use crate::policy::{
    Action, Backoff, Key, Machine, OFFLINE_PATIENCE, Situation, Time, Why, is_refused,
    is_same_server, locked_out,
};
use crate::prefs::{self, Prefs};
use crate::record::{NodeKey, RefusedKey};
use crate::tailscaled::{LocalApiError, Status};
use crate::up::{LoginError, trouble};

/// A time of the wall clock, counted from 1970.
pub type Clock = Duration;

/// A node key is renewed from a random part of its life on, so that a fleet spreads: from this one…
const RENEW_FROM: f64 = 0.7;
/// … to this one.
const RENEW_BY: f64 = 0.9;
/// Between two tries lies this part of its life at least. As exact are clocks taken to be.
const BETWEEN_TRIES: u32 = 100;
/// The longest that a renewal may take, which is no more than this part of the life.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);
const RENEWAL_PART: u32 = 10;
/// The control server tells the peers of a new node key. A WireGuard handshake that comes before they
/// know it is lost, and the next one comes five seconds later (measured on 1.98.10).
const PEERS_LEARN: Duration = Duration::from_millis(50);
/// A part of a life is no shorter than that.
const LEAST_PART: Duration = Duration::from_millis(100);
/// How long nothing is looked at while nothing is told.
const QUIET: Duration = Duration::from_secs(120);
/// How long a node may need a login for before that is taken for somebody's will.
const DOUBT: Duration = Duration::from_secs(2);
/// How long a person may take at the login page before it is taken from them.
const AT_THE_PAGE: Duration = Duration::from_secs(300);
/// A clock before this is not set: 2024.
const SANE: Clock = Duration::from_secs(1_704_067_200);
/// The first version that keeps its network when a renewal fails.
const KEEPS_ITS_MAP: (u32, u32) = (1, 82);

/// Whether the process goes on when the node is connected.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Stay {
    /// It ends then.
    #[default]
    No,
    /// It goes on, once the node has been connected.
    Asked,
    /// The node has been connected, and is kept so.
    Begun(Keeping),
}

/// How a node that has been connected is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Keeping {
    /// Nothing is under way, and nothing is to be before then. The last renewal that was due was put
    /// off for this reason.
    Resting { until: Time, obstacle: Option<Obstacle> },
    /// tailscaled has the auth key, and had this node key before.
    Sent { since: Time, before: String },
    /// The renewal has failed, and tailscaled is to forget the auth key.
    Failed { words: String, refused: bool },
    /// tailscaled has forgotten it, but the control server may have accepted it unheard. Until then, what
    /// becomes of the node is our own doing.
    Unheard { until: Time },
    /// There is a new node key, and the peers are to hear of it.
    Came { since: Time },
    /// The node has left its tailnet without anybody's will, and is logged in as at a boot.
    Lost,
    /// Somebody has taken it off its tailnet.
    LeftAlone,
}

const RESTED: Keeping = Keeping::Resting { until: Time::ZERO, obstacle: None };

/// When the node key is to be renewed: at a part of its life that is fixed for node and node key.
pub fn renew_at(node: &NodeKey) -> Clock {
    let mut hasher = DefaultHasher::new();
    node.key.hash(&mut hasher);
    let part =
        RENEW_FROM + (RENEW_BY - RENEW_FROM) * fastrand::Rng::with_seed(hasher.finish()).f64();
    node.expiry.saturating_sub(node.life.mul_f64(1.0 - part))
}

/// What stands against a renewal of a node that is connected, whatever the key. `asked`: the login
/// server that is asked for.
pub fn obstacle(
    status: &Status,
    prefs: &Prefs,
    asked: Option<&str>,
    clock: Clock,
) -> Option<Obstacle> {
    let server = prefs::text(prefs, "ControlURL");
    let tags = prefs.get("AdvertiseTags").and_then(Value::as_array);
    let is_asked =
        |tag: &String| tags.is_some_and(|tags| tags.iter().any(|asked| asked == tag.as_str()));
    Some(match () {
        () if status.major_and_minor() < KEEPS_ITS_MAP => Obstacle::OldVersion,
        () if clock < SANE => Obstacle::Clock,
        () if locked_out(status).is_some() => Obstacle::LockedOut,
        () if !status.node.online => Obstacle::Offline,
        () if trouble(&status.health).is_some() => Obstacle::Trouble,
        () if asked.is_some_and(|asked| !is_same_server(asked, server)) => Obstacle::Elsewhere,
        () if !status.node.tags.iter().all(is_asked) => Obstacle::Tags,
        () => return None,
    })
}

/// What stands against a renewal with this key.
pub fn obstacle_of_key(
    key: &KeyFacts,
    prefs: &Prefs,
    refused: Option<&RefusedKey>,
) -> Option<Obstacle> {
    let server = prefs::text(prefs, "ControlURL");
    Some(match key.kind {
        kind if belongs_to(kind, server).is_err() => Obstacle::NoKey,
        kind if kind.is_oauth_secret() => Obstacle::OAuthSecret,
        _ if refused.is_some_and(|refused| is_refused(key, server, refused)) => {
            Obstacle::RefusedKey
        }
        _ => return None,
    })
}

impl Machine {
    /// Whether the node has been connected, and the process stays.
    pub fn is_staying(&self) -> bool {
        matches!(self.stay, Stay::Begun(_))
    }

    // ---- what is seen

    /// What was seen of a node that we stay with.
    pub(super) fn look_after(&mut self, situation: &Situation, now: Time) {
        let is_connected = situation.is_connected();
        if is_connected && self.stay == Stay::Asked && self.login != Login::Came {
            self.stay = Stay::Begun(RESTED);
        }
        let Stay::Begun(keeping) = &self.stay else {
            return;
        };
        if let Some(next) = self.next_keeping(keeping, situation, now) {
            if next == Keeping::Lost {
                self.forget_the_way();
            }
            self.stay = Stay::Begun(next);
        }
        if is_connected {
            self.remember_node_key();
        }
    }

    fn next_keeping(&self, keeping: &Keeping, situation: &Situation, now: Time) -> Option<Keeping> {
        use Situation as S;
        match (keeping, situation) {
            (Keeping::Sent { since, before }, _) => self.outcome(situation, *since, before, now),
            (Keeping::Lost | Keeping::LeftAlone, _) if situation.is_connected() => Some(RESTED),
            (Keeping::Unheard { until }, _) if situation.is_connected() && now >= *until => {
                Some(RESTED)
            }
            (Keeping::Unheard { .. }, S::NeedsLogin { .. } | S::AsksForPerson { .. }) => {
                Some(Keeping::Lost)
            }
            (Keeping::Resting { .. } | Keeping::Unheard { .. }, S::Stopped) => {
                Some(Keeping::LeftAlone)
            }
            (
                Keeping::Resting { .. },
                S::NeedsLogin { .. } | S::AsksForPerson { .. } | S::SettlingNew { .. },
            ) => {
                let asks = matches!(situation, S::AsksForPerson { .. });
                let expired = self.status.as_ref().is_some_and(|status| status.node.expired);
                match asks && !expired && self.setup.rejoin {
                    _ if self.is_over() => Some(Keeping::Lost),
                    // Deleted: the control server does not know the node, whose node key has not expired.
                    true => Some(Keeping::Lost),
                    false if asks || self.lasted(now) >= DOUBT => Some(Keeping::LeftAlone),
                    false => None,
                }
            }
            _ => None,
        }
    }

    /// What a renewal has come to.
    fn outcome(
        &self,
        situation: &Situation,
        since: Time,
        before: &str,
        now: Time,
    ) -> Option<Keeping> {
        let refused =
            |words: &str| Some(Keeping::Failed { words: words.to_owned(), refused: true });
        match (situation, situation.login_error()) {
            (Situation::ConnectedWithDeadKey(words), _) => refused(words),
            (_, Some(LoginError::Refused(refusal))) => refused(&refusal.words),
            _ if situation.is_connected() && self.node_key().is_some_and(|key| key != before) => {
                Some(Keeping::Came { since: now })
            }
            (_, error) if now >= since.saturating_add(self.renewal_patience()) => {
                let words =
                    error.map_or("there was no answer in time", LoginError::words).to_owned();
                Some(Keeping::Failed { words, refused: false })
            }
            _ => None,
        }
    }

    /// A login that begins now has nothing to do with those that went before it.
    fn forget_the_way(&mut self) {
        (self.logins, self.secondhand, self.complaint) = (0, 0, Default::default());
        (self.failures, self.key_wanted_since) = (Backoff::default(), None);
        // It was ours.
        self.others_login = false;
    }

    // ---- the life of a node key

    /// Keeps in the record how long the node key lives.
    fn remember_node_key(&mut self) {
        let (key, expiry, clock) = (self.node_key(), self.expiry(), self.clock);
        let (Some(key), Some(record)) = (key, self.record.as_mut().filter(|_| clock >= SANE))
        else {
            return;
        };
        let known = record.node.take().filter(|node| node.key == key);
        record.node = expiry.and_then(|expiry| match known {
            Some(node) if node.expiry == expiry => Some(node),
            // The longest life that was seen, since its start is not known.
            known => {
                let left = expiry.saturating_sub(clock);
                let life = known.map_or(Duration::ZERO, |node| node.life).max(left);
                // By this clock it has expired before it was seen.
                (!life.is_zero()).then(|| Box::new(NodeKey { key, expiry, life }))
            }
        });
    }

    fn node_key(&self) -> Option<String> {
        let key = &self.status.as_ref()?.node.public_key;
        (!key.is_empty()).then(|| key.clone())
    }

    /// When the node key expires; none if it never does, or nobody knows.
    fn expiry(&self) -> Option<Clock> {
        self.status.as_ref()?.node.expiry()?.duration_since(UNIX_EPOCH).ok()
    }

    /// How much is left of the node key's life, as far as it was seen while the node was connected.
    fn left(&self) -> Duration {
        self.known_node_key().map_or(Duration::ZERO, |node| node.expiry.saturating_sub(self.clock))
    }

    fn known_node_key(&self) -> Option<&NodeKey> {
        self.record.as_ref()?.node.as_deref()
    }

    /// This part of the node key's life, but no more than that.
    fn part_of_life(&self, part: u32, most: Duration) -> Duration {
        self.known_node_key().map_or(most, |node| (node.life / part).max(LEAST_PART).min(most))
    }

    fn renewal_patience(&self) -> Duration {
        self.part_of_life(RENEWAL_PART, RENEWAL_PATIENCE)
    }

    /// Whether the node key has come to its end by itself.
    fn is_over(&self) -> bool {
        self.known_node_key().is_some()
            && self.left() <= self.part_of_life(BETWEEN_TRIES, Duration::MAX)
    }

    fn renew_at(&self) -> Option<Clock> {
        self.known_node_key().map(renew_at)
    }

    // ---- what to do

    /// What to do for a node that we stay with; none if it's what a run does, too.
    pub(super) fn keep(
        &self,
        keeping: &Keeping,
        situation: &Situation,
        now: Time,
    ) -> Option<Action> {
        use Situation as S;
        match (keeping, situation) {
            (Keeping::Failed { .. }, _) => Some(Action::Restart(Why::Renewal)),
            (Keeping::Came { since }, _) => {
                let learnt = since.saturating_add(PEERS_LEARN);
                Some(if now < learnt { Action::Wait(self.staying(), learnt) } else { Action::Ping })
            }
            (Keeping::Sent { since, .. }, _) => {
                let limit = since.saturating_add(self.renewal_patience());
                let look =
                    now.saturating_add((now.saturating_sub(*since) / 10).max(super::LOOK_LEAST));
                Some(Action::Wait(self.staying(), look.min(limit)))
            }
            (Keeping::Lost, S::Stopped) => {
                Some(Action::Wait(Waiting::LeftAlone, now.saturating_add(QUIET)))
            }
            (Keeping::Lost, _) => None,
            // Only where the node key has come to its end is it ours to log the node in.
            (Keeping::LeftAlone, _) => Some(self.leave_alone(situation, now)),
            (
                _,
                S::Stopped | S::NeedsLogin { .. } | S::AsksForPerson { .. } | S::SettlingNew { .. },
            ) => Some(self.wait(Waiting::Settling, now)),
            (_, S::Connected | S::AddressPending(_)) if self.is_time(keeping, now) => {
                Some(self.renew(now))
            }
            (
                Keeping::Resting { until, .. } | Keeping::Unheard { until },
                S::Connected | S::AddressPending(_),
            ) => {
                let due = self.renew_at().map_or(QUIET, |at| at.saturating_sub(self.clock));
                let rest = due.max(until.saturating_sub(now)).min(QUIET);
                Some(Action::Wait(self.staying(), now.saturating_add(rest)))
            }
            // It may be back by itself in a moment.
            (_, S::Offline { .. } | S::Settling { .. })
                if self.is_time(keeping, now)
                    && self.lasted(now) >= self.part_of_life(BETWEEN_TRIES, OFFLINE_PATIENCE) =>
            {
                Some(Action::Postpone(Obstacle::Offline))
            }
            _ => None,
        }
    }

    fn is_time(&self, keeping: &Keeping, now: Time) -> bool {
        let is_rested = matches!(keeping, Keeping::Resting { until, .. } if now >= *until);
        is_rested && self.renew_at().is_some_and(|at| self.clock >= at)
    }

    /// It is time.
    fn renew(&self, now: Time) -> Action {
        // What the server and the tags of the node are.
        let (Some(known), Some(status)) = (&self.known, &self.status) else {
            return Action::ReadPrefs;
        };
        let asked = self.setup.server.as_deref();
        let obstacle = match (&self.key, obstacle(status, &known.prefs, asked, self.clock)) {
            (_, Some(obstacle)) => Some(obstacle),
            (Key::Unread, None) => return Action::ReadKey,
            (Key::Busy, None) => return self.wait(self.staying(), now),
            (Key::Wanting(_), None) => Some(Obstacle::NoKey),
            (Key::Ready(facts), None) => {
                obstacle_of_key(facts, &known.prefs, self.stored.refused.as_ref())
            }
        };
        match obstacle {
            Some(obstacle) => Action::Postpone(obstacle),
            None => Action::Renew,
        }
    }

    /// A node that is left alone. One whose expiry an admin has taken back comes up with a restart of
    /// its login, which tailscaled does not do by itself.
    fn leave_alone(&self, situation: &Situation, now: Time) -> Action {
        let has_node_key = self.status.as_ref().is_some_and(|status| status.have_node_key);
        let patience = self.part_of_life(
            BETWEEN_TRIES,
            match situation {
                Situation::NeedsLogin { .. } => OFFLINE_PATIENCE,
                _ => AT_THE_PAGE,
            },
        );
        let is_asking =
            matches!(situation, Situation::NeedsLogin { .. } | Situation::AsksForPerson { .. });
        let look = self.since.saturating_add(patience).max(self.offline.not_before);
        match is_asking && has_node_key {
            true if now >= look => Action::Restart(Why::Offline),
            true => Action::Wait(Waiting::LeftAlone, look.min(now.saturating_add(QUIET))),
            false => Action::Wait(Waiting::LeftAlone, now.saturating_add(QUIET)),
        }
    }

    /// The words for a node that is connected.
    pub(super) fn staying(&self) -> Waiting {
        let none = Status::default();
        let connected = Connected::of(self.status.as_ref().unwrap_or(&none), self.has_logged_in);
        let obstacle = match self.stay {
            Stay::Begun(Keeping::Resting { obstacle, .. }) => obstacle,
            _ => None,
        };
        Waiting::Staying(connected, self.date_of_expiry(), obstacle)
    }

    fn date_of_expiry(&self) -> Option<String> {
        let date = format_rfc3339_seconds(UNIX_EPOCH.checked_add(self.expiry()?)?).to_string();
        Some(date.split('T').next().unwrap_or_default().to_owned())
    }

    /// tailscaled has the auth key for a renewal.
    pub(super) fn is_renewing(&self) -> bool {
        matches!(self.stay, Stay::Begun(Keeping::Sent { .. } | Keeping::Failed { .. }))
    }

    // ---- what has come of it

    /// The renewal is put off: it's thought of again after a part of the life.
    pub(super) fn on_postponed(&mut self, obstacle: Obstacle, now: Time) {
        self.notes.push(Note::NotRenewed { obstacle, left: self.left() });
        self.key = Key::Unread;
        let until = now.saturating_add(self.part_of_life(BETWEEN_TRIES, QUIET));
        self.stay = Stay::Begun(Keeping::Resting { until, obstacle: Some(obstacle) });
    }

    pub(super) fn on_renewal_sent(&mut self, result: Result<(), LocalApiError>, now: Time) {
        self.situation = None;
        self.stay = Stay::Begun(match result {
            Ok(()) => Keeping::Sent { since: now, before: self.node_key().unwrap_or_default() },
            // It may have come to tailscaled all the same.
            Err(error) => Keeping::Failed { words: error.to_string(), refused: false },
        });
    }

    /// tailscaled has been made to forget the key of a renewal.
    pub(super) fn on_renewal_failed(&mut self, words: String, refused: bool, now: Time) {
        if let (true, Key::Ready(facts), Some(record)) = (refused, &self.key, &mut self.record) {
            let (digest, server) = (facts.digest.clone(), self.server.clone().unwrap_or_default());
            record.refused = Some(RefusedKey { at: 0, digest, server, words: words.clone() });
        }
        self.notes.push(Note::RenewalFailed { words, left: self.left() });
        let until = now.saturating_add(self.part_of_life(BETWEEN_TRIES, Duration::MAX));
        self.stay = Stay::Begun(match refused {
            true => Keeping::Resting { until, obstacle: None },
            false => Keeping::Unheard { until },
        });
    }

    /// The peers have heard of the new node key.
    pub(super) fn on_pinged(&mut self) {
        self.situation = None;
        self.key = Key::Unread;
        self.notes.push(Note::Renewed(self.date_of_expiry()));
        if let Some(record) = &mut self.record {
            record.last.renewal = self.clock.as_secs();
        }
        self.stay = Stay::Begun(RESTED);
    }

    /// What is still to be done about a renewal before the run ends.
    pub(super) fn wind_up_renewal(&self, stopping: Time, now: Time) -> Option<Action> {
        match &self.stay {
            Stay::Begun(Keeping::Failed { .. }) => Some(Action::Restart(Why::Renewal)),
            Stay::Begun(Keeping::Sent { .. }) if self.situation.is_none() => Some(Action::Look),
            // To break it off could burn its key.
            Stay::Begun(Keeping::Sent { .. }) if now < stopping.saturating_add(END_PATIENCE) => {
                Some(self.wait(self.staying(), now))
            }
            _ => None,
        }
    }
}
