//! Cases in the kernel: the real program and the real maps, by `BPF_PROG_TEST_RUN`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    addr::Addr,
    backend::BackendState,
    device::{Abilities, Device, HOPS},
    reason::Reason,
    stats::EarlyStats,
};
use lb_ebpf::testing::DEVICE;
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Dataplane,
        bpf::{Bpf, Options, Program},
        pins::Pins,
        sys::Map,
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

use super::{Handed, LAB, MTU, MUTE, Machine, Outcome, REPLY_LINK, STRANGE, capacity};
use crate::process::output;

/// The data path in the kernel, with pins of its own.
pub struct Kernel {
    bpf: Bpf,
    plan: Plan,
    /// What the last packet's look at the counters found, while nothing but packets may have come after it.
    counted: Option<Counted>,
    /// Since when next hops are kept.
    hops_since: Instant,
    _folder: tempfile::TempDir,
}

/// The counters that a verdict is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    reasons: BTreeMap<Reason, u64>,
    early: EarlyStats,
}

/// Puts this process into namespaces of its own, with a bpf filesystem and routes to the cases' clients and backends.
/// Before any thread is started.
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
    let mut commands = vec![
        "ip link set lo up".to_owned(),
        // What a look-up reads that takes one family's address for the other's leads nowhere.
        "ip route add unreachable 0.0.0.0/32".to_owned(),
        "ip route add unreachable 253.0.0.9/32".to_owned(),
    ];
    for ifindex in [LAB, MUTE, STRANGE] {
        commands.extend(device(ifindex));
    }
    for ifindex in [LAB, MUTE] {
        commands.extend(neighbours(ifindex).map(|neighbour| {
            format!("ip neigh add {neighbour} lladdr {} dev lab{ifindex} nud permanent", mac(REPLY_LINK.0))
        }));
    }
    for command in commands {
        let mut words = command.split(' ');
        let mut process = std::process::Command::new(words.next().unwrap_or("ip"));
        output(process.args(words))?;
    }
    Ok(())
}

/// A veth by which everything is reached through one neighbour of each family. The routes that name no device are those
/// of the first.
fn device(ifindex: u32) -> Vec<String> {
    let name = format!("lab{ifindex}");
    let table = if ifindex == LAB { "main".to_owned() } else { ifindex.to_string() };
    let mut commands = vec![
        format!(
            "ip link add {name} index {ifindex} address {} mtu {MTU} type veth peer name {name}p",
            mac(REPLY_LINK.1)
        ),
        format!("ip link set {name} up"),
        format!("ip link set {name}p up"),
        format!("ip addr add 10.9.0.254/32 dev {name}"),
        format!("ip addr add fd00:9::fe/128 dev {name} nodad"),
    ];
    for (family, neighbour) in ["-4", "-6"].iter().zip(neighbours(ifindex)) {
        commands.push(format!("ip {family} rule add oif {name} lookup {table}"));
        commands.push(format!("ip {family} route add {neighbour} dev {name} table {table}"));
        commands.push(format!("ip {family} route add default via {neighbour} dev {name} table {table} onlink"));
    }
    commands
}

/// The neighbours behind a device.
fn neighbours(ifindex: u32) -> [String; 2] {
    // Clients are behind the first, and one of them is itself the way there.
    let number = if ifindex == LAB { 1 } else { ifindex };
    [format!("10.9.0.{number}"), format!("fd00:9::{number}")]
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Where the bpf filesystem of [`enter`] is.
pub const PINS: &str = "/sys/fs/bpf";

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
        let (mut bpf, _) = Bpf::open_or_create(&options)?;
        bpf.follow_network(&devices());
        Ok(Self { bpf, plan: Plan::default(), counted: None, hops_since: Instant::now(), _folder: folder })
    }

    /// Forgets next hops before any is kept for so long that the kernel is reminded of a neighbour, by a packet that leaves
    /// otherwise than the rest. On the host no time passes.
    fn keep_hops_young(&mut self) -> Result<()> {
        const YOUNG: Duration = Duration::from_secs(1);
        if self.hops_since.elapsed() < YOUNG {
            return Ok(());
        }
        self.forget_hops()
    }

    /// Forgets every next hop that is kept.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn forget_hops(&mut self) -> Result<()> {
        for name in ["BACKEND_HOPS", "CLIENT_HOPS"] {
            let map = Map::open(&self.bpf.pins().path().join(name))?;
            let nothing = vec![0; map.value_bytes()];
            (0..HOPS).try_for_each(|place| map.update(&place.to_ne_bytes(), &nothing))?;
        }
        self.hops_since = Instant::now();
        Ok(())
    }

    /// The data path itself.
    pub fn bpf(&mut self) -> &mut Bpf {
        self.counted = None;
        &mut self.bpf
    }

    fn counted(&self) -> Result<Counted> {
        let counters = self.bpf.counters()?;
        let early = counters.early.get(&LOOPBACK).copied().unwrap_or_default();
        Ok(Counted { reasons: counters.reasons, early })
    }
}

