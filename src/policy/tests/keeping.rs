//! When node keys are renewed, and what stands against it.

use std::collections::HashMap;

use super::chance::OWN;
use super::walk::*;
use super::*;
use crate::failure::Obstacle;
use crate::key::KeyKind;
use crate::record::NodeKey;
use crate::samples::{self, keyed, status, with_error};

#[test]
fn a_fleet_that_has_joined_at_once_renews_spread_over_a_fifth_of_the_life() {
    let life = Duration::from_secs(180 * 24 * 3600);
    let begin = Duration::from_secs(1_800_000_000);
    let mut seconds: HashMap<u64, u32> = HashMap::new();
    let mut parts = Vec::new();
    for node in 0..200 {
        let at =
            renew_at(&NodeKey { key: format!("nodekey:{node:064x}"), expiry: begin + life, life });
        *seconds.entry(at.as_secs()).or_default() += 1;
        parts.push((at - begin).as_secs_f64() / life.as_secs_f64());
    }
    parts.sort_by(f64::total_cmp);
    assert!(parts[0] >= 0.7 && parts[199] < 0.9, "{parts:?}");
    // As even as chance makes it: in each tenth of the time there are some.
    for tenth in 0..10 {
        let from = 0.7 + 0.02 * f64::from(tenth);
        let count = parts.iter().filter(|part| (from..from + 0.02).contains(*part)).count();
        assert!((5..50).contains(&count), "{count} from {from} on");
    }
    assert!(seconds.values().all(|count| *count <= 5), "{seconds:?}");
}

#[test]
fn a_node_key_is_renewed_at_the_same_time_whoever_asks() {
    let node = NodeKey {
        key: "nodekey:x".to_owned(),
        expiry: Duration::from_secs(2_000_000_000),
        life: Duration::from_secs(1_000_000),
    };
    assert_eq!(renew_at(&node), renew_at(&node.clone()));
    let longer = NodeKey { life: Duration::MAX, ..node };
    assert_eq!(renew_at(&longer), Duration::ZERO);
}

/// What a node does whose renewal is due, after this has changed.
fn when_due(change: impl FnOnce(&mut Walk)) -> Action {
    let expiry = Duration::from_secs(1_814_400_000);
    let mut walk = Walk::new(samples::online(keyed(status("Running"))));
    let setup = Setup { stay: true, key_file: "/k".into(), ..Setup::default() };
    walk.machine = Machine::new(setup, 1);
    walk.status.node.public_key = "nodekey:1".into();
    walk.status.node.key_expiry = Some("2027-07-01T00:00:00Z".into());
    walk.prefs = of(TAILSCALES_SERVER);
    walk.take(Event::Clock(expiry - Duration::from_secs(180 * 24 * 3600)));
    let action = walk.go();
    assert!(matches!(waits_for(&action), Waiting::Staying(..)), "{action:?}");

    change(&mut walk);
    walk.now += Duration::from_secs(3600);
    walk.take(Event::Clock(expiry - Duration::from_secs(24 * 3600)));
    walk.take(Event::Woke);
    let mut action = walk.next();
    if let Action::Wait(..) = action {
        // It has just been seen.
        walk.now += Duration::from_secs(60);
        walk.take(Event::Woke);
        action = walk.next();
    }
    action
}

#[test]
fn a_renewal_that_nothing_stands_against_is_made_when_it_is_due() {
    assert_eq!(when_due(|_| {}), Action::Renew);
}

#[test]
fn what_stands_against_a_renewal_puts_it_off() {
    let lock = "this node is locked out; it will not have connectivity until it is signed.";
    let put_off = |obstacle, change: fn(&mut Walk)| {
        assert_eq!(when_due(change), Action::Postpone(obstacle));
    };
    put_off(Obstacle::OldVersion, |walk| walk.status.version = "1.80.3".into());
    put_off(Obstacle::Tags, |walk| walk.status.node.tags = vec!["tag:x".into()]);
    put_off(Obstacle::Trouble, |walk| {
        walk.status = with_error(walk.status.clone(), "fetch control key: connection refused");
    });
    put_off(Obstacle::Offline, |walk| walk.status.node.online = false);
    put_off(Obstacle::NoKey, |walk| walk.key = other_key("d1"));
    put_off(Obstacle::OAuthSecret, |walk| {
        walk.key =
            Ok(KeyFacts { kind: KeyKind::OAuthSecret { names_api: false }, digest: "d1".into() });
    });
    put_off(Obstacle::RefusedKey, |walk| {
        let server = TAILSCALES_SERVER.to_owned();
        let words = String::new();
        walk.store.refused = Some(RefusedKey { at: 1, digest: "d1".into(), server, words });
    });
    let locked_out = when_due(|walk| walk.status.health = vec![lock.into()]);
    assert_eq!(locked_out, Action::Postpone(Obstacle::LockedOut));
}

#[test]
fn a_clock_that_is_not_set_stands_against_a_renewal() {
    let online = samples::online(keyed(status("Running")));
    let at =
        |seconds| obstacle(&online, &of(TAILSCALES_SERVER), None, Duration::from_secs(seconds));
    assert_eq!(at(0), Some(Obstacle::Clock));
    assert_eq!(at(1_800_000_000), None);
}

#[test]
fn another_login_server_stands_against_a_renewal() {
    let online = samples::online(keyed(status("Running")));
    let clock = Duration::from_secs(1_800_000_000);
    let obstacle = obstacle(&online, &of(TAILSCALES_SERVER), Some(OWN), clock);
    assert_eq!(obstacle, Some(Obstacle::Elsewhere));
}
