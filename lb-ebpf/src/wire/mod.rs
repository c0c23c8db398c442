//! Headers as they lie in the packet, and the Internet checksum: the only place that knows IPv4 from IPv6.
//!
//! Fields hold the bytes of the packet, so multi-byte ones are in network order until a method turns them round.

use lb_common::addr::{Addr, Protocol};
use zerocopy::{FromBytes, Immutable, KnownLayout};

pub mod ipv4;
pub mod ipv6;
pub mod icmp;
pub mod checksum;

pub use ipv4::Ipv4;
pub use ipv6::Ipv6;

/// What both families' headers say.
pub trait IpHeader: FromBytes + Copy {
    /// Bytes from the header's start to the address the packet comes from.
    const SOURCE_OFFSET: usize;
    /// Bytes from the header's start to the address the packet goes to.
    const DESTINATION_OFFSET: usize;
    /// Bytes from the header's start to the hop limit.
    const HOP_LIMIT_OFFSET: usize;

    /// Whether version and lengths agree with each other and with `available`, the bytes from this header to the end
    /// of the packet.
    fn is_sound(&self, available: usize) -> bool;
    /// Bytes from the header's start to the end of what is inside; what comes after is the link's padding. All that are
    /// `available` where they are more than the field can say: segments merged by the receiving device.
    fn total(&self, available: usize) -> usize;
    /// Who sent it.
    fn source(&self) -> Addr;
    /// To whom.
    fn destination(&self) -> Addr;
    /// Time to live, or hop limit.
    fn hop_limit(&self) -> u8;
}

/// The hop limit of packets that are made here (RFC 1700).
pub const OWN_HOPS: u8 = 64;

/// Ethernet II.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ethernet {
    destination: [u16; 3],
    source: [u16; 3],
    ether_type: u16,
}

impl Ethernet {
    /// Bytes of the header.
    pub const LENGTH: usize = 14;

    /// What follows.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        u16::from_be(self.ether_type)
    }
}

/// The EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// The EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// The four bytes with which both TCP and UDP begin.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ports {
    /// Of the sender.
    pub source: u16,
    /// Of the receiver.
    pub destination: u16,
}

/// Bytes from the transport header's start to the sender's port.
pub const SOURCE_PORT_OFFSET: usize = 0;
/// Bytes from the transport header's start to the receiver's port.
pub const DESTINATION_PORT_OFFSET: usize = 2;

/// UDP (RFC 768).
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Udp {
    /// Both ports.
    pub ports: Ports,
    length: u16,
    checksum: u16,
}

impl Udp {
    /// Bytes of header and payload.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        u16::from_be(self.length)
    }
}

/// TCP (RFC 9293) without its options.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tcp {
    /// Both ports.
    pub ports: Ports,
    sequence: [u16; 2],
    acknowledgment: [u16; 2],
    data_offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

impl Tcp {
    /// The control bits.
    #[inline(always)]
    pub fn flags(&self) -> TcpFlags {
        TcpFlags(self.flags)
    }

    /// Bytes of the header, its options included.
    #[inline(always)]
    pub fn length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}

/// The control bits of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Opens a connection.
    pub const SYN: Self = Self(0x02);
    /// Ends it at once.
    pub const RST: Self = Self(0x04);
    /// Acknowledges.
    pub const ACK: Self = Self(0x10);

    /// Whether any bit of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether this opens a connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0) == Self::SYN.0
    }

    /// Whether the state of a connection cannot change by this segment, once it is established.
    #[inline(always)]
    pub const fn is_quiet(self) -> bool {
        self.0 & (Self::SYN.0 | Self::FIN.0 | Self::RST.0) == 0
    }
}

/// Bytes from the transport header's start to its checksum.
#[inline(always)]
pub const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => 16,
        Protocol(_) => 6,
    }
}
