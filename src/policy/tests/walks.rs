//! Walks through what is known to happen.

use serde_json::json;

use super::walk::*;
use super::*;
use crate::failure::{Mistake, Refusal, Refused};
use crate::record::RefusedKey;
use crate::samples::{REFUSAL, asking, keyed, online, status, with_error};

const TROUBLE: &str = "fetch control key: dial tcp: connect: connection refused";
const ODD: &str = "database is locked (5) (SQLITE_BUSY)";

fn refusal() -> LoginError {
    LoginError::of(REFUSAL)
}

#[test]
fn the_table_row_by_row() {
    let first = |status: Status| Walk::new(status).go();
    let control = |why: &str| Waiting::ControlServer(Some(why.to_owned()));
    for state in ["NoState", "Starting"] {
        let settling = keyed(status(state));
        assert_eq!(waits_for(&first(settling.clone())), &Waiting::Settling);
        assert_eq!(waits_for(&first(with_error(settling.clone(), TROUBLE))), &control(TROUBLE));
        let mut stranded = Walk::new(with_error(settling, REFUSAL));
        stranded.go();
        assert!(stranded.has_done("rescue"));
    }
    let mut stranded = Walk::new(with_error(status("Running"), REFUSAL));
    stranded.go();
    assert!(stranded.has_done("rescue"));
    assert!(matches!(first(online(status("Running"))), Action::Finish(_)));
    assert!(is_login(&first(asking(status("Running")))));
    assert_eq!(waits_for(&first(status("Running"))), &Waiting::ControlServer(None));
    assert!(is_login(&first(status("NeedsLogin"))));
    assert!(is_login(&first(asking(keyed(status("NeedsLogin"))))));
    assert_eq!(waits_for(&first(status("NeedsMachineAuth"))), &Waiting::Approval);
    assert_eq!(waits_for(&first(status("Dancing"))), &Waiting::Unknown("Dancing".into()));
    let mut stopped = Walk::new(keyed(status("Stopped")));
    assert_eq!(stopped.go(), Action::BringUp);
    assert_eq!(stopped.done, ["read_record", "look"]);
    assert_eq!(waits_for(&stopped.on(Event::BroughtUp(Ok(())))), &Waiting::StoppedByOther);
}

#[test]
fn an_address_that_stays_away_is_waited_for_only_so_long() {
    let address = IpAddr::from([100, 64, 0, 1]);
    let mut machine = Walk::new(online(status("Running"))).machine;
    machine.on(Event::Record(Record { salt: [1; 16], ..Record::default() }), Time::ZERO);
    let seen = || Event::Seen {
        status: Ok(online(status("Running"))),
        unbound: Some(address),
        prefs: None,
    };
    machine.on(seen(), Time::ZERO);
    assert_eq!(waits_for(&machine.next(Time::ZERO)), &Waiting::Address(address));
    machine.on(seen(), ADDRESS_PATIENCE);
    assert!(matches!(machine.next(ADDRESS_PATIENCE), Action::Finish(_)));
}

#[test]
fn a_joined_node_that_reboots_with_a_used_key_never_reads_it() {
    let mut walk = Walk::new(keyed(status("NoState")));
    assert_eq!(waits_for(&walk.go()), &Waiting::Settling);
    assert_eq!(
        waits_for(&walk.see(with_error(keyed(status("NoState")), TROUBLE))).to_string(),
        format!("waiting for the control server: {TROUBLE}")
    );
    for _ in 0..1000 {
        walk.after(Duration::from_secs(2));
    }
    assert!(matches!(walk.see(online(status("Running"))), Action::Finish(_)));
    assert!(!walk.has_done("read_key"));
}

/// What comes of a login whose command has just been asked for, when its key is refused.
fn when_refused(walk: &mut Walk) -> Action {
    walk.begin(json!({}));
    walk.on(Event::Ended(Ended::LoginError(refusal())));
    walk.after(Duration::from_secs(2))
}

