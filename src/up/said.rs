//! What a login came to, read from the words of the control server, of tailscaled and of the
//! `tailscale` CLI, since there are no codes to go by. Pure functions over text; the texts are of
//! v1.98.10 and v1.102.3 where no other version is named.

#[cfg(test)]
mod tests;

use std::path::Path;

use crate::failure::{Failure, Mistake, Refusal, Refused};
use crate::redact::excerpt;

/// An error of the last login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// The control server refuses what it was given, and will go on refusing it.
    Refused(Refusal),
    /// The control server cannot be reached, or has no answer for now. tailscaled goes on trying.
    Unreachable(String),
    /// The control server's own words, and not known to be about the key: they may pass.
    Unknown(String),
}

impl LoginError {
    /// What these words of the control server or of tailscaled are about.
    pub fn of(text: &str) -> Self {
        let words = brief(text);
        if is_unreachable(text) {
            Self::Unreachable(words)
        } else if let Some(what) = refused(text) {
            Self::Refused(Refusal { what, words })
        } else {
            Self::Unknown(words)
        }
    }

    /// The words alone.
    pub fn words(&self) -> &str {
        match self {
            Self::Refused(Refusal { words, .. })
            | Self::Unreachable(words)
            | Self::Unknown(words) => words,
        }
    }
}

/// Finds the last login error in the health messages of a status.
///
/// One and the same message carries refusals and transport errors
/// (health/warnings.go `loginStateWarnable`; before 1.70, health/health.go).
pub fn last_login_error(health: &[String]) -> Option<LoginError> {
    const BEFORE: [&str; 2] = ["The last login error was: ", "last login error="];
    health.iter().find_map(|message| {
        let (_, error) = BEFORE.iter().find_map(|words| message.split_once(words))?;
        Some(LoginError::of(error.trim()))
    })
}

/// What keeps a node from the control server, as far as tailscaled says: the error of its last login, or
/// else that it sees no network.
pub fn trouble(health: &[String]) -> Option<LoginError> {
    const SIGNS: [&str; 5] = [
        "cannot connect",
        "nable to connect",
        "network is down",
        "network down",
        "State store failed",
    ];
    // The order of health messages is random; the words are not to change with it.
    last_login_error(health).or_else(|| {
        let signs = health.iter().filter(|message| SIGNS.iter().any(|sign| message.contains(sign)));
        signs.min().map(|message| LoginError::Unreachable(brief(message)))
    })
}

/// Whether an error is one on the way to the control server, or its answer that it can't now.
///
/// Transport errors have the prefixes of controlclient/direct.go and the words of Go's network
/// packages; what the control server says itself arrives bare.
fn is_unreachable(text: &str) -> bool {
    const STARTS: [&str; 8] = [
        "fetch control key",
        "getNoiseClient",
        "all connection attempts failed",
        "PollNetMap",
        "node registration rate limited",
        "IPN bus consumer fell behind",
        "Get \"",
        "Post \"",
    ];
    // In lower case.
    const WORDS: [&str; 18] = [
        "dial tcp",
        "lookup ",
        "no such host",
        "failed to resolve",
        "connection refused",
        "connection reset",
        "network is unreachable",
        "no route to host",
        "broken pipe",
        "i/o timeout",
        "deadline exceeded",
        "context canceled",
        "timed out",
        "x509:",
        "tls:",
        "unexpected eof",
        "rate limit",
        "too many requests",
    ];
    if let Some(rest) = text.strip_prefix("register request") {
        return http_code(rest).is_none_or(|code| !is_servers_refusal(code));
    }
    let lower = text.to_lowercase();
    text == "EOF"
        || STARTS.iter().any(|start| text.starts_with(start))
        || WORDS.iter().any(|word| lower.contains(word))
}

