//! Plays a schedule on real daemons, with systemd's part done by [`Unit`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tailnet_harness::{Cell, KeyFile, KeySpec, Node, Run, Tailnet};

use crate::admin::Admin;
use crate::schedule::{
    Bad, Ending, Fault, Kind, Left, Mistake, Moment, PASSING, Place, Plan, SETTINGS, Scene,
    Schedule,
};
use crate::unit::{Contender, KEY_WAIT_MS, READY_AFTER_MS, Unit, listens};
use crate::verdict::{Outcome, judge};
use crate::watch::Watch;

const TICK: Duration = Duration::from_millis(4);
/// `RestartSec=100ms`, the default, which tailscaled's unit leaves as it is.
const DAEMON_RESTART_DELAY: Duration = Duration::from_millis(100);
/// How long a register is held that comes at a bad time.
const HELD: Duration = Duration::from_millis(600);
/// How long the control server uses the same words, where they change.
const SAME_WORDS: Duration = Duration::from_millis(300);
/// More registers than there will be.
const ALL: u32 = 100_000;
/// How long an event that a fault waits for may stay away.
const EVENT_LIMIT: Duration = Duration::from_millis(4500);
/// How long after the last fault everything has to be well. We wait up to 30 s for several things
/// (a node that was deleted shows nothing of it), and tailscaled up to 30 s between two tries.
const BOUND: Duration = Duration::from_secs(80);
/// How long a start may take when nothing is wrong any more.
pub const HANG: Duration = Duration::from_secs(30);
/// How long a node may take to come online by itself when its unit has done its work.
const BY_ITSELF: Duration = Duration::from_secs(25);

/// What the key file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Absent,
    Text(String),
}

/// What became of the node in a while without faults.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    pub online: bool,
    pub state: String,
    pub took: Duration,
    /// The start of the unit didn't end.
    pub hangs: bool,
    /// The unit was at work to the end.
    pub at_work: bool,
    /// Why it need not be online.
    pub excuse: Option<&'static str>,
}

/// A fault and how far it is.
struct Pending {
    fault: Fault,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    Active(Instant),
    Over,
}

pub struct World<'a> {
    pub schedule: &'a Schedule,
    pub contender: Contender,
    pub unit: Unit,
    pub watch: Watch,
    pub admin: Admin,
    pub node: Arc<Node>,
    pub tailnet: Arc<Tailnet>,
    pub file: KeyFile,
    cell: Option<Cell>,
    pending: Vec<Pending>,
    /// What the file holds when no fault has changed it.
    pub content: Content,
    pub shown: Content,
    /// Every key that was good when it was put into the file.
    pub good_keys: Vec<String>,
    dead_key: String,
    /// The tailnet of the second profile, or that of a login server that is a mistake.
    pub other: Option<Tailnet>,
    profiles: Option<Profiles>,
    /// What the program remembers.
    pub record: PathBuf,
    /// The last dead or good key that a run has ended over, and how often it had been tried then on
    /// either tailnet.
    pub refused: Vec<(String, [u64; 2])>,
    second_run: Option<Run>,
    pub reconfigured: Option<Instant>,
    record_seen: Option<Instant>,
    failing: Failing,
    started: bool,
    ends_heard: usize,
    control: &'static str,
    held: bool,
    link_down: bool,
    disk: Option<Kind>,
    frozen: bool,
    daemon: Daemon,
    cli_seen: Option<Instant>,
    pub began: Instant,
    pub story: Vec<(Instant, String)>,
    /// What happened that could cost tailscale a key: from when to when.
    pub burning: Vec<(Instant, Instant)>,
    pub fired: Vec<Kind>,
}

/// Two profiles of a node, and what the second is to be like.
struct Profiles {
    first: String,
    second: String,
    prefs: Value,
}

/// What the control server answers to registers with a key.
#[derive(Clone, Copy, Default, PartialEq)]
enum Failing {
    #[default]
    No,
    Words(usize),
    Status(u16),
}

#[derive(Clone, Copy, PartialEq)]
enum Daemon {
    Off,
    /// To be started then.
    Down(Instant),
    /// Its socket is not there yet.
    Starting,
    Up,
}

