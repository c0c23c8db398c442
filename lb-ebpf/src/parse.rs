//! Bytes → who speaks to whom, and where the headers lie. No look-ups.

use lb_common::{
    addr::{Addr, Family, Port, Protocol},
    fragment::FragmentKey,
    reason::Reason,
    service::SocketKey,
};
use zerocopy::FromBytes;

use crate::{
    packet::Packet,
    wire::{
        Ethernet, IPV4, IPV6, IpHeader, Ipv4, Ipv6, Tcp, TcpFlags, Udp,
        ipv6::{Extension, Follows, follows},
    },
};

/// What the headers of a packet say.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The family of both addresses.
    pub family: Family,
    /// Who sent it.
    pub source: Addr,
    /// To whom.
    pub destination: Addr,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which part of a datagram this is.
    pub fragment: Fragment,
    /// What a datagram's fragments share. Always set, and not part of [`Fragment`]: the verifier takes each look at a
    /// packet's kind for a new one, and would see the number of a whole datagram read that no one has set.
    pub identification: u32,
    /// Means nothing in a later fragment, nor does anything that follows.
    transport_offset: u32,
    /// Bytes of the transport header, its options included.
    pub transport_header: u32,
    /// The sender's port.
    pub source_port: Port,
    /// The receiver's port.
    pub destination_port: Port,
    /// The control bits of a TCP segment; none for UDP.
    pub flags: TcpFlags,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The part with the ports; more follow.
    First,
    /// A part without ports.
    Later,
}

/// Bytes before the IP header.
pub const IP_OFFSET: usize = Ethernet::LENGTH;

/// More than the longest chain of headers that is followed, and a mask: the verifier forgets how large an offset can be.
const OFFSET_MASK: u32 = (1 << 14) - 1;

impl Parsed {
    /// Bytes before the transport header.
    #[inline(always)]
    pub fn transport_offset(&self) -> usize {
        (self.transport_offset & OFFSET_MASK) as usize
    }

    /// Bytes of the headers from IP on, where there is a transport header.
    #[inline(always)]
    pub fn headers(&self) -> usize {
        (self.transport_offset() + self.transport_header as usize).wrapping_sub(IP_OFFSET)
    }

    /// The sender's end.
    #[inline(always)]
    pub fn source_key(&self) -> SocketKey {
        SocketKey::new(self.source, self.source_port, self.protocol)
    }

    /// The receiver's end.
    #[inline(always)]
    pub fn destination_key(&self) -> SocketKey {
        SocketKey::new(self.destination, self.destination_port, self.protocol)
    }

    /// What the datagram's other fragments will share with this one.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source.by_words(),
            destination: self.destination.by_words(),
            identification: self.identification,
            protocol: match self.family {
                Family::V4 => self.protocol.0 as u32,
                Family::V6 => 0,
            },
        }
    }
}

/// Reads the headers of a packet that begins with Ethernet.
///
/// # Errors
/// [`Reason::NotOurs`] for what is neither TCP nor UDP over IP; else why the headers cannot be read.
#[inline(always)]
pub fn parse(packet: &impl Packet) -> Result<Parsed, Reason> {
    let ethernet: Ethernet = packet.read(0).ok_or(Reason::Truncated)?;
    match ethernet.ether_type() {
        IPV4 => parse_ipv4(packet),
        IPV6 => parse_ipv6(packet),
        _ => Err(Reason::NotOurs),
    }
}

#[inline(always)]
fn parse_ipv4(packet: &impl Packet) -> Result<Parsed, Reason> {
    let (header, end): (Ipv4, usize) = sound_header(packet)?;
    let identification = header.identification() as u32;
    let fragment = match (header.is_later_fragment(), header.has_more_fragments()) {
        (true, _) => Fragment::Later,
        (false, true) => Fragment::First,
        (false, false) => Fragment::Whole,
    };
    let parsed = before_transport(Family::V4, &header, header.protocol(), fragment, identification);
    parse_transport(packet, parsed, IP_OFFSET + header.length(), end)
}

