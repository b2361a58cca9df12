//! A terminal for a program to run on, and what it shows.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const ROWS: u16 = 40;

/// Opens a pseudo terminal: our side of it, and the program's.
pub(crate) fn open(columns: u16) -> (File, OwnedFd) {
    let open = || -> rustix::io::Result<_> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(ptsname(&master, Vec::new())?, flags, Mode::empty())?;
        Ok((File::from(master), slave))
    };
    open().expect("a pseudo terminal can be opened")
}

/// What a terminal has shown, up to some moment.
#[derive(Debug)]
pub struct Screen {
    now: String,
    colored: Vec<String>,
    shown: Vec<String>,
    wrapped: bool,
    cursor_hidden: bool,
    cursor_column: u16,
}

impl Screen {
    /// What one of this width shows of this output.
    pub fn of(columns: u16, output: &[u8]) -> Self {
        let size = |number| NonZero::new(number).expect("a terminal has a size");
        let mut parser = vt100::Parser::new(size(ROWS), size(columns), 0);
        let mut shown: Vec<String> = Vec::new();
        let mut wrapped = false;
        for byte in output {
            // A line is complete when the cursor leaves its end.
            if let b'\r' | b'\n' = byte {
                let screen = parser.screen();
                wrapped |= (0..ROWS).any(|row| screen.row_wrapped(row));
                let row = usize::from(screen.cursor_position().0);
                let line = screen.rows(0, columns).nth(row).unwrap_or_default();
                if !line.is_empty() && shown.last() != Some(&line) {
                    shown.push(line);
                }
            }
            parser.process(&[*byte]);
        }
        let screen = parser.screen();
        let rows = screen.rows(0, columns).zip(0..);
        let colored = rows.filter(|(_, row)| {
            let cell = screen.cell(*row, 0);
            cell.is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
        });
        Self {
            now: screen.contents(),
            colored: colored.map(|(line, _)| line).collect(),
            shown,
            wrapped,
            cursor_hidden: screen.hide_cursor(),
            cursor_column: screen.cursor_position().1,
        }
    }

    /// What stands on it now.
    pub fn now(&self) -> &str {
        &self.now
    }

    /// The lines that stand on it now and begin in colour.
    pub fn colored(&self) -> &[String] {
        &self.colored
    }

    /// All lines that it has shown, also those that were erased, each when it was complete.
    pub fn shown(&self) -> &[String] {
        &self.shown
    }

    /// Whether a line was ever too wide for it.
    pub fn has_wrapped(&self) -> bool {
        self.wrapped
    }

    /// Whether it is as a shell wants it back: with a cursor, at the start of an empty line.
    pub fn is_left_clean(&self) -> bool {
        !self.cursor_hidden && self.cursor_column == 0
    }
}