/// The devices that packets come in and leave by. Test runs have them come in by the loopback.
fn devices() -> BTreeMap<u32, Device> {
    let device = |ifindex, address: [u8; 6], abilities| {
        let address = [0, 2, 4].map(|at| u16::from_ne_bytes([address[at], address[at + 1]]));
        (Device::place(ifindex), Device { ifindex, abilities, address, zero: 0 })
    };
    [
        device(LOOPBACK, DEVICE, Abilities::default()),
        device(LAB, REPLY_LINK.1, Abilities::SENDS),
        device(STRANGE, REPLY_LINK.1, Abilities::SENDS),
    ]
    .into()
}

const LOOPBACK: u32 = 1;

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
            None => self.counted()?,
        };
        self.keep_hops_young()?;
        let (verdict, after) = self.bpf.run_once(at, bytes)?;
        let now = self.counted()?;
        let moved = now.reasons.iter().filter(|(reason, count)| before.reasons.get(reason) != Some(count));
        let reasons: Vec<Reason> = moved.map(|(reason, _)| *reason).collect();
        let early = (now.early.sent - before.early.sent, now.early.left - before.early.left);
        self.counted = Some(now);
        if !at.is_early() {
            ensure!(early == (0, 0), "traffic control counted {early:?} for XDP");
            return outcome(verdict, &reasons, &after, bytes);
        }
        let (note, after) = after.split_at(after.len() - bytes.len());
        early_outcome(verdict, &reasons, early, note, after, bytes)
    }
}

fn outcome(verdict: i32, reasons: &[Reason], after: &[u8], before: &[u8]) -> Result<Outcome> {
    Ok(match (verdict, reasons) {
        (TC_ACT_REDIRECT, []) => Outcome::Redirected(after.to_vec()),
        (TC_ACT_REDIRECT, [reason]) => Outcome::Told(*reason, after.to_vec()),
        (TC_ACT_UNSPEC, []) => Outcome::Passed(after.to_vec()),
        (TC_ACT_UNSPEC, [reason]) => {
            ensure!(after == before, "a packet that is left alone was changed");
            Outcome::Left(*reason)
        }
        (TC_ACT_SHOT, [reason]) => Outcome::Dropped(*reason),
        (verdict, reasons) => bail!("verdict {verdict} with reasons {reasons:?}"),
    })
}

/// What came of a packet at XDP, where so many were counted as sent and as left, and this note lies in front of it.
fn early_outcome(
    verdict: i32,
    reasons: &[Reason],
    (sent, left): (u64, u64),
    note: &[u8],
    after: &[u8],
    before: &[u8],
) -> Result<Outcome> {
    let outcome = match (verdict, reasons, sent, left, note.len()) {
        (XDP_REDIRECT, [], 1, 0, 0) => return Ok(Outcome::Redirected(after.to_vec())),
        (XDP_PASS, [], 0, 0, 0) => Outcome::Later(Handed::Refused),
        (XDP_PASS, [], 0, 1, 0) => Outcome::Later(Handed::Untold),
        (XDP_PASS, [], 0, 1, NOTE) => Outcome::Later(Handed::Told),
        (XDP_DROP, [reason], 0, 0, 0) => return Ok(Outcome::Dropped(*reason)),
        _ => bail!("verdict {verdict} with reasons {reasons:?}, {sent} sent, {left} left, the note {note:02x?}"),
    };
    ensure!(after == before, "a packet that is left to traffic control was changed");
    Ok(outcome)
}

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;

/// Bytes of the note that XDP leaves: a mark, a frontend, a backend.
const NOTE: usize = 16;
