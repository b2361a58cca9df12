//! Walks through what an adversary found: states in which a run waits for ever, spins, burns a key or
//! loses a setting.

use serde_json::json;

use super::*;
use crate::key::KeyKind;
use crate::record::BegunLogin;
use crate::samples::{self, keyed, status, with_error};

const OWN: &str = "https://hs.example.org";
const OTHER: &str = "https://hs.example.com";

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn prefs_of(pairs: serde_json::Value) -> Prefs {
    pairs.as_object().expect("an object").clone()
}

/// The preferences of a node that was never logged in.
fn fresh() -> Prefs {
    prefs_of(json!({
        "ControlURL": "", "WantRunning": false, "LoggedOut": true, "CorpDNS": true, "NetfilterMode": 2,
        "NoStatefulFiltering": true, "Config": null,
    }))
}

/// Those of a node of this login server.
fn of(server: &str) -> Prefs {
    with(
        &fresh(),
        json!({
            "ControlURL": server, "WantRunning": true, "LoggedOut": false, "Config": { "NodeID": "n1" },
        }),
    )
}

fn with(prefs: &Prefs, changes: serde_json::Value) -> Prefs {
    let mut prefs = prefs.clone();
    prefs.extend(prefs_of(changes));
    prefs
}

fn known_node(state: &str) -> Status {
    keyed(status(state))
}

fn online() -> Status {
    samples::online(known_node("Running"))
}

/// A machine and what it sees: the world stands still but for what a test changes.
struct Walk {
    machine: Machine,
    now: Time,
    status: Status,
    prefs: Prefs,
    profile: &'static str,
    key: Result<&'static str, NoKey>,
    record: Record,
    /// There is a bus.
    live: bool,
    done: Vec<String>,
}

impl Walk {
    fn new(server: Option<&str>, status: Status, prefs: Prefs) -> Self {
        let setup = Setup {
            server: server.map(str::to_owned),
            key_file: "/key".into(),
            cli: Cli { program: "tailscale".into(), socket: "/sock".into() },
            ..Setup::default()
        };
        Self {
            machine: Machine::new(setup, 7),
            now: Time::ZERO,
            status,
            prefs,
            profile: "1",
            key: Ok("k1"),
            record: Record::default(),
            live: true,
            done: Vec::new(),
        }
    }

    fn on(&mut self, event: Event) {
        self.machine.on(event, self.now);
    }

    fn tells(&mut self, prefs: Prefs) {
        self.prefs = prefs.clone();
        let notice = Notice { prefs: vec![prefs], after_a_gap: false, running: true };
        self.on(Event::Told(notice));
    }

    /// Goes on to the next thing that is more than a look, and does it not.
    fn next(&mut self) -> Action {
        for _ in 0..200 {
            let action = self.machine.next(self.now);
            self.done.push(action.name().to_owned());
            let event = match action {
                Action::ReadRecord => Event::Record(self.record.clone()),
                Action::Look => Event::Seen {
                    status: Ok(self.status.clone()),
                    unbound: None,
                    prefs: self.machine.wants_prefs().then(|| self.prefs.clone()),
                },
                Action::ReadPrefs => Event::Prefs {
                    prefs: Ok(self.prefs.clone()),
                    profile: Some(self.profile.to_owned()),
                    live: self.live,
                },
                Action::ReadKey => Event::Key(self.key.clone().map(|digest| KeyFacts {
                    kind: KeyKind::Headscale,
                    digest: digest.to_owned(),
                })),
                Action::ReleaseKey => Event::Released,
                Action::Write(record) => {
                    self.record = record.clone();
                    Event::Written { asked: record.clone(), written: record, saved: true }
                }
                Action::StopCommand => Event::CommandStopped,
                action => return action,
            };
            self.now += ms(1);
            self.on(event);
        }
        panic!("it spins: {:?}", &self.done[self.done.len() - 8..]);
    }

    /// Waits, for so long at most, until there is something to do.
    fn waits(&mut self, most: Duration) -> Action {
        let over = self.now + most;
        loop {
            match self.next() {
                Action::Wait(_, until) if until <= over => {
                    self.now = self.now.max(until);
                    self.on(Event::Woke);
                }
                action => return action,
            }
        }
    }

