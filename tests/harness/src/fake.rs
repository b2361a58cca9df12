//! A stand-in for `tailscaled` whose answers the test writes: for what the real one cannot be made
//! to do.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, process};

/// A request that a [`FakeTailscaled`] got.
#[derive(Clone, Debug)]
pub struct Request {
    /// Since the stand-in was started.
    pub at: Duration,
    /// Like `GET`.
    pub method: String,
    /// Without its query.
    pub path: String,
    /// What stands after the question mark.
    pub query: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Its body as text.
    pub body: String,
    /// How many requests for the same path came before this one.
    pub nth: usize,
}

impl Request {
    /// Whether this is the request for the status.
    pub fn is_status(&self) -> bool {
        self.path == "/localapi/v0/status"
    }

    /// Whether this is the request for the event bus.
    pub fn is_bus(&self) -> bool {
        self.path == "/localapi/v0/watch-ipn-bus"
    }

    /// The body as JSON, null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// What a [`FakeTailscaled`] answers.
#[derive(Clone, Debug)]
pub struct Response {
    answer: Answer,
    delay: Duration,
}

#[derive(Clone, Debug)]
enum Answer {
    Whole { code: u16, kind: &'static str, body: Vec<u8> },
    Endless,
    Drip { body: Vec<u8>, every: Duration },
    Never,
    Close,
    Raw(Vec<u8>),
    RawDrip { bytes: Vec<u8>, every: Duration },
    Flood { start: Vec<u8>, again: Vec<u8> },
    Stream,
}

impl Response {
    /// 200 with JSON.
    #[allow(clippy::needless_pass_by_value, reason = "reads best with json! in the call")]
    pub fn json(body: Value) -> Self {
        let body = body.to_string().into_bytes();
        Self::new(Answer::Whole { code: 200, kind: "application/json", body })
    }

    /// Any status code with a text.
    pub fn status(code: u16, text: &str) -> Self {
        let body = text.as_bytes().to_vec();
        Self::new(Answer::Whole { code, kind: "text/plain; charset=utf-8", body })
    }

    /// 200 with a body that never ends, as fast as it is read.
    pub fn endless() -> Self {
        Self::new(Answer::Endless)
    }

    /// 200 with this body, one byte at a time.
    pub fn drip(body: impl Into<Vec<u8>>, every: Duration) -> Self {
        Self::new(Answer::Drip { body: body.into(), every })
    }

    /// No answer, on an open connection.
    pub fn never() -> Self {
        Self::new(Answer::Never)
    }

    /// The connection closed, without an answer.
    pub fn close() -> Self {
        Self::new(Answer::Close)
    }

    /// These bytes, which need not be HTTP; then the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(Answer::Raw(bytes.into()))
    }

    /// These bytes, which need not be HTTP, one at a time.
    pub fn raw_drip(bytes: impl Into<Vec<u8>>, every: Duration) -> Self {
        Self::new(Answer::RawDrip { bytes: bytes.into(), every })
    }

