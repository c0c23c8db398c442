//! What passes a namespace's devices, as it is on the wire; and IPv4 packets of our own making, put on it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
        sockopt::RcvBuf,
    },
};

use crate::{namespace::Namespace, packet::Packet, process::wait_until};

/// Listens to every device of a namespace, in both directions.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

/// A UDP packet, or a part of one, that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its time to live, or hop limit.
    pub hops: u8,
    /// Where in the datagram it begins, in bytes; 0 too if it is a whole one.
    pub offset: usize,
    /// Whether more of the datagram follows.
    pub has_more: bool,
    /// What only a datagram's beginning has.
    pub head: Option<Head>,
}

/// What of the UDP header can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
    /// The checksum as it is, maybe for a device to finish; 0 means none.
    pub checksum: u16,
}

impl Tap {
    /// Begins to listen.
    ///
    /// # Errors
    /// No packet socket can be had.
    pub fn listen(namespace: &Namespace) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || Ok(socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?);
        let socket = namespace.enter(open).with_context(|| format!("{}: no packet socket", namespace.name()))?;
        // Room for some hundred packets, whatever their size; the kernel may give less.
        setsockopt(&socket, RcvBuf, &(4 << 20))?;
        Ok(Self { socket })
    }

    /// The UDP packets that were seen since the last call, in their order.
    ///
    /// # Errors
    /// The socket fails.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => seen.extend(read(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(seen),
                // A device went down; the others are still listened to.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(error) => return Err(error).context("a packet socket"),
            }
        }
    }

    /// Waits for the first UDP packet that is `wanted`; everything seen before it is forgotten.
    ///
    /// # Errors
    /// None comes within 2 s, or the socket fails.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut found = None;
        wait_until(what, Duration::from_secs(2), || {
            found = self.seen()?.into_iter().find(&wanted);
            Ok(found.is_some())
        })?;
        found.with_context(|| format!("{what}: just found"))
    }
}

/// Sends an IPv4 packet from a namespace by its routes, with its headers as they are.
///
/// # Errors
/// It is none, or is refused.
pub fn send_raw(namespace: &Namespace, packet: &Packet) -> Result<()> {
    let bytes = packet.bytes();
    let ip = bytes.get(LINK..).filter(|ip| ip.len() >= 20 && ip[0] >> 4 == 4).context("no IPv4 packet")?;
    let destination = SocketAddrV4::new(Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]), 0);
    namespace.enter(|| {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let sent = sendto(socket.as_raw_fd(), ip, &SockaddrIn::from(destination), MsgFlags::empty())?;
        ensure!(sent == ip.len(), "{sent} of {} bytes went out", ip.len());
        Ok(())
    })
}

const LINK: usize = 14;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;

/// A UDP packet of either family; nothing if it is none.
fn read(frame: &[u8]) -> Option<Seen> {
    match frame.get(12..LINK)? {
        [0x08, 0x00] => read_ipv4(&frame[LINK..]),
        [0x86, 0xdd] => read_ipv6(&frame[LINK..]),
        _ => None,
    }
}

fn read_ipv4(ip: &[u8]) -> Option<Seen> {
    let header = usize::from(ip.first()? & 0xf) * 4;
    if *ip.get(9)? != UDP {
        return None;
    }
    let fragment = word(ip, 6)?;
    let offset = usize::from(fragment & 0x1fff) * 8;
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    Some(Seen {
        source: address(12)?,
        destination: address(16)?,
        hops: *ip.get(8)?,
        offset,
        has_more: fragment & 0x2000 != 0,
        head: if offset == 0 { head(ip, header) } else { None },
    })
}

/// No other extension header is expected here than the one of a fragment.
fn read_ipv6(ip: &[u8]) -> Option<Seen> {
    let (next, header, fragment) = match *ip.get(6)? {
        FRAGMENT => (*ip.get(40)?, 48, word(ip, 42)?),
        next => (next, 40, 0),
    };
    if next != UDP {
        return None;
    }
    let offset = usize::from(fragment & 0xfff8);
    let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)));
    Some(Seen {
        source: address(8)?,
        destination: address(24)?,
        hops: *ip.get(7)?,
        offset,
        has_more: fragment & 1 != 0,
        head: if offset == 0 { head(ip, header) } else { None },
    })
}

fn head(ip: &[u8], at: usize) -> Option<Head> {
    Some(Head { source: word(ip, at)?, destination: word(ip, at + 2)?, checksum: word(ip, at + 6)? })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Protocol;

    use super::*;
    use crate::packet::eth;

    fn ends(source: &str, destination: &str, hops: u8) -> Seen {
        let address = |text: &str| text.parse().expect("an address");
        Seen {
            source: address(source),
            destination: address(destination),
            hops,
            offset: 0,
            has_more: false,
            head: Some(Head { source: 4000, destination: 53, checksum: 0 }),
        }
    }

    #[test]
    fn udp_of_both_families_is_read() {
        let v4 = eth().ipv4("10.9.0.1", "10.9.0.2").udp(4000, 53).hops(9).without_checksum();
        assert_eq!(read(&v4.bytes()), Some(ends("10.9.0.1", "10.9.0.2", 9)));
        assert_eq!(read(&v4.options(3).bytes()), Some(ends("10.9.0.1", "10.9.0.2", 9)));
        let v6 = eth().ipv6("fd00::1", "fd00::2").udp(4000, 53).hops(63).without_checksum();
        assert_eq!(read(&v6.bytes()), Some(ends("fd00::1", "fd00::2", 63)));
        assert_eq!(read(&eth().ipv4("10.9.0.1", "10.9.0.2").tcp(1, 2).bytes()), None);
        for length in 0..14 + 40 + 8 {
            assert!(read(&v6.bytes()[..length]).is_none_or(|seen| seen.head.is_none()), "cut after {length} bytes");
        }
    }

    #[test]
    fn only_the_beginning_of_a_datagram_has_ports() {
        for packet in [eth().ipv4("10.9.0.1", "10.9.0.2"), eth().ipv6("fd00::1", "fd00::2")] {
            let first = read(&packet.clone().first_fragment(7).udp(4000, 53).bytes()).expect("UDP");
            assert!(first.has_more && first.head.is_some_and(|head| head.source == 4000));
            let later = read(&packet.later_fragment(7, 1480, Protocol::UDP).payload(b"more").bytes()).expect("UDP");
            assert_eq!((later.offset, later.has_more, later.head), (1480, false, None));
        }
    }
}