    fn logs_in(&mut self) -> Vec<String> {
        match self.next() {
            Action::LogIn(flags) => {
                self.on(Event::Started(Ok(())));
                flags
            }
            other => panic!("no login, but {other:?}"),
        }
    }
}

/// A setting that tailscaled does not take back is told of, and the run comes to its end.
#[test]
fn a_setting_that_cannot_be_put_back_does_not_hold_a_run_up() {
    for live in [true, false] {
        let before = with(&of(OWN), json!({ "RunWebClient": true }));
        let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), before);
        walk.live = live;
        walk.logs_in();
        walk.tells(with(&of(OWN), json!({ "Hostname": "" })));
        walk.on(Event::Ended(Ended::Done));
        walk.status = online();
        let mut tries = 0;
        while let Action::PutBack { prefs, .. } = walk.next() {
            assert!(prefs.contains_key("RunWebClient"), "{prefs:?}");
            tries += 1;
            assert!(tries < 3, "it is put back again and again");
            walk.on(Event::PutBack(Ok(Some(vec!["RunWebClient (no)".to_owned()]))));
        }
        assert!(matches!(walk.next(), Action::Finish(_)));
    }
}

fn begun(before: Prefs, profile: &str) -> BegunLogin {
    BegunLogin {
        at: 1,
        profile: profile.to_owned(),
        server: OWN.to_owned(),
        flags: Vec::new(),
        key: "k1".to_owned(),
        before,
    }
}

/// A first login succeeded, and the power was cut before that was noted. At the next boot, the key file
/// holds another key, and the node is not up yet.
#[test]
fn a_node_that_was_logged_in_when_the_power_was_cut_is_not_taken_back_at_the_next_boot() {
    for state in ["NoState", "Starting", "Running"] {
        for words in ["", "fetch control key: connection refused"] {
            let seen = match words {
                "" => known_node(state),
                words => with_error(known_node(state), words),
            };
            let mut walk = Walk::new(Some(OWN), seen, of(OWN));
            walk.record =
                Record { salt: [1; 16], login: Some(begun(fresh(), "")), ..Record::default() };
            walk.key = Ok("k2");
            match walk.waits(seconds(25)) {
                Action::Wait(..) => {}
                action => panic!("{state} {words}: {action:?}"),
            }
        }
    }
}

/// The same of a node that had a node key before: what it was given by the login stays.
#[test]
fn flags_of_a_login_that_succeeded_when_the_power_was_cut_stay() {
    let before = with(&of(OWN), json!({ "RunWebClient": true }));
    let after = with(&of(OWN), json!({ "ShieldsUp": true }));
    let mut walk = Walk::new(Some(OWN), known_node("NoState"), after);
    let login = BegunLogin { flags: vec!["--shields-up".to_owned()], ..begun(before, "1") };
    walk.machine.setup.flags = login.flags.clone();
    walk.record = Record { salt: [1; 16], login: Some(login), ..Record::default() };
    walk.key = Ok("k2");
    match walk.next() {
        Action::PutBack { prefs, .. } => {
            assert_eq!(prefs, prefs_of(json!({ "RunWebClient": true })))
        }
        action => panic!("{action:?}"),
    }
}

/// The CLI knows no `--report-posture`: everything else that the login resets comes back.
#[test]
fn a_flag_that_the_command_does_not_know_costs_no_other_setting() {
    let before = with(&of(OWN), json!({ "PostureChecking": true, "RunWebClient": true }));
    let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), before);
    assert!(walk.logs_in().contains(&"--report-posture=true".to_owned()));
    walk.on(Event::Ended(Ended::UnknownFlag("report-posture".into(), "flag provided".into())));
    assert_eq!(walk.logs_in(), ["--login-server=".to_owned() + OWN]);
    walk.tells(of(OWN));
    walk.on(Event::Ended(Ended::Done));
    walk.status = online();
    match walk.next() {
        Action::PutBack { prefs, .. } => {
            let all = json!({ "PostureChecking": true, "RunWebClient": true });
            assert_eq!(prefs, prefs_of(all));
        }
        action => panic!("{action:?}"),
    }
}

