//! A small world that answers the actions of a machine: tailscaled, two control servers, the
//! `tailscale` command, the key file, an admin and faults, as far as they matter to the policy. Nobody
//! switches to another profile here.

use fastrand::Rng;
use serde_json::{Value, json};

use super::chance::{OTHER, OWN, once_in, one};
use super::*;
use crate::flags;
use crate::key::KeyKind;
use crate::samples::REFUSAL;

const DOWN: &str = "fetch control key: dial tcp: connect: connection refused";

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A node as its control server knows it.
#[derive(Clone, Debug)]
pub struct Node {
    server: String,
    valid: bool,
    approved: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Profile {
    id: String,
    pub prefs: Prefs,
    /// As they would be if there were no login of ours that has not succeeded.
    pub wanted: Prefs,
    node: Option<Node>,
    has_map: bool,
}

#[derive(Clone, Debug)]
pub struct Server {
    url: &'static str,
    up: bool,
    errs: Option<&'static str>,
    asks_admin: bool,
}

/// An auth key, of both servers.
#[derive(Clone, Debug)]
pub struct Secret {
    dead: bool,
    single_use: bool,
    used: bool,
}

/// A key that tailscaled holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    secret: usize,
    pub ours: bool,
    since: Time,
    /// It has let the node in, and is not sent again but by another start.
    spent: bool,
}

struct Command {
    secret: usize,
    flags: Vec<String>,
    /// When it comes to tailscaled. None: never.
    at: Option<Time>,
    has_begun: bool,
    /// How it ends instead.
    ends: Option<Ended>,
}

#[derive(Default)]
struct Bus {
    refused: bool,
    open: bool,
    has_told: bool,
    queue: Vec<Prefs>,
    rings: bool,
    running: bool,
}

pub struct World {
    pub now: Time,
    rng: Rng,
    pub setup: Setup,
    version: &'static str,
    pub up: bool,
    comes_up: Time,
    pub profiles: Vec<Profile>,
    current: usize,
    pub held: Option<Held>,
    pub error: Option<&'static str>,
    asks: bool,
    pub online: bool,
    next_try: Time,
    servers: Vec<Server>,
    secrets: Vec<Secret>,
    /// Which key the file holds.
    file: Option<usize>,
    file_is_locked: bool,
    command: Option<Command>,
    command_ended: Option<Ended>,
    /// How the next command ends.
    fault: Option<Ended>,
    bus: Bus,
    pub store: Record,
    /// tailscaled gives odd answers.
    is_odd: bool,
    nodes: u32,
    /// What somebody has done that may be in the way, or made it impossible to keep all settings.
    pub was_stopped: bool,
    /// As they were told last to the program.
    pub known: Option<Prefs>,
    pub was_disturbed: bool,
    pub seen: Option<Situation>,
    /// What the bus has told before the preferences were read.
    pub told_before: Option<Notice>,
    pub kills: bool,
}

fn fresh_prefs() -> Prefs {
    let prefs = json!({
        "ControlURL": "", "WantRunning": false, "LoggedOut": true, "RunSSH": false, "ShieldsUp": false,
        "RunWebClient": false, "Hostname": "", "RouteAll": false, "AdvertiseRoutes": null,
        "Config": { "NodeID": "" },
    });
    serde_json::from_value(prefs).expect("an object")
}

