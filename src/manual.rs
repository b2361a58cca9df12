//! What packages install beside the program: the manual page and the completions of the shells.
//!
//! They are made from the definition of the command line, and the page also from the exit statuses,
//! the STATUS texts and other tables of the program. What the page says besides is here.

use clap::{Arg, Command, CommandFactory, ValueEnum, ValueHint};
use clap_complete::Shell;
use roff::{Inline, Roff, bold, roman};

use crate::authkey::KeyFileError;
use crate::cli::{FLAGS, Options, REFUSED_FLAGS, TIMES, VARIABLES};
use crate::decide::Waiting;
use crate::outcome::{Connected, EXITS};
use crate::trust::NOT_PASSED_ON;

/// What can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generate {
    Man,
    Bash,
    Zsh,
    Fish,
}

/// The text of it.
pub fn generate(what: Generate) -> Vec<u8> {
    let command = Options::command();
    match what {
        Generate::Man => page(&command).into_bytes(),
        Generate::Bash => completions(&command, Shell::Bash),
        Generate::Zsh => completions(&command, Shell::Zsh),
        Generate::Fish => completions(&command, Shell::Fish),
    }
}

fn completions(command: &Command, shell: Shell) -> Vec<u8> {
    const NAME: &str = env!("CARGO_PKG_NAME");
    // Without hidden options, which clap_complete would show.
    let mut shown = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .args(options(command).cloned().map(hinted));
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut shown, NAME, &mut out);
    out
}

/// Files are offered for paths, and nothing for a value that is none.
fn hinted(option: Arg) -> Arg {
    match option.get_value_hint() {
        ValueHint::AnyPath => option.value_hint(ValueHint::FilePath),
        ValueHint::Unknown if option.get_action().takes_values() => {
            option.value_hint(ValueHint::Other)
        }
        _ => option,
    }
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set())
}

// ---- the manual page

fn page(command: &Command) -> String {
    let name = command.get_name();
    let version = command.get_version().unwrap_or_default();
    let about = command.get_about().map(ToString::to_string);
    let long = command.get_long_about().map(ToString::to_string);

    let mut page = Page::default();
    // Without a date, so that one version makes one page; systemd's pages have none either. Left
    // aligned and not hyphenated, for the sake of what is typed.
    let source = format!("{name} {version}");
    let heading = [name, "8", "\"\"", &source];
    page.roff
        .control("TH", heading)
        .control("nh", [])
        .control("ad", ["l"]);

    page.section("NAME");
    page.text(&format!("{name} - {}", lower(&about.unwrap_or_default())));

    page.section("SYNOPSIS");
    page.synopsis(command);

    page.section("DESCRIPTION");
    // The first paragraph is the NAME's.
    for words in long.unwrap_or_default().split("\n\n").skip(1) {
        page.paragraph(words);
    }
    for words in DESCRIPTION {
        page.paragraph(words);
    }

    page.section("OPTIONS");
    let mut built = command.clone();
    built.build();
    for option in options(&built) {
        page.option(option);
    }
    page.entry("-- FLAGS", FLAGS);
    let refused = REFUSED_FLAGS.map(|(flag, _)| format!("`--{flag}`"));
    page.text(&format!(
        "Refused with a reason are {}.",
        refused.join(", ")
    ));
    page.paragraph(TIMES);

    page.section("EXIT STATUS");
    for exit in EXITS {
        let tag = format!("{} {}", exit.code, exit.name);
        let again = match (exit.code, exit.again) {
            (0, _) => "",
            (_, true) => " systemd starts the service again.",
            (_, false) => " systemd does not start the service again by itself.",
        };
        page.entry(tag.trim(), &format!("{}.{again}", upper(exit.when)));
    }
    page.paragraph(SIGNALS);

    page.section("STATUS TEXTS");
    page.paragraph(STATUS);
    for (status, meaning) in statuses() {
        page.entry(&status, meaning);
    }
    page.paragraph("If it fails, the text is the message, which says what to do.");

    page.section("JOURNAL FIELDS");
    page.paragraph(JOURNAL);
    page.entries(JOURNAL_FIELDS);

    page.section("DIAGNOSIS");
    for words in DIAGNOSIS {
        page.paragraph(words);
    }

    page.section("FILES");
    page.entries(FILES);

    page.section("ENVIRONMENT");
    page.paragraph(VARIABLES);
    page.entries(ENVIRONMENT);
    page.paragraph(&format!("{PASSED_ON} {}.", NOT_PASSED_ON.join(", ")));

    page.section("EXAMPLES");
    for (about, lines) in EXAMPLES {
        page.paragraph(about);
        page.example(lines);
    }

    page.section("SEE ALSO");
    page.text(SEE_ALSO);
    page.roff.render()
}

