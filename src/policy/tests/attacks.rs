//! Walks through what an adversary found: states in which a run waits for ever, spins, burns a key or
//! loses a setting.

use serde_json::json;

use super::chance::{OTHER, OWN};
use super::walk::*;
use super::*;
use crate::samples::{self, keyed, status, with_error};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn known_node(state: &str) -> Status {
    keyed(status(state))
}

fn online() -> Status {
    samples::online(known_node("Running"))
}

/// A setting that tailscaled does not take back is told of, and the run comes to its end.
#[test]
fn a_setting_that_cannot_be_put_back_does_not_hold_a_run_up() {
    for live in [true, false] {
        let before = with(&of(OWN), json!({ "RunWebClient": true }));
        let mut walk = Walk::at(OWN, known_node("NeedsLogin"), before);
        walk.live = live;
        walk.logs_in();
        walk.tells(with(&of(OWN), json!({ "Hostname": "" })));
        walk.take(Event::Ended(Ended::Done));
        walk.status = online();
        let mut tries = 0;
        while let Action::PutBack { prefs, .. } = walk.next() {
            assert!(prefs.contains_key("RunWebClient"), "{prefs:?}");
            tries += 1;
            assert!(tries < 3, "it is put back again and again");
            walk.take(Event::PutBack(Ok(Some(vec!["RunWebClient (no)".to_owned()]))));
        }
        assert!(matches!(walk.next(), Action::Finish(_)));
    }
}

fn begun(before: Prefs, profile: &str) -> BegunLogin {
    BegunLogin {
        at: 1,
        profile: Profile { id: profile.to_owned(), others: vec!["b".to_owned()] },
        server: OWN.to_owned(),
        flags: Vec::new(),
        key: "d1".to_owned(),
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
            let mut walk = Walk::at(OWN, seen, of(OWN));
            walk.store =
                Record { salt: [1; 16], login: Some(begun(fresh(), "")), ..Record::default() };
            walk.key = other_key("d2");
            match walk.waits(seconds(25)) {
                Action::Wait(..) => {}
                action => panic!("{state} {words}: {action:?}"),
            }
        }
    }
}

/// A first login was killed, and another profile is in use since.
#[test]
fn a_first_login_that_was_killed_is_none_of_another_profile() {
    let mut walk = Walk::at(OWN, online(), with(&of(OWN), json!({ "Hostname": "b" })));
    walk.profile = "b";
    let before = with(&fresh(), json!({ "Hostname": "box", "RunWebClient": true }));
    walk.store.login = Some(begun(before, ""));
    let action = walk.next();
    assert!(matches!(action, Action::Finish(_)), "{action:?}");
    assert!(walk.store.login.is_some(), "it is the other one's");
}

/// The control server answers in the very moment in which a signal has the login taken back.
#[test]
fn a_login_that_succeeds_while_a_signal_has_it_taken_back_is_let_be() {
    let mut walk = Walk::at(OWN, status("NeedsLogin"), fresh());
    walk.profile = "";
    walk.logs_in();
    walk.tells(begun_at(OWN));
    walk.status = with_error(status("NeedsLogin"), "fetch control key: connection refused");
    walk.next();
    walk.take(Event::Stop);
    let mut taken_back = Vec::new();
    while let Action::TakeBack { mut prefs, .. } = walk.waits(seconds(2)) {
        assert!(taken_back.len() < 3, "for ever");
        taken_back.push(prefs["WantRunning"].clone());
        // It has the ID of its node, and no error.
        prefs.insert("Config".into(), json!({ "NodeID": "n1" }));
        (walk.prefs, walk.profile) = (prefs.clone(), "a");
        walk.status = known_node("NoState");
        walk.take(Event::TookBack(Ok(Some(prefs))));
    }
    assert_eq!(taken_back, [json!(false), json!(true)]);
    assert_eq!((&walk.prefs["ControlURL"], &walk.store.login), (&json!(OWN), &None));
}

