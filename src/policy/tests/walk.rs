//! A machine and what is around it, which stands still but for what a test changes.

use serde_json::{Value, json};

use super::*;
use crate::key::KeyKind;
use crate::samples::status;

pub fn prefs_of(pairs: Value) -> Prefs {
    serde_json::from_value(pairs).expect("an object")
}

pub fn with(prefs: &Prefs, changes: Value) -> Prefs {
    let mut prefs = prefs.clone();
    prefs.extend(prefs_of(changes));
    prefs
}

/// The preferences of a node that was never logged in.
pub fn fresh() -> Prefs {
    prefs_of(json!({
        "ControlURL": "", "WantRunning": false, "LoggedOut": true, "CorpDNS": true, "NetfilterMode": 2,
        "NoStatefulFiltering": true, "Hostname": "", "Config": null,
    }))
}

/// Those that a login at this server gives to a node.
pub fn begun_at(server: &str) -> Prefs {
    with(&fresh(), json!({ "ControlURL": server, "WantRunning": true, "LoggedOut": false }))
}

/// Those of a node of this login server.
pub fn of(server: &str) -> Prefs {
    with(&begun_at(server), json!({ "Config": { "NodeID": "n1" } }))
}

/// A key of Tailscale's.
pub fn digest(digest: &str) -> Result<KeyFacts, NoKey> {
    Ok(KeyFacts { kind: KeyKind::Auth, digest: digest.to_owned() })
}

/// A key of another server.
pub fn other_key(digest: &str) -> Result<KeyFacts, NoKey> {
    Ok(KeyFacts { kind: KeyKind::Headscale, digest: digest.to_owned() })
}

pub fn is_login(action: &Action) -> bool {
    matches!(action, Action::LogIn(_))
}

pub fn waits_for(action: &Action) -> &Waiting {
    match action {
        Action::Wait(waiting, _) => waiting,
        action => panic!("{action:?}"),
    }
}

pub struct Walk {
    pub machine: Machine,
    pub now: Time,
    pub status: Status,
    pub prefs: Prefs,
    pub profile: &'static str,
    pub key: Result<KeyFacts, NoKey>,
    pub store: Record,
    /// The record cannot be written.
    pub disk_full: bool,
    /// There is a bus.
    pub live: bool,
    pub done: Vec<&'static str>,
}

impl Walk {
    fn with(setup: Setup, status: Status, prefs: Prefs) -> Self {
        Self {
            machine: Machine::new(setup, 1),
            now: Time::ZERO,
            status,
            prefs,
            profile: "a",
            key: digest("d1"),
            store: Record { salt: [1; 16], ..Record::default() },
            disk_full: false,
            live: true,
            done: Vec::new(),
        }
    }

    /// On a node of Tailscale's that has no settings.
    pub fn new(status: Status) -> Self {
        Self::with(Setup { key_file: "/k".into(), ..Setup::default() }, status, fresh())
    }

    /// With a key of the login server that is asked for.
    pub fn at(server: &str, status: Status, prefs: Prefs) -> Self {
        let setup =
            Setup { server: Some(server.into()), key_file: "/k".into(), ..Setup::default() };
        Self { key: other_key("d1"), ..Self::with(setup, status, prefs) }
    }

    /// Takes in what happens, and does nothing.
    pub fn take(&mut self, event: Event) {
        self.machine.on(event, self.now);
    }

    /// Goes on to the next thing that changes something at tailscaled or takes time, and does it not.
    pub fn next(&mut self) -> Action {
        for _ in 0..200 {
            let action = self.machine.next(self.now);
            let event = match &action {
                Action::ReadRecord => Event::Record(self.store.clone()),
                Action::Look => Event::Seen {
                    status: Ok(self.status.clone()),
                    unbound: None,
                    prefs: self.machine.wants_prefs().then(|| self.prefs.clone()),
                },
                Action::ReadPrefs => Event::Prefs {
                    prefs: Ok(self.prefs.clone()),
                    profile: Some(named(self.profile)),
                    live: self.live,
                },
                Action::ReadKey => {
                    self.take(Event::RecordAgain(self.store.clone()));
                    Event::Key(self.key.clone())
                }
                Action::ReleaseKey => Event::Released,
                Action::Write(record) => {
                    if !self.disk_full {
                        self.store = record.clone();
                    }
                    Event::Written {
                        asked: record.clone(),
                        written: Box::new(record.clone()),
                        saved: !self.disk_full,
                    }
                }
                Action::StopCommand => Event::CommandStopped,
                _ => return action,
            };
            self.done.push(action.name());
            self.take(event);
        }
        panic!("it spins: {:?}", &self.done[self.done.len() - 8..]);
    }

    /// Does what is asked for, as long as it can go on by itself. What it comes to.
    pub fn go(&mut self) -> Action {
        for _ in 0..20 {
            let action = self.next();
            let event = match &action {
                Action::PutBack { prefs, .. } => {
                    self.prefs.extend(prefs.clone());
                    Event::PutBack(Ok(Some(Vec::new())))
                }
                Action::TakeBack { prefs, .. } => {
                    self.prefs = prefs.clone();
                    Event::TookBack(Ok(Some(prefs.clone())))
                }
                Action::Restart(_) => Event::Restarted(Ok(())),
                _ => return action,
            };
            self.done.push(action.name());
            self.take(event);
        }
        panic!("{:?}", self.done);
    }

    pub fn on(&mut self, event: Event) -> Action {
        self.take(event);
        self.go()
    }

    /// Goes on after this time.
    pub fn after(&mut self, time: Duration) -> Action {
        self.now += time;
        self.on(Event::Woke)
    }

    pub fn see(&mut self, status: Status) -> Action {
        self.status = status;
        self.after(Duration::from_millis(50))
    }

    /// Waits, for so long at most, until there is something to do, and does it not.
    pub fn waits(&mut self, most: Duration) -> Action {
        let over = self.now + most;
        loop {
            match self.next() {
                Action::Wait(_, until) if until <= over => {
                    self.now = self.now.max(until);
                    self.take(Event::Woke);
                }
                action => return action,
            }
        }
    }

    /// The command is started with these flags.
    pub fn logs_in(&mut self) -> Vec<String> {
        match self.next() {
            Action::LogIn(flags) => {
                self.take(Event::Started(Ok(())));
                flags
            }
            action => panic!("no login, but {action:?}"),
        }
    }

    /// The command has come to tailscaled.
    pub fn begin(&mut self, changes: Value) -> Action {
        self.take(Event::Started(Ok(())));
        self.tell(with(&begun_at(TAILSCALES_SERVER), changes))
    }

    /// The bus tells these preferences.
    pub fn tells(&mut self, prefs: Prefs) {
        self.prefs = prefs.clone();
        self.take(Event::Told(Notice { prefs: vec![prefs], after_a_gap: false, running: true }));
    }

    pub fn tell(&mut self, prefs: Prefs) -> Action {
        self.tells(prefs);
        self.go()
    }

    pub fn has_done(&mut self, name: &str) -> bool {
        std::mem::take(&mut self.done).contains(&name)
    }
}

/// A login on a new node, up to the command.
pub fn new_login() -> Walk {
    let mut walk = Walk::new(status("NeedsLogin"));
    let action = walk.go();
    assert!(is_login(&action), "{action:?}");
    let before = ["read_record", "look", "read_key", "read_prefs", "look", "write_record"];
    assert_eq!(walk.done, before);
    walk
}
