//! How a run ends and what it waits for: the facts, and the words, the advice and the exit codes that
//! the result, STATUS, `--check` and the manual page share.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::key::KeyFileError;
use crate::tailscaled::{LocalApiError, Status};

/// The node is on its tailnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The node's MagicDNS name without the trailing dot, empty if it has none.
    pub name: String,
    /// The node's Tailscale addresses.
    pub addresses: Vec<String>,
    /// Whether this run sent an auth key.
    pub logged_in: bool,
}

impl Connected {
    /// The node that this is the status of.
    pub fn of(status: &Status, logged_in: bool) -> Self {
        Self {
            name: status.node.dns_name.trim_end_matches('.').to_owned(),
            addresses: status.tailscale_ips.clone(),
            logged_in,
        }
    }
}

impl fmt::Display for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connected")?;
        if !self.name.is_empty() {
            write!(f, " as {}", self.name)?;
        }
        if !self.addresses.is_empty() {
            write!(f, " ({})", self.addresses.join(", "))?;
        }
        Ok(())
    }
}

/// Why a run ended without a connection. Each message says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(
        "tailscaled did not answer on {} within the time limit; \
         is it running (systemctl status tailscaled)?", .0.display()
    )]
    TailscaledUnreachable(PathBuf),
    #[error("not connected within the time limit: {0}")]
    TimedOut(Waiting),
    #[error("the control server refused the auth key: {}; {}", .0.words, .0.what.advice())]
    Refused(Refusal),
    /// No key is no failure where one need not be there.
    #[error("there is no auth key file {}, which is optional; nothing to do", .0.display())]
    NoKey(PathBuf),
    #[error(
        "the auth key in {} was refused in an earlier run, and is not sent again: {words}; \
         make a new key, put it into the key file and start again", .file.display()
    )]
    RefusedBefore { file: PathBuf, words: String },
    #[error(
        "tailscaled refused the request ({0}); run as root or as the operator user of tailscaled"
    )]
    Denied(String),
    #[error(transparent)]
    Misconfigured(#[from] Mistake),
    #[error("{0}")]
    Internal(String),
}

/// What a control server refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub what: Refused,
    /// The server's own words.
    pub words: String,
}

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The auth key or OAuth client secret.
    Key,
    /// An auth key that the control server does not know. One that was made a moment ago may not have
    /// come to it yet.
    UnknownKey,
    /// The key's owner, who may be let in again.
    Owner,
    /// The tags that are asked for.
    Tags,
}

impl Refused {
    /// Whether it's the key itself that was refused.
    pub fn is_key(self) -> bool {
        matches!(self, Self::Key | Self::UnknownKey)
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Key | Self::UnknownKey => {
                "make a new key, put it into the key file and start again"
            }
            Self::Owner => {
                "give the owner of the key access again, or make a key of another user, and start again"
            }
            Self::Tags => {
                "correct --advertise-tags, or make a new key that may have these tags, and start again"
            }
        }
    }
}

/// What cannot work as things are configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error(
        "the tailscale command was not found ({}); \
         install tailscale, or name the command with --tailscale", .0.display()
    )]
    NoCommand(PathBuf),
    #[error(
        "the tailscale command {} cannot be run ({error}); name another with --tailscale",
        .program.display()
    )]
    CannotRun { program: PathBuf, error: String },
    #[error(
        "the tailscale command {} ended with {code} and said nothing; is it the tailscale command? \
         Name another with --tailscale", .program.display()
    )]
    NoTailscale { program: PathBuf, code: i32 },
    /// Others control the command or the socket: who, and what to do.
    #[error("{0}")]
    Untrusted(String),
    #[error(
        "`tailscale up` does not take the flags that it was given ({0}); \
         correct the flags after `--`, or update tailscale"
    )]
    Flags(String),
    #[error(
        "this node belongs to another login server than the one asked for; \
         name that one, or run `tailscale logout` first"
    )]
    OtherServer,
    #[error(
        "`tailscale up` cannot work with these settings: {0}; \
         correct the auth key's parameters or the flags after `--`"
    )]
    Settings(String),
    #[error(
        "`tailscale up` failed three times with the same message, and tailscaled received nothing: {0}; \
         correct the flags after `--`, or the auth key's parameters"
    )]
    Complaint(String),
    #[error(
        "tailscaled runs with a locked config file and accepts no login; \
         put the auth key into that file, or unlock it"
    )]
    LockedConfig,
}

