//! Joins a Linux machine to its tailnet: parse, run, report, exit.

#![forbid(unsafe_code)]

mod check;
mod cli;
#[cfg(test)]
mod documents;
mod failure;
mod file_system;
mod flags;
mod key;
mod output;
mod policy;
mod prefs;
mod record;
mod redact;
mod run;
#[cfg(test)]
mod samples;
mod server;
mod tailscaled;
mod up;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use log::LevelFilter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::cli::Options;
use crate::failure::{Connected, Failure, USAGE, outcome, to_json};
use crate::key::KeySource;
use crate::key::trust::Process;
use crate::output::notify::Notify;
use crate::policy::Setup;
use crate::record::Store;
use crate::redact::{one_line, redact};
use crate::run::{Config, Run};
use crate::up::Cli;

/// The shortest time limit of a run.
const SHORTEST_RUN: Duration = Duration::from_millis(500);

/// How a run ended.
enum End {
    Result(Result<Connected, Failure>),
    /// All was said by `--check`.
    Checked(ExitCode),
    /// Told to stop, by the signal of this number.
    Signal(i32),
}

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    output::init(match (options.quiet, options.verbose) {
        (true, _) => LevelFilter::Warn,
        (false, 0) => LevelFilter::Info,
        (false, 1) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    });
    let end = match options.check() {
        Ok(()) => start(&options),
        Err(failure) => End::Result(Err(failure)),
    };
    match end {
        End::Result(result) => report(&result, options.json),
        End::Checked(code) => code,
        End::Signal(number) => {
            // The service manager and the shell see what ended us.
            let _ = signal_hook::low_level::emulate_default_handler(number);
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let end = match options.check_only {
                true => runtime.block_on(check(options)),
                false => runtime.block_on(run(options)),
            };
            // A look may be stuck in the file system.
            runtime.shutdown_background();
            end
        }
        Err(error) => End::Result(Err(Failure::Internal(format!("cannot start: {error}")))),
    }
}

async fn check(options: &Options) -> End {
    let config = config(options);
    tokio::select! {
        code = check::run(&config, options.json) => End::Checked(code),
        number = stop_signal() => End::Signal(number),
    }
}

fn config(options: &Options) -> Config {
    Config {
        setup: Setup {
            server: options.any_login_server(),
            flags: flags::each_once(&options.up_flags),
            key_file: options.authkey_file.clone(),
            authkey_wait: options.authkey_wait,
            socket: options.socket.clone(),
            program: options.tailscale.clone(),
            stay: options.stay,
            rejoin: options.rejoin,
        },
        key: KeySource {
            path: options.authkey_file.clone(),
            parameters: options.authkey_params.clone().unwrap_or_default(),
        },
        cli: Cli { program: options.tailscale.clone(), socket: options.socket.clone() },
        store: Store::of(&options.socket, Process::current().is_root()),
    }
}

async fn run(options: &Options) -> End {
    let config = config(options);
    let notify = Notify::default();
    let mut run = match Run::new(&config, &notify) {
        Ok(run) => run,
        Err(failure) => return End::Result(Err(failure)),
    };
    // Which signal it was.
    let mut number = SignalKind::terminate().as_raw_value();
    let signal = async {
        number = stop_signal().await;
        notify.stopping();
    };
    // Who is connected is found out by one look, however little time there is.
    let limit = sleep(options.timeout.unwrap_or(Duration::MAX).max(SHORTEST_RUN));
    let outcome = tokio::select! {
        outcome = run.run(signal, limit) => outcome,
        never = notify.grace(options.ready_after) => match never {},
        never = output::live_line() => match never {},
    };
    drop(run);
    match outcome {
        Some(Ok(connected)) => {
            notify.status(&connected.to_string());
            // Always before exit 0: without it, systemd takes the exit for a failure.
            notify.ready();
            End::Result(Ok(connected))
        }
        Some(Err(failure)) => {
            notify.status(&failure.to_string());
            End::Result(Err(failure))
        }
        None => End::Signal(number),
    }
}

/// Waits for a signal that asks us to stop, and returns its number. Whoever starts us may have one
/// ignored: `nohup`, or a shell for a job in the background.
async fn stop_signal() -> i32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [terminate, interrupt, hangup] = kinds.map(|kind| {
        let is_heeded = kind == SignalKind::terminate() || !is_ignored(&status, kind);
        async move {
            let signals = match is_heeded {
                true => signal(kind).ok(),
                false => None,
            };
            if let Some(mut signals) = signals
                && signals.recv().await.is_some()
            {
                return kind.as_raw_value();
            }
            // Then the signal does to us what it does to any program.
            std::future::pending().await
        }
    });
    tokio::select! {
        number = terminate => number,
        number = interrupt => number,
        number = hangup => number,
    }
}

/// Whether the text of /proc/self/status says that a signal is ignored.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// Prints the result, and on standard output nothing else.
fn report(result: &Result<Connected, Failure>, json: bool) -> ExitCode {
    let (name, text) = (outcome(result), words(result));
    let journal_has_it = output::result(name, &text, result.is_ok());
    let line = match result {
        _ if json => Some(to_json(result).to_string()),
        _ if journal_has_it => None,
        Ok(connected) => Some(connected.to_string()),
        Err(_) => None,
    };
    if let Some(line) = line {
        let _ = writeln!(std::io::stdout(), "{}", one_line(&line));
    }
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit().1),
    }
}

fn words(result: &Result<Connected, Failure>) -> String {
    match result {
        Ok(connected) => connected.to_string(),
        Err(failure) => failure.to_string(),
    }
}

/// Help and version, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() {
        let _ = write!(std::io::stderr(), "{}", redact(&text));
        return ExitCode::from(USAGE.code);
    }
    output::init(LevelFilter::Warn);
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::Internal(format!("cannot write to standard output: {error}"));
            report(&Err(failure), false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found_in_the_status() {
        // Signals 1 and 13.
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t3\n";
        assert!(is_ignored(status, SignalKind::hangup()));
        assert!(!is_ignored(status, SignalKind::interrupt()));
        for unusable in ["", "SigIgn:", "SigIgn:\tx"] {
            assert!(!is_ignored(unusable, SignalKind::hangup()));
        }
    }
}
