//! systemd, as far as it matters: each contender by the rules of its own unit.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tailnet_harness::{Notification, Run, Running, cmdline_of, environ_of};

/// What joins the node to its tailnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Ours,
    /// Ours, with `--stay`.
    Stay,
    Seed,
    Nixpkgs,
}

/// Waits of more than a few seconds are a fifth of what they are in the units, for all alike, and
/// so are those of our own options.
pub const SCALE: u32 = 5;
/// `RestartSec=5`; that it grows up to five minutes plays no part in so short a time.
const RESTART_DELAY: Duration = Duration::from_secs(5).checked_div(SCALE).unwrap();
/// `DefaultTimeoutStartSec`.
const START_LIMIT: Duration = Duration::from_secs(90).checked_div(SCALE).unwrap();
/// `--authkey-wait` and `--ready-after`, in milliseconds.
pub const KEY_WAIT_MS: u32 = 60_000 / SCALE;
pub const READY_AFTER_MS: u32 = 15_000 / SCALE;

/// How long a program of ours may take to end on SIGTERM: a second, and something for a busy
/// machine.
const STOP_LIMIT: Duration = Duration::from_secs(5);

impl Contender {
    pub const ALL: [Self; 4] = [Self::Ours, Self::Stay, Self::Seed, Self::Nixpkgs];

    pub fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Stay)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Stay => "stay",
            Self::Seed => "seed",
            Self::Nixpkgs => "nixpkgs",
        }
    }

    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ours => "tailscale-autoconnect",
            Self::Stay => "tailscale-autoconnect `--stay`",
            Self::Seed => "the script",
            Self::Nixpkgs => "nixpkgs' service",
        }
    }

    /// `Restart=on-failure`; the others have no `Restart=`.
    fn is_restarted(self, end: &End) -> bool {
        match (self, end.code, end.signal) {
            (Self::Ours | Self::Stay, Some(code), _) => code != 0 && !is_final(code),
            (Self::Ours | Self::Stay, None, signal) => {
                ![Some(1), Some(2), Some(13), Some(15)].contains(&signal)
            }
            _ => false,
        }
    }

    /// `WantedBy=tailscaled.service` and `PartOf=tailscaled.service`: it starts, restarts and
    /// stops with the daemon. The others are wanted by multi-user.target alone.
    fn follows_daemon(self) -> bool {
        self.is_ours()
    }
}

/// The exit statuses from 64 on, by the names that systemd has for them.
const NAMES: [&str; 15] = [
    "USAGE",
    "DATAERR",
    "NOINPUT",
    "NOUSER",
    "NOHOST",
    "UNAVAILABLE",
    "SOFTWARE",
    "OSERR",
    "OSFILE",
    "CANTCREAT",
    "IOERR",
    "TEMPFAIL",
    "PROTOCOL",
    "NOPERM",
    "CONFIG",
];

/// Whether `RestartPreventExitStatus=` of our unit has this one.
pub fn is_final(code: i32) -> bool {
    let unit = include_str!("../../units/tailscale-autoconnect.service").lines();
    let mut lists = unit.filter_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let list = lists.next().expect("the unit has it");
    (64..).zip(NAMES).any(|(number, name)| number == code && list.split(' ').any(|one| one == name))
}

/// How a start of the unit ended.
#[derive(Clone, Debug)]
pub struct End {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub notifications: Vec<Notification>,
    /// We ended it.
    pub stopped: bool,
    /// The start of it was done before, or with it, so long after it began.
    pub start_took: Duration,
    /// Processes that were there when it had ended; systemd ends them.
    pub left_behind: Vec<Vec<String>>,
    /// Where it may have written.
    pub files_with_keys: Vec<PathBuf>,
    pub overran: bool,
}

enum State {
    Inactive,
    Running(Running, Instant),
    Waiting(Instant),
    Failed,
}

