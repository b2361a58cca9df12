//! The policy: one machine that holds all that a run knows. [`Machine::on`] takes in what happened,
//! [`Machine::next`] says what to do. No clock, no I/O: times are counted from the start of the run,
//! and what is done is for `run` to do.
//!
//! `decide` is the state table of CONTRIBUTING.md, grouped by what tailscaled shows.

#[cfg(test)]
mod attack_tests;
mod login;
mod put_back;
mod situation;
mod stay;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::policy::situation::{Situation, locked_out};
pub use crate::policy::stay::{Clock, obstacle, obstacle_of_key, renew_at};

use crate::failure::{Connected, Failure, Note, Obstacle, Waiting};
use crate::flags;
use crate::key::{KeyFacts, KeyFileError, NoKey, Problem, belongs_to};
use crate::policy::login::Login;
use crate::policy::put_back::History;
use crate::policy::stay::{Keeping, Stay};
use crate::prefs::{self, Prefs};
use crate::record::{BegunLogin, Record, RefusedKey};
use crate::server::{http_url, is_tailscales};
use crate::tailscaled::{LocalApiError, Notice, Status};
use crate::up::{Ended, LoginError, NotStarted};

/// A time, counted from the start of the run.
pub type Time = Duration;

/// The login server of a node that was given no other.
pub const TAILSCALES_SERVER: &str = "https://controlplane.tailscale.com";

/// How long a node may run on the last network map it knew, or show an error that is not known,
/// before its login is restarted without a key.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to say what it needs.
const SETTLING_PATIENCE: Duration = Duration::from_secs(10);
/// How long an address that cannot be bound yet is waited for.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a login of somebody else's may take without any sign of it.
const OTHERS_PATIENCE: Duration = Duration::from_secs(30);
/// How long permission to open the socket is waited for: tailscaled sets its mode after it
/// listens (safesocket/unixsocket.go).
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);
/// How long a change that tailscaled does not take for now is tried.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// The time between two looks: a tenth of the time already waited, within these limits.
const LOOK_LEAST: Duration = Duration::from_millis(50);
/// Without a tailscaled nothing can be told, and to look for its socket costs next to nothing.
const LOOK_LEAST_WITHOUT_DAEMON: Duration = Duration::from_millis(10);
const LOOK_MOST: Duration = Duration::from_secs(2);
/// How long a look waits that is overdue.
const OVERDUE: Duration = Duration::from_millis(1);

/// The time between two tries doubles from the one to the other.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// What a run is to do.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The login server that is asked for.
    pub server: Option<String>,
    /// The user's flags for `tailscale up`.
    pub flags: Vec<String>,
    pub key_file: PathBuf,
    /// How long the key file is waited for once it is needed.
    pub authkey_wait: Duration,
    /// Whether there may be none.
    pub authkey_optional: bool,
    pub socket: PathBuf,
    /// The tailscale command.
    pub program: PathBuf,
    /// Whether to stay when the node is connected.
    pub stay: bool,
    /// Whether a node that was deleted is joined anew while we stay.
    pub rejoin: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Read the record of earlier runs.
    ReadRecord,
    /// Ask tailscaled for its status.
    Look,
    /// Ask for the preferences and the profile, and follow them from now on.
    ReadPrefs,
    /// Lock and read the auth key file.
    ReadKey,
    /// Let others have the auth key file.
    ReleaseKey,
    /// Replace the record.
    Write(Record),
    /// Start `tailscale up` with the key and these flags.
    LogIn(Vec<String>),
    /// End the CLI.
    StopCommand,
    /// Restart the login without a key.
    Restart(Why),
    /// Set WantRunning, and nothing else.
    BringUp,
    /// Set these preferences, if the profile is the one of the login.
    PutBack {
        prefs: Prefs,
        profile: Option<String>,
    },
    /// Start with these preferences and without a key, if the profile is the one of the login.
    TakeBack {
        prefs: Prefs,
        profile: Option<String>,
    },
    /// Send the key to renew the node key of a node that is online.
    Renew,
    /// Put that off.
    Postpone(Obstacle),
    /// Ping the peers, so that they hear of a new node key at once.
    Ping,
    /// Wait for something to happen, but no longer than until then.
    Wait(Waiting, Time),
    Finish(Connected),
    Fail(Failure),
    /// All is done that has to be done before an end by a signal.
    Stopped,
}

/// Why the login is restarted without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// An auth key that somebody sent was refused, in these words.
    Stranded(String),
    /// The same of a node that is connected, for now.
    DeadKey(String),
    /// The node has been offline for long.
    Offline,
    /// A renewal has failed.
    Renewal,
    /// tailscaled would send the key of its last login when it is brought up.
    BringUp,
}

