//! Packets as values, and the bytes they are on the wire.
//!
//! ```
//! use testbed::packet::eth;
//! let query = eth().ipv4("10.9.0.1", "10.9.0.2").udp(4000, 53).payload(b"?");
//! assert_eq!(query.bytes().len(), 14 + 20 + 8 + 1);
//! ```

use std::net::IpAddr;

use lb_common::addr::Protocol;
use lb_ebpf::{testing::DEVICE, wire::checksum::checksum};

/// An Ethernet packet to the device at which test runs have packets come in.
pub fn eth() -> Packet {
    Packet::default()
}

/// A packet, described.
#[derive(Clone, Debug)]
pub struct Packet {
    link: [u8; 12],
    ends: Option<(IpAddr, IpAddr)>,
    service: u8,
    hops: u8,
    identification: u32,
    fragment: Option<Part>,
    options: usize,
    extensions: Vec<u8>,
    transport: Transport,
    checksum: Checksum,
    payload: Vec<u8>,
    cut: Option<usize>,
    padding: usize,
}

/// Which part of a datagram a packet is: bytes from the datagram's start, and whether more follow.
#[derive(Clone, Copy, Debug)]
struct Part {
    offset: usize,
    has_more: bool,
}

/// What is in the transport header for a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Right,
    None,
    /// The sum of the pseudo header, which a local sender's device would go on from.
    Unfinished,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    None,
    Udp {
        source: u16,
        destination: u16,
    },
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    /// Whatever the payload is.
    Raw(Protocol),
}

fn both(destination: [u8; 6], source: [u8; 6]) -> [u8; 12] {
    let mut link = [0; 12];
    link[..6].copy_from_slice(&destination);
    link[6..].copy_from_slice(&source);
    link
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            link: both(DEVICE, [2, 0, 0, 0, 0, 1]),
            ends: None,
            service: 0,
            hops: 64,
            identification: 0x1234,
            fragment: None,
            options: 0,
            extensions: Vec::new(),
            transport: Transport::None,
            checksum: Checksum::Right,
            payload: Vec::new(),
            cut: None,
            padding: 0,
        }
    }
}

impl Packet {
    /// Between two IPv4 addresses.
    ///
    /// # Panics
    /// When one is none: a mistake in the test.
    pub fn ipv4(self, source: &str, destination: &str) -> Self {
        let packet = self.between(source, destination);
        assert!(packet.ends.is_some_and(|(source, destination)| source.is_ipv4() && destination.is_ipv4()));
        packet
    }

    /// Between two IPv6 addresses.
    ///
    /// # Panics
    /// When one is none: a mistake in the test.
    pub fn ipv6(self, source: &str, destination: &str) -> Self {
        let packet = self.between(source, destination);
        assert!(packet.ends.is_some_and(|(source, destination)| source.is_ipv6() && destination.is_ipv6()));
        packet
    }

