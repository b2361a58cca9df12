//! What the manual page says of the program is true and complete.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::{Arg, Command};
use serde_json::json;

use crate::cli::Options;
use crate::failure::{Connected, EXITS, Obstacle, Waiting};
use crate::flags::UP_FLAGS;
use crate::key::Problem;
use crate::key::trust::NOT_PASSED_ON;

const PAGE: &str = include_str!("../../units/tailscale-autoconnect.8");

// ---- reading the page

/// A paragraph of the page, or a term with what is said of it.
#[derive(Default)]
pub struct Entry {
    /// Empty for a paragraph.
    pub term: String,
    pub text: String,
    /// The text with its marks.
    source: String,
}

/// What a section is made of, without the marks of man(7).
fn section(name: &str) -> Vec<Entry> {
    let heading = format!(".SH {name}");
    let mut lines = PAGE
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with(".SH"));
    let mut entries = vec![Entry::default()];
    while let Some(line) = lines.next() {
        let Entry { text, source, .. } = entries.last_mut().expect("there is one");
        match line {
            ".PP" => entries.push(Entry::default()),
            ".TP" => entries.push(Entry {
                term: plain(lines.next().expect("a term after .TP")),
                ..Entry::default()
            }),
            ".br" => text.push('\n'),
            _ if line.starts_with(".SS ") => entries.push(Entry::default()),
            _ => {
                text.push_str(&(plain(line) + " "));
                source.push_str(&(line.to_owned() + "\n"));
            }
        }
    }
    entries.retain(|entry| !(entry.term.is_empty() && entry.text.is_empty()));
    assert!(!entries.is_empty(), "{heading}");
    entries
}

/// The entries of a section that have a term.
pub fn terms(section_name: &str) -> Vec<Entry> {
    let mut entries = section(section_name);
    entries.retain(|entry| !entry.term.is_empty());
    for entry in &entries {
        assert!(!entry.text.trim().is_empty(), "{} and why", entry.term);
    }
    entries
}

/// A line of the page as it is read.
fn plain(line: &str) -> String {
    let text = match line.split_once(' ') {
        Some((".B" | ".I", words)) => arguments(words).join(" "),
        Some((".BI" | ".BR" | ".IB" | ".IR" | ".RB" | ".RI", words)) => arguments(words).concat(),
        _ if line.starts_with('.') => panic!("this test does not know: {line}"),
        _ => line.to_owned(),
    };
    [("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\&", "")]
        .iter()
        .fold(text, |text, (mark, sign)| text.replace(mark, sign))
}

/// What a text in this source has in bold.
fn in_bold(source: &str) -> Vec<String> {
    let lines = source.lines().filter(|line| line.starts_with(".B ") || line.starts_with(".BR "));
    let words = lines.filter_map(|line| {
        let bold = match line.split_once(' ')? {
            (".B", words) => words,
            (_, words) => arguments(words)[0],
        };
        Some(plain(bold))
    });
    words.collect()
}

/// The arguments of a macro, of which some stand in double quotes.
fn arguments(mut words: &str) -> Vec<&str> {
    let mut arguments = Vec::new();
    while !words.is_empty() {
        let (argument, rest) = match words.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').expect("a closing quote"),
            None => words.split_once(' ').unwrap_or((words, "")),
        };
        arguments.push(argument);
        words = rest.trim_start();
    }
    arguments
}

fn upper(words: &str) -> String {
    let (first, rest) = words.split_at(1);
    first.to_uppercase() + rest
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort();
    all
}

// ---- the command line

fn built() -> Command {
    let mut command = Options::definition();
    command.build();
    command
}

#[test]
fn the_page_begins_with_the_name_the_version_and_the_usage() {
    let command = built();
    let version = command.get_version().unwrap();
    let heading = format!(".TH {0} 8 \"\" \"{0} {version}\"", command.get_name());
    assert!(PAGE.lines().any(|line| line == heading), "{heading}");

    let about = command.get_about().unwrap().to_string();
    let name = section("NAME").remove(0).text;
    assert_eq!(upper(name.split_once(" - ").unwrap().1.trim()), about, "the NAME");

    let usage = command.get_overridden_usage().unwrap().to_string();
    let usage = usage.replace('`', "");
    let synopsis = section("SYNOPSIS").remove(0).text;
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(Into::into).collect() };
    assert_eq!(words(&synopsis), words(&usage));
}

#[test]
fn the_page_has_every_option_with_its_value_its_default_and_its_variable() {
    let command = built();
    let shown = command.get_arguments().filter(|option| !option.is_hide_set());
    let mut defined: Vec<_> = shown
        .map(|option| {
            let variable = option.get_env().map(|name| name.to_string_lossy());
            (
                names(option),
                default(option).map(|value| format!("Default: {value}")),
                variable.map(|name| format!("Variable: {name}")),
            )
        })
        .collect();
    defined.push(("-- FLAGS".to_owned(), None, None));

    let documented: Vec<_> = terms("OPTIONS")
        .into_iter()
        .map(|Entry { term, text, .. }| {
            let line = |beginning| {
                let mut lines = text.lines().map(str::trim);
                lines.find(|line| line.starts_with(beginning))
            };
            let [default, variable] = ["Default: ", "Variable: "].map(line);
            (term, default.map(Into::into), variable.map(Into::into))
        })
        .collect();
    for (documented, defined) in documented.iter().zip(&defined) {
        assert_eq!(documented, defined);
    }
    assert_eq!(documented.len(), defined.len());
}

