//! The auth key file: opening it once, locking and reading it, and keeping the key to itself.
//!
//! Only this module and whoever starts `tailscale up` ever see the key.

mod content;
mod parameters;
#[cfg(test)]
mod tests;
pub mod trust;

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, MemfdFlags, OFlags, flock, memfd_create};
use rustix::io::Errno;
use zeroize::Zeroizing;

pub use self::content::{KeyKind, MAX_BYTES, belongs_to, kind};
pub use self::parameters::{Parameters, TRUTHS};

use self::Problem::Unusable;
use self::trust::{PathPart, Process};
use crate::file_system::{FileFacts, SILENT};
use crate::redact;

/// Why the key file cannot be used (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the auth key file {} {problem}", .path.display())]
pub struct KeyFileError {
    pub path: PathBuf,
    pub problem: Problem,
}

/// What is wrong with a key file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("does not exist; is the secret deployed to this machine?")]
    Missing,
    /// It, or the way to it, cannot be read.
    #[error("cannot be read ({reason}); {remedy}")]
    Unreadable { reason: String, remedy: &'static str },
    /// Somebody writes to it.
    #[error("is being written while it is read; write it under another name and rename it")]
    Changing,
    /// Nothing is in it but white space.
    #[error("is empty; put an auth key into it")]
    Empty,
    #[error("is still encrypted with {0}; name the decrypted file instead")]
    Encrypted(&'static str),
    #[error("holds {0}, not an auth key; put only the auth key into it")]
    Holds(&'static str),
    /// It is no file with an auth key, and will not become one by itself.
    #[error("{0}")]
    Unusable(&'static str),
}

impl Problem {
    /// The file system does not answer.
    pub fn silent() -> Self {
        let remedy = "is what it is mounted from there?";
        Self::Unreadable { reason: SILENT.to_owned(), remedy }
    }

    /// The same, of the file at `path`.
    pub fn at(self, path: &Path) -> KeyFileError {
        KeyFileError { path: path.to_owned(), problem: self }
    }

    /// Whether waiting may help: the secret is not there, or not readable, yet. If it stays so,
    /// systemd should try again later.
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::Missing | Self::Unreadable { .. } | Self::Changing)
    }

    /// Whether the file is worth another look within this run. That includes an empty file,
    /// since some writers truncate first.
    pub fn is_worth_a_wait(&self) -> bool {
        self.may_heal() || *self == Self::Empty
    }

    /// In a word or two, for STATUS=.
    pub fn brief(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unreadable { .. } => "not readable",
            Self::Empty => "empty",
            Self::Changing => "being written",
            Self::Encrypted(_) | Self::Holds(_) | Self::Unusable(_) => "unusable",
        }
    }
}

/// Why there is no key to use now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// Another run of this program holds the lock on the key file.
    Busy,
    /// The file cannot be used.
    File(Problem),
}

/// What is told of a key that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    pub kind: KeyKind,
    /// By which the key, with its parameters, is known again without being kept.
    pub digest: String,
}

/// An auth key or an OAuth client secret, with the lock on the file that it came from.
///
/// The lock is an advisory `flock` on the opened key file itself: two runs with one single-use
/// key don't spend it twice, and nobody who may not read the key can hold us up. It is dropped
/// with the key.
pub struct AuthKey {
    /// As `tailscale up` gets it.
    secret: Zeroizing<String>,
    pub kind: KeyKind,
    /// Open as long as the lock is wanted.
    _lock: File,
}

impl AuthKey {
    /// Opens, locks and reads the key file, once: what is checked is what is used. The parameters are
    /// for an OAuth client secret, and win over those in the file.
    pub fn read(path: &Path, parameters: &Parameters) -> Result<Self, NoKey> {
        let (mut file, metadata) = open(path).map_err(NoKey::File)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(NoKey::Busy),
            // A file system without locks: better to go on than never to join.
            Err(error) => log::debug!("cannot lock {}: {error}", path.display()),
        }
        let (secret, kind) = key_in(&mut file, &metadata, parameters).map_err(NoKey::File)?;
        for how in exposure_of(path, &metadata) {
            log::warn!("the auth key file {} {how}", path.display());
        }
        if !kind.is_oauth_secret() && !parameters.is_empty() {
            log::warn!(
                "the parameters given for the auth key are left out: \
                 only an OAuth client secret takes them"
            );
        }
        Ok(Self { secret, kind, _lock: file })
    }

    pub fn facts(&self, salt: &[u8; 16]) -> KeyFacts {
        facts(&self.secret, self.kind, salt)
    }

    /// The body of a request to tailscaled that starts a login with the key, and touches nothing else.
    pub fn start_request(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{{\"AuthKey\":\"{}\"}}", *self.secret))
    }

    /// A memory file with the key in it, for a child process to inherit and to read as
    /// `/proc/self/fd/N`: the key is never in an argument, in the environment or on disk.
    pub fn to_inherited_memfd(&self) -> io::Result<OwnedFd> {
        // No CLOEXEC: the child that is started next is to inherit it.
        let memfd = memfd_create("auth-key", MemfdFlags::empty())?;
        let mut file = File::from(memfd);
        file.write_all(self.secret.as_bytes())?;
        Ok(OwnedFd::from(file))
    }
}

/// What can be told of the key file without using it. It never holds the key.
#[derive(Clone, Debug)]
pub struct Look {
    /// Who owns the file and how it is; none if that cannot be seen.
    pub file: Option<FileFacts>,
    /// A run holds the lock on it.
    pub locked: bool,
    /// What other users can do to it, if it can be used.
    pub exposure: Vec<String>,
    pub key: Result<KeyFacts, Problem>,
}

