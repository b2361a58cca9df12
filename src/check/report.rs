//! What `--check` prints: a line for each thing that was seen, what a run would do, and the verdict;
//! or the same as one JSON object. Pure functions.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::check::finding::{Finding, complains_of_time, conclude};
use crate::check::foresee::{End, Foresight, Step, foresee};
use crate::check::seen::{Access, Seen};
use crate::check::words::{self, NodeKey};
use crate::failure::{Failure, Obstacle, Waiting};
use crate::key::KeyKind;
use crate::output::terminal::{BOLD, GREEN, PLAIN, RED, YELLOW};
use crate::policy::{KeyFacts, Situation, obstacle, obstacle_of_key, renew_at};
use crate::redact::{excerpt, one_line};
use crate::server::is_tailscales;
use crate::tailscaled::{LocalApiError, Status};
use crate::up::NoVersion;
use crate::up::{last_login_error, trouble};

/// Raised when a field of the JSON object goes or changes its meaning, not when one is added.
const SCHEMA: u32 = 1;

/// The width of what people read.
const WIDTH: usize = 80;

/// How many health messages are shown, and how much of each.
const MOST_MESSAGES: usize = 5;
const MESSAGE_LENGTH: usize = 300;

/// How a line stands to the node being on its tailnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Ok,
    /// Worth knowing.
    Note,
    /// It stands in the way.
    Problem,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Ok => GREEN,
            Self::Note => YELLOW,
            Self::Problem => RED,
        }
    }
}

/// What is said of one thing that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub name: &'static str,
    pub mark: Mark,
    pub text: String,
}

/// All that is to be said.
#[derive(Debug)]
pub struct Report {
    seen: Seen,
    pub lines: Vec<Line>,
    would: Vec<String>,
    pub finding: Finding,
}

impl Report {
    /// What is to be said of what was seen.
    pub fn new(seen: Seen) -> Self {
        let foresight = foresee(&seen);
        Self {
            lines: Lines::of(&seen, &foresight),
            would: would(&foresight),
            finding: conclude(&seen, &foresight),
            seen,
        }
    }

    /// For people, at 80 columns.
    pub fn to_text(&self, colors: bool) -> String {
        let mut text = String::new();
        let paint = |word: &str, color: &str| match colors {
            true => format!("{color}{word}{PLAIN}"),
            false => word.to_owned(),
        };
        let mut put = |mark: &str, color: &str, name: &str, said: &str| {
            let wrapped = wrap(&one_line(said), WIDTH - 25);
            for (number, part) in wrapped.iter().enumerate() {
                if number == 0 {
                    let pad = " ".repeat(8 - mark.len());
                    text.push_str(&format!("{}{pad} {name:<15} {part}\n", paint(mark, color)));
                } else {
                    text.push_str(&format!("{:25}{part}\n", ""));
                }
            }
        };
        for line in &self.lines {
            put(line.mark.name(), line.mark.color(), line.name, &line.text);
        }
        put("", "", "a run would", &self.would.join(", then "));
        let verdict = one_line(&self.finding.sentence);
        let wrapped = wrap(&format!("verdict: {verdict}"), WIDTH);
        text.push('\n');
        for part in &wrapped {
            text.push_str(&paint(part, BOLD));
            text.push('\n');
        }
        text
    }