/// `-s, --long VALUE`.
fn names(option: &Arg) -> String {
    let short = option.get_short().map(|short| format!("-{short}"));
    let long = option.get_long().map(|long| format!("--{long}"));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    let value = match option.get_value_names() {
        Some(values) if option.get_action().takes_values() => format!(" {}", values.join(" ")),
        _ => String::new(),
    };
    names.join(", ") + &value
}

/// The help says it itself where clap is told not to.
fn default(option: &Arg) -> Option<String> {
    let help = option.get_long_help().or_else(|| option.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let said = help.split_once("[default: ").map(|(_, rest)| rest);
    let said = said.and_then(|rest| Some(rest.split_once(']')?.0.to_owned()));
    let takes_values = option.get_action().takes_values();
    let given = option.get_default_values().first().filter(|_| takes_values);
    if let (Some(said), Some(given)) = (&said, given) {
        assert_eq!(said.as_str(), given, "the help of {}", names(option));
    }
    said.or(given.map(|value| value.to_string_lossy().into_owned()))
}

#[test]
fn the_page_has_the_flags_that_are_refused() {
    let flags = terms("OPTIONS").into_iter().find(|entry| entry.term == "-- FLAGS");
    let text = flags.unwrap().text;
    let documented =
        text.split([' ', ',', '.']).filter_map(|word| word.strip_prefix("--")).collect();
    let refused = UP_FLAGS.iter().filter(|flag| flag.refused.is_some());
    let refused = refused.map(|flag| flag.name).collect();
    assert_eq!(sorted(documented), sorted(refused));
}

#[test]
fn the_page_has_the_files_that_are_the_defaults_of_options() {
    let files = terms("FILES");
    let command = built();
    for long in ["authkey-file", "socket"] {
        let mut options = command.get_arguments();
        let option = options.find(|option| option.get_long() == Some(long));
        let default = default(option.unwrap()).unwrap();
        assert!(files.iter().any(|entry| entry.term == default), "{default}");
    }
}

#[test]
fn the_page_has_the_variables_that_are_not_passed_on() {
    let passed_on = section("ENVIRONMENT").pop().unwrap().text;
    let (_, list) = passed_on.split_once(':').expect("a list after a colon");
    let documented = list.split([' ', ',', '.']).filter(|word| !word.is_empty()).collect();
    assert_eq!(sorted(documented), sorted(NOT_PASSED_ON.to_vec()));
}

// ---- how it ends

#[test]
fn the_page_has_every_exit_status() {
    let documented = terms("EXIT STATUS");
    assert_eq!(documented.len(), EXITS.len());
    let unit = include_str!("../../units/tailscale-autoconnect.service").lines();
    let mut final_ones = unit.filter_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let final_ones: Vec<_> = final_ones.next().expect("the exit statuses").split(' ').collect();
    assert_eq!(final_ones, ["USAGE", "CONFIG", "NOPERM"]);
    for (entry, exit) in documented.iter().zip(EXITS) {
        let term = format!("{} {}", exit.code, exit.name);
        assert_eq!(entry.term, term.trim());
        // It may say more.
        let (text, when) = (entry.text.trim(), upper(&exit.when.replace('`', "")));
        assert!(text.starts_with(&when), "{text}: {when}");
        let again = match exit.code {
            0 => "",
            _ if final_ones.contains(&exit.name) => {
                " systemd does not start the service again by itself."
            }
            _ => " systemd starts the service again.",
        };
        assert!(text.ends_with(again), "{text}: {again}");
    }
}

// ---- what is waited for

/// Each thing that can be waited for, as an example.
macro_rules! waits {
    ($($variant:ident $(($($example:expr),*))?;)*) => {
        fn waits() -> Vec<Waiting> {
            /// Does not compile as long as one is missing.
            #[allow(unreachable_patterns)]
            fn _all(waiting: &Waiting) {
                match waiting {
                    $(Waiting::$variant { .. } => {})*
                }
            }
            vec![$(Waiting::$variant $(($($example),*))?),*]
        }
    };
}

waits! {
    Tailscaled;
    Settling;
    ControlServer(None);
    ControlServer(Some("REASON".into()));
    KeyFile(Problem::Missing.at("FILE".as_ref()));
    KeyFile(Problem::Unreadable { reason: String::new(), remedy: "" }.at("FILE".as_ref()));
    KeyFile(Problem::Changing.at("FILE".as_ref()));
    KeyFile(Problem::Empty.at("FILE".as_ref()));
    OtherRun;
    LoggingIn;
    Retry("REASON".into(), TIME);
    Verdict("REASON".into());
    Approval;
    Address(EXAMPLE_ADDRESS);
    StoppedByOther;
    Answer("REASON".into());
    LeftAlone;
    StoreFailed("REASON".into());
    Unknown("STATE".into());
    Staying(connected(), None, None);
    Staying(connected(), Some("DATE".into()), None);
    Staying(connected(), Some("DATE".into()), Some(Obstacle::NoKey));
}

const TIME: Duration = Duration::from_secs(40);
const EXAMPLE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1));