/// Plays `schedule` with `contender`; `program` is ours.
pub fn play(schedule: &Schedule, contender: Contender, program: &Path) -> Outcome {
    let began = Instant::now();
    let mut world = World::set(schedule, contender, program);
    world.tell("start");
    world.run_faults();
    world.lift();
    let first = world.settle(true);
    let touched = world.switch_back();
    world.end(&first);
    let second = world.settle(false);
    let quiet = world.is_quiet();
    judge(&mut world, &first, &second, quiet, touched, began.elapsed())
}

impl<'a> World<'a> {
    /// Sets the scene, up to the moment before the start.
    fn set(schedule: &'a Schedule, contender: Contender, program: &Path) -> Self {
        let cell = (schedule.place != Place::Host).then(Cell::new);
        let tailnet = match &cell {
            Some(cell) => Tailnet::start_linked(cell),
            None => Tailnet::start(),
        };
        let mut builder = Node::builder();
        if let Some(cell) = &cell {
            builder = builder.cell(cell);
        }
        let node = builder.create();
        if let (Some(cell), Place::OwnDisk) = (&cell, schedule.place) {
            cell.mount(&node.state_dir());
        }

        let good = tailnet.key(&KeySpec { reusable: schedule.reusable, ..KeySpec::default() });
        let dead =
            |start: &str| format!("hskey-auth-{start}6789ab-") + &"0123456789abcdef".repeat(3);
        let (unknown, admins) = (dead("012345"), dead("987654"));
        let mut good_keys = Vec::new();
        let joined = tailnet.single_use_key();
        let content = match schedule.scene {
            Scene::Fresh | Scene::Renewal { .. } => {
                good_keys.push(good.clone());
                Content::Text(good)
            }
            Scene::Reboot(Left::Used) | Scene::Stopped { .. } => Content::Text(joined.clone()),
            Scene::Reboot(Left::Absent) | Scene::Hopeless(Bad::Missing) => Content::Absent,
            Scene::Reboot(Left::Unknown) | Scene::Hopeless(Bad::Unknown) => {
                Content::Text(unknown.clone())
            }
            Scene::Hopeless(bad) => {
                match bad {
                    Bad::Revoked => tailnet.revoke_key(&good),
                    Bad::Expired => tailnet.expire_key(&good),
                    _ => {}
                }
                Content::Text(match bad {
                    Bad::Empty => String::new(),
                    Bad::TwoLines => format!("{good}\n{good}\n"),
                    _ => good,
                })
            }
        };

        let has_other = schedule.profiles || schedule.plan == Plan::Corrected(Mistake::OtherServer);
        let other = has_other.then(Tailnet::start);
        let fresh = matches!(schedule.scene, Scene::Fresh | Scene::Hopeless(_));
        if !fresh || !schedule.settings.is_empty() {
            node.launch();
        }
        if !fresh {
            node.join_with(&tailnet, &[&format!("--auth-key={joined}")]);
        }
        for number in &schedule.settings {
            node.tailscale_ok(["set", SETTINGS[*number].flag]);
        }
        let id = (!fresh).then(|| tailnet.device_id(&node));
        let profiles = schedule
            .profiles
            .then(|| Profiles::make(&node, other.as_ref().expect("it was started")));
        if matches!(schedule.scene, Scene::Stopped { .. }) {
            node.tailscale_ok(["down"]);
        }
        // A daemon that has never logged in keeps what is set in memory only.
        let live = match schedule.scene {
            Scene::Stopped { boot } => !boot,
            Scene::Renewal { live, .. } => live,
            Scene::Fresh | Scene::Hopeless(_) => node.is_alive(),
            Scene::Reboot(_) => false,
        };
        if !live && node.is_alive() {
            node.terminate();
        }
        if let (Scene::Renewal { deleted, .. }, Some(id)) = (schedule.scene, id) {
            if deleted {
                tailnet.delete(id);
            } else {
                tailnet.expire(id);
            }
        }

        let file = KeyFile::absent();
        let content_at_first = match schedule.plan {
            Plan::Corrected(Mistake::DeadKey) => Content::Text(unknown.clone()),
            _ => content.clone(),
        };
        let record = match &cell {
            Some(cell) if schedule.place == Place::OwnDisk && schedule.record_on_disk => {
                cell.inside(&node.state_dir()).join("autoconnect")
            }
            _ => node.dir().join("autoconnect"),
        };
        fs::create_dir(&record).expect("a folder of our own");
        let run = |is_second| {
            let other = other.as_ref();
            run_of(schedule, contender, program, &tailnet, other, &node, &file, &record, is_second)
        };
        let changes = matches!(schedule.plan, Plan::OtherFlags | Plan::Corrected(_));
        let unit = Unit::new(contender, run(false));
        let second_run = changes.then(|| run(true));
        let (node, tailnet) = (Arc::new(node), Arc::new(tailnet));
        let disk = schedule.place == Place::OwnDisk;
        let admin = Admin::new(
            Arc::clone(&node),
            tailnet.url(),
            &admins,
            &schedule.settings,
            disk,
            profiles.as_ref().map(|profiles| profiles.second.clone()),
        );
        let mut world = Self {
            schedule,
            contender,
            unit,
            watch: Watch::start(&tailnet),
            admin,
            node,
            tailnet,
            file,
            cell,
            pending: schedule
                .faults
                .iter()
                .map(|fault| Pending { fault: *fault, stage: Stage::Waiting })
                .collect(),
            content: content_at_first.clone(),
            shown: Content::Absent,
            good_keys,
            dead_key: unknown,
            other,
            profiles,
            record,
            refused: Vec::new(),
            second_run,
            reconfigured: None,
            record_seen: None,
            failing: Failing::No,
            started: false,
            ends_heard: 0,
            control: "none",
            held: false,
            link_down: false,
            disk: None,
            frozen: false,
            daemon: if live { Daemon::Up } else { Daemon::Off },
            cli_seen: None,
            began: Instant::now(),
            story: Vec::new(),
            burning: Vec::new(),
            fired: Vec::new(),
        };
        if let Content::Text(text) = &content {
            text.lines().for_each(|line| world.unit.keep_secret(line));
        }
        world.unit.keep_secret(&world.dead_key);
        world.show_secret();
        world
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.story.push((Instant::now(), what.into()));
    }

