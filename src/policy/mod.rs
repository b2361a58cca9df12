//! The policy: one machine that holds all that a run knows. [`Machine::on`] takes in what happened,
//! [`Machine::next`] says what to do. No clock, no I/O: times are counted from the start of the run,
//! and what is done is for `run` to do.
//!
//! [`events`] takes in, [`decide`] is the state table, [`login`] and [`steps`] are what a login goes
//! through, [`put_back`] what it must leave as it was, [`stay`] what comes after it.

mod decide;
mod events;
mod login;
mod put_back;
mod situation;
mod stay;
mod steps;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::policy::situation::{Situation, locked_out};
pub use crate::policy::stay::{Clock, obstacle, obstacle_of_key, renew_at};

use crate::failure::{Connected, Failure, Note, Obstacle, Waiting};
use crate::flags;
use crate::key::{KeyFacts, NoKey, Problem, belongs_to};
use crate::policy::login::Login;
use crate::policy::put_back::History;
use crate::policy::stay::{Keeping, Stay};
use crate::prefs::{self, Prefs};
use crate::record::{BegunLogin, Record, RefusedKey};
use crate::server::{http_url, is_tailscales};
use crate::tailscaled::{LocalApiError, Notice, Profile, Status};
use crate::up::{Cli, Ended, LoginError, NotStarted};

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
/// While the CLI runs, its end and each change of the preferences are told, and each look slows the login.
const LOOK_LEAST_BESIDE_COMMAND: Duration = Duration::from_millis(500);
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
    pub cli: Cli,
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
    /// Restart the login without a key, and set WantRunning, and nothing else.
    BringUp,
    /// Set these preferences, if the profile is the one of the login.
    PutBack {
        prefs: Prefs,
        profile: Option<Profile>,
    },
    /// Start with these preferences and without a key, if the profile is the one of the login.
    TakeBack {
        prefs: Prefs,
        profile: Option<Profile>,
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
            Self::BringUp => "bring_up",
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
    /// The preferences and their profile. `live`: each change of them will be told.
    Prefs {
        prefs: Result<Prefs, LocalApiError>,
        profile: Option<Profile>,
        live: bool,
    },
    /// The bus has told something.
    Told(Notice),
    Key(Result<KeyFacts, NoKey>),
    Released,
    /// The record that was asked for is `saved`, or has to be done without for now; in it are the times.
    Written {
        asked: Record,
        written: Box<Record>,
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
#[derive(Clone, Debug, Default, PartialEq)]
enum Key {
    #[default]
    Unread,
    Ready(KeyFacts),
    Busy,
    Wanting(Problem),
}

/// The preferences as they are known to be.
#[derive(Clone, Debug)]
struct Known {
    prefs: Prefs,
    profile: Option<Profile>,
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
#[derive(Default)]
pub struct Machine {
    setup: Setup,
    rng: fastrand::Rng,
    /// What was seen last, and since when it has been of this kind. None: it has to be looked at.
    situation: Option<Situation>,
    kind: Option<std::mem::Discriminant<Situation>>,
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
    login_since: Time,
    /// What was seen before it.
    before: Option<Situation>,
    history: Option<History>,
    /// The profile that the history is of.
    profile: Option<Profile>,
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
    /// The node was stopped, and this run has brought it up.
    brought_up: bool,
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
        Self { setup, stay, rng: fastrand::Rng::with_seed(seed), ..Self::default() }
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

    fn has_node_key(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.have_node_key)
    }

    /// Whether the history can be of this profile.
    fn is_of(&self, profile: Option<&Profile>) -> bool {
        self.profile.as_ref().zip(profile).is_none_or(|(own, now)| own.may_be(now))
    }

    /// Whether the bus is worth what it costs. Up to 1.98 the network map comes with it, which tailscaled
    /// writes once more for each who listens, right after the node was let in (measured: a twelfth of
    /// the login). From then until the command's end nothing is told that has to be known.
    pub fn wants_bus(&self) -> bool {
        self.version() >= (1, 100) || !self.command_runs || !self.is_let_in()
    }
}

/// Whether this is the key that this login server has refused.
fn is_refused(key: &KeyFacts, server: &str, refused: &RefusedKey) -> bool {
    refused.digest == key.digest && is_same_server(&refused.server, server)
}

/// The server of a login: the asked one, else the node's own, else Tailscale's.
pub fn server_of_login<'a>(asked: Option<&'a str>, own: &'a str) -> &'a str {
    asked.or(Some(own).filter(|own| !own.is_empty())).unwrap_or(TAILSCALES_SERVER)
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
