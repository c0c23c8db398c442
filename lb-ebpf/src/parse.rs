//! Bytes → who speaks to whom, and where the headers lie. No look-ups.

use lb_common::{
    addr::{Addr, Family, Port, Protocol},
    fragment::FragmentKey,
    reason::Reason,
    service::SocketKey,
};

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
    /// Means nothing in a later fragment, nor do the next three.
    transport_offset: u32,
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
            protocol: self.protocol.0 as u32,
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
    let header: Ipv4 = sound_header(packet)?;
    let identification = header.identification() as u32;
    let fragment = match (header.is_later_fragment(), header.has_more_fragments()) {
        (true, _) => Fragment::Later,
        (false, true) => Fragment::First,
        (false, false) => Fragment::Whole,
    };
    let parsed = before_transport(Family::V4, &header, header.protocol(), fragment, identification);
    parse_transport(packet, parsed, IP_OFFSET + header.length())
}

#[inline(always)]
fn parse_ipv6(packet: &impl Packet) -> Result<Parsed, Reason> {
    let header: Ipv6 = sound_header(packet)?;
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
        } else {
            offset += extension.length();
        }
    }
    let is_later = fragment == Fragment::Later;
    if !is_later && follows(protocol) != Follows::Content {
        return Err(Reason::ExtensionHeaders);
    }
    let parsed = before_transport(Family::V6, &header, protocol, fragment, identification);
    parse_transport(packet, parsed, offset)
}

#[inline(always)]
fn sound_header<I: IpHeader>(packet: &impl Packet) -> Result<I, Reason> {
    let header: I = packet.read(IP_OFFSET).ok_or(Reason::Truncated)?;
    if header.is_sound(packet.length().wrapping_sub(IP_OFFSET)) { Ok(header) } else { Err(Reason::Malformed) }
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
        source_port: Port(0),
        destination_port: Port(0),
        flags: TcpFlags::default(),
    }
}

#[inline(always)]
fn parse_transport(packet: &impl Packet, parsed: Parsed, offset: usize) -> Result<Parsed, Reason> {
    let (ports, flags) = match parsed.protocol {
        Protocol::TCP | Protocol::UDP if parsed.fragment == Fragment::Later => return Ok(parsed),
        Protocol::TCP => {
            let tcp: Tcp = packet.read(offset).ok_or(Reason::Truncated)?;
            if !tcp.is_sound() {
                return Err(Reason::Malformed);
            }
            (tcp.ports, tcp.flags())
        }
        Protocol::UDP => {
            let udp: Udp = packet.read(offset).ok_or(Reason::Truncated)?;
            // Zero stands for a jumbogram (RFC 2675), merged by the receiving device.
            if udp.length() != 0 && (udp.length() as usize) < size_of::<Udp>() {
                return Err(Reason::Malformed);
            }
            (udp.ports, TcpFlags::default())
        }
        Protocol(_) => return Err(Reason::NotOurs),
    };
    Ok(Parsed {
        transport_offset: offset as u32,
        source_port: Port(ports.source),
        destination_port: Port(ports.destination),
        flags,
        ..parsed
    })
}

#[cfg(test)]
mod tests;
