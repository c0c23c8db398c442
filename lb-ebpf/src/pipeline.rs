//! The story of a packet. It calls the stages and does nothing else.
//!
//! ```text
//! parse → frontend → flow → select → rewrite → forward          (towards a backend)
//! parse → flow (client side of the key) → rewrite → forward      (reply)
//! ```
//!
//! Rare work runs in programs of its own: [`balance`] says with [`Step`] when [`begin_flow`] or [`query`] must go on, to
//! which it hands over the frontend, and
//! [`crate::too_big`] answers what any of them refuses with [`Reason::TooBig`].

use lb_common::{
    addr::Protocol,
    backend::{BackendId, BackendState, Endpoint, Way},
    device::Abilities,
    flow::Client,
    fragment::FragmentRecord,
    reason::Reason,
    selector::Slot,
    service::{Frontend, FrontendId, Policy, SocketKey},
    stats::{ServiceStats, Traffic},
};

use crate::{
    flow::{self, Begun, state::From},
    fragment,
    hop::{self, Hop},
    kernel::{Kernel, RouteQuery},
    lookup,
    packet::{Edit, Link, Packet, Side, TransportEdit},
    parse::{Fragment, Parsed},
    reply::{self, Asked},
    select::{Chooser, TRIES, Ticket},
};

/// What is to be done with a packet that is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is rewritten: send it on.
    Send(Exit),
    /// It opens a flow: go on with [`begin_flow`].
    NewFlow,
    /// It is a query of a per-packet service: go on with [`query`].
    Query,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Through the host's stack.
    Stack,
    /// Out of a device whose neighbour the kernel looks up.
    Neighbour {
        /// The device.
        ifindex: u32,
    },
    /// Through a veth into the namespace behind it.
    Peer {
        /// This end of the veth.
        ifindex: u32,
    },
    /// Out of a device, its link-layer header being right already.
    Link {
        /// The device.
        ifindex: u32,
    },
    /// Not by this hook: a later one sends it, which is told what was decided here.
    Later(Decided),
}

/// Where a packet goes that a later hook sends. One word, like what other exits hold: the compiler would keep the second one
/// of those that have none, which no one has set, and the verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided(pub u32);

impl Decided {
    /// Nothing that the later hook would not find again.
    pub const NOTHING: Self = Self(0);
    /// No rule takes it. No backend has this number.
    pub const UNMATCHED: Self = Self(u32::MAX);

    /// This backend gets it.
    #[inline(always)]
    pub const fn on(backend: BackendId) -> Self {
        Self(backend.0)
    }

    /// Whether the later hook has to be told.
    #[inline(always)]
    pub const fn is_told(self) -> bool {
        self.0 != Self::NOTHING.0
    }
}

/// On which side of the stack a reply was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It came in from the backend.
    Ingress,
    /// The stack sends it towards the client.
    Egress,
}

/// A packet that may go to a frontend.
///
/// # Errors
/// Why it is not balanced; [`Reason::NotOurs`] when it goes to no frontend.
#[inline(always)]
pub fn balance<P: Packet, K: Kernel>(packet: &mut P, kernel: &K, parsed: &Parsed) -> Result<Step, Reason> {
    if !packet.is_to_device() {
        return Err(Reason::NotOurs);
    }
    if parsed.fragment == Fragment::Later {
        let record = fragment::follow(kernel, parsed)?;
        if record.direction != FragmentRecord::FORWARD {
            return Err(Reason::NotOurs);
        }
        let backend = kernel.backend(record.backend).ok_or(Reason::Inconsistent)?;
        if !serves_old(BackendState::from_word(backend.state), backend.key.protocol) {
            return Err(Reason::FragmentUnknown);
        }
        return send(packet, kernel, parsed, record.frontend, record.backend, 0).map(Step::Send);
    }
    let frontend = lookup::frontend(kernel, parsed)?;
    if parsed.protocol == Protocol::UDP && lookup::is_per_packet(kernel, &frontend)? {
        kernel.hand_over(&frontend);
        return Ok(Step::Query);
    }
    let Some(found) = flow::find_by_frontend(kernel, sender(parsed), frontend.frontend) else {
        return opening(kernel, parsed, &frontend);
    };
    let backend = kernel.backend(found.backend).ok_or(Reason::Inconsistent)?;
    let state = BackendState::from_word(backend.state);
    if found.opens_anew(parsed.flags, state) || !serves_old(state, parsed.protocol) {
        found.retire(kernel, kernel.now());
        return opening(kernel, parsed, &frontend);
    }
    found.note(kernel.now(), From::Client, parsed.flags);
    send(packet, kernel, parsed, frontend.frontend, found.backend, 0).map(Step::Send)
}

