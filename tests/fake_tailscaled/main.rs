//! The program on a stand-in for tailscaled: a Unix socket that answers as the test says.

use serde_json::json;
use tailnet_harness::{FakeTailscaled, Run, status_json};

#[test]
fn a_running_node_takes_one_request() {
    let fake = FakeTailscaled::with_status(status_json("Running", json!({})));
    let run = Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .socket(fake.socket())
        .run();
    run.assert_code(0);
    assert_eq!(fake.requests().len(), 1);
}
