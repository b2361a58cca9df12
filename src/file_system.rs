//! Files as others see them, and looks at files that may be on a file system that does not answer,
//! such as one of a server that is gone. The one thread of a run must not wait for it, and not each
//! look may cost another thread.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest that a look may take.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Why there is none.
pub const SILENT: &str = "the file system does not answer";

/// How many looks may be stuck at a time; while there are so many, none is begun.
const MOST_STUCK: u32 = 2;

/// The most of a text that is read, in bytes.
const MOST_TEXT: u64 = 4 << 20;

static STUCK: AtomicU32 = AtomicU32::new(0);

/// What `look` sees; nothing if that takes too long. Then its thread is left to itself.
pub async fn in_time<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if STUCK.load(Ordering::Relaxed) >= MOST_STUCK {
        return None;
    }
    let mut look = spawn_blocking(look);
    if let Ok(seen) = timeout(LIMIT, &mut look).await {
        return seen.ok();
    }
    STUCK.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async {
        let _ = look.await;
        STUCK.fetch_sub(1, Ordering::Relaxed);
    });
    None
}

/// The text in a file, or the beginning of one that is far too long.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    // A file of /proc does not say how long it is.
    let mut text = String::with_capacity(4096);
    File::open(path)?.take(MOST_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// Who owns a file, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// The owner's name.
    pub owner: String,
    pub mode: u32,
    pub modified: Option<SystemTime>,
}

impl From<&Metadata> for FileFacts {
    fn from(metadata: &Metadata) -> Self {
        Self {
            owner: user_name(metadata.uid()),
            mode: metadata.mode() & 0o7777,
            modified: metadata.modified().ok(),
        }
    }
}

/// The name of a user as /etc/passwd has it, or else the number.
fn user_name(uid: u32) -> String {
    let number = uid.to_string();
    let users = read_text("/etc/passwd").unwrap_or_else(|_| "root:x:0".to_owned());
    let name = users.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [name, _, id, ..] if id == number => Some(name.to_owned()),
        _ => None,
    });
    name.unwrap_or(number)
}