    /// For programs; documented in the manual page.
    pub fn to_json(&self) -> Value {
        let exit = self.finding.exit;
        let seen = &self.seen;
        let status = seen.status.as_ref().ok();
        let node_key = status.map(|status| words::node_key(status, seen.now));
        let (flags, without_flag) = seen.settings().unwrap_or_default();
        let lines = self.lines.iter().map(|line| {
            json!({ "name": line.name, "mark": line.mark.name(), "text": one_line(&line.text) })
        });
        shown(json!({
            "schema": SCHEMA,
            "outcome": exit.outcome(),
            "exit_code": exit.code,
            "verdict": self.finding.kind.name(),
            "message": self.finding.sentence,
            "a_run_would": self.would,
            "lines": lines.collect::<Vec<_>>(),
            "seen": {
                "time": words::clock(seen.now),
                "socket": {
                    "path": seen.setup.socket.display().to_string(),
                    "owner": seen.socket_file.as_ref().ok().map(|file| &file.owner),
                    "mode": seen.socket_file.as_ref().ok().map(|file| octal(file.facts.mode)),
                },
                "tailscaled": {
                    "version": status.map(|status| &status.version),
                    "state": status.map(|status| &status.backend_state),
                    "online": status.map(|status| status.node.online),
                    "tailnet": status.map(|status| &status.current_tailnet.name),
                    "auth_url": status.map(|status| &status.auth_url),
                    "health": status.map(|status| &status.health),
                    "may_change": match &seen.access {
                        Access::Unknown => Value::Null,
                        access => (*access == Access::Granted).into(),
                    },
                },
                "node_key": {
                    "present": node_key.as_ref().map(|key| *key != NodeKey::None),
                    "expired": node_key.as_ref().map(|key| matches!(key, NodeKey::Expired(_))),
                    "expiry": status.and_then(|status| status.node.key_expiry.as_ref()),
                },
                "control_server": {
                    "node": seen.prefs.as_ref().map(|_| seen.control_server()),
                    "asked": seen.setup.server,
                },
                "key_file": {
                    "path": seen.setup.key_file.display().to_string(),
                    "usable": seen.key.kind.is_ok(),
                    "kind": seen.key.kind.as_ref().ok().map(|kind| words::kind_name(*kind)),
                    "problem": seen.key.kind.as_ref().err().map(ToString::to_string),
                    "owner": seen.key.file.map(|_| &seen.key_owner),
                    "mode": seen.key.file.map(|file| octal(file.mode)),
                    "age_seconds": seen.key.file.and_then(|file| file.modified).and_then(|at| {
                        Some(seen.now.duration_since(at).ok()?.as_secs())
                    }),
                    "in_use": seen.key.locked,
                },
                "command": {
                    "path": seen.cli.found.as_ref().unwrap_or(&seen.cli.program).display().to_string(),
                    "version": seen.cli.version.as_ref().ok(),
                },
                "settings": {
                    "flags": flags,
                    "without_flag": without_flag,
                },
            },
        }))
    }
}

fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

/// Every text in `value` as it may be shown.
fn shown(value: Value) -> Value {
    match value {
        Value::String(text) => one_line(&text).into(),
        Value::Array(items) => items.into_iter().map(shown).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, shown(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other,
    }
}

/// Breaks a text into lines of at most `width` characters, between words. A longer word has a line
/// of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// What a run would do, one thing after the other.
fn would(foresight: &Foresight) -> Vec<String> {
    let wait = |waiting: &Waiting| match waiting {
        Waiting::LoggingIn => "wait for the login that is under way".to_owned(),
        Waiting::Retry(why) => format!("try again and again ({why})"),
        Waiting::ControlServer(_) => "wait for the control server".to_owned(),
        waiting => waiting.to_string().replacen("waiting", "wait", 1),
    };
    let steps = foresight.steps.iter().map(|step| match step {
        Step::Wait(waiting) => format!("{} for a while", wait(waiting)),
        Step::Rescue => "restart the login without a key".to_owned(),
        Step::BringUp => "bring tailscale up without a key".to_owned(),
        Step::LogIn => "log in with the auth key".to_owned(),
        Step::TakeBack => "take back the login that was begun".to_owned(),
    });
    let end = match &foresight.end {
        End::Connected => Some("be done (exit status 0)".to_owned()),
        End::Fails(failure) => {
            let exit = failure.exit();
            Some(format!("end with {} ({})", exit.code, exit.name))
        }
        End::Waits(waiting) => Some(wait(waiting)),
        End::Tries => None,
    };
    steps.chain(end).collect()
}

/// The lines, in the order in which an admin would look.
struct Lines<'a> {
    seen: &'a Seen,
    needs_key: bool,
    lines: Vec<Line>,
}

