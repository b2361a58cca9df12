//! The program on real daemons: real tailscaled, the real `tailscale` CLI and a control server
//! that speaks the real protocol, all on loopback. See `tests/run.sh`.
//!
//! Every test has its own tailnet and its own nodes.

mod attack;
mod check;
mod control_server;
mod daemon;
mod deleted;
mod failed_login;
mod join;
mod joined;
mod keyfile;
mod login_command;
mod put_back;
mod reboot;
mod record;
mod refusal;
mod renewal;
mod secrecy;
mod server;
mod settings;
mod stay;
mod stranded;
mod terminal;
mod trust;
mod waiting;
mod words;

use tailnet_harness::{Finished, KeyFile, Node, Run, Tailnet};

/// The program under test, as an admin would run it on `node`.
fn program(tailnet: &Tailnet, node: &Node, key: &KeyFile) -> Run {
    program_without_server(node, key).login_server(tailnet.url())
}

/// The same without `--login-server`.
fn program_without_server(node: &Node, key: &KeyFile) -> Run {
    Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect")).node(node).cli().authkey_file(key.path())
}

/// What a join comes to, however it went: the node is online, the key was used once, and READY
/// was said before exit 0.
fn assert_joined(run: &Finished, tailnet: &Tailnet, node: &Node, key: &str) {
    run.assert_code(0);
    assert!(run.ready_at().is_some());
    assert_eq!(run.left_behind, Vec::<u32>::new());
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.state().key(key).uses, 1);
}
