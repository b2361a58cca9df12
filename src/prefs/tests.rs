use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::samples::any_text;

/// A version that has all flags.
const NEW: (u32, u32) = (1, 102);

fn prefs(value: Value) -> Prefs {
    serde_json::from_value(value).unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What has to be put back after a login of a node with the preferences `before`.
fn lost(before: &Prefs, after: &Prefs, asked: &[String]) -> Prefs {
    differences(&kept(before, after, asked), after)
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
fn what_a_login_changed_unasked_is_put_back() {
    let before = prefs(json!({
        "ControlURL": "", "WantRunning": false, "RunWebClient": true, "Hostname": "x",
        "AutoUpdate": { "Check": true, "Apply": true }, "OperatorUser": "ann", "CorpDNS": false,
    }));
    let after = prefs(json!({
        "ControlURL": "https://x", "WantRunning": true, "RunWebClient": false, "Hostname": "x",
        "AutoUpdate": { "Check": true, "Apply": null }, "CorpDNS": true,
    }));
    assert_eq!(
        Value::Object(lost(&before, &after, &[])),
        json!({
            "AutoUpdate": { "Check": true, "Apply": true },
            "CorpDNS": false,
            "OperatorUser": "ann",
            "RunWebClient": true,
        })
    );
}

#[test]
fn what_an_admin_set_meanwhile_is_kept() {
    let before = prefs(json!({ "RunWebClient": false, "Hostname": "x", "CorpDNS": true }));
    let after = prefs(json!({ "RunWebClient": true, "Hostname": "y", "CorpDNS": false }));
    assert_eq!(lost(&before, &after, &[]), Prefs::new());
}

#[test]
fn what_the_user_asked_for_is_kept() {
    let before = prefs(json!({
        "RunSSH": true, "CorpDNS": true, "AdvertiseRoutes": ["10.0.0.0/8"], "RouteAll": true,
        "ExitNodeID": "n1", "ExitNodeIP": "", "NoSNAT": true, "ShieldsUp": true,
        "Hostname": "x", "OperatorUser": "ann", "NoStatefulFiltering": true,
    }));
    let after = prefs(json!({
        "RunSSH": false, "CorpDNS": false, "AdvertiseRoutes": null, "RouteAll": false,
        "ExitNodeID": "", "ExitNodeIP": "100.64.0.9", "NoSNAT": false, "ShieldsUp": false,
        "Hostname": "y", "OperatorUser": "", "NoStatefulFiltering": false,
    }));
    let asked = words(&[
        "--ssh=false",
        "--accept-dns=false",
        "--advertise-routes=",
        "-accept-routes=false",
        "--exit-node",
        "100.64.0.9",
        "--snat-subnet-routes",
        "--shields-up=false",
        "--hostname=y",
        "--operator=",
        "--stateful-filtering",
    ]);
    assert_eq!(lost(&before, &after, &asked), Prefs::new());
    let all = lost(&before, &after, &words(&["--ssh=false"]));
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["AdvertiseRoutes", "ExitNodeID", "NoSNAT", "OperatorUser", "RouteAll", "ShieldsUp"]
    );
}

#[test]
fn exit_routes_and_other_routes_live_together() {
    let routes = |routes: &[&str]| prefs(json!({ "AdvertiseRoutes": routes }));
    let exit = ["0.0.0.0/0", "::/0"];
    let other = ["10.0.0.0/8"];
    let both = [other[0], exit[0], exit[1]];
    let left = |before: &[&str], after: &[&str], flag: &str| {
        kept(&routes(before), &routes(after), &words(&[flag]))["AdvertiseRoutes"].clone()
    };
    let exit_node = "--advertise-exit-node";
    let of_routes = "--advertise-routes=10.0.0.0/8";
    assert_eq!(left(&other, &exit, exit_node), json!(both));
    assert_eq!(left(&exit, &other, of_routes), json!(both));
    assert_eq!(left(&both, &other, "--advertise-exit-node=false"), json!(other));
    assert_eq!(left(&both, &exit, "--advertise-routes="), json!(exit));
    // As they are, if they are the same.
    let mixed = [exit[0], other[0], exit[1]];
    assert_eq!(left(&mixed, &exit, exit_node), json!(mixed));
    assert_eq!(left(&other, &[], "--ssh"), json!(other));
}

#[test]
fn access_to_the_lan_is_not_asked_for_by_an_exit_node() {
    let before = prefs(json!({ "ExitNodeAllowLANAccess": true, "AutoExitNode": "any" }));
    let after = prefs(json!({ "ExitNodeAllowLANAccess": false, "AutoExitNode": "" }));
    let lost_with = |flag: &str| Value::Object(lost(&before, &after, &words(&[flag])));
    assert_eq!(lost_with("--exit-node="), json!({ "ExitNodeAllowLANAccess": true }));
    assert_eq!(lost_with("--exit-node-allow-lan-access=false"), json!({ "AutoExitNode": "any" }));
    // Without an exit node, `up` does not take the flag.
    assert_eq!(as_flags(&before, &[], NEW), Vec::<String>::new());
    let used = words(&["--exit-node=100.64.0.9"]);
    let flags = words(&["--exit-node-allow-lan-access=true"]);
    assert_eq!(as_flags(&before, &used, NEW), flags);
    let own = prefs(json!({ "ExitNodeAllowLANAccess": true, "ExitNodeIP": "100.64.0.9" }));
    assert_eq!(as_flags(&own, &words(&["--exit-node="]), NEW), Vec::<String>::new());
}

#[test]
fn a_flag_of_the_user_takes_the_place_of_the_nodes() {
    let before = prefs(json!({ "RouteAll": true, "Hostname": "x", "RunSSH": true }));
    let asked = words(&["--ssh=false", "-hostname", "y"]);
    assert_eq!(as_flags(&before, &asked, NEW), words(&["--accept-routes=true"]));
}

#[test]
fn a_word_of_dashes_asks_for_nothing() {
    for word in ["-", "--", "---", "----=x"] {
        assert!(!is_set_by(&words(&[word]), "Hostname"), "{word}");
    }
}

#[test]
fn a_flag_is_given_only_to_a_version_that_has_it_and_if_it_fits() {
    let before = prefs(json!({
        "PostureChecking": true, "NoStatefulFiltering": false, "AppConnector": { "Advertise": true },
    }));
    let flags = |version| as_flags(&before, &[], version);
    let connector = "--advertise-connector=true";
    let filtering = "--stateful-filtering=true";
    assert_eq!(flags((1, 66)), words(&[connector, filtering]));
    assert_eq!(flags((1, 64)), words(&[connector]));
    assert_eq!(flags((1, 84)), words(&[connector, "--report-posture=true", filtering]));
    let routes: Vec<_> = (0..5000).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
    let many = prefs(json!({ "AdvertiseRoutes": routes, "Hostname": "x" }));
    assert_eq!(as_flags(&many, &[], NEW), words(&["--hostname=x"]));
}

#[test]
fn the_preferences_of_a_login_are_known_by_its_flags() {
    let of_login = json!({
        "WantRunning": true, "LoggedOut": false, "RouteAll": true, "Hostname": "x",
        "CorpDNS": true, "NetfilterMode": 2, "Config": { "NodeID": "" }, "RunSSH": true,
    });
    let (asked, ours) = (words(&["--ssh"]), words(&["--accept-routes=true", "--hostname=x"]));
    let is = |change: fn(&mut Prefs)| {
        let mut prefs = prefs(of_login.clone());
        change(&mut prefs);
        are_of_login(&prefs, &asked, &ours)
    };
    assert!(is(|_| {}));
    assert!(is(|prefs| drop(prefs.insert("RunSSH".into(), json!(false)))));
    assert!(!is(|prefs| drop(prefs.insert("Hostname".into(), json!("y")))));
    assert!(!is(|prefs| drop(prefs.remove("RouteAll"))));
    assert!(!is(|prefs| drop(prefs.insert("RunWebClient".into(), json!(true)))));
    assert!(!is(|prefs| drop(prefs.insert("WantRunning".into(), json!(false)))));
    assert!(!is(|prefs| drop(prefs.insert("LoggedOut".into(), json!(true)))));
}

/// Preferences of which some have names that matter.
fn some_prefs() -> impl Strategy<Value = Prefs> {
    let name = prop_oneof![
        select(&NO_SETTINGS[..]).prop_map(str::to_owned),
        select(&["Hostname", "RunSSH", "AutoUpdate", "CorpDNS", "AdvertiseRoutes"][..])
            .prop_map(str::to_owned),
        "[A-Za-z]{0,6}",
    ];
    let name = name.prop_filter("no preference is called so", |name| !name.ends_with("Set"));
    let value = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any_text().prop_map(Value::from),
        vec(select(&["0.0.0.0/0", "::/0", "10.0.0.0/8", ""][..]), 0..4).prop_map(Value::from),
        Just(Value::Null),
        Just(json!({ "Apply": [{}, null] })),
    ];
    btree_map(name, value, 0..8).prop_map(|prefs| prefs.into_iter().collect())
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        any_text(),
        "-{0,4}(hostname|ssh|accept-dns|advertise-routes|advertise-exit-node|-|)(=[a-z-]{0,3})?",
    ]
}