#[test]
fn a_refused_key_is_taken_back_and_never_sent_again() {
    let mut walk = new_login();
    walk.begin(json!({}));
    walk.status = with_error(status("NeedsLogin"), REFUSAL);
    let doubted = walk.on(Event::Ended(Ended::LoginError(refusal())));
    assert_eq!(waits_for(&doubted), &Waiting::Verdict(REFUSAL.into()));
    walk.done.clear();
    walk.status = status("NeedsLogin");
    // One that was made a moment ago may not be known yet.
    let early = walk.after(Duration::from_secs(2));
    assert!(matches!(early, Action::Wait(Waiting::Retry(..), _)), "{early:?}");
    assert!(walk.has_done("forget_key") && walk.store.refused.is_none());
    let again = walk.after(Duration::from_secs(30));
    assert!(is_login(&again), "{again:?}");
    let end = when_refused(&mut walk);
    assert!(matches!(end, Action::Fail(Failure::Refused(_))), "{end:?}");
    assert_eq!(
        (&walk.prefs["WantRunning"], &walk.prefs["ControlURL"]),
        (&json!(false), &json!(""))
    );
    let refused = walk.store.refused.clone().unwrap();
    assert_eq!((refused.digest.as_str(), walk.store.login.clone()), ("d1", None));
    // In the next run neither, but another one is.
    let mut next = Walk::new(status("NeedsLogin"));
    next.store = walk.store.clone();
    assert!(matches!(next.go(), Action::Fail(Failure::RefusedBefore { .. })));
    let mut replaced = Walk::new(status("NeedsLogin"));
    (replaced.store, replaced.key) = (walk.store, digest("d2"));
    assert!(is_login(&replaced.go()));
}

#[test]
fn a_key_that_nobody_knows_is_final_at_once_where_the_node_was_logged_in_before() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.store.last.login = 1;
    assert!(is_login(&walk.go()));
    let end = when_refused(&mut walk);
    assert!(matches!(end, Action::Fail(Failure::Refused(_))), "{end:?}");
}

#[test]
fn a_key_that_may_not_be_known_yet_is_sent_twice_however_often_a_run_is_started() {
    let mut walk = new_login();
    let early = when_refused(&mut walk);
    assert!(matches!(early, Action::Wait(Waiting::Retry(..), _)), "{early:?}");
    assert_eq!(walk.on(Event::Stop), Action::Stopped);
    let mut next = Walk::new(status("NeedsLogin"));
    next.store = walk.store;
    assert!(is_login(&next.go()));
    let end = when_refused(&mut next);
    assert!(matches!(end, Action::Fail(Failure::Refused(_))), "{end:?}");
}

#[test]
fn a_key_that_may_not_be_known_yet_is_sent_once_more_where_the_disk_is_full() {
    let mut walk = new_login();
    walk.disk_full = true;
    let early = when_refused(&mut walk);
    assert!(matches!(early, Action::Wait(Waiting::Retry(..), _)), "{early:?}");
    assert!(is_login(&walk.waits(Duration::from_secs(40))));
}

#[test]
fn a_secret_that_the_api_refuses_is_final_also_after_another_key_was_refused() {
    let mut walk = Walk::new(status("NeedsLogin"));
    let server = TAILSCALES_SERVER.to_owned();
    walk.store.refused = Some(RefusedKey { at: 1, digest: "d0".into(), server, words: "w".into() });
    assert!(is_login(&walk.go()));
    walk.on(Event::Started(Ok(())));
    let refusal = Refusal { what: Refused::Key, words: "Status: 403".into() };
    let end = walk.on(Event::Ended(Ended::Final(Failure::Refused(refusal))));
    assert!(matches!(end, Action::Fail(Failure::Refused(_))), "{end:?}");
}

#[test]
fn a_node_that_was_stopped_before_a_refused_login_is_brought_up_on_its_node_key() {
    let mut walk = Walk::new(keyed(asking(status("NeedsLogin"))));
    assert!(is_login(&walk.go()));
    walk.begin(json!({}));
    walk.on(Event::Ended(Ended::LoginError(LoginError::of("authkey expired"))));
    walk.status = keyed(status("Stopped"));
    assert_eq!(walk.after(Duration::from_secs(2)), Action::BringUp);
}

#[test]
fn a_key_that_was_replaced_while_the_old_one_was_refused_is_used_at_once() {
    let mut walk = new_login();
    walk.begin(json!({}));
    walk.on(Event::Ended(Ended::LoginError(refusal())));
    walk.key = digest("d2");
    let action = walk.after(Duration::from_secs(2));
    assert!(is_login(&action), "{action:?}");
}

/// A run that finds the login of one before, which was killed.
fn found(change: impl FnOnce(&mut Walk)) -> (Action, Walk) {
    let mut before = new_login();
    before.begin(json!({}));
    let mut walk = Walk::new(status("NeedsLogin"));
    (walk.store, walk.prefs) = (before.store, before.prefs);
    change(&mut walk);
    (walk.go(), walk)
}