    /// From the start until the last fault is over.
    fn run_faults(&mut self) {
        self.began = Instant::now();
        // Those that are there from the start.
        self.look_at_faults();
        if self.daemon == Daemon::Off {
            self.daemon = Daemon::Down(Instant::now());
        } else {
            self.start();
        }
        while self.pending.iter().any(|one| one.stage != Stage::Over) || !self.started {
            self.tick();
            if self.daemon == Daemon::Up && !self.started {
                // At boot, each of them comes after tailscaled.
                self.start();
            }
            self.look_at_faults();
            thread::sleep(TICK);
        }
    }

    fn start(&mut self) {
        self.unit.start();
        self.started = true;
    }

    fn look_at_faults(&mut self) {
        let now = Instant::now();
        if self.cli_seen.is_none() && self.unit.cli().is_some() {
            self.cli_seen = Some(now);
        }
        if self.record_seen.is_none() {
            self.record_seen = match self.contender {
                Contender::Ours | Contender::Stay => self.records().next().map(|_| now),
                _ => self.cli_seen,
            };
        }
        self.kill_again();
        let seen = self.watch.seen();
        let mut changed = false;
        for at in 0..self.pending.len() {
            let Pending { fault, stage } = self.pending[at];
            let stage = match stage {
                Stage::Waiting => {
                    let due = match fault.at {
                        Moment::After(time) => Some(self.began + time),
                        Moment::CliRuns(time) => self.cli_seen.map(|seen| seen + time),
                        Moment::RegisterSeen(time) => seen.first_register.map(|seen| seen + time),
                        Moment::RecordSeen(time) => self.record_seen.map(|seen| seen + time),
                        Moment::KeyUsed(time) => seen.all_uses.first().map(|seen| *seen + time),
                    };
                    let never = now > self.began + EVENT_LIMIT;
                    match due {
                        Some(due) if now >= due => {
                            changed = true;
                            self.begin(&fault, never)
                        }
                        // Without it nothing goes on.
                        None if never && fault.kind == Kind::Reconfigured => {
                            changed = true;
                            self.begin(&fault, never)
                        }
                        None if never => Stage::Over,
                        _ => Stage::Waiting,
                    }
                }
                Stage::Active(until) if now >= until => {
                    changed = true;
                    self.tell(format!("over: {}", fault.kind));
                    if fault.kind.can_burn() {
                        self.burning.push((until - fault.lasts, now));
                    }
                    Stage::Over
                }
                other => other,
            };
            self.pending[at].stage = stage;
        }
        let words_change = self.is_active(Kind::WordsChange);
        if changed || words_change {
            self.apply();
        }
    }

