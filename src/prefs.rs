//! The preferences of a node, and what follows from the table of the flags of `tailscale up` that set
//! them. Pure functions.
//!
//! `tailscale up --reset` makes the preferences those of its flags, and gives the default to all
//! others (`prefsFromUpArgs` and `prefsToFlags` in cmd/tailscale/cli/up.go, v1.102.3).

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use crate::flags::{self, Form, UP_FLAGS, UpFlag};

/// The preferences of a node: the fields of ipn.Prefs as they are, known or not.
pub type Prefs = Map<String, Value>;

/// What a login is meant to change, and what tailscaled keeps there itself. No settings.
const NO_SETTINGS: [&str; 6] =
    ["Config", "ControlURL", "InternalExitNodePrior", "LoggedOut", "ProfileName", "WantRunning"];

/// The routes that make an exit node.
const EXIT_ROUTES: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A list that is longer is not given as a flag, in bytes: the kernel takes 128 KiB in a word.
const LONGEST_VALUE: usize = 10_000;

/// The flags that set preferences.
fn setting_flags() -> impl Iterator<Item = &'static UpFlag> {
    UP_FLAGS.iter().filter(|flag| !flag.sets.is_empty())
}

/// The settings of a node as flags of a `tailscale up` of this version, those that the user's flags
/// set left out. What has no flag, or doesn't fit into one, is to be put back after the login.
pub fn as_flags(prefs: &Prefs, asked: &[String], version: (u32, u32)) -> Vec<String> {
    let exit_node = flags::value(asked, "exit-node").unwrap_or(text(prefs, "ExitNodeIP"));
    setting_flags()
        // A version that cannot be read is taken for a new one.
        .filter(|flag| version >= flag.since || version == (0, 0))
        .filter(|flag| flag.since.0 != u32::MAX || version.0 == u32::MAX)
        .filter(|flag| !flags::has(asked, flag.name))
        .filter(|flag| !exit_node.is_empty() || flag.name != "exit-node-allow-lan-access")
        .filter_map(|flag| Some(format!("--{}={}", flag.name, value_for(flag, prefs)?)))
        .collect()
}

/// The value of the flag that makes the preferences so; none if they are by default.
fn value_for(flag: &UpFlag, prefs: &Prefs) -> Option<String> {
    let name = flag.sets[0];
    let value = prefs.get(name)?;
    if is_default(name, value) {
        return None;
    }
    let is_on = value == &Value::Bool(true);
    let said = match flag.form {
        Form::Switch => is_on.to_string(),
        Form::Inverted => (!is_on).to_string(),
        Form::Advertise => "true".to_owned(),
        Form::Text | Form::ExitNode => value.as_str()?.to_owned(),
        Form::List => items(value).join(","),
        Form::Routes => other_routes(value).join(","),
        Form::ExitRoutes if exit_routes(value).len() < EXIT_ROUTES.len() => return None,
        Form::ExitRoutes => "true".to_owned(),
        Form::Netfilter => (*["off", "nodivert"].get(value.as_u64()? as usize)?).to_owned(),
    };
    (!said.is_empty() && said.len() <= LONGEST_VALUE).then_some(said)
}

/// Whether the user's flags set this preference.
pub fn is_set_by(asked: &[String], pref: &str) -> bool {
    setting_flags().any(|flag| flag.sets.contains(&pref) && flags::has(asked, flag.name))
}

/// Whether `up` makes this preference what these flags say. Others may end with them.
pub fn is_given_by(flags: &[String], pref: &str) -> bool {
    setting_flags().any(|flag| flag.sets[0] == pref && flags::has(flags, flag.name))
}

/// Whether these can be the preferences that `up --reset` has made of its flags, the user's `asked`
/// and `ours`: what no flag of the user sets is as ours make it.
pub fn are_of_login(prefs: &Prefs, asked: &[String], ours: &[String]) -> bool {
    login_under_way(prefs)
        && settings(prefs).all(|(name, value)| {
            is_default(name, value) || is_set_by(asked, name) || is_set_by(ours, name)
        })
        && as_flags(prefs, asked, (u32::MAX, 0)) == ours
}

/// The settings that a login is to leave: those of `before` where no flag of the user has set
/// them. `after` is what `up` has made. Where one preference has two flags, it may be both.
pub fn kept(before: &Prefs, after: &Prefs, asked: &[String]) -> Prefs {
    let mut kept = after.clone();
    for name in names(before, after) {
        let (old, new) = (value(before, name), value(after, name));
        if name == "AdvertiseRoutes" {
            let routes = |flag, of: fn(&Value) -> Vec<&str>| match flags::has(asked, flag) {
                true => of(new),
                false => of(old),
            };
            let mut all = routes("advertise-routes", other_routes);
            all.extend(routes("advertise-exit-node", exit_routes));
            let items = |value| items(value).into_iter().collect::<std::collections::BTreeSet<_>>();
            let same =
                [old, new].into_iter().find(|value| items(value) == all.iter().copied().collect());
            kept.insert(name.to_owned(), same.cloned().unwrap_or_else(|| json!(all)));
        // `up` gives the default to what no flag sets: anything else comes of a flag.
        } else if !is_set_by(asked, name) && is_default(name, new) {
            kept.insert(name.to_owned(), old.clone());
        }
    }
    kept
}

