//! What is printed of the results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::options::Options;
use crate::schedule::{Schedule, kinds};
use crate::unit::SCALE;
use crate::verdict::{Outcome, name_of};

/// From so many schedules on, each kind of fault has to happen.
const LARGE: usize = 200;

/// A schedule that failed, with all there is to know; any, when it is the only one.
pub fn print_one(outcome: &Outcome, schedule: &Schedule, verbose: bool) {
    if !outcome.report.is_empty() {
        print!("{}", outcome.report);
    } else if verbose {
        println!("{schedule}\n  {outcome:?}");
    }
}

/// A row for each contender.
fn table(options: &Options, all: &[Outcome]) -> String {
    let mut table =
        "| | schedules | off the tailnet after the faults | still off after one more start \
        | single-use keys wasted (by tailscale) | hangs | settings lost (by a disk) |\n\
        |---|---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
    for contender in &options.contenders {
        let of: Vec<&Outcome> =
            all.iter().filter(|one| one.contender == contender.name()).collect();
        let count = |what: fn(&Outcome) -> bool| of.iter().filter(|one| what(one)).count();
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} ({}) | {} | {} ({}) |",
            contender.title(),
            of.len(),
            count(|one| one.off_at_first),
            count(|one| one.off),
            count(|one| one.burnt),
            count(|one| one.burnt_by_tailscale),
            count(|one| one.hang),
            count(|one| !one.lost.is_empty()),
            count(|one| one.lost_by_disk),
        );
    }
    table
}

/// Prints all of it, and says whether all is well.
pub fn print(options: &Options, all: &[Outcome], skipped: usize, took: Duration) -> bool {
    let table = table(options, all);
    print!("{table}");
    if let Some(path) = &options.table {
        let written = fs::write(path, table);
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
    println!();
    println!(
        "By tailscale: the answer to the register was lost, or the daemon died before it saved its node key. By a disk: tailscaled could not save them."
    );
    println!(
        "Waits of more than a few seconds are divided by {SCALE} for all alike: RestartSec, TimeoutStartSec, --authkey-wait, --ready-after."
    );

    let mut fired: BTreeMap<&str, usize> = BTreeMap::new();
    for name in all.iter().flat_map(|one| &one.fired) {
        *fired.entry(name).or_default() += 1;
    }
    // A campaign of some size that leaves a kind of fault out proves less than it says.
    let never: Vec<String> = kinds()
        .map(|kind| name_of(&kind))
        .filter(|name| all.len() >= LARGE && !fired.contains_key(name.as_str()))
        .collect();
    let fired: Vec<String> = fired.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("Faults that happened: {}.", fired.join(", "));
    let mut recoveries: Vec<f64> = all.iter().filter_map(|one| one.recovery).collect();
    recoveries.sort_by(f64::total_cmp);
    if let (Some(most), Some(median)) = (recoveries.last(), recoveries.get(recoveries.len() / 2)) {
        println!("Online and done after the faults: median {median:.1} s, at most {most:.1} s.");
    }
    let failed: Vec<&Outcome> = all.iter().filter(|one| !one.failures.is_empty()).collect();
    for one in &failed {
        println!("failed: seed {} ({}): {}", one.seed, one.scene, one.failures.join("; "));
    }
    if !never.is_empty() {
        println!("failed: these faults never happened: {}", never.join(", "));
    }
    let well = failed.is_empty() && never.is_empty();
    println!(
        "test result: {}. {} passed; {} failed; {skipped} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        if well { "ok" } else { "FAILED" },
        all.len() - failed.len(),
        failed.len() + never.len(),
        took.as_secs_f64()
    );
    well
}