proptest! {
    #[test]
    fn with_what_was_lost_put_back_all_is_as_before_but_what_was_asked_for(
        before in some_prefs(),
        after in some_prefs(),
        asked in vec(word(), 0..3),
    ) {
        let lost = lost(&before, &after, &asked);
        let mut left = after.clone();
        left.extend(lost.clone());
        let value = |prefs: &Prefs, name: &str| prefs.get(name).cloned().unwrap_or_default();
        for name in before.keys().chain(after.keys()).filter(|name| *name != "AdvertiseRoutes") {
            let excepted = NO_SETTINGS.contains(&name.as_str())
                || !is_default(name, &value(&after, name))
                || is_set_by(&asked, name);
            let wanted = if excepted { &after } else { &before };
            let (is, wanted) = (value(&left, name), value(wanted, name));
            prop_assert!(is_same(name, &is, &wanted), "{}: {} {}", name, is, wanted);
        }
        let Value::Object(masked) = masked(&lost) else {
            panic!("not an object");
        };
        prop_assert_eq!(masked.len(), 2 * lost.len());
        for name in NO_SETTINGS {
            prop_assert!(!masked.contains_key(name));
            let mark = format!("{name}Set");
            prop_assert!(!masked.contains_key(&mark));
        }
        are_of_login(&after, &asked, &as_flags(&before, &asked, NEW));
        login_under_way(&after);
        described(&before);
    }
}