/// A packet for which an earlier hook decided.
///
/// # Errors
/// Why it is not balanced.
#[inline(always)]
pub fn carry_on<P: Packet, K: Kernel>(
    packet: &mut P,
    kernel: &K,
    parsed: &Parsed,
    decided: Decided,
) -> Result<Exit, Reason> {
    let frontend = lookup::frontend(kernel, parsed)?;
    if decided == Decided::UNMATCHED {
        return Err(Reason::NoRuleMatched);
    }
    send(packet, kernel, parsed, frontend.frontend, BackendId(decided.0), 0)
}

/// A packet that opens a flow; [`balance`] has just said so.
///
/// # Errors
/// Why it is not balanced.
#[inline(always)]
pub fn begin_flow<P: Packet, K: Kernel>(packet: &mut P, kernel: &K, parsed: &Parsed) -> Result<Exit, Reason> {
    let frontend = kernel.handed_over().ok_or(Reason::Inconsistent)?;
    let policy = lookup::policy(kernel, &frontend)?;
    let first = flow::state::first(parsed.protocol, parsed.flags).ok_or(Reason::NoFlow)?;
    check_source(parsed)?;
    let chooser = chooser(kernel, &frontend, policy)?;
    let begun = flow::begin(kernel, sender(parsed), frontend.frontend, first, &chooser)?;
    let (drawn, result) = match begun {
        Begun::Unmatched => {
            kernel.count_service(frontend.service, &ticket(0, 0, 1));
            return unmatched::<P>();
        }
        Begun::Known(backend) => {
            // It may have been removed since, and the flow been found only now.
            let record = kernel.backend(backend).ok_or(Reason::Inconsistent)?;
            let is_served = serves_old(BackendState::from_word(record.state), parsed.protocol);
            (ServiceStats::default(), if is_served { Ok((backend, 0)) } else { Err(Reason::Contention) })
        }
        Begun::Made { backend, is_diverted } => match refuse_mixed(kernel, parsed, &frontend, policy, backend) {
            Ok(()) => (ticket(is_diverted as u64, 0, 0), Ok((backend, 1))),
            Err(reason) => (ticket(0, 1, 0), Err(reason)),
        },
        Begun::Clash => (ticket(0, 1, 0), Err(Reason::Clash)),
    };
    let sent = match result {
        Ok((backend, choices)) => send(packet, kernel, parsed, frontend.frontend, backend, choices),
        Err(reason) => Err(reason),
    };
    kernel.count_service(frontend.service, &came_to_nothing(drawn, &sent));
    sent
}