impl Action {
    /// Its name in the journal; documented.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ReadRecord => "read_record",
            Self::Look => "look",
            Self::ReadPrefs => "read_prefs",
            Self::ReadKey => "read_key",
            Self::ReleaseKey => "release_key",
            Self::Write(_) => "write_record",
            Self::LogIn(_) => "log_in",
            Self::StopCommand => "abandon_login",
            Self::Restart(Why::BringUp) | Self::BringUp => "bring_up",
            Self::Restart(Why::Renewal) => "forget_key",
            Self::Restart(_) => "rescue",
            Self::Renew | Self::Postpone(_) => "renew",
            Self::Ping => "ping",
            Self::PutBack { .. } => "put_back",
            Self::TakeBack { .. } => "forget_key",
            Self::Wait(..) => "wait",
            Self::Finish(_) => "finish",
            Self::Fail(_) => "fail",
            Self::Stopped => "stop",
        }
    }
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    Record(Record),
    /// The record once more, now that nobody else may write it: another run may have.
    RecordAgain(Record),
    /// The answer to a look. `unbound` is the first of the node's addresses that cannot be bound yet;
    /// the preferences are asked for only where a login server is.
    Seen {
        status: Result<Status, LocalApiError>,
        unbound: Option<IpAddr>,
        prefs: Option<Prefs>,
    },
    /// The time of the wall clock, before a look.
    Clock(Clock),
    /// The key of a renewal has gone to tailscaled, or has not.
    Renewed(Result<(), LocalApiError>),
    Postponed(Obstacle),
    Pinged,
    /// The preferences and the ID of their profile. `live`: each change of them will be told.
    Prefs {
        prefs: Result<Prefs, LocalApiError>,
        profile: Option<String>,
        live: bool,
    },
    /// The bus has told something.
    Told(Notice),
    Key(Result<KeyFacts, NoKey>),
    Released,
    /// The record that was asked for is `saved`, or has to be done without for now; in it are the times.
    Written {
        asked: Record,
        written: Record,
        saved: bool,
    },
    Started(Result<(), NotStarted>),
    Ended(Ended),
    CommandStopped,
    Restarted(Result<(), LocalApiError>),
    BroughtUp(Result<(), LocalApiError>),
    /// Those that tailscaled does not take are named. None: another profile is in use.
    PutBack(Result<Option<Vec<String>>, LocalApiError>),
    /// None: another profile is in use. Else the preferences after it.
    TookBack(Result<Option<Prefs>, LocalApiError>),
    /// The time of a wait is over.
    Woke,
    /// A signal has asked for the end.
    Stop,
    /// The time limit of the run has passed while this was waited for.
    TimeUp(Option<Waiting>),
}

/// What is known of the auth key file.
#[derive(Clone, Debug, PartialEq)]
enum Key {
    Unread,
    Ready(KeyFacts),
    Busy,
    Wanting(KeyFileError),
}

/// The preferences as they are known to be.
#[derive(Clone, Debug)]
struct Known {
    prefs: Prefs,
    profile: Option<String>,
}

/// How a bring-up of a stopped node stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum BringUp {
    No,
    /// tailscaled has forgotten the key of its last login.
    Restarted,
    Done,
}

/// Tries that get rarer.
#[derive(Clone, Debug, Default)]
struct Backoff {
    tries: u32,
    not_before: Time,
}

impl Backoff {
    /// The next try comes `first` or less after this one, and later each time.
    fn next(&mut self, now: Time, first: Duration, rng: &mut fastrand::Rng) {
        if now >= self.not_before.saturating_add(RETRY_LONGEST) {
            // What was tried so long ago has nothing to do with it.
            self.tries = 0;
        }
        let longest = first.saturating_mul(2u32.pow(self.tries.min(16))).min(RETRY_LONGEST);
        self.tries = self.tries.saturating_add(1);
        // Half of it by chance, so that many machines don't come back at once.
        self.not_before = now.saturating_add(longest.mul_f64(0.5 + rng.f64() / 2.0));
    }
}

/// tailscaled did not take a change, or had no answer to a question.
#[derive(Clone, Debug)]
struct Objection {
    /// Since when that has been so.
    since: Time,
    /// When it was asked last.
    last: Time,
    words: String,
}

/// Why a run is about to end before the node is connected.
#[derive(Clone, Debug)]
struct Stopping {
    since: Time,
    /// None: by a signal.
    failure: Option<Failure>,
}

/// All that a run knows.
pub struct Machine {
    setup: Setup,
    rng: fastrand::Rng,
    /// What was seen last, and since when it has been of this kind. None: it has to be looked at.
    situation: Option<Situation>,
    kind: std::mem::Discriminant<Situation>,
    since: Time,
    /// When it was looked at last.
    looked: Time,
    status: Option<Status>,
    /// tailscaled has answered, whatever it said.
    answered: bool,
    known: Option<Known>,
    /// Each change of them is told.
    is_told: bool,
    /// The node's login server, as far as it is known.
    server: Option<String>,
    /// What earlier runs have left, and what this one leaves. None: unread.
    record: Option<Record>,
    stored: Record,
    /// When it could not be written.
    unsaved: Option<Time>,
    key: Key,
    key_wanted_since: Option<Time>,
    login: Login,
    history: Option<History>,
    /// The profile that the history is of.
    profile: Option<String>,
    /// The CLI runs.
    command_runs: bool,
    /// Logins of this run.
    logins: u32,
    /// One of them has succeeded.
    has_logged_in: bool,
    failures: Backoff,
    /// The last complaint of the CLI that is not known, and how often it came.
    complaint: (String, u32),
    /// Flags that the CLI doesn't know.
    unknown_flags: Vec<String>,
    /// Refusals that were tailscaled's to tell, not our own CLI's.
    secondhand: u32,
    /// A login of somebody else's was seen under way.
    others_login: bool,
    stranded: Backoff,
    offline: Backoff,
    bring_up: BringUp,
    objection: Option<Objection>,
    stopping: Option<Stopping>,
    stay: Stay,
    clock: Clock,
    notes: Vec<Note>,
}

