//! A TCP stream from one node to another, of which each word comes back.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How often a word is sent.
const EVERY: Duration = Duration::from_millis(10);

/// A stream that goes on until it is dropped.
pub struct Stream {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    broke: AtomicBool,
    /// When words came back.
    came: Mutex<Vec<Instant>>,
}

impl Stream {
    /// From the node with this socket to the other's address. In userspace networking, what comes there
    /// goes to this machine's loopback.
    pub fn open(socket: &Path, address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("it is bound").port();
        thread::spawn(move || {
            if let Ok((peer, _)) = listener.accept() {
                let _ = io::copy(&mut &peer, &mut &peer);
            }
        });
        let dialed = dial(socket, address, port).expect("the other node is reached");
        let shared = Arc::<Shared>::default();
        let (sender, receiver) = (dialed.try_clone().expect("a socket can be cloned"), dialed);
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || send(sender, &sending));
        thread::spawn(move || receive(receiver, &receiving));
        Self { shared }
    }

    /// The longest time between two words that came back, since then; none if the stream broke.
    pub fn stall_since(&self, since: Instant) -> Option<Duration> {
        let came = self.shared.came.lock().expect("no thread panics");
        if self.shared.broke.load(Ordering::Relaxed) {
            return None;
        }
        let mut times: Vec<Instant> = came.iter().copied().filter(|at| *at >= since).collect();
        times.push(Instant::now());
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().or(Some(since.elapsed()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

/// As `tailscale nc` does.
fn dial(socket: &Path, address: &str, port: u16) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "POST /localapi/v0/dial HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: upgrade\r\n\
         Upgrade: ts-dial\r\nDial-Host: {address}\r\nDial-Port: {port}\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(stream),
        false => Err(io::Error::other(String::from_utf8_lossy(&head).into_owned())),
    }
}

fn send(mut stream: UnixStream, shared: &Shared) {
    let mut word = 0_u64;
    while !shared.over.load(Ordering::Relaxed) {
        if stream.write_all(&word.to_be_bytes()).is_err() {
            shared.broke.store(true, Ordering::Relaxed);
            return;
        }
        word += 1;
        thread::sleep(EVERY);
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn receive(mut stream: UnixStream, shared: &Shared) {
    let mut expected = 0_u64;
    let mut word = [0; 8];
    while stream.read_exact(&mut word).is_ok() && u64::from_be_bytes(word) == expected {
        expected += 1;
        shared.came.lock().expect("no thread panics").push(Instant::now());
    }
    if !shared.over.load(Ordering::Relaxed) {
        shared.broke.store(true, Ordering::Relaxed);
    }
}
