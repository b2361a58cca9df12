//! Joining, and finding that there is nothing to do.

use tailnet_harness::{CountingProxy, KeyFile, Node, Run, Tailnet};

use crate::program;

#[test]
fn a_fresh_node_joins_with_its_key() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();

    let run = program(&tailnet, &node, &KeyFile::new(&key)).run();

    run.assert_code(0);
    let device = tailnet.device(&node).expect("the node is on the tailnet");
    assert_eq!(
        run.stdout.trim(),
        format!(
            "connected as {} ({})",
            device.name.trim_end_matches('.'),
            device.addresses.join(", ")
        )
    );
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    assert_eq!(state.registers.total, 1);
    assert!(Node::is_online(&node.status()));
    assert!(run.ready_at().is_some());
}

#[test]
fn a_running_node_is_left_alone_and_its_key_file_need_not_exist() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    node.join(&tailnet);
    let before = tailnet.state().registers.total;
    let proxy = CountingProxy::start(&node);

    let run = Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .socket(proxy.socket())
        .cli()
        .authkey_file("/nonexistent/token")
        .login_server(tailnet.url())
        .run();

    run.assert_code(0);
    assert!(run.ready_at().is_some());
    assert!(proxy.requests().len() <= 2, "{:?}", proxy.requests());
    assert_eq!(tailnet.state().registers.total, before);
}
