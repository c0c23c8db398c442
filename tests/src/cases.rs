//! The case table's language: a configuration, packets, and what becomes of each. The same case runs on the host, in
//! memory, and in the kernel by `BPF_PROG_TEST_RUN`.

use std::{collections::BTreeMap, iter, net::IpAddr};

use anyhow::{Result, bail};
use lb_common::{
    addr::Protocol,
    backend::{BackendState, Way},
    reason::{Action, Reason},
};
use lb_userspace::{
    capacity::Capacity,
    dataplane::bpf::Program,
    model::{draft::Host, resolve::resolve},
    plan::{Plan, plan},
    settings::Limits,
    source::file,
};

use crate::packet::Packet;

pub mod host;
pub mod kernel;
pub mod table;

/// A configuration, and steps that follow each other on it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    configuration: String,
    way: Way,
    steps: Vec<Step>,
}

/// One packet or event, and what comes of it.
#[derive(Clone, Debug)]
enum Step {
    Packet { at: Program, bytes: Vec<u8>, expected: Outcome },
    State { backend: IpAddr, state: BackendState },
    Reload { configuration: String },
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is sent on past the stack, with these bytes.
    Redirected(Vec<u8>),
    /// The stack goes on with it, with these bytes, and nothing is counted.
    Passed(Vec<u8>),
    /// The stack has it untouched, for this reason.
    Left(Reason),
    /// It is discarded, for this reason.
    Dropped(Reason),
    /// It is discarded, for this reason, and its sender is told in these bytes.
    Told(Reason, Vec<u8>),
    /// XDP leaves it untouched to traffic control, and no reason is counted.
    Later(Handed),
}

impl Outcome {
    /// What a reason comes to in this program.
    pub fn of(reason: Reason, at: Program) -> Self {
        match reason.action() {
            // Traffic control counts it, which sees it next.
            Action::Pass if at.is_early() => Self::Later(Handed::Refused),
            Action::Pass => Self::Left(reason),
            Action::Drop => Self::Dropped(reason),
        }
    }
}

/// What XDP makes of a packet that it leaves to traffic control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// It is not balanced, as far as XDP can tell.
    Refused,
    /// It is balanced, and traffic control finds where it goes.
    Untold,
    /// It is balanced, and a note says where it goes.
    Told,
}

impl Case {
    /// A case that shows `name`. Its backends are reached by `redirect_neigh` unless it says otherwise.
    pub fn new(name: &'static str) -> Self {
        Self { name, configuration: String::new(), way: DEFAULT_WAY, steps: Vec::new() }
    }

    /// With this service, in the file's language.
    pub fn given(mut self, service: &str) -> Self {
        self.configuration.push_str(&written(service));
        self
    }

    /// With all backends reached in this way.
    pub fn way(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// A packet that comes in where clients are.
    pub fn packet(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::IngressClients, bytes: packet.bytes() }
    }