impl Machine {
    /// At the start of a run. `seed` makes its chances.
    pub fn new(setup: Setup, seed: u64) -> Self {
        let stay = match setup.stay {
            true => Stay::Asked,
            false => Stay::No,
        };
        Self {
            setup,
            stay,
            clock: Clock::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            situation: None,
            kind: std::mem::discriminant(&Situation::NoDaemon),
            since: Time::ZERO,
            looked: Time::ZERO,
            status: None,
            answered: false,
            known: None,
            is_told: false,
            server: None,
            record: None,
            stored: Record::default(),
            unsaved: None,
            key: Key::Unread,
            key_wanted_since: None,
            login: Login::None,
            history: None,
            profile: None,
            command_runs: false,
            logins: 0,
            has_logged_in: false,
            failures: Backoff::default(),
            complaint: (String::new(), 0),
            unknown_flags: Vec::new(),
            secondhand: 0,
            others_login: false,
            stranded: Backoff::default(),
            offline: Backoff::default(),
            bring_up: BringUp::No,
            objection: None,
            stopping: None,
            notes: Vec::new(),
        }
    }

    // ---- what others may know

    /// What is to be said since the last time.
    pub fn notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// The situation that was seen last, if it still holds.
    pub fn situation(&self) -> Option<&Situation> {
        self.situation.as_ref()
    }

    /// tailscaled's BackendState, if it has said one.
    pub fn backend_state(&self) -> &str {
        match self.situation {
            Some(Situation::NoDaemon | Situation::Denied(_) | Situation::Unintelligible(_)) => "",
            _ => self.status.as_ref().map_or("", |status| &status.backend_state),
        }
    }

    /// How many logins were started in this run.
    pub fn logins(&self) -> u32 {
        self.logins
    }

    /// What digests of keys are to be made with.
    pub fn salt(&self) -> [u8; 16] {
        self.stored.salt
    }

    /// How the run ends if there is no time left for anything.
    pub fn failure(&self) -> Option<Failure> {
        self.stopping.as_ref()?.failure.clone()
    }

    /// Whether a look has to include the preferences: the node's login server matters, or a login
    /// is followed and nothing tells its changes.
    pub fn wants_prefs(&self) -> bool {
        (self.follows_login() && !self.is_told && !(self.is_let_in() && self.is_as_before()))
            || (self.setup.server.is_some() && self.server.is_none())
    }

    /// Whether the preferences matter for a login, and with them their profile.
    pub fn follows_login(&self) -> bool {
        self.history.is_some()
    }

    /// Whether the bus is worth what it costs. Up to 1.98 the network map comes with it, which tailscaled
    /// writes once more for each who listens, right after the node was let in (measured: a twelfth of
    /// the login). From then until the command's end nothing is told that has to be known.
    pub fn wants_bus(&self) -> bool {
        self.version() >= (1, 100) || !self.command_runs || !self.is_let_in()
    }

    // ---- events

    /// Takes in what has happened.
    pub fn on(&mut self, event: Event, now: Time) {
        match event {
            Event::Record(record) => self.on_record(record),
            Event::RecordAgain(record) => self.on_record_again(record),
            Event::Seen { status, unbound, prefs } => self.on_seen(status, unbound, prefs, now),
            Event::Prefs { prefs: Ok(prefs), profile, live } => {
                self.on_prefs(prefs, profile, live, now)
            }
            Event::Prefs { prefs: Err(error), .. } => {
                self.situation = None;
                self.objected(&error, now);
            }
            Event::Clock(clock) => self.clock = clock,
            Event::Renewed(result) => self.on_renewal_sent(result, now),
            Event::Postponed(obstacle) => self.on_postponed(obstacle, now),
            Event::Pinged => self.on_pinged(),
            Event::Told(notice) => self.on_told(notice),
            Event::Key(key) => self.on_key(key, now),
            Event::Released => self.key = Key::Unread,
            Event::Written { asked, written, saved } => {
                self.unsaved = (!saved).then_some(now);
                if self.record.as_ref() == Some(&asked) || asked.login.is_some() {
                    self.record = Some(written.clone());
                }
                self.stored = written;
            }
            Event::Started(started) => self.on_started(started, now),
            Event::Ended(ended) => self.on_ended(ended, now),
            Event::CommandStopped => self.on_command_stopped(now),
            Event::Restarted(result) => self.on_restarted(result, now),
            Event::BroughtUp(result) => self.on_brought_up(result, now),
            Event::PutBack(result) => self.on_put_back(result, now),
            Event::TookBack(result) => self.on_took_back(result, now),
            Event::Woke => self.stale(),
            Event::Stop => self.stop(None, now),
            Event::TimeUp(waiting) => {
                let waiting = waiting.unwrap_or(Waiting::Settling);
                let failure = Failure::timed_out(waiting, self.answered, &self.setup.socket);
                self.stop(Some(failure), now);
            }
        }
    }

