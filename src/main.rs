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

use std::future::pending;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use log::LevelFilter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::check::Form;
use crate::cli::Options;
use crate::failure::{Connected, Exit, Failure, USAGE, message, to_json};
use crate::file_system::read_text;
use crate::key::trust::Process;
use crate::output::notify::Notify;
use crate::policy::Setup;
use crate::record::Store;
use crate::redact::{one_line, redact};
use crate::run::{Config, Run};
use crate::up::Cli;

/// The shortest time limit of a run: one look finds out who is connected, however little time there is.
const SHORTEST_RUN: Duration = Duration::from_millis(500);

/// The exit status, or the number of the signal that told us to stop.
type End = Result<ExitCode, i32>;

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
    if let Err(failure) = options.check() {
        return report(&Err(failure), options.json);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&Err(Failure::Internal(format!("cannot start: {error}"))), options.json);
        }
    };
    let end = match options.check_only {
        true => runtime.block_on(check(&options)),
        false => runtime.block_on(run(&options)),
    };
    // A look may be stuck in the file system.
    runtime.shutdown_background();
    end.unwrap_or_else(|signal| {
        // The service manager and the shell see what ended us.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        ExitCode::FAILURE
    })
}

fn config(options: &Options) -> Config {
    let (flags, exit_node) = flags::part_exit_node(flags::each_once(&options.up_flags));
    Config {
        exit_node,
        setup: Setup {
            server: options.any_login_server(),
            flags,
            key_file: options.authkey_file.clone(),
            authkey_wait: options.authkey_wait,
            authkey_optional: options.authkey_optional,
            cli: Cli { program: options.tailscale.clone(), socket: options.socket.clone() },
            stay: options.stay,
            rejoin: options.rejoin,
        },
        parameters: options.authkey_params.clone().unwrap_or_default(),
        store: Store::of(&options.socket, Process::current().is_root()),
    }
}

async fn check(options: &Options) -> End {
    let config = config(options);
    let form = match options {
        Options { metrics: true, .. } => Form::Metrics,
        Options { json: true, .. } => Form::Json,
        _ => Form::Text,
    };
    tokio::select! {
        code = check::run(&config, form) => Ok(code),
        number = stop_signal() => Err(number),
    }
}

async fn run(options: &Options) -> End {
    let config = config(options);
    let notify = Notify::default();
    let mut run = match Run::new(&config, &notify) {
        Ok(run) => run,
        Err(failure) => return Ok(report(&Err(failure), options.json)),
    };
    let mut number = SignalKind::terminate().as_raw_value();
    let signal = async {
        number = stop_signal().await;
        notify.stopping();
    };
    let limit = sleep(options.timeout.unwrap_or(Duration::MAX).max(SHORTEST_RUN));
    let outcome = tokio::select! {
        outcome = run.run(signal, limit) => outcome,
        never = notify.grace(options.ready_after) => match never {},
        never = output::live_line() => match never {},
    };
    drop(run);
    let result = outcome.ok_or(number)?;
    notify.status(&message(&result));
    if Exit::of(&result).code == 0 {
        // Always before exit 0: without it, systemd takes the exit for a failure.
        notify.ready();
    }
    Ok(report(&result, options.json))
}

/// Waits for a signal that asks us to stop, and returns its number. Whoever starts us may have one
/// ignored: `nohup`, or a shell for a job in the background.
async fn stop_signal() -> i32 {
    let status = read_text("/proc/self/status").unwrap_or_default();
    let received = async |kind: SignalKind| {
        let is_heeded = kind == SignalKind::terminate() || !is_ignored(&status, kind);
        if is_heeded
            && let Ok(mut signals) = signal(kind)
            && signals.recv().await.is_some()
        {
            return kind.as_raw_value();
        }
        // Then the signal does to us what it does to any program.
        pending().await
    };
    tokio::select! {
        number = received(SignalKind::terminate()) => number,
        number = received(SignalKind::interrupt()) => number,
        number = received(SignalKind::hangup()) => number,
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
    let (exit, text) = (Exit::of(result), message(result));
    let journal_has_it = output::result(exit.outcome(), &text, exit.code == 0);
    let line = match json {
        true => Some(to_json(result).to_string()),
        false => Some(text).filter(|_| exit.code == 0 && !journal_has_it),
    };
    if let Some(line) = line {
        let _ = writeln!(std::io::stdout(), "{}", one_line(&line));
    }
    ExitCode::from(exit.code)
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
