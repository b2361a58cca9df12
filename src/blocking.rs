//! Looks at files that may be on a file system that does not answer, such as one of a server that
//! is gone. The one thread of a run must not wait for it.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest that a look may take.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Why there is none.
pub const SILENT: &str = "the file system does not answer";

/// What `look` sees; nothing if that takes too long. Then its thread is left to itself.
pub async fn in_time<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(LIMIT, spawn_blocking(look)).await.ok()?.ok()
}