#[test]
fn a_login_that_a_killed_run_has_left_is_let_end_if_it_is_the_same() {
    let (action, mut walk) = found(|_| {});
    assert_eq!(waits_for(&action), &Waiting::LoggingIn);
    assert!(matches!(walk.see(online(status("Running"))), Action::Finish(_)));
    assert_eq!(walk.store.login, None);
}

#[test]
fn what_was_set_after_a_killed_run_stays_and_what_a_restart_has_forgotten_comes_back() {
    for (now, expected) in [
        // One was set to its default: the other is still there.
        (json!({ "RouteAll": false, "CorpDNS": false }), json!(false)),
        (json!({ "RouteAll": false, "CorpDNS": true }), json!(true)),
    ] {
        let mut before = Walk::new(status("NeedsLogin"));
        before.prefs.extend(prefs_of(json!({ "RouteAll": true, "CorpDNS": false })));
        assert!(is_login(&before.go()));
        let mut walk = Walk::new(status("NeedsLogin"));
        (walk.store, walk.prefs) = (before.store, before.prefs);
        walk.prefs.extend(prefs_of(now));
        assert!(is_login(&walk.go()));
        assert_eq!(walk.store.login.unwrap().before["RouteAll"], expected);
    }
}

#[test]
fn a_login_that_a_killed_run_has_left_is_replaced_if_key_flags_or_server_are_others() {
    let changes: [fn(&mut Walk); 3] = [
        |walk| walk.key = digest("d2"),
        |walk| walk.machine.setup.flags = vec!["--ssh".into()],
        |walk| walk.machine.setup.server = Some("https://login.tailscale.com".into()),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (action, mut walk) = found(change);
        let is_other = number < 2;
        assert_eq!(is_login(&action), is_other, "{number}: {action:?}");
        assert_eq!(walk.has_done("forget_key"), is_other);
    }
    let (action, mut walk) = found(|walk| {
        walk.machine.setup.server = Some(chance::OTHER.into());
        walk.key = other_key("d1");
    });
    assert!(is_login(&action) && walk.has_done("forget_key"), "{action:?}");
}

#[test]
fn a_login_of_another_profile_is_left_alone() {
    let (_, mut walk) = found(|walk| walk.profile = "b");
    assert!(!walk.has_done("forget_key"));
}

#[test]
fn words_of_the_server_that_are_not_known_are_tried_again_ever_more_slowly() {
    let mut walk = new_login();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        walk.begin(json!({}));
        let mut action = walk.on(Event::Ended(Ended::LoginError(LoginError::of(ODD))));
        // tailscaled may be let in at its next try.
        while waits_for(&action) == &Waiting::Verdict(ODD.into()) {
            action = walk.after(Duration::from_millis(100));
        }
        let since = walk.now;
        while !is_login(&action) {
            assert!(matches!(waits_for(&action), Waiting::Retry(words, _) if words == ODD));
            action = walk.after(Duration::from_millis(100));
        }
        pauses.push((walk.now - since).as_secs_f64());
    }
    for (number, pause) in pauses.iter().enumerate() {
        let longest = (4.0 * 2f64.powi(i32::try_from(number).unwrap())).min(300.0);
        assert!(*pause >= longest / 2.0 && *pause <= longest + 0.2, "{pauses:?}");
    }
}

#[test]
fn a_complaint_that_nothing_at_tailscaled_answers_to_is_believed_at_its_third_time() {
    let mut walk = new_login();
    for time in 1..=3 {
        walk.on(Event::Started(Ok(())));
        let mut action = walk.on(Event::Ended(Ended::Unknown("odd".into())));
        while time < 3 && !is_login(&action) {
            action = walk.after(Duration::from_millis(500));
        }
        let is_final =
            matches!(action, Action::Fail(Failure::Misconfigured(Mistake::Complaint(_))));
        assert_eq!(is_final, time == 3, "{time}: {action:?}");
    }
}

#[test]
fn whoever_is_stranded_twice_is_freed_twice_also_after_an_offline_restart() {
    let mut walk = Walk::new(keyed(status("Running")));
    walk.go();
    walk.after(OFFLINE_PATIENCE);
    assert!(walk.has_done("rescue"), "the offline one");
    for _ in 0..2 {
        walk.now += Duration::from_secs(3600);
        walk.status = with_error(keyed(status("Running")), REFUSAL);
        walk.after(Duration::ZERO);
        assert!(walk.has_done("rescue"));
        walk.see(keyed(status("Running")));
        walk.done.clear();
    }
}