    /// A packet that comes in where backends are.
    pub fn reply(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::IngressBackends, bytes: packet.bytes() }
    }

    /// A packet that comes in where both are.
    pub fn packet_at_both(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::IngressBoth, bytes: packet.bytes() }
    }

    /// A packet that the stack sends out towards clients.
    pub fn leaving(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::EgressClients, bytes: packet.bytes() }
    }

    /// A packet that comes in where clients are, at XDP.
    pub fn early_packet(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::XdpClients, bytes: packet.bytes() }
    }

    /// A packet that comes in where backends are, at XDP.
    pub fn early_reply(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::XdpBackends, bytes: packet.bytes() }
    }

    /// A packet that comes in where both are, at XDP.
    pub fn early_packet_at_both(self, packet: Packet) -> Expectation {
        Expectation { case: self, at: Program::XdpBoth, bytes: packet.bytes() }
    }

    /// From here on a backend is in this state, its slots as they were.
    ///
    /// # Panics
    /// When `backend` is no address: a mistake in the test.
    pub fn backend_is(mut self, backend: &str, state: BackendState) -> Self {
        let backend = backend.parse().unwrap_or_else(|_| panic!("{backend} is no address"));
        self.steps.push(Step::State { backend, state });
        self
    }

    /// From here on with this service instead.
    pub fn then_given(mut self, service: &str) -> Self {
        self.steps.push(Step::Reload { configuration: written(service) });
        self
    }

    /// The configurations it goes through, in the file's language.
    pub fn configurations(&self) -> impl Iterator<Item = &str> {
        let reloads = self.steps.iter().filter_map(|step| match step {
            Step::Reload { configuration } => Some(configuration.as_str()),
            Step::Packet { .. } | Step::State { .. } => None,
        });
        iter::once(self.configuration.as_str()).chain(reloads)
    }

    /// Runs the case.
    ///
    /// # Errors
    /// When a step comes to something else than it should.
    pub fn run(&self, machine: &mut impl Machine) -> Result<()> {
        let mut plan = planned(&self.configuration, self.way, &Plan::default())?;
        machine.program(&plan)?;
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                Step::State { backend, state } => machine.set_state(*backend, *state)?,
                Step::Reload { configuration } => {
                    plan = planned(configuration, self.way, &plan)?;
                    machine.program(&plan)?;
                }
                Step::Packet { at, bytes, expected } => {
                    let outcome = machine.run(*at, bytes)?;
                    if outcome != *expected {
                        bail!("step {}: expected {expected:02x?}\n   but came to {outcome:02x?}", number + 1);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A way that every machine can take in a test run.
pub const DEFAULT_WAY: Way = Way::Neighbour { ifindex: 1 };

/// A device that takes packets from XDP and by which every address is reached through one neighbour.
pub const LAB: u32 = 42;

/// The same, but it takes no packets from XDP.
pub const MUTE: u32 = 44;

/// A device that takes packets from XDP, whose neighbours nobody knows yet.
pub const STRANGE: u32 = 46;

/// The largest packet that each of these devices sends.
pub const MTU: u32 = 1500;

/// Small, so that a case is set up quickly.
pub fn capacity() -> Capacity {
    Capacity::from(&Limits { flows: 4096, replies: 4096, services: 64, backends: 256, ..Limits::default() })
}

fn written(service: &str) -> String {
    format!("[[service]]\n{service}\n")
}

/// The tables of a configuration after those of another, its backends reached by `way`, new cursors at 0.
///
/// # Errors
/// When the configuration has a fault.
pub fn planned(configuration: &str, way: Way, before: &Plan) -> Result<Plan> {
    let loaded = file::parse("case.toml", configuration, &Host { cpus: 1, interfaces: None })?;
    let compiled = resolve(&loaded.desired, &BTreeMap::new());
    let backends = compiled.services.values().flat_map(|service| service.choice.backends());
    let ways = backends.map(|key| (key.address.to_ip(), way)).collect();
    let mut plan = plan(&compiled, &ways, &before.tables, &before.services, None, &capacity(), 0);
    if let Some(rejected) = plan.rejected.first() {
        bail!("{rejected}");
    }
    plan.cursors.values_mut().for_each(|cursor| *cursor = 0);
    Ok(plan)
}

/// A packet that waits for its outcome.
#[derive(Clone, Debug)]
pub struct Expectation {
    case: Case,
    at: Program,
    bytes: Vec<u8>,
}

impl Expectation {
    /// It is sent on past the stack as this.
    pub fn sends(self, packet: Packet) -> Case {
        self.comes_to(Outcome::Redirected(packet.bytes()))
    }

    /// The stack goes on with it as this.
    pub fn passes(self, packet: Packet) -> Case {
        self.comes_to(Outcome::Passed(packet.bytes()))
    }

    /// It, which is `packet`, is discarded, and its sender is told that only `mtu` bytes fit.
    pub fn is_answered_as_too_big(self, packet: &Packet, mtu: u16) -> Case {
        self.comes_to(Outcome::Told(Reason::TooBig, packet.refused_as_too_big(mtu).bytes()))
    }

    /// It stays as it is, and is counted under this reason; unless XDP leaves that to traffic control.
    pub fn is(self, reason: Reason) -> Case {
        let outcome = Outcome::of(reason, self.at);
        self.comes_to(outcome)
    }

    /// XDP leaves it untouched to traffic control.
    pub fn is_left(self, handed: Handed) -> Case {
        self.comes_to(Outcome::Later(handed))
    }

    fn comes_to(self, expected: Outcome) -> Case {
        let Self { mut case, at, bytes } = self;
        case.steps.push(Step::Packet { at, bytes, expected });
        case
    }
}

/// Where a case runs.
pub trait Machine {
    /// Makes the maps what is planned.
    ///
    /// # Errors
    /// When they cannot be filled.
    fn program(&mut self, plan: &Plan) -> Result<()>;

    /// Changes what may be sent to a backend.
    ///
    /// # Errors
    /// When there is no such backend.
    fn set_state(&mut self, backend: IpAddr, state: BackendState) -> Result<()>;

    /// Runs one packet through one program.
    ///
    /// # Errors
    /// When the machine fails, not when the packet does.
    fn run(&mut self, at: Program, bytes: &[u8]) -> Result<Outcome>;
}

/// The link-layer addresses that are given to every reply, and to what leaves by the devices of the cases.
pub const REPLY_LINK: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1]);

/// The MTU of the link that every reply takes.
pub const REPLY_MTU: u16 = 1500;

/// The protocol of the later fragments in the table.
pub const UDP: Protocol = Protocol::UDP;