    fn is_active(&self, kind: Kind) -> bool {
        let of_kind = |one: &Pending| one.fault.kind == kind;
        let mut active = self.pending.iter().filter(|one| matches!(one.stage, Stage::Active(_)));
        active.any(of_kind)
    }

    /// Kills a run that is old enough, while each is killed.
    fn kill_again(&mut self) {
        let active = self.pending.iter().filter(|one| matches!(one.stage, Stage::Active(_)));
        let after = active.filter_map(|one| match one.fault.kind {
            Kind::UnitKilledAgain(ms) => Some(Duration::from_millis(ms)),
            _ => None,
        });
        let after = after.min();
        if self.unit.runs_for().is_some_and(|time| after.is_some_and(|after| time >= after)) {
            self.unit.kill_all();
        }
    }

    /// The records of logins that the program keeps.
    pub fn records(&self) -> impl Iterator<Item = PathBuf> {
        let files = fs::read_dir(&self.record).into_iter().flatten().flatten();
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|is| is == "json"))
    }

    /// Lets a fault begin; those that last are brought about by [`Self::apply`].
    fn begin(&mut self, fault: &Fault, never: bool) -> Stage {
        let now = Instant::now();
        let happened = match fault.kind {
            Kind::CliKilled => {
                let killed = self.unit.kill_cli();
                if !killed && !never {
                    // It is killed when it runs.
                    return Stage::Waiting;
                }
                killed
            }
            Kind::UnitKilled => self.unit.kill_main(),
            Kind::UnitAndCliKilled => self.unit.kill_all(),
            Kind::PowerCut => {
                self.unit.kill_all();
                self.node.kill();
                self.daemon_fell();
                true
            }
            Kind::UnitRestarted => {
                self.unit.stop();
                self.unit.reset();
                self.start_if_begun();
                true
            }
            Kind::Reconfigured => {
                self.reconfigure();
                true
            }
            Kind::DaemonKilled if self.node.is_alive() => {
                self.node.kill();
                self.daemon_fell();
                true
            }
            Kind::DaemonRestarted if self.node.is_alive() => {
                self.unit.daemon_goes();
                self.terminate_daemon();
                self.daemon = Daemon::Down(Instant::now());
                true
            }
            Kind::DaemonKilled | Kind::DaemonRestarted => false,
            Kind::RateLimited(count) => {
                let limit = serde_json::json!({"count": count, "retry_after_s": 1});
                self.tailnet.policy(serde_json::json!({ "rate_limit": limit }));
                true
            }
            Kind::SecretTurned => {
                self.shown = Content::Absent;
                true
            }
            Kind::SecretRenewed => {
                let key = self
                    .tailnet
                    .key(&KeySpec { reusable: self.schedule.reusable, ..KeySpec::default() });
                self.unit.keep_secret(&key);
                self.good_keys.push(key.clone());
                self.content = Content::Text(key);
                true
            }
            Kind::RegistersFail(count, words) => {
                self.fail_registers(u32::from(count), PASSING[words], 0);
                true
            }
            command if command.is_admins() => {
                self.admin.does(command);
                true
            }
            _ => true,
        };
        let what = if happened { "fault" } else { "no occasion" };
        self.tell(format!("{what}: {}", fault.kind));
        if happened {
            self.fired.push(fault.kind);
        }
        if fault.kind.lasts() {
            return Stage::Active(now + fault.lasts);
        }
        if fault.kind.can_burn() && happened {
            self.burning.push((now, Instant::now()));
        }
        Stage::Over
    }

    fn start_if_begun(&mut self) {
        // Before that it is not its turn.
        if self.started {
            self.unit.start();
        }
    }

    /// As after a change of the system's configuration.
    fn reconfigure(&mut self) {
        let Some(run) = self.second_run.take() else {
            return;
        };
        self.unit.stop();
        self.unit.reset();
        self.unit.change(run);
        if self.schedule.plan == Plan::Corrected(Mistake::DeadKey)
            && let Some(key) = self.good_keys.last()
        {
            self.content = Content::Text(key.clone());
            self.show_secret();
        }
        self.reconfigured = Some(Instant::now());
        self.start_if_begun();
    }

    fn fail_registers(&self, count: u32, words: &str, status: u16) {
        self.tailnet.policy(serde_json::json!({
            "fail_registers": {"count": count, "error": words},
            "refusal_status": status,
        }));
    }

    /// Makes the world what the faults that are active say.
    fn apply(&mut self) {
        let active: Vec<Kind> = self
            .pending
            .iter()
            .filter(|one| matches!(one.stage, Stage::Active(_)))
            .map(|one| one.fault.kind)
            .collect();

        let mut controls = active.iter().filter_map(|kind| match kind {
            Kind::Control(fault) => Some(*fault),
            _ => None,
        });
        let control = controls.next_back().unwrap_or("none");
        if control != self.control {
            self.tailnet.fault(control);
            self.control = control;
        }

        let held = active.contains(&Kind::RegistersHeld);
        if held != self.held {
            let delay = if held { HELD.as_millis() } else { 0 };
            self.tailnet.policy(serde_json::json!({ "register_delay_ms": delay }));
            self.held = held;
        }

        let mut failing = active.iter().filter_map(|kind| match kind {
            Kind::WordsChange => {
                let turn = self.began.elapsed().as_millis() / SAME_WORDS.as_millis();
                Some(Failing::Words(turn as usize))
            }
            Kind::RegisterStatus(status) => Some(Failing::Status(*status)),
            _ => None,
        });
        let failing = failing.next_back().unwrap_or_default();
        if failing != self.failing {
            match failing {
                Failing::No => self.fail_registers(0, "", 0),
                // No two are the same.
                Failing::Words(turn) => {
                    let words = format!("{} (turn {turn})", PASSING[turn % PASSING.len()]);
                    self.fail_registers(ALL, &words, 0);
                }
                Failing::Status(status) => self.fail_registers(ALL, "not now", status),
            }
            self.failing = failing;
        }

        if let Some(cell) = &self.cell {
            let down = active.contains(&Kind::LinkDown);
            match (self.link_down, down) {
                (false, true) => cell.link_down(),
                (true, false) => cell.link_up(),
                _ => {}
            }
            self.link_down = down;
            let state = self.node.state_dir();
            let disks = [Kind::DiskFull, Kind::DiskReadOnly];
            let disk = active.iter().copied().rfind(|kind| disks.contains(kind));
            if disk != self.disk {
                match self.disk {
                    Some(Kind::DiskFull) => cell.make_room(&state),
                    Some(_) => {
                        cell.read_only(&state, false);
                    }
                    None => {}
                }
                match disk {
                    Some(Kind::DiskFull) => cell.fill(&state),
                    Some(_) => {
                        let done = cell.read_only(&state, true);
                        if !done {
                            self.story.push((Instant::now(), "not made read-only: in use".into()));
                        }
                    }
                    None => {}
                }
                self.disk = disk;
            }
        }

        let frozen = active.contains(&Kind::DaemonFrozen);
        if frozen != self.frozen {
            if self.node.is_alive() {
                if frozen {
                    self.node.pause();
                } else {
                    self.node.resume();
                }
            }
            self.frozen = frozen;
        }
        self.show_secret();
    }

    /// Puts into the key file what is to be there.
    fn show_secret(&mut self) {
        let mut changes = self.pending.iter().filter_map(|one| {
            matches!(one.stage, Stage::Active(_)).then_some(())?;
            match one.fault.kind {
                Kind::SecretAbsent => Some(Content::Absent),
                Kind::SecretEmpty => Some(Content::Text(String::new())),
                Kind::SecretDead => Some(Content::Text(self.dead_key.clone())),
                _ => None,
            }
        });
        let wanted = changes.next_back().unwrap_or_else(|| self.content.clone());
        if wanted == self.shown {
            return;
        }
        match &wanted {
            Content::Absent => self.file.remove(),
            Content::Text(text) => self.file.swap(text),
        }
        self.shown = wanted;
    }

    /// What happens by itself: systemd's work.
    fn tick(&mut self) {
        match self.daemon {
            Daemon::Down(until) if Instant::now() >= until => {
                self.unit.daemon_goes();
                if !self.has_joined() {
                    self.admin.forget();
                }
                // What is left of the old one.
                self.node.kill();
                self.node.launch_only();
                self.daemon = Daemon::Starting;
            }
            Daemon::Starting | Daemon::Up if !self.node.is_alive() => {
                self.tell("tailscaled ended by itself");
                self.daemon_fell();
            }
            Daemon::Starting if listens(self.node.socket()) => {
                self.daemon = Daemon::Up;
                self.unit.daemon_is_back();
            }
            _ => {}
        }
        self.unit.tick();
        self.unit.watch();
        self.hear_ends();
    }

    /// What is to be known of each end of the unit in its own time.
    fn hear_ends(&mut self) {
        for at in self.ends_heard..self.unit.ends.len() {
            self.ends_heard = at + 1;
            let end = &self.unit.ends[at];
            let is_about_key = end.code == Some(77) && !end.stderr.contains("--advertise-tags");
            if let Content::Text(key) = &self.shown
                && is_about_key
            {
                self.refused.push((key.clone(), self.attempts(key)));
            }
            let end = &self.unit.ends[at];
            let last = end.stderr.lines().last().unwrap_or_default();
            let how = format!("the unit ended: {:?} {:?}: {last}", end.code, end.signal);
            self.story.push((Instant::now(), how));
        }
    }

    /// How often a key was tried on each tailnet.
    pub fn attempts(&self, key: &str) -> [u64; 2] {
        let on = |tailnet: &Tailnet| tailnet.state().key(key).attempts;
        [on(&self.tailnet), self.other.as_ref().map_or(0, on)]
    }

    /// Whether the node has been on a tailnet, and had the time to save that.
    fn has_joined(&self) -> bool {
        let new = matches!(self.schedule.scene, Scene::Fresh | Scene::Hopeless(_));
        let online = self.watch.seen().first_online;
        !new || online.is_some_and(|at| at.elapsed() > DAEMON_RESTART_DELAY * 3)
    }

    fn daemon_fell(&mut self) {
        self.daemon = Daemon::Down(Instant::now() + DAEMON_RESTART_DELAY);
    }

    /// SIGTERM, and SIGKILL if that takes too long.
    fn terminate_daemon(&mut self) {
        if self.node.is_alive() {
            let pid = Pid::from_raw(self.node.pid().cast_signed());
            for signal in [Signal::TERM, Signal::CONT] {
                let _ = pid.map(|pid| kill_process(pid, signal));
            }
            let asked = Instant::now();
            while self.node.is_alive() && asked.elapsed() < Duration::from_secs(3) {
                thread::sleep(TICK);
            }
        }
        self.node.kill();
    }

    /// Ends all faults, and the admin's work.
    fn lift(&mut self) {
        let now = Instant::now();
        for one in &mut self.pending {
            one.stage = Stage::Over;
        }
        self.apply();
        self.tailnet.policy(serde_json::json!({"rate_limit": {"count": 0, "retry_after_s": 0}}));
        self.fail_registers(0, "", 0);
        self.admin.finish();
        while self.admin.is_busy() && now.elapsed() < Duration::from_secs(20) {
            self.tick();
            thread::sleep(TICK);
        }
        self.tell("all faults are over");
    }

    /// Uses the first profile again. Returns what has become of the second.
    fn switch_back(&mut self) -> Option<String> {
        let profiles = self.profiles.as_ref().filter(|_| self.admin.said().switched)?;
        let mut touched = None;
        let current = current_profile(&self.node);
        // The daemon may have been away when it was asked.
        if current.as_ref() == Some(&profiles.second)
            && let Some(prefs) = self.prefs().map(settings_of)
            && prefs != profiles.prefs
        {
            touched = Some(format!("the second profile was {}, and is {prefs}", profiles.prefs));
        }
        let (first, node) = (profiles.first.clone(), Arc::clone(&self.node));
        self.tell("back to the first profile");
        let path = format!("/localapi/v0/profiles/{first}");
        let switched = node.local_request("POST", &path, None);
        if !switched.is_ok_and(|reply| reply.status == 204) {
            touched.get_or_insert("the first profile cannot be used again".to_owned());
        }
        touched
    }

    /// One more start, as after a boot or by a person.
    fn end(&mut self, first: &Settled) {
        let ending = match first.excuse {
            Some(NO_STORE) => Ending::Boot,
            _ => self.schedule.ending,
        };
        match ending {
            Ending::Boot => {
                self.tell("boot");
                self.unit.stop();
                self.unit.reset();
                self.terminate_daemon();
                self.daemon = Daemon::Down(Instant::now());
                while self.daemon != Daemon::Up {
                    self.tick();
                    thread::sleep(TICK);
                }
            }
            Ending::Restart => {
                self.tell("restart of the unit");
                self.unit.stop();
                self.unit.reset();
            }
        }
        self.unit.start();
    }

    /// Waits until all is well, or will not be.
    fn settle(&mut self, first: bool) -> Settled {
        let since = Instant::now();
        let ends_before = self.unit.ends.len();
        let mut looked = since;
        let mut idle_since = None;
        let mut well = 0;
        let mut settled = Settled::default();
        loop {
            self.tick();
            thread::sleep(TICK);
            let now = Instant::now();
            let idle = self.unit.is_idle();
            idle_since = idle_since.filter(|_| idle).or(idle.then_some(now));
            if now - looked < Duration::from_millis(60) {
                continue;
            }
            looked = now;
            let status = self.status();
            settled.online = status.as_ref().is_some_and(|status| self.is_online(status));
            settled.state = describe(status.as_ref());
            settled.took = now - since;
            let idle_for = idle_since.map_or(Duration::ZERO, |since| now - since);

            well = if settled.online && idle { well + 1 } else { 0 };
            // Looked at twice more: what a dead key does shows a little later.
            if well >= 3 {
                return settled;
            }
            if let Scene::Hopeless(_) = self.schedule.scene {
                let tried = first || self.unit.ends.len() > ends_before;
                let waits = !self.unit.is_running() && (!first || !self.unit.ends.is_empty());
                if tried && waits {
                    return settled;
                }
            }
            settled.excuse = first.then(|| self.excuse(&settled)).flatten();
            let patience = match settled.excuse {
                Some(_) => Duration::from_secs(2),
                None if self.unit.has_failed() => BY_ITSELF / 2,
                None => BY_ITSELF,
            };
            let given_up = idle_for > patience
                || [Some(STOPPED), Some(NO_STORE)].contains(&settled.excuse)
                    && settled.took > Duration::from_secs(4)
                || settled.took > BOUND;
            settled.at_work = !idle;
            settled.hangs = self.unit.activating().is_some_and(|time| time > HANG);
            if given_up || settled.hangs {
                return settled;
            }
        }
    }

    /// Whether the node is on its tailnet.
    ///
    /// After two logins close to each other tailscaled may say for a minute that it is offline: the
    /// end of the first login's map poll is taken for the end of all (`health.SetOutOfPollNetMap`,
    /// v1.98.10). Then the control server knows better.
    fn is_online(&self, status: &Value) -> bool {
        Node::is_online(status)
            || status["BackendState"] == "Running"
                && status["AuthURL"] == ""
                && [Some(&*self.tailnet), self.other.as_ref()]
                    .into_iter()
                    .flatten()
                    .any(|tailnet| tailnet.device(&self.node).is_some_and(|device| device.online))
    }

    /// Why the node need not be online before the next start.
    fn excuse(&self, settled: &Settled) -> Option<&'static str> {
        let said = self.admin.said();
        let last = self.unit.ends.last();
        let refused = last.is_some_and(|end| end.code == Some(77));
        if said.down && settled.state.starts_with("Stopped") {
            return Some(STOPPED);
        }
        // It says so itself: only a restart of tailscaled helps when it has found its disk full.
        if settled.state.contains("State store failed to initialize") {
            return Some(NO_STORE);
        }
        if said.dead_key && self.unit.is_idle() {
            return Some("an admin sent a dead key");
        }
        if self.fired.contains(&Kind::SecretDead) && refused && self.unit.is_idle() {
            return Some("a dead key was in the file and was refused");
        }
        None
    }

    /// Where no key is good, nothing is sent any more.
    fn is_quiet(&mut self) -> bool {
        if !matches!(self.schedule.scene, Scene::Hopeless(_)) {
            return true;
        }
        let before = self.tailnet.state().registers.with_key;
        // A daemon that goes on with a dead key sends it every second at first.
        thread::sleep(Duration::from_secs(2));
        self.tailnet.state().registers.with_key == before
    }

    pub fn status(&self) -> Option<Value> {
        let reply = self.node.local_get("/localapi/v0/status?peers=false").ok()?;
        (reply.status == 200).then(|| serde_json::from_slice(&reply.body).ok())?
    }

    pub fn prefs(&self) -> Option<Value> {
        let reply = self.node.local_get("/localapi/v0/prefs").ok()?;
        (reply.status == 200).then(|| serde_json::from_slice(&reply.body).ok())?
    }
}

