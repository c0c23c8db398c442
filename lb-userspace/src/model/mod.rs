//! What the user wants, as values that need no second look: [`validate`] makes them from what a source has read.
//! What becomes of it on this host is [`resolve`]'s part, ids and maps are the plan's.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, fmt, net::IpAddr};

use lb_common::{
    addr::{Addr, Family, Protocol},
    selector::Selector,
};

pub mod draft;
pub mod fault;
pub mod resolve;
pub mod validate;

/// Everything that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Services in their source's order; no two have one name.
    pub services: Vec<Service>,
}

/// Frontends that share one way of choosing among one set of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is called.
    pub name: String,
    /// Where clients connect to.
    pub listens: Vec<Listen>,
    /// What is chosen once: a flow's backend, or each packet's.
    pub schedule: Schedule,
    /// How a backend is chosen, and among which.
    pub choice: Choice<Target>,
}

/// Where clients connect to: each protocol on one port of one address, or of all addresses of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listen {
    /// The address, or the interface whose addresses are meant.
    pub at: At,
    /// The port.
    pub port: u16,
    /// The protocols.
    pub protocols: BTreeSet<Protocol>,
}

/// The address part of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// This address.
    Address(IpAddr),
    /// Every global address of the interface with this name, aliases included.
    Interface(String),
}

/// A part of what is wanted, by which the place is found where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Whole,
    /// A listener.
    Listen(Listen),
    /// A backend, wherever it is named first.
    Backend(Target),
    /// An interface that clients are said to come in by; it is of no service.
    Interface(String),
}

/// A part of what is wanted that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Rejected {
    /// The configured service's name; empty for what is of no service.
    pub service: String,
    /// The part of it.
    pub part: Part,
    /// Why, and what would be right.
    pub why: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Whole | Part::Listen(_) | Part::Backend(_) => write!(f, "service {}: {}", self.service, self.why),
            Part::Interface(_) => f.write_str(&self.why),
        }
    }
}

/// What is chosen once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Schedule {
    /// Each flow keeps its backend.
    #[default]
    PerFlow,
    /// Each UDP packet is a choice of its own. TCP flows keep their backend all the same.
    PerPacket,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 2] = [Self::PerFlow, Self::PerPacket];

    /// The name in configurations and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerFlow => "per-flow",
            Self::PerPacket => "per-packet",
        }
    }
}

/// A backend as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where it is.
    pub address: IpAddr,
    /// Where it listens; without a value on the frontend's port.
    pub port: Option<u16>,
}

impl Target {
    /// The port it listens on behind a frontend of `frontend_port`.
    pub fn port_behind(&self, frontend_port: u16) -> u16 {
        self.port.unwrap_or(frontend_port)
    }

    /// Its address's family.
    pub fn family(&self) -> Family {
        Addr::from(self.address).family()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => std::net::SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// How a backend is chosen, and among which. `T` is a [`Target`], or what it resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// By chance, in proportion to the weights.
    Random(Vec<Weighted<T>>),
    /// By a chain of rules.
    Nth(Chain<T>),
    /// In turn.
    RoundRobin(Vec<T>),
    /// In turn, in proportion to the weights.
    WeightedRoundRobin(Vec<Weighted<T>>),
}

/// A backend and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weighted<T> {
    /// The backend.
    pub backend: T,
    /// 1 to 256.
    pub weight: u32,
}

/// A chain of nth rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain<T> {
    /// The chain n, n−1, … 1, which gives each of n backends one of n choices.
    Even(Vec<T>),
    /// These rules, as iptables has them.
    Rules(Vec<Rule<T>>),
}

/// One rule: of the choices that reach it, it takes number `packet`, `packet + every`, … counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule<T> {
    /// At least 1.
    pub every: u32,
    /// Less than `every`.
    pub packet: u32,
    /// Who gets what it takes.
    pub backend: T,
}

impl<T> Choice<T> {
    /// The selector's name.
    pub fn selector(&self) -> Selector {
        match self {
            Self::Random(_) => Selector::Random,
            Self::Nth(_) => Selector::Nth,
            Self::RoundRobin(_) => Selector::RoundRobin,
            Self::WeightedRoundRobin(_) => Selector::WeightedRoundRobin,
        }
    }

    /// The backends in their order; those of rules once for each rule.
    pub fn backends(&self) -> Vec<&T> {
        match self {
            Self::Random(weighted) => weighted.iter().map(|one| &one.backend).collect(),
            Self::Nth(Chain::Even(backends)) => backends.iter().collect(),
            Self::Nth(Chain::Rules(rules)) => rules.iter().map(|rule| &rule.backend).collect(),
            Self::RoundRobin(backends) => backends.iter().collect(),
            Self::WeightedRoundRobin(weighted) => weighted.iter().map(|one| &one.backend).collect(),
        }
    }

    /// The same choice among what `f` makes of the backends, without those it makes nothing of.
    pub fn filter_map<U>(&self, f: impl Fn(&T) -> Option<U>) -> Choice<U> {
        let plain = |backends: &Vec<T>| backends.iter().filter_map(&f).collect();
        let weighted = |backends: &Vec<Weighted<T>>| {
            let kept = |one: &Weighted<T>| Some(Weighted { backend: f(&one.backend)?, weight: one.weight });
            backends.iter().filter_map(kept).collect()
        };
        match self {
            Self::Random(backends) => Choice::Random(weighted(backends)),
            Self::Nth(Chain::Even(backends)) => Choice::Nth(Chain::Even(plain(backends))),
            Self::Nth(Chain::Rules(rules)) => {
                let kept =
                    |rule: &Rule<T>| Some(Rule { every: rule.every, packet: rule.packet, backend: f(&rule.backend)? });
                Choice::Nth(Chain::Rules(rules.iter().filter_map(kept).collect()))
            }
            Self::RoundRobin(backends) => Choice::RoundRobin(plain(backends)),
            Self::WeightedRoundRobin(backends) => Choice::WeightedRoundRobin(weighted(backends)),
        }
    }
}