    /// What was seen may no longer hold.
    fn stale(&mut self) {
        self.situation = None;
        if !self.is_told {
            self.known = None;
        }
        // The file is looked at again, in case that it has changed.
        if !matches!(self.key, Key::Ready(_)) {
            self.key = Key::Unread;
        }
    }

    fn on_seen(
        &mut self,
        status: Result<Status, LocalApiError>,
        unbound: Option<IpAddr>,
        prefs: Option<Prefs>,
        now: Time,
    ) {
        let situation = match &status {
            Ok(status) => Situation::of(status, unbound),
            Err(error) => Situation::without_status(error),
        };
        match status {
            Ok(status) => self.status = Some(status),
            // A tailscaled that goes away takes the key with it.
            Err(LocalApiError::Unreachable(_)) => {
                self.known = None;
                self.is_told = false;
                self.server = None;
                self.others_login = false;
                self.lost_the_key("tailscaled was restarted", now);
            }
            Err(_) => {}
        }
        self.answered |= situation != Situation::NoDaemon;
        self.looked = now;
        let kind = std::mem::discriminant(&situation);
        if kind != self.kind {
            self.kind = kind;
            self.since = now;
        }
        if let Some(prefs) = prefs {
            self.server = Some(prefs::text(&prefs, "ControlURL").to_owned());
            if self.is_elsewhere(&prefs) {
                self.known = None;
            } else if let Some(history) = &mut self.history {
                history.told_after_a_gap(prefs);
            }
        }
        if situation.is_connected() || situation == Situation::NeedsApproval {
            self.offline = Backoff::default();
        }
        self.look_for_others_login();
        self.look_at_login(&situation, now);
        self.look_after(&situation, now);
        self.note_what_is_odd(&situation, now);
        self.situation = Some(situation);
    }

    /// What an admin should know of a node that is connected.
    fn note_what_is_odd(&mut self, situation: &Situation, now: Time) {
        if situation.is_connected() && self.is_asked_elsewhere() {
            let own = self.server.clone().unwrap_or_default();
            let asked = self.setup.server.clone().unwrap_or_default();
            self.notes.push(Note::Elsewhere { own, asked });
        }
        if situation.is_connected()
            && let Some(words) = self.status.as_ref().and_then(locked_out)
        {
            self.notes.push(Note::LockedOut(words));
        }
        if let Situation::AddressPending(address) = situation
            && self.lasted(now) >= ADDRESS_PATIENCE
        {
            self.notes.push(Note::NoAddress(*address));
        }
    }

    fn on_prefs(&mut self, prefs: Prefs, profile: Option<String>, live: bool, now: Time) {
        self.objection = None;
        self.server = Some(prefs::text(&prefs, "ControlURL").to_owned());
        let is_other =
            |own: &String| !own.is_empty() && profile.as_ref().is_some_and(|now| now != own);
        if self.history.is_some() && self.profile.as_ref().is_some_and(is_other) {
            self.other_profile();
        }
        if let Some(history) = &mut self.history {
            history.told_after_a_gap(prefs.clone());
        }
        let has_profile = profile.as_ref().is_some_and(|profile| !profile.is_empty());
        if self.history.is_none() && self.login != Login::Found && has_profile {
            // What was looked at before may be of another profile.
            self.situation = None;
        }
        self.known = Some(Known { prefs, profile });
        self.is_told = live;
        self.look_for_others_login();
        self.look_at_prefs(now);
    }

    /// On a node without a node key it shows in the preferences. One that gets its node key meanwhile
    /// is under way all the same.
    fn look_for_others_login(&mut self) {
        if let (Some(status), Some(known)) = (&self.status, &self.known)
            && !status.have_node_key
        {
            self.others_login = prefs::login_under_way(&known.prefs);
        }
    }

    fn on_told(&mut self, notice: Notice) {
        let mut gap = notice.after_a_gap;
        for prefs in notice.prefs {
            self.server = Some(prefs::text(&prefs, "ControlURL").to_owned());
            if self.is_elsewhere(&prefs) {
                // They are nobody's change of these. The profile is to be asked for.
                self.known = None;
                break;
            }
            match &mut self.history {
                Some(history) if gap => history.told_after_a_gap(prefs.clone()),
                Some(history) => history.told(prefs.clone()),
                None => {}
            }
            // What was read before the bus was opened may be another profile's.
            if let Some(known) = self.known.as_mut().filter(|_| !gap) {
                let is_out =
                    !prefs::login_under_way(&prefs) && prefs::login_under_way(&known.prefs);
                let is_other = prefs.get("Config") != known.prefs.get("Config");
                known.prefs = prefs;
                if is_out || is_other {
                    // It may be another profile's: that is asked for again.
                    self.known = None;
                }
            }
            gap = false;
        }
        self.keep_record();
        // While the CLI runs, its end is the news, and each look slows the login.
        if !self.command_runs || notice.running {
            self.stale();
        }
    }