/// What the page is made of: sections, paragraphs, and terms with what is said of them.
#[derive(Default)]
struct Page {
    roff: Roff,
    /// The section has just begun.
    fresh: bool,
}

impl Page {
    fn section(&mut self, name: &str) {
        self.roff.control("SH", [name]);
        self.fresh = true;
    }

    fn paragraph(&mut self, words: &str) {
        if !self.fresh {
            self.roff.control("PP", []);
        }
        self.text(words);
    }

    fn entry(&mut self, term: &str, words: &str) {
        self.roff.control("TP", []).text([bold(term)]);
        self.text(words);
    }

    fn entries(&mut self, all: &[(&str, &str)]) {
        for (term, words) in all {
            self.entry(term, words);
        }
    }

    /// Lines as they are.
    fn example(&mut self, lines: &str) {
        self.roff
            .control("PP", [])
            .control("RS", ["4"])
            .control("nf", []);
        for line in lines.lines() {
            self.roff.text([roman(line)]);
        }
        self.roff.control("fi", []).control("RE", []);
    }

    /// Goes on with what was begun. What stands between backticks is bold.
    fn text(&mut self, words: &str) {
        self.roff.text(inlines(words));
        self.fresh = false;
    }

    fn line_break(&mut self) {
        self.roff.control("br", []);
    }

    /// Each form of the usage begins with the name; other lines go on with the one before.
    fn synopsis(&mut self, command: &Command) {
        let usage = command.get_overridden_usage().map(ToString::to_string);
        for line in usage.unwrap_or_default().lines().map(str::trim) {
            match line.strip_prefix(command.get_name()) {
                Some(rest) => {
                    if !self.fresh {
                        self.line_break();
                    }
                    self.text(&format!("`{}`{rest}", command.get_name()));
                }
                None => self.text(line),
            }
        }
    }

