//! Where messages go: to the journal with fields, to a terminal with a live line below them, and
//! else to standard error as plain lines.

pub mod journal;
pub mod notify;
pub mod terminal;

use std::convert::Infallible;
use std::future::pending;
use std::io::{Write, stderr, stdout};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tokio::time::sleep;

use crate::output::journal::{Journal, is_journal};
use crate::output::terminal::{REDRAW_EVERY, Terminal};
use crate::redact::one_line;

enum Messages {
    Journal(Journal),
    Terminal(Mutex<Terminal>),
    Plain,
}

static MESSAGES: OnceLock<Messages> = OnceLock::new();

/// Sends messages up to `level` to where they belong from now on.
pub fn init(level: LevelFilter) {
    let messages = MESSAGES.get_or_init(|| {
        if is_journal(stderr()) {
            return Messages::Journal(Journal::open());
        }
        match Terminal::of_stderr(level >= LevelFilter::Info) {
            Some(terminal) => Messages::Terminal(Mutex::new(terminal)),
            None => Messages::Plain,
        }
    });
    if log::set_logger(messages).is_ok() {
        log::set_max_level(level);
    }
}

/// What the journal is to know of the messages that come: tailscaled's BackendState, what is being
/// done, and how many logins were made.
pub fn context(state: &str, action: &'static str, attempt: u32) {
    if let Some(Messages::Journal(journal)) = MESSAGES.get() {
        journal.context(state, action, attempt);
    }
}

/// What is being waited for, and since when.
pub fn waiting(text: &str, since: Instant) {
    if let Some(mut terminal) = terminal() {
        terminal.waiting(text, since);
    }
}

/// Keeps the live line moving, and erases it when dropped. Never returns.
pub async fn live_line() -> Infallible {
    struct Erase;
    impl Drop for Erase {
        fn drop(&mut self) {
            if let Some(mut terminal) = terminal() {
                terminal.clear();
            }
        }
    }
    let _erase = Erase;
    while terminal().is_some() {
        sleep(REDRAW_EVERY).await;
        if let Some(mut terminal) = terminal() {
            terminal.draw();
        }
    }
    pending().await
}

/// Says a message that has a MESSAGE_ID in the journal.
pub fn event(level: Level, text: &str, id: &str) {
    match MESSAGES.get() {
        Some(Messages::Journal(journal)) if level <= log::max_level() => {
            journal.message(level, text, id);
        }
        _ => log::log!(level, "{text}"),
    }
}

/// Says how the run ended, where that is not for standard output alone: by the name of the outcome,
/// in words, and whether it is a success. Returns whether standard output has it by that, since it's
/// the same journal.
pub fn result(outcome: &str, text: &str, is_success: bool) -> bool {
    let Some(Messages::Journal(journal)) = MESSAGES.get() else {
        if !is_success {
            log::error!("{text}");
        }
        return false;
    };
    let level = if is_success { Level::Info } else { Level::Error };
    journal.result(level, text, outcome);
    is_journal(stdout())
}

fn terminal() -> Option<MutexGuard<'static, Terminal>> {
    match MESSAGES.get() {
        Some(Messages::Terminal(terminal)) => {
            Some(terminal.lock().unwrap_or_else(|broken| broken.into_inner()))
        }
        _ => None,
    }
}

impl Log for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries' own messages are of no use to an admin.
        metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = one_line(&record.args().to_string());
        match self {
            Self::Journal(journal) => journal.message(record.level(), &text, ""),
            Self::Terminal(_) => {
                if let Some(mut terminal) = terminal() {
                    terminal.message(record.level(), &text);
                }
            }
            // A closed standard error must not end a login.
            Self::Plain => {
                let _ = writeln!(stderr(), "tailscale-autoconnect: {text}");
            }
        }
    }

    fn flush(&self) {}
}
