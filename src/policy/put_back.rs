//! What a login must leave as it was: the history of a node's preferences, from before the login to
//! its end. Pure.
//!
//! `up` replaces all preferences at once. What was told last before that comes back, save what the
//! user's flags set; what somebody changes after it stays. The order is known, since the IPN bus
//! tells each change by itself.

use serde_json::Value;

use crate::policy::is_same_server;
use crate::prefs::{self, Prefs};

/// The preferences of a node in the course of a login.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// As they are to be if the login fails.
    original: Prefs,
    /// As they are to be if it comes to its end.
    wanted: Prefs,
    /// As they were told last.
    last: Prefs,
    /// The user's flags.
    asked: Vec<String>,
    /// The flags that stand for settings of the node.
    pub ours: Vec<String>,
    /// `up` has replaced them.
    replaced: bool,
    /// It has changed nothing, or it was something else that has not.
    in_vain: bool,
    /// As they were told just then.
    of_login: Prefs,
    /// They were put back. What changes from then on is not the doing of `up`.
    returned: bool,
    /// That will be told, too.
    return_untold: bool,
    /// Since the login came, somebody has changed something, or has begun a login of their own:
    /// tailscaled tells the preferences at each start, once, also if they are the same (seen on 1.98).
    touched: bool,
}

impl History {
    /// A login with the user's flags `asked` is about to begin on a node with these preferences.
    pub fn new(before: Prefs, asked: Vec<String>, version: (u32, u32)) -> Self {
        let wanted = prefs::chosen(before.clone(), version);
        let ours = prefs::as_flags(&wanted, &asked, version);
        Self { last: before.clone(), original: before, wanted, asked, ours, ..Self::default() }
    }

    /// The same node, about to be logged in once more, with these preferences `now`: what the first
    /// login was to set is not to be seen in the second.
    pub fn again(&self, now: Prefs, asked: Vec<String>, version: (u32, u32)) -> Self {
        Self { last: now, ..Self::new(self.original.clone(), asked, version) }
    }

    /// The next state that they have come to.
    pub fn told(&mut self, now: Prefs) {
        let is_news = self.replaced && now.get("Config") == self.last.get("Config");
        let is_same = prefs::differences(&now, &self.last).is_empty();
        match is_same && std::mem::take(&mut self.return_untold) {
            true => {}
            false => self.touched |= is_news,
        }
        let is_replacement = |prefs| prefs::are_of_login(prefs, &self.asked, &self.ours);
        let is_first = !self.replaced || self.in_vain || !is_replacement(&self.last);
        if is_replacement(&now) && is_first && !self.returned {
            self.in_vain = now == self.last;
            let kept = prefs::kept(&self.wanted, &now, &self.asked);
            let before = std::mem::replace(&mut self.wanted, kept);
            // Our flags are no news. What they stand for may have been changed since they were given.
            let is_ours = |name: &str| {
                prefs::is_given_by(&self.ours, name) && !prefs::is_set_by(&self.asked, name)
            };
            self.wanted.extend(before.into_iter().filter(|(name, _)| is_ours(name)));
            self.replaced = true;
            self.of_login = now.clone();
        } else {
            // Somebody has changed these.
            let mut changed = prefs::differences(&now, &self.last);
            self.wanted.extend(changed.clone());
            let is_off = now.get("WantRunning") == Some(&Value::Bool(false));
            if (self.replaced || is_off) && self.last.get("WantRunning") != now.get("WantRunning") {
                changed.extend(entry(&now, "WantRunning"));
            }
            self.original.extend(changed);
        }
        self.last = now;
    }

    /// How they are after a time of which nothing is known. A default is taken for the doing of `up`,
    /// unless it was given a flag for something else, and anything else for somebody's.
    pub fn told_after_a_gap(&mut self, now: Prefs) {
        if self.returned {
            return self.told(now);
        }
        let changed = prefs::differences(&now, &self.last);
        let has_begun = prefs::login_under_way(&now) && !prefs::login_under_way(&self.last)
            || prefs::text(&now, "ControlURL") != prefs::text(&self.last, "ControlURL");
        if prefs::are_of_login(&now, &self.asked, &self.ours) && (has_begun || !changed.is_empty())
        {
            return self.told(now);
        }
        let kept = prefs::kept(&self.wanted, &now, &self.asked);
        if has_begun && prefs::login_under_way(&now) {
            self.replaced = true;
            self.of_login = now.clone();
        }
        // A tailscaled that is restarted before the first login forgets all of them.
        let is_forgotten = !prefs::login_under_way(&now)
            && prefs::differences(&self.wanted, &Prefs::new())
                .keys()
                .all(|name| now.get(name).is_none_or(|value| prefs::is_default(name, value)));
        for (name, value) in changed {
            let is_given =
                prefs::is_given_by(&self.ours, &name) && !prefs::is_set_by(&self.asked, &name);
            if is_given && !is_forgotten {
                self.wanted.insert(name.clone(), value.clone());
                self.original.insert(name, value);
                continue;
            }
            self.replaced |= prefs::is_default(&name, &value);
            self.wanted.extend(entry(&kept, &name));
            if !prefs::is_default(&name, &value) && !prefs::is_set_by(&self.asked, &name) {
                self.original.insert(name, value);
            }
        }
        self.last = now;
    }