    /// Between two addresses of one family.
    ///
    /// # Panics
    /// When one is none: a mistake in the test.
    pub fn between(mut self, source: &str, destination: &str) -> Self {
        let address = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} is no address"));
        self.ends = Some((address(source), address(destination)));
        self
    }

    /// With this time to live, or hop limit, instead of 64.
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// With link-layer addresses instead of the usual ones: the receiver's, then the sender's.
    pub fn link(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.link = both(destination, source);
        self
    }

    /// With so many words of IPv4 options, all of them padding.
    pub fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    /// With an IPv6 extension header of eight bytes before the transport header.
    pub fn extension(mut self, number: u8) -> Self {
        self.extensions.push(number);
        self
    }

    /// The first fragment of a datagram.
    pub fn first_fragment(self, identification: u32) -> Self {
        self.part(identification, 0, true)
    }

    /// A later fragment: `offset` bytes into the datagram, a multiple of eight.
    pub fn later_fragment(mut self, identification: u32, offset: usize, protocol: Protocol) -> Self {
        self.transport = Transport::Raw(protocol);
        self.part(identification, offset, false)
    }

    fn part(mut self, identification: u32, offset: usize, has_more: bool) -> Self {
        self.identification = identification;
        self.fragment = Some(Part { offset, has_more });
        self
    }

    /// What tells this packet's sender that at most `mtu` bytes fit, in the name of whom it went to. As much of it as
    /// comes with that is the same on every link that carries 576 bytes: this packet is longer.
    ///
    /// # Panics
    /// When this is no IP packet: a mistake in the test.
    pub fn refused_as_too_big(&self, mtu: u16) -> Self {
        let (destination, source) = self.ends.expect("only what has addresses is answered");
        let mut link = self.link;
        link.rotate_left(6);
        let bytes = self.bytes();
        let [high, low] = mtu.to_be_bytes();
        let (protocol, kind, pseudo, quoted, service) = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => (1, [3, 4], Vec::new(), 576 - 28, 0xc0),
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = 1280_u16 - 40;
                let pseudo = [&source.octets()[..], &destination.octets(), &length.to_be_bytes(), &[0, 58]].concat();
                (58, [2, 0], pseudo, 1280 - 48, 0)
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        };
        let mut payload = [&kind[..], &[0, 0, 0, 0, high, low], &bytes[14..14 + quoted]].concat();
        let sum = checksum(pseudo.into_iter().chain(payload.iter().copied()));
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
        let transport = Transport::Raw(Protocol(protocol));
        Self {
            link,
            ends: Some((source, destination)),
            service,
            identification: 0,
            transport,
            payload,
            ..Self::default()
        }
    }

    /// Of this protocol, whose header is the payload's affair.
    pub fn raw(mut self, protocol: Protocol) -> Self {
        self.transport = Transport::Raw(protocol);
        self
    }

    /// A UDP datagram.
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination };
        self
    }

    /// A TCP segment that only acknowledges.
    pub fn tcp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Tcp { source, destination, flags: 0x10 };
        self
    }

    /// With these TCP control bits.
    ///
    /// # Panics
    /// When this is no TCP segment: a mistake in the test.
    pub fn flags(mut self, bits: u8) -> Self {
        let Transport::Tcp { flags, .. } = &mut self.transport else { panic!("only TCP has control bits") };
        *flags = bits;
        self
    }

    /// A TCP segment that opens a connection.
    pub fn syn(self) -> Self {
        self.flags(0x02)
    }

    /// A UDP datagram without a checksum.
    pub fn without_checksum(mut self) -> Self {
        self.checksum = Checksum::None;
        self
    }

    /// With a checksum that is left to the device to be finished.
    pub fn unfinished(mut self) -> Self {
        self.checksum = Checksum::Unfinished;
        self
    }

    /// With these bytes inside.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Ends after so many bytes, whatever the headers say.
    pub fn cut(mut self, length: usize) -> Self {
        self.cut = Some(length);
        self
    }

    /// In a frame longer than it: with so many bytes of padding.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The bytes on the wire, all checksums right.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.link.to_vec();
        match self.ends {
            Some((IpAddr::V4(source), IpAddr::V4(destination))) => {
                bytes.extend([0x08, 0x00]);
                let transport = self.transport_bytes(&source.octets(), &destination.octets());
                bytes.extend(self.ipv4_header(source.octets(), destination.octets(), transport.len()));
                bytes.extend(transport);
            }
            Some((IpAddr::V6(source), IpAddr::V6(destination))) => {
                bytes.extend([0x86, 0xdd]);
                let transport = self.transport_bytes(&source.octets(), &destination.octets());
                bytes.extend(self.ipv6_headers(source.octets(), destination.octets(), transport.len()));
                bytes.extend(transport);
            }
            Some(_) => panic!("two families in one packet"),
            None => bytes.extend([0x08, 0x06]),
        }
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(length) = self.cut {
            bytes.truncate(length);
        }
        bytes
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::None => 1,
            Transport::Udp { .. } => Protocol::UDP.0,
            Transport::Tcp { .. } => Protocol::TCP.0,
            Transport::Raw(protocol) => protocol.0,
        }
    }

    fn transport_bytes(&self, source: &[u8], destination: &[u8]) -> Vec<u8> {
        let (mut bytes, at) = match self.transport {
            Transport::None | Transport::Raw(_) => return self.payload.clone(),
            Transport::Udp { source, destination } => {
                let length = (8 + self.payload.len()) as u16;
                ([source, destination, length, 0].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>(), 6)
            }
            Transport::Tcp { source, destination, flags } => {
                let mut bytes: Vec<u8> = [source, destination].into_iter().flat_map(u16::to_be_bytes).collect();
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
                (bytes, 16)
            }
        };
        bytes.extend(&self.payload);
        let mut pseudo: Vec<u8> = [source, destination].concat();
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        let sum = match self.checksum {
            Checksum::None => return bytes,
            Checksum::Unfinished => !checksum(pseudo),
            Checksum::Right => match checksum(pseudo.into_iter().chain(bytes.iter().copied())) {
                0 if self.protocol() == Protocol::UDP.0 => 0xffff,
                sum => sum,
            },
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn ipv4_header(&self, source: [u8; 4], destination: [u8; 4], inside: usize) -> Vec<u8> {
        let length = 20 + self.options * 4;
        let fragment = match self.fragment {
            Some(part) => (part.offset / 8) as u16 | if part.has_more { 0x2000 } else { 0 },
            None => 0x4000,
        };
        let mut header = vec![0x40 | (length / 4) as u8, self.service];
        header.extend(((length + inside) as u16).to_be_bytes());
        header.extend((self.identification as u16).to_be_bytes());
        header.extend(fragment.to_be_bytes());
        header.extend([self.hops, self.protocol(), 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.resize(length, 1); // "no operation"
        let sum = checksum(header.iter().copied());
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn ipv6_headers(&self, source: [u8; 16], destination: [u8; 16], inside: usize) -> Vec<u8> {
        let mut chain: Vec<u8> = self.extensions.clone();
        if self.fragment.is_some() {
            chain.push(44);
        }
        let next = |i: usize| chain.get(i).copied().unwrap_or(self.protocol());
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(((chain.len() * 8 + inside) as u16).to_be_bytes());
        header.extend([next(0), self.hops]);
        header.extend(source);
        header.extend(destination);
        for (i, number) in chain.iter().enumerate() {
            header.extend([next(i + 1), 0]);
            match (number, self.fragment) {
                (44, Some(part)) => {
                    header.extend((part.offset as u16 | u16::from(part.has_more)).to_be_bytes());
                    header.extend(self.identification.to_be_bytes());
                }
                (43, _) => header.extend([0; 6]),            // a route that ends here
                (_, _) => header.extend([1, 4, 0, 0, 0, 0]), // one option that pads
            }
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use lb_ebpf::{
        parse::{Fragment, parse},
        testing::MemoryPacket,
    };

    use super::*;

    fn parsed(packet: &Packet) -> lb_ebpf::parse::Parsed {
        parse(&MemoryPacket { bytes: packet.bytes() }).expect("the packet is sound")
    }

    #[test]
    fn what_is_described_is_what_is_read() {
        let parsed = parsed(&eth().ipv6("fd00::1", "fd00::2").extension(60).first_fragment(7).udp(1, 2).hops(9));
        assert_eq!((parsed.source_port.number(), parsed.destination_port.number(), parsed.hop_limit), (1, 2, 9));
        assert_eq!(parsed.fragment, Fragment::First);
    }

    #[test]
    fn checksums_are_those_of_a_known_packet() {
        // A DNS query's UDP checksum computed by hand: 10.9.0.1:4000 → 10.9.0.2:53, "?" inside.
        let bytes = eth().ipv4("10.9.0.1", "10.9.0.2").udp(4000, 53).payload(b"?").bytes();
        let sum: u32 = [0x0a09, 0x0001, 0x0a09, 0x0002, 17, 9, 4000, 53, 9, 0x3f00].iter().sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(u16::from_be_bytes([bytes[40], bytes[41]]), !(folded as u16));
    }
}
