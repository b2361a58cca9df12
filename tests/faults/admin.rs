//! The admin, who does one thing at a time with `tailscale`, and what was last said.

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tailnet_harness::{KeyFile, Node, Signal};

use crate::schedule::{Kind, SETTINGS};

/// How long an admin looks at a command that doesn't end, before Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Admin {
    commands: Option<Sender<Kind>>,
    thread: Option<JoinHandle<()>>,
    said: Arc<Mutex<Said>>,
}

/// What the admin has said, as far as it was heard.
#[derive(Clone, Default)]
pub struct Said {
    /// What a preference may be at the end: one value, unless a command failed half-way.
    pub prefs: BTreeMap<&'static str, Vec<&'static str>>,
    /// The last word was `down`.
    pub down: bool,
    /// A dead key was sent.
    pub dead_key: bool,
    pub story: Vec<(Instant, String)>,
    /// Another profile was asked for.
    pub switched: bool,
    /// How often tailscaled has forgotten what was set.
    forgotten: u32,
}

impl Admin {
    /// `server` is the login server's URL, `second` the second profile. With `doubt`, what is set may be lost: the disk fails.
    pub fn new(
        node: Arc<Node>,
        server: &str,
        dead_key: &str,
        settings: &[usize],
        doubt: bool,
        second: Option<String>,
    ) -> Self {
        let (sender, commands) = channel::<Kind>();
        let mut said = Said::default();
        for number in settings {
            let setting = &SETTINGS[*number];
            said.prefs.insert(setting.pref, vec![setting.value]);
        }
        let said = Arc::new(Mutex::new(said));
        let shared = Arc::clone(&said);
        let server = format!("--login-server={server}");
        let dead = KeyFile::new(dead_key);
        let thread = thread::spawn(move || {
            for command in commands {
                let args = match (command, &second) {
                    (Kind::AdminSwitch, Some(profile)) => {
                        vec!["switch".to_owned(), profile.clone()]
                    }
                    _ => arguments(command, &server, &dead, &lock(&shared)),
                };
                let forgotten = lock(&shared).forgotten;
                let code = run(&node, &args);
                let mut said = lock(&shared);
                // It may have been done before that or after it.
                let doubt = doubt || said.forgotten != forgotten;
                said.hear(command, code == Some(0), doubt);
                let words = format!("`tailscale {}` ended: {code:?}", args.join(" "));
                said.story.push((Instant::now(), words));
            }
        });
        Self { commands: Some(sender), thread: Some(thread), said }
    }

    pub fn does(&self, command: Kind) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    /// tailscaled has forgotten what was set.
    pub fn forget(&self) {
        let mut said = lock(&self.said);
        said.prefs.clear();
        said.forgotten += 1;
    }

    /// No more commands come.
    pub fn finish(&mut self) {
        self.commands = None;
    }

    /// Whether some are still to be done, or under way.
    pub fn is_busy(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub fn said(&self) -> Said {
        lock(&self.said).clone()
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Said {
    fn hear(&mut self, command: Kind, done: bool, doubt: bool) {
        match command {
            Kind::AdminUp if done => self.down = false,
            Kind::AdminUpDead => self.dead_key = true,
            Kind::AdminSwitch => self.switched = true,
            // Even if it failed, it may have been half done.
            Kind::AdminDown => self.down = true,
            Kind::AdminSet(number) => {
                let setting = &SETTINGS[number];
                if done && !doubt {
                    self.prefs.insert(setting.pref, vec![setting.value]);
                } else if let Some(values) = self.prefs.get_mut(setting.pref) {
                    values.push(setting.value);
                }
            }
            _ => {}
        }
    }
}

fn arguments(command: Kind, server: &str, dead: &KeyFile, said: &Said) -> Vec<String> {
    let word = |text: &str| text.to_owned();
    match command {
        Kind::AdminSet(number) => vec![word("set"), word(SETTINGS[number].flag)],
        Kind::AdminDown => vec![word("down")],
        _ => {
            let mut words = vec![word("up"), word(server)];
            if command == Kind::AdminUpDead {
                words.push(format!("--auth-key=file:{}", dead.path().display()));
            }
            // An admin who knows the node mentions what was set.
            let flags = SETTINGS.iter().filter(|setting| {
                let values = said.prefs.get(setting.pref);
                setting.up_has_it
                    && values.is_some_and(|values| values.last() == Some(&setting.value))
            });
            words.extend(flags.map(|setting| word(setting.flag)));
            words
        }
    }
}

fn run(node: &Node, args: &[String]) -> Option<i32> {
    let running = node.tailscale_spawn(args.to_vec());
    let started = Instant::now();
    let mut asked = false;
    while running.is_alive() {
        if started.elapsed() > PATIENCE && !asked {
            running.signal(Signal::INT);
            asked = true;
        }
        if started.elapsed() > PATIENCE * 2 {
            running.kill();
        }
        thread::sleep(Duration::from_millis(10));
    }
    running.wait().code
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
