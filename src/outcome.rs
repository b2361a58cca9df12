//! How a run can end: the outcomes, their exit codes and their words.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use crate::authkey::KeyFileError;
use crate::decide::Waiting;
use crate::localapi::Status;

/// The node is on its tailnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The node's MagicDNS name without the trailing dot, empty if it has none.
    pub name: String,
    /// The node's Tailscale addresses.
    pub addresses: Vec<String>,
    /// Whether this run sent an auth key.
    pub logged_in: bool,
}

impl Connected {
    /// The node that this is the status of.
    pub fn of(status: &Status, logged_in: bool) -> Self {
        Self {
            name: status.node.dns_name.trim_end_matches('.').to_owned(),
            addresses: status.tailscale_ips.clone(),
            logged_in,
        }
    }
}

impl fmt::Display for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connected")?;
        if !self.name.is_empty() {
            write!(f, " as {}", self.name)?;
        }
        if !self.addresses.is_empty() {
            write!(f, " ({})", self.addresses.join(", "))?;
        }
        Ok(())
    }
}

/// Why a run ended without a connection. Each message says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(
        "tailscaled did not answer on {socket} within the time limit; \
         is it running (systemctl status tailscaled)?"
    )]
    TailscaledUnreachable { socket: String },
    #[error("not connected within the time limit: {0}")]
    TimedOut(Waiting),
    #[error(
        "the control server refused the auth key: {0}; \
         make a new key, put it into the key file and start again"
    )]
    KeyRefused(String),
    #[error(
        "tailscaled refused the request ({0}); run as root or as the operator user of tailscaled"
    )]
    Denied(String),
    #[error("{0}")]
    Misconfigured(String),
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// What it is if the time is up while this is being waited for. `answered`: tailscaled has
    /// been heard of.
    pub fn timed_out(waiting: Waiting, answered: bool, socket: &Path) -> Self {
        match waiting {
            _ if !answered => Self::TailscaledUnreachable {
                socket: socket.display().to_string(),
            },
            Waiting::KeyFile(error) => Self::KeyFile(error),
            waiting => Self::TimedOut(waiting),
        }
    }

    /// The name and number from sysexits.h, which `systemctl status` prints.
    pub fn exit(&self) -> (&'static str, u8) {
        let exit = match self {
            Failure::Usage(_) => USAGE,
            Failure::KeyFile(error) if error.may_heal() => NOINPUT,
            Failure::TailscaledUnreachable { .. } => UNAVAILABLE,
            Failure::Internal(_) => SOFTWARE,
            Failure::TimedOut(_) => TEMPFAIL,
            Failure::KeyRefused(_) | Failure::Denied(_) => NOPERM,
            Failure::KeyFile(_) | Failure::Misconfigured(_) => CONFIG,
        };
        (exit.name, exit.code)
    }
}

/// One word for how a run ended: `connected`, or the name of the exit code.
pub fn outcome(result: &Result<Connected, Failure>) -> &'static str {
    match result {
        Ok(_) => "connected",
        Err(failure) => failure.exit().0,
    }
}

/// An exit status, and what the help and the manual page say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: u8,
    /// Its name in sysexits.h; success has none.
    pub name: &'static str,
    /// When, in a word or two; empty where -h has no room for it.
    pub brief: &'static str,
    pub when: &'static str,
    /// Whether the unit is started again: see RestartPreventExitStatus= there.
    pub again: bool,
}

const fn exit(
    code: u8,
    name: &'static str,
    brief: &'static str,
    when: &'static str,
    again: bool,
) -> Exit {
    Exit {
        code,
        name,
        brief,
        when,
        again,
    }
}

const CONNECTED: Exit = exit(0, "", "connected", "connected", false);
/// Public, since clap says itself what is wrong.
pub const USAGE: Exit = exit(64, "USAGE", "usage", "the command line is wrong", false);
const NOINPUT: Exit = exit(
    66,
    "NOINPUT",
    "no key file",
    "the key file is needed, and missing or unreadable",
    true,
);
const UNAVAILABLE: Exit = exit(
    69,
    "UNAVAILABLE",
    "no tailscaled",
    "--timeout passed and tailscaled never answered",
    true,
);
const SOFTWARE: Exit = exit(
    70,
    "SOFTWARE",
    "",
    "a fault of the program or of the system under it",
    true,
);
const TEMPFAIL: Exit = exit(
    75,
    "TEMPFAIL",
    "time is up",
    "--timeout passed on anything else",
    true,
);
const NOPERM: Exit = exit(
    77,
    "NOPERM",
    "refused",
    "the control server refused the key, or tailscaled refused us",
    false,
);
const CONFIG: Exit = exit(
    78,
    "CONFIG",
    "cannot work as configured",
    "the key file, `tailscale` command or settings cannot be used",
    false,
);

/// All of them.
pub const EXITS: [Exit; 8] = [
    CONNECTED,
    USAGE,
    NOINPUT,
    UNAVAILABLE,
    SOFTWARE,
    TEMPFAIL,
    NOPERM,
    CONFIG,
];

/// The object that `--json` prints.
pub fn to_json(result: &Result<Connected, Failure>) -> Value {
    match result {
        Ok(connected) => json!({
            "outcome": outcome(result),
            "exit_code": CONNECTED.code,
            "message": connected.to_string(),
            "name": connected.name,
            "addresses": connected.addresses,
            "logged_in": connected.logged_in,
        }),
        Err(failure) => {
            json!({
                "outcome": outcome(result),
                "exit_code": failure.exit().1,
                "message": failure.to_string(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_does_not_start_again_what_would_end_in_the_same_way() {
        let unit = include_str!("../units/tailscale-autoconnect.service");
        let prevented: Vec<_> = unit
            .lines()
            .find_map(|line| line.strip_prefix("RestartPreventExitStatus="))
            .into_iter()
            .flat_map(str::split_whitespace)
            .collect();
        for exit in EXITS.iter().filter(|exit| exit.code != 0) {
            let named = prevented.contains(&exit.name);
            assert_eq!(named, !exit.again, "{exit:?}, {prevented:?}");
        }
    }
}
