//! What outlives a run: the login that it has begun, and the auth key that was refused. Without it, a
//! kill or a power cut in mid-login would lose settings, and a dead key would be sent again and again.
//!
//! One file for each socket of tailscaled, in the state directory. It never holds the key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::file_system::read_text;
use crate::prefs::Prefs;
use crate::tailscaled::Profile;

/// What the unit's StateDirectory= is. A run of root's by hand shares it with the service.
const OF_UNIT: &str = "/var/lib/tailscale-autoconnect";

/// Where there is no state directory of systemd's.
const BY_HAND: &str = "tailscale-autoconnect";

/// What is known from runs before.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Record {
    /// What the digests of keys are made with.
    pub salt: [u8; 16],
    /// A login that was begun, and of whose end nothing is known.
    pub login: Option<BegunLogin>,
    pub refused: Option<RefusedKey>,
    /// The node key that was seen last.
    pub node: Option<Box<NodeKey>>,
    pub last: Box<Last>,
}

impl Record {
    /// Whether it was made on another machine, whose state this one has a copy of.
    pub fn is_copied(&self) -> bool {
        let own = &self.last.machine;
        !own.is_empty() && machine_id().is_some_and(|id| id != *own)
    }
}

/// What was done last. Times are in seconds since 1970; zero is never.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Last {
    /// When the node was logged in.
    pub login: u64,
    /// When its node key was renewed.
    pub renewal: u64,
    /// The digest of a key that the control server did not know, perhaps not yet: it is sent once more.
    pub early: Option<String>,
    /// The ID of the machine that the login was begun on.
    pub machine: String,
}

/// The ID of this machine, see machine-id(5).
pub fn machine_id() -> Option<String> {
    let id = read_text("/etc/machine-id").ok()?;
    let id = id.trim();
    (id.len() == 32).then(|| id.to_owned())
}

/// A node key, as far as runs have seen it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct NodeKey {
    /// Its public part.
    pub key: String,
    /// When it expires, counted from 1970.
    pub expiry: Duration,
    /// How long it lives in all: the longest time before its end at which it was seen.
    pub life: Duration,
}

/// A login that was begun.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct BegunLogin {
    /// When, in seconds since 1970.
    pub at: u64,
    pub profile: Profile,
    /// The login server that it goes to.
    pub server: String,
    /// The user's flags.
    pub flags: Vec<String>,
    /// The digest of its key.
    pub key: String,
    /// The preferences before it.
    pub before: Prefs,
}

impl BegunLogin {
    /// Whether both are the same, whenever they were begun.
    pub fn is_same_as(&self, other: &Self) -> bool {
        *self == Self { at: self.at, ..other.clone() }
    }
}

/// A key that was refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RefusedKey {
    /// When, in seconds since 1970.
    pub at: u64,
    pub digest: String,
    /// The login server that refused it.
    pub server: String,
    /// What it said.
    pub words: String,
}

/// The place of a record.
#[derive(Clone, Debug)]
pub struct Store {
    /// None if there is no directory to keep it in.
    path: Option<PathBuf>,
}

impl Store {
    /// The place for the tailscaled with this socket: in `STATE_DIRECTORY` of systemd; else for root
    /// in the one of the unit, if there is one, or below /run, and below `XDG_RUNTIME_DIR` for others.
    pub fn of(socket: &Path, is_root: bool) -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let directory = match variable("STATE_DIRECTORY") {
            // Of several, systemd names the first first.
            Some(all) => std::env::split_paths(&all).next(),
            None if is_root && Path::new(OF_UNIT).is_dir() => Some(PathBuf::from(OF_UNIT)),
            None if is_root => Some(Path::new("/run").join(BY_HAND)),
            None => {
                variable("XDG_RUNTIME_DIR").map(|directory| Path::new(&directory).join(BY_HAND))
            }
        };
        let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
        let socket = real_path(&socket);
        let path = directory.map(|directory| directory.join(format!("{}.json", name_of(&socket))));
        Self { path }
    }

    /// What it holds; a record that cannot be read is said and ignored.
    pub fn read(&self) -> Record {
        let Some(path) = &self.path else {
            return Record::default();
        };
        let read = match read_text(path) {
            // An array would be taken for the fields in their order.
            Ok(text) if text.trim_start().starts_with('[') => Err("it is an array".to_owned()),
            Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|error| {
            log::warn!(
                "the record in the state directory ({}) cannot be read and is ignored: {error}",
                path.display()
            );
            Record::default()
        })
    }

    /// Replaces what it holds. An empty record leaves no file. A power cut leaves the old or the new once
    /// what is returned has been synced.
    pub fn write(&self, record: &Record) -> io::Result<Unsynced> {
        let path = self.path()?;
        if *record == (Record { salt: record.salt, ..Record::default() }) {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(Unsynced(None)),
            };
        }
        let directory = self.make_directory()?;
        let new = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&new, path)?;
        Ok(Unsynced(Some([file, File::open(directory)?])))
    }

    /// Locks the place, so that one run at a time logs in. None if another has the lock; a place that
    /// cannot be locked is no reason not to log in.
    pub fn lock(&self) -> Option<Lock> {
        let open = || {
            let path = self.path()?.with_extension("lock");
            self.make_directory()?;
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        match open() {
            Ok(file) => match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => None,
                _ => Some(Lock { _file: Some(file) }),
            },
            Err(error) => {
                log::debug!("cannot lock the state directory: {error}");
                Some(Lock::default())
            }
        }
    }

    fn path(&self) -> io::Result<&Path> {
        self.path.as_deref().ok_or_else(|| io::Error::other("there is no state directory"))
    }

    fn make_directory(&self) -> io::Result<&Path> {
        let directory = self.path()?.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(directory)
    }
}

