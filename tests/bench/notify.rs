//! A socket for `NOTIFY_SOCKET`, as systemd has one: it is read all the time, so that nobody who
//! notifies has to wait.

use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use tailnet_harness::PATIENCE;
use tempfile::TempDir;

pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    ready: Receiver<()>,
    _dir: TempDir,
}

impl NotifySocket {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary folder can be made");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a datagram socket can be bound");
        let reader = socket.try_clone().expect("a socket can be cloned");
        let (sender, ready) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            // Zero bytes: the socket was shut down.
            while let Ok(count @ 1..) = reader.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]);
                if text.lines().any(|line| line == "READY=1") && sender.send(()).is_err() {
                    break;
                }
            }
        });
        Self { socket, path, ready, _dir: dir }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        while self.ready.try_recv().is_ok() {}
    }

    /// Waits for the next `READY=1`.
    pub fn wait_ready(&self) {
        let came = self.ready.recv_timeout(PATIENCE);
        came.expect("tailscaled says READY=1");
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