    /// An option with its long help, its default and its variable.
    fn option(&mut self, option: &Arg) {
        let names: Vec<_> = option
            .get_short()
            .map(|short| format!("-{short}"))
            .into_iter()
            .chain(option.get_long().map(|long| format!("--{long}")))
            .collect();
        let mut tag = vec![bold(names.join(", "))];
        let takes_values = option.get_action().takes_values();
        if let Some(names) = option.get_value_names().filter(|_| takes_values) {
            tag.push(roman(format!(" {}", names.join(" "))));
        }
        self.roff.control("TP", []).text(tag);

        let help = option.get_long_help().or_else(|| option.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let (help, mut default) = take_default(&help);
        for (number, words) in help.split("\n\n").enumerate() {
            // The first one of clap's has no full stop.
            let stop = if number == 0 { "." } else { "" };
            self.text(&format!("{words}{stop}"));
        }
        if takes_values && !option.is_hide_default_value_set() {
            let given = option.get_default_values().first();
            default = default.or(given.map(|word| word.to_string_lossy().into_owned()));
        }
        let variable = option.get_env().map(|name| name.to_string_lossy());
        for (what, value) in [("Default", default), ("Variable", variable.map(Into::into))] {
            if let Some(value) = value {
                self.line_break();
                self.text(&format!("{what}: `{value}`"));
            }
        }
    }
}

/// Takes `[default: …]` out of a help text, which says it where clap is told not to.
fn take_default(help: &str) -> (String, Option<String>) {
    let parts = help
        .split_once("[default: ")
        .and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    match parts {
        Some((before, (default, after))) => {
            let help = format!("{}{after}", before.trim_end());
            (help, Some(default.to_owned()))
        }
        None => (help.to_owned(), None),
    }
}

/// For terminals without UTF-8 too.
fn inlines(words: &str) -> Vec<Inline> {
    let words = words.replace('…', "...");
    let parts = words.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(number, part)| match number % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}

fn upper(words: &str) -> String {
    match words.split_at_checked(1) {
        // Options and names stay as they are.
        Some((first, rest)) if !words.starts_with("--") => first.to_uppercase() + rest,
        _ => words.to_owned(),
    }
}

fn lower(words: &str) -> String {
    match words.split_at_checked(1) {
        Some((first, rest)) => first.to_lowercase() + rest,
        None => String::new(),
    }
}

// ---- its texts

const DESCRIPTION: &[&str] = &[
    "It waits for events, not for seconds: it watches tailscaled through its socket, and acts when \
     there is something to act on. A node that was stopped with `tailscale down` is brought up \
     without a key and without touching its settings.",
    "The auth key is sent only to a node that needs a login. A used, expired or missing key never \
     takes a node off its tailnet, and a node that is kept offline by a dead key of somebody's \
     `tailscale up` is brought back. If the control server refuses the key, tailscaled is made to \
     forget it, and the program ends with the control server's own words.",
    "The key file is read when the key is needed, and waited for if it isn't there yet: it may be \
     decrypted late in the boot, by agenix or sops. The key reaches `tailscale up` in memory that \
     it inherits, never in its arguments, in the environment, on disk or in a log.",
    "The node's settings are kept through a login, those made with `tailscale set` too. Flags \
     after `--` win.",
    "As a service it tells systemd that it is ready when the node is connected, or after \
     `--ready-after` while the work goes on, so that it never holds up a boot. Without `--timeout` \
     it keeps trying.",
    "Standard output carries the result and nothing else: one line, or with `--json` one object. \
     Messages go to standard error.",
];

const SIGNALS: &str = "SIGTERM, SIGINT and SIGHUP end it as they end any program, within a second.";

const STATUS: &str = "What the service waits for, or how it ended, is said in one sentence by \
     `systemctl status tailscale-autoconnect`, and by `systemctl show --property=StatusText \
     tailscale-autoconnect` alone. These are the texts:";

const JOURNAL: &str = "As a service it writes its messages to the journal with these fields, for \
     `journalctl FIELD=VALUE` and `journalctl -o json`:";

const JOURNAL_FIELDS: &[(&str, &str)] = &[
    (
        "TAILSCALE_AUTOCONNECT_STATE",
        "The BackendState of tailscaled, such as NeedsLogin; none while it does not answer.",
    ),
    (
        "TAILSCALE_AUTOCONNECT_ACTION",
        "What was being done: wait, bring_up, read_key, log_in, abandon_login, rescue, forget_key, \
         finish or fail.",
    ),
    (
        "TAILSCALE_AUTOCONNECT_ATTEMPT",
        "The number of logins in this run, that which is about to start included.",
    ),
    (
        "TAILSCALE_AUTOCONNECT_OUTCOME",
        "Of the message that ends a run: connected, or the name of the exit status, such as NOPERM.",
    ),
    (
        "MESSAGE_ID",
        "Of the same: `be2db91415754612a862183367c360c0` if it is connected, \
         `e14b1b2cb07e41cb99d1ab9566a7b892` if it failed.",
    ),
];

const DIAGNOSIS: &[&str] = &[
    "`tailscale-autoconnect --check` says why a machine is not on its tailnet. It prints a line for \
     each thing that a run depends on, marked ok, note or problem; then what a run would do; and \
     last the verdict, one sentence that says what is wrong and the one thing to do next. With \
     `--json`, all of that is one object.",
    "It changes nothing, sends no key, calls of the `tailscale` command only `tailscale version`, \
     and is done within a few seconds whatever hangs. It can be run at any time, also beside a run. \
     Give it the options that the run gets: the service's own are in `systemctl cat \
     tailscale-autoconnect`.",
    "The exit status is the one that a run would end with as things stand: 0 only if the node is \
     connected now; 66, 77 or 78 for the reasons above. Where a run would wait without end, or \
     would try something whose outcome only the control server knows, it is 75, or 69 without \
     tailscaled.",
];

const FILES: &[(&str, &str)] = &[
    (
        "/run/agenix/tailscale-token",
        "The auth key or the OAuth client secret, on one line, if `--authkey-file` doesn't name \
         another file. It should be readable for root only.",
    ),
    (
        "/var/run/tailscale/tailscaled.sock",
        "The socket of tailscaled, if `--socket` doesn't name another one.",
    ),
    (
        "tailscale-autoconnect.service",
        "The unit, which says the reason for each of its lines. It is changed with `systemctl edit \
         tailscale-autoconnect`.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "PATH",
        "Where `tailscale` is looked for, if `--tailscale` doesn't name a path.",
    ),
    (
        "NOTIFY_SOCKET",
        "Where systemd is told that the service is ready and what it waits for. Set by systemd.",
    ),
    (
        "JOURNAL_STREAM",
        "Tells whether standard error leads to the journal. Set by systemd.",
    ),
    (
        "NO_COLOR",
        "If it is set and not empty, nothing is colored.",
    ),
    (
        "TERM",
        "The kind of the terminal. If it is not set, empty or `dumb`, nothing is colored, and there \
         is no live line.",
    ),
];

const PASSED_ON: &str = "The `tailscale` command gets the environment, such as proxies \
     (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the variables of Tailscale (TS_...), but \
     nothing that begins with TAILSCALE_AUTOCONNECT_, and not what systemd tells a service of \
     itself:";

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Join now, as root or as the operator user of tailscaled:",
        "tailscale-autoconnect --authkey-file /run/agenix/tailscale-token",
    ),
    (
        "With flags for `tailscale up`:",
        "tailscale-autoconnect --authkey-file FILE -- --ssh --accept-routes",
    ),
    (
        "On a control server of one's own, such as headscale:",
        "tailscale-autoconnect --authkey-file FILE \\\n    \
         --login-server https://headscale.example.com",
    ),
    (
        "With an OAuth client secret (tskey-client-…) in the file, which needs tags:",
        "tailscale-autoconnect --authkey-file FILE \\\n    \
         --authkey-params 'ephemeral=false&preauthorized=true' \\\n    \
         -- --advertise-tags=tag:server",
    ),
    (
        "In a drop-in, made with `systemctl edit tailscale-autoconnect`. The empty `ExecStart=` \
         drops the command that is there:",
        "[Service]\n\
         Environment=TAILSCALE_AUTOCONNECT_AUTHKEY_WAIT=5min\n\
         ExecStart=\n\
         ExecStart=/usr/bin/tailscale-autoconnect \\\n    \
         --authkey-file /run/secrets/tailscale-token -- --ssh",
    ),
    (
        "A service that is to start when the machine is on its tailnet has in its unit:",
        "[Unit]\n\
         Wants=tailscale-autoconnect.service\n\
         After=tailscale-autoconnect.service",
    ),
];

