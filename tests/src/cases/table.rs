//! The case table.

use std::net::SocketAddr;

use lb_common::{
    addr::Protocol,
    backend::{BackendState, Way},
    reason::Reason,
};

use super::{Case, Handed, LAB, MTU, MUTE, REPLY_LINK, REPLY_MTU, STRANGE, UDP};
use crate::packet::{Packet, eth};

/// Bytes before the IP header.
const ETHERNET: usize = 14;
const CLIENT4: &str = "10.9.0.1";
const FRONTEND4: &str = "10.9.0.2";
const BACKEND4: &str = "10.100.13.2";
const CLIENT6: &str = "fd00:9::1";
const FRONTEND6: &str = "fd00:9::2";
const BACKEND6: &str = "fd00:100:13::2";

/// One family's addresses, so that a case is written once for both.
#[derive(Clone, Copy)]
struct Ends {
    client: &'static str,
    frontend: &'static str,
    backend: &'static str,
    other_backend: &'static str,
    other_frontend: &'static str,
    unforwarded: &'static str,
}

const V4: Ends = Ends {
    client: CLIENT4,
    frontend: FRONTEND4,
    backend: BACKEND4,
    other_backend: "10.100.13.3",
    other_frontend: "10.9.0.3",
    unforwarded: "127.0.0.1",
};
const V6: Ends = Ends {
    client: CLIENT6,
    frontend: FRONTEND6,
    backend: BACKEND6,
    other_backend: "fd00:100:13::3",
    other_frontend: "fd00:9::3",
    unforwarded: "fe80::1",
};

impl Ends {
    fn service(&self, rest: &str) -> String {
        format!(
            "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\", \"tcp\"] }}]\n{rest}",
            self.frontend
        )
    }

    fn one_backend(&self, rest: &str) -> String {
        self.service(&format!("backends = [\"{}\"]\n{rest}", self.backend))
    }

    fn two_backends(&self, rest: &str) -> String {
        self.service(&format!("backends = [\"{}\", \"{}\"]\n{rest}", self.backend, self.other_backend))
    }

    fn query(&self) -> Packet {
        eth().between(self.client, self.frontend)
    }

    fn forwarded(&self) -> Packet {
        eth().between(self.client, self.backend).hops(63)
    }

    fn answer(&self) -> Packet {
        eth().between(self.backend, self.client)
    }

