//! The Debian package: what is in it, and how it is installed, removed and purged.

use std::path::Path;
use std::process::Command;

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, block_of_the_readme, package};

#[test]
fn its_manual_page_and_completions_are_where_they_are_looked_for() {
    let tailnet = Tailnet::start_apart();
    let machine = Machine::new(Debian::Trixie, &tailnet);
    let page = machine.offline(&["man", "--pager=cat", "tailscale-autoconnect"]);
    for part in ["join this machine to its tailnet", "STATUS TEXTS"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for (file, beginning) in [
        ("bash-completion/completions/tailscale-autoconnect", "_tail"),
        ("zsh/vendor-completions/_tailscale-autoconnect", "#compdef tailscale-autoconnect\n"),
        (
            "fish/vendor_completions.d/tailscale-autoconnect.fish",
            "complete -c tailscale-autoconnect ",
        ),
        (
            "doc/tailscale-autoconnect/copyright",
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n",
        ),
    ] {
        let text = machine.offline(&["cat", &format!("/usr/share/{file}")]);
        assert!(text.starts_with(beginning), "{file}: {text}");
    }
}

#[test]
fn debians_checker_finds_no_fault_with_it() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/lintian.sh");
    let output = Command::new(script).arg(package()).output();
    let output = output.expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
}

#[test]
fn installed_on_a_running_machine_it_joins_at_the_next_boot() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::bare(Debian::Trixie, &tailnet);
    machine.secret(&key);
    let place = machine.put_package();
    machine.boot_to_the_end();

    machine.run(&["dpkg", "--install", &place]);
    assert_eq!(machine.run(&["systemctl", "is-enabled", UNIT]), "enabled\n");
    assert!(machine.ours().is("ActiveState", "inactive"));
    assert_eq!(tailnet.state().registers.total, 0);

    machine.reboot();
    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).uses, 1);
}

/// What the text before the commands asks for is there before them: tailscale (root.sh installs it), the
/// package in the folder where they are typed, and the auth key in the file that they name. A drop-in
/// names the control server of the test.
#[test]
fn a_new_user_joins_with_the_commands_of_the_readme() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::bare(Debian::Trixie, &tailnet);
    machine.put_package();
    let commands = block_of_the_readme("Debian");
    let (_, file) = commands.split_once("_AUTHKEY_FILE=/").expect("they name the key file");
    let file = file.split_whitespace().next().expect("a path");
    machine.write(file, &format!("{key}\n"));
    machine.offline(&["chmod", "0600", &format!("/{file}")]);
    machine.boot_to_the_end();

    machine.run(&["bash", "-euc", &format!("cd /root\n{commands}")]);

    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
    // And at each boot from then on.
    machine.reboot();
    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

#[test]
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
    assert!(ours.is("ActiveState", "inactive"), "{}", ours.get("ActiveState"));
    assert_eq!(machine.processes_of(UNIT), Vec::<String>::new());
    let daemon = machine.show("tailscaled.service");
    assert!(daemon.is("ActiveState", "active"), "tailscaled goes on");

    machine.run(&["dpkg", "--purge", "tailscale-autoconnect"]);
    // Its drop-in is the admin's, who wrote it.
    machine.run(&["rm", "-r", "/etc/systemd/system/tailscale-autoconnect.service.d"]);
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
    machine.wait_unit("multi-user.target", "reached", |unit| unit.is("ActiveState", "active"));
    assert!(machine.ours().is("LoadState", "not-found"));
    assert!(!machine.journal("init.scope").contains(UNIT));
}
