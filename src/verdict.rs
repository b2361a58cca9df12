//! What a failed login means, read from the words of the control server, of tailscaled and of
//! the `tailscale` CLI. There are no codes to go by. Pure functions over text.

use std::time::Duration;

use crate::outcome::Failure;
use crate::redact::excerpt;

/// The last login error that tailscaled reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// The control server's own words: the key, or what it asks for, is not accepted.
    Refused(String),
    /// On the way there, or for now.
    Transient(String),
}

impl LoginError {
    fn new(text: &str) -> Self {
        if is_transient(text) {
            Self::Transient(brief(text))
        } else {
            Self::Refused(brief(text))
        }
    }

    pub fn into_text(self) -> String {
        match self {
            Self::Refused(text) | Self::Transient(text) => text,
        }
    }
}

/// Finds the last login error in the health messages of a status.
///
/// One and the same message carries refusals and transport errors
/// (health/warnings.go `loginStateWarnable`, v1.98.10; before 1.70, health/health.go).
pub fn last_login_error(health: &[String]) -> Option<LoginError> {
    const BEFORE: [&str; 2] = ["The last login error was: ", "last login error="];
    health.iter().find_map(|message| {
        let (_, error) = BEFORE.iter().find_map(|words| message.split_once(words))?;
        Some(LoginError::new(error.trim()))
    })
}

/// What keeps a node from the control server, as far as tailscaled says.
pub fn trouble(health: &[String]) -> Option<String> {
    const SIGNS: [&str; 5] = [
        "cannot connect",
        "nable to connect",
        "network is down",
        "network down",
        "State store failed",
    ];
    let login = last_login_error(health).map(LoginError::into_text);
    // The order of health messages is random; the words are not to change with it.
    login.or_else(|| {
        health
            .iter()
            .filter(|message| SIGNS.iter().any(|sign| message.contains(sign)))
            .min()
            .map(|message| brief(message))
    })
}

/// Whether an error of the login passes without anybody changing the key or the settings.
///
/// What the control server says itself arrives bare, in words that cannot be listed; transport
/// errors have the prefixes of controlclient/direct.go and the words of Go's network packages.
fn is_transient(text: &str) -> bool {
    const STARTS: [&str; 9] = [
        "fetch control key",
        "register request",
        "getNoiseClient",
        "all connection attempts failed",
        "PollNetMap",
        "node registration rate limited",
        "IPN bus consumer fell behind",
        "Get \"",
        "Post \"",
    ];
    const WORDS: [&str; 21] = [
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
        "unexpected EOF",
        "rate limit",
        "too many requests",
        "try again",
        "temporarily",
        "internal server error",
    ];
    let lower = text.to_lowercase();
    text == "EOF"
        || STARTS.iter().any(|start| text.starts_with(start))
        || WORDS
            .iter()
            .any(|word| lower.contains(&word.to_lowercase()))
}

/// How an end of `tailscale up` is to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says that all is well.
    Done,
    /// It wants settings mentioned that would be lost: these flags.
    KeepSettings(Vec<String>),
    /// The control server's words; tailscaled goes on sending the key.
    Refused(String),
    /// It may pass. `daemon_restarted`: tailscaled went away, and the key with it. `retry_after`
    /// is what the control server asked for.
    Transient {
        error: String,
        daemon_restarted: bool,
        retry_after: Option<Duration>,
    },
    /// It cannot work as things are.
    Impossible(Failure),
}

