//! The NixOS host of README.md: the units that come out of its evaluated configuration, and what agenix
//! does when such a host boots and is switched. tests/nix/boot.nix evaluates it, on stand-ins for
//! nixpkgs' lib and agenix, or on the real ones that `NIXPKGS_LIB` and `AGENIX_MODULE` name.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::{env, fs};

use serde::Deserialize;
use tailnet_harness::Tailnet;
use tempfile::TempDir;

use crate::machine::{Debian, Machine, UNIT, block_of_the_readme};

const UNITS: &str = "etc/systemd/system";
const INSTALL: &str = "usr/local/sbin/agenix-install";

/// Like age, but slow: whoever doesn't wait for it finds no secret.
const SLOW_AGE: &str = "#!/bin/sh\nsleep 2\nexec /usr/bin/age \"$@\"\n";

/// When agenix decrypts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decrypts {
    /// Before systemd starts: in an activation script.
    InActivation,
    /// By a service, where users are made by userborn or systemd-sysusers.
    ByService,
}

/// What comes out of the configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    files: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
    install_secrets: String,
}

/// The flake in README.md, as it stands there, beside the configuration that a host has of its own: what a
/// comment says that it is with.
fn flake_of_the_readme() -> TempDir {
    let flake = block_of_the_readme("NixOS");
    let (_, own) = flake.split_once("./configuration.nix # with ").expect("a comment");
    let (own, _) = own.split_once(':').expect("an option and what it is for");
    let folder = tempfile::tempdir().expect("a folder of our own");
    let write = |name, text: &str| fs::write(folder.path().join(name), text).expect("it is ours");
    write("flake.nix", flake);
    write("configuration.nix", &format!("{{ {own}; }}"));
    folder
}

