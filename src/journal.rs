//! Messages on standard error: with priorities in the journal, plain elsewhere.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::fstat;

use crate::redact::one_line;

struct Journal {
    /// Standard error is the journal, which takes a priority at the start of a line.
    with_priority: bool,
}

/// Sends messages up to `level` to standard error from now on.
pub fn init(level: LevelFilter) {
    let journal = Journal {
        with_priority: stderr_is_journal(),
    };
    if log::set_boxed_logger(Box::new(journal)).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries' own messages are of no use to an admin.
        metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = one_line(&record.args().to_string());
        // A closed standard error must not end a login.
        let _ = if self.with_priority {
            writeln!(std::io::stderr(), "<{}>{text}", priority(record.level()))
        } else {
            writeln!(std::io::stderr(), "tailscale-autoconnect: {text}")
        };
    }

    fn flush(&self) {}
}

/// The priority of sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is what JOURNAL_STREAM names, see systemd.exec(5).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