/// Somebody's key is refused in words that nobody knows: ours is good.
#[test]
fn a_key_of_somebody_else_that_is_refused_in_unknown_words_does_not_keep_ours_off() {
    let under_way =
        with(&fresh(), json!({ "ControlURL": OWN, "WantRunning": true, "LoggedOut": false }));
    for state in ["NeedsLogin", "NoState"] {
        let seen = with_error(status(state), "no such thing here");
        let mut walk = Walk::new(Some(OWN), seen, under_way.clone());
        walk.profile = "";
        let action = walk.waits(seconds(120));
        assert!(matches!(action, Action::LogIn(_) | Action::Restart(_)), "{state}: {action:?}");
    }
}

/// A login at a server that was mistyped, and of which nothing was remembered.
#[test]
fn a_login_at_a_server_that_is_not_the_asked_one_is_not_waited_for() {
    let under_way =
        with(&fresh(), json!({ "ControlURL": OTHER, "WantRunning": true, "LoggedOut": false }));
    for state in ["NeedsLogin", "NoState"] {
        let seen = with_error(status(state), "fetch control key: connection refused");
        let mut walk = Walk::new(Some(OWN), seen, under_way.clone());
        walk.profile = "";
        let action = walk.waits(seconds(60));
        assert!(matches!(action, Action::LogIn(_)), "{state}: {action:?}");
    }
}

/// A node that comes up on what it knows of its tailnet is offline for a moment.
#[test]
fn a_node_that_is_about_to_come_online_is_not_moved_to_another_server() {
    let mut walk = Walk::new(Some(OTHER), known_node("Running"), of(OWN));
    let action = walk.waits(seconds(1));
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    walk.status = online();
    walk.on(Event::Woke);
    assert!(matches!(walk.next(), Action::Finish(_)));
}

/// The login came while a pause was waited out, or beside a run that waits for the key file.
#[test]
fn what_a_login_changed_is_put_back_whatever_was_thought_of_it_when_it_came() {
    let before = with(&of(OWN), json!({ "RunWebClient": true }));
    let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), before.clone());
    walk.logs_in();
    walk.tells(of(OWN));
    walk.on(Event::Ended(Ended::Lost("unexpected EOF".into())));
    walk.status = online();
    walk.on(Event::Woke);
    assert!(matches!(walk.next(), Action::PutBack { .. }));
    walk.prefs = before.clone();
    walk.on(Event::PutBack(Ok(Some(Vec::new()))));
    assert!(matches!(walk.next(), Action::Finish(_)));
    assert_eq!(walk.record.login, None);

    let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), of(OWN));
    walk.record = Record { salt: [1; 16], login: Some(begun(before, "1")), ..Record::default() };
    walk.key = Err(NoKey::Busy);
    assert!(matches!(walk.next(), Action::Wait(Waiting::OtherRun, _)), "{:?}", walk.next());
    walk.status = online();
    walk.on(Event::Woke);
    let action = walk.next();
    assert!(matches!(action, Action::PutBack { .. }), "{action:?}");
}

/// However often the bus tells something, the status is looked at.
#[test]
fn a_bus_that_never_falls_silent_does_not_keep_a_run_from_looking() {
    let mut walk = Walk::new(Some(OWN), status("NeedsLogin"), fresh());
    walk.profile = "";
    walk.logs_in();
    walk.tells(with(
        &fresh(),
        json!({ "ControlURL": OWN, "WantRunning": true, "LoggedOut": false }),
    ));
    walk.next();
    let before = walk.done.len();
    for _ in 0..100 {
        let Action::Wait(_, until) = walk.machine.next(walk.now) else { break };
        walk.now += ms(40);
        match until <= walk.now {
            true => walk.on(Event::Woke),
            false => walk.on(Event::Told(Notice::default())),
        }
        walk.next();
    }
    assert!(walk.done[before..].iter().any(|done| done == "look"), "never looked");
}

/// A control server that lets no key in but asks for a person.
#[test]
fn a_server_that_asks_for_a_person_whatever_the_key_is_not_sent_it_without_a_pause() {
    let mut walk = Walk::new(Some(OWN), status("NeedsLogin"), fresh());
    walk.profile = "";
    let mut logins = Vec::new();
    let begun =
        with(&fresh(), json!({ "ControlURL": OWN, "WantRunning": true, "LoggedOut": false }));
    while walk.now < seconds(600) && logins.len() < 100 {
        match walk.waits(seconds(600)) {
            Action::LogIn(_) => {
                logins.push(walk.now);
                walk.on(Event::Started(Ok(())));
                walk.tells(begun.clone());
                walk.status.auth_url = "https://hs.example.org/register/x".into();
            }
            Action::TakeBack { prefs, .. } => {
                walk.prefs = prefs.clone();
                walk.status.auth_url.clear();
                walk.on(Event::TookBack(Ok(Some(prefs))));
            }
            Action::Wait(..) => break,
            action => panic!("{action:?}"),
        }
    }
    assert!(logins.len() < 20, "{} logins in 10 min", logins.len());
}

