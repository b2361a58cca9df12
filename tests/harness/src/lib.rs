//! What the tests of `tailscale-autoconnect` stand on: a tailnet with a control server of its own,
//! real `tailscaled` daemons on it, the program under test as systemd would run it, and stand-ins
//! for what a real daemon cannot be made to do.
//!
//! Everything blocks, and everything is bounded in time: a wait that is not met panics, saying what
//! it waited for and what it saw last. Nothing outlives the test: each process is ended when its
//! owner is dropped, and by the kernel when the test process is killed. When a test fails, the logs
//! of what it owned are printed.
//!
//! ```ignore
//! let tailnet = Tailnet::start();
//! let node = Node::start();
//! let key = tailnet.single_use_key();
//! let file = KeyFile::new(&key);
//!
//! let run = Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
//!     .node(&node)
//!     .cli()
//!     .authkey_file(file.path())
//!     .login_server(tailnet.url())
//!     .run();
//!
//! run.assert_code(0);
//! assert!(run.ready_at().is_some());
//! assert_eq!(tailnet.state().key(&key).uses, 1);
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod binaries;
mod cell;
mod fake;
mod fakecli;
mod http;
mod keyfile;
mod measuring;
mod node;
mod proc;
mod process;
mod proxy;
mod run;
mod tailnet;
mod terminal;
mod version;

pub use binaries::Binaries;
pub use cell::Cell;
pub use fake::{FakeTailscaled, Request, Response, status_json};
pub use fakecli::FakeCli;
pub use http::HttpReply;
pub use keyfile::KeyFile;
pub use measuring::{
    CameOnline, Spread, cpu_time_of_children, first_online, inhabited_tailnet, milliseconds,
    peak_memory,
};
pub use node::{Node, NodeBuilder};
pub use proc::{
    ProcessWatch, Watched, children_of, cmdline_of, environ_of, scan_files_for, scan_processes_for,
    watch_processes_for,
};
pub use proxy::CountingProxy;
pub use run::{Finished, Notification, Run, Running};
pub use rustix::process::Signal;
pub use tailnet::{ApiRequest, Device, KeySpec, KeyUse, Registers, State, Tailnet};
pub use terminal::Screen;
pub use version::{needs_version, version_is_at_least};

use std::time::Duration;

/// How long a wait lasts at most, unless the test names another time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a run of the program or of the CLI may take, unless the test names another time.
pub const RUN_LIMIT: Duration = Duration::from_secs(30);

/// Whether the tests run as root, which [`Run::user`] needs.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
