//! What the unit waits for when the machine boots, and what doesn't wait for it.

use std::time::{Duration, Instant};

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, setting};

pub fn holds_up_no_boot(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    tailnet.fault("down");

    // In turns, and as often as it takes: the cores are shared with other machines, which a boot
    // can only be slowed down by.
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    let as_fast = |with: Duration, without: Duration| {
        with.saturating_sub(without) <= Duration::from_millis(300)
    };
    for round in 0..6 {
        machine.offline(&["systemctl", "mask", UNIT]);
        machine.boot_to_the_end();
        without = without.min(machine.boot_time());
        machine.power_off();

        machine.offline(&["systemctl", "unmask", UNIT]);
        machine.boot_to_the_end();
        with = with.min(machine.boot_time());
        if round > 0 && as_fast(with, without) {
            break;
        }
        machine.power_off();
    }
    assert!(as_fast(with, without), "{with:?}, without us {without:?}");
    // It is at work, and not ready.
    let ours = machine.wait_status_text("waiting for the control server: ");
    assert!(ours.is("ActiveState", "activating"));

    let begin = Instant::now();
    machine.systemctl("start", "multi-user.target");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(machine.ours().is("ActiveState", "activating"));

    // The grace of 15 seconds; a boot that is slow adds nothing to it.
    let ours = machine.wait_ours("ready", |unit| unit.is("ActiveState", "active"));
    let grace = ours.time("ActiveEnter") - ours.time("ExecMainStart");
    let about = Duration::from_millis(14_900)..Duration::from_secs(20);
    assert!(about.contains(&grace), "{grace:?}");
    let why = ours.get("StatusText");
    assert!(why.starts_with("waiting for the control server: "), "{why}");
    assert!(why.contains("connection refused"), "{why}");

    tailnet.lift_faults();
    let ours = machine.wait_connected();
    assert_eq!(ours.number("NRestarts"), 0);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn a_control_server_that_is_down_holds_up_no_boot() {
    holds_up_no_boot(Debian::Trixie);
}

#[test]
fn a_grace_longer_than_the_start_may_take_is_granted() {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&tailnet.single_use_key());
    machine.drop_in("20-grace", &setting("READY_AFTER", "6s"));
    machine.drop_in("21-timeout", "[Service]\nTimeoutStartSec=2\n");
    tailnet.fault("down");

    machine.boot();
    let ours = machine.wait_ours("ready", |unit| unit.is("ActiveState", "active"));

    assert_eq!(ours.number("NRestarts"), 0);
    let grace = ours.time("ActiveEnter") - ours.time("ExecMainStart");
    assert!(grace >= Duration::from_secs(6), "{grace:?}");
}

#[test]
fn a_power_off_in_mid_login_takes_no_longer() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    tailnet.fault("hang");

    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        machine.offline(&["systemctl", "mask", UNIT]);
        machine.boot_to_the_end();
        without.push(machine.power_off());

        machine.offline(&["systemctl", "unmask", UNIT]);
        machine.boot_to_the_end();
        machine.wait_status_text("logging in");
        with.push(machine.power_off());
    }
    let (without, with) = (without.iter().min(), with.iter().min());
    let most = without.map(|least| *least + Duration::from_millis(800));
    assert!(with <= most.as_ref(), "{with:?}, without us {without:?}");
}

/// What takes its time in the boot, and what the unit has to be ordered after.
struct Slow {
    /// The unit that is waited for.
    last: &'static str,
    units: &'static [(&'static str, &'static str, &'static str)],
}

const A_SECOND: &str = "DefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
                        ExecStart=/usr/bin/sleep 1\n";

/// By the real names of the units of secrets and of cloud-init, and by units before the targets.
const SLOW: &[Slow] = &[
    Slow {
        last: "slow.service",
        units: &[("slow.service", "sysinit.target", "[Unit]\nBefore=sysinit.target\n")],
    },
    Slow {
        last: "slow.service",
        units: &[("slow.service", "basic.target", "[Unit]\nBefore=basic.target\n")],
    },
    Slow {
        last: "slow.service",
        units: &[(
            "slow.service",
            "sysinit.target",
            "[Unit]\nBefore=network-pre.target\nWants=network-pre.target\n",
        )],
    },
    Slow {
        last: "agenix-install-secrets.service",
        units: &[("agenix-install-secrets.service", "sysinit.target", "[Unit]\n")],
    },
    Slow {
        last: "sops-install-secrets.service",
        units: &[("sops-install-secrets.service", "sysinit.target", "[Unit]\n")],
    },
    Slow {
        last: "cloud-init-local.service",
        units: &[("cloud-init-local.service", "sysinit.target", "[Unit]\n")],
    },
    Slow {
        last: "cloud-init.service",
        units: &[("cloud-init.service", "multi-user.target", "[Unit]\n")],
    },
    Slow {
        last: "cloud-init-network.service",
        units: &[("cloud-init-network.service", "multi-user.target", "[Unit]\n")],
    },
    Slow {
        last: "run-agenix.d.mount",
        units: &[
            ("slow.service", "sysinit.target", "[Unit]\nBefore=run-agenix.d.mount\n"),
            ("run-agenix.d.mount", "sysinit.target", "/run/agenix.d"),
        ],
    },
    Slow {
        last: "run-secrets.d.mount",
        units: &[
            ("slow.service", "sysinit.target", "[Unit]\nBefore=run-secrets.d.mount\n"),
            ("run-secrets.d.mount", "sysinit.target", "/run/secrets.d"),
        ],
    },
];

