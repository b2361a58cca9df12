//! An auth key that stays away, cannot be used or belongs to another user.

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, setting};

pub fn no_secret(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.encrypt_secret(&key);
    machine.drop_in("20-wait", &setting("AUTHKEY_WAIT", "300ms"));

    machine.boot();
    let resting = |unit: &crate::machine::Unit| unit.is("SubState", "auto-restart");
    let first = machine.wait_ours("to rest", |unit| resting(unit) && unit.is("NRestarts", "0"));
    assert_eq!(first.end(), "exited 66");
    machine.wait_exit_shown("66/NOINPUT", "/run/agenix/tailscale-token does not exist");
    let second = machine.wait_ours("to rest again", |unit| {
        resting(unit) && !unit.is("ExecMainPID", first.get("ExecMainPID"))
    });
    if debian == Debian::Trixie {
        let (first, second) = (first.get("RestartUSecNext"), second.get("RestartUSecNext"));
        let grows = first == "5s" && second.starts_with("9.8");
        assert!(grows, "first {first}, then {second}");
    }
    assert_eq!(tailnet.state().registers.total, 0);

    machine.install_secret();
    let ours = machine.wait_connected();
    assert_eq!(ours.number("NRestarts"), 2);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn without_a_secret_it_tries_ever_more_rarely_until_one_comes() {
    no_secret(Debian::Trixie);
}

pub fn unusable_secret(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret("-----BEGIN AGE ENCRYPTED FILE-----\nYWdlLWVuY3J5cHRpb24ub3Jn\n");

    machine.boot();
    let ours = machine.wait_ours("failed", |unit| unit.is("ActiveState", "failed"));

    assert_eq!(ours.end(), "exited 78");
    // A restart would be auto-restart, not failed.
    assert_eq!((ours.get("SubState"), ours.number("NRestarts")), ("failed", 0));
    machine.wait_exit_shown("78/CONFIG", "is still encrypted with age");
    assert_eq!(tailnet.state().registers.total, 0);
}

#[test]
fn a_secret_that_cannot_be_used_is_final() {
    unusable_secret(Debian::Trixie);
}

#[test]
fn a_key_of_another_user_that_nobody_else_may_read_is_used() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    machine.write("etc/tailscale-token.owner", "nobody:nogroup\n");

    machine.boot();
    machine.wait_connected();

    let owner = machine.run(&["stat", "-Lc", "%U %a", "/run/agenix/tailscale-token"]);
    assert_eq!(owner, "nobody 400\n");
    assert_eq!(tailnet.state().key(&key).uses, 1);
}

/// Where people keep their key: its file, and a link to it by which the unit knows it.
const PLACES: [(&str, Option<&str>); 7] = [
    ("/root/key", None),
    ("/home/u/key", None),
    ("/tmp/key", None),
    ("/tmp/folder/key", None),
    ("/var/tmp/key", None),
    ("/home/u/linked", Some("/etc/tailscale/home")),
    ("/tmp/linked", Some("/etc/tailscale/tmp")),
];

pub fn everywhere(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(debian, &tailnet);
    machine.offline(&["systemctl", "disable", UNIT]);
    machine.offline(&["useradd", "--create-home", "u"]);
    machine.offline(&["mkdir", "/etc/tailscale"]);
    machine.boot_to_the_end();
    machine.run(&["mkdir", "/tmp/folder"]);

    for (file, link) in PLACES {
        let key = tailnet.single_use_key();
        let place = format!("umask 077; printf %s \"$1\" >{file}");
        machine.run(&["sh", "-c", &place, "sh", &key]);
        if file.starts_with("/home") {
            machine.run(&["chown", "u:", file]);
        }
        if let Some(link) = link {
            machine.run(&["ln", "-s", file, link]);
        }
        let named = link.unwrap_or(file);
        machine.drop_in("20-key", &setting("AUTHKEY_FILE", named));
        machine.run(&["systemctl", "daemon-reload"]);
        machine.systemctl("restart", UNIT);
        machine.wait(named, || machine.is_online().then_some(()));
        assert_eq!(tailnet.state().key(&key).uses, 1, "{named}");
        machine.run(&["tailscale", "logout"]);
    }
}

#[test]
fn a_key_in_a_home_or_a_folder_for_temporary_files_is_found_also_by_a_link() {
    everywhere(Debian::Trixie);
}

pub fn refused_key(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let dead = tailnet.single_use_key();
    tailnet.revoke_key(&dead);
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&dead);

    machine.boot();
    let ours = machine.wait_ours("failed", |unit| unit.is("ActiveState", "failed"));

    assert_eq!(ours.end(), "exited 77");
    assert_eq!((ours.get("SubState"), ours.number("NRestarts")), ("failed", 0));
    let refused = "the control server refused the auth key: invalid key: API key";
    machine.wait_exit_shown("77/NOPERM", refused);
    let errors = machine.errors_of(UNIT);
    assert_eq!(errors.lines().filter(|line| line.contains(refused)).count(), 1, "{errors}");
    // The daemon doesn't go on sending it.
    let sent = tailnet.state().key(&dead).attempts;
    tailnet.assert_no_key_is_sent();
    // Nor does a run send it again, whatever comes between.
    let again = "was refused in an earlier run";
    let refuses_by_itself = |machine: &Machine| {
        let ours = machine.wait_ours("failed", |unit| unit.is("ActiveState", "failed"));
        assert_eq!(ours.end(), "exited 77");
        machine.wait_exit_shown("77/NOPERM", again);
        assert_eq!(tailnet.state().key(&dead).attempts, sent);
    };
    let _ = machine.try_run(&["systemctl", "restart", UNIT]);
    refuses_by_itself(&machine);
    // The same by hand, which knows what the service knows.
    for option in [&["--check"][..], &[]] {
        let server = ["tailscale-autoconnect", "--login-server", tailnet.url()];
        let output = machine.try_run(&[&server[..], option].concat());
        assert_eq!(output.status.code(), Some(77), "{output:?}");
        assert_eq!(tailnet.state().key(&dead).attempts, sent);
    }
    machine.systemctl("restart", "tailscaled.service");
    refuses_by_itself(&machine);
    machine.reboot();
    refuses_by_itself(&machine);

    let key = tailnet.single_use_key();
    machine.encrypt_secret(&key);
    machine.install_secret();
    machine.systemctl("start", UNIT);
    machine.wait_connected();
    let state = tailnet.state();
    assert_eq!((state.key(&key).uses, state.key(&dead).attempts), (1, sent));
    assert!(machine.is_online());
}

#[test]
fn a_refused_key_is_final_until_a_new_one_is_there_and_started_with() {
    refused_key(Debian::Trixie);
}

#[test]
fn it_says_that_it_waits_for_approval_and_is_done_when_that_is_given() {
    let tailnet = Tailnet::start_apart();
    tailnet.policy(serde_json::json!({"approval": true}));
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);

    machine.boot();
    machine.wait_status_text("waiting for an admin to approve this device");
    let device = tailnet.state().nodes[0].id;
    tailnet.approve(device);

    let ours = machine.wait_connected();
    assert_eq!(ours.number("NRestarts"), 0);
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
}