    /// The record of a login follows what somebody changes beside it, so that a run after a kill does
    /// not undo that.
    fn keep_record(&mut self) {
        if let (Some(history), Some(record)) = (&self.history, &mut self.record)
            && let Some(login) = &mut record.login
        {
            login.before = history.without_the_login();
        }
    }

    /// Whether these preferences may be of another profile than the login's.
    fn is_elsewhere(&self, prefs: &Prefs) -> bool {
        let begun = self.record.as_ref().and_then(|record| record.login.as_ref());
        let server = begun.map_or("", |begun| &begun.server);
        self.history.as_ref().is_some_and(|history| history.is_elsewhere(prefs, server))
    }

    fn on_key(&mut self, key: Result<KeyFacts, NoKey>, now: Time) {
        self.key = match key {
            Ok(facts) => {
                self.key_wanted_since = None;
                Key::Ready(facts)
            }
            Err(NoKey::Busy) => Key::Busy,
            Err(NoKey::File(error)) => {
                self.key_wanted_since.get_or_insert(now);
                Key::Wanting(error)
            }
        };
        self.look_at_key(now);
    }

    fn on_restarted(&mut self, result: Result<(), LocalApiError>, now: Time) {
        let is_stranded = match &self.situation {
            Some(Situation::ConnectedWithDeadKey(_)) => true,
            Some(situation) => matches!(situation.login_error(), Some(LoginError::Refused(_))),
            None => false,
        };
        self.situation = None;
        let stopped = self.status.as_ref().is_some_and(|status| status.backend_state == "Stopped");
        match result {
            result
                if result.as_ref().err().is_none_or(LocalApiError::is_refusal)
                    && let Stay::Begun(Keeping::Failed { words, refused }) = self.stay.clone() =>
            {
                self.on_renewal_failed(words, refused, now);
            }
            Ok(()) => {
                self.objection = None;
                match stopped {
                    true => self.bring_up = BringUp::Restarted,
                    false if is_stranded => self.stranded.next(now, RETRY_FIRST, &mut self.rng),
                    false => self.offline.next(now, 2 * OFFLINE_PATIENCE, &mut self.rng),
                }
                // Whatever the cause of the next one, it does not come at once.
                let soonest = now.saturating_add(RETRY_FIRST / 2);
                for backoff in [&mut self.stranded, &mut self.offline] {
                    backoff.not_before = backoff.not_before.max(soonest);
                }
                self.lost_the_key("an auth key was refused, perhaps another one", now);
            }
            Err(error) if error.is_refusal() => {
                if stopped {
                    self.login = Login::Impossible(Failure::of_change(&error));
                }
                // The node may come online without it.
                self.notes.push(Note::CannotRestart(error.to_string()));
                self.stranded.not_before = now.saturating_add(RETRY_LONGEST);
                self.offline.not_before = now.saturating_add(RETRY_LONGEST);
            }
            Err(error) => self.objected(&error, now),
        }
    }

    fn on_brought_up(&mut self, result: Result<(), LocalApiError>, now: Time) {
        self.situation = None;
        match result {
            Ok(()) => self.bring_up = BringUp::Done,
            Err(error) if error.is_refusal() => {
                self.login = Login::Impossible(Failure::of_change(&error));
            }
            Err(error) => self.objected(&error, now),
        }
    }

    fn on_put_back(&mut self, result: Result<Option<Vec<String>>, LocalApiError>, now: Time) {
        self.situation = None;
        match result {
            Ok(Some(not_taken)) => {
                self.objection = None;
                if let Some(history) = &mut self.history {
                    if let Some(known) = &mut self.known {
                        known.prefs.extend(history.owed());
                    }
                    history.put_back();
                    history.give_up(&not_taken);
                }
                if !not_taken.is_empty() {
                    self.notes.push(Note::NotPutBack(not_taken));
                }
            }
            Ok(None) => self.other_profile(),
            Err(error) => self.objected(&error, now),
        }
    }

    /// Another profile is in use than the one that the login was for. Nothing of the login's is this
    /// one's; the record stays for the other.
    fn other_profile(&mut self) {
        self.notes.push(Note::OtherProfile);
        self.history = None;
        self.login = Login::None;
        self.known = None;
    }

    /// tailscaled did not take a change or a question for now. It's tried again after a look.
    fn objected(&mut self, error: &LocalApiError, now: Time) {
        let since = self.objection.take().map_or(now, |objection| objection.since);
        self.objection = Some(Objection { since, last: now, words: error.to_string() });
    }

    fn stop(&mut self, failure: Option<Failure>, now: Time) {
        self.stopping.get_or_insert(Stopping { since: now, failure });
        self.stale();
    }

