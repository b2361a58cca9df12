//! tailscaled's bus of notifications, used as a doorbell, and what keeps a broken one from making
//! us spin. Without a bus, the timer of the loop does its work.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::localapi::{Doorbell, LocalApi};

/// How many rings without a change are followed at once, and how long each one waits after that.
const VAIN_RINGS: u32 = 30;
const VAIN_REST: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Bus {
    doorbell: Option<Doorbell>,
    /// After it was refused or has ended, it's not asked for again until then.
    reopen_at: Option<Instant>,
    vain_rings: u32,
}

impl Bus {
    /// Sees to it that there is a doorbell, if there can be one. `rest` is the time to do without
    /// one where it's refused or has ended.
    pub async fn open(&mut self, api: &LocalApi, rest: Duration) {
        let now = Instant::now();
        if self.doorbell.as_ref().is_some_and(Doorbell::is_over) {
            self.doorbell = None;
            self.reopen_at = Some(now + rest);
        }
        if self.doorbell.is_some() || self.reopen_at.is_some_and(|at| now < at) {
            return;
        }
        match api.watch().await {
            Ok(doorbell) => self.doorbell = Some(doorbell),
            Err(error) => {
                log::debug!("no bus, the timer does: {error}");
                self.reopen_at = Some(Instant::now() + rest);
            }
        }
    }

    /// Forgets the bus of a tailscaled that is gone; the next one's may be opened at once.
    pub fn drop_dead(&mut self) {
        self.doorbell = None;
        self.reopen_at = None;
    }

    /// Waits for a ring. Nothing is lost if this is dropped.
    pub async fn ring(&mut self) {
        let Some(doorbell) = &mut self.doorbell else {
            return pending().await;
        };
        if self.vain_rings >= VAIN_RINGS {
            sleep(VAIN_REST).await;
        }
        doorbell.ring().await;
        self.vain_rings += 1;
    }

    /// The rings were not in vain: something has changed.
    pub fn something_changed(&mut self) {
        self.vain_rings = 0;
    }
}
