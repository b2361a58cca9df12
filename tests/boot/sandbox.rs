//! What the unit may do, and that the key stays where it is.

use serde_json::json;
use tailnet_harness::{Tailnet, scan_files_for, watch_processes_for};

use crate::machine::{Debian, Machine, UNIT};

/// Tries to change things, and says what it could.
pub const PROBE: &str = r#"#!/bin/sh
for folder in / /boot /dev /dev/shm /etc /home /mnt /opt /root /run /run/agenix.d /run/lock \
    /run/systemd/system /run/tailscale /srv /tmp /usr/bin /var /var/cache /var/lib \
    /run/user /var/lib/tailscale /var/lib/tailscale-autoconnect /var/log /var/tmp
do
    if ( : >"$folder/probe" ) 2>/dev/null; then echo "probe: wrote $folder"; fi
done
attempt() { if "$@" >/dev/null 2>&1; then echo "probe: could $1"; fi; }
attempt mknod /var/lib/tailscale-autoconnect/probe-device c 1 3
attempt chown nobody /var/lib/tailscale-autoconnect/probe
attempt hostname probed
attempt renice -n -5 $$
attempt unshare --user true
attempt chmod u+s /var/lib/tailscale-autoconnect/probe
attempt mount -t tmpfs none /mnt
echo "probe: done"
"#;

pub fn probed(output: &str) -> Vec<&str> {
    output
        .lines()
        .filter_map(|line| line.split_once("probe: "))
        .map(|(_, finding)| finding)
        .collect()
}

pub fn only_state_to_write(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    machine.write_script("usr/local/bin/probe", PROBE);
    machine.drop_in("20-probe", "[Service]\nExecStartPre=/usr/local/bin/probe\n");

    machine.boot_to_the_end();
    machine.wait_connected();

    let journal = machine.journal(UNIT);
    assert_eq!(probed(&journal), ["wrote /var/lib/tailscale-autoconnect", "done"], "{journal}");
    let mode = machine.run(&["stat", "-c", "%U %a", "/var/lib/tailscale-autoconnect"]);
    assert_eq!(mode, "root 700\n");
    // The probe can tell: outside of the sandbox, root can do all of it.
    let outside = machine.run(&["/usr/local/bin/probe"]);
    let found = probed(&outside);
    for could in [
        "wrote /etc",
        "wrote /run",
        "wrote /run/agenix.d",
        "wrote /var/lib/tailscale",
        "wrote /root",
        "could mknod",
        "could mount",
        "could chown",
        "could hostname",
        "could chmod",
    ] {
        assert!(found.contains(&could), "{could}: {found:?}");
    }
}

#[test]
fn it_can_write_its_state_and_change_nothing_else() {
    only_state_to_write(Debian::Trixie);
}

pub fn unit_is_sound(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(debian, &tailnet);
    machine.boot();

    let unit = format!("/usr/lib/systemd/system/{UNIT}");
    let verified = machine.try_run(&["systemd-analyze", "verify", &unit]);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    let complaints = said.lines().filter(|line| {
        line.contains(UNIT)
            // systemd 252 does not know these, and does without.
            && !(debian == Debian::Bookworm
                && (line.contains("'RestartSteps'") || line.contains("'RestartMaxDelaySec'")))
    });
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());

    let security = machine.run(&["systemd-analyze", "security", "--no-pager", UNIT]);
    let level = security
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for ")?.1.split_once(": "))
        .and_then(|(_, level)| level.split_whitespace().next()?.parse::<f32>().ok())
        .expect("it says a level");
    assert!(level <= 1.8, "{security}");
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_little_exposure() {
    unit_is_sound(Debian::Trixie);
}

#[test]
fn the_key_is_in_no_journal_no_process_no_core_and_no_file_but_its_own() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    machine.drop_in(
        "20-verbose",
        "[Service]\nExecStart=\nExecStart=/usr/bin/tailscale-autoconnect -vv\n",
    );
    tailnet.policy(json!({"register_delay_ms": 2000}));
    let watch = watch_processes_for(&key);

    machine.boot();
    tailnet.wait_until(|state| state.key(&key).attempts == 1, "the login");
    let process = machine.ours().get("MainPID").to_owned();
    let limits = machine.run(&["cat", &format!("/proc/{process}/limits")]);
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .map(|limits| limits.split_whitespace().collect::<Vec<_>>());
    assert_eq!(core, Some(vec!["0", "0", "bytes"]));
    machine.run(&["systemctl", "kill", "--signal=ABRT", "--kill-whom=main", UNIT]);
    let crashed = machine.wait_ours("crashed", |unit| unit.is("SubState", "auto-restart"));
    machine.wait_connected();

    // It would be "dumped 6" with a core.
    assert_eq!(crashed.end(), "killed 6");
    let watched = watch.stop();
    assert_eq!(watched.found, Vec::<String>::new());
    assert!(watched.rounds > 10);
    let journal = machine.run(&["journalctl", "--boot", "--all", "--output=export"]);
    assert!(journal.contains("logging in with the auth key from /run/agenix/tailscale-token"));
    assert!(!journal.contains(&key));
    assert_eq!(
        scan_files_for(&machine.inside("run"), &key),
        [machine.inside("run/agenix.d/1/tailscale-token")]
    );
    assert_eq!(scan_files_for(&machine.written(), &key), Vec::<std::path::PathBuf>::new());
    assert_eq!(tailnet.state().key(&key).uses, 1);
}
