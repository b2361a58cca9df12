//! Tests of the machine: [`walks`] through what is known to happen, events in any order
//! ([`arbitrary`]), and whole runs in a small [`world`] of faults.

mod arbitrary;
mod attacks;
mod chance;
mod keeping;
mod runs;
mod walk;
mod walks;
mod world;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// How many sequences of events each property is tried on. tests/run.sh asks for more than a plain
/// `cargo test` does. They are the same each time, so that a failure is a change's; SEED=n makes
/// others.
fn sequences() -> ProptestConfig {
    let number = |name: &str| {
        let asked = std::env::var(name).ok()?;
        Some(asked.parse().unwrap_or_else(|_| panic!("a number in {name}")))
    };
    ProptestConfig {
        cases: number("SEQUENCES").map_or(1000, |cases: u64| cases as u32),
        rng_seed: RngSeed::Fixed(number("SEED").unwrap_or(1)),
        failure_persistence: None,
        max_shrink_iters: 1000,
        ..ProptestConfig::default()
    }
}

/// The profile with this ID.
fn named(id: &str) -> Profile {
    Profile { id: id.to_owned(), others: Vec::new() }
}

/// Whether a login is what a node in this state needs. `elsewhere`: it is another control server's
/// than the asked one.
fn needs_login(situation: &Situation, elsewhere: bool) -> bool {
    match situation {
        Situation::NeedsLogin { .. }
        | Situation::AsksForPerson { .. }
        | Situation::SettlingNew { error: None | Some(LoginError::Unknown(_)) } => true,
        Situation::Settling { .. }
        | Situation::SettlingNew { .. }
        | Situation::Offline { .. }
        | Situation::Stopped
        | Situation::NeedsApproval => elsewhere,
        _ => false,
    }
}
