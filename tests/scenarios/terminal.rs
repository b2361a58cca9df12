//! What a person sees who runs it on a terminal.

use std::thread;
use std::time::Duration;

use tailnet_harness::{KeyFile, Node, Tailnet};

use crate::{assert_joined, program};

#[test]
fn a_person_sees_what_is_waited_for_and_in_the_end_only_what_was_done() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    node.wait_state("NeedsLogin");
    let (key, file) = (tailnet.single_use_key(), KeyFile::absent());
    let path = file.path().display().to_string();
    let run = program(&tailnet, &node, &file).terminal(200).spawn();
    run.wait_on_screen(&format!("waiting for the auth key file {path} (missing) … "));
    thread::sleep(Duration::from_secs(2));
    file.swap(&key);
    let run = run.wait();

    assert_joined(&run, &tailnet, &node, &key);
    let screen = run.screen();
    // Things that take long under load have a message too.
    let kept: Vec<&str> = screen.now().lines().collect();
    let logs_in = format!("tailscale-autoconnect: logging in with the auth key from {path}");
    assert!(kept.contains(&logs_in.as_str()), "{kept:?}");
    let all_messages = kept
        .iter()
        .all(|line| line.starts_with("tailscale-autoconnect: ") && !line.contains(" … "));
    assert!(all_messages, "{kept:?}");
    assert!(screen.is_left_clean() && !screen.has_wrapped());

    assert!(run.stdout.starts_with("connected as "), "{}", run.stdout);
    assert_eq!(run.stdout.lines().count(), 1);
}