    // ---- what to do

    /// What to do now.
    pub fn next(&self, now: Time) -> Action {
        let action = match &self.stopping {
            Some(stopping) => self.wind_up(stopping, now),
            None => self.decide(now),
        };
        match action {
            // Others may have the key meanwhile.
            Action::Wait(..) if matches!(self.key, Key::Ready(_)) && !self.needs_key() => {
                Action::ReleaseKey
            }
            Action::Wait(waiting, until) => Action::Wait(waiting, until.max(now)),
            action => action,
        }
    }

    fn decide(&self, now: Time) -> Action {
        use Situation as S;
        let Some(record) = &self.record else {
            return Action::ReadRecord;
        };
        let Some(situation) = &self.situation else {
            return Action::Look;
        };
        if let Some(wait) = self.wait_after_objection(now) {
            return wait;
        }
        // What is to be remembered is so before anything else is done.
        let is_due =
            |unsaved: Time| now >= unsaved.saturating_add(RETRY_FIRST) && record.login.is_some();
        if *record != self.stored || self.unsaved.is_some_and(is_due) {
            return Action::Write(record.clone());
        }
        match situation {
            S::NoDaemon => return self.wait(Waiting::Tailscaled, now),
            S::Denied(_) if self.lasted(now) < SOCKET_PATIENCE => {
                return self.wait(Waiting::Tailscaled, now);
            }
            S::Denied(why) => return Action::Fail(Failure::Denied(why.clone())),
            S::Unintelligible(why) => return self.wait(Waiting::Answer(why.clone()), now),
            _ => {}
        }
        if let Some(action) = self.for_login(situation, now) {
            return action;
        }
        let lasted = self.lasted(now);
        let error = situation.login_error();
        // The control server that this node has is not the one that is asked for.
        let elsewhere = self.is_asked_elsewhere() && !self.is_staying();
        match situation {
            S::AddressPending(address) if lasted < ADDRESS_PATIENCE => {
                self.wait(Waiting::Address(*address), now)
            }
            _ if let Stay::Begun(keeping) = &self.stay
                && let Some(action) = self.keep(keeping, situation, now) =>
            {
                action
            }
            S::ConnectedWithDeadKey(words) if now >= self.stranded.not_before => {
                Action::Restart(Why::DeadKey(words.clone()))
            }
            S::ConnectedWithDeadKey(_) if self.is_staying() => self.wait(self.staying(), now),
            // The login has just come to its end.
            S::Connected | S::ConnectedWithDeadKey(_) | S::AddressPending(_)
                if self.stay == Stay::Asked =>
            {
                Action::Look
            }
            S::Connected | S::ConnectedWithDeadKey(_) | S::AddressPending(_) => self.finish(),

            // A key that somebody sent was refused, and keeps the node off.
            S::Settling { .. }
            | S::SettlingNew { .. }
            | S::Offline { .. }
            | S::NeedsLogin { .. }
                if let Some(LoginError::Refused(refusal)) = error
                    && now >= self.stranded.not_before =>
            {
                Action::Restart(Why::Stranded(refusal.words.clone()))
            }

            // An auth key would not help here, and could take the node off.
            S::Settling { trouble, .. } => match trouble {
                _ if elsewhere && (trouble.is_some() || lasted >= SETTLING_PATIENCE) => {
                    self.log_in(now)
                }
                Some(_) if self.may_restart(error, lasted, now) => Action::Restart(Why::Offline),
                Some(why) => self.wait(Waiting::ControlServer(Some(why.clone())), now),
                None => self.wait_until(
                    Waiting::Settling,
                    self.since.saturating_add(SETTLING_PATIENCE),
                    now,
                ),
            },
            S::SettlingNew { trouble: Some(_), .. } if elsewhere => self.log_in(now),
            // Nothing comes of it by itself: a login has failed half-way, as on a disk that was full.
            S::SettlingNew { trouble: None, .. }
            | S::SettlingNew { error: Some(LoginError::Unknown(_)), .. }
                if lasted >= SETTLING_PATIENCE =>
            {
                self.log_in_unless_others(lasted, now)
            }
            S::SettlingNew { trouble: None, .. } => self.wait_until(
                Waiting::Settling,
                self.since.saturating_add(SETTLING_PATIENCE),
                now,
            ),
            S::SettlingNew { trouble, .. } => {
                self.wait(Waiting::ControlServer(trouble.clone()), now)
            }
            // A moment after its start it is not online yet.
            S::Offline { trouble, .. }
                if elsewhere && (trouble.is_some() || lasted >= SETTLING_PATIENCE) =>
            {
                self.log_in(now)
            }
            S::Offline { .. } if self.may_restart(error, lasted, now) => {
                Action::Restart(Why::Offline)
            }
            S::Offline { trouble, .. } => self.wait(Waiting::ControlServer(trouble.clone()), now),

            S::Stopped if elsewhere => self.log_in(now),
            S::Stopped => match self.bring_up {
                // tailscaled remembers the auth key of its last login, and would send it again.
                BringUp::No => Action::Restart(Why::BringUp),
                BringUp::Restarted => Action::BringUp,
                BringUp::Done => self.wait(Waiting::StoppedByOther, now),
            },

            S::NeedsApproval if elsewhere => self.log_in(now),
            S::NeedsApproval => self.wait(Waiting::Approval, now),

            S::NeedsLogin { .. } => self.log_in_unless_others(lasted, now),
            S::AsksForPerson { .. } => self.log_in(now),

            S::NoState(words) => self.wait(Waiting::NoState(words.clone()), now),
            S::Unknown(state) => self.wait(Waiting::Unknown(state.clone()), now),
            S::NoDaemon | S::Denied(_) | S::Unintelligible(_) => {
                self.wait(Waiting::Tailscaled, now)
            }
        }
    }