    /// These bytes, and then others again and again without end, as fast as they are read.
    pub fn flood(start: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> Self {
        let again = again.into();
        assert!(!again.is_empty(), "nothing is no flood");
        let times = 0x10000_usize.div_ceil(again.len());
        Self::new(Answer::Flood { start: start.into(), again: again.repeat(times) })
    }

    /// An event bus: one line at once, then one each time that [`FakeTailscaled::ring`] is called,
    /// until [`FakeTailscaled::end_streams`].
    pub fn stream() -> Self {
        Self::new(Answer::Stream)
    }

    /// The same, after this time.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn new(answer: Answer) -> Self {
        Self { answer, delay: Duration::ZERO }
    }
}

/// A status as a daemon in this state gives it. `changes` replaces some of its fields; those under
/// `Self` one by one.
///
/// In `Running` it is online with two addresses; in `NeedsLogin` and `NoState` it has no node key.
#[allow(clippy::needless_pass_by_value, reason = "reads best with json! in the call")]
pub fn status_json(state: &str, changes: Value) -> Value {
    let has_key = !matches!(state, "NeedsLogin" | "NoState");
    let online = state == "Running";
    let addresses = if online { json!(["100.64.0.1", "fd7a:115c:a1e0::1"]) } else { Value::Null };
    let mut status = json!({
        "Version": "1.98.10-t000000000",
        "TUN": false,
        "BackendState": state,
        "HaveNodeKey": has_key,
        "AuthURL": "",
        "TailscaleIPs": addresses,
        "Self": {
            "ID": if has_key { "n1" } else { "" },
            "PublicKey": format!("nodekey:{:064}", u8::from(has_key)),
            "HostName": "fake",
            "DNSName": if online { "fake.tail0000.ts.net." } else { "" },
            "OS": "linux",
            "UserID": u8::from(has_key),
            "TailscaleIPs": addresses,
            "Online": online,
        },
        "Health": if online { json!([]) } else { json!(["Tailscale is stopped."]) },
        "MagicDNSSuffix": if online { "tail0000.ts.net" } else { "" },
        "CurrentTailnet": if online { json!({"Name": "example.test"}) } else { Value::Null },
        "CertDomains": null,
        "Peer": null,
        "User": null,
        "ClientVersion": null,
    });
    for (name, change) in changes.as_object().into_iter().flatten() {
        match (name.as_str(), change.as_object()) {
            ("Self", Some(fields)) => {
                for (field, value) in fields {
                    status["Self"][field] = value.clone();
                }
            }
            _ => status[name] = change.clone(),
        }
    }
    status
}

type Script = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// A Unix socket that speaks HTTP/1.1 and answers as its script says.
///
/// The script runs once per request, in the connection's own thread. When this is dropped, all
/// connections are cut and the socket is removed.
pub struct FakeTailscaled {
    desk: Arc<Desk>,
    listener: Arc<UnixListener>,
    acceptor: Option<JoinHandle<()>>,
    socket: PathBuf,
    _dir: Option<TempDir>,
}

struct Desk {
    started: Instant,
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    script: Script,
    requests: Vec<Request>,
    rings: usize,
    stream_ends: usize,
    open_streams: usize,
    flooded: usize,
    connections: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl FakeTailscaled {
    /// Listens on a socket of its own.
    pub fn start(script: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let dir = process::open_temp_dir("fake-");
        let socket = dir.path().join("tailscaled.sock");
        Self::listen(socket, Some(dir), script)
    }

    /// Listens on this path, where nothing may be. With it a daemon can come late, or come back.
    pub fn start_at(
        socket: impl Into<PathBuf>,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::listen(socket.into(), None, script)
    }

    /// Listens on this path as another user (tests that run as root only), who must be able to
    /// write to its folder.
    pub fn start_as(
        user: u32,
        socket: impl Into<PathBuf>,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let socket = socket.into();
        // Only the thread becomes another user, with those that it starts.
        let listening = thread::spawn(move || {
            let user = rustix::thread::Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(user, user, user)
                .unwrap_or_else(|error| panic!("cannot become another user: {error}"));
            Self::listen(socket, None, script)
        });
        listening.join().expect("it says why above")
    }

    /// Answers every request for the status with this one, holds the event bus open and answers
    /// everything else with 404.
    pub fn with_status(status: Value) -> Self {
        Self::start(move |request| match request {
            _ if request.is_status() => Response::json(status.clone()),
            _ if request.is_bus() => Response::stream(),
            _ => Response::status(404, "not found"),
        })
    }

    fn listen(
        socket: PathBuf,
        dir: Option<TempDir>,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(&socket)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", socket.display()));
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .expect("a socket of our own");
        let listener = Arc::new(listener);
        let desk = Arc::new(Desk {
            started: Instant::now(),
            now: Mutex::new(Now {
                script: Arc::new(script),
                requests: Vec::new(),
                rings: 0,
                stream_ends: 0,
                open_streams: 0,
                flooded: 0,
                connections: Vec::new(),
                threads: Vec::new(),
                stopped: false,
            }),
            changed: Condvar::new(),
        });
        let acceptor = {
            let (desk, listener) = (Arc::clone(&desk), Arc::clone(&listener));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    desk.receive(stream);
                }
            })
        };
        Self { desk, listener, acceptor: Some(acceptor), socket, _dir: dir }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Answers by another script from now on.
    pub fn script(&self, script: impl Fn(&Request) -> Response + Send + Sync + 'static) {
        self.desk.change(|now| now.script = Arc::new(script));
    }

    /// Sends a line down every open [`Response::stream`].
    pub fn ring(&self) {
        self.desk.change(|now| now.rings += 1);
    }

    /// Ends every open [`Response::stream`], as a daemon that shuts down does.
    pub fn end_streams(&self) {
        self.desk.change(|now| now.stream_ends += 1);
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.desk.now().open_streams
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.desk.now().requests.clone()
    }

    /// How many requests for this path came so far.
    pub fn count(&self, path: &str) -> usize {
        count(&self.desk.now(), path)
    }

