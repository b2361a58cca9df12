//! Compares the program with what people use instead, on real daemons: `tests/bench.sh` runs it on
//! the release build. Its arguments are the program and a folder, into which it writes the table
//! (`table.md`, and with notes `results.md`) and the chart (`results.svg`). A third, `quick`, makes it one round of each.
//!
//! All contenders take their turns within one run, each goes first as often as the others, and only
//! what was measured in the same run is compared: a slow machine is slow for all. The limits that
//! the program itself must keep are in `tests/measure`.

mod chart;
mod contenders;
mod measures;
mod notify;
mod results;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use contenders::{Contender, Field};
use results::{Row, Sample};

fn main() -> ExitCode {
    // Cargo adds an argument of its own.
    let words: Vec<_> = std::env::args_os().skip(1).filter(|word| word != "--bench").collect();
    let (program, folder, quick) = match words.as_slice() {
        [program, folder] => (program, folder, false),
        [program, folder, word] if word == "quick" => (program, folder, true),
        _ => {
            eprintln!("which program, and where to? Run tests/bench.sh");
            return ExitCode::from(64);
        }
    };
    let field = Field::new(Path::new(program), quick);

    let mut rows = Vec::new();
    for measure in [
        measures::fresh_join,
        measures::already_running,
        measures::reboot,
        measures::late_control_server,
        measures::crowd,
        measures::size,
    ] {
        let start = Instant::now();
        let measured = measure(&field);
        if let [row, ..] = measured.as_slice() {
            eprintln!("{:>5.0} s  {}", start.elapsed().as_secs_f64(), row.what);
        }
        rows.extend(measured);
    }

    let table = results::table(&rows, &field);
    let notes = results::notes(&rows);
    println!("{table}\n{notes}");
    for (name, text) in [
        ("table.md", table.clone()),
        ("results.md", format!("{table}\n{notes}")),
        ("results.svg", chart::svg(&rows)),
    ] {
        fs::write(Path::new(folder).join(name), text).expect("the folder can be written to");
    }

    if quick {
        println!("One round of each is nothing to judge by.");
        return ExitCode::SUCCESS;
    }
    let mut kept = true;
    for (promise, holds) in promises(&rows) {
        println!("{:<8}{promise}", if holds { "ok" } else { "MISSED" });
        kept &= holds;
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What must hold, and whether it does.
fn promises(rows: &[Row]) -> Vec<(String, bool)> {
    let row = |what: &str| rows.iter().find(|row| row.what == what);
    let times_ours = |what: &str, who: Contender| row(what)?.times_ours(who);
    let at_least = |promise: &str, times: Option<f64>, limit: f64| {
        let said = times.map_or("not measured".to_owned(), |times| format!("{times:.1}×"));
        let holds = times.is_some_and(|times| times >= limit);
        (format!("{promise}: {said}, at least {limit}×"), holds)
    };
    let bad = rows
        .iter()
        .flat_map(|row| row.of(Contender::Ours))
        .filter(|sample| !matches!(sample, Sample::Took(_)))
        .count();
    vec![
        at_least(
            "with nothing to do, faster than the script",
            times_ours(measures::NO_OP, Contender::Script),
            100.0,
        ),
        at_least(
            "with nothing to do, faster than the service of nixpkgs",
            times_ours(measures::NO_OP, Contender::Nixpkgs),
            2.0,
        ),
        at_least(
            "less memory than the `tailscale` command",
            times_ours(measures::MEMORY, Contender::Up),
            3.0,
        ),
        (format!("a failure, or a node that was disconnected: {bad}, never"), bad == 0),
    ]
}
