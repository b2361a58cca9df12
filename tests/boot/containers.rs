//! Containers that may do less than a machine.
//!
//! LXC itself is not there. What its containers cannot do is taken away from those of systemd-nspawn:
//! by a user namespace, or by system calls that end with EPERM.

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, setting};
use crate::sandbox::{PROBE, probed};

const WITHOUT_MOUNTS: &str = include_str!("../../units/examples/without-mounts.conf");

/// Whether the main process of the unit has only these system calls and capabilities.
fn assert_restricted(machine: &Machine) {
    let process = machine.ours().get("MainPID").to_owned();
    let status = machine.run(&["cat", &format!("/proc/{process}/status")]);
    for line in ["CapBnd:\t0000000000000004", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

pub fn no_mounts(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    // 257 unmounts what it has mounted before.
    let mut machine = Machine::contained(debian, &tailnet, &["--system-call-filter=~umount2"]);
    machine.secret(&key);
    machine.boot();
    let ours = machine.wait_ours("failed", |unit| unit.is("SubState", "auto-restart"));
    assert_eq!(ours.end(), "exited 226");
    assert_eq!(tailnet.state().registers.total, 0);

    tailnet.fault("down");
    machine.drop_in("20-without-mounts", WITHOUT_MOUNTS);
    machine.run(&["systemctl", "daemon-reload"]);
    machine.run(&["systemctl", "restart", "--no-block", UNIT]);
    machine.wait_status_text("waiting for the control server");
    assert_restricted(&machine);
    tailnet.lift_faults();
    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).uses, 1);
    let state = machine.run(&["stat", "-c", "%a", "/var/lib/tailscale-autoconnect"]);
    assert_eq!(state, "700\n");
}

#[test]
fn a_container_without_mounts_needs_the_drop_in() {
    no_mounts(Debian::Trixie);
}

pub fn no_namespaces(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::contained(debian, &tailnet, &["--system-call-filter=~unshare"]);
    machine.secret(&key);

    machine.boot();
    machine.wait_connected();

    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn in_a_container_without_namespaces_systemd_does_without_them_by_itself() {
    no_namespaces(Debian::Trixie);
}

/// The command belongs to somebody outside, and looks like nobody's: 65534's, who exists.
pub fn user_namespace(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let given = "--bind-ro=/tmp/root/opt/tailscale:/usr/bin/tailscale";
    let mut machine = Machine::in_user_namespace(debian, &tailnet, &[given]);
    machine.offline(&["cp", "/usr/bin/tailscale", "/opt/tailscale"]);
    machine.offline(&["chown", "100000:100000", "/opt/tailscale"]);
    machine.secret(&tailnet.single_use_key());
    machine.write_script("usr/local/bin/probe", PROBE);
    machine.drop_in(
        "20-probe",
        "[Service]\nExecStartPre=/usr/local/bin/probe\n\
         ExecStartPre=/usr/bin/stat -c 'owner %%u' /usr/bin/tailscale\n",
    );
    machine.drop_in("21-ready", &setting("READY_AFTER", "infinity"));

    machine.boot_to_the_end();
    machine.wait_status_text("waiting for the control server");

    assert_restricted(&machine);
    let journal = machine.journal(UNIT);
    assert!(journal.contains("owner 65534"), "{journal}");
    assert_eq!(probed(&journal), ["wrote /var/lib/tailscale-autoconnect", "done"], "{journal}");
}

#[test]
fn in_a_user_namespace_the_sandbox_holds_and_a_command_from_outside_is_run() {
    user_namespace(Debian::Trixie);
}
