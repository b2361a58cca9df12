//! The program on a stand-in for tailscaled: a Unix socket that answers as the test says.

mod address;
mod answers;
mod bus;
mod hostile;
mod login;
mod requests;
mod silent;
mod states;
mod systemd;
mod terminal;

use std::path::Path;

use serde_json::{Value, json};
use tailnet_harness::{FakeTailscaled, Request, Response, Run, status_json};

const STATUS: &str = "/localapi/v0/status";
const PREFS: &str = "/localapi/v0/prefs";
const START: &str = "/localapi/v0/start";
const BUS: &str = "/localapi/v0/watch-ipn-bus";

/// The program on this stand-in. There is neither a CLI nor a key file: a login would fail.
fn program(fake: &FakeTailscaled) -> Run {
    program_with_key(fake, Path::new("/nonexistent/token"))
}

/// The same with a key file.
fn program_with_key(fake: &FakeTailscaled, file: &Path) -> Run {
    Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .socket(fake.socket())
        .tailscale("/nonexistent/tailscale")
        .authkey_file(file)
}

/// Whether the program runs under an emulator, as in tests/arm.sh. Its start alone takes a second or two
/// there on a busy machine.
fn is_emulated() -> bool {
    std::env::var_os("EMULATED").is_some()
}

/// A time limit in which a run has looked at its daemon.
fn a_moment() -> [&'static str; 2] {
    ["--timeout", if is_emulated() { "4s" } else { "1s" }]
}

/// A daemon that is in this state and stays there, with the bus open.
fn stays(status: Value) -> impl Fn(&Request) -> Response + Send + Sync + 'static {
    move |request| match request {
        _ if request.is_status() => Response::json(status.clone()),
        _ if request.is_bus() => Response::stream(),
        _ if request.path == PREFS => Response::json(json!({ "WantRunning": true })),
        _ => Response::status(404, "404 page not found\n"),
    }
}

/// From now on, the daemon is connected.
fn connect(fake: &FakeTailscaled) {
    fake.script(stays(status_json("Running", json!({}))));
    fake.ring();
}

/// The requests that change something, as `METHOD path body`.
fn changes(fake: &FakeTailscaled) -> Vec<String> {
    let requests = fake.requests().into_iter();
    requests
        .filter(|request| request.method != "GET")
        .map(|request| format!("{} {} {}", request.method, request.path, request.body))
        .collect()
}
