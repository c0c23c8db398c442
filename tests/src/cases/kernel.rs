//! Cases in the kernel: the real program and the real maps, by `BPF_PROG_TEST_RUN`.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{addr::Addr, backend::BackendState, reason::Reason};
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Dataplane,
        bpf::{Bpf, Options, Program},
        pins::Pins,
    },
    plan::{
        Plan,
        change::{Change, diff},
    },
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{Machine, Outcome, REPLY_LINK, capacity};
use crate::process::output;

/// The data path in the kernel, with pins of its own.
pub struct Kernel {
    bpf: Bpf,
    plan: Plan,
    /// What the last packet's look at the counters found, while nothing but packets may have come after it.
    counted: Option<BTreeMap<Reason, u64>>,
    _folder: tempfile::TempDir,
}

/// Puts this process into namespaces of its own, with a bpf filesystem and a route to the cases' clients. Before any
/// thread is started.
///
/// # Errors
/// When the process has no right to.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("new namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    // /proc/sys shows this namespace's network; /sys/fs/bpf is a new, empty filesystem.
    std::fs::create_dir_all(PINS)?;
    mount(Some("bpf"), PINS, Some("bpf"), MsFlags::empty(), None::<&str>).context("a bpf filesystem")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let (next_hop, own) = (mac(REPLY_LINK.0), mac(REPLY_LINK.1));
    for command in [
        "ip link set lo up".to_owned(),
        format!("ip link add lab0 address {own} type veth peer name lab1"),
        "ip link set lab0 up".to_owned(),
        "ip link set lab1 up".to_owned(),
        "ip addr add 10.9.0.254/32 dev lab0".to_owned(),
        "ip addr add fd00:9::fe/128 dev lab0 nodad".to_owned(),
        // Whoever a client is, one neighbour is the way there.
        "ip route add 10.9.0.1/32 dev lab0".to_owned(),
        "ip route add default via 10.9.0.1 dev lab0".to_owned(),
        // What a look-up reads that takes one family's address for the other's leads nowhere.
        "ip route add unreachable 0.0.0.0/32".to_owned(),
        "ip route add unreachable 253.0.0.9/32".to_owned(),
        "ip route add fd00:9::1/128 dev lab0".to_owned(),
        "ip route add default via fd00:9::1 dev lab0".to_owned(),
        format!("ip neigh add 10.9.0.1 lladdr {next_hop} dev lab0 nud permanent"),
        format!("ip neigh add fd00:9::1 lladdr {next_hop} dev lab0 nud permanent"),
    ] {
        let mut words = command.split(' ');
        let mut process = std::process::Command::new(words.next().unwrap_or("ip"));
        output(process.args(words))?;
    }
    Ok(())
}

const PINS: &str = "/sys/fs/bpf";

impl Kernel {
    /// An empty data path of the cases' small size.
    ///
    /// # Errors
    /// When the programs are refused.
    pub fn new() -> Result<Self> {
        Self::of(capacity())
    }

    /// An empty data path of this size.
    ///
    /// # Errors
    /// When the programs are refused.
    pub fn of(capacity: Capacity) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = folder.path().file_name().context("a temporary folder has a name")?.to_owned();
        let pins = Pins::new(Path::new(PINS).join(name.to_string_lossy().trim_start_matches('.')));
        let options = Options { pins, state: folder.path().to_owned(), capacity, trace: None };
        let (bpf, _) = Bpf::open_or_create(&options)?;
        Ok(Self { bpf, plan: Plan::default(), counted: None, _folder: folder })
    }

    /// The data path itself.
    pub fn bpf(&mut self) -> &mut Bpf {
        self.counted = None;
        &mut self.bpf
    }

    fn reasons(&self) -> Result<BTreeMap<Reason, u64>> {
        Ok(self.bpf.counters()?.reasons)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // The mount namespace would take the pins with it, but the maps' memory should not wait for that.
        let _ = std::fs::remove_dir_all(self.bpf.pins().path());
    }
}

impl Machine for Kernel {
    fn program(&mut self, plan: &Plan) -> Result<()> {
        self.bpf.apply(&diff(&self.plan.tables, plan))?;
        self.plan = plan.clone();
        Ok(())
    }

    fn set_state(&mut self, backend: IpAddr, state: BackendState) -> Result<()> {
        let address = Addr::from(backend);
        let mut changes = Vec::new();
        for (id, record) in self.plan.tables.backends.iter_mut().filter(|(_, record)| record.key.address == address) {
            // The next plan differs in this, and puts the state right.
            record.state = state;
            changes.push(Change::SetBackendState(*id, state));
        }
        ensure!(!changes.is_empty(), "no backend {backend}");
        Ok(self.bpf.apply(&changes)?)
    }

    fn run(&mut self, at: Program, bytes: &[u8]) -> Result<Outcome> {
        let before = match self.counted.take() {
            Some(counted) => counted,
            None => self.reasons()?,
        };
        let (verdict, after) = self.bpf.run_once(at, bytes)?;
        let now = self.reasons()?;
        let moved = now.iter().filter(|(reason, count)| before.get(reason) != Some(count));
        let counted: Vec<Reason> = moved.map(|(reason, _)| *reason).collect();
        self.counted = Some(now);
        let outcome = match (verdict, counted.as_slice()) {
            (TC_ACT_REDIRECT, []) => Outcome::Redirected(after),
            (TC_ACT_UNSPEC, []) => Outcome::Passed(after),
            (TC_ACT_UNSPEC, [reason]) => {
                ensure!(after == bytes, "a packet that is left alone was changed");
                Outcome::Left(*reason)
            }
            (TC_ACT_SHOT, [reason]) => Outcome::Dropped(*reason),
            (verdict, reasons) => bail!("verdict {verdict} with reasons {reasons:?}"),
        };
        Ok(outcome)
    }
}

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;
