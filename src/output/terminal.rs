//! Messages on a terminal, and below them a live line with what is being waited for. A library
//! (indicatif) would bring five crates and a thread for this one line.

use std::env;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::{tcgetpgrp, tcgetwinsize};

use crate::redact::one_line;

/// The time between two drawings. The first comes after it too: what is done at once has no line.
pub const REDRAW_EVERY: Duration = Duration::from_millis(125);

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// The fonts of the Linux console have no others.
const FRAMES_OF_CONSOLE: [&str; 4] = ["-", "\\", "|", "/"];

/// Where a terminal does not know its width, as on a serial line.
const USUAL_COLUMNS: u16 = 80;

/// How much is kept for a terminal that was stopped, in bytes.
const MOST_HELD: usize = 16 * 1024;

/// To the start of the line, and erase it.
const CLEAR: &str = "\r\x1b[K";
pub const RED: &str = "\x1b[31m";
pub const GREEN: &str = "\x1b[32m";
pub const YELLOW: &str = "\x1b[33m";
pub const BOLD: &str = "\x1b[1m";
/// The end of each of them.
pub const PLAIN: &str = "\x1b[0m";

/// Whether to color what goes to `stream` (<https://no-color.org>).
pub fn may_color(stream: &impl IsTerminal) -> bool {
    knows_escapes(stream) && env::var_os("NO_COLOR").unwrap_or_default().is_empty()
}

/// Whether `stream` is a terminal that can more than print.
fn knows_escapes(stream: &impl IsTerminal) -> bool {
    let term = env::var_os("TERM").unwrap_or_default();
    !term.is_empty() && term != "dumb" && stream.is_terminal()
}

/// The terminal that standard error is.
pub struct Terminal {
    colors: bool,
    live: bool,
    frames: &'static [&'static str],
    /// What is being waited for, and since when.
    waiting: Option<(String, Instant)>,
    /// Messages that the terminal has not taken yet.
    held: String,
    drawn: bool,
    count: usize,
}

impl Terminal {
    /// The terminal, if standard error is one that can erase a line. `live`: with a live line.
    pub fn of_stderr(live: bool) -> Option<Self> {
        let is_console = env::var_os("TERM").is_some_and(|term| term == "linux");
        knows_escapes(&stderr()).then(|| Self {
            colors: may_color(&stderr()),
            live,
            frames: if is_console { &FRAMES_OF_CONSOLE } else { &FRAMES },
            waiting: None,
            held: String::new(),
            drawn: false,
            count: 0,
        })
    }

    /// Prints a message in the place of the live line, which is drawn again below it.
    pub fn message(&mut self, level: Level, text: &str) {
        let (color, plain) = match level {
            Level::Error if self.colors => (RED, PLAIN),
            Level::Warn if self.colors => (YELLOW, PLAIN),
            _ => ("", ""),
        };
        let message = format!("{color}tailscale-autoconnect: {text}{plain}\n");
        if self.held.len() + message.len() <= MOST_HELD {
            self.held.push_str(&message);
        }
        self.print();
    }

    fn print(&mut self) {
        if !self.held.is_empty() && takes_output() {
            let clear = if self.drawn { CLEAR } else { "" };
            self.drawn = false;
            write(&format!("{clear}{}", self.held));
            self.held.clear();
        }
    }

    /// What the live line says when it is drawn next.
    pub fn waiting(&mut self, text: &str, since: Instant) {
        if self.live {
            self.waiting = Some((one_line(text), since));
        }
    }

    /// Draws the live line, below what the terminal has not taken before.
    pub fn draw(&mut self) {
        self.print();
        let Some((text, since)) = &self.waiting else {
            return;
        };
        if !is_ours() {
            // The shell has taken the line, and what stood on it is no longer ours to erase.
            self.drawn = false;
            return;
        }
        if takes_output() {
            let frame = self.frames[self.count % self.frames.len()];
            let line = line(frame, text, since.elapsed(), columns());
            write(&format!("{CLEAR}{line}"));
            self.drawn = true;
            self.count += 1;
        }
    }

    /// Erases the live line for good.
    pub fn clear(&mut self) {
        self.waiting = None;
        if self.drawn && is_ours() && takes_output() {
            write(CLEAR);
        }
        self.drawn = false;
    }
}

/// Whether we run in the foreground of the terminal. A job in the background, or a service on the
/// console, has no right to its last line.
fn is_ours() -> bool {
    tcgetpgrp(stderr()).is_ok_and(|foreground| foreground == getpgrp())
}

/// Whether the terminal would take output now: one stopped with Ctrl-S must not stop the work.
fn takes_output() -> bool {
    let stderr = stderr();
    let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn columns() -> u16 {
    let size = tcgetwinsize(stderr());
    size.map(|size| size.ws_col).ok().filter(|columns| *columns > 0).unwrap_or(USUAL_COLUMNS)
}

/// In one piece, so that nothing half-drawn stays behind. A closed standard error must not end a
/// login.
fn write(text: &str) {
    let _ = stderr().write_all(text.as_bytes());
}

/// The live line, cut so that it does not wrap: a full last column wraps on some terminals.
fn line(frame: &str, text: &str, waited: Duration, columns: u16) -> String {
    let room = usize::from(columns).saturating_sub(1);
    let (start, end) = (format!("{frame} "), format!("… {}", time(waited)));
    let whole = format!("{start}{text} {end}");
    if width(&whole) <= room {
        return whole;
    }
    let for_text = room.saturating_sub(width(&start) + width(&end));
    cut(&format!("{start}{}{end}", cut(text, for_text)), room).to_owned()
}

fn time(waited: Duration) -> String {
    let seconds = waited.as_secs();
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// How many columns a text takes at most: nothing takes more than two.
fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn columns_of(character: char) -> usize {
    if character.is_ascii() { 1 } else { 2 }
}

/// The start of a text that takes `most` columns at most.
fn cut(text: &str, most: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, character)| {
        taken += columns_of(*character);
        taken > most
    });
    end.map_or(text, |(index, _)| text[..index].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: Duration = Duration::from_secs(12);

    #[test]
    fn the_line_says_what_is_waited_for_and_for_how_long() {
        assert_eq!(
            line("⠋", "waiting for tailscaled", SECONDS, 80),
            "⠋ waiting for tailscaled … 12 s"
        );
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (90_061, "25 h 1 min"),
        ] {
            assert_eq!(time(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn the_text_is_cut_and_the_time_kept_where_it_is_narrow() {
        assert_eq!(line("-", "waiting for", SECONDS, 18), "- waiting… 12 s");
        assert_eq!(line("-", "waiting for", SECONDS, 16), "- waitin… 12 s");
        assert_eq!(line("-", "waiting for", SECONDS, 6), "- …");
    }

    #[test]
    fn no_line_is_as_wide_as_the_terminal() {
        let texts = ["waiting for tailscaled", "wäiting für …", "等待控制服务器的回答"];
        for (text, columns) in texts.iter().flat_map(|text| (0..60).map(move |n| (text, n))) {
            let line = line("⠋", text, SECONDS, columns);
            assert!(line.is_empty() || width(&line) < usize::from(columns), "{columns}: {line:?}");
        }
    }
}
