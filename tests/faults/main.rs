//! A fault campaign: schedules of faults, each derived from its seed alone, played on real daemons
//! with the program and with the scripts that people use instead (tests/peers). `tests/faults.sh`
//! runs it.
//!
//! A clock that is wrong cannot be had: a time namespace leaves the wall clock alone, and libfaketime
//! does not reach into Go programs.

mod admin;
mod options;
mod play;
mod report;
mod schedule;
mod unit;
mod verdict;
mod watch;

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tailnet_harness::is_root;

use crate::options::Options;
use crate::schedule::{Place, Schedule};
use crate::unit::Contender;
use crate::verdict::Outcome;

fn main() -> ExitCode {
    let options = match Options::of(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(complaint) => {
            eprintln!("{complaint}");
            return ExitCode::from(64);
        }
    };
    if let Some(help) = options.help {
        println!("{help}");
        return ExitCode::SUCCESS;
    }
    if options.show {
        let seeds = options.first..options.first + options.schedules;
        seeds.for_each(|seed| println!("{}", Schedule::of(seed)));
        return ExitCode::SUCCESS;
    }
    let results = options.results.as_deref().map(|path| {
        File::create(path)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
    });
    let mut all = Vec::new();
    let mut skipped = 0;
    let began = Instant::now();
    for contender in &options.contenders {
        let played = campaign(&options, *contender, began, results.as_ref());
        skipped = played.skipped;
        all.extend(played.outcomes);
    }
    if skipped > 0 {
        println!("{skipped} schedules skipped: networks and disks of their own need root");
    }
    if report::print(&options, &all, skipped, began.elapsed()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Played {
    outcomes: Vec<Outcome>,
    skipped: usize,
}

/// Plays all schedules with one contender, many at a time.
fn campaign(
    options: &Options,
    contender: Contender,
    began: Instant,
    results: Option<&File>,
) -> Played {
    let next = Mutex::new(options.first);
    let played = Mutex::new(Played { outcomes: Vec::new(), skipped: 0 });
    let take = || {
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next - options.first;
        let more = match options.minutes {
            Some(time) => began.elapsed() < time,
            None => number < options.schedules,
        };
        *next += u64::from(more);
        more.then(|| options.first + number)
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some(seed) = take() {
                    let schedule = Schedule::of(seed);
                    if schedule.place != Place::Host && !is_root() {
                        played.lock().unwrap_or_else(PoisonError::into_inner).skipped += 1;
                        continue;
                    }
                    let outcome = one(&schedule, contender, &options.program);
                    let mut played = played.lock().unwrap_or_else(PoisonError::into_inner);
                    report::print_one(&outcome, &schedule, options.verbose);
                    if let Some(mut results) = results {
                        let line = serde_json::to_string(&outcome).expect("a plain struct");
                        let _ = writeln!(results, "{line}");
                    }
                    played.outcomes.push(outcome);
                }
            });
        }
    });
    played.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What the harness cannot do is a failure too.
fn one(schedule: &Schedule, contender: Contender, program: &Path) -> Outcome {
    let began = Instant::now();
    let play = || play::play(schedule, contender, program);
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Outcome {
            seed: schedule.seed,
            contender: contender.name().to_owned(),
            scene: schedule.scene.to_string(),
            report: format!("{schedule}\n  FAILED: the harness gave up: {why}\n  replay: tests/faults.sh --seed {}\n", schedule.seed),
            failures: vec![format!("the harness gave up: {why}")],
            seconds: began.elapsed().as_secs_f64(),
            ..Outcome::default()
        }
    })
}