/// The STATUS texts of the service, but for those of failures.
fn statuses() -> Vec<String> {
    let address = EXAMPLE_ADDRESS.to_string();
    let waits = waits().into_iter();
    let waits = waits.map(|waiting| waiting.to_string().replace(&address, "ADDRESS"));
    let waits = waits.map(|text| text.replace("40 s", "TIME"));
    let obstacle = Obstacle::NoKey.to_string();
    let waits = waits.map(|text| text.replace(&obstacle, "REASON"));
    sorted(waits.collect())
}

fn connected() -> Connected {
    Connected { name: "NAME".to_owned(), addresses: vec!["ADDRESSES".to_owned()], logged_in: false }
}

#[test]
fn the_page_has_every_status_text_and_no_other() {
    let documented = terms("STATUS TEXTS").into_iter().map(|entry| entry.term);
    assert_eq!(sorted(documented.collect()), statuses());
}

// ---- the journal

#[test]
fn the_page_has_the_fields_of_the_journal() {
    let code = include_str!("../output/journal.rs");
    let sent: Vec<_> = code
        .split('"')
        .filter(|word| *word == "MESSAGE_ID" || word.starts_with("TAILSCALE_AUTOCONNECT_"))
        .filter(|word| word.chars().all(|sign| sign == '_' || sign.is_ascii_uppercase()))
        .collect();
    let mut sent = sorted(sent);
    sent.dedup();
    let entries = terms("JOURNAL FIELDS");
    let documented = entries.iter().map(|entry| entry.term.as_str()).collect();
    assert_eq!(sorted::<&str>(documented), sent);

    let ids: Vec<_> = code.split('"').filter(|word| is_an_id(word)).collect();
    assert_eq!(ids.len(), 5);
    for id in ids {
        assert!(PAGE.contains(id), "{id}");
    }
}

#[test]
fn the_page_has_the_names_of_all_actions() {
    let code = include_str!("../policy/mod.rs");
    let (_, code) = code.split_once("pub fn name(&self) -> &'static str {").expect("the names");
    let (code, _) = code.split_once("\n    }\n").expect("their end");
    let mut named: Vec<String> = code.split('"').skip(1).step_by(2).map(Into::into).collect();
    named.sort();
    named.dedup();
    let entries = terms("JOURNAL FIELDS");
    let entry = entries.iter().find(|entry| entry.term == "TAILSCALE_AUTOCONNECT_ACTION");
    let documented: Vec<_> = in_bold(&entry.expect("the entry").source)
        .into_iter()
        .filter(|word| !word.contains(' '))
        .collect();
    assert_eq!(sorted(documented), named);
}

// ---- metrics

#[test]
fn the_page_has_every_metric_and_every_reason_of_not_renewing() {
    let code = include_str!("../check/metrics.rs");
    let metric = |line: &str| {
        let (kind, rest) = line.trim_start().split_once("(\"")?;
        let ending = match kind {
            "gauge" => "",
            "time" => "_timestamp_seconds",
            _ => return None,
        };
        Some(format!("tailscale_autoconnect_{}{ending}", rest.split('"').next()?))
    };
    let mut named: Vec<_> = code.lines().filter_map(metric).collect();
    named.sort();
    assert!(named.len() > 5, "{named:?}");
    let entries = terms("METRICS");
    let documented = entries.iter().map(|entry| entry.term.clone()).collect();
    assert_eq!(sorted(documented), named);

    let reasons = entries.iter().find(|entry| entry.term.ends_with("_not_renewed"));
    let source = in_bold(&reasons.expect("the entry").source);
    for obstacle in OBSTACLES {
        assert!(source.iter().any(|word| json!(obstacle) == *word), "{obstacle:?}: {source:?}");
    }
}

const OBSTACLES: [Obstacle; 10] = [
    Obstacle::OldVersion,
    Obstacle::Clock,
    Obstacle::OAuthSecret,
    Obstacle::Tags,
    Obstacle::Elsewhere,
    Obstacle::Trouble,
    Obstacle::Offline,
    Obstacle::LockedOut,
    Obstacle::RefusedKey,
    Obstacle::NoKey,
];

/// A MESSAGE_ID.
fn is_an_id(word: &str) -> bool {
    word.len() == 32 && word.chars().all(|sign| sign.is_ascii_hexdigit())
}

#[test]
fn the_page_can_be_shown_without_utf_8() {
    assert!(PAGE.is_ascii());
}