/// Reads the end of `tailscale up`: its exit code (none: ended by a signal) and what it wrote.
/// Texts: cmd/tailscale/cli/up.go, v1.98.10.
pub fn judge(code: Option<i32>, stderr: &str) -> Verdict {
    if code == Some(0) {
        return Verdict::Done;
    }
    if let Some(flags) = flags_to_keep(stderr) {
        return Verdict::KeepSettings(flags);
    }
    let transient = |error: &str, daemon_restarted| Verdict::Transient {
        error: brief(error),
        daemon_restarted,
        retry_after: retry_after(error),
    };
    if let Some((_, error)) = stderr.split_once("backend error: ") {
        return match LoginError::new(error.trim()) {
            LoginError::Refused(text) => Verdict::Refused(text),
            LoginError::Transient(text) => transient(&text, false),
        };
    }
    // `Access denied` comes with advice over several lines.
    if let Some((_, reason)) = stderr.split_once("Access denied: ") {
        return Verdict::Impossible(Failure::Denied(brief(reason)));
    }
    let error = last_line(stderr);
    // The flag package's way to end: the complaint, then the usage.
    if code == Some(2) {
        let complaint = brief(stderr);
        return Verdict::Impossible(Failure::Misconfigured(format!(
            "`tailscale up` does not take the flags that it was given ({complaint}); \
             correct the flags after `--`, or update tailscale"
        )));
    }
    if stderr.contains("can't change --login-server without --force-reauth") {
        return Verdict::Impossible(Failure::Misconfigured(
            "this node belongs to another login server than the one asked for; \
             name that one, or run `tailscale logout` first"
                .to_owned(),
        ));
    }
    if stderr.contains("config file is locked") {
        return Verdict::Impossible(Failure::Misconfigured(
            "tailscaled runs with a locked config file and takes no login; \
             put the auth key into that file, or unlock it"
                .to_owned(),
        ));
    }
    const SETTINGS: [&str; 5] = [
        "require --advertise-tags",
        "unknown attribute",
        "invalid value",
        "must be",
        "is not a valid",
    ];
    if SETTINGS.iter().any(|words| stderr.contains(words)) {
        return Verdict::Impossible(Failure::Misconfigured(format!(
            "`tailscale up` cannot work with these settings: {}; \
             correct the auth key's parameters or the flags after `--`",
            brief(error)
        )));
    }
    // The exchange of an OAuth client secret: golang.org/x/oauth2.
    let refused_by_oauth = ["token: 400", "token: 401", "token: 403", "invalid_client"];
    if refused_by_oauth.iter().any(|words| stderr.contains(words)) {
        return Verdict::Refused(brief(error));
    }
    let daemon_restarted = ["EOF", "unexpected EOF"].contains(&error)
        || stderr.contains("failed to connect to local tailscaled");
    match (error, code) {
        ("", Some(code)) => transient(&format!("`tailscale up` ended with {code}"), false),
        ("", None) => transient("`tailscale up` was killed", false),
        _ => transient(error, daemon_restarted),
    }
}

/// The flags in the command that `up` prints when settings would be lost, without the auth key.
fn flags_to_keep(stderr: &str) -> Option<Vec<String>> {
    if !stderr.contains("requires mentioning all") {
        return None;
    }
    let command = stderr
        .lines()
        .find_map(|line| line.trim().strip_prefix("tailscale up "))?;
    let words = shell_words::split(command).ok()?;
    Some(
        words
            .into_iter()
            .filter(|word| !word.starts_with("--auth-key") && !word.starts_with("--authkey"))
            .collect(),
    )
}

/// The time in `…; will retry after 1m30s`.
fn retry_after(error: &str) -> Option<Duration> {
    let (_, time) = error.split_once("retry after ")?;
    humantime::parse_duration(time.split_whitespace().next()?).ok()
}

fn last_line(text: &str) -> &str {
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or_default()
}

