//! Looks at files that may be on a file system that does not answer, such as one of a server that
//! is gone. The one thread of a run must not wait for it, and not each look may cost another thread.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest that a look may take.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Why there is none.
pub const SILENT: &str = "the file system does not answer";

/// How many looks may be stuck at a time; while there are so many, none is begun.
const MOST_STUCK: u32 = 2;

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