const NO_STORE: &str = "tailscaled works without a disk until it is restarted";
const STOPPED: &str = "`tailscale down` was the last word";

fn describe(status: Option<&Value>) -> String {
    let Some(status) = status else {
        return "no answer".to_owned();
    };
    format!(
        "{} (online {}, AuthURL {}, node key {}, Health {})",
        status["BackendState"].as_str().unwrap_or_default(),
        status["Self"]["Online"],
        status["AuthURL"],
        status["HaveNodeKey"],
        status["Health"]
    )
}

impl Profiles {
    /// Adds a second profile on the tailnet `other` to a node that has joined one.
    fn make(node: &Node, other: &Tailnet) -> Self {
        let id = || current_profile(node).expect("tailscaled answers");
        let first = id();
        let made = node.local_request("PUT", "/localapi/v0/profiles/", None);
        assert_eq!(made.expect("tailscaled answers").status, 201);
        node.join_with(other, &["--hostname=another"]);
        let (second, prefs) = (id(), settings_of(node.prefs()));
        let path = format!("/localapi/v0/profiles/{first}");
        let switched = node.local_request("POST", &path, None);
        assert_eq!(switched.expect("tailscaled answers").status, 204);
        node.wait_online();
        Self { first, second, prefs }
    }
}

fn current_profile(node: &Node) -> Option<String> {
    let reply = node.local_get("/localapi/v0/profiles/current").ok()?;
    Some(reply.json()["ID"].as_str()?.to_owned())
}

