//! tailscaled's bus of notifications, used as a doorbell, and what keeps a broken one from making
//! us spin. Without a bus, the timer of the loop does its work.

use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::localapi::{Doorbell, LocalApi, LocalApiError};

/// How many rings without a change are followed at once, and how long each one waits after that.
const VAIN_RINGS: u32 = 30;
const VAIN_REST: Duration = Duration::from_millis(100);

/// The answer to the request for a bus, which a tailscaled in trouble may keep to itself.
type Opening = Pin<Box<dyn Future<Output = Result<Doorbell, LocalApiError>>>>;

/// The bus, open or not. At most one is open or being opened.
#[derive(Default)]
pub struct Bus {
    opening: Option<Opening>,
    doorbell: Option<Doorbell>,
    /// After it was refused or has ended, it's not asked for again until then.
    reopen_at: Option<Instant>,
    vain_rings: u32,
}

impl Bus {
    /// Sees to it that there is a doorbell, if there can be one: [`Bus::ring`] opens it. `rest` is
    /// the time to do without one where it's refused or has ended.
    pub fn open(&mut self, api: &LocalApi, rest: Duration) {
        let now = Instant::now();
        if self.doorbell.as_ref().is_some_and(Doorbell::is_over) {
            self.doorbell = None;
            self.reopen_at = Some(now + rest);
        }
        let is_there = self.doorbell.is_some() || self.opening.is_some();
        if is_there || self.reopen_at.is_some_and(|at| now < at) {
            return;
        }
        self.reopen_at = Some(now + rest);
        self.opening = Some(Box::pin(api.watch()));
    }

    /// Forgets the bus of a tailscaled that is gone; the next one's may be opened at once.
    pub fn drop_dead(&mut self) {
        self.opening = None;
        self.doorbell = None;
        self.reopen_at = None;
    }

    /// Waits for a ring. Nothing is lost if this is dropped.
    pub async fn ring(&mut self) {
        if let Some(opening) = &mut self.opening {
            let opened = opening.await;
            self.opening = None;
            match opened {
                Ok(doorbell) => self.doorbell = Some(doorbell),
                Err(error) => log::debug!("no bus, the timer does: {error}"),
            }
        }
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
