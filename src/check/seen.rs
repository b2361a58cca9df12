//! What `--check` has seen: facts, without judgement.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::key::{FileFacts, Look};
use crate::policy::{Setup, Situation, TAILSCALES_SERVER, is_same_server};
use crate::prefs::{self, Prefs, chosen, described};
use crate::record::Record;
use crate::server::is_tailscales;
use crate::tailscaled::{LocalApiError, Status};
use crate::up::NoVersion;

/// Everything that was seen, at one moment.
#[derive(Debug)]
pub struct Seen {
    pub now: SystemTime,
    /// What a run would be given.
    pub setup: Setup,
    /// The file of the socket, or why there is none.
    pub socket_file: Result<Owned, String>,
    pub status: Result<Status, LocalApiError>,
    /// Why an auth key would not be sent to whoever is behind the socket.
    pub distrust: Option<String>,
    /// The first of the node's addresses that cannot be bound yet.
    pub unbound: Option<IpAddr>,
    pub prefs: Option<Prefs>,
    pub access: Access,
    /// What runs before have left.
    pub record: Record,
    pub key: Look,
    /// The name of the key file's owner.
    pub key_owner: String,
    /// Parameters for an OAuth client secret are given.
    pub key_has_params: bool,
    pub cli: CliSeen,
}

/// A file and the name of its owner.
#[derive(Clone, Debug)]
pub struct Owned {
    pub facts: FileFacts,
    pub owner: String,
}

/// Whether tailscaled would let this user change anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Unknown,
    Granted,
    /// With its own words.
    Denied(String),
    /// Nobody may: it runs with a locked config file.
    Locked(String),
}

/// The `tailscale` command.
#[derive(Debug)]
pub struct CliSeen {
    /// As it was asked for.
    pub program: PathBuf,
    /// Where it was found.
    pub found: Option<PathBuf>,
    pub version: Result<String, NoVersion>,
}

impl Seen {
    /// The row of the state table.
    pub fn situation(&self) -> Situation {
        match &self.status {
            Ok(status) => Situation::of(status, self.unbound),
            Err(error) => Situation::without_status(error),
        }
    }

    /// The control server that the node has had to do with so far; empty if none.
    pub fn control_server(&self) -> &str {
        self.pref("ControlURL")
    }

    /// The control server that a login would go to.
    pub fn server_of_a_login(&self) -> &str {
        match (&self.setup.server, self.control_server()) {
            (Some(asked), _) => asked,
            (None, "") => TAILSCALES_SERVER,
            (None, known) => known,
        }
    }

    /// Whether another login server is asked for than the node's.
    pub fn servers_differ(&self) -> bool {
        let (known, asked) = (self.control_server(), self.server_of_a_login());
        !known.is_empty() && !is_same_server(known, asked)
    }

    /// Where an admin approves this device.
    pub fn approval_page(&self) -> String {
        let auth_url = self.status.as_ref().map(|status| status.auth_url.as_str());
        match (auth_url, self.server_of_a_login()) {
            (Ok(url), _) if !url.is_empty() => url.to_owned(),
            (_, server) if is_tailscales(server) => {
                "https://login.tailscale.com/admin/machines".to_owned()
            }
            (_, server) => format!("the admin console of {server}"),
        }
    }

    /// What a login would have to keep, if the preferences are known: as flags, and the names of those
    /// that have none.
    pub fn settings(&self) -> Option<(Vec<String>, Vec<String>)> {
        let prefs = self.prefs.clone()?;
        let version = self.status.as_ref().ok()?.major_and_minor();
        Some(described(&chosen(prefs, version)))
    }

    /// A preference that is a text.
    pub fn pref(&self, name: &str) -> &str {
        self.prefs.as_ref().map_or("", |prefs| prefs::text(prefs, name))
    }
}