/// A query of a per-packet service; [`balance`] has just said so.
///
/// # Errors
/// Why it is not balanced.
#[inline(always)]
pub fn query<P: Packet, K: Kernel>(packet: &mut P, kernel: &K, parsed: &Parsed) -> Result<Exit, Reason> {
    check_source(parsed)?;
    let frontend = kernel.handed_over().ok_or(Reason::Inconsistent)?;
    let policy = lookup::policy(kernel, &frontend)?;
    let chooser = chooser(kernel, &frontend, policy)?;
    let Ticket::Position(position) = chooser.draw() else {
        kernel.count_service(frontend.service, &ticket(0, 0, 1));
        return unmatched::<P>();
    };
    let mut tries = 0;
    let mut clashes = 0;
    while tries < TRIES.get() {
        tries += 1;
        let slot = chooser.slot(position, clashes);
        let refused = match reply::ask(kernel, sender(parsed), slot.endpoint, frontend.frontend) {
            // Looked up after it was noted, as a new flow looks for notes after it was made: one of the two sees the other.
            Asked::Noted if policy.is_mixed() && has_flow_of_another(kernel, parsed, &frontend, slot) => {
                reply::take_back(kernel, sender(parsed), slot.endpoint, frontend.frontend);
                clashes += 1;
                continue;
            }
            Asked::Noted => {
                let sent = send(packet, kernel, parsed, frontend.frontend, slot.backend, 1);
                let drawn = ticket((clashes > 0) as u64, 0, 0);
                kernel.count_service(frontend.service, &came_to_nothing(drawn, &sent));
                return sent;
            }
            Asked::Clash => {
                clashes += 1;
                continue;
            }
            Asked::Lost => continue,
            Asked::NoRoom => Reason::ReplyTableFull,
            Asked::Inconsistent => Reason::Inconsistent,
        };
        kernel.count_service(frontend.service, &ticket(0, 1, 0));
        return Err(refused);
    }
    kernel.count_service(frontend.service, &ticket(0, 1, 0));
    Err(if clashes > 0 { Reason::Clash } else { Reason::Contention })
}

/// A choice that no rule takes. The later hook counts the packet, and must not draw a ticket for it once more.
#[inline(always)]
fn unmatched<P: Packet>() -> Result<Exit, Reason> {
    if P::IS_EARLY { Ok(Exit::Later(Decided::UNMATCHED)) } else { Err(Reason::NoRuleMatched) }
}

/// Takes a new flow back, if its backend has still to answer a query of this client and port for another frontend: the
/// answer would be taken for one of the flow's.
#[inline(always)]
fn refuse_mixed<K: Kernel>(
    kernel: &K,
    parsed: &Parsed,
    frontend: &Frontend,
    policy: &Policy,
    backend: BackendId,
) -> Result<(), Reason> {
    if !policy.is_mixed() || parsed.protocol != Protocol::UDP {
        return Ok(());
    }
    let endpoint = kernel.backend(backend).ok_or(Reason::Inconsistent)?.endpoint;
    if !reply::is_asked_by_another(kernel, sender(parsed), endpoint, frontend.frontend).ok_or(Reason::Inconsistent)? {
        return Ok(());
    }
    if let Some(found) = flow::find_by_frontend(kernel, sender(parsed), frontend.frontend) {
        found.evict(kernel);
    }
    Err(Reason::Clash)
}

/// Whether a backend still knows this client and port by a flow of another frontend, for which its answer to a query
/// would be taken.
#[inline(always)]
fn has_flow_of_another<K: Kernel>(kernel: &K, parsed: &Parsed, frontend: &Frontend, slot: Slot) -> bool {
    flow::find_by_endpoint(kernel, sender(parsed), slot.endpoint)
        .is_some_and(|found| found.frontend != frontend.frontend)
}

/// A packet that may come from a backend.
///
/// # Errors
/// Why it is not balanced; [`Reason::NotOurs`] when it answers nothing that went through a frontend.
#[inline(always)]
pub fn answer<P: Packet, K: Kernel>(packet: &mut P, kernel: &K, parsed: &Parsed, hook: Hook) -> Result<Exit, Reason> {
    let (frontend, backend) = match parsed.fragment {
        Fragment::Later => {
            let record = fragment::follow(kernel, parsed)?;
            if record.direction != FragmentRecord::REPLY {
                return Err(Reason::NotOurs);
            }
            (record.frontend, record.backend)
        }
        Fragment::Whole | Fragment::First => {
            let endpoint = kernel.endpoint(&parsed.source_key()).ok_or(Reason::NotOurs)?;
            asked_through(kernel, parsed, &endpoint)?
        }
    };
    let way = Way::from_word(kernel.backend(backend).ok_or(Reason::Inconsistent)?.way);
    if way == Way::Stack && hook == Hook::Ingress {
        // The stack may put the datagram together before it sends it on, so each hook keeps its own account.
        fragment::remember(kernel, parsed, FragmentRecord::REPLY, frontend, backend);
        // It is rewritten where the stack sends it on; before that, routing and filters must see the backend's address.
        return Ok(Exit::Stack);
    }
    let info = kernel.frontend_info(frontend).ok_or(Reason::Inconsistent)?;
    send_back(packet, kernel, parsed, &info.key, frontend, backend, hook)
}