#[test]
fn masks_mark_each_field_and_both_parts_of_auto_update() {
    let masked = masked(&prefs(json!({ "RunSSH": true, "AutoUpdate": { "Apply": true } })));
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
fn a_new_node_has_no_settings() {
    // Of a fresh 1.98.10.
    let new = prefs(json!({
        "ControlURL": "https://x", "RouteAll": false, "ExitNodeID": "", "CorpDNS": true,
        "WantRunning": true, "LoggedOut": false, "AdvertiseTags": null, "Sync": null,
        "AdvertiseRoutes": [], "NoSNAT": false, "NoStatefulFiltering": true,
        "NetfilterMode": 2, "AutoUpdate": { "Check": true, "Apply": null },
        "AppConnector": { "Advertise": false }, "AllowSingleHosts": true, "Config": { "a": 1 },
    }));
    assert_eq!(described(&new), (Vec::new(), Vec::new()));
    assert_eq!(as_flags(&new, &[], NEW), Vec::<String>::new());
    assert!(are_of_login(&new, &[], &[]));
}

#[test]
fn settings_are_named_by_their_flags_where_there_are_any() {
    let set = prefs(json!({
        "RouteAll": true, "ExitNodeIP": "100.64.0.9", "CorpDNS": false, "RunSSH": true,
        "AdvertiseTags": ["tag:a", "tag:b"], "Hostname": "a b", "NoSNAT": true,
        "AdvertiseRoutes": ["192.0.2.0/24", "0.0.0.0/0", "::/0"], "NetfilterMode": 0,
        "NoStatefulFiltering": false, "AutoUpdate": { "Check": true, "Apply": true },
        "AppConnector": { "Advertise": true }, "RunWebClient": true, "OperatorUser": "ann",
        "PostureChecking": true, "ShieldsUp": true, "ExitNodeAllowLANAccess": true,
    }));
    let (flags, without_flag) = described(&set);
    assert_eq!(
        flags,
        [
            "--accept-dns=false",
            "--accept-routes",
            "--advertise-connector",
            "--advertise-exit-node",
            "--advertise-routes=192.0.2.0/24",
            "--advertise-tags=tag:a,tag:b",
            "--exit-node=100.64.0.9",
            "--exit-node-allow-lan-access",
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
    assert_eq!(without_flag, ["AutoUpdate", "RunWebClient"]);
}

#[test]
fn an_exit_node_that_no_address_names_has_no_flag() {
    let set = prefs(json!({ "ExitNodeID": "n1", "AutoExitNode": "any", "ExitNodeIP": "" }));
    assert_eq!(as_flags(&set, &[], NEW), Vec::<String>::new());
    assert_eq!(described(&set).1, ["AutoExitNode", "ExitNodeID"]);
    assert_eq!(lost(&set, &Prefs::new(), &[]).len(), 2);
}

#[test]
fn an_operator_is_kept_unless_the_user_names_one() {
    let set = prefs(json!({ "OperatorUser": "alice" }));
    let flags = |prefs: &Prefs, asked: &[&str]| as_flags(prefs, &words(asked), NEW);
    assert_eq!(flags(&set, &["--ssh"]), ["--operator=alice"]);
    assert_eq!(flags(&set, &["--operator=bob"]), Vec::<String>::new());
    assert_eq!(flags(&prefs(json!({ "OperatorUser": "" })), &[]), Vec::<String>::new());
    assert_eq!(flags(&prefs(json!({})), &[]), Vec::<String>::new());
}

#[test]
fn a_login_is_under_way_once_up_has_said_so_and_until_a_restart() {
    for (want, out, under_way) in
        [(true, false, true), (false, true, false), (true, true, false), (false, false, false)]
    {
        let prefs = prefs(json!({ "WantRunning": want, "LoggedOut": out }));
        assert_eq!(login_under_way(&prefs), under_way);
    }
}