impl<'a> Lines<'a> {
    fn of(seen: &'a Seen, foresight: &Foresight) -> Vec<Line> {
        let mut lines = Self { seen, needs_key: foresight.needs_key(), lines: Vec::new() };
        lines.socket();
        lines.tailscaled();
        if let Ok(status) = &seen.status {
            lines.permission();
            lines.state(status);
            lines.online(status);
            lines.node_key(status);
            lines.renewal(status);
        }
        lines.control_server();
        if let Ok(status) = &seen.status {
            lines.health(status);
            lines.approval(status);
        }
        lines.key_file();
        lines.other_run();
        lines.command();
        lines.settings();
        lines.lines
    }

    fn put(&mut self, name: &'static str, mark: Mark, text: impl Into<String>) {
        let text = text.into();
        self.lines.push(Line { name, mark, text });
    }

    fn socket(&mut self) {
        let path = self.seen.setup.socket.display();
        match &self.seen.socket_file {
            Ok(file) => {
                let (mark, distrust) = match self.seen.distrust {
                    Some(_) => (Mark::Problem, "; the auth key is not sent there"),
                    None => (Mark::Ok, ""),
                };
                let mode = octal(file.facts.mode);
                let text = format!("{path}, owner {}, mode {mode}{distrust}", file.owner);
                self.put("socket", mark, text);
            }
            Err(why) => self.put("socket", Mark::Problem, format!("{path}: {why}")),
        }
    }

    fn tailscaled(&mut self) {
        match &self.seen.status {
            Ok(status) => {
                let version = excerpt(&status.version, 60);
                let userspace = if status.tun { "" } else { ", userspace networking" };
                self.put("tailscaled", Mark::Ok, format!("{version}{userspace}"));
            }
            Err(LocalApiError::NoAnswer) => {
                self.put("tailscaled", Mark::Problem, "it does not answer");
            }
            Err(LocalApiError::Unreachable(why)) => {
                self.put("tailscaled", Mark::Problem, format!("it is not there: {why}"));
            }
            Err(LocalApiError::Denied(why)) => {
                self.put(
                    "tailscaled",
                    Mark::Problem,
                    format!("it does not let this user in: {why}"),
                );
            }
            Err(LocalApiError::BadAnswer(why) | LocalApiError::Locked(why)) => {
                self.put("tailscaled", Mark::Problem, format!("not understood: {why}"));
            }
        }
    }

    fn permission(&mut self) {
        match &self.seen.access {
            Access::Granted => {
                self.put("permission", Mark::Ok, "this user may change its settings")
            }
            Access::Denied(why) => {
                let text = format!("this user may not log it in or bring it up: {why}");
                self.put("permission", self.unless_connected(), text);
            }
            Access::Locked(why) => self.put("permission", self.unless_connected(), why.clone()),
            Access::Unknown => {}
        }
    }

    /// How what stands in the way of a login is marked.
    fn if_key_is_needed(&self) -> Mark {
        match self.needs_key {
            true => Mark::Problem,
            false => Mark::Note,
        }
    }

    fn unless_connected(&self) -> Mark {
        match self.seen.situation() {
            situation if situation.is_connected() => Mark::Note,
            _ => Mark::Problem,
        }
    }

    fn state(&mut self, status: &Status) {
        let mark = match self.seen.situation() {
            situation if situation.is_connected() => Mark::Ok,
            Situation::Settling { trouble: None, .. } => Mark::Note,
            _ => Mark::Problem,
        };
        let state = excerpt(&status.backend_state, 40);
        self.put("state", mark, format!("{state}: {}", words::state(status)));
    }