/// The same of a node that had a node key before: what it was given by the login stays.
#[test]
fn flags_of_a_login_that_succeeded_when_the_power_was_cut_stay() {
    let before = with(&of(OWN), json!({ "RunWebClient": true }));
    let after = with(&of(OWN), json!({ "ShieldsUp": true }));
    let mut walk = Walk::at(OWN, known_node("NoState"), after);
    let login = BegunLogin { flags: vec!["--shields-up".to_owned()], ..begun(before, "a") };
    walk.machine.setup.flags = login.flags.clone();
    walk.store = Record { salt: [1; 16], login: Some(login), ..Record::default() };
    walk.key = other_key("d2");
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
    let mut walk = Walk::at(OWN, known_node("NeedsLogin"), before);
    assert!(walk.logs_in().contains(&"--report-posture=true".to_owned()));
    walk.take(Event::Ended(Ended::UnknownFlag("report-posture".into(), "flag provided".into())));
    assert_eq!(walk.logs_in(), ["--login-server=".to_owned() + OWN]);
    walk.tells(of(OWN));
    walk.take(Event::Ended(Ended::Done));
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
    let under_way = begun_at(OWN);
    for state in ["NeedsLogin", "NoState"] {
        let seen = with_error(status(state), "no such thing here");
        let mut walk = Walk::at(OWN, seen, under_way.clone());
        walk.profile = "";
        let action = walk.waits(seconds(120));
        assert!(matches!(action, Action::LogIn(_) | Action::Restart(_)), "{state}: {action:?}");
    }
}

/// A login at a server that was mistyped, and of which nothing was remembered.
#[test]
fn a_login_at_a_server_that_is_not_the_asked_one_is_not_waited_for() {
    let under_way = begun_at(OTHER);
    for state in ["NeedsLogin", "NoState"] {
        let seen = with_error(status(state), "fetch control key: connection refused");
        let mut walk = Walk::at(OWN, seen, under_way.clone());
        walk.profile = "";
        let action = walk.waits(seconds(60));
        assert!(matches!(action, Action::LogIn(_)), "{state}: {action:?}");
    }
}

/// A node that comes up on what it knows of its tailnet is offline for a moment.
#[test]
fn a_node_that_is_about_to_come_online_is_not_moved_to_another_server() {
    let mut walk = Walk::at(OTHER, known_node("Running"), of(OWN));
    let action = walk.waits(seconds(1));
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    walk.status = online();
    walk.take(Event::Woke);
    assert!(matches!(walk.next(), Action::Finish(_)));
}

/// A login that takes a node from its own login server to another one, and has come to tailscaled.
fn leaving() -> Walk {
    let mut walk = Walk::at(OTHER, known_node_in_trouble(), of(OWN));
    walk.logs_in();
    walk.tells(with(&of(OWN), json!({ "ControlURL": OTHER })));
    walk
}

fn known_node_in_trouble() -> Status {
    with_error(known_node("Starting"), "fetch control key: connection refused")
}

#[test]
fn a_node_that_is_still_online_at_the_server_that_it_leaves_has_not_come_to_the_other_one() {
    let mut walk = leaving();
    let action = walk.see(online());
    assert_eq!(waits_for(&action), &Waiting::LoggingIn);
    assert!(walk.store.login.is_some());

    walk.see(known_node_in_trouble());
    walk.take(Event::Stop);
    let action = walk.waits(seconds(2));
    assert!(
        matches!(&action, Action::TakeBack { prefs, .. } if prefs["ControlURL"] == OWN),
        "{action:?}"
    );
}

#[test]
fn a_node_that_its_command_says_is_up_has_come_to_the_other_server() {
    let mut walk = leaving();
    walk.see(online());
    let action = walk.on(Event::Ended(Ended::Done));
    assert!(matches!(action, Action::Finish(_)), "{action:?}");
    assert_eq!(walk.store.login, None);
}

/// The login came while a pause was waited out, or beside a run that waits for the key file.
#[test]
fn what_a_login_changed_is_put_back_whatever_was_thought_of_it_when_it_came() {
    let before = with(&of(OWN), json!({ "RunWebClient": true }));
    let mut walk = Walk::at(OWN, known_node("NeedsLogin"), before.clone());
    walk.logs_in();
    walk.tells(of(OWN));
    walk.take(Event::Ended(Ended::Lost("unexpected EOF".into())));
    walk.status = online();
    walk.take(Event::Woke);
    assert!(matches!(walk.next(), Action::PutBack { .. }));
    walk.prefs = before.clone();
    walk.take(Event::PutBack(Ok(Some(Vec::new()))));
    assert!(matches!(walk.next(), Action::Finish(_)));
    assert_eq!(walk.store.login, None);

    let mut walk = Walk::at(OWN, known_node("NeedsLogin"), of(OWN));
    walk.store = Record { salt: [1; 16], login: Some(begun(before, "a")), ..Record::default() };
    walk.key = Err(NoKey::Busy);
    assert!(matches!(walk.next(), Action::Wait(Waiting::OtherRun, _)), "{:?}", walk.next());
    walk.status = online();
    walk.take(Event::Woke);
    let action = walk.next();
    assert!(matches!(action, Action::PutBack { .. }), "{action:?}");
}

