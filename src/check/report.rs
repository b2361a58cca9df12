//! What `--check` prints: a line for each thing that was seen, what a run would do, and the verdict;
//! or the same as one JSON object. Pure functions.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::check::finding::{Finding, NOT_VALID_NOW, conclude};
use crate::check::foresee::{End, Foresight, Step, foresee};
use crate::check::seen::Seen;
use crate::check::words::{self, NodeKey};
use crate::failure::Waiting;
use crate::output::terminal::{BOLD, GREEN, PLAIN, RED, YELLOW};
use crate::policy::Situation;
use crate::redact::{excerpt, one_line};
use crate::server::is_tailscales;
use crate::tailscaled::{LocalApiError, Status};
use crate::up::{NoVersion, trouble};

/// Raised when a field of the JSON object goes or changes its meaning, not when one is added.
const SCHEMA: u32 = 1;

/// The width of what people read.
const WIDTH: usize = 80;

/// How many health messages are shown, and how much of each.
const MOST_MESSAGES: usize = 5;
const MESSAGE_LENGTH: usize = 300;

/// A node key that expires sooner is worth a note.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

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
    fn name_and_color(self) -> (&'static str, &'static str) {
        match self {
            Self::Ok => ("ok", GREEN),
            Self::Note => ("note", YELLOW),
            Self::Problem => ("problem", RED),
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
    pub seen: Seen,
    pub lines: Vec<Line>,
    would: Vec<String>,
    pub finding: Finding,
}

impl Report {
    /// What is to be said of what was seen.
    pub fn new(seen: Seen) -> Self {
        let foresight = foresee(&seen);
        Self {
            lines: lines(&seen, foresight.needs_key()),
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
        let mut put = |(mark, color): (&str, &str), name: &str, said: &str| {
            let said = wrap(&one_line(said), WIDTH - 25).join(&format!("\n{:25}", ""));
            let pad = " ".repeat(8 - mark.len());
            text.push_str(&format!("{}{pad} {name:<15} {said}\n", paint(mark, color)));
        };
        for line in &self.lines {
            put(line.mark.name_and_color(), line.name, &line.text);
        }
        put(("", ""), "a run would", &self.would.join(", then "));
        let verdict = one_line(&self.finding.sentence);
        for line in wrap(&format!("verdict: {verdict}"), WIDTH) {
            text.push_str(&format!("\n{}", paint(&line, BOLD)));
        }
        text + "\n"
    }

    /// For programs; documented in the manual page.
    pub fn to_json(&self) -> Value {
        let exit = self.finding.exit;
        let seen = &self.seen;
        let status = seen.status.as_ref().ok();
        let node_key = status.map(|status| words::node_key(status, seen.now));
        let socket_file = seen.socket_file.as_ref().ok();
        let key = seen.key.key.as_ref();
        let problem = key.err().map(|problem| problem.clone().at(&seen.setup.key_file).to_string());
        let key_file = seen.key.file.as_ref();
        let written = key_file.and_then(|file| file.modified);
        let (flags, without_flag) = seen.settings().unwrap_or_default();
        let lines = self.lines.iter().map(|line| {
            json!({ "name": line.name, "mark": line.mark.name_and_color().0, "text": line.text })
        });
        shown(json!({
            "schema": SCHEMA,
            "outcome": exit.outcome(),
            "exit_code": exit.code,
            "verdict": self.finding.kind,
            "message": self.finding.sentence,
            "a_run_would": self.would,
            "lines": lines.collect::<Vec<_>>(),
            "seen": {
                "time": words::clock(seen.now),
                "socket": {
                    "path": seen.setup.cli.socket.display().to_string(),
                    "owner": socket_file.map(|file| &file.owner),
                    "mode": socket_file.map(|file| octal(file.mode)),
                },
                "tailscaled": {
                    "version": status.map(|status| &status.version),
                    "state": status.map(|status| &status.backend_state),
                    "online": status.map(|status| status.node.online),
                    "tailnet": status.map(|status| &status.current_tailnet.name),
                    "auth_url": status.map(|status| &status.auth_url),
                    "health": status.map(|status| &status.health),
                    "may_change": match seen.access {
                        Err(_) if seen.objection().is_none() => None,
                        _ => Some(seen.access.is_ok()),
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
                    "usable": key.is_ok(),
                    "kind": key.ok().map(|key| words::kind(key.kind).0),
                    "problem": problem,
                    "owner": key_file.map(|file| &file.owner),
                    "mode": key_file.map(|file| octal(file.mode)),
                    "age_seconds": written
                        .and_then(|at| Some(seen.now.duration_since(at).ok()?.as_secs())),
                    "in_use": seen.key.locked,
                },
                "command": {
                    "path": seen.command().display().to_string(),
                    "version": seen.version.as_ref().ok(),
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
            .collect::<Map<_, _>>()
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
        Waiting::Retry(why, _) => format!("try again and again ({why})"),
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
fn lines(seen: &Seen, needs_key: bool) -> Vec<Line> {
    let status = seen.status.as_ref().ok();
    // How what stands in the way of a login is marked.
    let if_needed = if needs_key { Mark::Problem } else { Mark::Note };
    let mut lines = vec![socket(seen), tailscaled(seen)];
    if let Some(status) = status {
        lines.extend(permission(seen));
        lines.extend([state(seen, status), online(status), node_key(seen, status)]);
        lines.extend(renewal(seen));
    }
    lines.push(control_server(seen));
    if let Some(status) = status {
        lines.extend(health(seen, status));
        lines.extend(approval(seen, status));
    }
    lines.extend(key_file(seen, if_needed));
    lines.extend(record(seen, if_needed));
    lines.push(match seen.key.locked {
        true => note("other run", "one is using the auth key"),
        false => ok("other run", "none holds the auth key"),
    });
    lines.push(command(seen, if_needed));
    lines.extend(settings(seen));
    lines
}

fn line(mark: Mark, name: &'static str, text: impl Into<String>) -> Line {
    Line { name, mark, text: text.into() }
}

fn ok(name: &'static str, text: impl Into<String>) -> Line {
    line(Mark::Ok, name, text)
}

fn note(name: &'static str, text: impl Into<String>) -> Line {
    line(Mark::Note, name, text)
}

fn problem(name: &'static str, text: impl Into<String>) -> Line {
    line(Mark::Problem, name, text)
}

fn socket(seen: &Seen) -> Line {
    let path = seen.setup.cli.socket.display();
    let (file, mode) = match &seen.socket_file {
        Ok(file) => (file, octal(file.mode)),
        Err(why) => return problem("socket", format!("{path}: {why}")),
    };
    let text = format!("{path}, owner {}, mode {mode}", file.owner);
    match seen.distrust {
        Some(_) => problem("socket", text + "; the auth key is not sent there"),
        None => ok("socket", text),
    }
}

fn tailscaled(seen: &Seen) -> Line {
    let why = match &seen.status {
        Ok(status) => {
            let userspace = if status.tun { "" } else { ", userspace networking" };
            return ok("tailscaled", excerpt(&status.version, 60) + userspace);
        }
        Err(LocalApiError::NoAnswer) => "it does not answer".to_owned(),
        Err(LocalApiError::Unreachable(why)) => format!("it is not there: {why}"),
        Err(LocalApiError::Denied(why)) => format!("it does not let this user in: {why}"),
        Err(error) => format!("not understood: {error}"),
    };
    problem("tailscaled", why)
}

fn permission(seen: &Seen) -> Option<Line> {
    let why = match &seen.access {
        Ok(()) => return Some(ok("permission", "this user may change its settings")),
        Err(LocalApiError::Denied(why)) => {
            format!("this user may not log it in or bring it up: {why}")
        }
        Err(LocalApiError::Locked(why)) => why.clone(),
        // An objection to a setting, or a version that cannot be asked.
        Err(_) => return None,
    };
    let mark = if seen.situation().is_connected() { Mark::Note } else { Mark::Problem };
    Some(line(mark, "permission", why))
}

fn state(seen: &Seen, status: &Status) -> Line {
    let mark = match seen.situation() {
        situation if situation.is_connected() => Mark::Ok,
        Situation::Settling { error: None } => Mark::Note,
        _ => Mark::Problem,
    };
    let state = excerpt(&status.backend_state, 40);
    line(mark, "state", format!("{state}: {}", words::state(status)))
}

fn online(status: &Status) -> Line {
    let is_running = status.backend_state == "Running";
    if !status.node.online {
        return line(if is_running { Mark::Problem } else { Mark::Note }, "online", "no");
    }
    let mut text = "yes".to_owned();
    let node = status.node.dns_name.trim_end_matches('.');
    if !node.is_empty() {
        text.push_str(&format!(", as {node}"));
    }
    if !status.current_tailnet.name.is_empty() {
        text.push_str(&format!(", tailnet {}", status.current_tailnet.name));
    }
    match is_running {
        true => ok("online", text),
        // tailscaled keeps its connection to the control server for a while.
        false => note("online", text + "; not used in this state"),
    }
}

fn node_key(seen: &Seen, status: &Status) -> Line {
    let date = |at| words::date(at, seen.now);
    match words::node_key(status, seen.now) {
        NodeKey::None => note("node key", "none"),
        NodeKey::Expired(None) => problem("node key", "expired"),
        NodeKey::Expired(Some(at)) => problem("node key", format!("expired {}", date(at))),
        NodeKey::Good(Some(at)) => {
            let mark = if at <= seen.now + SOON { Mark::Note } else { Mark::Ok };
            line(mark, "node key", format!("expires {}", date(at)))
        }
        NodeKey::Good(None) if status.node.online => ok("node key", "does not expire"),
        NodeKey::Good(None) => ok("node key", "there; no expiry is known"),
    }
}

/// When and how a run that stays renews the node key.
fn renewal(seen: &Seen) -> Option<Line> {
    let (at, obstacle) = seen.renewal()?;
    let when = match at {
        Some(at) if at > seen.now => words::date(at, seen.now),
        Some(_) => "now".to_owned(),
        None => "between 70 and 90 % of its life".to_owned(),
    };
    let last = match seen.record.last.renewal {
        0 => String::new(),
        at => format!("; the last one was {}", words::date_of(at, seen.now)),
    };
    Some(match obstacle {
        None => ok("renewal", format!("with the auth key, {when}{last}")),
        Some(why) => note("renewal", format!("due {when}, but not as things are: {why}{last}")),
    })
}

/// What runs before have seen of the key and the machine.
fn record(seen: &Seen, if_needed: Mark) -> Vec<Line> {
    let copied = "the state of this node was made on another machine";
    let refused = seen.record.refused.as_ref().map(|refused| {
        let (held, mark) = match seen.holds_refused_key() {
            true => ("the file still holds it", if_needed),
            false => ("the file holds another", Mark::Note),
        };
        let date = words::date_of(refused.at, seen.now);
        line(mark, "refused key", format!("{date}: {}; {held}", refused.words))
    });
    refused.into_iter().chain(seen.is_copied.then(|| problem("machine", copied))).collect()
}

fn control_server(seen: &Seen) -> Line {
    let server = seen.server_of_login();
    if seen.servers_differ() {
        let text = format!("{}, but --login-server asks for {server}", seen.control_server());
        return note("control server", text);
    }
    let whose = if is_tailscales(server) { " (Tailscale's)" } else { "" };
    let used = match (seen.control_server(), &seen.prefs) {
        ("", Some(_)) => ", not used so far",
        ("", None) => ", where a login would go",
        _ => "",
    };
    ok("control server", format!("{server}{whose}{used}"))
}

fn health(seen: &Seen, status: &Status) -> Vec<Line> {
    // They say no more than the state does.
    const STATES: [&str; 2] = ["Tailscale is stopped.", "You are logged out."];
    let messages = status.health.iter().filter(|message| !STATES.contains(&message.as_str()));
    let mut messages: Vec<_> = messages.collect();
    // Their order is random.
    messages.sort();
    let lines = messages.into_iter().take(MOST_MESSAGES).map(|message| {
        let alone = std::slice::from_ref(message);
        let bad = trouble(alone).is_some();
        let mark = if bad && !status.node.online { Mark::Problem } else { Mark::Note };
        line(mark, "health", excerpt(message, MESSAGE_LENGTH))
    });
    let is_clock = status.health.iter().any(|message| message.contains(NOT_VALID_NOW));
    lines.chain(is_clock.then(|| problem("clock", words::clock(seen.now)))).collect()
}

fn approval(seen: &Seen, status: &Status) -> Option<Line> {
    if status.backend_state == "NeedsMachineAuth" {
        return Some(problem("approval", format!("pending: {}", seen.approval_page())));
    }
    let page = Some(&status.auth_url).filter(|page| !page.is_empty())?;
    Some(note("login page", format!("a person could log it in at {page}")))
}

/// What may be wrong even with a key file that can be used is noted.
fn key_file(seen: &Seen, if_needed: Mark) -> Vec<Line> {
    let facts = seen.key.file.as_ref().map(|file| words::file(file, seen.now));
    let kind = match &seen.key.key {
        Ok(key) => key.kind,
        Err(problem) => {
            let error = problem.clone().at(&seen.setup.key_file);
            let facts = facts.map(|facts| format!(" ({facts})")).unwrap_or_default();
            return vec![line(if_needed, "key file", format!("{error}{facts}"))];
        }
    };
    let (path, words) = (seen.setup.key_file.display(), words::kind(kind).1);
    let text = format!("{path}: {words}; {}", facts.unwrap_or_default());
    let mut lines = vec![ok("key file", text)];
    lines.extend(seen.key.exposure.iter().map(|how| note("key file", format!("it {how}"))));
    if seen.key_has_params && !kind.is_oauth_secret() {
        let text = "--authkey-params are left out: only an OAuth client secret takes them";
        lines.push(note("key file", text));
    }
    lines
}

fn command(seen: &Seen, if_needed: Mark) -> Line {
    let path = seen.command().display();
    match &seen.version {
        Ok(version) => ok("command", format!("{path}, version {version}")),
        Err(NoVersion::CannotRun(mistake)) => line(if_needed, "command", mistake.to_string()),
        Err(NoVersion::Silent) => {
            line(if_needed, "command", format!("{path} does not answer `version`"))
        }
        Err(NoVersion::Failed(why)) => note("command", format!("{path} version: {why}")),
    }
}

fn settings(seen: &Seen) -> Option<Line> {
    let (flags, without_flag) = seen.settings()?;
    let mut parts = vec![flags.join(" ")];
    if !without_flag.is_empty() {
        parts.push(format!("without a flag: {}", without_flag.join(", ")));
    }
    parts.retain(|part| !part.is_empty());
    Some(match parts.is_empty() {
        true => ok("settings", "as on a new node"),
        false => ok("settings", parts.join("; ") + " (a login keeps them)"),
    })
}