/// Which frontend and backend a reply belongs to.
#[inline(always)]
fn asked_through<K: Kernel>(
    kernel: &K,
    parsed: &Parsed,
    endpoint: &Endpoint,
) -> Result<(FrontendId, BackendId), Reason> {
    if endpoint.flags & Endpoint::FLOWS != 0
        && let Some(found) = flow::find_by_endpoint(kernel, receiver(parsed), endpoint.id)
    {
        found.note(kernel.now(), From::Backend, parsed.flags);
        return Ok((found.frontend, found.backend));
    }
    if endpoint.flags & Endpoint::REPLIES != 0
        && parsed.protocol == Protocol::UDP
        && let Some(frontend) = reply::answer(kernel, receiver(parsed), endpoint.id)
    {
        return Ok((frontend, endpoint.backend));
    }
    Err(Reason::NotOurs)
}

/// Rewrites a packet towards a backend and says how it leaves. `choices` is what it adds to the backend's count of them.
#[inline(always)]
fn send<P: Packet, K: Kernel>(
    packet: &mut P,
    kernel: &K,
    parsed: &Parsed,
    frontend: FrontendId,
    backend_id: BackendId,
    choices: u64,
) -> Result<Exit, Reason> {
    let backend = kernel.backend(backend_id).ok_or(Reason::Inconsistent)?;
    let leaving = match Way::from_word(backend.way) {
        // Who is behind a veth takes whatever came in here.
        Way::Peer { ifindex } => Leaving::by(Door::Peer, ifindex),
        way @ (Way::Neighbour { .. } | Way::Stack) => {
            // Through the stack the routes choose.
            let through = if let Way::Neighbour { ifindex } = way { ifindex } else { 0 };
            let (source, destination) = (parsed.source, backend.key.address);
            let query = RouteQuery { family: parsed.family, source, destination, through };
            let hop = hop::to_backend(kernel, backend_id, &query, P::IS_EARLY);
            match (way, hop) {
                (Way::Neighbour { .. }, Ok(hop)) => Leaving::to(hop),
                // Where the routes say nothing, as on a host that does not forward, the kernel still knows the neighbour.
                (Way::Neighbour { ifindex }, Err(_)) => Leaving::by(Door::Neighbour, ifindex),
                // The stack would show the sender what it never sent, were the packet too big.
                (_, Ok(hop)) => Leaving { mtu: hop.mtu, ..Leaving::by(Door::Stack, 0) },
                (_, Err(_)) => Leaving::by(Door::Stack, 0),
            }
        }
    };
    if !leaving.can_be_sent(packet, parsed) {
        kernel.count_traffic(backend_id, &Traffic { choices, ..Traffic::default() });
        // What has no ports follows the record of what had them at the later hook as well.
        let decided = if parsed.has_transport() { Decided::on(backend_id) } else { Decided::NOTHING };
        return Ok(Exit::Later(decided));
    }
    let is_hop = leaving.by != Door::Stack;
    if is_hop && parsed.hop_limit <= 1 {
        return Err(Reason::HopLimit);
    }
    check_size(packet, kernel, parsed, &leaving)?;
    fragment::remember(kernel, parsed, FragmentRecord::FORWARD, frontend, backend_id);
    let traffic =
        Traffic { choices, packets_in: packet.segments(), bytes_in: parsed.length as u64, ..Traffic::default() };
    leaving.set_link(packet)?;
    packet.rewrite(&edit(parsed, Side::Destination, &backend.key, is_hop))?;
    kernel.count_traffic(backend_id, &traffic);
    Ok(leaving.exit())
}

