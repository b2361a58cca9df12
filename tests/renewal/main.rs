//! Renews node keys that live for 20 seconds, on real daemons, while a TCP stream goes through the
//! renewed node: `tests/renewal.sh` runs it on the release build of the program, whose path is its
//! argument. Beside it, in the same run, `tailscale up --force-reauth` does the same to the same nodes.
//!
//! Half of the streams go directly, the others over DERP.

mod lane;
mod stream;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use tailnet_harness::version_is_at_least;

use crate::lane::{Lane, Round};

const USAGE: &str = "\
usage: tests/renewal.sh [--count N] [--write]

  --count N    N renewals (default: 4)
  --write      also put the table into README.md, unless a limit is missed";
/// How many pairs of nodes there are at once, at most.
const MOST_LANES: usize = 10;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let (mut program, mut table, mut count) = (None, None, 4);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--count" => match words.next().and_then(|word| word.parse().ok()) {
                Some(number @ 1..) => count = number,
                _ => return usage(),
            },
            "--table" => table = words.next(),
            _ if program.is_none() && !word.starts_with('-') => program = Some(PathBuf::from(word)),
            _ => return usage(),
        }
    }
    let Some(program) = program else {
        return usage();
    };

    let lanes = count.min(MOST_LANES);
    let rounds = |lane: usize| count / lanes + usize::from(lane < count % lanes);
    let results: Vec<Results> = thread::scope(|scope| {
        let program = &program;
        let play =
            |lane: usize| scope.spawn(move || Results::of(program, lane % 2 == 1, rounds(lane)));
        let lanes: Vec<_> = (0..lanes).map(play).collect();
        lanes.into_iter().map(|lane| lane.join().expect("a lane comes to its end")).collect()
    });
    let all =
        |of: fn(&Results) -> &Vec<Round>| -> Vec<&Round> { results.iter().flat_map(of).collect() };
    let [renewed, dead, forced, quiet] =
        [all(|it| &it.renewed), all(|it| &it.dead), all(|it| &it.forced), all(|it| &it.quiet)];
    if !report(&renewed, &dead, &forced, &quiet) {
        println!("A limit is missed.");
        return ExitCode::FAILURE;
    }
    if let Some(path) = table {
        let written = fs::write(&path, markdown(&renewed, &dead, &forced));
        written.unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(64)
}

/// What one pair of nodes has seen.
struct Results {
    quiet: Vec<Round>,
    renewed: Vec<Round>,
    dead: Vec<Round>,
    forced: Vec<Round>,
}

impl Results {
    fn of(program: &std::path::Path, over_derp: bool, rounds: usize) -> Self {
        let mut lane = Lane::new(program, over_derp);
        let quiet = vec![lane.quiet()];
        let renewed = (0..rounds).map(|_| lane.renewal()).collect();
        let dead = vec![lane.dead_key()];
        lane.end();
        let forced = (0..rounds).map(|_| lane.force_reauth()).collect();
        Self { quiet, renewed, dead, forced }
    }
}