    /// Waits until at least `wanted` requests for this path have come.
    pub fn wait_count(&self, path: &str, wanted: usize) {
        self.wait(&format!("{wanted} requests for {path}"), |now| count(now, path) >= wanted);
    }

    /// Waits until a stream is open, so that [`Self::ring`] is heard.
    pub fn wait_stream(&self) {
        self.wait("an open stream", |now| now.open_streams > 0);
    }

    /// Waits until endless answers have had so many bytes taken from them.
    pub fn wait_flooded(&self, bytes: usize) {
        self.wait(&format!("{bytes} bytes to be taken"), |now| now.flooded >= bytes);
    }

    fn wait(&self, what: &str, seen: impl Fn(&Now) -> bool) {
        let (now, late) = self
            .desk
            .changed
            .wait_timeout_while(self.desk.now(), PATIENCE, |now| !seen(now))
            .unwrap_or_else(PoisonError::into_inner);
        let requests: Vec<_> = now.requests.iter().map(|one| (&one.method, &one.path)).collect();
        assert!(!late.timed_out(), "waited in vain for {what}; requests: {requests:?}");
    }
}

impl Drop for FakeTailscaled {
    fn drop(&mut self) {
        self.desk.change(|now| now.stopped = true);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let threads = {
            let mut now = self.desk.now();
            for connection in now.connections.drain(..) {
                let _ = connection.shutdown(Shutdown::Both);
            }
            std::mem::take(&mut now.threads)
        };
        for thread in threads {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn count(now: &Now, path: &str) -> usize {
    now.requests.iter().filter(|request| request.path == path).count()
}

impl Desk {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now());
        self.changed.notify_all();
    }

    fn receive(self: &Arc<Self>, stream: UnixStream) {
        let desk = Arc::clone(self);
        let mut now = self.now();
        if now.stopped {
            return;
        }
        if let Ok(handle) = stream.try_clone() {
            now.connections.push(handle);
        }
        now.threads.push(thread::spawn(move || {
            // The client may hang up whenever it likes.
            let _ = desk.serve(&stream);
            let _ = stream.shutdown(Shutdown::Both);
        }));
    }

    /// Answers the requests of one connection, one after the other.
    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(mut request) = read_request(&mut reader)? {
            request.at = self.started.elapsed();
            let script = {
                let mut now = self.now();
                request.nth = count(&now, &request.path);
                now.requests.push(request.clone());
                Arc::clone(&now.script)
            };
            self.changed.notify_all();
            let response = script(&request);
            let last = request.headers.get("connection").is_some_and(|value| value == "close");
            if self.pause(response.delay) || !self.answer(stream, response.answer)? || last {
                break;
            }
        }
        Ok(())
    }

    /// Sends an answer; says whether the connection can go on.
    fn answer(&self, mut stream: &UnixStream, answer: Answer) -> io::Result<bool> {
        match answer {
            Answer::Whole { code, kind, body } => {
                let mut bytes =
                    head(code, &format!("Content-Type: {kind}\r\nContent-Length: {}", body.len()));
                bytes.extend_from_slice(&body);
                stream.write_all(&bytes)?;
                Ok(true)
            }
            Answer::Endless => {
                stream.write_all(&head(
                    200,
                    "Content-Type: application/json\r\nTransfer-Encoding: chunked",
                ))?;
                let mut chunk = b"10000\r\n".to_vec();
                chunk.resize(chunk.len() + 0x10000, b' ');
                chunk.extend_from_slice(b"\r\n");
                self.flood(stream, &chunk)
            }
            Answer::Drip { body, every } => {
                stream.write_all(&head(
                    200,
                    &format!("Content-Type: application/json\r\nContent-Length: {}", body.len()),
                ))?;
                self.drip(stream, &body, every)
            }
            Answer::Never => {
                // Until the client hangs up or the stand-in is dropped.
                io::copy(&mut stream, &mut io::sink())?;
                Ok(false)
            }
            Answer::Close => Ok(false),
            Answer::Raw(bytes) => {
                stream.write_all(&bytes)?;
                Ok(false)
            }
            Answer::RawDrip { bytes, every } => {
                self.drip(stream, &bytes, every)?;
                Ok(false)
            }
            Answer::Flood { start, again } => {
                stream.write_all(&start)?;
                self.flood(stream, &again)
            }
            Answer::Stream => {
                stream.write_all(&head(
                    200,
                    "Content-Type: application/json\r\nTransfer-Encoding: chunked",
                ))?;
                self.change(|now| now.open_streams += 1);
                let ended = self.stream_lines(stream);
                self.change(|now| now.open_streams -= 1);
                ended.map(|()| false)
            }
        }
    }

