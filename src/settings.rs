//! Settings that survive a login. Pure functions.
//!
//! `tailscale up` replaces all preferences of a node by its flags. Those that have a flag are
//! kept by mentioning them: the CLI itself prints which. Those that have none, and those set
//! before the first login (when the CLI does not look), are compared and put back.

use serde_json::{Value, json};

use crate::localapi::Prefs;

/// What a login is meant to change, and what tailscaled keeps there itself.
const LOGINS_OWN: [&str; 6] = [
    "Config",
    "ControlURL",
    "InternalExitNodePrior",
    "LoggedOut",
    "ProfileName",
    "WantRunning",
];

/// Flags of `tailscale up` whose preferences cannot be told by its name (`updatePrefs` and
/// `prefsToFlags` in cmd/tailscale/cli/up.go, v1.98.10): they have other names, or others have it too.
const OTHER_NAMES: [(&str, &[&str]); 9] = [
    ("accept-dns", &["CorpDNS"]),
    ("accept-routes", &["RouteAll"]),
    ("advertise-connector", &["AppConnector"]),
    ("advertise-exit-node", &["AdvertiseRoutes"]),
    // Not ExitNodeAllowLANAccess.
    ("exit-node", &["AutoExitNode", "ExitNodeID", "ExitNodeIP"]),
    ("host-routes", &["AllowSingleHosts"]),
    ("report-posture", &["PostureChecking"]),
    ("snat-subnet-routes", &["NoSNAT"]),
    ("ssh", &["RunSSH"]),
];

/// The name of a flag such as `--name`, `-name` or `--name=value`.
pub fn flag_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    (!name.is_empty()).then_some(name)
}

/// The value of the flag `name` among `words`, given as `--name=value` or `--name value`.
pub fn flag_value<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words
        .iter()
        .position(|word| flag_name(word) == Some(name))?;
    match words[at].split_once('=') {
        Some((_, value)) => Some(value),
        None => words.get(at + 1).map(String::as_str),
    }
}

/// Those of the `printed` flags that `own` doesn't already give: what the user says wins.
pub fn flags_to_add(printed: Vec<String>, own: &[String]) -> Vec<String> {
    printed
        .into_iter()
        .filter(|word| !own.iter().any(|own| flag_name(own) == flag_name(word)))
        .collect()
}

/// The flag that keeps the operator, unless the user names one. To anybody but root it must stay
/// through the login: who is no longer the operator may neither log in nor put anything back.
pub fn operator_to_keep(before: &Prefs, asked: &[String]) -> Option<String> {
    match before.get("OperatorUser").and_then(Value::as_str) {
        Some(name) if !name.is_empty() && flag_value(asked, "operator").is_none() => {
            Some(format!("--operator={name}"))
        }
        _ => None,
    }
}

/// Whether the login has reached the preferences: those that it is meant to change differ.
pub fn login_reached(before: &Prefs, now: &Prefs) -> bool {
    LOGINS_OWN
        .iter()
        .any(|name| before.get(*name) != now.get(*name))
}

/// Whether a login is under way on a node without a node key, going by its preferences: `up` has
/// said that it wants to run, and it's not logged out. After a restart of tailscaled, which loses
/// the key, it is (measured on 1.80.3 and 1.98.10).
pub fn login_under_way(prefs: &Prefs) -> bool {
    prefs.get("WantRunning") == Some(&Value::Bool(true)) && !is_logged_out(prefs)
}

/// Whether the node was logged out, going by its preferences.
pub fn is_logged_out(prefs: &Prefs) -> bool {
    prefs.get("LoggedOut") == Some(&Value::Bool(true))
}

/// The preferences before a login, without what nobody has chosen: up to 1.82, a node that was
/// never logged in has RouteAll on (`NewPrefs` in ipn/prefs.go), which `up` turns off on Linux. It
/// cannot be told from the choice of an admin there.
pub fn chosen(mut prefs: Prefs, version: (u32, u32)) -> Prefs {
    let never_logged_in = prefs.get("ControlURL") == Some(&json!(""));
    if never_logged_in && version < (1, 84) {
        prefs.insert("RouteAll".to_owned(), json!(false));
    }
    prefs
}

