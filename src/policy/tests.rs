//! Tests of the machine: [`walks`] through what is known to happen, events in any order
//! ([`arbitrary`]), and whole runs in a small [`world`] of faults.

mod arbitrary;
mod chance;
mod keeping;
mod runs;
mod walks;
mod world;

use proptest::prelude::*;

use super::*;

/// How many sequences of events each property is tried on. tests/run.sh asks for more than a plain
/// `cargo test` does.
fn sequences() -> ProptestConfig {
    let asked = std::env::var("SEQUENCES").ok();
    let cases = asked.map_or(1000, |asked| asked.parse().expect("a number in SEQUENCES"));
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 1000,
        ..ProptestConfig::default()
    }
}

/// Whether a login is what a node in this state needs. `elsewhere`: it is another control server's
/// than the asked one.
fn needs_login(situation: &Situation, elsewhere: bool) -> bool {
    match situation {
        Situation::NeedsLogin { .. }
        | Situation::AsksForPerson { .. }
        | Situation::SettlingNew { trouble: None, .. }
        | Situation::SettlingNew { error: Some(LoginError::Unknown(_)), .. } => true,
        Situation::Settling { .. }
        | Situation::SettlingNew { .. }
        | Situation::Offline { .. }
        | Situation::Stopped
        | Situation::NeedsApproval => elsewhere,
        _ => false,
    }
}