/// A unit and its history.
pub struct Unit {
    contender: Contender,
    run: Run,
    state: State,
    /// The secrets that nobody may see.
    secrets: Vec<String>,
    pub ends: Vec<End>,
    /// Where a secret was seen while it ran.
    pub leaks: BTreeSet<String>,
    /// What was sent to it, if it was killed by us.
    killed: bool,
}

impl Unit {
    pub fn new(contender: Contender, run: Run) -> Self {
        Self {
            contender,
            run,
            state: State::Inactive,
            secrets: Vec::new(),
            ends: Vec::new(),
            leaks: BTreeSet::new(),
            killed: false,
        }
    }

    /// From now on this is to be seen nowhere.
    pub fn keep_secret(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    pub fn start(&mut self) {
        if !matches!(self.state, State::Running(..)) {
            self.killed = false;
            self.state = State::Running(self.run.clone().spawn(), Instant::now());
        }
    }

    /// SIGTERM to all of it, and SIGKILL to what takes too long.
    pub fn stop(&mut self) {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::Running(running, _) => {
                running.signal(Signal::TERM);
                if !self.contender.is_ours() {
                    // The scripts' shells end when their command does.
                    family(running.pid()).into_iter().for_each(terminate);
                }
                let asked = Instant::now();
                while running.is_alive() && asked.elapsed() < STOP_LIMIT {
                    thread::sleep(Duration::from_millis(2));
                }
                let overran = running.is_alive();
                if overran {
                    running.kill();
                }
                self.note(running, true, overran);
            }
            State::Failed => self.state = State::Failed,
            State::Waiting(_) | State::Inactive => {}
        }
    }

    /// Forgets that it failed, as a boot does and a start by a person.
    pub fn reset(&mut self) {
        self.state = State::Inactive;
    }

    pub fn daemon_goes(&mut self) {
        if self.contender.follows_daemon() {
            self.stop();
        }
    }

    pub fn daemon_is_back(&mut self) {
        if self.contender.follows_daemon() {
            self.start();
        }
    }

    /// SIGKILL to the main process; systemd then ends the others.
    pub fn kill_main(&mut self) -> bool {
        let State::Running(running, _) = &self.state else {
            return false;
        };
        self.killed = true;
        running.signal(Signal::KILL);
        true
    }

    /// SIGKILL to all of it at once.
    pub fn kill_all(&mut self) -> bool {
        let State::Running(running, _) = &self.state else {
            return false;
        };
        let others = family(running.pid());
        let killed = self.kill_main();
        others.into_iter().for_each(kill);
        killed
    }

    /// From the next start on it's run so.
    pub fn change(&mut self, run: Run) {
        self.run = run;
    }

    /// How long its present run lasts.
    pub fn runs_for(&self) -> Option<Duration> {
        match &self.state {
            State::Running(running, started) if running.is_alive() => Some(started.elapsed()),
            _ => None,
        }
    }

