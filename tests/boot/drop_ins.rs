//! The drop-ins that units/README.md shows.

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine};

#[test]
#[ignore = "boots real systemd: run tests/run.sh"]
fn the_key_can_be_a_credential() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.write("etc/tailscale/authkey", &key);
    machine.drop_in(
        "20-credential",
        "[Service]\nLoadCredential=authkey:/etc/tailscale/authkey\nExecStart=\n\
         ExecStart=/usr/bin/tailscale-autoconnect --authkey-file %d/authkey\n",
    );

    machine.boot();
    machine.wait_done();

    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
#[ignore = "boots real systemd: run tests/run.sh"]
fn the_key_can_be_the_secret_of_an_oauth_client() {
    let tailnet = Tailnet::start_apart();
    let secret = tailnet.oauth_client(&["tag:server"]);
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&secret);
    machine.drop_in(
        "20-oauth",
        &format!(
            "[Service]\nEnvironment=\"TAILSCALE_AUTOCONNECT_AUTHKEY_PARAMS=\
             ephemeral=false&preauthorized=true&baseURL={}\"\nExecStart=\n\
             ExecStart=/usr/bin/tailscale-autoconnect --authkey-file /run/agenix/tailscale-token \
             -- --advertise-tags=tag:server\n",
            tailnet.api_url()
        ),
    );

    machine.boot();
    machine.wait_done();

    let state = tailnet.state();
    let device = &state.nodes[0];
    assert_eq!(
        (&device.tags[..], device.ephemeral),
        (&["tag:server".to_owned()][..], false)
    );
    assert!(!state.api_requests.is_empty());
    assert!(machine.is_online());
}