#[test]
fn it_starts_after_the_early_boot_the_secrets_cloud_init_and_tailscaled_however_slow_they_are() {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    let assert_after = |machine: &Machine, last: &str| {
        let ours =
            machine.wait_ours("started", |unit| unit.number("ExecMainStartTimestampMonotonic") > 0);
        let before = machine.wait_unit(last, "there", |unit| unit.is("ActiveState", "active"));
        assert!(
            ours.time("ExecMainStart") >= before.time("ActiveEnter"),
            "it started before {last}"
        );
    };

    machine.drop_in_of("tailscaled.service", "slow", "[Service]\nExecStartPre=/usr/bin/sleep 1\n");
    machine.boot();
    assert_after(&machine, "tailscaled.service");
    machine.power_off();

    // tailscaled itself starts after most of them; here it isn't there to hold us up.
    machine.offline(&["systemctl", "mask", "tailscaled.service"]);
    for Slow { last, units } in SLOW {
        for (name, wanted_by, text) in *units {
            let text = match text.strip_prefix("[Unit]\n") {
                Some(text) => format!("[Unit]\n{text}{A_SECOND}"),
                None => format!(
                    "[Unit]\nDefaultDependencies=no\n[Mount]\nWhat=none\nWhere={text}\nType=ramfs\n"
                ),
            };
            machine.unit(name, wanted_by, &text);
        }
        machine.boot();
        assert_after(&machine, last);
        machine.wait_status_text("waiting for tailscaled");
        machine.power_off();
        for (name, wanted_by, _) in *units {
            machine.remove_unit(name, wanted_by);
        }
    }
}

pub fn slow_secret_service(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    let service = "agenix-install-secrets.service";
    machine.slow_secret(service, &key, Duration::from_secs(3));

    machine.boot();
    let ours = machine.wait_connected();

    let decrypted = machine.show(service).time("ActiveEnter");
    assert!(ours.time("ExecMainStart") >= decrypted);
    // It was up long before.
    let tailscaled = machine.show("tailscaled.service").time("ActiveEnter");
    assert!(decrypted > tailscaled + Duration::from_secs(1));
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn a_slow_secret_service_that_nothing_else_waits_for_is_waited_for() {
    slow_secret_service(Debian::Trixie);
}

/// A stage of cloud-init that does this, wanted as its package has it wanted: by cloud-init.target,
/// which multi-user.target wants.
fn cloud_init(machine: &Machine, does: &str) {
    let target = "[Unit]\nAfter=multi-user.target\n";
    machine.unit("cloud-init.target", "multi-user.target", target);
    machine.unit(
        "cloud-init.service",
        "cloud-init.target",
        &format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             TimeoutSec=0\nExecStart={does}\n"
        ),
    );
}

#[test]
fn it_joins_under_the_host_name_that_cloud_init_sets() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    cloud_init(&machine, "/bin/sh -c 'sleep 2; hostname cloudy'");

    machine.boot();
    machine.wait_connected();

    let state = tailnet.state();
    assert!(state.device("cloudy").is_some(), "{:?}", state.nodes);
}

pub fn hanging_cloud_init(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    cloud_init(&machine, "/usr/bin/sleep infinity");

    machine.boot_to_the_end();
    let begin = Instant::now();
    machine.systemctl("start", "multi-user.target");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    // It waits for its turn.
    assert!(machine.ours().is("ActiveState", "inactive"));
    let jobs = machine.run(&["systemctl", "list-jobs", "--no-legend"]);
    assert!(jobs.contains(UNIT), "{jobs}");

    machine.systemctl("kill", "cloud-init.service");
    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).uses, 1);
}

#[test]
fn a_cloud_init_that_hangs_holds_up_no_boot() {
    hanging_cloud_init(Debian::Trixie);
}

#[test]
fn it_starts_a_tailscaled_that_nothing_else_starts() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    machine.offline(&["systemctl", "disable", "tailscaled.service"]);

    machine.boot();
    machine.wait_connected();

    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}