#[test]
fn an_error_whose_words_change_lasts_as_one() {
    let mut walk = Walk::new(keyed(status("NoState")));
    let mut rescued = false;
    for port in 0..40 {
        walk.see(with_error(keyed(status("NoState")), &format!("oops at port {port}")));
        walk.now += Duration::from_secs(1);
        rescued |= walk.has_done("rescue");
    }
    assert!(rescued);
}

#[test]
fn settings_are_put_back_with_what_an_admin_has_set_before_and_after_the_replacement() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.prefs.extend(prefs_of(json!({ "RunWebClient": true, "RunSSH": true })));
    let Action::LogIn(flags) = walk.go() else {
        panic!("no login");
    };
    assert_eq!(flags, ["--ssh=true"]);
    walk.on(Event::Started(Ok(())));
    // `tailscale set` before the replacement, then after it.
    let mut before = walk.prefs.clone();
    before.extend(prefs_of(json!({ "OperatorUser": "ann" })));
    walk.tell(before);
    let of_login = json!({
        "ControlURL": TAILSCALES_SERVER, "WantRunning": true, "LoggedOut": false, "RunSSH": true,
        "RunWebClient": false, "OperatorUser": "", "Hostname": "",
    });
    walk.tell(prefs_of(of_login));
    assert!(walk.has_done("put_back"));
    let mut after = walk.prefs.clone();
    after.extend(prefs_of(json!({ "RunSSH": false, "Hostname": "h" })));
    walk.tell(after);
    assert!(!walk.has_done("put_back"));
    walk.status = online(status("Running"));
    let end = walk.on(Event::Ended(Ended::Done));
    assert!(matches!(end, Action::Finish(_)), "{end:?}");
    for (name, value) in [
        ("OperatorUser", json!("ann")),
        ("RunWebClient", json!(true)),
        ("RunSSH", json!(false)),
        ("Hostname", json!("h")),
    ] {
        assert_eq!(walk.prefs[name], value, "{name}");
    }
    assert_eq!(walk.store.login, None);
}

#[test]
fn a_setting_that_somebody_changes_before_the_replacement_wins_over_our_older_flag() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.prefs.insert("Hostname".into(), json!("box"));
    assert_eq!(walk.go(), Action::LogIn(vec!["--hostname=box".to_owned()]));
    walk.on(Event::Started(Ok(())));
    let mut set = walk.prefs.clone();
    set.insert("Hostname".into(), json!("n1"));
    walk.tell(set.clone());
    set.extend(prefs_of(json!({
        "ControlURL": TAILSCALES_SERVER, "WantRunning": true, "LoggedOut": false, "Hostname": "box",
    })));
    walk.tell(set);
    assert!(walk.has_done("put_back"));
    assert_eq!(walk.prefs["Hostname"], json!("n1"));
}

#[test]
fn a_late_word_of_what_was_taken_back_is_not_taken_for_the_next_login() {
    let mut walk = Walk::new(keyed(status("NeedsLogin")));
    walk.machine.setup.flags = vec!["--ssh".into()];
    walk.prefs = prefs_of(json!({
        "ControlURL": TAILSCALES_SERVER, "WantRunning": true, "LoggedOut": false, "RunSSH": false,
    }));
    assert!(is_login(&walk.go()));
    walk.on(Event::Started(Ok(())));
    walk.tell(walk.prefs.clone());
    let mut of_login = walk.prefs.clone();
    of_login.insert("RunSSH".into(), json!(true));
    walk.tell(of_login);
    walk.status = with_error(keyed(status("NeedsLogin")), REFUSAL);
    walk.on(Event::Ended(Ended::LoginError(refusal())));
    walk.after(Duration::from_secs(2));
    assert!(walk.has_done("forget_key"));
    assert_eq!(walk.prefs["RunSSH"], json!(false));
}

#[test]
fn two_flags_of_one_preference_are_kept_together() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.machine.setup.flags = vec!["--advertise-exit-node".into()];
    walk.prefs.insert("AdvertiseRoutes".into(), json!(["10.0.0.0/8"]));
    let Action::LogIn(flags) = walk.go() else {
        panic!("no login");
    };
    assert_eq!(flags, ["--advertise-routes=10.0.0.0/8", "--advertise-exit-node"]);
    let routes = json!(["10.0.0.0/8", "0.0.0.0/0", "::/0"]);
    walk.begin(json!({ "AdvertiseRoutes": routes }));
    assert!(!walk.has_done("put_back"));
}