/// The settings alone.
pub fn settings(prefs: &Prefs) -> Prefs {
    let mut settings = prefs.clone();
    for name in ["ControlURL", "WantRunning", "LoggedOut", "Config"] {
        settings.remove(name);
    }
    settings
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let server = |url| Server { url, up: true, errs: None, asks_admin: false };
        let mut servers = vec![server(OWN), server(OTHER)];
        for server in &mut servers {
            server.up = !once_in(&mut rng, 4);
            server.asks_admin = once_in(&mut rng, 8);
        }
        let mut prefs = fresh_prefs();
        let mut node = None;
        let is_known = rng.bool();
        if is_known {
            node = Some(Node { server: OWN.into(), valid: !once_in(&mut rng, 3), approved: true });
            prefs.insert("ControlURL".into(), json!(OWN));
            prefs.insert("WantRunning".into(), json!(!once_in(&mut rng, 6)));
            prefs.insert("LoggedOut".into(), json!(false));
            prefs.insert("Config".into(), json!({ "NodeID": "n0" }));
        }
        for (name, value) in [
            ("RunSSH", json!(true)),
            ("RunWebClient", json!(true)),
            ("Hostname", json!("box")),
            ("AdvertiseRoutes", json!(["10.0.0.0/8"])),
        ] {
            if once_in(&mut rng, 3) {
                prefs.insert(name.into(), value);
            }
        }
        let asked = match is_known {
            true => one(&mut rng, &[None, None, Some(OWN), Some(OTHER)]),
            false => Some(OWN),
        };
        let flags = chance::flags(&mut rng);
        let id = if is_known { "a" } else { "" };
        let mut fresh = Profile { prefs: fresh_prefs(), ..Profile::default() };
        fresh.wanted = fresh.prefs.clone();
        let profile = Profile {
            id: id.into(),
            wanted: prefs.clone(),
            prefs,
            node,
            has_map: is_known && once_in(&mut rng, 3),
        };
        let secret = |dead, single_use| Secret { dead, single_use, used: false };
        Self {
            now: Time::ZERO,
            setup: Setup {
                server: asked.map(str::to_owned),
                flags,
                key_file: "/k".into(),
                authkey_wait: Duration::from_secs(300),
                ..Setup::default()
            },
            version: one(&mut rng, &["1.66.4", "1.80.3", "1.98.10", "1.102.5"]),
            up: !once_in(&mut rng, 4),
            comes_up: ms(rng.u64(..3000)),
            profiles: vec![profile, fresh],
            current: 0,
            held: None,
            error: None,
            asks: false,
            online: false,
            next_try: Time::ZERO,
            servers,
            // The first one is in the file; the last one is a good one for the end.
            secrets: vec![
                secret(once_in(&mut rng, 5), rng.bool()),
                secret(false, rng.bool()),
                secret(true, false),
                secret(false, false),
            ],
            file: (!once_in(&mut rng, 6)).then_some(0),
            file_is_locked: once_in(&mut rng, 8),
            command: None,
            command_ended: None,
            fault: None,
            bus: Bus { refused: once_in(&mut rng, 8), ..Bus::default() },
            store: Record { salt: [1; 16], ..Record::default() },
            is_odd: false,
            nodes: 0,
            was_stopped: false,
            known: None,
            was_disturbed: false,
            seen: None,
            told_before: None,
            kills: false,
            rng,
        }
    }

    /// Whether each change of the preferences was told, so that nothing had to be guessed.
    pub fn has_told_all(&self) -> bool {
        !self.was_disturbed && !self.bus.refused
    }

    pub fn profile(&self) -> &Profile {
        &self.profiles[self.current]
    }

    fn profile_mut(&mut self) -> &mut Profile {
        &mut self.profiles[self.current]
    }

    pub fn command_runs(&self) -> bool {
        self.command.is_some()
    }

    fn is_on(&self, name: &str) -> bool {
        self.profile().prefs.get(name) == Some(&Value::Bool(true))
    }

    fn server(&self) -> Option<&Server> {
        let url = prefs::text(&self.profile().prefs, "ControlURL");
        self.servers.iter().find(|server| is_same_server(server.url, url))
    }

    /// The node, if its control server is the one in use.
    fn node(&self) -> Option<&Node> {
        let url = prefs::text(&self.profile().prefs, "ControlURL");
        self.profile().node.as_ref().filter(|node| is_same_server(&node.server, url))
    }

    // ---- tailscaled

    fn is_trying(&self) -> bool {
        let has_something = self.node().is_some() || self.held.is_some_and(|held| !held.spent);
        self.up
            && !self.online
            && self.is_on("WantRunning")
            && !self.is_on("LoggedOut")
            && has_something
    }

    fn tell(&mut self) {
        self.bus.rings = true;
        let prefs = self.profile().prefs.clone();
        if self.bus.open {
            self.bus.queue.push(prefs);
        }
    }

    /// It tries to get in, with what it has.
    fn try_once(&mut self) {
        let was = (self.error, self.asks, self.online);
        let pause = if self.error.is_some() { self.rng.u64(200..4000) } else { 300 };
        self.next_try = self.now + ms(pause);
        let (node, held) = (self.node().cloned(), self.held.filter(|held| !held.spent));
        let Some(server) = self.server().cloned().filter(|server| server.up) else {
            self.error = Some(DOWN);
            self.bus.rings |= was.0 != self.error;
            return;
        };
        if let Some(words) = server.errs {
            self.error = Some(words);
        } else if let Some(held) = held {
            let secret = &mut self.secrets[held.secret];
            if secret.dead {
                self.error = Some(REFUSAL);
            } else if secret.single_use && secret.used {
                self.error = Some("authkey already used");
            } else {
                secret.used = true;
                self.join(held, &server);
            }
        } else {
            self.error = None;
            match node {
                Some(node) if node.valid => self.online = node.approved,
                _ => self.asks = true,
            }
        }
        if self.online {
            self.profile_mut().has_map = true;
            self.bus.running = true;
        }
        self.bus.rings |= was != (self.error, self.asks, self.online);
    }

    fn join(&mut self, held: Held, server: &Server) {
        self.nodes += 1;
        let id = format!("n{}", self.nodes);
        self.error = None;
        self.online = !server.asks_admin;
        self.held = Some(Held { spent: true, ..held });
        let node = Node { server: server.url.into(), valid: true, approved: !server.asks_admin };
        let asked = self.setup.flags.clone();
        let profile = self.profile_mut();
        profile.node = Some(node);
        profile.prefs.insert("Config".into(), json!({ "NodeID": id }));
        if profile.id.is_empty() {
            profile.id = "a".into();
        }
        // What a login that has succeeded leaves.
        let asked = if held.ours { asked } else { Vec::new() };
        let mut wanted = profile.wanted.clone();
        let by_flags = profile.prefs.clone();
        for name in settings(&by_flags).keys() {
            if prefs::is_set_by(&asked, name) && name != "AdvertiseRoutes" {
                wanted.insert(name.clone(), by_flags[name].clone());
            }
        }
        let mut wanted = match prefs::is_set_by(&asked, "AdvertiseRoutes") {
            true => {
                let kept = prefs::kept(&wanted, &by_flags, &asked);
                wanted.insert("AdvertiseRoutes".into(), kept["AdvertiseRoutes"].clone());
                wanted
            }
            false => wanted,
        };
        for name in ["ControlURL", "WantRunning", "LoggedOut", "Config"] {
            wanted.insert(name.into(), profile.prefs[name].clone());
        }
        profile.wanted = wanted;
        self.tell();
    }

    /// Its login starts anew, with this key or without one.
    fn start(&mut self, held: Option<Held>) {
        self.held = held;
        (self.error, self.asks, self.online) = (None, false, false);
        self.next_try = self.now + ms(10);
        self.bus.rings = true;
    }

    fn change(&mut self, changes: &Prefs) {
        let was_on = self.is_on("WantRunning");
        self.profile_mut().prefs.extend(changes.clone());
        match (was_on, self.is_on("WantRunning")) {
            // It sends the key of its last login again.
            (false, true) => {
                let held = self.held.map(|held| Held { spent: false, ..held });
                self.start(held);
            }
            (true, false) => (self.online, self.asks) = (false, false),
            _ => {}
        }
        self.tell();
    }

    fn stop_daemon(&mut self) {
        self.up = false;
        self.held = None;
        (self.error, self.asks, self.online) = (None, false, false);
        self.comes_up = self.now + ms(self.rng.u64(50..5000));
        if let Some(command) = self.command.take() {
            let is_odd = command.ends.is_some();
            self.command_ended =
                Some(if is_odd { Ended::Killed } else { Ended::Lost("EOF".into()) });
        }
        self.bus.rings |= self.bus.open;
        self.bus.open = false;
        // What has no node yet is not written to disk.
        for profile in self.profiles.iter_mut().filter(|profile| profile.node.is_none()) {
            let mut prefs = fresh_prefs();
            prefs.extend(settings(&profile.wanted));
            profile.wanted = prefs.clone();
            profile.prefs = prefs;
        }
    }

    fn status(&self) -> Status {
        let (want, out) = (self.is_on("WantRunning"), self.is_on("LoggedOut"));
        let has_key = self.profile().node.is_some();
        let has_map = self.profile().has_map;
        let is_tried = self.held.is_some_and(|held| !held.spent);
        let state = match self.node() {
            _ if self.online => "Running",
            _ if !want && !out && has_key => "Stopped",
            _ if out => "NeedsLogin",
            None => "NeedsLogin",
            Some(node) if node.valid && !node.approved && self.error.is_none() => {
                "NeedsMachineAuth"
            }
            Some(_) if has_map && self.version != "1.66.4" => "Running",
            Some(_) if self.asks => "NeedsLogin",
            Some(node) if !node.valid && is_tried => "NeedsLogin",
            Some(_) => "NoState",
        };
        let mut status = Status {
            version: self.version.into(),
            backend_state: state.into(),
            have_node_key: has_key,
            ..Status::default()
        };
        status.node.online = self.online;
        if self.asks {
            status.auth_url = "https://x".into();
        }
        let error = self.error.filter(|_| want && !out);
        status.health.extend(error.map(|error| format!("The last login error was: {error}")));
        status
    }

    // ---- the command

    fn run_command(&mut self) {
        let Some(command) = &mut self.command else {
            return;
        };
        let is_due = command.at.is_some_and(|at| at <= self.now);
        if !command.has_begun && is_due {
            if let Some(ended) = command.ends.take() {
                self.command_ended = Some(ended);
                self.command = None;
            } else if self.up {
                command.has_begun = true;
                let (flags, secret) = (command.flags.clone(), command.secret);
                let prefs = of_up(&flags, &self.profile().prefs);
                self.profile_mut().prefs = prefs;
                self.start(Some(Held { secret, ours: true, since: self.now, spent: false }));
                self.tell();
                if once_in(&mut self.rng, 20) {
                    self.command = None;
                    self.command_ended = Some(Ended::Killed);
                }
            } else {
                self.command = None;
                let gone = "failed to connect to local tailscaled; it is not running";
                self.command_ended = Some(Ended::Lost(gone.into()));
            }
            return;
        }
        if !command.has_begun {
            return;
        }
        let runs_on_map =
            self.profile().has_map && self.version != "1.66.4" && self.version != "1.80.3";
        let ended = match self.error.map(LoginError::of) {
            _ if self.online || (runs_on_map && self.node().is_some_and(|node| node.valid)) => {
                Some(Ended::Done)
            }
            Some(error @ (LoginError::Refused(_) | LoginError::Unknown(_))) => {
                Some(Ended::LoginError(error))
            }
            _ => None,
        };
        if ended.is_some() {
            self.command = None;
            self.command_ended = ended;
        }
    }

    // ---- time

    /// Lets time pass until then, or until something is to be told.
    pub fn pass(&mut self, until: Time, happenings: &mut Vec<(Time, u64)>, waits: bool) {
        loop {
            if waits && (self.has_news() || self.command_ended.is_some()) {
                return;
            }
            let mut next = until;
            if !self.up {
                next = next.min(self.comes_up);
            }
            if self.is_trying() {
                next = next.min(self.next_try);
            }
            if let Some(at) = self.command.as_ref().filter(|it| !it.has_begun).and_then(|it| it.at)
            {
                next = next.min(at);
            }
            if let Some((at, _)) = happenings.last() {
                next = next.min(*at);
            }
            self.now = self.now.max(next);
            if !self.up && self.comes_up <= self.now {
                self.up = true;
                self.next_try = self.now;
            } else if happenings.last().is_some_and(|(at, _)| *at <= self.now) {
                let (_, chance) = happenings.pop().expect("one");
                self.happen(chance);
                if self.kills {
                    return;
                }
            } else if self.is_trying() && self.next_try <= self.now {
                self.try_once();
            } else if self
                .command
                .as_ref()
                .is_none_or(|it| it.has_begun || it.at.is_none_or(|at| at > self.now))
            {
                self.run_command();
                if self.now >= until {
                    return;
                }
            }
            self.run_command();
        }
    }

    fn has_news(&self) -> bool {
        self.bus.rings && (self.bus.open || self.bus.has_told) || !self.bus.queue.is_empty()
    }

    fn happen(&mut self, chance: u64) {
        let mut rng = Rng::with_seed(chance);
        let server = rng.usize(..2);
        match rng.u8(..25) {
            0 | 1 => {
                self.servers[server].up = false;
                if self.server().is_some_and(|server| !server.up) {
                    self.online = false;
                    self.next_try = self.now;
                    self.bus.rings = true;
                }
            }
            2..5 => self.servers[server].up = true,
            5 => self.servers[server].errs = Some("database is locked (5) (SQLITE_BUSY)"),
            6 | 7 => self.servers[server].errs = None,
            8 | 9 if self.up => self.stop_daemon(),
            10 => {
                if let Some(node) = &mut self.profile_mut().node {
                    node.valid = false;
                    if self.online {
                        self.online = false;
                        self.next_try = self.now;
                        self.bus.rings = true;
                    }
                }
            }
            11 if self.up && !self.is_on("LoggedOut") && self.node().is_some() => {
                // Somebody's dead key.
                let held = Held { secret: 2, ours: false, since: self.now, spent: false };
                self.start(Some(held));
            }
            12 | 13 => self.file = Some(one(&mut rng, &[0, 1])),
            14 => self.file = None,
            15 => self.secrets[one(&mut rng, &[0, 1])].dead = true,
            16 => self.file_is_locked = rng.bool(),
            17 => {
                self.servers[server].asks_admin = false;
                self.approve();
            }
            18 => {
                self.bus = Bus { refused: !self.bus.refused, ..Bus::default() };
                self.was_disturbed = true;
            }
            19 | 20 if self.up => {
                // An admin's `tailscale set`. Not to a default, which looks like the doing of `up`.
                let changes = [
                    ("RunSSH", json!(true)),
                    ("ShieldsUp", json!(true)),
                    ("Hostname", json!(one(&mut rng, &["n1", "n2"]))),
                    ("RunWebClient", json!(true)),
                ];
                let (name, value) = one(&mut rng, &changes);
                let changes = Prefs::from_iter([(name.to_owned(), value)]);
                // What the user's flags set as well looks like the doing of `up`.
                if prefs::is_set_by(&self.setup.flags, name) {
                    return;
                }
                // What is so already is no change to be seen.
                if !prefs::differences(&changes, &self.profile().prefs).contains_key(name) {
                    return;
                }
                self.profile_mut().wanted.extend(changes.clone());
                self.change(&changes);
            }
            21 if self.up && self.profile().node.is_some() => {
                let down = Prefs::from_iter([("WantRunning".to_owned(), json!(false))]);
                self.profile_mut().wanted.extend(down.clone());
                self.change(&down);
                self.was_stopped = true;
            }
            22 => {
                self.fault = Some(one(
                    &mut rng,
                    &[
                        Ended::Killed,
                        Ended::Unknown("odd".into()),
                        Ended::UnknownFlag("ssh".into(), "no -ssh".into()),
                        Ended::Unreachable("i/o timeout".into()),
                    ],
                ));
            }
            23 => self.is_odd = !self.is_odd,
            24 => self.kills = true,
            _ => {}
        }
    }

    fn approve(&mut self) {
        for node in self.profiles.iter_mut().filter_map(|profile| profile.node.as_mut()) {
            node.approved = true;
        }
        self.next_try = self.now;
        self.bus.rings = true;
    }

    /// All that was in the way is over, and the file holds a good key.
    pub fn heal(&mut self) {
        for server in &mut self.servers {
            (server.up, server.errs, server.asks_admin) = (true, None, false);
        }
        if !self.up {
            self.comes_up = self.now;
        }
        self.approve();
        self.file = Some(3);
        (self.file_is_locked, self.is_odd, self.fault) = (false, false, None);
    }

    /// The program and its command are gone.
    pub fn kill(&mut self) {
        (self.command, self.command_ended, self.kills) = (None, None, false);
        self.bus = Bus { refused: self.bus.refused, ..Bus::default() };
        self.seen = None;
    }

    // ---- what comes of an action

    fn mostly(&mut self) -> Result<(), LocalApiError> {
        if !self.up {
            return Err(LocalApiError::Unreachable("no such socket".into()));
        }
        match self.is_odd && self.rng.bool() {
            true => Err(one(
                &mut self.rng,
                &[LocalApiError::NoAnswer, LocalApiError::BadAnswer("500: oops".into())],
            )),
            false => Ok(()),
        }
    }

    fn open_bus(&mut self) {
        if self.up && !self.bus.refused && !self.bus.open {
            let prefs = self.profile().prefs.clone();
            self.bus = Bus { open: true, queue: vec![prefs], ..Bus::default() };
        }
    }

    fn is_profile(&self, profile: &Option<crate::tailscaled::Profile>) -> bool {
        profile.as_ref().is_none_or(|profile| profile.may_be(&named(&self.profile().id)))
    }

    pub fn act(
        &mut self,
        action: &Action,
        wants_prefs: bool,
        happenings: &mut Vec<(Time, u64)>,
    ) -> Event {
        let wanted = self.profile().wanted.clone();
        let takes = self.now + ms(self.rng.u64(..20));
        self.pass(takes, happenings, false);
        // Nobody can tell a change in the very moment of one that takes all back from that one.
        self.was_disturbed |=
            matches!(action, Action::TakeBack { .. }) && self.profile().wanted != wanted;
        match action {
            Action::ReadRecord => Event::Record(self.store.clone()),
            Action::Look => {
                // What the bus has told until then comes first.
                self.told_before = (!self.bus.queue.is_empty()).then(|| self.notice());
                let status = self.mostly().map(|()| self.status());
                self.seen = Some(Situation::of(status.as_ref(), None));
                if status.is_err() {
                    self.bus.open &= self.up;
                }
                let prefs = (wants_prefs && status.is_ok()).then(|| self.profile().prefs.clone());
                self.known = prefs.clone().or(self.known.take());
                Event::Seen { status, unbound: None, prefs }
            }
            Action::ReadPrefs => {
                self.open_bus();
                let prefs = self.mostly().map(|()| self.profile().prefs.clone());
                // What the bus has told until then comes first.
                self.told_before =
                    (prefs.is_ok() && !self.bus.queue.is_empty()).then(|| self.notice());
                self.known = prefs.clone().ok().or(self.known.take());
                let profile = Some(named(&self.profile().id));
                Event::Prefs { prefs, profile, live: self.bus.open }
            }
            Action::ReadKey => Event::Key(match self.file {
                _ if self.file_is_locked => Err(NoKey::Busy),
                Some(secret) => {
                    Ok(KeyFacts { kind: KeyKind::Headscale, digest: format!("d{secret}") })
                }
                None => Err(NoKey::File(Problem::Missing)),
            }),
            Action::ReleaseKey => Event::Released,
            Action::Write(record) => {
                self.store = record.clone();
                Event::Written {
                    asked: record.clone(),
                    written: Box::new(record.clone()),
                    saved: true,
                }
            }
            Action::LogIn(flags) => {
                let begun = self.store.login.as_ref().expect("a record");
                let secret = begun.key[1..].parse().expect("a digest");
                let flags = flags.clone();
                let hangs = once_in(&mut self.rng, 30);
                let at = (!hangs).then(|| self.now + ms(self.rng.u64(5..1500)));
                let ends = self.fault.take();
                self.command = Some(Command { secret, flags, at, has_begun: false, ends });
                self.command_ended = None;
                Event::Started(Ok(()))
            }
            Action::StopCommand => {
                (self.command, self.command_ended) = (None, None);
                Event::CommandStopped
            }
            Action::Restart(_) => {
                let result = self.mostly();
                if result.is_ok() {
                    self.start(None);
                }
                Event::Restarted(result)
            }
            Action::BringUp => {
                let result = self.mostly();
                if result.is_ok() {
                    self.start(None);
                    let up = prefs::want_running();
                    self.profile_mut().wanted.extend(up.clone());
                    self.change(&up);
                }
                Event::BroughtUp(result)
            }
            Action::PutBack { profile, .. } if !self.is_profile(profile) => {
                Event::PutBack(Ok(None))
            }
            Action::PutBack { prefs, .. } => {
                let result = self.mostly();
                if result.is_ok() {
                    self.change(prefs);
                }
                Event::PutBack(result.map(|()| Some(Vec::new())))
            }
            Action::TakeBack { profile, .. } if !self.is_profile(profile) => {
                Event::TookBack(Ok(None))
            }
            Action::TakeBack { prefs, .. } => {
                let result = self.mostly();
                if result.is_ok() {
                    // It keeps for itself whose node it is.
                    let config = self.profile().prefs["Config"].clone();
                    self.profile_mut().prefs = prefs.clone();
                    self.profile_mut().prefs.insert("Config".into(), config);
                    self.start(None);
                    self.tell();
                }
                Event::TookBack(result.map(|()| Some(self.profile().prefs.clone())))
            }
            Action::Renew | Action::Postpone(_) | Action::Ping => panic!("nobody asked us to stay"),
            Action::Wait(..) | Action::Finish(_) | Action::Fail(_) | Action::Stopped => Event::Woke,
        }
    }

    /// What comes of waiting until then.
    pub fn wait(&mut self, until: Time, happenings: &mut Vec<(Time, u64)>) -> Event {
        if self.seen != Some(Situation::NoDaemon) {
            self.open_bus();
        }
        self.pass(until, happenings, true);
        if self.has_news() {
            return Event::Told(self.notice());
        }
        match self.command_ended.take() {
            Some(ended) => Event::Ended(ended),
            None => Event::Woke,
        }
    }

    fn notice(&mut self) -> Notice {
        let prefs = std::mem::take(&mut self.bus.queue);
        self.known = prefs.last().cloned().or(self.known.take());
        let after_a_gap = !self.bus.has_told;
        let running = std::mem::take(&mut self.bus.running);
        self.bus.rings = false;
        self.bus.has_told = self.bus.open;
        Notice { prefs, after_a_gap, running }
    }

    /// Whether tailscaled is at a login of ours, or will be, so that another would be one too many.
    pub fn is_at_our_login(&self) -> bool {
        let Some(held) = self.held.filter(|held| held.ours && !held.spent && self.is_trying())
        else {
            return false;
        };
        match self.error.map(LoginError::of) {
            None => self.now < held.since + Duration::from_secs(30),
            Some(LoginError::Unreachable(_)) => true,
            Some(_) => false,
        }
    }
}