/// The preferences that the login changed and nobody asked for, with their old values.
///
/// `up` sets what it has no flag for to its default; what is anything else now, was set by an admin
/// meanwhile.
pub fn lost(before: &Prefs, now: &Prefs, asked: &[String]) -> Prefs {
    // A preference may be left out when it has its default.
    let names = before
        .keys()
        .chain(now.keys().filter(|name| !before.contains_key(*name)));
    names
        .filter(|name| !LOGINS_OWN.contains(&name.as_str()))
        .filter(|name| before.get(*name) != now.get(*name))
        .filter(|name| is_default(name, now.get(*name).unwrap_or(&Value::Null)))
        .filter(|name| !asked.iter().any(|word| governs(word, name)))
        .map(|name| {
            let old = before.get(name).cloned().unwrap_or(Value::Null);
            (name.clone(), old)
        })
        .collect()
}

/// Whether the flag `word` sets the preference `pref`.
fn governs(word: &str, pref: &str) -> bool {
    let Some(flag) = flag_name(word) else {
        return false;
    };
    if let Some((_, others)) = OTHER_NAMES.iter().find(|(name, _)| *name == flag) {
        return others.contains(&pref);
    }
    let squeezed = flag.replace('-', "");
    !squeezed.is_empty() && pref.to_lowercase().contains(&squeezed)
}

/// The settings of a node that differ from those of a new one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// As flags of `tailscale up`.
    pub flags: Vec<String>,
    /// The names of those preferences that have no such flag.
    pub without_flag: Vec<String>,
}

/// What a login would have to keep. For people to read: a login itself asks the CLI.
pub fn own(prefs: &Prefs) -> Own {
    let mut own = Own::default();
    let settings = prefs
        .iter()
        .filter(|(name, _)| !LOGINS_OWN.contains(&name.as_str()))
        .filter(|(name, value)| !is_default(name, value));
    for (name, value) in settings {
        match as_flags(name, value) {
            Some(flags) => own.flags.extend(flags),
            None => own.without_flag.push(name.clone()),
        }
    }
    own
}

/// Whether a preference is as on a new node (ipn/prefs.go `NewPrefs`, v1.98.10).
fn is_default(name: &str, value: &Value) -> bool {
    match (name, value) {
        ("CorpDNS" | "NoStatefulFiltering" | "AllowSingleHosts" | "Check", _) => {
            value == &Value::Bool(true)
        }
        ("NetfilterMode", _) => value == &json!(2),
        (_, Value::Object(parts)) => parts.iter().all(|(name, value)| is_default(name, value)),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::String(text)) => text.is_empty(),
        (_, Value::Number(number)) => number.as_i64() == Some(0),
        (_, Value::Bool(is)) => !is,
        (_, Value::Null) => true,
    }
}

fn as_flags(name: &str, value: &Value) -> Option<Vec<String>> {
    const EXIT_ROUTES: [&str; 2] = ["0.0.0.0/0", "::/0"];
    let flag =
        |flag: &str, value: &str| Some(vec![format!("--{flag}={}", shell_words::quote(value))]);
    let switch = |flag: &str, on: bool| match on {
        true => Some(vec![format!("--{flag}")]),
        false => Some(vec![format!("--{flag}=false")]),
    };
    let is = value == &Value::Bool(true);
    let text = value.as_str().unwrap_or_default();
    let items: Vec<&str> = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match name {
        "NoSNAT" => switch("snat-subnet-routes", !is),
        "NoStatefulFiltering" => switch("stateful-filtering", !is),
        "AppConnector" => switch("advertise-connector", true),
        "AdvertiseRoutes" => {
            let (exit, routes): (Vec<&str>, _) = items
                .into_iter()
                .partition(|route| EXIT_ROUTES.contains(route));
            let mut flags = Vec::new();
            if !exit.is_empty() {
                flags.push("--advertise-exit-node".to_owned());
            }
            if !routes.is_empty() {
                flags.push(format!("--advertise-routes={}", routes.join(",")));
            }
            Some(flags)
        }
        "AdvertiseTags" => flag("advertise-tags", &items.join(",")),
        "ExitNodeID" | "ExitNodeIP" => flag("exit-node", text),
        "ExitNodeAllowLANAccess" => switch("exit-node-allow-lan-access", is),
        "Hostname" => flag("hostname", text),
        "OperatorUser" => flag("operator", text),
        "ShieldsUp" => switch("shields-up", is),
        "NetfilterMode" => match value.as_i64() {
            Some(0) => flag("netfilter-mode", "off"),
            Some(1) => flag("netfilter-mode", "nodivert"),
            _ => None,
        },
        // The flag is that of the node which it has chosen.
        "AutoExitNode" => None,
        _ => {
            let (flag, _) = OTHER_NAMES
                .iter()
                .find(|(_, prefs)| prefs.contains(&name))?;
            switch(flag, is)
        }
    }
}