/// What was written and may not have come to the disk.
#[must_use]
pub struct Unsynced(Option<[File; 2]>);

impl Unsynced {
    /// Waits until it has.
    pub fn sync(self) -> io::Result<()> {
        self.0.iter().flatten().try_for_each(File::sync_data)
    }
}

/// The lock of a [`Store`], until it is dropped.
#[derive(Debug, Default)]
pub struct Lock {
    _file: Option<File>,
}

/// A path without links, as far as it is there: a socket has one name before and after tailscaled starts.
fn real_path(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
    match there {
        Some((part, real)) => path.strip_prefix(part).map_or(real.clone(), |rest| real.join(rest)),
        None => path.to_owned(),
    }
}

/// A file name for a path: what a name may hold stays, and each other byte becomes `%` and its number.
fn name_of(path: &Path) -> String {
    let path = path.as_os_str().as_encoded_bytes();
    let name: String = path
        .iter()
        .map(|byte| match byte {
            b'/' => "-".to_owned(),
            b if b.is_ascii_alphanumeric() || b"._".contains(b) => char::from(*b).to_string(),
            b => format!("%{b:02x}"),
        })
        .collect();
    name.trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> Store {
        Store { path: Some(directory.join("state/x.json")) }
    }

    fn record() -> Record {
        let refused =
            RefusedKey { at: 1, digest: "d".into(), server: "s".into(), words: "w".into() };
        Record { salt: [7; 16], refused: Some(refused), ..Record::default() }
    }

    #[test]
    fn what_was_written_is_read_and_an_empty_record_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        assert_eq!(store.read(), Record::default());
        store.write(&record()).unwrap().sync().unwrap();
        assert_eq!(store.read(), record());
        store.write(&Record::default()).unwrap().sync().unwrap();
        assert!(!store.path.as_ref().unwrap().exists());
        store.write(&Record::default()).unwrap().sync().unwrap();
    }

    #[test]
    fn a_record_that_is_broken_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        store.write(&record()).unwrap().sync().unwrap();
        for broken in ["", "{", "[]", "{\"salt\":1}", "\0"] {
            fs::write(store.path.as_ref().unwrap(), broken).unwrap();
            assert_eq!(store.read(), Record::default(), "{broken:?}");
        }
    }

    #[test]
    fn one_at_a_time_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let lock = store.lock().unwrap();
        assert!(store.lock().is_none());
        drop(lock);
        assert!(store.lock().is_some());
    }

    #[test]
    fn a_socket_that_is_not_there_yet_has_the_name_that_it_will_have() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("run");
        let link = directory.path().join("link");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let socket = link.join("tailscale/tailscaled.sock");
        let before = real_path(&socket);
        fs::create_dir(real.join("tailscale")).unwrap();
        fs::write(&socket, "").unwrap();
        assert_eq!(before, real_path(&socket));
        assert_eq!(before, real.join("tailscale/tailscaled.sock"));
    }

    #[test]
    fn sockets_have_names_that_are_file_names_and_differ() {
        assert_eq!(
            name_of(Path::new("/run/tailscale/tailscaled.sock")),
            "run-tailscale-tailscaled.sock"
        );
        assert_ne!(name_of(Path::new("/a-b")), name_of(Path::new("/a/b")));
    }
}
