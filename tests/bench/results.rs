//! What was measured, and the table of it.

use std::fmt::Write as _;
use std::fs;

use tailnet_harness::Spread;

use crate::contenders::{Contender, Field};

/// What came of one try.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// The measured value.
    Took(f64),
    /// The node, which was on its tailnet, is no longer.
    KnockedOff,
    /// It ended with success while the node was not on its tailnet.
    TooEarly,
    /// It failed.
    Failed,
}

/// What is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Mebibytes,
    Megabytes,
    /// Nothing: either it failed or it didn't.
    Failures,
}

/// One measure of all contenders.
pub struct Row {
    pub what: &'static str,
    pub unit: Unit,
    samples: [Vec<Sample>; 4],
    /// What the reader has to know of it.
    pub note: &'static str,
}

impl Row {
    pub fn new(what: &'static str, unit: Unit, note: &'static str) -> Self {
        Self { what, unit, samples: Default::default(), note }
    }

    pub fn add(&mut self, who: Contender, sample: Sample) {
        self.samples[who.index()].push(sample);
    }

    pub fn of(&self, who: Contender) -> &[Sample] {
        &self.samples[who.index()]
    }

    /// How many came to this.
    pub fn count(&self, who: Contender, sample: &Sample) -> usize {
        self.of(who).iter().filter(|one| *one == sample).count()
    }

    /// The spread of what was measured, if anything was.
    pub fn spread(&self, who: Contender) -> Option<Spread> {
        let values: Vec<f64> = self
            .of(who)
            .iter()
            .filter_map(|sample| match sample {
                Sample::Took(value) => Some(*value),
                _ => None,
            })
            .collect();
        (!values.is_empty()).then(|| Spread::of(&values))
    }

    /// How many times as much as ours.
    pub fn times_ours(&self, who: Contender) -> Option<f64> {
        let (theirs, ours) = (self.spread(who)?.median, self.spread(Contender::Ours)?.median);
        (ours > 0.0 && self.unit != Unit::Failures).then(|| theirs / ours)
    }

    /// What went wrong, if anything did.
    pub fn mishaps(&self, who: Contender) -> Option<String> {
        let tries = self.of(who).len();
        let said: Vec<String> = [
            (Sample::KnockedOff, "disconnected"),
            (Sample::TooEarly, "ended too early"),
            (Sample::Failed, "failed"),
        ]
        .into_iter()
        .map(|(sample, words)| (self.count(who, &sample), words))
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{words} in {count} of {tries} runs"))
        .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }

    fn cell(&self, who: Contender) -> String {
        let mut parts = Vec::new();
        if self.unit == Unit::Failures {
            let none = format!("none of {}", self.of(who).len());
            return self.mishaps(who).unwrap_or(none);
        }
        if let Some(spread) = self.spread(who) {
            let mut text = self.unit.show(spread.median);
            if who == Contender::Ours {
                text = format!("**{text}**");
            }
            let (lower, upper) =
                (self.unit.show(spread.lower_quartile), self.unit.show(spread.upper_quartile));
            if lower != upper {
                let _ = write!(text, " ({lower} – {upper})");
            }
            if let Some(times) = self.times_ours(who).filter(|_| who != Contender::Ours) {
                let _ = write!(text, ", {}×", digits(times));
            }
            parts.push(text);
        }
        parts.extend(self.mishaps(who));
        if parts.is_empty() {
            return "–".to_owned();
        }
        parts.join("; ")
    }
}

impl Unit {
    /// Whether the chart shows it.
    pub fn is_drawn(self) -> bool {
        matches!(self, Self::Milliseconds | Self::Mebibytes)
    }

    /// A value with its unit, to three digits at most.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds if value >= 999.5 => format!("{:.2} s", value / 1000.0),
            Self::Milliseconds => format!("{} ms", digits(value)),
            Self::Mebibytes => format!("{} MiB", digits(value)),
            Self::Megabytes => format!("{value:.2} MB"),
            Self::Failures => String::new(),
        }
    }
}

/// With one decimal if it's small.
fn digits(value: f64) -> String {
    let decimals = usize::from(value < 9.95);
    format!("{value:.decimals$}")
}

/// The machine, and the table.
pub fn table(rows: &[Row], field: &Field) -> String {
    let mut text = format!("{}\n\n|", machine(field));
    for who in Contender::ALL {
        let name = match who {
            Contender::Up => format!("`{}`", who.name()),
            _ => who.name().to_owned(),
        };
        let _ = write!(text, " | {name}");
    }
    text.push_str(" |\n|---|---|---|---|---|\n");
    for row in rows {
        let _ = write!(text, "| {}", row.what);
        for who in Contender::ALL {
            let _ = write!(text, " | {}", row.cell(who));
        }
        text.push_str(" |\n");
    }
    text.push_str("\nMedians, with the quartiles in brackets, and each as a multiple of ours.\n");
    text
}

/// What the reader of the table may want to know.
pub fn notes(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        let tries = Contender::ALL.map(|who| row.of(who).len());
        let times = match tries.into_iter().max() {
            None | Some(0 | 1) => String::new(),
            Some(tries) => format!(" ({tries} times each)"),
        };
        let _ = writeln!(text, "- {}{times}: {}.", row.what, row.note);
    }
    text.push_str(
        "- Disconnected: the control server refused the spent key, and the node was off its tailnet \
         until it was put right by hand. Ended too early: it ended with success while tailscaled said \
         that the node was not online (it can be `Running` on the network map of its last run).\n",
    );
    text
}

/// The machine that it was measured on.
fn machine(field: &Field) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU".to_owned(), |(_, name)| name.trim().to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel: Vec<&str> = kernel.split('.').take(2).collect();
    let said = std::process::Command::new(&field.cli)
        .arg("version")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let version = said.lines().next().unwrap_or_default();
    format!("Measured on {cores} cores of {cpu}, Linux {}, tailscale {version}.", kernel.join("."))
}