impl Look {
    /// Nothing is told but why there is no key.
    pub fn without_key(problem: Problem) -> Self {
        Self { file: None, locked: false, exposure: Vec::new(), key: Err(problem) }
    }
}

/// Looks at the key file as [`AuthKey::read`] would, and keeps nothing of it.
pub fn look(path: &Path, parameters: &Parameters, salt: &[u8; 16]) -> Look {
    let file = fs::metadata(path).ok().as_ref().map(FileFacts::from);
    let (mut opened, metadata) = match open(path) {
        Ok(opened) => opened,
        Err(problem) => return Look { file, ..Look::without_key(problem) },
    };
    let key = key_in(&mut opened, &metadata, parameters);
    Look {
        file,
        exposure: exposure_of(path, &metadata),
        key: key.map(|(secret, kind)| facts(&secret, kind, salt)),
        locked: is_locked(opened),
    }
}

fn facts(secret: &str, kind: KeyKind, salt: &[u8; 16]) -> KeyFacts {
    let digest = hmac_sha256::HMAC::mac(secret.as_bytes(), salt);
    KeyFacts { kind, digest: digest.map(|byte| format!("{byte:02x}")).concat() }
}

/// The key in a file that was as `metadata` says when it was opened, with the parameters that are
/// given for it.
fn key_in(
    file: &mut File,
    metadata: &Metadata,
    parameters: &Parameters,
) -> Result<(Zeroizing<String>, KeyKind), Problem> {
    let bytes = read_unchanged(file, metadata)?;
    let (word, kind) = content::parse(&bytes)?;
    redact::remember(word);
    let (secret, kind) = content::with_parameters(word, kind, parameters);
    redact::remember(&secret);
    Ok((secret, kind))
}

fn exposure_of(path: &Path, metadata: &Metadata) -> Vec<String> {
    let parts = trust::path_parts(path).unwrap_or_default();
    exposure(metadata.mode(), &parts, Process::current())
}

/// What other users can do to a key file of this mode, to which `parts` lead. Each sentence goes on
/// from the name of the file.
fn exposure(mode: u32, parts: &[PathPart], process: Process) -> Vec<String> {
    let done = match (mode & 0o044 != 0, mode & 0o022 != 0) {
        (true, true) => Some("read and written"),
        (true, false) => Some("read"),
        (false, true) => Some("written"),
        (false, false) => None,
    };
    let mode = mode & 0o7777;
    let touched =
        done.map(|done| format!("can be {done} by other users (mode {mode:04o}); chmod 0400 it"));
    let replaced = match trust::parts_of_other_users(parts, process) {
        Err(why) => Some(format!(
            "can be replaced by other users, who then decide which tailnet this machine joins: \
             {why}"
        )),
        Ok(of_others) => {
            of_others.iter().find(|part| part.kind == FileType::Directory).map(|part| {
                format!(
                    "can be replaced by user {}, who then decides which tailnet this machine \
                     joins: the directory {} is that user's",
                    part.owner,
                    part.path.display()
                )
            })
        }
    };
    touched.into_iter().chain(replaced).collect()
}

/// Whether a run has locked the file. There is no asking but by trying: the lock is shared, so
/// that only a run can be in the way, and is let go at once; a run that meets it looks again.
fn is_locked(file: File) -> bool {
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Opens the file, if it's one.
fn open(path: &Path) -> Result<(File, Metadata), Problem> {
    // To open a device or a pipe can do something to it, so it's looked at before as well.
    must_be_file(&fs::metadata(path).map_err(not_opened)?)?;
    // Not to be held up by a pipe without a writer that has taken its place.
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)
        .map_err(not_opened)?;
    let metadata = file.metadata().map_err(unreadable)?;
    must_be_file(&metadata)?;
    Ok((file, metadata))
}

fn must_be_file(metadata: &Metadata) -> Result<(), Problem> {
    match metadata.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => {
            Err(Unusable("is a directory; name the file in it that holds the auth key"))
        }
        _ => Err(Unusable("is not a regular file; write the auth key to a file")),
    }
}

/// Reads the file, no more of it than a key can have, if nobody writes to it meanwhile. It was as
/// `before` says when it was opened.
fn read_unchanged(file: &mut File, before: &Metadata) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    let after = (&mut *file)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .and_then(|_| file.metadata())
        .map_err(unreadable)?;
    match state(before) == state(&after) {
        true => Ok(bytes),
        false => Err(Problem::Changing),
    }
}

fn not_opened(error: io::Error) -> Problem {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => Problem::Missing,
        Some(Errno::NOTDIR) => {
            Unusable("cannot be there: a part of its path is not a directory; correct the path")
        }
        Some(Errno::LOOP) => Unusable(
            "is a link that leads back to itself; link it to the file that holds the auth key",
        ),
        Some(Errno::NAMETOOLONG) => {
            Unusable("cannot be there: its path is too long; correct the path")
        }
        _ => unreadable(error),
    }
}

fn unreadable(error: io::Error) -> Problem {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    Problem::Unreadable {
        reason: if is_denied { "permission denied".to_owned() } else { error.to_string() },
        remedy: match Process::current().is_root() {
            false => "run as root or make the file readable for this user",
            true if is_denied => {
                "root may read it with the capability CAP_DAC_READ_SEARCH only, \
                 or a security module forbids it"
            }
            true => "is its file system in order?",
        },
    }
}