#[test]
fn a_login_that_comes_to_its_end_while_it_is_taken_back_is_let_be() {
    let mut walk = new_login();
    walk.begin(json!({ "Config": { "NodeID": "" } }));
    walk.on(Event::Ended(Ended::LoginError(refusal())));
    walk.now += Duration::from_secs(2);
    walk.machine.on(Event::Woke, walk.now);
    let mut taken_back = 0;
    while let action = walk.machine.next(walk.now)
        && !matches!(action, Action::Finish(_))
    {
        let Action::TakeBack { prefs, .. } = action else {
            walk.done.clear();
            // One action at a time.
            match action {
                Action::Look => {
                    let status = if taken_back > 1 {
                        online(status("Running"))
                    } else {
                        status("NeedsLogin")
                    };
                    walk.machine.on(
                        Event::Seen { status: Ok(status), unbound: None, prefs: None },
                        walk.now,
                    );
                }
                Action::Write(record) => {
                    walk.machine.on(
                        Event::Written {
                            asked: record.clone(),
                            written: Box::new(record),
                            saved: true,
                        },
                        walk.now,
                    );
                }
                action => panic!("{action:?}"),
            }
            continue;
        };
        taken_back += 1;
        assert!(taken_back < 3, "for ever");
        assert_eq!(prefs["WantRunning"], json!(taken_back == 2));
        let mut after = prefs;
        after.insert("Config".into(), json!({ "NodeID": "n1" }));
        walk.machine.on(Event::TookBack(Ok(Some(after))), walk.now);
    }
    assert_eq!(taken_back, 2);
}

#[test]
fn a_node_of_another_server_waits_between_its_logins_and_holds_no_key_meanwhile() {
    let mut walk = Walk::at(chance::OTHER, keyed(status("Running")), of(chance::OWN));
    walk.go();
    // It may be about to come online.
    assert!(is_login(&walk.after(Duration::from_secs(10))));
    walk.on(Event::Started(Ok(())));
    walk.on(Event::Ended(Ended::Unreachable("i/o timeout".into())));
    let action = walk.after(Duration::from_millis(50));
    assert!(matches!(waits_for(&action), Waiting::Retry(words, _) if words == "i/o timeout"));
    assert!(walk.has_done("release_key"));
}

#[test]
fn a_setting_whose_flag_the_command_does_not_know_is_put_back_after_the_login() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.prefs.extend(prefs_of(json!({ "PostureChecking": true })));
    assert!(is_login(&walk.go()));
    walk.on(Event::Started(Ok(())));
    let action = walk.on(Event::Ended(Ended::UnknownFlag("report-posture".into(), "no".into())));
    assert_eq!(action, Action::LogIn(Vec::new()));
    walk.begin(json!({ "PostureChecking": false, "Hostname": "" }));
    assert!(walk.has_done("put_back"));
    assert_eq!(walk.prefs["PostureChecking"], json!(true));
}

#[test]
fn what_a_lost_login_has_changed_is_taken_back_if_the_next_one_never_comes() {
    let mut walk = new_login();
    walk.begin(json!({}));
    let mut action = walk.on(Event::Ended(Ended::Lost("EOF".into())));
    while !is_login(&action) {
        action = walk.after(Duration::from_secs(1));
    }
    walk.on(Event::Started(Ok(())));
    let mut action = walk.on(Event::Stop);
    if action != Action::Stopped {
        // What the command has sent may come a moment later.
        action = walk.after(Duration::from_millis(500));
    }
    assert_eq!(action, Action::Stopped);
    assert!(walk.has_done("forget_key"));
    assert_eq!(
        (&walk.prefs["WantRunning"], &walk.prefs["ControlURL"]),
        (&json!(false), &json!(""))
    );
}

#[test]
fn a_signal_in_any_state_ends_the_run_and_a_refused_key_with_it() {
    assert_eq!(Walk::new(status("NeedsLogin")).on(Event::Stop), Action::Stopped);
    for state in ["NoState", "Running", "Stopped", "NeedsMachineAuth", "Dancing"] {
        let mut walk = Walk::new(keyed(status(state)));
        walk.go();
        assert_eq!(walk.on(Event::Stop), Action::Stopped, "{state}");
        assert!(!walk.has_done("forget_key"));
    }
    // While a refusal is looked at.
    let mut walk = new_login();
    walk.begin(json!({}));
    walk.status = with_error(status("NeedsLogin"), REFUSAL);
    walk.on(Event::Ended(Ended::LoginError(refusal())));
    assert_eq!(walk.on(Event::Stop), Action::Stopped);
    assert!(walk.has_done("forget_key"));
    assert_eq!(walk.store.login, None);
    // While the control server may have the key: it is let end.
    let mut walk = new_login();
    walk.begin(json!({}));
    let mut action = walk.on(Event::Stop);
    while let Action::Wait(..) = action {
        action = walk.after(Duration::from_millis(100));
    }
    assert_eq!(action, Action::Stopped);
    assert!(!walk.has_done("forget_key"));
    assert!(walk.store.login.is_some());
}