fn report(renewed: &[&Round], dead: &[&Round], forced: &[&Round], quiet: &[&Round]) -> bool {
    let mut kept = true;
    let mut row = |what: &str, measured: String, limit: &str, is_kept: bool| {
        kept &= is_kept;
        let verdict = match (limit, is_kept) {
            ("", _) => "",
            (_, true) => "ok",
            (_, false) => "MISSED",
        };
        println!("{what:<48}{measured:<36}{limit:<22}{verdict}");
    };
    let of = |rounds: &[&Round], is: fn(&Round) -> bool| {
        format!("{} of {}", rounds.iter().filter(|round| is(round)).count(), rounds.len())
    };
    let all = |rounds: &[&Round], is: fn(&Round) -> bool| rounds.iter().all(|round| is(round));
    println!("{:<48}{:<36}{:<22}", "what", "measured", "limit");

    let is_renewed = |round: &Round| round.is_in_time && round.is_same;
    row(
        "renewed in time, and nothing else changed",
        of(renewed, is_renewed),
        "all",
        all(renewed, is_renewed),
    );
    let registers = |rounds: &[&Round]| {
        let most = rounds.iter().map(|round| round.registers).max().unwrap_or_default();
        let once = rounds.iter().filter(|round| round.registers == 1).count();
        (format!("{once} once, {most} at most"), most)
    };
    let (text, most) = registers(renewed);
    row("  registers with the key", text, "1", most == 1);
    let stays_on = |round: &Round| !round.needed_login;
    row("  never NeedsLogin", of(renewed, stays_on), "all", all(renewed, stays_on));
    let survives = |round: &Round| round.stall_ms.is_some();
    row("  TCP stream survives", of(renewed, survives), "all", all(renewed, survives));
    for (name, over_derp) in [("direct", false), ("over DERP", true)] {
        let (text, p95, most) = stalls(renewed, over_derp);
        let is_limited = version_is_at_least((1, 98));
        let limit = if is_limited { "p95 500, at most 1000" } else { "" };
        row(
            &format!("  its stall, {name}, ms"),
            text,
            limit,
            !is_limited || (p95 <= 500.0 && most <= 1000.0),
        );
    }

    row(
        "dead key: the node stays, and nothing changes",
        of(dead, |round| round.is_same),
        "all",
        all(dead, |round| round.is_same),
    );
    let (text, most) = registers(dead);
    row("  registers with the key", text, "2", most <= 2);
    let off = dead.iter().map(|round| round.off_ms).fold(0.0, f64::max);
    row("  not online, ms", format!("at most {off:.0}"), "1000", off <= 1000.0);
    for (name, over_derp) in [("direct", false), ("over DERP", true)] {
        let (text, _, most) = stalls(dead, over_derp);
        row(&format!("  stall, {name}, ms"), text, "100", most <= 100.0);
    }

    row("`tailscale up --force-reauth`: stream survives", of(forced, survives), "", true);
    for (name, over_derp) in [("direct", false), ("over DERP", true)] {
        row(&format!("  its stall, {name}, ms"), stalls(forced, over_derp).0, "", true);
    }
    for (name, over_derp) in [("direct", false), ("over DERP", true)] {
        row(&format!("nothing done: stall, {name}, ms"), stalls(quiet, over_derp).0, "", true);
    }
    kept
}

/// The table in README.md.
fn markdown(renewed: &[&Round], dead: &[&Round], forced: &[&Round]) -> String {
    let in_time = renewed.iter().filter(|round| round.is_in_time && round.is_same).count();
    let count = renewed.len();
    let mut table = format!(
        "| | tailscale-autoconnect | `tailscale up --force-reauth` |\n|---|---|---|\n\
         | renewed in time, with the same name, addresses and settings | {in_time} of {count} | by hand |\n"
    );
    for (name, over_derp) in [("direct", false), ("over DERP", true)] {
        let [ours, theirs, refused] =
            [renewed, forced, dead].map(|rounds| stalls(rounds, over_derp).0);
        table += &format!(
            "| longest stall of an open TCP stream, {name}, ms | {ours} | {theirs} |\n\
             | the same when the key in the file is dead | {refused} | – |\n"
        );
    }
    table
}

/// In words, at p95 and at most.
fn stalls(rounds: &[&Round], over_derp: bool) -> (String, f64, f64) {
    let of_kind = rounds.iter().filter(|round| round.over_derp == over_derp);
    let mut all: Vec<f64> = of_kind.filter_map(|round| round.stall_ms).collect();
    all.sort_by(f64::total_cmp);
    let Some(most) = all.last().copied() else {
        return ("-".to_owned(), 0.0, 0.0);
    };
    let at = |percent: usize| all[((all.len() * percent).div_ceil(100)).max(1) - 1];
    (format!("median {:.0}, p95 {:.0}, at most {most:.0}", at(50), at(95)), at(95), most)
}