    fn online(&mut self, status: &Status) {
        if !status.node.online {
            let mark = match status.backend_state.as_str() {
                "Running" => Mark::Problem,
                _ => Mark::Note,
            };
            return self.put("online", mark, "no");
        }
        let mut text = "yes".to_owned();
        let node = status.node.dns_name.trim_end_matches('.');
        if !node.is_empty() {
            text.push_str(&format!(", as {node}"));
        }
        if !status.current_tailnet.name.is_empty() {
            text.push_str(&format!(", tailnet {}", status.current_tailnet.name));
        }
        // tailscaled keeps its connection to the control server for a while.
        let mark = match status.backend_state.as_str() {
            "Running" => Mark::Ok,
            _ => {
                text.push_str("; not used in this state");
                Mark::Note
            }
        };
        self.put("online", mark, text);
    }

    fn node_key(&mut self, status: &Status) {
        let date = |at| words::date(at, self.seen.now);
        let (mark, text) = match words::node_key(status, self.seen.now) {
            NodeKey::None => (Mark::Note, "none".to_owned()),
            NodeKey::Expired(None) => (Mark::Problem, "expired".to_owned()),
            NodeKey::Expired(Some(at)) => (Mark::Problem, format!("expired {}", date(at))),
            NodeKey::Soon(at) => (Mark::Note, format!("expires {}", date(at))),
            NodeKey::Good(Some(at)) => (Mark::Ok, format!("expires {}", date(at))),
            NodeKey::Good(None) if status.node.online => (Mark::Ok, "does not expire".to_owned()),
            NodeKey::Good(None) => (Mark::Ok, "there; no expiry is known".to_owned()),
        };
        self.put("node key", mark, text);
    }

    /// When and how a run that stays renews the node key.
    fn renewal(&mut self, status: &Status) {
        let seen = self.seen;
        let is_on =
            seen.setup.stay && status.node.key_expiry.is_some() && seen.situation().is_connected();
        let Some(prefs) = seen.prefs.as_ref().filter(|_| is_on) else {
            return;
        };
        let clock = seen.now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let asked = seen.setup.server.as_deref();
        let obstacle = obstacle(status, prefs, asked, clock).or_else(|| match &seen.key.kind {
            Ok(kind) => {
                let facts = KeyFacts { kind: *kind, digest: seen.key.digest.clone() };
                obstacle_of_key(&facts, prefs, seen.record.refused.as_ref())
            }
            Err(_) => Some(Obstacle::NoKey),
        });
        let node = seen.record.node.as_deref().filter(|node| node.key == status.node.public_key);
        let when = match node.and_then(|node| UNIX_EPOCH.checked_add(renew_at(node))) {
            Some(at) if at > seen.now => words::date(at, seen.now),
            Some(_) => "now".to_owned(),
            None => "between 70 and 90 % of its life".to_owned(),
        };
        match obstacle {
            None => self.put("renewal", Mark::Ok, format!("with the auth key, {when}")),
            Some(obstacle) => {
                self.put(
                    "renewal",
                    Mark::Note,
                    format!("due {when}, but not as things are: {obstacle}"),
                );
            }
        }
    }

    fn control_server(&mut self) {
        let seen = self.seen;
        let server = seen.server_of_a_login();
        if seen.servers_differ() {
            let text = format!("{}, but --login-server asks for {server}", seen.control_server());
            return self.put("control server", Mark::Note, text);
        }
        let whose = if is_tailscales(server) { " (Tailscale's)" } else { "" };
        let used = match (seen.control_server(), &seen.prefs) {
            ("", Some(_)) => ", not used so far",
            ("", None) => ", where a login would go",
            _ => "",
        };
        self.put("control server", Mark::Ok, format!("{server}{whose}{used}"));
    }

