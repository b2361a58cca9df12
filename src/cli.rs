//! The command line.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Parser};

use crate::failure::{EXITS, Failure, Mistake};
use crate::flags;
use crate::key::Parameters;
use crate::redact::looks_like_a_key;
use crate::server::{self, http_url};

/// Join this machine to its tailnet with an auth key from a file
///
/// Waits until tailscaled has settled. If the node is connected, it is done. Otherwise it runs
/// `tailscale up` with the auth key. A node with a valid node key does not need the auth key, and
/// the key file need not exist.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 80,
    override_usage = "tailscale-autoconnect --authkey-file FILE [OPTIONS]\n       \
                      [-- FLAGS FOR `tailscale up`]",
    after_help = exits_in_brief(),
    after_long_help = format!("{NOTES}\n\n{}", exits_in_full())
)]
pub struct Options {
    /// File with the auth key or OAuth client secret
    ///
    /// The program reads it when it needs the key. If it does not exist yet, the program waits.
    /// [default: /run/agenix/tailscale-token]
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/agenix/tailscale-token",
        hide_default_value = true
    )]
    pub authkey_file: PathBuf,

    /// How long to wait for that file
    ///
    /// The time starts when the key is first needed. At its end, the run ends with 66, and
    /// systemd starts the next one.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub authkey_wait: Duration,

    /// Without that file, end with 0 and do nothing
    ///
    /// For machines that may have no key, as in an image for many. A node that needs no login is brought
    /// up as usual. The next run uses a file that comes later.
    #[arg(long, hide_short_help = true)]
    pub authkey_optional: bool,

    /// ephemeral=…&preauthorized=… for an OAuth secret
    ///
    /// Appended to an OAuth client secret (tskey-client-…): ephemeral=true|false,
    /// preauthorized=true|false and baseURL=URL, joined by `&`. Each takes precedence over one of
    /// the same name in the file. An auth key accepts none.
    #[arg(long, value_name = "STR", value_parser = Parameters::parse, hide_short_help = true)]
    pub authkey_params: Option<Parameters>,

    /// Control server, if it is not Tailscale's
    ///
    /// It may instead be given after `--`.
    #[arg(long, value_name = "URL", value_parser = login_server)]
    pub login_server: Option<String>,

    /// Socket of tailscaled
    ///
    /// [default: /var/run/tailscale/tailscaled.sock]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/run/tailscale/tailscaled.sock",
        hide_default_value = true
    )]
    pub socket: PathBuf,

    /// The tailscale command
    ///
    /// A path, or a name to look for in PATH.
    #[arg(long, value_name = "PATH", default_value = "tailscale")]
    pub tailscale: PathBuf,

    /// Give up after this time [default: never]
    ///
    /// Without it, the program keeps trying until the node is connected or cannot connect. The
    /// least is half a second: enough to see that the node is connected.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,

    /// Tell systemd READY by then
    ///
    /// The boot then continues, and so does the work. With `infinity`, systemd is told only when the
    /// node is connected.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub ready_after: Duration,

    /// Stay when connected, and renew the node key in time
    ///
    /// The process does not end after READY. It renews the node key with the auth key at 70 to 90 % of
    /// its lifetime, and logs in again when the node key has expired. It leaves a node alone that
    /// somebody has stopped, logged out, expired or deleted.
    #[arg(long)]
    pub stay: bool,

    /// With --stay: join again when deleted
    ///
    /// For nodes that are deleted automatically, such as ephemeral ones.
    #[arg(long, hide_short_help = true)]
    pub rejoin: bool,

    /// Say what is wrong, and change nothing
    ///
    /// Prints what it sees, what a run would do, and one thing to do next. It sends no key. The
    /// exit status is the one that a run would end with as things stand: 0 only if the node is
    /// connected now. If a run would wait or try, it is 75, or 69 without tailscaled. Give it the
    /// options of the run.
    #[arg(long = "check")]
    pub check_only: bool,

    /// With --check: print metrics for Prometheus
    ///
    /// For the textfile collector of the node exporter. Give it --stay if the service has it.
    #[arg(long, hide_short_help = true)]
    pub metrics: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Say more (-vv: all)
    ///
    /// -v shows each state of tailscaled, what the program waits for, and what `tailscale up` said.
    /// -vv also shows every look at tailscaled and what it led to.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Say warnings and errors only
    ///
    /// A terminal shows no live line either.
    #[arg(short, long)]
    pub quiet: bool,

    /// Flags for `tailscale up`
    #[arg(last = true, value_name = "FLAGS", hide = true)]
    pub up_flags: Vec<String>,
}

/// What --help says after the options.
const NOTES: &str = "Times are written as for systemd: 90s, 5min, 1h 30min, infinity. \
    A bare number is seconds. Flags after `--` go to `tailscale up` as they are.\n\n\
    Each option can also be given by an environment variable: \
    TAILSCALE_AUTOCONNECT_ and its name in capitals, such as TAILSCALE_AUTOCONNECT_READY_AFTER. \
    The command line takes precedence, and an empty variable counts as unset.";

