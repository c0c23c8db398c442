//! Everything that can be wrong with a configuration, and what would be right: the messages are the interface.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::Family,
    limits::{NTH_RULES_MAX, WEIGHT_MAX},
    selector::Selector,
    service::SocketKey,
};

use super::{Target, draft::Place};
use crate::capacity::readable;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// The service it is in, as it is called in messages.
    pub service: Option<String>,
    /// What.
    pub what: What,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// The text is no TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// No such key, but one much like it.
    #[error("unknown key `{key}`; did you mean `{nearest}`?")]
    MisspeltKey {
        /// The key.
        key: String,
        /// The one that was probably meant.
        nearest: String,
    },
    /// No such key.
    #[error("unknown key `{key}`; known here: {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// All that could be.
        known: String,
    },
    /// A key that a later version will have.
    #[error("`{key}` is not supported yet; remove it")]
    LaterKey {
        /// The key.
        key: String,
    },
    /// A value that a later version will have.
    #[error("{key} `{value}` is not supported yet; use {known}")]
    LaterValue {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// All that could be.
        known: String,
    },
    /// No such value, but one much like it.
    #[error("unknown {key} `{value}`; did you mean `{nearest}`?")]
    MisspeltValue {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The one that was probably meant.
        nearest: String,
    },
    /// No such value.
    #[error("unknown {key} `{value}`; use {known}")]
    UnknownValue {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// All that could be.
        known: String,
    },
    /// A value of another type.
    #[error("{key} is {found}; write {wanted}")]
    WrongType {
        /// The key, or what the value is.
        key: &'static str,
        /// What it is, with an article.
        found: &'static str,
        /// What it should be, with an example.
        wanted: &'static str,
    },
    /// A key without which nothing works.
    #[error("`{key}` is missing; write for example {example}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What could be written.
        example: &'static str,
    },
    /// An empty list.
    #[error("`{key}` is empty; write for example {example}")]
    Empty {
        /// The key.
        key: &'static str,
        /// What could be written.
        example: &'static str,
    },
    /// A listener with both or neither of two keys.
    #[error("a listener has either an `address` or an `interface`; {}", if *.both { "remove one" } else { "add one" })]
    AddressOrInterface {
        /// Whether it has both.
        both: bool,
    },
    /// No address.
    #[error("`{text}` is no IP address; write for example 192.0.2.53 or 2001:db8::53")]
    BadAddress {
        /// What is written.
        text: String,
    },
    /// Neither an address nor one with a port.
    #[error("`{text}` is no backend; write for example 192.0.2.7, 192.0.2.7:53, 2001:db8::7 or [2001:db8::7]:53")]
    BadBackend {
        /// What is written.
        text: String,
    },
    /// An IPv4 address in IPv6's clothes.
    #[error("`{text}` is an IPv4 address; write {plain}")]
    Mapped {
        /// What is written.
        text: String,
        /// The same address.
        plain: String,
    },
    /// An address that no single host has, or that means something else on each host.
    #[error("{text} is {kind} address; write one that a single host has and others can reach")]
    UnusableAddress {
        /// What is written.
        text: String,
        /// What kind it is, with an article.
        kind: &'static str,
    },
    /// No port.
    #[error("`{text}` is no port; write 1 to 65535")]
    BadPort {
        /// What is written.
        text: String,
    },
    /// No weight.
    #[error("weight {weight} is out of range; write 1 to {WEIGHT_MAX}")]
    BadWeight {
        /// What is written.
        weight: i64,
    },
    /// A weight for a selector that knows none.
    #[error("selector {selector} takes no weights; use random or wrr, or remove the weight")]
    WeightNotTaken {
        /// The selector.
        selector: Selector,
    },
    /// Two services of one name.
    #[error("another service has this name; give each its own")]
    NameTaken,
    /// A name that cannot be shown in a listing.
    #[error("`{name}` cannot be a name; use up to 63 letters, digits, `-`, `_`, `.` and `/`")]
    BadName {
        /// What is written.
        name: String,
    },
    /// Nothing to balance.
    #[error("no service; add a [[service]]")]
    NoService,
    /// One frontend in two services.
    #[error("frontend {frontend} is claimed by service {other} as well; let one of them have it")]
    FrontendTaken {
        /// The frontend.
        frontend: String,
        /// The service that came first.
        other: String,
    },
    /// One frontend twice in a service.
    #[error("frontend {frontend} is listed twice; remove one")]
    FrontendTwice {
        /// The frontend.
        frontend: String,
    },
    /// One backend twice in a service.
    #[error("backend {backend} is listed twice; remove one, or give it a weight")]
    BackendTwice {
        /// The backend.
        backend: String,
    },
    /// A backend that is its own frontend.
    #[error("backend {backend} is the frontend itself; remove it, or give it another port")]
    BackendIsFrontend {
        /// The backend.
        backend: SocketAddr,
    },
    /// A backend that no client could be sent to.
    #[error("backend {backend} is {family}, and no frontend is; add an {family} frontend, or remove the backend")]
    NoFrontendOfFamily {
        /// The backend.
        backend: Target,
        /// Its family.
        family: Family,
    },
    /// A warning: a frontend without backends.
    #[error("frontend {address} is {family}, and no backend is: it is left to the host")]
    NoBackendOfFamily {
        /// The frontend.
        address: IpAddr,
        /// Its family.
        family: Family,
    },
    /// Nothing there to be chosen per packet.
    #[error("schedule per-packet concerns UDP, and no frontend has it; add \"udp\" to the protocols, or use per-flow")]
    PerPacketWithoutUdp,
    /// Flows and queries of one client could not be told apart.
    #[error(
        "backend {backend} is used per-packet by service {per_packet} and per-flow by service {per_flow}, which cannot \
         tell each other's replies apart; use one schedule, or another address or port"
    )]
    EndpointMixed {
        /// The backend.
        backend: SocketKey,
        /// The service that keeps no flows.
        per_packet: String,
        /// The service that does.
        per_flow: String,
    },
    /// Two lists of backends.
    #[error("`rules` name their backends themselves; remove `backends` or `rules`")]
    BackendsAndRules,
    /// Rules for a selector that knows none.
    #[error("selector {selector} takes no rules; use nth, or give it `backends`")]
    RulesNotTaken {
        /// The selector.
        selector: Selector,
    },
    /// A chain longer than the kernel follows.
    #[error("{count} rules are more than {NTH_RULES_MAX}; rr is as even with any number of backends")]
    TooManyRules {
        /// Rules there are; a chain of backends has one for each.
        count: usize,
    },
    /// A rule that would divide by nothing.
    #[error("every = {every} is out of range; write 1 to 4294967295")]
    BadEvery {
        /// What is written.
        every: i64,
    },
    /// A rule that never takes anything.
    #[error("packet = {packet} never comes with every = {every}; write 0 to {}", .every - 1)]
    BadPacket {
        /// What is written.
        packet: i64,
        /// The rule's period.
        every: i64,
    },
    /// A warning: choices that no rule takes.
    #[error("the rules leave {share} of new choices unmatched, which pass to the host; end with a rule of every = 1")]
    Unmatched {
        /// How many, exactly and in percent.
        share: String,
    },
    /// A warning: a rule behind one that takes everything.
    #[error("nothing reaches this rule: one before it takes every = 1")]
    UnreachableRule,
    /// No such interface, but one much like it.
    #[error("this host has no interface `{name}`; did you mean `{nearest}`?")]
    MisspeltInterface {
        /// The name.
        name: String,
        /// The one that was probably meant.
        nearest: String,
    },
    /// No such interface.
    #[error("this host has no interface `{name}`; it has {known}")]
    UnknownInterface {
        /// The name.
        name: String,
        /// All it has.
        known: String,
    },
    /// A label of addresses where an interface is asked for.
    #[error("`{name}` is a label of addresses on {interface}; write {}", all_of(interface, *.is_listener))]
    LabelledInterface {
        /// The label.
        name: String,
        /// The interface that has such addresses.
        interface: String,
        /// Whether a listener names it, for which an address would do as well.
        is_listener: bool,
    },
    /// A limit the layout has no room for.
    #[error(
        "limits.{limit} = {value} is out of range{}; write 1 to {max}, which takes {}",
        .bytes.map_or_else(String::new, |bytes| format!(" and would take {} of memory for all maps", readable(bytes))),
        readable(*.bytes_at_max)
    )]
    BadLimit {
        /// The key.
        limit: &'static str,
        /// What is written.
        value: i64,
        /// Memory of all maps at this value, where maps could be that large.
        bytes: Option<u64>,
        /// The largest value.
        max: u32,
        /// Memory of all maps at the largest value.
        bytes_at_max: u64,
    },
    /// More is configured than there may be.
    #[error(
        "{needed} {things} are more than limits.{limit} = {value}; raise it to {needed} or more ({} of memory for all maps)",
        readable(*.bytes)
    )]
    OverLimit {
        /// How many are configured.
        needed: u64,
        /// What is counted.
        things: &'static str,
        /// The key.
        limit: &'static str,
        /// Its value.
        value: u32,
        /// Memory that all maps would take.
        bytes: u64,
    },
    /// More is configured than there can be.
    #[error(
        "{needed} {things} would take {} of memory for all maps and are more than the {max} that there can be; \
         configure at most {max}",
        readable(*.bytes)
    )]
    BeyondLayout {
        /// How many are configured.
        needed: u64,
        /// What is counted.
        things: &'static str,
        /// The most.
        max: u32,
        /// Memory that all maps would take.
        bytes: u64,
    },
    /// One service with more slots than one value of the map has.
    #[error("the weights need {needed} slots, and a service has at most {most}; use smaller weights")]
    TooManySlots {
        /// Slots after the weights were reduced.
        needed: u64,
        /// Slots there can be.
        most: u32,
    },
}

fn all_of(interface: &str, is_listener: bool) -> String {
    if is_listener {
        format!("interface = \"{interface}\" for all of them, or the address itself")
    } else {
        format!("interfaces = [\"{interface}\"]")
    }
}

impl What {
    /// Whether the configuration can be used all the same.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::NoBackendOfFamily { .. } | Self::Unmatched { .. } | Self::UnreachableRule)
    }
}
