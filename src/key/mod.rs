//! The auth key file: opening it once, locking and reading it, and keeping the key to itself.
//!
//! Only this module and whoever starts `tailscale up` ever see the key.

mod content;
mod parameters;
#[cfg(test)]
mod tests;
pub mod trust;

use std::borrow::Cow;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, MemfdFlags, OFlags, flock, memfd_create};
use rustix::io::Errno;
use zeroize::Zeroizing;

pub use self::content::{KeyKind, MAX_BYTES, belongs_to, kind};
pub use self::parameters::{Parameters, TRUTHS};

use self::content::Unfit;
use self::trust::{FileKind, PathPart, Process};
use crate::file_system::{FileFacts, SILENT};
use crate::redact;

/// Why the key file cannot be used (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("the auth key file {} does not exist; is the secret deployed to this machine?", .0.display())]
    Missing(PathBuf),
    /// It, or the way to it, cannot be read.
    #[error("the auth key file {} cannot be read ({reason}); {remedy}", .path.display())]
    Unreadable { path: PathBuf, reason: String, remedy: &'static str },
    /// Somebody writes to it.
    #[error(
        "the auth key file {} is being written while it is read; \
         write it under another name and rename it",
        .0.display()
    )]
    Changing(PathBuf),
    /// Nothing is in it but white space.
    #[error("the auth key file {} is empty; put an auth key into it", .0.display())]
    Empty(PathBuf),
    /// It is no file with an auth key, and will not become one by itself.
    #[error("the auth key file {} {problem}", .path.display())]
    Unusable { path: PathBuf, problem: Cow<'static, str> },
}

impl KeyFileError {
    /// The file system does not answer.
    pub fn silent(path: &Path) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            reason: SILENT.to_owned(),
            remedy: "is what it is mounted from there?",
        }
    }

    /// It will not do, for this reason: words that go on from its name.
    pub fn unusable(path: &Path, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Unusable { path: path.to_owned(), problem: problem.into() }
    }

    /// Whether waiting may help: the secret is not there, or not readable, yet. If it stays so,
    /// systemd should try again later.
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Unreadable { .. } | Self::Changing(_))
    }

    /// Whether the file is worth another look within this run. That includes an empty file,
    /// since some writers truncate first.
    pub fn is_worth_a_wait(&self) -> bool {
        self.may_heal() || matches!(self, Self::Empty(_))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing(path) | Self::Empty(path) | Self::Changing(path) => path,
            Self::Unreadable { path, .. } | Self::Unusable { path, .. } => path,
        }
    }

    /// What is wrong in a word or two, for STATUS=.
    pub fn brief(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Unreadable { .. } => "not readable",
            Self::Empty(_) => "empty",
            Self::Changing(_) => "being written",
            Self::Unusable { .. } => "unusable",
        }
    }
}

/// Why there is no key to use now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// Another run of this program holds the lock on the key file.
    Busy,
    /// The file cannot be used.
    File(KeyFileError),
}

impl From<KeyFileError> for NoKey {
    fn from(error: KeyFileError) -> Self {
        Self::File(error)
    }
}

/// Where the key is, and what is to be added to it.
#[derive(Clone, Debug)]
pub struct KeySource {
    pub path: PathBuf,
    /// For an OAuth client secret. They win over those in the file.
    pub parameters: Parameters,
}

/// An auth key or an OAuth client secret, with the lock on the file that it came from.
///
/// The lock is an advisory `flock` on the opened key file itself: two runs with one single-use
/// key don't spend it twice, and nobody who may not read the key can hold us up. It is dropped
/// with the key.
pub struct AuthKey {
    /// As `tailscale up` gets it.
    secret: Zeroizing<String>,
    kind: KeyKind,
    /// Open as long as the lock is wanted.
    _lock: File,
}