    /// The node is connected, and nothing is left to do. (A login has been seen to before.)
    fn finish(&self) -> Action {
        let none = Status::default();
        Action::Finish(Connected::of(self.status.as_ref().unwrap_or(&none), self.has_logged_in))
    }

    /// Someone's login may be under way: a second one would burn a single-use key.
    fn log_in_unless_others(&self, lasted: Duration, now: Time) -> Action {
        if self.known.is_none() {
            // The preferences are worth asking for only if there is a key.
            return self.with_key(now, |_| Action::ReadPrefs);
        }
        let is_others = self.others_login && self.stranded.tries == 0 && !self.is_asked_elsewhere();
        let error = self.situation.as_ref().and_then(Situation::login_error);
        // One that is told what nobody here knows may never come to its end.
        let is_unreachable = matches!(error, Some(LoginError::Unreachable(_)));
        if is_others && self.logins == 0 && (lasted < OTHERS_PATIENCE || is_unreachable) {
            return match error {
                Some(error) if is_unreachable => {
                    self.wait(Waiting::ControlServer(Some(error.words().to_owned())), now)
                }
                _ => self.wait_until(
                    Waiting::LoggingIn,
                    self.since.saturating_add(OTHERS_PATIENCE),
                    now,
                ),
            };
        }
        self.log_in(now)
    }

    /// A login is needed and nothing stands against it but, perhaps, the key file.
    fn with_key(&self, now: Time, ready: impl FnOnce(&KeyFacts) -> Action) -> Action {
        match &self.key {
            Key::Unread => Action::ReadKey,
            Key::Ready(facts) => ready(facts),
            Key::Busy => self.wait(Waiting::OtherRun, now),
            Key::Wanting(KeyFileError { path, problem: Problem::Missing })
                if self.setup.authkey_optional =>
            {
                Action::Fail(Failure::NoKey(path.clone()))
            }
            Key::Wanting(error) => {
                let over =
                    self.key_wanted_since.unwrap_or(now).saturating_add(self.setup.authkey_wait);
                match error.problem.is_worth_a_wait() && now < over {
                    true => self.wait_until(Waiting::KeyFile(error.clone()), over, now),
                    false => Action::Fail(Failure::KeyFile(error.clone())),
                }
            }
        }
    }

    fn log_in(&self, now: Time) -> Action {
        if self.command_runs {
            // Of a login that is over, as on a profile that is no longer in use.
            return Action::StopCommand;
        }
        if let Login::Pausing { words, until, .. } = &self.login
            && now < *until
        {
            return self.wait_for_retry(words, *until, now);
        }
        self.with_key(now, |facts| {
            let Some(known) = &self.known else {
                return Action::ReadPrefs;
            };
            let server = self.server_of_login(&known.prefs);
            if let Err(problem) = belongs_to(facts.kind, &server) {
                let problem = Problem::from(problem).at(&self.setup.key_file);
                return Action::Fail(Failure::KeyFile(problem));
            }
            if let Some(refused) = &self.stored.refused
                && is_refused(facts, &server, refused)
            {
                return Action::Fail(Failure::RefusedBefore {
                    file: self.setup.key_file.clone(),
                    words: refused.words.clone(),
                });
            }
            let history = self.history_of_login(known);
            let login = BegunLogin {
                at: 0,
                profile: known.profile.clone().unwrap_or_default(),
                server: server.clone(),
                flags: self.setup.flags.clone(),
                key: facts.digest.clone(),
                before: history.without_the_login(),
            };
            let is_stored =
                self.stored.login.as_ref().is_some_and(|stored| stored.is_same_as(&login));
            if !is_stored {
                return Action::Write(Record { login: Some(login), ..self.stored.clone() });
            }
            Action::LogIn(self.flags_of_login(&history, &server, &known.prefs))
        })
    }

    /// The history of a login that is about to begin. One that came to nothing before is not to be
    /// seen in it.
    fn history_of_login(&self, known: &Known) -> History {
        let version = self.version();
        let flags = self.setup.flags.clone();
        let mut history = match &self.history {
            Some(history)
                if self.profile == known.profile && !history.has_succeeded(&known.prefs) =>
            {
                history.again(known.prefs.clone(), flags, version)
            }
            _ => History::new(known.prefs.clone(), flags, version),
        };
        // What the command has no flag for is put back after the login.
        let is_unknown = |flag: &str| self.unknown_flags.iter().any(|unknown| unknown == flag);
        history.ours.retain(|flag| !flags::name(flag).is_some_and(is_unknown));
        history
    }

