//! Files on a file system that does not answer, as that of a server that is gone.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{
    FakeCli, FakeTailscaled, KeyFile, Response, Run, Signal, is_root, status_json,
};

use crate::{PREFS, stays};

/// Mounts at $0 a FUSE file system that nobody serves, and runs the rest there. It is gone with the
/// process, in whose mount namespace it is and which has its device open.
const MOUNT: &str = "exec 3<>/dev/fuse && \
    mount -i -t fuse none \"$0\" -o fd=3,rootmode=40000,user_id=0,group_id=0 && exec \"$@\"";

/// A node that needs a login, and the program on it in a place where this directory is silent.
/// Only root can mount one.
fn program_beside(silent: &Path) -> Option<(FakeTailscaled, Run)> {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("not run: only root can mount a file system, and only with FUSE");
        return None;
    }
    let needs_login = stays(status_json("NeedsLogin", json!({})));
    let fake = FakeTailscaled::start(move |request| match request.path.as_str() {
        PREFS => Response::json(json!({ "WantRunning": false })),
        _ => needs_login(request),
    });
    let run = Run::new("unshare")
        .args(["--mount", "sh", "-c", MOUNT])
        .arg(silent)
        .arg(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .socket(fake.socket())
        .limit(Duration::from_secs(20));
    Some((fake, run))
}

#[test]
fn a_key_file_that_does_not_answer_holds_up_neither_a_boot_nor_the_end() {
    let dir = KeyFile::absent();
    let Some((_fake, run)) = program_beside(dir.dir()) else {
        return;
    };
    let run = run
        .authkey_file(dir.path())
        .args(["--ready-after", "500ms"]);
    let late = run.clone().args(["--timeout", "5s"]).run();
    late.assert_code(66);
    let why = "(the file system does not answer); is what it is mounted from there?";
    assert!(late.stderr.contains(why), "{}", late.stderr);
    let ready = late.ready_at().expect("READY is said");
    assert!(ready < Duration::from_secs(4), "{ready:?}");

    let run = run.spawn();
    run.wait_ready();
    run.signal(Signal::TERM);
    assert_eq!(run.wait().signal, Some(Signal::TERM.as_raw()));
}

#[test]
fn a_command_that_does_not_answer_is_looked_at_again() {
    let dir = KeyFile::absent();
    let key = KeyFile::new("a-good-key");
    let Some((_fake, run)) = program_beside(dir.dir()) else {
        return;
    };
    let run = run
        .authkey_file(key.path())
        .tailscale(dir.dir().join("tailscale"))
        .spawn();
    run.wait_status_text(
        "the login failed and is tried again: cannot look at the tailscale command",
    );
    run.signal(Signal::TERM);
    assert_eq!(run.wait().signal, Some(Signal::TERM.as_raw()));
}

#[test]
fn a_check_ends_whatever_does_not_answer() {
    let dir = KeyFile::absent();
    let Some((_fake, run)) = program_beside(dir.dir()) else {
        return;
    };
    let run = run.arg("--check");
    let cli = FakeCli::printing("1.98.10\n", "", 0);
    let no_key = run
        .clone()
        .authkey_file(dir.path())
        .tailscale(cli.path())
        .run();
    no_key.assert_code(66);
    let said = no_key
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(said.contains("the file system does not answer"), "{said}");

    let key = KeyFile::new("a-good-key");
    let no_command = run
        .authkey_file(key.path())
        .tailscale(dir.dir().join("tailscale"))
        .run();
    no_command.assert_code(75);
    let said = no_command
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(said.contains("does not answer; repair it"), "{said}");
}