impl AuthKey {
    /// Opens, locks and reads the key file, once: what is checked is what is used.
    pub fn read(source: &KeySource) -> Result<Self, NoKey> {
        let path = &source.path;
        let (mut file, metadata) = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(NoKey::Busy),
            // A file system without locks: better to go on than never to join.
            Err(error) => log::debug!("cannot lock {}: {error}", path.display()),
        }
        let bytes = read_unchanged(&mut file, path, &metadata)?;
        let (secret, kind) = key_in(&bytes, source)?;
        for how in exposure_of(path, &metadata) {
            log::warn!("the auth key file {} {how}", path.display());
        }
        if !kind.is_oauth_secret() && !source.parameters.is_empty() {
            log::warn!(
                "the parameters given for the auth key are left out: \
                 only an OAuth client secret takes them"
            );
        }
        Ok(Self { secret, kind, _lock: file })
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// By what the key, with its parameters, is known again without being kept.
    pub fn digest(&self, salt: &[u8; 16]) -> String {
        digest(&self.secret, salt)
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
    pub kind: Result<KeyKind, KeyFileError>,
    /// By what the key is known again; empty if there is none.
    pub digest: String,
}

impl Look {
    /// No key can be used, for this reason.
    pub fn without_key(error: KeyFileError, file: Option<FileFacts>) -> Self {
        let (locked, exposure, digest) = Default::default();
        Self { file, locked, exposure, kind: Err(error), digest }
    }
}

/// Looks at the key file as [`AuthKey::read`] would, and keeps nothing of it.
pub fn look(source: &KeySource, salt: &[u8; 16]) -> Look {
    let path = &source.path;
    match open(path) {
        Ok((mut file, metadata)) => {
            let key =
                read_unchanged(&mut file, path, &metadata).and_then(|bytes| key_in(&bytes, source));
            Look {
                digest: key.as_ref().map(|(secret, _)| digest(secret, salt)).unwrap_or_default(),
                kind: key.map(|(_, kind)| kind),
                file: Some(FileFacts::from(&metadata)),
                exposure: exposure_of(path, &metadata),
                locked: is_locked(file),
            }
        }
        Err(error) => {
            Look::without_key(error, fs::metadata(path).ok().as_ref().map(FileFacts::from))
        }
    }
}

fn digest(secret: &str, salt: &[u8; 16]) -> String {
    let digest = hmac_sha256::HMAC::mac(secret.as_bytes(), salt);
    digest.map(|byte| format!("{byte:02x}")).concat()
}

/// The key in what the file holds, with the parameters that are given for it.
fn key_in(bytes: &[u8], source: &KeySource) -> Result<(Zeroizing<String>, KeyKind), KeyFileError> {
    let (word, kind) = content::parse(bytes).map_err(|unfit| match unfit {
        Unfit::Empty => KeyFileError::Empty(source.path.clone()),
        unfit => KeyFileError::unusable(&source.path, unfit.to_string()),
    })?;
    redact::remember(word);
    let (secret, kind) = content::with_parameters(word, kind, &source.parameters);
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
            of_others.iter().find(|part| part.kind == FileKind::Directory).map(|part| {
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
fn open(path: &Path) -> Result<(File, Metadata), KeyFileError> {
    // To open a device or a pipe can do something to it, so it's looked at before as well.
    let metadata = fs::metadata(path).map_err(|error| open_error(path, &error))?;
    must_be_file(path, &metadata)?;
    // Not to be held up by a pipe without a writer that has taken its place.
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)
        .map_err(|error| open_error(path, &error))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    must_be_file(path, &metadata)?;
    Ok((file, metadata))
}

fn must_be_file(path: &Path, metadata: &Metadata) -> Result<(), KeyFileError> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(KeyFileError::unusable(
        path,
        if metadata.is_dir() {
            "is a directory; name the file in it that holds the auth key"
        } else {
            "is not a regular file; write the auth key to a file"
        },
    ))
}

/// Reads the file, no more of it than a key can have, if nobody writes to it meanwhile. It was as
/// `before` says when it was opened.
fn read_unchanged(
    file: &mut File,
    path: &Path,
    before: &Metadata,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    let after = (&mut *file)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .and_then(|_| file.metadata())
        .map_err(|error| unreadable(path, &error))?;
    if state(before) != state(&after) {
        return Err(KeyFileError::Changing(path.to_owned()));
    }
    Ok(bytes)
}

fn open_error(path: &Path, error: &io::Error) -> KeyFileError {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => KeyFileError::Missing(path.to_owned()),
        Some(Errno::NOTDIR) => KeyFileError::unusable(
            path,
            "cannot be there: a part of its path is not a directory; correct the path",
        ),
        Some(Errno::LOOP) => KeyFileError::unusable(
            path,
            "is a link that leads back to itself; link it to the file that holds the auth key",
        ),
        Some(Errno::NAMETOOLONG) => {
            KeyFileError::unusable(path, "cannot be there: its path is too long; correct the path")
        }
        _ => unreadable(path, error),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> KeyFileError {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    KeyFileError::Unreadable {
        path: path.to_owned(),
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