impl Failure {
    /// What it is if the time is up while this is being waited for. `answered`: tailscaled has
    /// been heard of.
    pub fn timed_out(waiting: Waiting, answered: bool, socket: &Path) -> Self {
        match waiting {
            _ if !answered => Self::TailscaledUnreachable(socket.to_owned()),
            Waiting::KeyFile(error) => Self::KeyFile(error),
            waiting => Self::TimedOut(waiting),
        }
    }

    /// What it is that tailscaled takes no change.
    pub fn of_change(error: &LocalApiError) -> Self {
        match error {
            LocalApiError::Locked(_) => Mistake::LockedConfig.into(),
            error => Self::Denied(error.to_string()),
        }
    }

    /// The exit status of a run that ends with it.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::NoKey(_) => NO_KEY,
            Failure::KeyFile(error) if error.problem.may_heal() => NOINPUT,
            Failure::TailscaledUnreachable(_) => UNAVAILABLE,
            Failure::Internal(_) => SOFTWARE,
            Failure::TimedOut(_) => TEMPFAIL,
            Failure::Refused(_) | Failure::RefusedBefore { .. } | Failure::Denied(_) => NOPERM,
            Failure::KeyFile(_) | Failure::Misconfigured(_) => CONFIG,
        }
    }
}

/// Why a node key is not renewed, though it is time. The names are those in the metrics; documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    #[error("this tailscaled is older than 1.82, and a renewal that fails would cut the node off")]
    OldVersion,
    #[error("the clock of this machine is not set")]
    Clock,
    #[error("an OAuth client secret makes tagged keys, which would change whose node this is")]
    #[serde(rename = "oauth-secret")]
    OAuthSecret,
    #[error("the node has tags that its settings do not ask for, and a renewal could change them")]
    Tags,
    #[error("the node is connected to another login server than the one that is asked for")]
    Elsewhere,
    #[error("tailscaled has trouble with the control server")]
    Trouble,
    #[error("the node is not online")]
    Offline,
    #[error("tailnet lock has not signed this node")]
    LockedOut,
    #[error("the auth key in the file was refused before; put a new one there")]
    RefusedKey,
    #[error("the auth key in the file cannot be used")]
    NoKey,
}

/// What is said where the record was made on another machine.
pub const COPIED: &str = "the state of this node was made on another machine; if it was copied, stop tailscaled, \
    remove its state and ours (/var/lib/tailscale, /var/lib/tailscale-autoconnect), and start both again, \
    since two machines with one state take each other off the tailnet";

/// Something worth a line in the log that is neither an end nor a wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    #[error("the login did not finish: {0}")]
    LoginBroke(String),
    #[error("`tailscale up` had no effect, and was stopped")]
    NothingCame,
    #[error("tailscaled does not let us restart the login: {0}")]
    CannotRestart(String),
    #[error("tailscaled may go on with the login that has failed: {0}")]
    NotTakenBack(String),
    #[error("the login changed settings that cannot be put back: {}", .0.join(", "))]
    NotPutBack(Vec<String>),
    #[error(
        "another profile is in use now, so the settings of the profile that was logged in are not put back"
    )]
    OtherProfile,
    #[error(
        "the node is connected to the login server {own}, not to {asked}; it is left alone. \
         To move it, run `tailscale logout` first"
    )]
    Elsewhere { own: String, asked: String },
    #[error(
        "connected, but tailnet lock keeps this node from its peers ({0}); \
         sign it from a trusted node: tailscale lock sign"
    )]
    LockedOut(String),
    #[error("the node key was renewed{}", .0.as_ref().map(|date| format!("; it expires {date}")).unwrap_or_default())]
    Renewed(Option<String>),
    #[error("the node key is not renewed, and expires in {}: {obstacle}", in_words(*.left))]
    NotRenewed { obstacle: Obstacle, left: Duration },
    #[error(
        "the node key could not be renewed, and expires in {}: {words}; the node stays connected until then",
        in_words(*.left)
    )]
    RenewalFailed { words: String, left: Duration },
    #[error("connected, but the address {0} is not on the interface yet")]
    NoAddress(IpAddr),
}