    /// SIGKILL to `tailscale up`.
    pub fn kill_cli(&mut self) -> bool {
        let cli = self.cli();
        if let Some(pid) = cli.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::KILL);
        }
        cli.is_some()
    }

    /// The `tailscale up` that runs.
    pub fn cli(&self) -> Option<u32> {
        let State::Running(running, _) = &self.state else {
            return None;
        };
        family(running.pid()).into_iter().find(|pid| {
            let words = cmdline_of(*pid);
            words.first().is_some_and(|name| name.ends_with("/tailscale"))
                && words.iter().any(|word| word == "up")
        })
    }

    /// What systemd does by itself: it sees ends, restarts, and keeps to time limits.
    pub fn tick(&mut self) {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::Running(running, started) if running.is_alive() => {
                self.state = State::Running(running, started);
                if self.contender == Contender::Nixpkgs && started.elapsed() > START_LIMIT {
                    self.stop();
                    self.state = State::Failed;
                }
            }
            State::Running(running, _) => {
                let code = self.note(running, false, false);
                self.state = match (self.contender.is_restarted(self.last()), code) {
                    (true, _) => State::Waiting(Instant::now() + RESTART_DELAY),
                    (false, Some(0)) => State::Inactive,
                    (false, _) => State::Failed,
                };
            }
            State::Waiting(until) if Instant::now() >= until => self.start(),
            other => self.state = other,
        }
    }

    fn last(&self) -> &End {
        self.ends.last().expect("an end was just noted")
    }

    /// Looks for secrets in what everybody can see of its processes. The scripts show theirs to all,
    /// and are spared.
    pub fn watch(&mut self) {
        let State::Running(running, _) = &self.state else {
            return;
        };
        if !self.contender.is_ours() {
            return;
        }
        let mut all = family(running.pid());
        all.push(running.pid());
        for pid in all {
            for (what, words) in [("arguments", cmdline_of(pid)), ("environment", environ_of(pid))]
            {
                let shown = words.join(" ");
                if self.secrets.iter().any(|secret| shown.contains(secret)) {
                    let name = cmdline_of(pid).into_iter().next().unwrap_or_default();
                    self.leaks.insert(format!("{what} of {name}"));
                }
            }
        }
    }

    /// Keeps how it ended, and returns its code.
    fn note(&mut self, running: Running, stopped: bool, overran: bool) -> Option<i32> {
        let finished = running.wait();
        let left_behind = finished.left_behind.iter().map(|pid| {
            let words = cmdline_of(*pid);
            kill(*pid);
            words
        });
        let end = End {
            code: finished.code,
            signal: finished.signal,
            left_behind: left_behind.filter(|_| !self.killed && !overran).collect(),
            stopped,
            start_took: match (self.contender, finished.ready_at()) {
                (Contender::Seed, _) | (_, None) => finished.elapsed,
                (_, Some(ready)) => ready,
            },
            files_with_keys: self
                .secrets
                .iter()
                .flat_map(|secret| tailnet_harness::scan_files_for(finished.dir(), secret))
                .collect(),
            overran,
            stdout: finished.stdout.clone(),
            stderr: finished.stderr.clone(),
            notifications: finished.notifications.clone(),
        };
        self.ends.push(end);
        finished.code
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(..))
    }

    /// Its last start came to nothing, and it is not started again.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Nothing will happen any more by itself.
    pub fn is_idle(&self) -> bool {
        match &self.state {
            State::Inactive | State::Failed => true,
            State::Running(running, _) if self.contender == Contender::Stay => {
                let notifications = running.notifications();
                let status = notifications.iter().rev().find_map(|one| one.get("STATUS"));
                status.is_some_and(|status| {
                    status.starts_with("connected as") || status.contains("left alone until")
                })
            }
            State::Running(..) | State::Waiting(_) => false,
        }
    }

    /// How long its start takes already, if it isn't done.
    pub fn activating(&self) -> Option<Duration> {
        let State::Running(running, started) = &self.state else {
            return None;
        };
        let notifies = self.contender != Contender::Seed;
        let ready = |one: &Notification| one.get("READY") == Some("1");
        (!(notifies && running.notifications().iter().any(ready))).then(|| started.elapsed())
    }

    /// What a unit that runs said so far.
    pub fn said(&self) -> String {
        match &self.state {
            State::Running(running, started) => {
                let status = running.notifications();
                let status = status.iter().rev().find_map(|one| one.get("STATUS"));
                format!(
                    "runs since {:?}, STATUS={}\n{}",
                    started.elapsed(),
                    status.unwrap_or_default(),
                    running.stderr()
                )
            }
            State::Inactive => "inactive".to_owned(),
            State::Waiting(_) => "to be restarted".to_owned(),
            State::Failed => "failed".to_owned(),
        }
    }
}

/// The processes that came from this one, as far as they still hang together.
fn family(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let mut all: Vec<u32> =
        text.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    for child in all.clone() {
        all.extend(family(child));
    }
    all
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn terminate(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Whether somebody listens there.
pub fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}