    /// Sends bytes again and again until the client hangs up.
    fn flood(&self, mut stream: &UnixStream, again: &[u8]) -> io::Result<bool> {
        loop {
            stream.write_all(again)?;
            self.change(|now| now.flooded += again.len());
        }
    }

    /// Sends bytes one at a time; says whether the connection can go on.
    fn drip(&self, mut stream: &UnixStream, bytes: &[u8], every: Duration) -> io::Result<bool> {
        for byte in bytes {
            stream.write_all(&[*byte])?;
            if self.pause(every) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stream_lines(&self, mut stream: &UnixStream) -> io::Result<()> {
        let (mut rung, ends) = {
            let now = self.now();
            (now.rings, now.stream_ends)
        };
        let line = json!({ "Version": "1.98.10" }).to_string() + "\n";
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        stream.write_all(chunk.as_bytes())?;
        loop {
            let rings = {
                let now = self
                    .changed
                    .wait_while(self.now(), |now| {
                        !now.stopped && now.rings == rung && now.stream_ends == ends
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                if now.stopped || now.stream_ends != ends {
                    break;
                }
                now.rings
            };
            for _ in rung..rings {
                stream.write_all(chunk.as_bytes())?;
            }
            rung = rings;
        }
        stream.write_all(b"0\r\n\r\n")
    }

    /// Waits; true if the stand-in is dropped meanwhile.
    fn pause(&self, time: Duration) -> bool {
        self.changed
            .wait_timeout_while(self.now(), time, |now| !now.stopped)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .stopped
    }
}

fn head(code: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} Status\r\n{headers}\r\n\r\n").into_bytes()
}

/// Reads one request; nothing at the connection's end.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        at: Duration::ZERO,
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: BTreeMap::new(),
        body: String::new(),
        nth: 0,
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = request.headers.get("content-length");
    let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;

    fn connect(fake: &FakeTailscaled) -> UnixStream {
        let stream = UnixStream::connect(fake.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    #[test]
    fn requests_are_answered_by_the_script_and_recorded() {
        let fake =
            FakeTailscaled::with_status(status_json("Stopped", json!({"Self": {"Online": true}})));
        let get = |path| http::ask(connect(&fake), "h", "GET", path, None);
        let status = get("/localapi/v0/status?peers=false").unwrap().json();
        assert_eq!(status["BackendState"], "Stopped");
        assert_eq!(status["Self"]["Online"], true);
        assert_eq!(fake.requests()[0].query, "peers=false");

        fake.script(|request| match request.method.as_str() {
            "POST" => Response::raw(format!("HTTP/1.1 200 OK\r\n\r\n{}", request.body)),
            _ => Response::close(),
        });
        let posted = http::ask(connect(&fake), "h", "POST", "/x", Some(b"{\"a\":1}")).unwrap();
        assert_eq!(posted.json(), json!({"a": 1}));
        assert_eq!(fake.requests()[1].json(), json!({"a": 1}));
        assert!(get("/y").is_err());
        assert_eq!(fake.count("/y"), 1);
    }

    #[test]
    fn a_stream_can_be_rung_and_ended() {
        let fake = FakeTailscaled::start(|_| Response::stream());
        let mut stream = connect(&fake);
        http::send(&mut stream, "h", "GET", "/localapi/v0/watch-ipn-bus", None).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let mut next = || lines.find(|line| line.contains("Version"));
        assert!(next().is_some());
        fake.ring();
        fake.ring();
        assert!(next().is_some());
        assert!(next().is_some());
        fake.end_streams();
        assert!(next().is_none());
    }

    #[test]
    fn all_connections_end_with_the_stand_in() {
        let fake = FakeTailscaled::start(|request| match request.path.as_str() {
            "/never" => Response::never(),
            "/drip" => Response::drip("0123456789", Duration::from_secs(1)),
            "/late" => Response::json(json!({})).after(Duration::from_secs(60)),
            "/raw-drip" => Response::raw_drip("0123456789", Duration::from_secs(1)),
            "/flood" => Response::flood("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
            _ => Response::endless(),
        });
        let mut streams = Vec::new();
        for path in ["/never", "/drip", "/late", "/raw-drip", "/flood", "/endless"] {
            let mut stream = connect(&fake);
            http::send(&mut stream, "h", "GET", path, None).unwrap();
            fake.wait_count(path, 1);
            streams.push(stream);
        }
        let socket = fake.socket().to_owned();
        let before = Instant::now();
        drop(fake);
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
        assert!(UnixStream::connect(socket).is_err());
    }
}