/// The first line, at a length that fits a status.
fn brief(text: &str) -> String {
    excerpt(text, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_servers_own_words_are_refusals() {
        for text in [
            "invalid key: API key does not exist",
            "invalid key: API key kAbc not valid",
            "invalid key: unable to validate API key",
            "requested tags [tag:x] are invalid or not permitted",
            "invalid pre auth key",
            "authkey expired",
            "authkey already used",
            "anything else that a control server may say",
        ] {
            let health = vec![format!(
                "You are logged out. The last login error was: {text}"
            )];
            assert_eq!(
                last_login_error(&health),
                Some(LoginError::Refused(text.into()))
            );
            let before_1_70 = vec![format!("not logged in, last login error={text}")];
            assert_eq!(last_login_error(&before_1_70), last_login_error(&health));
            assert_eq!(
                judge(Some(1), &format!("backend error: {text}\n")),
                Verdict::Refused(text.into())
            );
        }
    }

    #[test]
    fn transport_errors_pass() {
        for text in [
            "fetch control key: Get \"http://127.0.0.1:1/key?v=138\": dial tcp 127.0.0.1:1: connect: connection refused",
            "register request: Post \"https://x/machine/register\": EOF",
            "register request: http 500: oops",
            "getNoiseClient: all connection attempts failed (HTTP: x, HTTPS: y)",
            "fetch control key: Get \"https://x\": x509: certificate has expired or is not yet valid",
            "failed to resolve \"x\": no DNS fallback candidates remain for \"x\"",
            "node registration rate limited; will retry after 2s",
        ] {
            let health = vec![
                "other".to_owned(),
                format!("You are logged out. The last login error was: {text}"),
            ];
            assert!(
                matches!(last_login_error(&health), Some(LoginError::Transient(_))),
                "{text}"
            );
        }
        assert_eq!(last_login_error(&["You are logged out.".to_owned()]), None);
    }

    #[test]
    fn what_keeps_a_node_from_the_control_server_is_found_whatever_the_order() {
        let down = "Tailscale cannot connect because the network is down.".to_owned();
        let routes = "Some peers are advertising routes but --accept-routes is false".to_owned();
        for health in [
            vec![down.clone(), routes.clone()],
            vec![routes.clone(), down.clone()],
        ] {
            assert_eq!(trouble(&health), Some(down.clone()));
        }
        assert_eq!(trouble(&[routes]), None);
    }

    #[test]
    fn a_rate_limit_says_when_to_come_back() {
        let verdict = judge(
            Some(1),
            "backend error: node registration rate limited; will retry after 1m30s\n",
        );
        let Verdict::Transient { retry_after, .. } = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(retry_after, Some(Duration::from_secs(90)));
    }

    #[test]
    fn a_daemon_that_went_away_took_the_key_with_it() {
        for text in ["EOF", "unexpected EOF"] {
            assert!(matches!(
                judge(Some(1), text),
                Verdict::Transient {
                    daemon_restarted: true,
                    ..
                }
            ));
        }
        assert!(matches!(
            judge(Some(1), "context canceled\n"),
            Verdict::Transient {
                daemon_restarted: false,
                ..
            }
        ));
    }

    #[test]
    fn what_cannot_work_says_what_to_do() {
        let cases = [
            (
                2,
                "flag provided but not defined: -nope\nUSAGE\n  tailscale up\n",
                "-nope",
            ),
            (
                1,
                "can't change --login-server without --force-reauth\n",
                "another login server",
            ),
            (
                1,
                "500 Internal Server Error: can't reconfigure tailscaled when using a config file; config file is locked",
                "locked",
            ),
            (
                1,
                "oauth authkeys require --advertise-tags\n",
                "--advertise-tags",
            ),
        ];
        for (code, stderr, words) in cases {
            let Verdict::Impossible(failure) = judge(Some(code), stderr) else {
                panic!("{stderr}");
            };
            assert!(failure.to_string().contains(words), "{failure}");
            assert_eq!(failure.exit(), ("CONFIG", 78));
        }
    }

    #[test]
    fn no_right_to_log_in_is_not_a_matter_of_configuration() {
        let stderr = "Access denied: checkprefs access denied\n\nUse 'sudo tailscale up …'.\n";
        assert_eq!(
            judge(Some(1), stderr),
            Verdict::Impossible(Failure::Denied("checkprefs access denied".into()))
        );
    }

    #[test]
    fn the_flags_to_keep_are_those_that_the_cli_prints() {
        let stderr = "Error: changing settings via 'tailscale up' requires mentioning all\n\
            non-default flags. To proceed, either re-run your command with --reset or\n\
            use the command below to explicitly mention the current value of\n\
            all non-default settings:\n\n\
            \ttailscale up --auth-key=file:/proc/self/fd/9 --accept-routes --hostname='a b' --ssh\n\n";
        assert_eq!(
            judge(Some(1), stderr),
            Verdict::KeepSettings(vec![
                "--accept-routes".into(),
                "--hostname=a b".into(),
                "--ssh".into()
            ])
        );
    }

    #[test]
    fn an_end_without_words_is_named() {
        assert!(matches!(
            judge(None, ""),
            Verdict::Transient { error, .. } if error.contains("killed")
        ));
    }
}