/// tailscaled asks for a person, as after each reboot of an expired node, while the command exchanges an
/// OAuth client secret.
#[test]
fn a_command_is_not_ended_because_a_node_that_was_expired_before_asks_for_a_person() {
    let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), of(OWN));
    walk.logs_in();
    walk.next();
    walk.status.auth_url = "https://hs.example.org/register/x".into();
    walk.on(Event::Woke);
    let action = walk.waits(seconds(10));
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    assert!(!walk.done.contains(&"abandon_login".to_owned()));
}

/// A node that was logged in but stays offline, of which nothing is said, is helped.
#[test]
fn a_login_that_leads_to_a_node_that_is_offline_is_not_waited_for_for_ever() {
    let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), of(OWN));
    walk.logs_in();
    walk.tells(of(OWN));
    walk.on(Event::Ended(Ended::Done));
    walk.status = known_node("Running");
    let action = walk.waits(seconds(120));
    assert!(matches!(action, Action::Restart(Why::Offline)), "{action:?}");
}

/// The command was ended, and what it had sent comes to tailscaled a moment later.
#[test]
fn what_a_command_sent_in_its_last_moment_is_seen() {
    let before = with(&fresh(), json!({ "RunWebClient": true }));
    let mut walk = Walk::new(Some(OWN), status("NeedsLogin"), before);
    walk.profile = "";
    walk.logs_in();
    walk.next();
    walk.on(Event::Stop);
    // Read, and nothing has come.
    let action = walk.next();
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    walk.now += ms(15);
    walk.tells(with(
        &fresh(),
        json!({ "ControlURL": OWN, "WantRunning": true, "LoggedOut": false }),
    ));
    let action = walk.next();
    assert!(matches!(action, Action::PutBack { .. }), "{action:?}");
}

/// One server, written in several ways.
#[test]
fn a_server_is_the_same_however_it_is_written() {
    for (one, other) in [
        ("https://HS.example.org", "https://hs.example.org/"),
        ("https://hs.example.org:443", "https://hs.example.org"),
        ("http://hs.example.org:80/", "http://hs.example.org"),
        ("HTTPS://hs.example.org/a", "https://hs.example.org/a/"),
        ("https://login.tailscale.com", TAILSCALES_SERVER),
    ] {
        assert!(is_same_server(one, other), "{one} {other}");
    }
    for (one, other) in [
        ("https://hs.example.org", "http://hs.example.org"),
        ("https://hs.example.org:8443", "https://hs.example.org"),
        ("https://hs.example.org/a", "https://hs.example.org/b"),
        ("", "https://hs.example.org"),
    ] {
        assert!(!is_same_server(one, other), "{one} {other}");
    }
}

/// An admin gives another value to what the login was given as a flag, before the command comes to it.
#[test]
fn what_somebody_changes_before_the_command_comes_to_it_is_put_back_although_a_flag_says_otherwise()
{
    for live in [true, false] {
        let before = with(&of(OWN), json!({ "Hostname": "old", "ShieldsUp": true }));
        let mut walk = Walk::new(Some(OWN), known_node("NeedsLogin"), before.clone());
        walk.live = live;
        assert!(walk.logs_in().contains(&"--hostname=old".to_owned()));
        let changed = with(&before, json!({ "Hostname": "new", "ShieldsUp": false }));
        if live {
            walk.tells(changed);
            walk.tells(before);
        } else {
            walk.prefs = changed;
            walk.next();
            walk.on(Event::Woke);
            walk.next();
            walk.prefs = before;
        }
        walk.on(Event::Ended(Ended::Done));
        walk.status = online();
        match walk.next() {
            Action::PutBack { prefs, .. } => {
                assert_eq!(prefs, prefs_of(json!({ "Hostname": "new", "ShieldsUp": false })));
            }
            action => panic!("{live} {action:?}"),
        }
    }
}
