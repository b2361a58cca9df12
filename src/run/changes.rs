//! What a run changes at tailscaled beside the login itself.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{CATCH_UP_LIMIT, Run};
use crate::failure::Connected;
use crate::prefs::Prefs;
use crate::tailscaled::{LocalApiError, Profile};

/// How often an exit node is looked for, with which pause, and how long each may take.
const EXIT_NODE_TRIES: u32 = 4;
const EXIT_NODE_PAUSE: Duration = Duration::from_millis(500);
const EXIT_NODE_LIMIT: Duration = Duration::from_secs(5);

impl Run<'_> {
    pub(super) async fn renew(&self) -> Result<(), LocalApiError> {
        let Some((key, _)) = &self.key else {
            return Err(LocalApiError::NoAnswer);
        };
        if let Err(why) = self.config.setup.cli.trust_socket().await {
            return Err(LocalApiError::Denied(why.to_string()));
        }
        log::info!(
            "renewing the node key with the auth key from {}",
            self.config.setup.key_file.display()
        );
        self.api.renew(key.start_request()).await
    }

    /// Whether the profile in use is still this one. An old tailscaled, which has no answer, has but one.
    async fn is_profile(&self, profile: Option<&Profile>) -> Result<bool, LocalApiError> {
        let Some(profile) = profile else {
            return Ok(true);
        };
        match self.api.profile().await {
            Ok(now) => Ok(profile.may_be(&now)),
            Err(error) if error.is_silence() => Err(error),
            Err(_) => Ok(true),
        }
    }

    pub(super) async fn put_back(
        &mut self,
        prefs: Prefs,
        profile: Option<&Profile>,
    ) -> Result<Option<Vec<String>>, LocalApiError> {
        if !self.is_profile(profile).await? {
            return Ok(None);
        }
        let not_taken = self.set(&prefs).await?;
        if self.is_profile(profile).await? {
            return Ok(Some(not_taken));
        }
        self.give_back(&prefs).await?;
        Ok(None)
    }

    /// Sets the preferences, and names those that are not taken.
    async fn set(&self, prefs: &Prefs) -> Result<Vec<String>, LocalApiError> {
        let names: Vec<&str> = prefs.keys().map(String::as_str).collect();
        log::info!("putting back settings that the login changed: {}", names.join(", "));
        match self.api.edit_prefs(prefs).await {
            Err(error) if !error.is_silence() => {}
            done => return done.map(|()| Vec::new()),
        }
        // One that tailscaled doesn't take must not cost the others.
        let mut not_taken = Vec::new();
        for (name, old) in prefs {
            match self.api.edit_prefs(&Prefs::from_iter([(name.clone(), old.clone())])).await {
                Ok(()) => {}
                Err(error) if error.is_silence() => return Err(error),
                Err(error) => not_taken.push(format!("{name} ({error})")),
            }
        }
        Ok(not_taken)
    }

    /// Where somebody has switched to another profile in that very moment, it's that one's settings that
    /// were set: the bus tells how they were.
    async fn give_back(&mut self, set: &Prefs) -> Result<(), LocalApiError> {
        let now = self.api.prefs().await?;
        let mut told = Vec::new();
        let catch_up = async {
            while told.last() != Some(&now) {
                told.extend(self.bus.told().await.prefs);
            }
        };
        let _ = timeout(CATCH_UP_LIMIT, catch_up).await;
        let is_of_node = |prefs: &Prefs| {
            ["Config", "ControlURL"].iter().all(|name| prefs.get(*name) == now.get(*name))
        };
        let is_set = |prefs: &Prefs| set.keys().all(|name| prefs.get(name) == now.get(name));
        // 1.66 tells the same preferences more than once.
        let before = told.into_iter().rev().take_while(is_of_node).find(|prefs| !is_set(prefs));
        if let Some(mut before) = before {
            before.retain(|name, _| set.contains_key(name));
            self.api.edit_prefs(&before).await?;
        }
        Ok(())
    }

    /// Also tells the preferences afterwards, which show whether it was too late.
    pub(super) async fn take_back(
        &self,
        prefs: &Prefs,
        profile: Option<&Profile>,
    ) -> Result<Option<Prefs>, LocalApiError> {
        if !self.is_profile(profile).await? {
            return Ok(None);
        }
        self.api.start(Some(prefs)).await?;
        self.api.prefs().await.map(Some)
    }

    /// Sets the exit node that is asked for by its name, once this run has logged the node in. It may be
    /// a moment before the node knows its peers.
    pub(super) async fn set_exit_node(&self, connected: &Connected) {
        let flags = &self.config.exit_node;
        if flags.is_empty() || !connected.logged_in {
            return;
        }
        let set = flags.join(" ");
        let mut result = self.config.setup.cli.set(flags, EXIT_NODE_LIMIT).await;
        for _ in 1..EXIT_NODE_TRIES {
            if result.is_ok() {
                break;
            }
            sleep(EXIT_NODE_PAUSE).await;
            result = self.config.setup.cli.set(flags, EXIT_NODE_LIMIT).await;
        }
        match result {
            Ok(()) => log::info!("set {set}"),
            Err(why) => log::warn!(
                "connected, but without the exit node ({why}); correct its name, and run: tailscale set {set}"
            ),
        }
    }
}