/// The ipn.MaskedPrefs that sets `prefs` (ipn/prefs.go `MaskedPrefs`, v1.98.10).
pub fn masked(prefs: &Prefs) -> Value {
    let mut masked = prefs.clone();
    for name in prefs.keys() {
        let mark = if name == "AutoUpdate" {
            json!({ "CheckSet": true, "ApplySet": true })
        } else {
            json!(true)
        };
        masked.insert(format!("{name}Set"), mark);
    }
    Value::Object(masked)
}

/// The ipn.MaskedPrefs that brings a node up or not, and touches no setting.
pub fn want_running(want: bool) -> Value {
    json!({ "WantRunning": want, "WantRunningSet": true })
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::samples::any_text;

    fn prefs(value: Value) -> Prefs {
        serde_json::from_value(value).unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn accepted_routes_of_a_new_node_are_no_choice_before_1_84() {
        let new = prefs(json!({ "ControlURL": "", "RouteAll": true }));
        let known = prefs(json!({ "ControlURL": "https://x", "RouteAll": true }));
        assert_eq!(chosen(new.clone(), (1, 82))["RouteAll"], false);
        assert_eq!(chosen(new.clone(), (1, 84)), new);
        assert_eq!(chosen(known.clone(), (1, 66)), known);
    }

    #[test]
    fn what_a_login_changed_unasked_is_lost() {
        let before = prefs(json!({
            "ControlURL": "", "WantRunning": false, "RunWebClient": true, "Hostname": "x",
            "AutoUpdate": { "Check": true, "Apply": true }, "OperatorUser": "ann", "CorpDNS": false,
        }));
        let now = prefs(json!({
            "ControlURL": "https://x", "WantRunning": true, "RunWebClient": false, "Hostname": "x",
            "AutoUpdate": { "Check": true, "Apply": null }, "CorpDNS": true,
        }));
        assert_eq!(
            Value::Object(lost(&before, &now, &[])),
            json!({
                "AutoUpdate": { "Check": true, "Apply": true },
                "CorpDNS": false,
                "OperatorUser": "ann",
                "RunWebClient": true,
            })
        );
    }

    #[test]
    fn what_an_admin_set_meanwhile_is_not_lost() {
        let before = prefs(json!({ "RunWebClient": false, "Hostname": "x", "CorpDNS": true }));
        let now = prefs(json!({ "RunWebClient": true, "Hostname": "y", "CorpDNS": false }));
        assert_eq!(lost(&before, &now, &[]), Prefs::new());
    }

    #[test]
    fn what_the_user_asked_for_is_not_lost() {
        let before = prefs(json!({
            "RunSSH": true, "CorpDNS": true, "AdvertiseRoutes": ["10.0.0.0/8"], "RouteAll": true,
            "ExitNodeID": "n1", "ExitNodeIP": "", "NoSNAT": true, "ShieldsUp": true,
            "Hostname": "x", "OperatorUser": "ann", "NoStatefulFiltering": true,
        }));
        let now = prefs(json!({
            "RunSSH": false, "CorpDNS": false, "AdvertiseRoutes": null, "RouteAll": false,
            "ExitNodeID": "", "ExitNodeIP": "100.64.0.9", "NoSNAT": false, "ShieldsUp": false,
            "Hostname": "y", "OperatorUser": "", "NoStatefulFiltering": false,
        }));
        let asked = words(&[
            "--ssh=false",
            "--accept-dns=false",
            "--advertise-exit-node=false",
            "-accept-routes=false",
            "--exit-node",
            "100.64.0.9",
            "--snat-subnet-routes",
            "--shields-up=false",
            "--hostname=y",
            "--operator=",
            "--stateful-filtering",
        ]);
        assert_eq!(lost(&before, &now, &asked), Prefs::new());
        let all = lost(&before, &now, &words(&["--ssh=false"]));
        assert!(!all.contains_key("RunSSH") && all.len() == 6);
    }

    #[test]
    fn access_to_the_lan_is_not_asked_for_by_an_exit_node() {
        let before = prefs(json!({ "ExitNodeAllowLANAccess": true, "AutoExitNode": "any" }));
        let now = prefs(json!({ "ExitNodeAllowLANAccess": false, "AutoExitNode": "" }));
        let lost_with = |flag: &str| Value::Object(lost(&before, &now, &words(&[flag])));
        assert_eq!(
            lost_with("--exit-node="),
            json!({ "ExitNodeAllowLANAccess": true })
        );
        assert_eq!(
            lost_with("--exit-node-allow-lan-access=false"),
            json!({ "AutoExitNode": "any" })
        );
    }

    #[test]
    fn a_flag_of_the_user_takes_the_place_of_the_kept_one() {
        let printed = words(&["--accept-routes", "--hostname=x", "--ssh"]);
        let own = words(&["--ssh=false", "-hostname", "y"]);
        assert_eq!(flags_to_add(printed, &own), words(&["--accept-routes"]));
    }

    #[test]
    fn a_word_of_dashes_asks_for_nothing() {
        for word in ["-", "--", "---", "----=x"] {
            assert!(!governs(word, "Hostname"), "{word}");
        }
    }

    /// Preferences of which some have names that matter.
    fn some_prefs() -> impl Strategy<Value = Prefs> {
        let name = prop_oneof![
            select(&LOGINS_OWN[..]).prop_map(str::to_owned),
            select(
                &[
                    "Hostname",
                    "RunSSH",
                    "AutoUpdate",
                    "CorpDNS",
                    "AdvertiseRoutes"
                ][..]
            )
            .prop_map(str::to_owned),
            "[A-Za-z]{0,6}",
        ];
        let name = name.prop_filter("no preference is called so", |name| !name.ends_with("Set"));
        let value = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            any_text().prop_map(Value::from),
            Just(Value::Null),
            Just(json!({ "Apply": [{}, null] })),
        ];
        btree_map(name, value, 0..8).prop_map(|prefs| prefs.into_iter().collect())
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            any_text(),
            "-{0,4}(hostname|ssh|accept-dns|advertise-routes|-|)(=[a-z-]{0,3})?",
        ]
    }

    proptest! {
        #[test]
        fn a_flags_name_and_value_are_parts_of_its_words(
            words in vec(word(), 0..5),
            name in "[a-z-]{1,8}",
        ) {
            for word in &words {
                if let Some(name) = flag_name(word) {
                    prop_assert!(!name.is_empty() && !name.contains('='));
                    prop_assert!(word.starts_with('-') && word.contains(name));
                }
                governs(word, &name);
            }
            if let Some(value) = flag_value(&words, &name) {
                let written = format!("{name}={value}");
                prop_assert!(words.iter().any(|word| word == value || word.ends_with(&written)));
            }
        }

        #[test]
        fn with_what_was_lost_put_back_all_is_as_before_but_what_was_asked_for(
            before in some_prefs(),
            now in some_prefs(),
            asked in vec(word(), 0..3),
        ) {
            let lost = lost(&before, &now, &asked);
            let mut after = now.clone();
            after.extend(lost.clone());
            let value = |prefs: &Prefs, name: &str| prefs.get(name).cloned().unwrap_or_default();
            for name in before.keys().chain(now.keys()) {
                let excepted = LOGINS_OWN.contains(&name.as_str())
                    || !is_default(name, &value(&now, name))
                    || asked.iter().any(|word| governs(word, name));
                let wanted = if excepted { &now } else { &before };
                prop_assert_eq!(value(&after, name), value(wanted, name), "{}", name);
            }
            let Value::Object(masked) = masked(&lost) else {
                panic!("not an object");
            };
            prop_assert_eq!(masked.len(), 2 * lost.len());
            for name in LOGINS_OWN {
                prop_assert!(!masked.contains_key(name));
                let mark = format!("{name}Set");
                prop_assert!(!masked.contains_key(&mark));
            }
            login_reached(&before, &now);
            login_under_way(&now);
        }
    }

    #[test]
    fn masks_mark_each_field_and_both_parts_of_auto_update() {
        let masked = masked(&prefs(
            json!({ "RunSSH": true, "AutoUpdate": { "Apply": true } }),
        ));
        assert_eq!(
            masked,
            json!({
                "RunSSH": true, "RunSSHSet": true,
                "AutoUpdate": { "Apply": true },
                "AutoUpdateSet": { "CheckSet": true, "ApplySet": true },
            })
        );
    }

    #[test]
    fn the_settings_of_a_new_node_are_none_of_its_own() {
        // Of a fresh 1.98.10.
        let new = prefs(json!({
            "ControlURL": "https://x", "RouteAll": false, "ExitNodeID": "", "CorpDNS": true,
            "WantRunning": true, "LoggedOut": false, "AdvertiseTags": null, "Sync": null,
            "AdvertiseRoutes": [], "NoSNAT": false, "NoStatefulFiltering": true,
            "NetfilterMode": 2, "AutoUpdate": { "Check": true, "Apply": null },
            "AppConnector": { "Advertise": false }, "AllowSingleHosts": true, "Config": { "a": 1 },
        }));
        assert_eq!(own(&new), Own::default());
    }

    #[test]
    fn settings_are_named_by_their_flags_where_there_are_any() {
        let set = prefs(json!({
            "RouteAll": true, "ExitNodeID": "n1", "CorpDNS": false, "RunSSH": true,
            "AdvertiseTags": ["tag:a", "tag:b"], "Hostname": "a b", "NoSNAT": true,
            "AdvertiseRoutes": ["192.0.2.0/24", "0.0.0.0/0", "::/0"], "NetfilterMode": 0,
            "NoStatefulFiltering": false, "AutoUpdate": { "Check": true, "Apply": true },
            "AppConnector": { "Advertise": true }, "RunWebClient": true, "OperatorUser": "ann",
            "PostureChecking": true, "ShieldsUp": true, "ExitNodeAllowLANAccess": true,
            "AutoExitNode": "any",
        }));
        let mut own = own(&set);
        own.flags.sort();
        assert_eq!(
            own.flags,
            [
                "--accept-dns=false",
                "--accept-routes",
                "--advertise-connector",
                "--advertise-exit-node",
                "--advertise-routes=192.0.2.0/24",
                "--advertise-tags=tag:a,tag:b",
                "--exit-node-allow-lan-access",
                "--exit-node=n1",
                "--hostname='a b'",
                "--netfilter-mode=off",
                "--operator=ann",
                "--report-posture",
                "--shields-up",
                "--snat-subnet-routes=false",
                "--ssh",
                "--stateful-filtering",
            ]
        );
        assert_eq!(
            own.without_flag,
            ["AutoExitNode", "AutoUpdate", "RunWebClient"]
        );
    }

    #[test]
    fn a_flags_value_is_found_in_both_forms() {
        let flags = words(&["--ssh", "--login-server=https://a", "--hostname", "x"]);
        assert_eq!(flag_value(&flags, "login-server"), Some("https://a"));
        assert_eq!(flag_value(&flags, "hostname"), Some("x"));
        assert_eq!(flag_value(&flags, "operator"), None);
    }

    #[test]
    fn an_operator_is_kept_unless_the_user_names_one() {
        let set = prefs(json!({ "OperatorUser": "alice" }));
        let keep = |prefs: &Prefs, asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|flag| (*flag).to_owned()).collect();
            operator_to_keep(prefs, &asked)
        };
        assert_eq!(keep(&set, &["--ssh"]).as_deref(), Some("--operator=alice"));
        assert_eq!(keep(&set, &["--operator=bob"]), None);
        assert_eq!(keep(&prefs(json!({ "OperatorUser": "" })), &[]), None);
        assert_eq!(keep(&prefs(json!({})), &[]), None);
    }

    #[test]
    fn a_login_is_under_way_once_up_has_said_so_and_until_a_restart() {
        for (want, out, under_way) in [
            (true, false, true),
            (false, true, false),
            (true, true, false),
            (false, false, false),
        ] {
            let prefs = prefs(json!({ "WantRunning": want, "LoggedOut": out }));
            assert_eq!(login_under_way(&prefs), under_way);
        }
    }

    #[test]
    fn a_login_has_reached_the_preferences_when_its_own_have_changed() {
        let before = prefs(json!({ "WantRunning": false, "Hostname": "" }));
        let set_by_an_admin = prefs(json!({ "WantRunning": false, "Hostname": "y" }));
        let up = prefs(json!({ "WantRunning": true, "Hostname": "" }));
        assert!(!login_reached(&before, &set_by_an_admin));
        assert!(login_reached(&before, &up));
    }
}