    fn returned(&self) -> Packet {
        eth().between(self.frontend, self.client).hops(63).link(REPLY_LINK.0, REPLY_LINK.1)
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (ends, name) in [
        (V4, (|four: &'static str, _six: &'static str| four) as fn(&'static str, &'static str) -> &'static str),
        (V6, |_four, six| six),
    ] {
        cases.extend(translation(&ends, name));
        cases.extend(flows(&ends, name));
        cases.extend(per_packet(&ends, name));
        cases.extend(schedules(&ends, name));
        cases.extend(stack(&ends, name));
        cases.extend(fragments(&ends, name));
        cases.extend(refusals(&ends, name));
        cases.extend(sizes(&ends, name));
        cases.extend(early(&ends, name));
        cases.extend(early_refusals(&ends, name));
    }
    cases.extend(ipv4_only());
    cases.extend(ipv6_only());
    cases
}

type Name = fn(&'static str, &'static str) -> &'static str;

fn translation(ends: &Ends, name: Name) -> Vec<Case> {
    vec![
        Case::new(name("udp over v4 is translated to its backend", "udp over v6 is translated to its backend"))
            .given(&ends.one_backend(""))
            .packet(ends.query().udp(4000, 53).payload(b"query"))
            .sends(ends.forwarded().udp(4000, 53).payload(b"query")),
        Case::new(name("tcp over v4 is translated to its backend", "tcp over v6 is translated to its backend"))
            .given(&ends.one_backend(""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn()),
        Case::new(name("a backend on another port gets it there, v4", "a backend on another port gets it there, v6"))
            .given(&ends.service(&format!(
                "backends = [\"{}\"]",
                SocketAddr::new(ends.backend.parse().expect("an address"), 5353)
            )))
            .packet(ends.query().udp(4000, 53).payload(b"odd"))
            .sends(ends.forwarded().udp(4000, 5353).payload(b"odd"))
            .reply(ends.answer().udp(5353, 4000).payload(b"even"))
            .sends(ends.returned().udp(53, 4000).payload(b"even")),
        Case::new(name(
            "a udp sum that comes out as zero is sent as all ones, v4",
            "a udp sum that comes out as zero is sent as all ones, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().udp(4000, 53).payload(&completing(ends)))
        .sends(ends.forwarded().udp(4000, 53).payload(&completing(ends))),
        Case::new(name("a udp answer carries the frontend, v4", "a udp answer carries the frontend, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().udp(4000, 53).payload(b"query"))
            .sends(ends.forwarded().udp(4000, 53).payload(b"query"))
            .reply(ends.answer().udp(53, 4000).payload(b"answer"))
            .sends(ends.returned().udp(53, 4000).payload(b"answer")),
        Case::new(name("a tcp answer carries the frontend, v4", "a tcp answer carries the frontend, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .reply(ends.answer().tcp(53, 4000).flags(0x12))
            .sends(ends.returned().tcp(53, 4000).flags(0x12))
            .packet(ends.query().tcp(4000, 53))
            .sends(ends.forwarded().tcp(4000, 53)),
        Case::new(name("one hook for both directions does both, v4", "one hook for both directions does both, v6"))
            .given(&ends.one_backend(""))
            .packet_at_both(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet_at_both(ends.answer().udp(53, 4000))
            .sends(ends.returned().udp(53, 4000)),
        Case::new(name("the last hop but one is used up, v4", "the last hop but one is used up, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().udp(4000, 53).hops(2))
            .sends(ends.forwarded().udp(4000, 53).hops(1))
            .packet(ends.query().udp(4001, 53).hops(1))
            .is(Reason::HopLimit)
            .reply(ends.answer().udp(53, 4000).hops(1))
            .is(Reason::HopLimit),
    ]
}

/// A payload with which the datagram that a backend gets adds up to zero.
fn completing(ends: &Ends) -> Vec<u8> {
    let blank = ends.forwarded().udp(4000, 53).payload(&[0; 2]).bytes();
    let at = blank.len() - 4;
    blank[at..at + 2].to_vec()
}

fn sizes(ends: &Ends, name: Name) -> Vec<Case> {
    let room = usize::from(REPLY_MTU) + ETHERNET - ends.answer().tcp(53, 4000).bytes().len();
    let segment = |bytes: usize| ends.answer().tcp(53, 4000).flags(0x12).payload(&vec![7; bytes]);
    let datagram = ends.answer().udp(53, 4000).payload(&[7; 1600]);
    let with_more_headers = ends.answer().options(10).extension(60).extension(60).tcp(53, 4000).payload(&[7; 1600]);
    let later = ends.answer().later_fragment(99, 8, UDP).payload(&[7; 1600]);
    vec![
        Case::new(name(
            "a segment that is too big for its client is told of to its backend, v4",
            "a segment that is too big for its client is told of to its backend, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().tcp(4000, 53).syn())
        .sends(ends.forwarded().tcp(4000, 53).syn())
        .reply(segment(room))
        .sends(ends.returned().tcp(53, 4000).flags(0x12).payload(&vec![7; room]))
        .reply(segment(room + 1))
        .is_answered_as_too_big(&segment(room + 1), REPLY_MTU)
        .reply(with_more_headers.clone())
        .is_answered_as_too_big(&with_more_headers, REPLY_MTU),
        Case::new(name(
            "a datagram that is too big for its client is told of to its backend, v4",
            "a datagram that is too big for its client is told of to its backend, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().udp(4000, 53).payload(b"query"))
        .sends(ends.forwarded().udp(4000, 53).payload(b"query"))
        .reply(datagram.clone())
        .is_answered_as_too_big(&datagram, REPLY_MTU)
        .reply(datagram.clone().link([1, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 1]))
        .is(Reason::TooBig)
        .reply(ends.answer().first_fragment(99).udp(53, 4000))
        .sends(ends.returned().first_fragment(99).udp(53, 4000))
        .reply(later)
        .is(Reason::TooBig),
    ]
}

fn flows(ends: &Ends, name: Name) -> Vec<Case> {
    let other = || eth().between(ends.client, ends.other_backend).hops(63);
    vec![
        Case::new(name("rr takes backends in turn and keeps flows, v4", "rr takes backends in turn and keeps flows, v6"))
            .given(&ends.two_backends("selector = \"rr\""))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet(ends.query().udp(4001, 53))
            .sends(other().udp(4001, 53))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet(ends.query().udp(4002, 53))
            .sends(ends.forwarded().udp(4002, 53)),
        Case::new(name("an nth chain leaves what no rule takes, v4", "an nth chain leaves what no rule takes, v6"))
            .given(&ends.service(&format!(
                "selector = \"nth\"\nrules = [{{ every = 3, packet = 1, backend = \"{}\" }}]",
                ends.backend
            )))
            .packet(ends.query().udp(4000, 53))
            .is(Reason::NoRuleMatched)
            .packet(ends.query().udp(4001, 53))
            .sends(ends.forwarded().udp(4001, 53))
            .packet(ends.query().udp(4002, 53))
            .is(Reason::NoRuleMatched)
            .packet(ends.query().udp(4000, 53))
            .is(Reason::NoRuleMatched)
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53)),
        Case::new(name("a segment of no known connection is the stack's, v4", "a segment of no known connection is the stack's, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().tcp(4000, 53))
            .is(Reason::NoFlow)
            .packet(ends.query().tcp(4000, 53).flags(0x12))
            .is(Reason::NoFlow),
        Case::new(name("a removed backend loses its udp flows at once, v4", "a removed backend loses its udp flows at once, v6"))
            .given(&ends.two_backends("selector = \"rr\""))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .backend_is(ends.backend, BackendState::UdpGone)
            .packet(ends.query().udp(4000, 53))
            .sends(other().udp(4000, 53))
        // The old backend's answer to the first query is late, and still must not leave with its own address.
        .reply(ends.answer().udp(53, 4000))
        .sends(ends.returned().udp(53, 4000))
            .packet(ends.query().tcp(4000, 53))
            .sends(ends.forwarded().tcp(4000, 53)),
        Case::new(name("a removed backend gets no connection that opens, v4", "a removed backend gets no connection that opens, v6"))
            .given(&ends.two_backends("selector = \"nth\""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .backend_is(ends.backend, BackendState::UdpGone)
            // Nobody has answered it, so the client asks again.
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(other().tcp(4000, 53).syn()),
        Case::new(name("a drained backend gets no reused port, v4", "a drained backend gets no reused port, v6"))
            .given(&ends.two_backends("selector = \"nth\""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .reply(ends.answer().tcp(53, 4000).flags(0x12))
            .sends(ends.returned().tcp(53, 4000).flags(0x12))
            .packet(ends.query().tcp(4000, 53))
            .sends(ends.forwarded().tcp(4000, 53))
            .backend_is(ends.backend, BackendState::Drain)
            .packet(ends.query().tcp(4000, 53))
            .sends(ends.forwarded().tcp(4000, 53))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(other().tcp(4000, 53).syn()),
        Case::new(name("a drained backend keeps its flows, v4", "a drained backend keeps its flows, v6"))
            .given(&ends.two_backends("selector = \"rr\""))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .backend_is(ends.backend, BackendState::Drain)
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53)),
        Case::new(name("a dead backend's connections are the stack's to reset, v4", "a dead backend's connections are the stack's to reset, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .backend_is(ends.backend, BackendState::Dead)
            .packet(ends.query().tcp(4000, 53))
            .is(Reason::NoFlow),
        Case::new(name("a port reused after a close is a new choice, v4", "a port reused after a close is a new choice, v6"))
            .given(&ends.two_backends("selector = \"rr\""))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .reply(ends.answer().tcp(53, 4000).flags(0x14))
            .sends(ends.returned().tcp(53, 4000).flags(0x14))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(other().tcp(4000, 53).syn()),
        Case::new(name("however seldom it is chosen, another backend takes what clashes, v4", "however seldom it is chosen, another backend takes what clashes, v6"))
            .given(&format!(
                "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}, \
                 {{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\nselector = \"nth\"\nrules = [{}{{ every = 1, packet = 0, \
                 backend = \"{}\" }}]",
                ends.frontend, ends.other_frontend,
                format!("{{ every = 1, packet = 0, backend = \"{}\" }}, ", ends.backend).repeat(16), ends.other_backend
            ))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet(eth().between(ends.client, ends.other_frontend).udp(4000, 53))
            .sends(other().udp(4000, 53)),
        Case::new(name("a second frontend's flow goes to another backend, v4", "a second frontend's flow goes to another backend, v6"))
            .given(&format!(
                "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}, \
                 {{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\nselector = \"nth\"\n\
                 rules = [{{ every = 1, packet = 0, backend = \"{}\" }}, {{ every = 1, packet = 0, backend = \"{}\" }}]",
                ends.frontend, ends.other_frontend, ends.backend, ends.other_backend
            ))
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .packet(eth().between(ends.client, ends.other_frontend).udp(4000, 53))
            .sends(other().udp(4000, 53)),
    ]
}

fn per_packet(ends: &Ends, name: Name) -> Vec<Case> {
    let other = || eth().between(ends.client, ends.other_backend).hops(63);
    let from_other = || eth().between(ends.other_backend, ends.client);
    let schedule = "selector = \"rr\"\nschedule = \"per-packet\"";
    vec![
        Case::new(name(
            "per packet, one socket's queries go to each in turn, v4",
            "per packet, one socket's queries go to each in turn, v6",
        ))
        .given(&ends.two_backends(schedule))
        .packet(ends.query().udp(4000, 53).payload(b"1"))
        .sends(ends.forwarded().udp(4000, 53).payload(b"1"))
        .packet(ends.query().udp(4000, 53).payload(b"2"))
        .sends(other().udp(4000, 53).payload(b"2"))
        .packet(ends.query().udp(4000, 53).payload(b"3"))
        .sends(ends.forwarded().udp(4000, 53).payload(b"3"))
        .reply(from_other().udp(53, 4000).payload(b"b"))
        .sends(ends.returned().udp(53, 4000).payload(b"b"))
        .reply(ends.answer().udp(53, 4000).payload(b"a"))
        .sends(ends.returned().udp(53, 4000).payload(b"a"))
        .reply(ends.answer().udp(53, 4000).payload(b"a, again"))
        .sends(ends.returned().udp(53, 4000).payload(b"a, again")),
        Case::new(name("per packet leaves tcp its connections, v4", "per packet leaves tcp its connections, v6"))
            .given(&ends.two_backends(schedule))
            .packet(ends.query().tcp(4000, 53).syn())
            .sends(ends.forwarded().tcp(4000, 53).syn())
            .packet(ends.query().tcp(4000, 53))
            .sends(ends.forwarded().tcp(4000, 53)),
        Case::new(name(
            "per packet, what nobody asked for is left alone, v4",
            "per packet, what nobody asked for is left alone, v6",
        ))
        .given(&ends.one_backend(schedule))
        .reply(ends.answer().udp(53, 4000))
        .is(Reason::NotOurs),
        Case::new(name(
            "per packet, a second frontend of one backend is refused, v4",
            "per packet, a second frontend of one backend is refused, v6",
        ))
        .given(&format!(
            "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}, \
                 {{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\nbackends = [\"{}\"]\n{schedule}",
            ends.frontend, ends.other_frontend, ends.backend
        ))
        .packet(ends.query().udp(4000, 53))
        .sends(ends.forwarded().udp(4000, 53))
        .packet(eth().between(ends.client, ends.other_frontend).udp(4000, 53))
        .is(Reason::Clash)
        .reply(ends.answer().udp(53, 4000))
        .sends(ends.returned().udp(53, 4000)),
    ]
}

fn schedules(ends: &Ends, name: Name) -> Vec<Case> {
    let other = || eth().between(ends.client, ends.other_backend).hops(63);
    let to_second = || eth().between(ends.client, ends.other_frontend);
    let both = |rest: &str| {
        format!(
            "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}, \
             {{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\nbackends = [\"{}\", \"{}\"]\nselector = \"nth\"\n{rest}",
            ends.frontend, ends.other_frontend, ends.backend, ends.other_backend
        )
    };
    vec![
        // The next choice would be the first backend, which still has a flow of this client through the first frontend.
        Case::new(name(
            "from per flow to per packet no answer is taken for another's, v4",
            "from per flow to per packet no answer is taken for another's, v6",
        ))
        .given(&both(""))
        .packet(ends.query().udp(4000, 53))
        .sends(ends.forwarded().udp(4000, 53))
        .packet(ends.query().udp(4001, 53))
        .sends(other().udp(4001, 53))
        .then_given(&both("schedule = \"per-packet\""))
        .packet(to_second().udp(4000, 53))
        .sends(other().udp(4000, 53))
        .reply(ends.answer().udp(53, 4000))
        .sends(ends.returned().udp(53, 4000)),
        // The next choice would be the first backend, which has still to answer this client's query through the first
        // frontend.
        Case::new(name(
            "from per packet to per flow no answer is taken for another's, v4",
            "from per packet to per flow no answer is taken for another's, v6",
        ))
        .given(&both("schedule = \"per-packet\""))
        .packet(ends.query().udp(4000, 53))
        .sends(ends.forwarded().udp(4000, 53))
        .packet(ends.query().udp(4001, 53))
        .sends(other().udp(4001, 53))
        .then_given(&both(""))
        .packet(to_second().udp(4000, 53))
        .is(Reason::Clash)
        .reply(ends.answer().udp(53, 4000))
        .sends(ends.returned().udp(53, 4000))
        .packet(to_second().udp(4000, 53))
        .sends(other().udp(4000, 53)),
    ]
}

fn stack(ends: &Ends, name: Name) -> Vec<Case> {
    vec![
        Case::new(name(
            "through the stack, both directions pass it, v4",
            "through the stack, both directions pass it, v6",
        ))
        .given(&ends.one_backend(""))
        .way(Way::Stack)
        .packet(ends.query().udp(4000, 53).payload(b"query"))
        .passes(ends.forwarded().hops(64).udp(4000, 53).payload(b"query"))
        .reply(ends.answer().udp(53, 4000).payload(b"answer"))
        .passes(ends.answer().udp(53, 4000).payload(b"answer"))
        .leaving(ends.answer().hops(63).udp(53, 4000).payload(b"answer"))
        .passes(eth().between(ends.frontend, ends.client).hops(63).udp(53, 4000).payload(b"answer")),
        Case::new(name(
            "a veth's peer gets it without a new link header, v4",
            "a veth's peer gets it without a new link header, v6",
        ))
        .given(&ends.one_backend(""))
        .way(Way::Peer { ifindex: 1 })
        .packet(ends.query().udp(4000, 53))
        .sends(ends.forwarded().udp(4000, 53)),
    ]
}

/// What XDP sends, and what it leaves to traffic control. A test run cannot hand the note on, so what follows at traffic
/// control is found anew.
fn early(ends: &Ends, name: Name) -> Vec<Case> {
    let by_lab = Way::Neighbour { ifindex: LAB };
    let linked = || ends.forwarded().link(REPLY_LINK.0, REPLY_LINK.1);
    let headers = ends.query().udp(4000, 53).bytes().len() - 14;
    let largest = vec![7; MTU as usize - headers];
    let too_big = vec![7; MTU as usize - headers + 1];
    vec![
        Case::new(name("xdp sends udp in both directions, v4", "xdp sends udp in both directions, v6"))
            .given(&ends.one_backend(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53).payload(b"query"))
            .sends(linked().udp(4000, 53).payload(b"query"))
            .early_reply(ends.answer().udp(53, 4000).payload(b"answer"))
            .sends(ends.returned().udp(53, 4000).payload(b"answer"))
            .early_packet(ends.query().udp(4000, 53).payload(b"again"))
            .sends(linked().udp(4000, 53).payload(b"again")),
        Case::new(name("xdp sends tcp in both directions, v4", "xdp sends tcp in both directions, v6"))
            .given(&ends.service(&format!(
                "backends = [\"{}\"]",
                SocketAddr::new(ends.backend.parse().expect("an address"), 5353)
            )))
            .way(by_lab)
            .early_packet_at_both(ends.query().tcp(4000, 53).syn())
            .sends(linked().tcp(4000, 5353).syn())
            .early_packet_at_both(ends.answer().tcp(5353, 4000).flags(0x12))
            .sends(ends.returned().tcp(53, 4000).flags(0x12))
            .early_packet_at_both(ends.query().tcp(4000, 53).payload(b"request"))
            .sends(linked().tcp(4000, 5353).payload(b"request")),
        Case::new(name(
            "xdp sends the queries of a socket in turn, v4",
            "xdp sends the queries of a socket in turn, v6",
        ))
        .given(&ends.two_backends("selector = \"rr\"\nschedule = \"per-packet\""))
        .way(by_lab)
        .early_packet(ends.query().udp(4000, 53))
        .sends(linked().udp(4000, 53))
        .early_packet(ends.query().udp(4000, 53))
        .sends(eth().between(ends.client, ends.other_backend).hops(63).link(REPLY_LINK.0, REPLY_LINK.1).udp(4000, 53))
        .early_reply(ends.answer().udp(53, 4000))
        .sends(ends.returned().udp(53, 4000)),
        Case::new(name(
            "xdp sends later fragments after the first, v4",
            "xdp sends later fragments after the first, v6",
        ))
        .given(&ends.one_backend(""))
        .way(by_lab)
        .early_packet(ends.query().first_fragment(99).udp(4000, 53).payload(&[7; 1000]))
        .sends(linked().first_fragment(99).udp(4000, 53).payload(&[7; 1000]))
        .early_packet(ends.query().later_fragment(99, 1008, UDP).payload(&[8; 600]))
        .sends(linked().later_fragment(99, 1008, UDP).payload(&[8; 600]))
        .early_reply(ends.answer().first_fragment(7).udp(53, 4000).payload(&[7; 1000]))
        .sends(ends.returned().first_fragment(7).udp(53, 4000).payload(&[7; 1000]))
        .early_reply(ends.answer().later_fragment(7, 1008, UDP).payload(&[8; 600]))
        .sends(ends.returned().later_fragment(7, 1008, UDP).payload(&[8; 600])),
        Case::new(name("xdp leaves what goes through the stack, v4", "xdp leaves what goes through the stack, v6"))
            .given(&ends.one_backend(""))
            .way(Way::Stack)
            .early_packet(ends.query().udp(4000, 53))
            .is_left(Handed::Told)
            .packet(ends.query().udp(4000, 53))
            .passes(ends.forwarded().hops(64).udp(4000, 53))
            .early_reply(ends.answer().udp(53, 4000))
            .is_left(Handed::Untold)
            .leaving(ends.answer().udp(53, 4000))
            .passes(eth().between(ends.frontend, ends.client).udp(53, 4000)),
        Case::new(name("xdp leaves what goes to a veth's peer, v4", "xdp leaves what goes to a veth's peer, v6"))
            .given(&ends.one_backend(""))
            .way(Way::Peer { ifindex: LAB })
            .early_packet(ends.query().udp(4000, 53))
            .is_left(Handed::Told)
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53))
            .early_reply(ends.answer().udp(53, 4000))
            .sends(ends.returned().udp(53, 4000)),
        Case::new(name(
            "xdp leaves what a device takes from no xdp program, v4",
            "xdp leaves what a device takes from no xdp program, v6",
        ))
        .given(&ends.one_backend(""))
        .way(Way::Neighbour { ifindex: MUTE })
        .early_packet(ends.query().udp(4000, 53))
        .is_left(Handed::Told)
        .packet(ends.query().udp(4000, 53))
        .sends(linked().udp(4000, 53)),
        Case::new(name("xdp leaves what has no known neighbour, v4", "xdp leaves what has no known neighbour, v6"))
            .given(&ends.one_backend(""))
            .way(Way::Neighbour { ifindex: STRANGE })
            .early_packet(ends.query().udp(4000, 53))
            .is_left(Handed::Told)
            .packet(ends.query().udp(4000, 53))
            .sends(ends.forwarded().udp(4000, 53)),
        Case::new(name("xdp leaves what does not fit, v4", "xdp leaves what does not fit, v6"))
            .given(&ends.one_backend(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53).payload(&largest))
            .sends(linked().udp(4000, 53).payload(&largest))
            .early_packet(ends.query().udp(4000, 53).payload(&too_big))
            .is_left(Handed::Told)
            .packet(ends.query().udp(4000, 53).payload(&too_big))
            .is_answered_as_too_big(&ends.query().udp(4000, 53).payload(&too_big), REPLY_MTU)
            .early_reply(ends.answer().udp(53, 4000).payload(&largest))
            .sends(ends.returned().udp(53, 4000).payload(&largest))
            .early_reply(ends.answer().udp(53, 4000).payload(&too_big))
            .is_left(Handed::Untold)
            .reply(ends.answer().udp(53, 4000).payload(&too_big))
            .is_answered_as_too_big(&ends.answer().udp(53, 4000).payload(&too_big), REPLY_MTU),
        Case::new(name("xdp leaves unfinished checksums, v4", "xdp leaves unfinished checksums, v6"))
            .given(&ends.one_backend(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53).payload(b"query").unfinished())
            .is_left(Handed::Told)
            .early_packet(ends.query().tcp(4000, 53).syn().unfinished())
            .is_left(Handed::Told)
            .early_packet(ends.query().tcp(4000, 53))
            .sends(linked().tcp(4000, 53))
            .early_reply(ends.answer().udp(53, 4000).payload(b"answer").unfinished())
            .is_left(Handed::Untold)
            .early_reply(ends.answer().tcp(53, 4000).flags(0x12).unfinished())
            .is_left(Handed::Untold),
    ]
}

/// What XDP does not balance: what is to be passed it passes uncounted, for traffic control sees it next.
fn early_refusals(ends: &Ends, name: Name) -> Vec<Case> {
    let by_lab = Way::Neighbour { ifindex: LAB };
    let linked = || ends.forwarded().link(REPLY_LINK.0, REPLY_LINK.1);
    let every_other = |schedule: &str| {
        let rule = format!("{{ every = 2, packet = 0, backend = \"{}\" }}", ends.backend);
        ends.service(&format!("selector = \"nth\"\n{schedule}\nrules = [{rule}]"))
    };
    vec![
        Case::new(name("xdp counts nothing that it passes, v4", "xdp counts nothing that it passes, v6"))
            .given(&ends.one_backend(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 54))
            .is(Reason::NotOurs)
            .early_packet(ends.query().link([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]).udp(4000, 53))
            .is(Reason::NotOurs)
            .early_reply(ends.answer().udp(53, 4000))
            .is(Reason::NotOurs)
            .early_packet(ends.query().tcp(4000, 53))
            .is(Reason::NoFlow)
            .early_packet(ends.query().later_fragment(98, 1008, UDP).payload(&[8; 600]))
            .is(Reason::FragmentUnknown)
            .early_packet(ends.query().raw(UDP).payload(&[0; 7]))
            .is(Reason::Truncated)
            .early_packet(eth().between(ends.unforwarded, ends.frontend).udp(4000, 53))
            .is(Reason::SourceScope),
        Case::new(name("xdp drops and counts what cannot go on, v4", "xdp drops and counts what cannot go on, v6"))
            .given(&ends.one_backend(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53).hops(2))
            .sends(linked().udp(4000, 53).hops(1))
            .early_packet(ends.query().udp(4000, 53).hops(1))
            .is(Reason::HopLimit)
            .early_reply(ends.answer().udp(53, 4000).hops(1))
            .is(Reason::HopLimit),
        Case::new(name("xdp drops what clashes, v4", "xdp drops what clashes, v6"))
            .given(&format!(
                "name = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}, \
                 {{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\nbackends = [\"{}\"]",
                ends.frontend, ends.other_frontend, ends.backend
            ))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53))
            .sends(linked().udp(4000, 53))
            .early_packet(eth().between(ends.client, ends.other_frontend).udp(4000, 53))
            .is(Reason::Clash),
        // Were it not told, traffic control would draw a second ticket for it.
        Case::new(name("xdp tells of a flow that no rule takes, v4", "xdp tells of a flow that no rule takes, v6"))
            .given(&every_other(""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53))
            .sends(linked().udp(4000, 53))
            .early_packet(ends.query().udp(4001, 53))
            .is_left(Handed::Told)
            .early_packet(ends.query().udp(4001, 53))
            .sends(linked().udp(4001, 53)),
        Case::new(name("xdp tells of a query that no rule takes, v4", "xdp tells of a query that no rule takes, v6"))
            .given(&every_other("schedule = \"per-packet\""))
            .way(by_lab)
            .early_packet(ends.query().udp(4000, 53))
            .sends(linked().udp(4000, 53))
            .early_packet(ends.query().udp(4000, 53))
            .is_left(Handed::Told)
            .early_packet(ends.query().udp(4000, 53))
            .sends(linked().udp(4000, 53)),
    ]
}

fn fragments(ends: &Ends, name: Name) -> Vec<Case> {
    let first = [7_u8; 1000];
    let rest = [8_u8; 600];
    vec![
        Case::new(name("later fragments follow the first, v4", "later fragments follow the first, v6"))
            .given(&ends.one_backend(""))
            .packet(ends.query().first_fragment(99).udp(4000, 53).payload(&first))
            .sends(ends.forwarded().first_fragment(99).udp(4000, 53).payload(&first))
            .packet(ends.query().later_fragment(99, 1008, UDP).payload(&rest))
            .sends(ends.forwarded().later_fragment(99, 1008, UDP).payload(&rest))
            .reply(ends.answer().first_fragment(7).udp(53, 4000).payload(&first))
            .sends(ends.returned().first_fragment(7).udp(53, 4000).payload(&first))
            .reply(ends.answer().later_fragment(7, 1008, UDP).payload(&rest))
            .sends(ends.returned().later_fragment(7, 1008, UDP).payload(&rest)),
        Case::new(name(
            "a fragment without its first is left alone, v4",
            "a fragment without its first is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().later_fragment(98, 1008, UDP).payload(&rest))
        .is(Reason::FragmentUnknown),
        Case::new(name(
            "a fragment to a removed backend is not sent, v4",
            "a fragment to a removed backend is not sent, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().first_fragment(97).udp(4000, 53).payload(&first))
        .sends(ends.forwarded().first_fragment(97).udp(4000, 53).payload(&first))
        .backend_is(ends.backend, BackendState::UdpGone)
        .packet(ends.query().later_fragment(97, 1008, UDP).payload(&rest))
        .is(Reason::FragmentUnknown),
    ]
}

fn refusals(ends: &Ends, name: Name) -> Vec<Case> {
    let query = ends.query().udp(4000, 53).payload(b"query");
    let length = query.bytes().len();
    vec![
        Case::new(name(
            "other ports, protocols and addresses are left alone, v4",
            "other ports, protocols and addresses are left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().udp(4000, 54))
        .is(Reason::NotOurs)
        .packet(ends.query().payload(b"no transport"))
        .is(Reason::NotOurs)
        .packet(eth().between(ends.client, ends.other_frontend).udp(4000, 53))
        .is(Reason::NotOurs)
        .reply(ends.answer().udp(53, 4000))
        .is(Reason::NotOurs)
        .reply(ends.answer().udp(54, 4000))
        .is(Reason::NotOurs),
        Case::new(name(
            "another host's packet and a group's are left alone, v4",
            "another host's packet and a group's are left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().link([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]).udp(4000, 53))
        .is(Reason::NotOurs)
        .packet(ends.query().link([0xff; 6], [2, 0, 0, 0, 0, 1]).udp(4000, 53))
        .is(Reason::NotOurs)
        .packet_at_both(ends.query().link([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]).udp(4000, 53))
        .is(Reason::NotOurs)
        // A backend's port at a bridge sees what is meant for the bridge.
        .packet(ends.query().udp(4000, 53))
        .sends(ends.forwarded().udp(4000, 53))
        .reply(ends.answer().link([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]).udp(53, 4000))
        .sends(ends.returned().udp(53, 4000)),
        Case::new(name(
            "a packet that ends before its frame does is judged by its own length, v4",
            "a packet that ends before its frame does is judged by its own length, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().raw(UDP).payload(&[0; 7]).padded(60))
        .is(Reason::Truncated)
        .packet(ends.query().raw(Protocol::TCP).payload(&[0; 19]).padded(60))
        .is(Reason::Truncated)
        .packet(ends.query().udp(4000, 53).padded(60))
        .sends(ends.forwarded().udp(4000, 53).padded(60)),
        Case::new(name(
            "a sender that no router forwards for is left alone, v4",
            "a sender that no router forwards for is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(eth().between(ends.unforwarded, ends.frontend).udp(4000, 53))
        .is(Reason::SourceScope)
        .packet(eth().between(ends.unforwarded, ends.frontend).tcp(4000, 53).syn())
        .is(Reason::SourceScope),
        Case::new(name(
            "a packet cut within its headers is left alone, v4",
            "a packet cut within its headers is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().raw(UDP).payload(&[0; 7]))
        .is(Reason::Truncated)
        .packet(ends.query().raw(Protocol::TCP).payload(&[0; 19]))
        .is(Reason::Truncated),
        Case::new(name(
            "a packet shorter than it says is left alone, v4",
            "a packet shorter than it says is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(query.cut(length - 1))
        .is(Reason::Malformed),
        Case::new(name(
            "a tcp header of impossible length is left alone, v4",
            "a tcp header of impossible length is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().raw(Protocol::TCP).payload(&[0x40; 20]))
        .is(Reason::Malformed),
        Case::new(name(
            "a udp length of impossible size is left alone, v4",
            "a udp length of impossible size is left alone, v6",
        ))
        .given(&ends.one_backend(""))
        .packet(ends.query().raw(UDP).payload(&[0, 53, 0, 53, 0, 7, 0, 0]))
        .is(Reason::Malformed),
    ]
}

fn ipv4_only() -> Vec<Case> {
    let ends = &V4;
    vec![
        Case::new("a udp checksum of zero stays zero")
            .given(&ends.one_backend(""))
            .packet(ends.query().udp(4000, 53).payload(b"query").without_checksum())
            .sends(ends.forwarded().udp(4000, 53).payload(b"query").without_checksum())
            .reply(ends.answer().udp(53, 4000).payload(b"answer").without_checksum())
            .sends(ends.returned().udp(53, 4000).payload(b"answer").without_checksum()),
        Case::new("ipv4 options are stepped over")
            .given(&ends.one_backend(""))
            .packet(ends.query().options(3).udp(4000, 53).payload(b"query"))
            .sends(ends.forwarded().options(3).udp(4000, 53).payload(b"query")),
    ]
}

fn ipv6_only() -> Vec<Case> {
    let ends = &V6;
    let six = || (0..6).fold(ends.query(), |packet, _| packet.extension(60));
    vec![
        Case::new("six extension headers are stepped over, seven are not")
            .given(&ends.one_backend(""))
            .packet(six().udp(4000, 53))
            .sends((0..6).fold(ends.forwarded(), |packet, _| packet.extension(60)).udp(4000, 53))
            .packet(six().extension(60).udp(4000, 53))
            .is(Reason::ExtensionHeaders),
        Case::new("hop-by-hop and routing headers are stepped over")
            .given(&ends.one_backend(""))
            .packet(ends.query().extension(0).extension(43).udp(4000, 53))
            .sends(ends.forwarded().extension(0).extension(43).udp(4000, 53)),
        Case::new("a mapped address is not the ipv4 frontend's")
            .given(&V4.one_backend(""))
            .packet(eth().ipv6(CLIENT6, "::ffff:10.9.0.2").udp(4000, 53))
            .is(Reason::Malformed)
            .packet(eth().ipv6("::ffff:10.9.0.1", FRONTEND6).udp(4000, 53))
            .is(Reason::Malformed),
    ]
}