    fn flags_of_login(&self, history: &History, server: &str, prefs: &Prefs) -> Vec<String> {
        let mut flags = Vec::new();
        let is_given = flags::value(&self.setup.flags, "login-server").is_some();
        if !is_given && (self.setup.server.is_some() || server != TAILSCALES_SERVER) {
            flags.push(format!("--login-server={server}"));
        }
        let runs = self.status.as_ref().is_some_and(|status| status.backend_state == "Running");
        if runs && !is_same_server(prefs::text(prefs, "ControlURL"), server) {
            // `up` of a running node takes another login server only so.
            flags.push("--force-reauth".to_owned());
        }
        flags.extend(history.ours.iter().cloned());
        flags.extend(self.setup.flags.iter().cloned());
        flags
    }

    /// The server of a login: the asked one, else the node's own, else Tailscale's.
    fn server_of_login(&self, prefs: &Prefs) -> String {
        let asked = self.setup.server.clone();
        let own = Some(prefs::text(prefs, "ControlURL")).filter(|server| !server.is_empty());
        asked.or(own.map(str::to_owned)).unwrap_or_else(|| TAILSCALES_SERVER.to_owned())
    }

    /// Whether the node is another login server's than the asked one.
    fn is_asked_elsewhere(&self) -> bool {
        match (&self.setup.server, &self.server) {
            (Some(asked), Some(own)) => !own.is_empty() && !is_same_server(own, asked),
            _ => false,
        }
    }

    /// Whether a restart of the login without a key is due. Since 1.82 it leaves the network map in
    /// place; before, it cuts a running node off until the control server answers (measured on
    /// 1.80.3, 1.98.10 and 1.102.5).
    fn may_restart(&self, error: Option<&LoginError>, lasted: Duration, now: Time) -> bool {
        let is_cause = match self.situation {
            // One with a dead key is stranded, which has a back-off of its own.
            _ if matches!(error, Some(LoginError::Refused(_))) => false,
            Some(Situation::Offline { .. }) => self.version() >= (1, 82),
            // tailscaled goes on by itself where the control server cannot be reached.
            _ => matches!(error, Some(LoginError::Unknown(_))),
        };
        is_cause && lasted >= OFFLINE_PATIENCE && now >= self.offline.not_before
    }

    fn version(&self) -> (u32, u32) {
        self.status.as_ref().map_or((0, 0), Status::major_and_minor)
    }

    /// How long what is seen has been of its kind.
    fn lasted(&self, now: Time) -> Duration {
        now.saturating_sub(self.since)
    }

    /// What tailscaled did not do is tried again after a look, ever less often; what it says is what is
    /// waited for.
    fn wait_after_objection(&self, now: Time) -> Option<Action> {
        let Objection { since, last, words } = self.objection.as_ref()?;
        let pause = (last.saturating_sub(*since) / 10).clamp(LOOK_LEAST, LOOK_MOST);
        let until = last.saturating_add(pause);
        (now < until).then(|| Action::Wait(Waiting::Answer(words.clone()), until))
    }

    /// Waits until the next look, which comes whatever is told meanwhile.
    fn wait(&self, what: Waiting, now: Time) -> Action {
        let least = match self.situation {
            Some(Situation::NoDaemon) => LOOK_LEAST_WITHOUT_DAEMON,
            _ => LOOK_LEAST,
        };
        let since = self.since.max(self.login.since());
        let rest = (now.saturating_sub(since) / 10).clamp(least, LOOK_MOST);
        let look = self.looked.saturating_add(rest).max(now.saturating_add(OVERDUE));
        Action::Wait(what, look)
    }

    fn wait_for_retry(&self, words: &str, until: Time, now: Time) -> Action {
        let left = Duration::from_secs(until.saturating_sub(now).as_secs() + 1);
        self.wait_until(Waiting::Retry(words.to_owned(), left), until, now)
    }

    /// The same, but no longer than until `limit`, when there is something else to do.
    fn wait_until(&self, what: Waiting, limit: Time, now: Time) -> Action {
        match self.wait(what, now) {
            Action::Wait(what, until) if limit > now => Action::Wait(what, until.min(limit)),
            wait => wait,
        }
    }
}

/// Whether this is the key that this login server has refused.
fn is_refused(key: &KeyFacts, server: &str, refused: &RefusedKey) -> bool {
    refused.digest == key.digest && is_same_server(&refused.server, server)
}

/// Whether two URLs are of one login server. Tailscale's has two names.
pub fn is_same_server(one: &str, other: &str) -> bool {
    // A parsed one has its host in small letters, and no port that goes without saying.
    let bare = |url: &str| {
        let parsed = http_url(url).map_or(url.to_owned(), String::from);
        parsed.trim_end_matches('/').to_owned()
    };
    bare(one) == bare(other) || (is_tailscales(one) && is_tailscales(other))
}