    /// Whether these may be another profile's: their login server is neither the old one nor that of
    /// the login, or their node is another. (A login can bring that too.)
    pub fn is_elsewhere(&self, now: &Prefs, server: &str) -> bool {
        let is_other =
            |one: &str, other: &str| !one.is_empty() && !other.is_empty() && one != other;
        let [own, last, url] =
            [&self.original, &self.last, now].map(|prefs| prefs::text(prefs, "ControlURL"));
        is_other(url, own) && is_other(url, last) && !is_same_server(url, server)
            || is_other(node_id(now), node_id(&self.last))
    }

    /// Whether `up` has come to the preferences.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Whether anything is otherwise than before the login, or than before those that this run has
    /// made earlier, and none of them has succeeded.
    pub fn is_changed(&self) -> bool {
        let (before, now) = (&self.original, &self.last);
        let differs = |name: &&str| before.get(*name) != now.get(*name);
        let is_other = ["ControlURL", "LoggedOut", "WantRunning"].iter().any(differs)
            || !prefs::differences(before, now).is_empty();
        is_other && !self.has_succeeded(now)
    }

    /// The settings that have to be put back now.
    pub fn owed(&self) -> Prefs {
        match self.replaced {
            true => prefs::differences(&self.wanted, &self.last),
            false => Prefs::new(),
        }
    }

    /// They are as they were again.
    pub fn put_back(&mut self) {
        let owed = self.owed();
        self.last.extend(owed);
        self.returned = true;
        self.return_untold = true;
    }

    /// Whether the login takes a node to another login server.
    pub fn moves(&self) -> bool {
        let [own, last] =
            [&self.original, &self.last].map(|prefs| prefs::text(prefs, "ControlURL"));
        !node_id(&self.original).is_empty() && !is_same_server(own, last)
    }

    /// Whether the last login that tailscaled was asked for may be somebody else's.
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// Leaves these settings as they are: they could not be put back. Each name may be followed by why.
    pub fn give_up(&mut self, names: &[String]) {
        for name in names.iter().filter_map(|named| named.split(' ').next()) {
            // As it is now is not known any more; it is not to be changed again.
            self.wanted.remove(name);
            self.last.remove(name);
        }
    }

    /// All preferences as they were before the login, with what somebody has changed since.
    pub fn without_the_login(&self) -> Prefs {
        self.original.clone()
    }

    /// Whether these preferences, read after the login was taken back, are those of a node that it had
    /// logged in: tailscaled sets `Config` with the answer to a register.
    pub fn has_succeeded(&self, prefs: &Prefs) -> bool {
        let now = node_id(prefs);
        now != node_id(&self.original) && !now.is_empty()
    }

    /// Takes the login for the way that the node is to be, since it has succeeded.
    pub fn resume(&mut self, now: &Prefs) {
        let mut resumed = self.wanted.clone();
        for (name, source) in [
            ("ControlURL", &self.of_login),
            ("LoggedOut", &self.of_login),
            ("WantRunning", &self.of_login),
            ("Config", now),
        ] {
            resumed.extend(entry(source, name));
        }
        self.original = resumed;
        // What was taken back is nobody's change.
        self.last = now.clone();
    }

    /// How they were told last.
    pub fn last(&self) -> &Prefs {
        &self.last
    }
}

/// This preference and its value, if it is among these.
fn entry(prefs: &Prefs, name: &str) -> Option<(String, Value)> {
    prefs.get(name).map(|value| (name.to_owned(), value.clone()))
}

/// The node that the control server has taken these preferences' for; empty for none.
fn node_id(prefs: &Prefs) -> &str {
    prefs.get("Config").and_then(|config| config["NodeID"].as_str()).unwrap_or_default()
}