    fn health(&mut self, status: &Status) {
        // They say no more than the state does.
        const STATES: [&str; 2] = ["Tailscale is stopped.", "You are logged out."];
        let mut messages: Vec<&String> =
            status.health.iter().filter(|message| !STATES.contains(&message.as_str())).collect();
        // Their order is random.
        messages.sort();
        for message in messages.into_iter().take(MOST_MESSAGES) {
            let alone = std::slice::from_ref(message);
            let bad = last_login_error(alone).is_some() || trouble(alone).is_some();
            let mark = if bad && !status.node.online { Mark::Problem } else { Mark::Note };
            self.put("health", mark, excerpt(message, MESSAGE_LENGTH));
        }
        if status.health.iter().any(|message| complains_of_time(message)) {
            self.put("clock", Mark::Problem, words::clock(self.seen.now));
        }
    }

    fn approval(&mut self, status: &Status) {
        if status.backend_state == "NeedsMachineAuth" {
            let text = format!("pending: {}", self.seen.approval_page());
            self.put("approval", Mark::Problem, text);
        } else if !status.auth_url.is_empty() {
            let text = format!("a person could log it in at {}", status.auth_url);
            self.put("login page", Mark::Note, text);
        }
    }

    fn key_file(&mut self) {
        let seen = self.seen;
        let facts = seen.key.file.map(|file| words::file(file, &seen.key_owner, seen.now));
        match &seen.key.kind {
            Ok(kind) => {
                let text = format!(
                    "{}: {}; {}",
                    seen.setup.key_file.display(),
                    words::kind(*kind),
                    facts.unwrap_or_default()
                );
                self.put("key file", Mark::Ok, text);
                self.about_the_key(*kind);
            }
            Err(error) => {
                let facts = facts.map(|facts| format!(" ({facts})")).unwrap_or_default();
                let text = format!("{error}{facts}");
                self.put("key file", self.if_key_is_needed(), text);
            }
        }
    }

    /// What may be wrong with a key file that can be used.
    fn about_the_key(&mut self, kind: KeyKind) {
        let seen = self.seen;
        for how in &seen.key.exposure {
            self.put("key file", Mark::Note, format!("it {how}"));
        }
        if seen.key_has_params && !kind.is_oauth_secret() {
            let text = "--authkey-params are left out: only an OAuth client secret takes them";
            self.put("key file", Mark::Note, text);
        }
    }

    fn other_run(&mut self) {
        match self.seen.key.locked {
            true => self.put("other run", Mark::Note, "one is using the auth key"),
            false => self.put("other run", Mark::Ok, "none holds the auth key"),
        }
    }

    fn command(&mut self) {
        let cli = &self.seen.cli;
        let path = cli.found.as_ref().unwrap_or(&cli.program).display();
        match &cli.version {
            Ok(version) => {
                self.put("command", Mark::Ok, format!("{path}, version {version}"));
            }
            Err(NoVersion::CannotRun(why)) => {
                let failure = Failure::not_started(why, &cli.program);
                let text = failure.map(|failure| failure.to_string()).unwrap_or_default();
                self.put("command", self.if_key_is_needed(), text);
            }
            Err(NoVersion::Silent) => {
                let text = format!("{path} does not answer `version`");
                self.put("command", self.if_key_is_needed(), text);
            }
            Err(NoVersion::Failed(why)) => {
                self.put("command", Mark::Note, format!("{path} version: {why}"));
            }
        }
    }

    fn settings(&mut self) {
        let Some((flags, without_flag)) = self.seen.settings() else {
            return;
        };
        let mut text = flags.join(" ");
        if !without_flag.is_empty() {
            let names = without_flag.join(", ");
            let before = if text.is_empty() { "" } else { "; " };
            text.push_str(&format!("{before}without a flag: {names}"));
        }
        if text.is_empty() {
            text.push_str("as on a new node");
        } else {
            text.push_str(" (a login keeps them)");
        }
        self.put("settings", Mark::Ok, text);
    }
}
