//! How a run can end: the outcomes, their exit codes and their words.

use std::fmt;

use serde_json::{Value, json};

use crate::authkey::KeyFileError;
use crate::decide::Waiting;

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
    /// The name and number from sysexits.h, which `systemctl status` prints.
    pub fn exit(&self) -> (&'static str, u8) {
        match self {
            Failure::Usage(_) => ("USAGE", 64),
            Failure::KeyFile(error) if error.may_heal() => ("NOINPUT", 66),
            Failure::TailscaledUnreachable { .. } => ("UNAVAILABLE", 69),
            Failure::Internal(_) => ("SOFTWARE", 70),
            Failure::TimedOut(_) => ("TEMPFAIL", 75),
            Failure::KeyRefused(_) | Failure::Denied(_) => ("NOPERM", 77),
            Failure::KeyFile(_) | Failure::Misconfigured(_) => ("CONFIG", 78),
        }
    }
}

/// One word for how a run ended: `connected`, or the name of the exit code.
pub fn outcome(result: &Result<Connected, Failure>) -> &'static str {
    match result {
        Ok(_) => "connected",
        Err(failure) => failure.exit().0,
    }
}

/// The object that `--json` prints.
pub fn to_json(result: &Result<Connected, Failure>) -> Value {
    match result {
        Ok(connected) => json!({
            "outcome": outcome(result),
            "exit_code": 0,
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