#[test]
fn the_time_limit_names_what_was_waited_for() {
    let mut walk = Walk::new(with_error(keyed(status("NoState")), TROUBLE));
    let waiting = waits_for(&walk.go()).clone();
    let end = walk.on(Event::TimeUp(Some(waiting.clone())));
    assert_eq!(end, Action::Fail(Failure::TimedOut(waiting)));
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.key = Err(NoKey::File(Problem::Missing));
    walk.machine.setup.authkey_wait = Duration::from_secs(60);
    let waiting = waits_for(&walk.go()).clone();
    let end = walk.on(Event::TimeUp(Some(waiting)));
    assert_eq!(end, Action::Fail(Failure::KeyFile(Problem::Missing.at("/k".as_ref()))));
}

#[test]
fn a_key_file_that_stays_away_ends_the_run_and_one_that_cannot_be_used_does_at_once() {
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.machine.setup.authkey_wait = Duration::from_secs(60);
    walk.key = Err(NoKey::File(Problem::Missing));
    assert!(matches!(waits_for(&walk.go()), Waiting::KeyFile(_)));
    assert!(matches!(walk.after(Duration::from_secs(60)), Action::Fail(Failure::KeyFile(_))));
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.key = Err(NoKey::File(Problem::Unusable("is a directory")));
    assert!(matches!(walk.go(), Action::Fail(Failure::KeyFile(_))));
    let mut walk = Walk::new(status("NeedsLogin"));
    walk.key = Err(NoKey::Busy);
    assert_eq!(waits_for(&walk.go()), &Waiting::OtherRun);
}

#[test]
fn a_refusal_by_another_server_does_not_count() {
    let mut walk = Walk::new(status("NeedsLogin"));
    let server = chance::OWN.to_owned();
    walk.store.refused =
        Some(RefusedKey { at: 1, digest: "d1".into(), server, words: REFUSAL.into() });
    assert!(is_login(&walk.go()));
}

#[test]
fn no_way_to_the_socket_is_final_after_a_moment() {
    let mut machine = Walk::new(status("")).machine;
    machine.on(Event::Record(Record { salt: [1; 16], ..Record::default() }), Time::ZERO);
    let denied = || Event::Seen {
        status: Err(LocalApiError::Denied("no".into())),
        unbound: None,
        prefs: None,
    };
    machine.on(denied(), Time::ZERO);
    assert_eq!(waits_for(&machine.next(Time::ZERO)), &Waiting::Tailscaled);
    machine.on(denied(), SOCKET_PATIENCE);
    assert!(matches!(machine.next(SOCKET_PATIENCE), Action::Fail(Failure::Denied(_))));
}

#[test]
fn a_tailscaled_that_goes_away_while_it_is_asked_is_looked_at_again_and_waited_for() {
    let mut machine = Walk::new(status("")).machine;
    let gone = || LocalApiError::Unreachable("gone".into());
    machine.on(Event::Record(Record { salt: [1; 16], ..Record::default() }), Time::ZERO);
    let seen = Event::Seen { status: Ok(status("NeedsLogin")), unbound: None, prefs: None };
    machine.on(seen, Time::ZERO);
    machine.on(Event::Key(digest("d1")), Time::ZERO);
    for second in 0..100 {
        let now = Duration::from_secs(second);
        assert_eq!(machine.next(now), if second == 0 { Action::ReadPrefs } else { Action::Look });
        if second == 0 {
            let prefs = Err(gone());
            machine.on(Event::Prefs { prefs, profile: None, live: false }, now);
            assert_eq!(machine.next(now), Action::Look);
        }
        machine.on(Event::Seen { status: Err(gone()), unbound: None, prefs: None }, now);
        if second == 0 {
            assert_eq!(machine.next(now), Action::ReleaseKey);
            machine.on(Event::Released, now);
        }
        assert!(matches!(machine.next(now), Action::Wait(..)));
        machine.on(Event::Woke, now);
    }
}
