//! A packet that does not fit is turned round: its sender gets the error that a router would send, with the packet as it
//! was sent in it, so that path MTU discovery works through the balancer (RFC 1191, RFC 8201).
//!
//! It is sent also where an IPv4 packet may be cut, since nothing here cuts it, and the sender can send less at once.

use lb_common::{addr::Family, flow::Tick};

use crate::{
    atomic::Shared,
    kernel::Kernel,
    packet::{Answerable, Link},
    parse::{Fragment, IP_OFFSET, Parsed},
    pipeline::Exit,
    wire::icmp::{FragmentationNeeded, Notice, PacketTooBig},
};

/// Bytes of the packet that have to be in reach of [`crate::packet::Packet::read`], when the packet has them.
pub const REACH: usize = IP_OFFSET + QUOTED_V6;

/// Bytes of the packet, from the IP header on, that have to hold all headers up to the transport's.
pub const HEADERS_MAX: usize = 104;

// RFC 1812, section 4.3.2.3: as much as makes the error no longer than 576 bytes.
const QUOTED_V4: usize = 576 - size_of::<FragmentationNeeded>();
// Of a packet for a link on which not even that fits: the largest IPv4 header, and a TCP header with all its options.
const QUOTED_V4_LEAST: usize = 128;
// RFC 4443, section 2.4: as much as makes the error no longer than the least MTU.
const QUOTED_V6: usize = 1280 - size_of::<PacketTooBig>();

/// Makes the error of a packet that was refused, and says how it leaves: by where it came in.
///
/// From whom the packet went to, in whose name we refuse it. None where the sender is not to be told.
#[inline(always)]
pub fn answer<P: Answerable, K: Kernel>(packet: &mut P, kernel: &K, parsed: &Parsed) -> Option<Exit> {
    let link: Link = packet.read(0)?;
    if !may_be_answered(parsed, &link)
        || !is_within_limit(kernel.errors_sent()?, kernel.now(), kernel.errors_per_tick())
    {
        return None;
    }
    let mtu = kernel.noted_mtu();
    match parsed.family {
        Family::V4 if packet.length() >= IP_OFFSET + QUOTED_V4 => {
            enclose::<FragmentationNeeded, QUOTED_V4>(packet, parsed, mtu)?;
        }
        Family::V4 => enclose::<FragmentationNeeded, QUOTED_V4_LEAST>(packet, parsed, mtu)?,
        Family::V6 => enclose::<PacketTooBig, QUOTED_V6>(packet, parsed, mtu)?,
    }
    packet.set_link(&Link { destination: link.source, source: link.destination }).ok()?;
    Some(Exit::Link { ifindex: kernel.arrived_by() })
}

/// RFC 1122, section 3.2.2, and RFC 4443, section 2.4: no error is about what was sent to a group, what comes from no
/// single host, or a fragment that does not tell whose it is.
#[inline(always)]
fn may_be_answered(parsed: &Parsed, link: &Link) -> bool {
    let is_to_group = link.destination[0].to_ne_bytes()[0] & 1 != 0;
    !is_to_group
        && parsed.source.is_forwardable_source()
        && parsed.fragment != Fragment::Later
        && parsed.transport_offset() < HEADERS_MAX
}

/// Whether one error more may be sent in this tick, in which it is counted then. The account is one CPU's own: the tick,
/// and how many in it.
#[inline(always)]
fn is_within_limit(account: &Shared, now: Tick, most: u64) -> bool {
    const TICK_SHIFT: u32 = 32;
    let tick = (now.0 as u64) << TICK_SHIFT;
    let sent = account.load();
    let sent = if sent >> TICK_SHIFT == now.0 as u64 { sent } else { tick };
    if sent - tick >= most {
        return false;
    }
    account.store(sent + 1);
    true
}

#[inline(always)]
fn enclose<N: Notice, const QUOTED: usize>(packet: &mut impl Answerable, parsed: &Parsed, mtu: u32) -> Option<()> {
    let sum = packet.sum::<QUOTED>(IP_OFFSET)?;
    let mtu = if mtu < N::MTU_MIN { N::MTU_MIN } else { mtu };
    let notice = N::new(&parsed.destination, &parsed.source, mtu, QUOTED, sum);
    packet.enclose(QUOTED, &notice).ok()
}

#[cfg(test)]
mod tests;