/// The settings of `wanted` that are otherwise in `prefs`.
pub fn differences(wanted: &Prefs, prefs: &Prefs) -> Prefs {
    names(wanted, prefs)
        .filter(|name| !is_same(name, value(wanted, name), value(prefs, name)))
        .map(|name| (name.to_owned(), value(wanted, name).clone()))
        .collect()
}

/// The names of the settings in either.
fn names<'a>(one: &'a Prefs, other: &'a Prefs) -> impl Iterator<Item = &'a str> {
    let more = other.iter().filter(|(name, _)| !one.contains_key(*name));
    let names = one.iter().chain(more).map(|(name, _)| name.as_str());
    names.filter(|name| !NO_SETTINGS.contains(name))
}

fn settings(prefs: &Prefs) -> impl Iterator<Item = (&str, &Value)> {
    let all = prefs.iter().map(|(name, value)| (name.as_str(), value));
    all.filter(|(name, _)| !NO_SETTINGS.contains(name))
}

/// A preference that has its default may be left out.
fn value<'a>(prefs: &'a Prefs, name: &str) -> &'a Value {
    prefs.get(name).unwrap_or(&Value::Null)
}

/// A preference that is a text.
pub fn text<'a>(prefs: &'a Prefs, name: &str) -> &'a str {
    value(prefs, name).as_str().unwrap_or_default()
}

fn is_same(name: &str, one: &Value, other: &Value) -> bool {
    one == other || (is_default(name, one) && is_default(name, other))
}

/// Whether a preference is as on a new node (ipn/prefs.go `NewPrefs`, v1.98.10).
pub fn is_default(name: &str, value: &Value) -> bool {
    match (name, value) {
        ("CorpDNS" | "NoStatefulFiltering" | "AllowSingleHosts" | "Check", Value::Bool(is)) => *is,
        ("NetfilterMode", Value::Number(mode)) => mode.as_i64() == Some(2),
        (_, Value::Object(parts)) => parts.iter().all(|(name, value)| is_default(name, value)),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::String(text)) => text.is_empty(),
        (_, Value::Number(number)) => number.as_i64() == Some(0),
        (_, Value::Bool(is)) => !is,
        (_, Value::Null) => true,
    }
}

fn items(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn exit_routes(value: &Value) -> Vec<&str> {
    items(value).into_iter().filter(|route| EXIT_ROUTES.contains(route)).collect()
}

fn other_routes(value: &Value) -> Vec<&str> {
    items(value).into_iter().filter(|route| !EXIT_ROUTES.contains(route)).collect()
}

/// The preferences without what nobody has chosen: up to 1.82, a node that was never logged in has
/// RouteAll on (`NewPrefs` in ipn/prefs.go), which `up` turns off on Linux. It cannot be told from
/// the choice of an admin there.
pub fn chosen(mut prefs: Prefs, version: (u32, u32)) -> Prefs {
    if version < (1, 84) && value(&prefs, "ControlURL") == "" {
        prefs.insert("RouteAll".to_owned(), json!(false));
    }
    prefs
}

/// Whether a login is under way on a node without a node key, going by its preferences: `up` has
/// said that it wants to run, and it's not logged out. After a restart of tailscaled, which loses
/// the key, it is (measured on 1.80.3 and 1.98.10).
pub fn login_under_way(prefs: &Prefs) -> bool {
    value(prefs, "WantRunning") == true && value(prefs, "LoggedOut") != true
}

/// The settings that differ from those of a new node, for people to read: as flags of `up`, and the
/// names of those that have none.
pub fn described(prefs: &Prefs) -> (Vec<String>, Vec<String>) {
    let flags = as_flags(prefs, &[], (u32::MAX, 0));
    let without = settings(prefs)
        .filter(|(name, value)| !is_default(name, value) && !is_set_by(&flags, name));
    let without = without.map(|(name, _)| name.to_owned()).collect();
    let shown = flags.iter().map(|flag| match flag.split_once('=') {
        Some((name, "true")) => name.to_owned(),
        Some((name, value)) => format!("{name}={}", shell_words::quote(value)),
        None => flag.clone(),
    });
    (shown.collect(), without)
}

/// The ipn.MaskedPrefs that sets `prefs` (ipn/prefs.go `MaskedPrefs`, v1.98.10).
pub fn masked(prefs: &Prefs) -> Value {
    let mut masked = prefs.clone();
    for name in prefs.keys() {
        let mark = match name.as_str() {
            "AutoUpdate" => json!({ "CheckSet": true, "ApplySet": true }),
            _ => json!(true),
        };
        masked.insert(format!("{name}Set"), mark);
    }
    Value::Object(masked)
}

/// The preferences that bring a node up, and touch no setting.
pub fn want_running() -> Prefs {
    Prefs::from_iter([("WantRunning".to_owned(), json!(true))])
}