fn evaluate(login_server: &str, age: &str, decrypts: Decrypts) -> Host {
    let folder = flake_of_the_readme();
    let real = |argument: &str, variable: &str, import: &str| {
        env::var(variable).map_or(String::new(), |path| format!("{argument} = {import}{path};"))
    };
    let expression = format!(
        "import {}/tests/nix/boot.nix {{ flake = {}/flake.nix; loginServer = \"{login_server}\"; \
         age = \"{age}\"; userborn = {}; {} {} }}",
        env!("CARGO_MANIFEST_DIR"),
        folder.path().display(),
        decrypts == Decrypts::ByService,
        real("lib", "NIXPKGS_LIB", "import "),
        real("agenix", "AGENIX_MODULE", ""),
    );
    let output = Command::new("timeout")
        .args(["60", "nix-instantiate", "--eval", "--strict", "--json"])
        .args(["--store", "dummy://", "--expr", &expression])
        .output()
        .expect("timeout is there");
    assert!(
        output.status.success(),
        "nix-instantiate (of Debian's nix-bin) failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("what boot.nix says")
}

/// A machine that is set up as the host, with an auth key that is encrypted to it.
fn host(tailnet: &Tailnet, key: &str, decrypts: Decrypts) -> Machine {
    let machine = Machine::bare(Debian::Trixie, tailnet);
    // The module says it.
    fs::remove_file(machine.path(&format!("{UNITS}/{UNIT}.d/10-server.conf"))).expect("it's there");
    let program = machine.path("usr/bin/tailscale-autoconnect");
    fs::copy(env!("CARGO_BIN_EXE_tailscale-autoconnect"), &program).expect("it can be written");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it is ours");

    machine.encrypt_secret(key);
    machine.write_script("usr/local/bin/slow-age", SLOW_AGE);
    // A group of NixOS.
    machine.offline(&["groupadd", "--system", "keys"]);

    let host = evaluate(tailnet.url(), "/usr/local/bin/slow-age", decrypts);
    for (name, text) in &host.files {
        machine.write(&format!("{UNITS}/{name}"), text);
    }
    for (name, target) in &host.links {
        let link = machine.path(&format!("{UNITS}/{name}"));
        fs::create_dir_all(link.parent().expect("a folder")).expect("it can be made");
        symlink(target, link).expect("nothing is there yet");
    }
    machine.write_script(INSTALL, &format!("#!/bin/bash\n{}\n", host.install_secrets));
    if decrypts == Decrypts::InActivation {
        // What is before systemd: the second stage of the boot.
        machine.offline(&["mkdir", "/usr/lib/systemd/second"]);
        machine.offline(&["mv", "/usr/lib/systemd/systemd", "/usr/lib/systemd/second/"]);
        machine.write_script(
            "usr/lib/systemd/systemd",
            &format!(
                "#!/bin/bash\n/{INSTALL} >/run/activation 2>&1\n\
                 exec /usr/lib/systemd/second/systemd \"$@\"\n"
            ),
        );
    }
    machine
}

fn boots_joins_and_is_rotated(decrypts: Decrypts) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = host(&tailnet, &key, decrypts);
    // Ordered after the name that nixpkgs has for it, as services of NixOS are.
    machine.unit(
        "consumer.service",
        "multi-user.target",
        "[Unit]\nWants=tailscaled-autoconnect.service\nAfter=tailscaled-autoconnect.service\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/tailscale status\n",
    );

    machine.boot();
    let ours = machine.wait_connected();
    let consumer = machine.wait_unit("consumer.service", "done", |unit| {
        unit.end().starts_with("exited") && !unit.is("ExecMainExitTimestampMonotonic", "0")
    });
    assert_eq!(consumer.end(), "exited 0");
    assert_eq!(ours.number("NRestarts"), 0);
    if decrypts == Decrypts::ByService {
        let secrets = machine.show("agenix-install-secrets.service");
        assert!(ours.time("ExecMainStart") >= secrets.time("ExecMainExit"));
    }
    assert_eq!(machine.run(&["readlink", "/run/agenix"]), "/run/agenix.d/1\n");
    assert!(ours.get("Names").contains("tailscaled-autoconnect.service"));
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    let kept = machine.run(&["stat", "-c", "%a", "/var/lib/tailscale-autoconnect"]);
    assert_eq!(kept, "700\n");
    // By the flag of the configuration.
    assert!(state.device("nixos").is_some(), "{:?}", state.nodes);

    // With the used key: the node key is enough.
    machine.reboot();
    machine.wait_connected();
    assert_eq!(tailnet.state().registers.with_key, 1);
    assert!(machine.is_online());

    // The device is logged out, and the key replaced: what a switch does is decrypt it into a new
    // generation, and restart our unit, whose restartTriggers have the file of the secret.
    let before = machine.ours().get("InvocationID").to_owned();
    machine.run(&["tailscale", "logout"]);
    let new_key = tailnet.single_use_key();
    machine.encrypt_secret(&new_key);
    machine.run(&[&format!("/{INSTALL}")]);
    assert_eq!(machine.run(&["readlink", "/run/agenix"]), "/run/agenix.d/2\n");
    machine.systemctl("restart", UNIT);
    machine.wait_connected_after(&before);
    assert_eq!(tailnet.state().key(&new_key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn a_nixos_host_joins_when_agenix_decrypts_in_activation() {
    boots_joins_and_is_rotated(Decrypts::InActivation);
}

#[test]
fn a_nixos_host_joins_when_agenix_decrypts_by_a_service() {
    boots_joins_and_is_rotated(Decrypts::ByService);
}

/// The unit of services.tailscale.extraSetFlags is ordered after ours.
#[test]
fn a_nixos_host_that_boots_offline_does_not_wait_for_tailscale_set() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = host(&tailnet, &key, Decrypts::InActivation);
    tailnet.fault("down");

    machine.boot_to_the_end();
    assert!(machine.ours().is("ActiveState", "activating"));

    // Once ours is ready, connected or not. The setting is kept when the node joins.
    let set = machine.wait_unit("tailscaled-set.service", "done", |unit| {
        unit.end().starts_with("exited") && !unit.is("ExecMainExitTimestampMonotonic", "0")
    });
    assert_eq!(set.end(), "exited 0");
    assert!(set.time("ExecMainStart") >= machine.ours().time("ActiveEnter"));
    tailnet.lift_faults();
    machine.wait_status_text("connected as nixos.");
    assert_eq!(machine.settings()["RouteAll"], true);
}

/// A host that had services.tailscale.authKeyFile, whose unit has the other name of ours.
#[test]
fn a_nixos_host_that_joined_by_nixpkgs_unit_is_taken_over_as_it_is() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = host(&tailnet, &key, Decrypts::InActivation);
    let links = format!("{UNITS}/multi-user.target.wants");
    let ours = machine.path(&format!("{links}/{UNIT}"));
    let alias = machine.path(&format!("{UNITS}/tailscaled-autoconnect.service"));
    let by_tailscaled = machine.path(&format!("{UNITS}/tailscaled.service.wants/{UNIT}"));
    for link in [&ours, &alias, &by_tailscaled] {
        fs::remove_file(link).expect("it is there");
    }
    machine.unit(
        "tailscaled-autoconnect.service",
        "multi-user.target",
        &format!(
            "[Unit]\nAfter=tailscaled.service\nWants=tailscaled.service\n\
             [Service]\nType=notify\nNotifyAccess=all\n\
             ExecStart=/bin/sh -c 'tailscale up --login-server={} --hostname=nixos \
             --auth-key=\"$$(cat /run/agenix/tailscale-token)\" && systemd-notify --ready'\n",
            tailnet.url()
        ),
    );
    machine.boot();
    machine.wait("joined", || machine.is_online().then_some(()));

    // What a switch changes.
    let target = format!("/{UNITS}/{UNIT}");
    fs::remove_file(&alias).expect("it is there");
    fs::remove_file(machine.path(&format!("{links}/tailscaled-autoconnect.service")))
        .expect("it is there");
    for link in [&ours, &alias, &by_tailscaled] {
        symlink(&target, link).expect("nothing is there");
    }
    machine.run(&["systemctl", "daemon-reload"]);
    machine.systemctl("start", "multi-user.target");

    let unit = machine.wait_status_text("connected as nixos.");
    assert!(unit.get("Names").contains("tailscaled-autoconnect.service"));
    let state = tailnet.state();
    assert_eq!((state.registers.with_key, state.key(&key).uses), (1, 1));
}