/// The preferences that `up --reset` makes of these flags.
fn of_up(flags: &[String], before: &Prefs) -> Prefs {
    let mut prefs = fresh_prefs();
    let server = flags::value(flags, "login-server").unwrap_or(TAILSCALES_SERVER);
    prefs.insert("ControlURL".into(), json!(server));
    prefs.insert("WantRunning".into(), json!(true));
    prefs.insert("LoggedOut".into(), json!(false));
    prefs.insert("Config".into(), before["Config"].clone());
    let mut routes = Vec::new();
    for (at, flag) in flags.iter().enumerate() {
        let name = flags::name(flag).unwrap_or_default();
        let value = flag.split_once('=').map(|(_, value)| value.to_owned());
        let is_on = value.as_deref() != Some("false");
        let text = value.or_else(|| flags.get(at + 1).cloned()).unwrap_or_default();
        match name {
            "ssh" => drop(prefs.insert("RunSSH".into(), json!(is_on))),
            "shields-up" => drop(prefs.insert("ShieldsUp".into(), json!(is_on))),
            "accept-routes" => drop(prefs.insert("RouteAll".into(), json!(is_on))),
            "hostname" => drop(prefs.insert("Hostname".into(), json!(text))),
            "advertise-tags" => drop(prefs.insert("AdvertiseTags".into(), json!([text]))),
            "advertise-routes" => routes.extend(text.split(',').map(str::to_owned)),
            "advertise-exit-node" if is_on => {
                routes.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()])
            }
            _ => {}
        }
    }
    if !routes.is_empty() {
        prefs.insert("AdvertiseRoutes".into(), json!(routes));
    }
    prefs
}
