//! What `--check` has seen: facts, without judgement.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Mistake, Obstacle};
use crate::file_system::FileFacts;
use crate::key::Look;
use crate::policy::{
    Setup, Situation, is_same_server, obstacle, obstacle_of_key, renew_at, server_of_login,
};
use crate::prefs::{self, Prefs, chosen, described};
use crate::record::Record;
use crate::server::is_tailscales;
use crate::tailscaled::{LocalApiError, Status};
use crate::up::NoVersion;

/// Everything that was seen, at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    pub now: SystemTime,
    /// What a run would be given.
    pub setup: Setup,
    /// The file of the socket, or why there is none.
    pub socket_file: Result<FileFacts, String>,
    pub status: Result<Status, LocalApiError>,
    /// Why an auth key would not be sent to whoever is behind the socket.
    pub distrust: Option<Mistake>,
    /// The first of the node's addresses that cannot be bound yet.
    pub unbound: Option<IpAddr>,
    pub prefs: Option<Prefs>,
    /// What tailscaled says to a change.
    pub access: Result<(), LocalApiError>,
    /// What runs before have left.
    pub record: Record,
    /// They have left it on another machine.
    pub is_copied: bool,
    pub key: Look,
    /// Parameters for an OAuth client secret are given.
    pub key_has_params: bool,
    /// Where the `tailscale` command was found.
    pub command: Option<PathBuf>,
    pub version: Result<String, NoVersion>,
}

impl Seen {
    /// The row of the state table.
    pub fn situation(&self) -> Situation {
        Situation::of(self.status.as_ref(), self.unbound)
    }

    /// Why tailscaled lets this user change nothing, if it does not.
    pub fn objection(&self) -> Option<&LocalApiError> {
        self.access.as_ref().err().filter(|error| error.is_refusal())
    }

    /// Of a node whose node key a run that stays renews: when, if that is known by now, and what stands
    /// against it.
    pub fn renewal(&self) -> Option<(Option<SystemTime>, Option<Obstacle>)> {
        let status = self.status.as_ref().ok()?;
        let prefs = self.prefs.as_ref()?;
        let situation = self.situation();
        let is_on = situation.is_connected() || matches!(situation, Situation::Offline { .. });
        if !self.setup.stay || !is_on || status.node.key_expiry.is_none() {
            return None;
        }
        let clock = self.now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let asked = self.setup.server.as_deref();
        let obstacle = obstacle(status, prefs, asked, clock).or_else(|| match &self.key.key {
            Ok(key) => obstacle_of_key(key, prefs, self.record.refused.as_ref()),
            Err(_) => Some(Obstacle::NoKey),
        });
        let node = self.record.node.as_deref().filter(|node| node.key == status.node.public_key);
        Some((node.and_then(|node| UNIX_EPOCH.checked_add(renew_at(node))), obstacle))
    }

    /// Whether the key file holds the key that was refused.
    pub fn holds_refused_key(&self) -> bool {
        let refused = self.record.refused.as_ref().map(|refused| &refused.digest);
        refused.is_some() && refused == self.key.key.as_ref().ok().map(|key| &key.digest)
    }

    /// The command, where it was found or as it was asked for.
    pub fn command(&self) -> &Path {
        self.command.as_ref().unwrap_or(&self.setup.cli.program)
    }

    /// The control server that the node has had to do with so far; empty if none.
    pub fn control_server(&self) -> &str {
        self.prefs.as_ref().map_or("", |prefs| prefs::text(prefs, "ControlURL"))
    }

    /// The control server that a login would go to.
    pub fn server_of_login(&self) -> &str {
        server_of_login(self.setup.server.as_deref(), self.control_server())
    }

    /// Whether another login server is asked for than the node's.
    pub fn servers_differ(&self) -> bool {
        let (known, asked) = (self.control_server(), self.server_of_login());
        !known.is_empty() && !is_same_server(known, asked)
    }

    /// Where an admin approves this device.
    pub fn approval_page(&self) -> String {
        let auth_url = self.status.as_ref().map(|status| status.auth_url.as_str());
        match (auth_url, self.server_of_login()) {
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
}
