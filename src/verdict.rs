//! What a failed login means, read from the words of the control server, of tailscaled and of
//! the `tailscale` CLI. There are no codes to go by. Pure functions over text.

use std::time::Duration;

use crate::outcome::Failure;
use crate::redact::excerpt;
use crate::settings::flag_name;

/// The longest time until the next login that a control server may ask for.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// How many flags a command that the CLI prints may have; `up` knows about 40.
const MOST_FLAGS: usize = 100;

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

    /// The words alone.
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
    // In lower case.
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
        "unexpected eof",
        "rate limit",
        "too many requests",
        "try again",
        "temporarily",
        "internal server error",
    ];
    let lower = text.to_lowercase();
    text == "EOF"
        || STARTS.iter().any(|start| text.starts_with(start))
        || WORDS.iter().any(|word| lower.contains(word))
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
    /// It may pass. `lost_the_key`: tailscaled went away, and the key with it, or didn't take it.
    /// `retry_after` is what the control server asked for.
    Transient {
        error: String,
        lost_the_key: bool,
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
    let transient = |error: &str, lost_the_key| Verdict::Transient {
        error: brief(error),
        lost_the_key,
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
    if says_locked(stderr) {
        return Verdict::Impossible(locked());
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
    let lost_the_key = ["EOF", "unexpected EOF"].contains(&error)
        || stderr.contains("failed to connect to local tailscaled")
        || error.starts_with("500 Internal Server Error: ");
    match (error, code) {
        ("", Some(code)) => transient(&format!("`tailscale up` ended with {code}"), false),
        ("", None) => transient("`tailscale up` was killed", false),
        _ => transient(error, lost_the_key),
    }
}

/// Whether tailscaled says that it takes no changes but by its config file
/// (`errors.New("can't reconfigure tailscaled when using a config file; config file is locked")`).
pub fn says_locked(text: &str) -> bool {
    text.contains("config file is locked")
}

/// What becomes of a node whose config file is locked.
pub fn locked() -> Failure {
    Failure::Misconfigured(
        "tailscaled runs with a locked config file and takes no login; \
         put the auth key into that file, or unlock it"
            .to_owned(),
    )
}

/// The flags of settings in the command that `up` prints when settings would be lost: none if
/// there is anything in it that the CLI would not print, or if it was cut off.
///
/// The CLI writes each flag as one word, `--name` or `--name=value` (`fmtFlagValueArg` in up.go).
fn flags_to_keep(stderr: &str) -> Option<Vec<String>> {
    if !stderr.contains("requires mentioning all") {
        return None;
    }
    let command = stderr
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .find_map(|line| line.trim().strip_prefix("tailscale up "));
    let words = command.and_then(|command| shell_words::split(command).ok());
    let words = words.unwrap_or_default();
    if words.len() > MOST_FLAGS || !words.iter().all(|word| is_long_flag(word)) {
        return Some(Vec::new());
    }
    Some(words.into_iter().filter(|word| is_setting(word)).collect())
}

fn is_long_flag(word: &str) -> bool {
    let Some(name) = word.strip_prefix("--").and_then(|_| flag_name(word)) else {
        return false;
    };
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !word.contains(char::is_control)
}

/// Whether a flag stands for a setting of the node. Those of the others that the user gives are
/// given again anyway; the auth key is.
fn is_setting(flag: &str) -> bool {
    const OTHERS: [&str; 13] = [
        "accept-risk",
        "audience",
        "auth-key",
        "authkey",
        "client-id",
        "client-secret",
        "force-reauth",
        "id-token",
        "json",
        "qr",
        "qr-format",
        "reset",
        "timeout",
    ];
    flag_name(flag).is_some_and(|name| !OTHERS.contains(&name))
}

/// The time in `…; will retry after 1m30s`, which is for the control server to say, but not for
/// ever.
fn retry_after(error: &str) -> Option<Duration> {
    let (_, time) = error.split_once("retry after ")?;
    let time = humantime::parse_duration(time.split_whitespace().next()?).ok()?;
    Some(time.min(RETRY_AFTER_MOST))
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
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::samples::any_text;

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
    fn a_daemon_that_went_away_or_took_nothing_has_no_key() {
        let full =
            "500 Internal Server Error: initMachineKeyLocked: write /x: no space left on device";
        for text in ["EOF", "unexpected EOF", full] {
            assert!(matches!(
                judge(Some(1), text),
                Verdict::Transient {
                    lost_the_key: true,
                    ..
                }
            ));
        }
        assert!(matches!(
            judge(Some(1), "context canceled\n"),
            Verdict::Transient {
                lost_the_key: false,
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

    /// What `up` prints when settings would be lost, with this command.
    fn suggestion(command: &str) -> String {
        format!(
            "Error: changing settings via 'tailscale up' requires mentioning all\n\
             non-default flags. To proceed, …\n\n\ttailscale up {command}\n\n"
        )
    }

    #[test]
    fn of_the_printed_command_nothing_is_run_again_but_settings() {
        let none = Verdict::KeepSettings(Vec::new());
        for command in [
            "--ssh evil",
            "--hostname evil",
            "--ssh -- --reset",
            "--ssh -reset",
            "--ssh '--host\0name=x'",
            "--hostname='a\u{1b}[2J'",
            "--ssh --='x'",
            "--ssh ---reset",
            "--hostname='a",
            &"--ssh ".repeat(1000),
        ] {
            assert_eq!(judge(Some(1), &suggestion(command)), none, "{command:?}");
        }
        let kept = Verdict::KeepSettings(vec!["--ssh".to_owned()]);
        for command in [
            "--auth-key=tskey-x --ssh",
            "--authkey=x --ssh",
            "--reset --ssh --force-reauth",
            "--ssh '--re'set=true",
            "--ssh --timeout=1s --json --qr --client-secret=file:/etc/shadow",
        ] {
            assert_eq!(judge(Some(1), &suggestion(command)), kept, "{command:?}");
        }
    }

    #[test]
    fn a_command_that_was_cut_off_is_not_run_again() {
        let whole = suggestion("--accept-routes --advertise-routes=10.0.0.0/8,10.1.0.0/16");
        let end = whole.trim_end().len();
        for cut in end - 30..=end {
            assert_eq!(
                judge(Some(1), &whole[..cut]),
                Verdict::KeepSettings(Vec::new())
            );
        }
    }

    #[test]
    fn no_time_that_a_control_server_asks_for_is_endless() {
        for (time, seconds) in [
            ("1.5s", Some(1)),
            ("500000000000y", Some(86_400)),
            ("18446744073709551615s", Some(86_400)),
            ("99999999999999999999999y", None),
            ("-1s", None),
            ("", None),
        ] {
            let error = format!("rate limited; will retry after {time}");
            assert_eq!(
                retry_after(&error).map(|time| time.as_secs()),
                seconds,
                "{time}"
            );
        }
    }

    fn hostile_word() -> impl Strategy<Value = String> {
        prop_oneof![
            "--[a-z-]{0,12}(=[ -~]{0,12})?",
            select(
                &[
                    "--auth-key=file:/x",
                    "--auth-key",
                    "-authkey",
                    "'--reset'",
                    "--re''set",
                    "\\--force-reauth",
                    "--",
                    "-",
                    "x",
                    "\u{0}",
                    "\n\ttailscale up --reset",
                    "\"",
                    "'",
                    "\\",
                    "--timeout 1s",
                    "--hostname",
                    "--json=true",
                    "=",
                    "\r",
                ][..]
            )
            .prop_map(str::to_owned),
            any_text(),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_cli_prints_only_flags_of_settings_are_run_again(
            words in vec(hostile_word(), 0..8),
            times in 1..50usize,
        ) {
            let verdict = judge(Some(1), &suggestion(&words.join(" ").repeat(times)));
            let Verdict::KeepSettings(flags) = verdict else {
                panic!("{verdict:?}");
            };
            prop_assert!(flags.len() <= 100);
            for flag in flags {
                let name = flag.strip_prefix("--").unwrap_or_default();
                let name = name.split('=').next().unwrap_or_default();
                prop_assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{flag:?}");
                prop_assert!(!flag.contains(char::is_control), "{flag:?}");
                let refused = ["auth-key", "authkey", "timeout", "reset", "force-reauth", "json"];
                prop_assert!(!refused.contains(&name), "{flag:?}");
            }
        }

        #[test]
        fn the_flags_that_it_prints_are_kept_to_the_letter(
            values in vec(("[a-i][a-z0-9-]{0,12}", option::of("\\PC{0,20}")), 1..20),
        ) {
            let mut flags: Vec<String> = values
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => format!("--{name}={value}"),
                    None => format!("--{name}"),
                })
                .collect();
            flags.retain(|flag| is_setting(flag));
            let command = shell_words::join(&flags);
            prop_assert_eq!(
                judge(Some(1), &suggestion(&command)),
                Verdict::KeepSettings(flags)
            );
        }

        #[test]
        fn any_end_has_a_meaning_in_few_words(
            code: Option<i32>,
            start in select(&[
                "", "backend error: ", "Access denied: ", "flag provided but not defined: ",
                "can't change --login-server without --force-reauth", "must be ",
                "backend error: rate limit, retry after ", "requires mentioning all",
            ][..]),
            text in prop_oneof![any_text(), ".{300,400}", "[0-9]{1,25}(s|h|y|months)"],
        ) {
            let verdict = judge(code, &format!("{start}{text}"));
            prop_assert_eq!(verdict == Verdict::Done, code == Some(0));
            let said = match verdict {
                Verdict::Done | Verdict::KeepSettings(_) => String::new(),
                Verdict::Refused(text) => text,
                Verdict::Impossible(failure) => failure.to_string(),
                Verdict::Transient { error, retry_after, .. } => {
                    prop_assert!(retry_after.unwrap_or_default() <= RETRY_AFTER_MOST);
                    error
                }
            };
            prop_assert!(said.chars().count() <= 400 && said.lines().count() <= 1, "{said}");
        }

        #[test]
        fn any_health_has_one_trouble_in_few_words(health in vec(any_text(), 0..4)) {
            let health: Vec<String> = health
                .into_iter()
                .chain(["last login error=\n\n".to_owned()])
                .collect();
            last_login_error(&health);
            let said = trouble(&health).unwrap_or_default();
            prop_assert!(said.chars().count() <= 201 && said.lines().count() <= 1, "{said}");
        }
    }

    #[test]
    fn an_end_without_words_is_named() {
        assert!(matches!(
            judge(None, ""),
            Verdict::Transient { error, .. } if error.contains("killed")
        ));
    }
}