/// Rewrites a reply and says how it leaves.
#[inline(always)]
fn send_back<P: Packet, K: Kernel>(
    packet: &mut P,
    kernel: &K,
    parsed: &Parsed,
    asked: &SocketKey,
    frontend: FrontendId,
    backend: BackendId,
    hook: Hook,
) -> Result<Exit, Reason> {
    // The hop is asked for before the rewrite, so that a reply that cannot leave is not changed.
    let leaving = match hook {
        Hook::Egress => Leaving::by(Door::Stack, 0),
        Hook::Ingress => {
            let (source, destination) = (asked.address, parsed.destination);
            let query = RouteQuery { family: parsed.family, source, destination, through: 0 };
            match hop::to_client(kernel, frontend, &query, P::IS_EARLY) {
                Ok(hop) => Leaving::to(hop),
                Err(_) if P::IS_EARLY => return Ok(Exit::Later(Decided::NOTHING)),
                Err(_) => return Err(Reason::NoRoute),
            }
        }
    };
    if !leaving.can_be_sent(packet, parsed) {
        return Ok(Exit::Later(Decided::NOTHING));
    }
    let is_hop = hook == Hook::Ingress;
    if is_hop && parsed.hop_limit <= 1 {
        return Err(Reason::HopLimit);
    }
    check_size(packet, kernel, parsed, &leaving)?;
    fragment::remember(kernel, parsed, FragmentRecord::REPLY, frontend, backend);
    let traffic = Traffic { packets_out: packet.segments(), bytes_out: parsed.length as u64, ..Traffic::default() };
    leaving.set_link(packet)?;
    packet.rewrite(&edit(parsed, Side::Source, asked, is_hop))?;
    kernel.count_traffic(backend, &traffic);
    Ok(leaving.exit())
}

/// The kind of an [`Exit`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Stack,
    Neighbour,
    Peer,
    Link,
}

/// How a packet leaves, and what that demands of it.
///
/// The exit is in two parts, both of which are always set: the compiler would keep the device of an exit that has none, and
/// the verifier refuses to see kept what no one has set.
struct Leaving {
    by: Door,
    /// The device; zero for the stack.
    ifindex: u32,
    /// The largest packet that fits, in bytes from the IP header on.
    mtu: u32,
    /// For [`Exit::Link`].
    link: Link,
    abilities: Abilities,
}

impl Leaving {
    #[inline(always)]
    fn by(by: Door, ifindex: u32) -> Self {
        Self { by, ifindex, mtu: u32::MAX, link: Link::default(), abilities: Abilities::default() }
    }

    #[inline(always)]
    fn to(hop: Hop) -> Self {
        let Hop { ifindex, mtu, link, abilities, .. } = hop;
        let is_kernels = !hop.is_resolved || hop.is_reminder;
        Self { by: if is_kernels { Door::Neighbour } else { Door::Link }, ifindex, mtu, link, abilities }
    }

    #[inline(always)]
    fn exit(&self) -> Exit {
        let ifindex = self.ifindex;
        match self.by {
            Door::Stack => Exit::Stack,
            Door::Neighbour => Exit::Neighbour { ifindex },
            Door::Peer => Exit::Peer { ifindex },
            Door::Link => Exit::Link { ifindex },
        }
    }

    /// Whether the hook that has the packet can send it; an early one leaves to later ones what it cannot.
    #[inline(always)]
    fn can_be_sent<P: Packet>(&self, packet: &P, parsed: &Parsed) -> bool {
        !P::IS_EARLY
            || self.by == Door::Link && packet.can_be_handed(parsed, self.abilities) && self.fits(packet, parsed)
    }