#[inline(always)]
fn parse_ipv6(packet: &impl Packet) -> Result<Parsed, Reason> {
    let (header, end): (Ipv6, usize) = sound_header(packet)?;
    if header.source().is_v4() || header.destination().is_v4() {
        // A mapped address stands for one of IPv4 in our maps, and never in a packet (RFC 4038, section 4.2).
        return Err(Reason::Malformed);
    }
    let mut protocol = header.next_header();
    let mut offset = IP_OFFSET + Ipv6::LENGTH;
    let mut fragment = Fragment::Whole;
    let mut identification = 0;
    // A constant bound, because the verifier must see that the loop ends.
    for _ in 0..Extension::MAX {
        let next = follows(protocol);
        if next == Follows::Content {
            break;
        }
        let extension: Extension = packet.read(offset).ok_or(Reason::Truncated)?;
        protocol = extension.next_header();
        if next == Follows::Fragment {
            identification = extension.identification();
            offset += size_of::<Extension>();
            if extension.is_later_fragment() {
                // What follows is the datagram's middle, whatever its first bytes look like.
                fragment = Fragment::Later;
                break;
            }
            // A fragment that is the whole datagram (RFC 6946) needs no record.
            if extension.has_more_fragments() {
                fragment = Fragment::First;
            }
        } else if next == Follows::Routing && extension.segments_left() != 0 {
            // It goes on to another destination, which its checksum covers.
            return Err(Reason::ExtensionHeaders);
        } else {
            offset += extension.length();
        }
    }
    let parsed = before_transport(Family::V6, &header, protocol, fragment, identification);
    if follows(protocol) != Follows::Content {
        // Of a datagram's fragments only the first tells what is behind its options.
        return if fragment == Fragment::Later { Ok(parsed) } else { Err(Reason::ExtensionHeaders) };
    }
    parse_transport(packet, parsed, offset, end)
}

/// The header, and where what is inside ends.
#[inline(always)]
fn sound_header<I: IpHeader>(packet: &impl Packet) -> Result<(I, usize), Reason> {
    let header: I = packet.read(IP_OFFSET).ok_or(Reason::Truncated)?;
    let available = packet.length().wrapping_sub(IP_OFFSET);
    if header.is_sound(available) { Ok((header, IP_OFFSET + header.total(available))) } else { Err(Reason::Malformed) }
}

#[inline(always)]
fn before_transport(
    family: Family,
    header: &impl IpHeader,
    protocol: Protocol,
    fragment: Fragment,
    identification: u32,
) -> Parsed {
    Parsed {
        family,
        source: header.source(),
        destination: header.destination(),
        hop_limit: header.hop_limit(),
        protocol,
        fragment,
        identification,
        transport_offset: 0,
        transport_header: 0,
        source_port: Port(0),
        destination_port: Port(0),
        flags: TcpFlags::default(),
    }
}

#[inline(always)]
fn parse_transport(packet: &impl Packet, parsed: Parsed, offset: usize, end: usize) -> Result<Parsed, Reason> {
    let (ports, flags, header) = match parsed.protocol {
        Protocol::TCP | Protocol::UDP if parsed.fragment == Fragment::Later => return Ok(parsed),
        Protocol::TCP => {
            let tcp: Tcp = inside(packet, offset, end)?;
            check_length(&parsed, tcp.length(), size_of::<Tcp>(), end - offset)?;
            (tcp.ports, tcp.flags(), tcp.length())
        }
        Protocol::UDP => {
            let udp: Udp = inside(packet, offset, end)?;
            check_length(&parsed, udp.length() as usize, size_of::<Udp>(), end - offset)?;
            (udp.ports, TcpFlags::default(), size_of::<Udp>())
        }
        Protocol(_) => return Err(Reason::NotOurs),
    };
    Ok(Parsed {
        transport_offset: offset as u32,
        transport_header: header as u32,
        source_port: Port(ports.source),
        destination_port: Port(ports.destination),
        flags,
        ..parsed
    })
}

/// A header that ends before the packet that it is inside of does.
#[inline(always)]
fn inside<T: FromBytes + Copy>(packet: &impl Packet, offset: usize, end: usize) -> Result<T, Reason> {
    if offset + size_of::<T>() > end { Err(Reason::Truncated) } else { packet.read(offset).ok_or(Reason::Truncated) }
}

/// Compares a length that a transport header tells with the least it can be, and with what there is.
#[inline(always)]
fn check_length(parsed: &Parsed, length: usize, least: usize, available: usize) -> Result<(), Reason> {
    // The rest of it may be in other fragments.
    let is_beyond = parsed.fragment == Fragment::Whole && length > available;
    if length < least || is_beyond { Err(Reason::Malformed) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
