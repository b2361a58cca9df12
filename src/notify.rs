//! What systemd is told: READY, STATUS and how long it may take.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::redact::one_line;

/// How much longer than allowed so far the start may take, each time that we ask for it.
const EXTENSION: Duration = Duration::from_secs(60);

/// How often we ask.
const EXTEND_EVERY: Duration = Duration::from_secs(30);

/// The notification socket of the service manager; without one, all of this does nothing.
#[derive(Default)]
pub struct Notify {
    ready: Cell<bool>,
    status: RefCell<String>,
}

impl Notify {
    /// READY=1, once: whoever is ordered after us may start.
    pub fn ready(&self) {
        if !self.ready.replace(true) {
            send(NotifyState::Ready);
        }
    }

    /// STATUS=, if it is news.
    pub fn status(&self, text: &str) {
        if *self.status.borrow() != text {
            send(NotifyState::Status(&one_line(text)));
            self.status.replace(text.to_owned());
        }
    }

    /// STOPPING=1: we were told to end.
    pub fn stopping(&self) {
        send(NotifyState::Stopping);
    }

    /// Says READY after `time` while the work goes on, and until then sees to it that the start
    /// may take so long. Never returns.
    pub async fn grace(&self, time: Duration) -> Infallible {
        let started = Instant::now();
        loop {
            let left = time.saturating_sub(started.elapsed());
            if left.is_zero() {
                self.ready();
                return pending().await;
            }
            send(NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32));
            sleep(left.min(EXTEND_EVERY)).await;
        }
    }
}

fn send(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!("cannot notify the service manager: {error}");
    }
}