/// However often the bus tells something, the status is looked at.
#[test]
fn a_bus_that_never_falls_silent_does_not_keep_a_run_from_looking() {
    let mut walk = Walk::at(OWN, status("NeedsLogin"), fresh());
    walk.profile = "";
    walk.logs_in();
    walk.tells(begun_at(OWN));
    walk.next();
    let before = walk.done.len();
    for _ in 0..100 {
        let Action::Wait(_, until) = walk.machine.next(walk.now) else { break };
        walk.now += ms(40);
        match until <= walk.now {
            true => walk.take(Event::Woke),
            false => walk.take(Event::Told(Notice::default())),
        }
        walk.next();
    }
    assert!(walk.done[before..].contains(&"look"), "never looked");
}

/// A control server that lets no key in but asks for a person.
#[test]
fn a_server_that_asks_for_a_person_whatever_the_key_is_not_sent_it_without_a_pause() {
    let mut walk = Walk::at(OWN, status("NeedsLogin"), fresh());
    walk.profile = "";
    let mut logins = Vec::new();
    let begun = begun_at(OWN);
    while walk.now < seconds(600) && logins.len() < 100 {
        match walk.waits(seconds(600)) {
            Action::LogIn(_) => {
                logins.push(walk.now);
                walk.take(Event::Started(Ok(())));
                walk.tells(begun.clone());
                walk.status.auth_url = "https://hs.example.org/register/x".into();
            }
            Action::TakeBack { prefs, .. } => {
                walk.prefs = prefs.clone();
                walk.status.auth_url.clear();
                walk.take(Event::TookBack(Ok(Some(prefs))));
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
    let mut walk = Walk::at(OWN, known_node("NeedsLogin"), of(OWN));
    walk.logs_in();
    walk.next();
    walk.status.auth_url = "https://hs.example.org/register/x".into();
    walk.take(Event::Woke);
    let action = walk.waits(seconds(10));
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    assert!(!walk.done.contains(&"abandon_login"));
}

/// A node that was logged in but stays offline, of which nothing is said, is helped.
#[test]
fn a_login_that_leads_to_a_node_that_is_offline_is_not_waited_for_for_ever() {
    let mut walk = Walk::at(OWN, known_node("NeedsLogin"), of(OWN));
    walk.logs_in();
    walk.tells(of(OWN));
    walk.take(Event::Ended(Ended::Done));
    walk.status = known_node("Running");
    let action = walk.waits(seconds(120));
    assert!(matches!(action, Action::Restart(Why::Offline)), "{action:?}");
}

/// The command was ended, and what it had sent comes to tailscaled a moment later.
#[test]
fn what_a_command_sent_in_its_last_moment_is_seen() {
    let before = with(&fresh(), json!({ "RunWebClient": true }));
    let mut walk = Walk::at(OWN, status("NeedsLogin"), before);
    walk.profile = "";
    walk.logs_in();
    walk.next();
    walk.take(Event::Stop);
    // Read, and nothing has come.
    let action = walk.next();
    assert!(matches!(action, Action::Wait(..)), "{action:?}");
    walk.now += ms(15);
    walk.tells(begun_at(OWN));
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
        let mut walk = Walk::at(OWN, known_node("NeedsLogin"), before.clone());
        walk.live = live;
        assert!(walk.logs_in().contains(&"--hostname=old".to_owned()));
        let changed = with(&before, json!({ "Hostname": "new", "ShieldsUp": false }));
        if live {
            walk.tells(changed);
            walk.tells(before);
        } else {
            walk.prefs = changed;
            walk.next();
            walk.take(Event::Woke);
            walk.next();
            walk.prefs = before;
        }
        walk.take(Event::Ended(Ended::Done));
        walk.status = online();
        match walk.next() {
            Action::PutBack { prefs, .. } => {
                assert_eq!(prefs, prefs_of(json!({ "Hostname": "new", "ShieldsUp": false })));
            }
            action => panic!("{live} {action:?}"),
        }
    }
}