const SEE_ALSO: &str = "`tailscale`(1), `tailscaled`(8), `systemctl`(1), \
     `systemd.service`(5), `age`(1)";

/// Each thing that can be waited for, as an example, and what to do about it.
macro_rules! waits {
    ($($variant:ident $(($example:expr))? => $meaning:expr;)*) => {
        fn waits() -> Vec<(Waiting, &'static str)> {
            /// Does not compile as long as one is missing.
            #[allow(unreachable_patterns)]
            fn _all(waiting: &Waiting) {
                match waiting {
                    $(Waiting::$variant { .. } => {})*
                }
            }
            vec![$((Waiting::$variant $(($example))?, $meaning)),*]
        }
    };
}

waits! {
    Tailscaled => "It isn't there, or does not answer. If it stays so, look at `systemctl status \
        tailscaled`.";
    Settling => "It has just started. Nothing is to be done.";
    ControlServer(None) => "tailscaled runs on what it knew before, or tries to reach the control \
        server. Look at the network if it stays so.";
    ControlServer(Some("REASON".into())) => "The same, with tailscaled's own words.";
    KeyFile(KeyFileError::Missing("FILE".into())) => "The key is needed, and the file isn't there. \
        It is waited for as long as `--authkey-wait` says. See whether the secret is deployed, and \
        whether the service that decrypts it has run.";
    KeyFile(KeyFileError::Unreadable { path: "FILE".into(), reason: String::new(), remedy: "" }) =>
        "It is waited for in the same way. See who may read it; the service runs as root.";
    KeyFile(KeyFileError::Changing("FILE".into())) => "The same. Whoever writes it should write it \
        under another name, and rename it.";
    KeyFile(KeyFileError::Empty("FILE".into())) => "The same. It may be about to be written; else \
        put an auth key into it.";
    OtherRun => "Two runs don't spend one key. Nothing is to be done.";
    LoggingIn => "The auth key was sent, by this run or one before. Nothing is to be done.";
    Retry("REASON".into()) => "It will be tried again, after half a second to a minute, or \
        when the control server asks for it, which may be up to a day. Nothing is to be done, \
        unless the reason says so.";
    Verdict("REASON".into()) => "It may be the error of an older login, so it is looked at for a \
        while. If it is refused, the service ends with that.";
    Approval => "Approve it in the tailnet's admin console.";
    Address(EXAMPLE_ADDRESS) => "It is connected, but the address isn't on the interface yet. This \
        is waited for 10 seconds at most.";
    StoppedByOther => "Somebody said `tailscale down`. It goes on after `tailscale up`, or \
        when it is started again.";
    Answer("REASON".into()) => "tailscaled answers with what cannot be understood. Look at its \
        log.";
    Unknown("STATE".into()) => "This tailscaled is newer than this program knows. It goes on when \
        the state changes.";
}

