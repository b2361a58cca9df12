//! The auth key as agenix brings it: encrypted with age to the machine's SSH host key, decrypted in
//! the boot into a new generation of `/run/agenix.d`, to which `/run/agenix` then links.

use std::time::Duration;

use crate::machine::Machine;

/// Installs the secrets, as agenix' own script does.
const INSTALL: &str = "/usr/local/sbin/install-secrets";

const SCRIPT: &str = r#"#!/bin/sh
set -eu
mkdir -p /run/agenix.d
grep -q ' /run/agenix.d ' /proc/mounts || mount -t ramfs -o nodev,nosuid,mode=0751 none /run/agenix.d
last=$(readlink /run/agenix || echo 0)
last=${last##*/}
next=$((last + 1))
mkdir -m 0751 /run/agenix.d/$next
(
    umask 0377
    age --decrypt --identity /etc/ssh/ssh_host_ed25519_key --output /run/agenix.d/$next/tailscale-token /etc/tailscale-token.age
)
chown "$(cat /etc/tailscale-token.owner)" /run/agenix.d/$next/tailscale-token
ln -sfT /run/agenix.d/$next /run/agenix
rm -rf /run/agenix.d/$last
"#;

impl Machine {
    /// Encrypts an auth key to the machine, instead of the one there was, and does no more.
    pub fn encrypt_secret(&self, key: &str) {
        self.write_script(&INSTALL[1..], SCRIPT);
        self.write("etc/tailscale-token.owner", "root:root\n");
        let host_key = "/etc/ssh/ssh_host_ed25519_key.pub";
        self.offline_with(
            &[
                "age",
                "--encrypt",
                "--recipients-file",
                host_key,
                "--output",
                "/etc/tailscale-token.age",
            ],
            key,
        );
    }

    /// An auth key that is decrypted in every boot by agenix' service, as it is where users are made
    /// by systemd-sysusers.
    pub fn secret(&self, key: &str) {
        self.slow_secret("agenix-install-secrets.service", key, Duration::ZERO);
    }

    /// The same by a service of this name, which takes its time.
    pub fn slow_secret(&self, service: &str, key: &str, time: Duration) {
        self.encrypt_secret(key);
        let sleep = time.as_secs_f64();
        self.unit(
            service,
            "sysinit.target",
            &format!(
                "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
                 ExecStart=/usr/bin/sleep {sleep}\nExecStart={INSTALL}\n"
            ),
        );
    }

    /// Decrypts the secret in the booted machine.
    pub fn install_secret(&self) {
        self.run(&[INSTALL]);
    }
}
