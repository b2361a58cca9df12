//! A node that has been on its tailnet before the program is started: the set-up of many tests.

use tailnet_harness::{Device, Finished, KeyFile, Node, Run, Tailnet, needs_version};

use crate::program;

/// A node that is on its tailnet, and the device that it was when it joined.
pub struct Joined {
    pub tailnet: Tailnet,
    pub node: Node,
    pub device: Device,
}

impl Joined {
    /// A plain node.
    pub fn new() -> Self {
        Self::on(Node::start())
    }

    /// A node whose daemon keeps its network map on disk, as it does by default.
    pub fn with_map_on_disk() -> Self {
        Self::on(Node::builder().cached_netmap(true).start())
    }

    fn on(node: Node) -> Self {
        let tailnet = Tailnet::start();
        node.join(&tailnet);
        let device = tailnet.device(&node).expect("the node has joined");
        Self { tailnet, node, device }
    }

    /// The program, as an admin would run it.
    pub fn program(&self, file: &KeyFile) -> Run {
        program(&self.tailnet, &self.node, file)
    }

    /// What `change` does to the tailnet while the machine is off.
    pub fn while_off(&self, change: impl FnOnce(&Tailnet, u64)) {
        self.node.terminate();
        change(&self.tailnet, self.device.id);
        self.node.launch();
    }

    /// The node key expires, and the node needs a login.
    pub fn expire(&self) {
        self.tailnet.expire(self.device.id);
        self.node.wait_state("NeedsLogin");
    }

    /// Registers with an auth key so far.
    pub fn registers_with_key(&self) -> u64 {
        self.tailnet.state().registers.with_key
    }

    /// Asserts that the node is on the tailnet and that it is the device that it was; returns
    /// what that device is now.
    pub fn assert_same_device(&self) -> Device {
        let device = self.assert_online();
        assert_eq!((device.id, &device.addresses), (self.device.id, &self.device.addresses));
        device
    }

    /// Asserts that the node is on the tailnet; returns the device that it is.
    pub fn assert_online(&self) -> Device {
        let status = self.node.status();
        assert!(Node::is_online(&status), "{status:#}");
        let device = self.tailnet.device(&self.node).expect("the node is known");
        assert!(device.approved && !device.expired, "{device:?}");
        device
    }
}

/// Whether tailscaled keeps its network map on disk; if not, the test is said to be skipped.
#[must_use = "a test that is skipped returns"]
#[track_caller]
pub fn has_map_on_disk() -> bool {
    needs_version((1, 98), "tailscaled keeps no network map on disk (1.80.3 doesn't, 1.98.10 does)")
}

/// Asserts that the program has ended well, having said so to systemd too.
pub fn assert_connected(run: &Finished) {
    run.assert_code(0);
    assert!(run.stdout.starts_with("connected as "), "{}", run.stdout);
    assert!(run.ready_at().is_some());
    assert_eq!(run.statuses().last(), Some(&run.stdout.trim()));
    assert_eq!(run.left_behind, Vec::<u32>::new());
}

/// What the control server says of a [`dead_key`].
pub const DEAD: &str = "authkey expired";

/// A key that has expired. (One that the control server does not know is sent twice, half a minute
/// apart.)
pub fn dead_key(tailnet: &Tailnet) -> String {
    let key = tailnet.reusable_key();
    tailnet.expire_key(&key);
    key
}
