//! What the control server sees, and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tailnet_harness::{Registers, State, Tailnet};

pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Default)]
pub struct Seen {
    /// Before anything happened.
    pub before: Registers,
    pub first_register: Option<Instant>,
    /// When a device was first seen to be online.
    pub first_online: Option<Instant>,
    /// When a key was first seen to have been used, and how often it had been tried then.
    pub uses: BTreeMap<String, (Instant, u64)>,
    /// When any key was seen to have been used, each time.
    pub all_uses: Vec<Instant>,
}

impl Watch {
    pub fn start(tailnet: &Arc<Tailnet>) -> Self {
        let mut state = tailnet.state();
        let used_before: Vec<String> = used(&state).map(|(key, _)| key.clone()).collect();
        let mut uses: u64 = state.keys.values().map(|key| key.uses).sum();
        let seen = Arc::new(Mutex::new(Seen { before: state.registers, ..Seen::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, tailnet) =
            (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(tailnet));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                state = tailnet.state_after(state.seq, Duration::from_millis(300));
                let now = Instant::now();
                let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if state.registers.total > seen.before.total {
                    seen.first_register.get_or_insert(now);
                }
                if state.online() > 0 {
                    seen.first_online.get_or_insert(now);
                }
                let count: u64 = state.keys.values().map(|key| key.uses).sum();
                if count > uses {
                    seen.all_uses.push(now);
                    uses = count;
                }
                for (key, attempts) in used(&state) {
                    if !used_before.contains(key) {
                        seen.uses.entry(key.clone()).or_insert((now, attempts));
                    }
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn used(state: &State) -> impl Iterator<Item = (&String, u64)> {
    let used = state.keys.iter().filter(|(_, key)| key.uses > 0);
    used.map(|(text, key)| (text, key.attempts))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