/// What an admin sees of preferences.
fn settings_of(mut prefs: Value) -> Value {
    if let Some(prefs) = prefs.as_object_mut() {
        prefs.remove("Config");
        prefs.remove("InternalExitNodePrior");
    }
    prefs
}

/// The flags of the first and of the second configuration. They set nothing that an admin sets.
pub fn flags_of(plan: Plan, is_second: bool) -> &'static [&'static str] {
    match (plan, is_second) {
        (Plan::Plain, _) => &[],
        (Plan::Corrected(Mistake::Tag), false) => {
            &["--operator=daemon", "--ssh", "--advertise-tags=tag:mistake"]
        }
        (_, false) => &["--operator=daemon", "--ssh"],
        (_, true) => &["--operator=nobody", "--advertise-routes=10.2.0.0/16"],
    }
}

/// How each of them is run on this node.
#[allow(clippy::too_many_arguments)]
fn run_of(
    schedule: &Schedule,
    contender: Contender,
    program: &Path,
    tailnet: &Tailnet,
    other: Option<&Tailnet>,
    node: &Node,
    file: &KeyFile,
    record: &Path,
    is_second: bool,
) -> Run {
    let server = match schedule.plan {
        Plan::Corrected(Mistake::NoServer) if !is_second => "http://127.0.0.1:1",
        Plan::Corrected(Mistake::OtherServer) if !is_second => other.expect("it was started").url(),
        _ => tailnet.url(),
    };
    let flags = flags_of(schedule.plan, is_second);
    let run = match contender {
        Contender::Ours | Contender::Stay => {
            let run = Run::new(program)
                .node(node)
                .cli()
                .env("STATE_DIRECTORY", record)
                .authkey_file(file.path())
                .arg("-vv")
                .args(["--authkey-wait", &format!("{KEY_WAIT_MS}ms")])
                .args(["--ready-after", &format!("{READY_AFTER_MS}ms")])
                .args((contender == Contender::Stay).then_some("--stay"))
                .up_flags(flags);
            match schedule.profiles {
                // Each profile has its own.
                true => run,
                false => run.login_server(server),
            }
        }
        Contender::Seed | Contender::Nixpkgs => {
            let script = format!("tests/peers/{}.sh", contender.name());
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
            Run::new("bash")
                .env("PATH", node.path())
                .arg(script)
                .arg(file.path())
                .arg(format!("--login-server={server}"))
                .args(flags)
        }
    };
    run.limit(Duration::from_secs(10))
}