/// The exit statuses, for -h.
fn exits_in_brief() -> String {
    let exits = EXITS.iter().filter(|exit| !exit.brief.is_empty());
    let exits: Vec<_> = exits.map(|exit| format!("{} {}", exit.code, exit.brief)).collect();
    format!("Exit status: {}.", exits.join(", "))
}

/// The exit statuses, for --help.
fn exits_in_full() -> String {
    let lines =
        EXITS.map(|exit| format!("\n{:>4} {:<12} {}", exit.code, exit.name, exit.when)).concat();
    format!("Exit status:{lines}")
}

impl Options {
    /// Reads the command line and the environment.
    pub fn read() -> Result<Self, clap::Error> {
        Self::of(&Self::definition().try_get_matches()?)
    }

    /// The options, each of which can be given by a variable, too. An empty variable is none.
    pub fn definition() -> Command {
        Self::command().mut_args(|arg| {
            let Some(name) = arg.get_long() else { return arg };
            let name = name.to_uppercase().replace('-', "_");
            let variable = format!("TAILSCALE_AUTOCONNECT_{name}");
            let arg = match arg.get_action() {
                ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
                _ => arg,
            };
            match env::var_os(&variable).is_some_and(|value| value.is_empty()) {
                true => arg,
                false => arg.env(variable).hide_env(true),
            }
        })
    }

    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::from_arg_matches(matches)?;
        if options.quiet && options.verbose > 0 {
            let is_typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
            match (is_typed("quiet"), is_typed("verbose")) {
                (true, false) => options.verbose = 0,
                (false, true) => options.quiet = false,
                _ => {
                    return Err(Self::command().error(
                        ErrorKind::ArgumentConflict,
                        "the argument '--quiet' cannot be used with '--verbose'",
                    ));
                }
            }
        }
        Ok(options)
    }

    /// What clap cannot say.
    pub fn check(&self) -> Result<(), Failure> {
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        if looks_like_a_key(&self.authkey_file.to_string_lossy()) {
            return usage(
                "--authkey-file takes the path of a file, not a key: \
                 a key on a command line can be seen by every user of the machine",
            );
        }
        if self.tailscale.file_name() == Some(OsStr::new("tailscaled")) {
            let (program, error) = (self.tailscale.clone(), "it is the daemon".to_owned());
            return Err(Mistake::CannotRun { program, error }.into());
        }
        if self.metrics && (!self.check_only || self.json) {
            return usage("--metrics needs --check, and cannot be used with --json");
        }
        flags::check(&self.up_flags).map_err(Failure::Usage)?;
        if self.login_server.is_some() && flags::has(&self.up_flags, "login-server") {
            return usage("--login-server is given twice, before and after `--`; give it once");
        }
        Ok(())
    }

    /// The login server, wherever it's given.
    pub fn any_login_server(&self) -> Option<String> {
        let flag = flags::value(&self.up_flags, "login-server").map(str::to_owned);
        self.login_server.clone().or(flag)
    }
}

/// A time as systemd and people write it: `90s`, `5min`, `1h 30min`, `90`, `infinity`.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "infinity" {
        return Ok(Duration::MAX);
    }
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 90s, 5min or infinity"))
}

fn login_server(text: &str) -> Result<String, String> {
    match http_url(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("it {}", server::WANTED)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::any_text;

    #[test]
    fn the_definition_holds() {
        Options::definition().debug_assert();
    }

    #[test]
    fn times_are_read_as_systemd_and_people_write_them() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("5min", 300), ("1h 30min", 5400), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("infinity"), Ok(Duration::MAX));
    }

    proptest! {
        #[test]
        fn any_word_is_a_time_or_is_refused_with_an_example(text in prop_oneof![
            any_text(),
            "[0-9]{1,24}",
            "([0-9]{1,20}(\\.[0-9]{1,12})? ?(ns|us|ms|s|min|h|d|w|months|y) ?){1,3}",
        ]) {
            if let Err(error) = duration(&text) {
                prop_assert!(error.ends_with("write it like 90s, 5min or infinity"), "{error}");
            }
        }

        #[test]
        fn a_time_is_read_as_it_is_meant(seconds: u64, nanos in 0..1_000_000_000u32) {
            prop_assert_eq!(duration(&seconds.to_string()), Ok(Duration::from_secs(seconds)));
            // humantime cannot write more.
            let time = Duration::new(seconds % (1 << 40), nanos);
            prop_assert_eq!(duration(&humantime::format_duration(time).to_string()), Ok(time));
        }
    }

    #[test]
    fn a_value_like_a_refused_flag_is_none() {
        let words = ["x", "--", "--ssh", "--hostname=reset", "--operator", "--json"];
        assert_eq!(Options::parse_from(words).check(), Ok(()));
    }

    #[test]
    fn the_login_server_may_be_given_in_either_place() {
        let server = "https://headscale.example.org";
        let words = ["--login-server", server];
        for before in [&["x"][..], &["x", "--"]] {
            let options = Options::parse_from(before.iter().chain(&words));
            assert_eq!(options.any_login_server().as_deref(), Some(server));
            assert_eq!(options.check(), Ok(()));
        }
    }
}