/// A length of time in words that fit it.
pub fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 172_800.. => format!("{} days", seconds / 86_400),
        seconds @ 7_200.. => format!("{} hours", seconds / 3_600),
        seconds @ 120.. => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// What is being waited for. Its words are the STATUS= of the service, and documented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    #[error("waiting for tailscaled")]
    Tailscaled,
    #[error("waiting for a usable answer of tailscaled: {0}")]
    Answer(String),
    #[error("waiting for tailscaled to settle")]
    Settling,
    #[error("waiting for the control server{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    ControlServer(Option<String>),
    #[error("logging in")]
    LoggingIn,
    #[error("the login seems to be refused, looking again: {0}")]
    Verdict(String),
    /// The next login comes after this time.
    #[error("the login failed and is tried again in {left}: {0}", left = in_words(*.1))]
    Retry(String, Duration),
    #[error("waiting for the address {0}")]
    Address(IpAddr),
    #[error("waiting for an admin to approve this device")]
    Approval,
    #[error("waiting for the auth key file {} ({})", .0.path.display(), .0.problem.brief())]
    KeyFile(KeyFileError),
    #[error("waiting for another tailscale-autoconnect that uses the auth key")]
    OtherRun,
    #[error("someone stopped tailscale while it was connecting; left alone until `tailscale up`")]
    StoppedByOther,
    /// The node is connected, and we stay. With the date on which its node key expires, and why it is
    /// not renewed though it's time.
    #[error("{0}{rest}", rest = expiry(.1.as_deref(), *.2))]
    Staying(Connected, Option<String>, Option<Obstacle>),
    /// The node needs a login that is not ours to make.
    #[error(
        "the node was taken off its tailnet by somebody; left alone until a restart of this service"
    )]
    LeftAlone,
    #[error("waiting for tailscaled to open its state: {0}")]
    StoreFailed(String),
    #[error("waiting: tailscaled is in the unknown state {0}")]
    Unknown(String),
}

fn expiry(date: Option<&str>, obstacle: Option<Obstacle>) -> String {
    match (date, obstacle) {
        (None, _) => String::new(),
        (Some(date), None) => format!("; node key expires {date}"),
        (Some(date), Some(why)) => format!("; node key expires {date} and is not renewed: {why}"),
    }
}

/// An exit status, and what the help and the manual page say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: u8,
    /// Its name in sysexits.h, which `systemctl status` prints; success has none.
    pub name: &'static str,
    /// When, in a word or two; empty where -h has no room for it.
    pub brief: &'static str,
    pub when: &'static str,
}

const fn exit(code: u8, name: &'static str, brief: &'static str, when: &'static str) -> Exit {
    Exit { code, name, brief, when }
}

pub const CONNECTED: Exit = exit(0, "", "connected", "connected");
/// The same number, and no entry of its own.
const NO_KEY: Exit = Exit { name: "no-key", ..CONNECTED };
pub const USAGE: Exit = exit(64, "USAGE", "usage", "the command line is wrong");
pub const NOINPUT: Exit =
    exit(66, "NOINPUT", "no key file", "the key file is needed, and missing or unreadable");
const UNAVAILABLE: Exit =
    exit(69, "UNAVAILABLE", "no tailscaled", "--timeout passed and tailscaled never answered");
const SOFTWARE: Exit = exit(70, "SOFTWARE", "", "a fault of the program or of the system under it");
pub const TEMPFAIL: Exit = exit(75, "TEMPFAIL", "time is up", "--timeout passed on anything else");
pub const NOPERM: Exit =
    exit(77, "NOPERM", "refused", "the control server refused the key, or tailscaled refused us");
const CONFIG: Exit = exit(
    78,
    "CONFIG",
    "cannot work as configured",
    "the key file, `tailscale` command or settings cannot be used",
);

/// All of them.
pub const EXITS: [Exit; 8] =
    [CONNECTED, USAGE, NOINPUT, UNAVAILABLE, SOFTWARE, TEMPFAIL, NOPERM, CONFIG];

impl Exit {
    /// The exit status of a run that ended so.
    pub fn of(result: &Result<Connected, Failure>) -> Self {
        result.as_ref().err().map_or(CONNECTED, Failure::exit)
    }

    /// One word for how a run ended.
    pub fn outcome(self) -> &'static str {
        match self.name {
            "" => "connected",
            name => name,
        }
    }
}

/// How a run ended, in words.
pub fn message(result: &Result<Connected, Failure>) -> String {
    result.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

/// The object that `--json` prints.
pub fn to_json(result: &Result<Connected, Failure>) -> Value {
    let exit = Exit::of(result);
    let mut object = json!({
        "outcome": exit.outcome(),
        "exit_code": exit.code,
        "message": message(result),
    });
    if let Ok(connected) = result {
        object["name"] = json!(connected.name);
        object["addresses"] = json!(connected.addresses);
        object["logged_in"] = json!(connected.logged_in);
    }
    object
}