const EXAMPLE_ADDRESS: std::net::IpAddr =
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 1));

/// The STATUS texts, and what they mean.
fn statuses() -> Vec<(String, &'static str)> {
    let connected = Connected {
        name: "NAME".to_owned(),
        addresses: vec!["ADDRESSES".to_owned()],
        logged_in: false,
    };
    let waits = waits().into_iter().map(|(waiting, meaning)| {
        let text = waiting.to_string();
        (
            text.replace(&EXAMPLE_ADDRESS.to_string(), "ADDRESS"),
            meaning,
        )
    });
    let end = (connected.to_string(), "It is done, and has ended.");
    waits.chain([end]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::{README, table};

    /// The page without its marks, as far as they stand in the texts.
    fn plain() -> String {
        let page = String::from_utf8(generate(Generate::Man)).unwrap();
        [("\\-", "-"), ("\\*(Aq", "'"), ("\\fB", ""), ("\\fR", "")]
            .iter()
            .fold(page, |page, (mark, text)| page.replace(mark, text))
    }

    /// What stands in a cell as code.
    fn code(cell: &str) -> &str {
        cell.trim_matches(['`', ' '])
    }

    #[test]
    fn the_readme_has_every_status_text_and_no_other() {
        let mut documented: Vec<_> = table(README, "| STATUS | |")
            .iter()
            .map(|row| code(row[0]))
            .collect();
        let mut said = statuses();
        documented.sort();
        said.sort();
        let said: Vec<_> = said.iter().map(|(text, _)| code(text)).collect();
        assert_eq!(documented, said);
    }

    #[test]
    fn the_readme_has_every_exit_status_and_no_other() {
        let documented = table(README, "| code | name | when | systemd starts it again |");
        assert_eq!(documented.len(), EXITS.len());
        for (row, exit) in documented.iter().zip(EXITS) {
            let again = match (exit.code, exit.again) {
                (0, _) => "",
                (_, true) => "yes",
                (_, false) => "no",
            };
            let code = exit.code.to_string();
            assert_eq!([row[0], row[1], row[3]], [&code, exit.name, again]);
            // It may say more.
            let (documented, said) = (row[2].replace('`', ""), exit.when.replace('`', ""));
            assert!(documented.starts_with(&said), "{documented}: {said}");
        }
    }

    /// The journal's fields, which the code has in another module.
    #[test]
    fn the_page_has_the_fields_of_the_journal_that_the_readme_has() {
        let page = plain();
        let code = include_str!("journal.rs");
        let rows = table(README, "| field of the journal | |");
        let fields = rows.iter().map(|row| row[0].trim_matches('`'));
        for field in fields {
            assert!(page.contains(&format!(".TP\n{field}\n")), "{field}");
            assert!(code.contains(field), "{field}");
        }
        let ids: Vec<_> = rows
            .iter()
            .flat_map(|row| row[1].split('`'))
            .filter(|word| word.len() == 32 && !word.contains(' '))
            .collect();
        assert_eq!(ids.len(), 2);
        for id in ids {
            assert!(page.contains(id) && code.contains(id), "{id}");
        }
    }

    #[test]
    fn the_page_and_the_completions_have_every_option_and_none_that_is_hidden() {
        let page = plain();
        let command = Options::command();
        for option in command.get_arguments() {
            let Some(long) = option.get_long() else {
                continue;
            };
            let shown = !option.is_hide_set();
            let heading = page.lines().any(|line| {
                let names = line.split([' ', ',']);
                line.starts_with('-') && names.take(3).any(|name| name == format!("--{long}"))
            });
            assert_eq!(heading, shown, "--{long} in the page");
            if let Some(variable) = option.get_env() {
                let variable = format!("Variable: {}\n", variable.to_string_lossy());
                assert!(page.contains(&variable), "{variable}");
            }
            for (shell, word) in [
                (Generate::Bash, format!(" --{long} ")),
                (Generate::Zsh, format!("--{long}")),
                (Generate::Fish, format!(" -l {long} ")),
            ] {
                let text = String::from_utf8(generate(shell)).unwrap();
                assert_eq!(text.contains(&word), shown, "--{long} for {shell:?}");
            }
        }
    }

    #[test]
    fn the_files_are_the_defaults_of_the_options() {
        let command = Options::command();
        for long in ["authkey-file", "socket"] {
            let option = options(&command).find(|option| option.get_long() == Some(long));
            let default = option.unwrap().get_default_values()[0].to_str().unwrap();
            assert!(FILES.iter().any(|(file, _)| *file == default), "{default}");
        }
    }

    #[test]
    fn the_page_can_be_shown_without_utf_8() {
        assert!(plain().is_ascii());
    }

    #[test]
    fn the_default_is_taken_out_of_a_help_text() {
        let (help, default) = take_default("Give up [default: never]\n\nElse not.");
        assert_eq!(help, "Give up\n\nElse not.");
        assert_eq!(default.as_deref(), Some("never"));
        let (help, default) = take_default("Socket\n\n[default: /a/b]");
        assert_eq!(
            (help.as_str(), default.as_deref()),
            ("Socket", Some("/a/b"))
        );
        let (help, default) = take_default("Read once. [default: /a]");
        assert_eq!(
            (help.as_str(), default.as_deref()),
            ("Read once.", Some("/a"))
        );
        assert_eq!(take_default("Say more").1, None);
    }
}
