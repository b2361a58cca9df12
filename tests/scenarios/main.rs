//! The program on real daemons: real tailscaled, the real `tailscale` CLI and a control server
//! that speaks the real protocol, all on loopback. See `tests/run.sh`.
//!
//! Every test has its own tailnet and its own nodes.

mod join;

use tailnet_harness::{KeyFile, Node, Run, Tailnet};

/// The program under test, as an admin would run it on `node`.
fn program(tailnet: &Tailnet, node: &Node, key: &KeyFile) -> Run {
    program_without_server(node, key).login_server(tailnet.url())
}

/// The same without `--login-server`.
fn program_without_server(node: &Node, key: &KeyFile) -> Run {
    Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .node(node)
        .cli()
        .authkey_file(key.path())
}
