//! The package on Debian machines that boot real systemd: real tailscaled with a TUN device, a
//! secret that age decrypts with the machine's SSH host key, and a control server that speaks the
//! real protocol. See `tests/run.sh`; only root can run them.
//!
//! Every test has its own machine, tailnet and network.

mod bookworm;
mod boot_order;
mod containers;
mod drop_ins;
mod hooks;
mod join;
mod journal;
mod keeping;
mod key_file;
mod machine;
mod nixos;
mod package;
mod power_cut;
mod running;
mod sandbox;
mod secret;
mod staying;
