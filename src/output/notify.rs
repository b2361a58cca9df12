//! What systemd is told: READY, STATUS and how long it may take.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::env;
use std::future::pending;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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

/// sd-notify knows sockets with a path only; an abstract one is named by `@` and its name.
fn send(state: NotifyState<'_>) {
    let socket = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let sent = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => send_to_abstract(name, &state.to_string()),
        None => sd_notify::notify(&[state]),
    };
    if let Err(error) = sent {
        log::debug!("cannot notify the service manager: {error}");
    }
}

fn send_to_abstract(name: &[u8], message: &str) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_be_named_by_an_abstract_name() {
        let name = format!("tailscale-autoconnect-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send_to_abstract(name.as_bytes(), &NotifyState::Ready.to_string()).unwrap();
        let mut got = [0; 16];
        let length = socket.recv(&mut got).unwrap();
        assert_eq!(&got[..length], b"READY=1");
        assert!(send_to_abstract(b"nobody-listens-there", "READY=1").is_err());
    }
}
