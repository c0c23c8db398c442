//! Addresses, ports and protocols as both sides store them.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address of 16 bytes in network order; IPv4 is mapped into IPv6 (RFC 4291, section 2.5.5.2).
///
/// Held as words because a key of bytes costs the BPF program 25 to 45 ns a look-up, a key of words about 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// The third word of every mapped IPv4 address, as it lies in memory.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// The mapped form of the four bytes of an IPv4 address, given as the word they make in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The same address, copied word by word: the copy of an aggregate may become a call of a byte loop in BPF.
    #[inline(always)]
    #[must_use]
    pub const fn by_words(&self) -> Self {
        Self([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The last four bytes, which are the whole address for IPv4, as they lie in memory.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// Whether packets from this address may be forwarded: not those from an unspecified, loopback, link-local or
    /// multicast one, nor from the whole of 0.0.0.0/8 and 240.0.0.0/4 (RFC 6890; IPv4's link-local ones are forwarded by
    /// Linux).
    #[inline(always)]
    pub const fn is_forwardable_source(&self) -> bool {
        if self.is_v4() {
            let first = u32::from_be(self.0[3]) >> 24;
            return first != 0 && first != 127 && first < 224;
        }
        let first = u32::from_be(self.0[0]) >> 16;
        let is_within_host = self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && u32::from_be(self.0[3]) <= 1;
        !is_within_host && first & 0xff00 != 0xff00 && first & 0xffc0 != 0xfe80
    }

    /// The family this address belongs to.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// The address in the standard library's form, IPv4 unmapped.
    pub fn to_ip(self) -> IpAddr {
        let mut bytes = [0; 16];
        for (four, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            four.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        ip.to_ipv6_mapped().into()
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, four) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
            *word = u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
        }
        Self(words)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order they are listed to a person.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A port in network order, as it lies in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Port(pub u16);

impl Port {
    /// A port from its number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// A transport protocol by its number in the IP header.
///
/// A number and not an enum, because the packet decides what it says; the two that are balanced are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);

    /// `tcp`, `udp`, or `protocol` for any other.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP => "tcp",
            Self::UDP => "udp",
            Self(_) => "protocol",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_into_words_and_back() {
        for text in ["192.0.2.53", "0.0.0.0", "255.255.255.255", "::", "fd00::1", "2001:db8:1:2:3:4:5:6"] {
            let ip: IpAddr = text.parse().expect("a valid address");
            assert_eq!(Addr::from(ip).to_ip(), ip);
            assert_eq!(Addr::from(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn only_sources_that_linux_forwards_are_forwardable() {
        let is_forwardable =
            |text: &str| Addr::from(text.parse::<IpAddr>().expect("a valid address")).is_forwardable_source();
        for text in
            ["192.0.2.1", "10.0.0.1", "169.254.0.1", "1.0.0.0", "223.255.255.255", "2001:db8::1", "fd00::1", "::2"]
        {
            assert!(is_forwardable(text), "{text}");
        }
        for text in
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1"]
        {
            assert!(!is_forwardable(text), "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("a valid address");
        let plain: IpAddr = "192.0.2.1".parse().expect("a valid address");
        assert_eq!(Addr::from(mapped), Addr::from(plain));
        assert_eq!(Addr::from(plain), Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1])));
    }

    #[test]
    fn ports_order_by_number() {
        assert!(Port::new(256) > Port::new(255));
    }
}
