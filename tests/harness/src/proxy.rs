//! A Unix socket in front of a daemon's, which counts the requests that pass.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::{Node, http, process};

/// Passes everything on, both ways, and notes each request line that a client writes first in a
/// write: enough for clients that send one request per write.
pub struct CountingProxy {
    shared: Arc<Mutex<Shared>>,
    listener: Arc<UnixListener>,
    acceptor: Option<JoinHandle<()>>,
    socket: PathBuf,
    daemon: PathBuf,
    _dir: TempDir,
}

#[derive(Default)]
struct Shared {
    requests: Vec<String>,
    between: Option<Between>,
    connections: Vec<UnixStream>,
}

/// A request of somebody else's that comes right before the next one that begins so.
struct Between {
    before: &'static str,
    method: &'static str,
    path: String,
    daemon: PathBuf,
}

impl Between {
    fn send(&self) {
        let stream = UnixStream::connect(&self.daemon).expect("a daemon");
        let reply = http::ask(stream, "local-tailscaled.sock", self.method, &self.path, None);
        assert!(reply.expect("an answer").status < 300, "{}", self.path);
    }
}

impl CountingProxy {
    /// In front of this node.
    pub fn start(node: &Node) -> Self {
        Self::to(node.socket())
    }

    /// In front of any socket.
    pub fn to(daemon: impl Into<PathBuf>) -> Self {
        let daemon = daemon.into();
        let dir = process::open_temp_dir("proxy-");
        let socket = dir.path().join("tailscaled.sock");
        let listener = UnixListener::bind(&socket)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", socket.display()));
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .expect("a socket of our own");
        let listener = Arc::new(listener);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let acceptor = {
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            let daemon = daemon.clone();
            thread::spawn(move || {
                while let Ok((client, _)) = listener.accept() {
                    // Without a daemon the client sees its connection closed.
                    if let Ok(daemon) = UnixStream::connect(&daemon) {
                        pass(&shared, &client, &daemon);
                    }
                }
            })
        };
        Self { shared, listener, acceptor: Some(acceptor), socket, daemon, _dir: dir }
    }

    /// The daemon gets this request right before the next one that begins with `before`.
    pub fn squeeze_in(&self, before: &'static str, method: &'static str, path: String) {
        let daemon = self.daemon.clone();
        lock(&self.shared).between = Some(Between { before, method, path, daemon });
    }

    /// Whether it has got it.
    pub fn has_squeezed_in(&self) -> bool {
        lock(&self.shared).between.is_none()
    }

    /// The socket for the client.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The requests so far, like `GET /localapi/v0/status?peers=false`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared).requests.clone()
    }

    /// How many requests for this path came so far, with whatever query.
    pub fn count(&self, path: &str) -> usize {
        let shared = lock(&self.shared);
        let paths = shared.requests.iter().filter_map(|one| one.split([' ', '?']).nth(1));
        paths.filter(|one| *one == path).count()
    }

    /// Cuts all connections that are open.
    pub fn cut(&self) {
        for connection in lock(&self.shared).connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut();
    }
}

/// Joins two connections with a thread for each way.
fn pass(shared: &Arc<Mutex<Shared>>, client: &UnixStream, daemon: &UnixStream) {
    let ways = (|| {
        Ok::<_, std::io::Error>([
            (client.try_clone()?, daemon.try_clone()?, Some(Arc::clone(shared))),
            (daemon.try_clone()?, client.try_clone()?, None),
        ])
    })();
    let Ok(ways) = ways else {
        return;
    };
    lock(shared)
        .connections
        .extend([&ways[0], &ways[1]].into_iter().filter_map(|way| way.0.try_clone().ok()));
    for (mut from, mut to, counter) in ways {
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if let Some((shared, request)) =
                    counter.as_ref().zip(request_line(&buffer[..count]))
                {
                    let mut shared = lock(shared);
                    let between = shared.between.take_if(|it| request.starts_with(it.before));
                    shared.requests.push(request);
                    drop(shared);
                    if let Some(between) = between {
                        between.send();
                    }
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// The method and the target, if these bytes begin a request.
fn request_line(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_suffix(" HTTP/1.1")?;
    Some(line.to_owned())
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeTailscaled, Response};

    #[test]
    fn requests_pass_and_are_counted() {
        let fake = FakeTailscaled::start(|_| Response::raw("HTTP/1.1 200 OK\r\n\r\nhello"));
        let proxy = CountingProxy::to(fake.socket());
        for _ in 0..2 {
            let stream = UnixStream::connect(proxy.socket()).unwrap();
            let reply =
                http::ask(stream, "h", "GET", "/localapi/v0/status?peers=false", None).unwrap();
            assert_eq!(reply.text(), "hello");
        }
        assert_eq!(proxy.count("/localapi/v0/status"), 2);
        assert_eq!(proxy.requests()[0], "GET /localapi/v0/status?peers=false");
        drop(fake);
        let stream = UnixStream::connect(proxy.socket()).unwrap();
        assert!(http::ask(stream, "h", "GET", "/x", None).is_err());
    }
}
