//! The one error that is sent here, in both families: ICMP (RFC 792) and ICMPv6 (RFC 4443), the IP header before it.

use lb_common::addr::{Addr, Protocol};
use zerocopy::{Immutable, IntoBytes};

use super::{Ipv4, Ipv6, checksum::Sum};

/// What precedes the packet that an error is about.
pub trait Notice: IntoBytes + Immutable {
    /// The smallest MTU that there can be, and so the smallest that is told.
    const MTU_MIN: u32;

    /// From `source` to `destination`: at most `mtu` bytes fit. `quoted` bytes follow, with this sum.
    fn new(source: &Addr, destination: &Addr, mtu: u32, quoted: usize, sum: Sum) -> Self;
}

/// Destination unreachable, fragmentation needed (RFC 1191, section 4).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct FragmentationNeeded {
    ip: Ipv4,
    kind: u8,
    code: u8,
    checksum: u16,
    unused: u16,
    mtu: u16,
}

impl Notice for FragmentationNeeded {
    // RFC 791, section 3.2.
    const MTU_MIN: u32 = 68;

    #[inline(always)]
    fn new(source: &Addr, destination: &Addr, mtu: u32, quoted: usize, sum: Sum) -> Self {
        const KIND: u8 = 3;
        const CODE: u8 = 4;
        // RFC 1812, section 4.3.2.5: errors go before the packets they are about.
        const INTERNETWORK_CONTROL: u8 = 0xc0;
        let mtu = (if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 }).to_be();
        let total_length = (size_of::<Self>() + quoted) as u16;
        let checksum = sum.add(u16::from_ne_bytes([KIND, CODE]) as u32).add(mtu as u32).finish();
        Self {
            ip: Ipv4::new(INTERNETWORK_CONTROL, Protocol(1), total_length, source, destination),
            kind: KIND,
            code: CODE,
            checksum,
            unused: 0,
            mtu,
        }
    }
}

/// Packet too big (RFC 4443, section 3.2).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct PacketTooBig {
    ip: Ipv6,
    kind: u8,
    code: u8,
    checksum: u16,
    mtu: u32,
}

impl Notice for PacketTooBig {
    // RFC 8200, section 5.
    const MTU_MIN: u32 = 1280;

    #[inline(always)]
    fn new(source: &Addr, destination: &Addr, mtu: u32, quoted: usize, sum: Sum) -> Self {
        const KIND: u8 = 2;
        const PROTOCOL: Protocol = Protocol(58);
        let mtu = mtu.to_be();
        let length = (size_of::<Self>() - Ipv6::LENGTH + quoted) as u16;
        // RFC 4443, section 2.3: the pseudo header of RFC 8200, section 8.1.
        let addresses = source.0.into_iter().chain(destination.0).fold(sum, Sum::add);
        let pseudo = addresses.add(length.to_be() as u32).add((PROTOCOL.0 as u16).to_be() as u32);
        let checksum = pseudo.add(u16::from_ne_bytes([KIND, 0]) as u32).add(mtu).finish();
        Self { ip: Ipv6::new(PROTOCOL, length, source, destination), kind: KIND, code: 0, checksum, mtu }
    }
}