/// The number in `…: http 401: …` (controlclient/direct.go `doLogin`).
fn http_code(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("http ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether a server answers so to what it will never take. headscale up to 0.24 answers 401 to a
/// dead key.
fn is_servers_refusal(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

/// What these words refuse, if they are known to be a refusal: those of Tailscale's service as they
/// are told in its issues, and those of headscale up to 0.29 (hscontrol/types/preauth_key.go).
fn refused(text: &str) -> Option<Refused> {
    // In lower case.
    const PASSING: [&str; 9] = [
        "database",
        "sql",
        "retry",
        "try again",
        "temporar",
        "unavailable",
        "internal server error",
        "timeout",
        "overload",
    ];
    const KEY: [&str; 13] = [
        "invalid key",
        "no such key",
        "api key",
        "key cannot be used",
        "pre auth key",
        "preauthkey",
        "preauth key",
        "authkey ",
        "auth-key ",
        "auth-key:",
        "invalid auth key",
        "auth key expired",
        "auth key not found",
    ];
    const UNKNOWN: [&str; 4] = ["does not exist", "not found", "no such key", "unable to validate"];
    const OWNER: [&str; 2] = ["user is suspended", "user not found"];
    if text.starts_with("register request") {
        return Some(Refused::Key);
    }
    let lower = text.to_lowercase();
    // headscale puts this before whatever goes wrong.
    let words = lower.strip_prefix("handling register with auth key: ").unwrap_or(&lower);
    if PASSING.iter().any(|word| words.contains(word)) {
        None
    } else if words.contains("tags")
        && (words.contains("not permitted") || words.contains("invalid"))
    {
        Some(Refused::Tags)
    } else if OWNER.iter().any(|word| words.contains(word)) {
        Some(Refused::Owner)
    } else if KEY.iter().any(|word| words.contains(word)) {
        Some(match UNKNOWN.iter().any(|word| words.contains(word)) {
            true => Refused::UnknownKey,
            false => Refused::Key,
        })
    } else {
        None
    }
}

/// What the end of `tailscale up` says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// All is well.
    #[error("it is done")]
    Done,
    /// The login has failed; tailscaled goes on trying with the key.
    #[error("{}", .0.words())]
    LoginError(LoginError),
    /// It cannot pass.
    #[error(transparent)]
    Final(Failure),
    /// A flag that this version of the CLI doesn't know, by its name, with what it said.
    #[error("{1}")]
    UnknownFlag(String, String),
    /// tailscaled went away, and the key with it; or it took none.
    #[error("{0}")]
    Lost(String),
    /// On the way to somewhere.
    #[error("{0}")]
    Unreachable(String),
    /// By a signal.
    #[error("`tailscale up` was killed")]
    Killed,
    /// By us, since nothing came of it.
    #[error("nothing came of `tailscale up`")]
    Idle,
    /// Words that are not known, or none. It may be a mistake in the configuration.
    #[error("{0}")]
    Unknown(String),
}

impl From<Mistake> for Ended {
    fn from(mistake: Mistake) -> Self {
        Self::Final(mistake.into())
    }
}

/// Reads the end of `program up`: its exit code (none: ended by a signal) and what it wrote to
/// standard error (cmd/tailscale/cli/up.go).
pub fn read(program: &Path, code: Option<i32>, stderr: &str) -> Ended {
    if code == Some(0) {
        return Ended::Done;
    }
    if let Some((_, error)) = stderr.split_once("backend error: ") {
        return Ended::LoginError(LoginError::of(error.trim()));
    }
    // `Access denied` comes with advice over several lines.
    if let Some((_, reason)) = stderr.split_once("Access denied: ") {
        return Ended::Final(Failure::Denied(brief(reason)));
    }
    // The flag package's way to end: the complaint, then the usage.
    if let Some((_, name)) = stderr.split_once("flag provided but not defined: ") {
        let name = name.lines().next().unwrap_or_default().trim().trim_start_matches('-');
        return Ended::UnknownFlag(name.to_owned(), brief(stderr));
    }
    // Go's way to end what cannot go on, as at the limit of processes or of memory.
    const CRASHES: [&str; 3] = ["runtime: ", "fatal error: ", "panic: "];
    if CRASHES.iter().any(|start| stderr.starts_with(start)) {
        return Ended::Unreachable(brief(stderr));
    }
    if code == Some(2) {
        return Mistake::Flags(brief(stderr)).into();
    }
    if stderr.contains("can't change --login-server without --force-reauth") {
        return Mistake::OtherServer.into();
    }
    if stderr.contains("config file is locked") {
        return Mistake::LockedConfig.into();
    }
    let error = last_line(stderr);
    if let Some(what) = refused_by_api(stderr) {
        return Ended::Final(Failure::Refused(Refusal { what, words: brief(error) }));
    }
    // What else the API says, or who stands in for it, may pass.
    const API: [&str; 3] = ["oauth2: ", "Status: ", "json.Unmarshal"];
    if let Some(line) = stderr.lines().find(|line| API.iter().any(|words| line.contains(words))) {
        return Ended::Unreachable(brief(line));
    }
    const SETTINGS: [&str; 16] = [
        "require --advertise-tags",
        "unknown attribute",
        "invalid attribute",
        "invalid value",
        "must be",
        "is not a valid",
        "too many non-flag arguments",
        "can only be used with --exit-node",
        "Cannot advertise an exit node and use",
        "has non-address bits set",
        "advertised without its IPv",
        "tag names can only contain",
        "tag names must",
        "Unable to enable local Tailscale SSH server",
        "administratively disabled",
        "requires --",
    ];
    if SETTINGS.iter().any(|words| stderr.contains(words)) {
        return Mistake::Settings(brief(error)).into();
    }
    const LOST: [&str; 2] =
        ["failed to connect to local tailscaled", "500 Internal Server Error: "];
    if ["EOF", "unexpected EOF"].contains(&error) || LOST.iter().any(|words| stderr.contains(words))
    {
        return Ended::Lost(brief(error));
    }
    match (error, code) {
        // The shell's codes for a command that cannot be run, or is not there.
        ("", Some(code @ (126 | 127))) => {
            Mistake::NoTailscale { program: program.to_owned(), code }.into()
        }
        ("", Some(code)) => Ended::Unknown(format!("`tailscale up` ended with {code}")),
        (_, None) => Ended::Killed,
        _ if is_unreachable(error) => Ended::Unreachable(brief(error)),
        _ => Ended::Unknown(brief(error)),
    }
}

/// The exchange of an OAuth client secret: golang.org/x/oauth2 for the token, and `ErrResponse` of
/// tailscale.com/client/tailscale for the key.
fn refused_by_api(stderr: &str) -> Option<Refused> {
    const KEY: [&str; 7] = [
        "token: 400",
        "token: 401",
        "token: 403",
        "invalid_client",
        "Status: 400",
        "Status: 401",
        "Status: 403",
    ];
    if !KEY.iter().any(|words| stderr.contains(words)) {
        return None;
    }
    Some(match stderr.to_lowercase().contains("tags") {
        true => Refused::Tags,
        false => Refused::Key,
    })
}

fn last_line(text: &str) -> &str {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// The first line, at a length that fits a status.
fn brief(text: &str) -> String {
    excerpt(text, 200)
}
