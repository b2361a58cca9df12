//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::unit::Contender;

const USAGE: &str = "usage: tests/faults.sh [OPTION…]
  --contender NAME   ours, stay, seed, nixpkgs or all (default: ours)
  --schedules N      how many (default: 200)
  --first SEED       the seed of the first; the others follow it (default: 1)
  --seed SEED        only this one, with all that is said of it
  --minutes N        go on with new seeds for so long
  --jobs N           so many at a time (default: 32)
  --show             print the schedules, and play none
  --program FILE     another build of the program
  --results FILE     write a line of JSON for each schedule
  --write            also put the table into README.md";

pub struct Options {
    pub contenders: Vec<Contender>,
    pub schedules: u64,
    pub first: u64,
    pub minutes: Option<Duration>,
    pub jobs: usize,
    pub show: bool,
    pub help: Option<&'static str>,
    pub verbose: bool,
    pub program: PathBuf,
    pub results: Option<PathBuf>,
    pub table: Option<PathBuf>,
}

impl Options {
    pub fn of(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            contenders: vec![Contender::Ours],
            schedules: 200,
            first: 1,
            minutes: None,
            jobs: 32,
            show: false,
            help: None,
            verbose: false,
            program: env!("CARGO_BIN_EXE_tailscale-autoconnect").into(),
            results: None,
            table: None,
        };
        // Cargo adds a word of its own.
        let mut words = words.filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                options.help = Some(USAGE);
                continue;
            }
            if word == "--show" {
                options.show = true;
                continue;
            }
            let value = words.next().ok_or(USAGE)?;
            let number = || value.parse::<u64>().map_err(|_| USAGE);
            match word.as_str() {
                "--contender" if value == "all" => options.contenders = Contender::ALL.to_vec(),
                "--contender" => {
                    let named = |one: &Contender| one.name() == value;
                    let found = Contender::ALL.into_iter().find(named);
                    options.contenders = vec![found.ok_or(USAGE)?];
                }
                "--schedules" => options.schedules = number()?,
                "--first" => options.first = number()?,
                "--seed" => {
                    options.first = number()?;
                    options.schedules = 1;
                    options.verbose = true;
                }
                "--minutes" => options.minutes = Some(Duration::from_secs(60 * number()?)),
                "--jobs" => options.jobs = usize::try_from(number()?).map_err(|_| USAGE)?.max(1),
                "--program" => options.program = value.into(),
                "--table" => options.table = Some(value.into()),
                "--results" => options.results = Some(value.into()),
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}
