//! When the node keys of a fleet are renewed.

use std::collections::HashMap;

use crate::policy::renew_at;
use crate::record::NodeKey;
use std::time::Duration;

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
