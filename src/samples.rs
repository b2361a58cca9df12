//! What the unit tests of several modules have in common: statuses of tailscaled, and any text.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::tailscaled::Status;

/// The control server's words on a deleted auth key.
pub const REFUSAL: &str = "invalid key: API key does not exist";

/// A tailscaled in this state, with nothing else to say.
pub fn status(state: &str) -> Status {
    Status { version: "1.98.10-t1-g2".into(), backend_state: state.into(), ..Status::default() }
}

/// The same with a node key.
pub fn keyed(mut status: Status) -> Status {
    status.have_node_key = true;
    status
}

/// The same, asking for a person.
pub fn asking(mut status: Status) -> Status {
    status.auth_url = "https://login.tailscale.com/a/1".into();
    status
}

/// The same with this error of its last login.
pub fn with_error(mut status: Status, error: &str) -> Status {
    status.health = vec![format!("You are logged out. The last login error was: {error}")];
    status
}

/// The same, online.
pub fn online(mut status: Status) -> Status {
    status.node.online = true;
    status.node.dns_name = "host.example.ts.net.".into();
    status
}

/// Any text, with the control characters that proptest leaves out of its own.
pub fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => any::<char>().prop_map(String::from),
        1 => proptest::sample::select(&["\n", "\r\n", "\0", "\u{1b}[", "\u{85}", "\"", "\\", " ", ": "][..])
            .prop_map(str::to_owned),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}
