//! The unit stays when the machine is connected, unless it is told not to.

use std::time::Duration;

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, PATIENCE, UNIT};

/// MESSAGE_IDs, as documented.
const RENEWED: &str = "MESSAGE_ID=fe176d9d2fe44359bcbc2ae085bacbb3";
const RENEWAL_FAILED: &str = "MESSAGE_ID=a62014e5597745b2a6bb202912927905";
const EXPIRES_SOON: &str = "MESSAGE_ID=68e453efbc2f48b78735db503a9a4a47";

const METRICS_SERVICE: &str =
    include_str!("../../units/examples/tailscale-autoconnect-metrics.service");
const METRICS_TIMER: &str =
    include_str!("../../units/examples/tailscale-autoconnect-metrics.timer");
const METRICS: &str = "var/lib/prometheus/node-exporter/tailscale-autoconnect.prom";

/// A machine that has joined, with node keys that live so long.
fn joined(
    debian: Debian,
    life: Duration,
    prepare: impl Fn(&Machine),
) -> (Tailnet, Machine, String) {
    let tailnet = Tailnet::start_apart();
    tailnet.node_keys_live(life);
    let key = tailnet.reusable_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    prepare(&machine);
    machine.boot();
    (tailnet, machine, key)
}

/// Gives the machine an interface besides loopback: without one, tailscaled says that the network is down,
/// and no node key is renewed then.
fn plug_in(machine: &Machine) {
    for command in [
        "ip link add uplink type veth peer name far",
        "ip addr add 192.0.2.2/24 dev uplink",
        "ip link set far up",
        "ip link set uplink up",
        "ip route add default via 192.0.2.1",
    ] {
        machine.run(&command.split(' ').collect::<Vec<_>>());
    }
}

/// How many messages of our unit have this field.
fn count(machine: &Machine, field: &str) -> usize {
    let command = ["journalctl", "--boot", "--output=cat", "--unit", UNIT, field];
    let output = machine.try_run(&command);
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// A login that ends its connection to the control server late takes tailscaled for offline until the next
/// word of the server (seen on 1.98.10), and the node key is renewed in its next life only.
fn wait_message(machine: &Machine, field: &str) {
    machine.wait_for(3 * PATIENCE, field, || (count(machine, field) > 0).then_some(()));
}

pub fn expiry(debian: Debian) {
    let (tailnet, machine, key) = joined(debian, Duration::from_secs(20), |_| ());
    plug_in(&machine);
    let ours = machine.wait_connected();
    let device = tailnet.state().device("machine").expect("it has joined").clone();
    let expiry =
        machine.tailscale_status()["Self"]["KeyExpiry"].as_str().expect("a date").to_owned();
    let words = format!(
        "connected as {} ({}); node key expires {}",
        device.name.trim_end_matches('.'),
        device.addresses.join(", "),
        &expiry[..10]
    );
    assert_eq!(ours.get("StatusText"), words);
    assert!(ours.is("ActiveState", "active"));

    // So it cannot be renewed in time.
    tailnet.fault("down");
    machine.wait("its expiry", || {
        (machine.tailscale_status()["BackendState"] == "NeedsLogin").then_some(())
    });
    tailnet.lift_faults();
    machine.wait("it to be back", || machine.is_online().then_some(()));
    let again = machine.wait_connected();
    assert!(again.is("InvocationID", ours.get("InvocationID")), "it has stayed");
    let back = tailnet.state().device("machine").expect("it is known").clone();
    assert_eq!((back.id, &back.addresses), (device.id, &device.addresses));
    assert_ne!(back.node_key, device.node_key);

    // The next time it is renewed before, and then refused.
    wait_message(&machine, RENEWED);
    tailnet.delete_key(&key);
    wait_message(&machine, RENEWAL_FAILED);
    wait_message(&machine, EXPIRES_SOON);
    machine.wait_status_text("and is not renewed: the auth key in the file was refused before");
    assert_eq!(tailnet.state().nodes.len(), 1);
    let errors = machine.errors_of(UNIT);
    assert!(!errors.contains("tailscale-autoconnect["), "{errors}");
}

#[test]
fn a_machine_whose_node_key_expires_while_it_runs_is_back_by_itself() {
    expiry(Debian::Trixie);
}

#[test]
fn it_ends_when_connected_where_the_default_file_or_a_drop_in_says_so() {
    let off = "TAILSCALE_AUTOCONNECT_STAY=false";
    let files: [&dyn Fn(&Machine); 2] = [
        &|machine| machine.write("etc/default/tailscale-autoconnect", &format!("{off}\n")),
        &|machine| machine.drop_in("20-stay", &format!("[Service]\nEnvironment={off}\n")),
    ];
    for write in files {
        let (tailnet, machine, _) = joined(Debian::Trixie, Duration::from_secs(3600), write);
        let ours = machine.wait_done_after("");
        assert!(!ours.get("StatusText").contains("expires"), "{}", ours.get("StatusText"));

        // It runs again with tailscaled, and ends again.
        machine.systemctl("restart", "tailscaled.service");
        machine.wait_done_after(ours.get("InvocationID"));
        assert!(machine.is_online());
        assert_eq!(tailnet.state().registers.with_key, 1);
    }
}

#[test]
fn the_example_timer_keeps_the_metrics_of_the_machine_in_a_file() {
    let (tailnet, machine, _) = joined(Debian::Trixie, Duration::from_secs(3600), |machine| {
        machine.write("etc/systemd/system/tailscale-autoconnect-metrics.service", METRICS_SERVICE);
        machine.write("etc/systemd/system/tailscale-autoconnect-metrics.timer", METRICS_TIMER);
        machine.drop_in_of(
            "tailscale-autoconnect-metrics.timer",
            "often",
            "[Timer]\nOnActiveSec=\nOnUnitActiveSec=\nOnActiveSec=1\nOnUnitActiveSec=1\nAccuracySec=1ms\n",
        );
        machine.offline(&["mkdir", "-p", "/var/lib/prometheus/node-exporter"]);
        machine.offline(&["systemctl", "enable", "tailscale-autoconnect-metrics.timer"]);
    });
    machine.wait_connected();
    let wait_line = |line: &str| {
        machine.wait(line, || {
            let text = std::fs::read_to_string(machine.inside(METRICS)).unwrap_or_default();
            text.lines().any(|one| one == line).then_some(text)
        })
    };
    let text = wait_line("tailscale_autoconnect_connected 1");
    assert!(text.contains("\ntailscale_autoconnect_renewal_timestamp_seconds "), "{text}");

    // The check of a machine that is not connected has another exit status, and is written all the same.
    tailnet.fault("down");
    machine.run(&["tailscale", "down"]);
    wait_line("tailscale_autoconnect_connected 0");
    wait_line("tailscale_autoconnect_verdict{verdict=\"stopped\"} 1");
    for name in ["tailscale-autoconnect-metrics.service", "tailscale-autoconnect-metrics.timer"] {
        let verified = machine.try_run(&["systemd-analyze", "verify", name]);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains(name), "{said}");
    }
    assert!(machine.show("tailscale-autoconnect-metrics.service").is("Result", "success"));
}
