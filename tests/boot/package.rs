//! The Debian package: installed, removed and purged.

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT};

#[test]
#[ignore = "boots real systemd: run tests/run.sh"]
fn installed_on_a_running_machine_it_joins_at_the_next_boot() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::bare(Debian::Trixie, &tailnet);
    machine.secret(&key);
    machine.put_package();
    machine.boot_to_the_end();

    machine.run(&["dpkg", "--install", "/root/package.deb"]);
    assert_eq!(machine.run(&["systemctl", "is-enabled", UNIT]), "enabled\n");
    assert!(machine.ours().is("ActiveState", "inactive"));
    assert_eq!(tailnet.state().registers.total, 0);

    machine.reboot();
    machine.wait_done();
    assert_eq!(tailnet.state().key(&key).uses, 1);
}

#[test]
#[ignore = "boots real systemd: run tests/run.sh"]
fn removed_it_is_stopped_and_purged_it_leaves_nothing() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    tailnet.fault("down");
    machine.boot_to_the_end();
    machine.wait_status_text("waiting for the control server");

    machine.run(&["dpkg", "--remove", "tailscale-autoconnect"]);
    let ours = machine.ours();
    assert!(
        ours.is("ActiveState", "inactive"),
        "{}",
        ours.get("ActiveState")
    );
    assert_eq!(machine.processes_of(UNIT), Vec::<String>::new());
    let daemon = machine.show("tailscaled.service");
    assert!(daemon.is("ActiveState", "active"), "tailscaled goes on");

    machine.run(&["dpkg", "--purge", "tailscale-autoconnect"]);
    // Its drop-in is the admin's, who wrote it.
    machine.run(&[
        "rm",
        "-r",
        "/etc/systemd/system/tailscale-autoconnect.service.d",
    ]);
    let left = machine.run(&[
        "find",
        "/",
        "-xdev",
        "-name",
        "*tailscale-autoconnect*",
        "-not",
        "-path",
        "/proc/*",
    ]);
    assert_eq!(left, "");
    // A restart of the daemon doesn't miss it, nor does the next boot.
    machine.systemctl("restart", "tailscaled.service");
    machine.reboot();
    machine.wait_unit("multi-user.target", "reached", |unit| {
        unit.is("ActiveState", "active")
    });
    assert!(machine.ours().is("LoadState", "not-found"));
    assert!(!machine.journal("init.scope").contains(UNIT));
}