    #[inline(always)]
    fn fits(&self, packet: &impl Packet, parsed: &Parsed) -> bool {
        packet.largest(parsed) <= self.mtu as usize
    }

    #[inline(always)]
    fn set_link(&self, packet: &mut impl Packet) -> Result<(), Reason> {
        match self.by {
            Door::Link => packet.set_link(&self.link),
            Door::Stack | Door::Neighbour | Door::Peer => Ok(()),
        }
    }
}

/// Refuses what does not fit, before anything of it is changed: the answer shows its sender what it sent.
#[inline(always)]
fn check_size(packet: &impl Packet, kernel: &impl Kernel, parsed: &Parsed, leaving: &Leaving) -> Result<(), Reason> {
    if leaving.fits(packet, parsed) {
        return Ok(());
    }
    kernel.note_mtu(leaving.mtu);
    Err(Reason::TooBig)
}

#[inline(always)]
fn edit(parsed: &Parsed, side: Side, new: &SocketKey, is_hop: bool) -> Edit {
    let (old_address, old_port) = match side {
        Side::Source => (parsed.source, parsed.source_port),
        Side::Destination => (parsed.destination, parsed.destination_port),
    };
    let transport =
        TransportEdit { offset: parsed.transport_offset(), protocol: parsed.protocol, old_port, new_port: new.port };
    let has_transport = parsed.has_transport();
    Edit { family: parsed.family, side, old_address, new_address: new.address, is_hop, has_transport, transport }
}

/// Refuses what a router would not forward, before a ticket is drawn for it.
#[inline(always)]
fn check_source(parsed: &Parsed) -> Result<(), Reason> {
    if parsed.source.is_forwardable_source() { Ok(()) } else { Err(Reason::SourceScope) }
}

/// A packet without a flow: it opens one, or it is the stack's, which may know it or answers with a reset.
#[inline(always)]
fn opening(kernel: &impl Kernel, parsed: &Parsed, frontend: &Frontend) -> Result<Step, Reason> {
    if flow::state::first(parsed.protocol, parsed.flags).is_none() {
        return Err(Reason::NoFlow);
    }
    kernel.hand_over(frontend);
    Ok(Step::NewFlow)
}

#[inline(always)]
fn serves_old(state: BackendState, protocol: Protocol) -> bool {
    match state {
        BackendState::Use | BackendState::Drain => true,
        BackendState::UdpGone => protocol == Protocol::TCP,
        BackendState::Dead => false,
    }
}

#[inline(always)]
fn chooser<'k>(kernel: &'k impl Kernel, frontend: &Frontend, policy: &Policy) -> Result<Chooser<'k>, Reason> {
    let cursor = kernel.cursor(frontend.service).ok_or(Reason::Inconsistent)?;
    let slots = kernel.slots(policy.slots_chunk).ok_or(Reason::Inconsistent)?;
    Chooser::new(policy, cursor, slots, kernel).ok_or(Reason::Inconsistent)
}

/// What a ticket is counted as once it is known whether the packet could be sent.
#[inline(always)]
fn came_to_nothing(drawn: ServiceStats, sent: &Result<Exit, Reason>) -> ServiceStats {
    match sent {
        Ok(_) => drawn,
        // Refused or unmatched already, or never drawn.
        Err(_) if drawn.refused + drawn.unmatched == drawn.tickets => drawn,
        Err(_) => ticket(0, 1, 0),
    }
}

#[inline(always)]
const fn ticket(diverted: u64, refused: u64, unmatched: u64) -> ServiceStats {
    ServiceStats { tickets: 1, diverted, refused, unmatched }
}

#[inline(always)]
fn sender(parsed: &Parsed) -> Client {
    Client { address: parsed.source, port: parsed.source_port, protocol: parsed.protocol }
}

#[inline(always)]
fn receiver(parsed: &Parsed) -> Client {
    Client { address: parsed.destination, port: parsed.destination_port, protocol: parsed.protocol }
}

#[cfg(test)]
mod tests;
