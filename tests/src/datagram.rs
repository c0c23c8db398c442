//! One datagram out, one back, both whole: for questions and answers larger than a frame.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4Ttl, Ipv6Ttl},
};

use crate::namespace::Namespace;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub source: SocketAddr,
    /// Where to: the port of the socket that asked.
    pub port: u16,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Sends a message from a new port and returns what comes back first, whoever it comes from.
///
/// # Errors
/// Nothing comes within 2 s.
pub fn exchange(client: &Namespace, server: SocketAddr, message: &[u8]) -> Result<Datagram> {
    client.enter(|| {
        let any = match server.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        // Not connected: what comes from a wrong source must reach us to be seen.
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(message, server).with_context(|| format!("{} bytes to {server}", message.len()))?;
        let mut bytes = vec![0; 1 << 16];
        let received = socket.recv_from(&mut bytes);
        let (length, source) =
            received.with_context(|| format!("no answer from {server} to {} bytes", message.len()))?;
        bytes.truncate(length);
        Ok(Datagram { source, port: socket.local_addr()?.port(), bytes })
    })
}

/// Sends a message so many times from one new port, with so few hops to go, and waits for nothing.
///
/// # Errors
/// It is not sent.
pub fn send_with_hops(client: &Namespace, server: SocketAddr, message: &[u8], count: usize, hops: u8) -> Result<()> {
    client.enter(|| {
        let socket = match server.ip() {
            IpAddr::V4(_) => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                setsockopt(&socket, Ipv4Ttl, &hops.into())?;
                socket
            }
            IpAddr::V6(_) => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                setsockopt(&socket, Ipv6Ttl, &hops.into())?;
                socket
            }
        };
        (0..count).try_for_each(|_| socket.send_to(message, server).map(drop)).with_context(|| server.to_string())
    })
}

/// A query for a TXT record whose answer may take 4096 bytes, and which itself takes `length` bytes, if so many are
/// more than it needs.
///
/// # Panics
/// When a label of the name is no label.
pub fn query(id: u16, name: &str, length: usize) -> Vec<u8> {
    // RFC 1035, 4.1: a header, one question, and one additional record.
    let mut query = id.to_be_bytes().to_vec();
    query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        query.push(u8::try_from(label.len()).expect("a label of less than 64 bytes"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 16, 0, 1]);
    // RFC 6891, 6.1.2: OPT with the size as its class; RFC 7830, 3: padding is option 12.
    query.extend([0, 0, 41]);
    query.extend(4096_u16.to_be_bytes());
    query.extend([0; 4]);
    match length.checked_sub(query.len() + 2 + 4) {
        None => query.extend([0, 0]),
        Some(padding) => {
            let padding = u16::try_from(padding).expect("a query of less than 64 kB");
            query.extend((padding + 4).to_be_bytes());
            query.extend(12_u16.to_be_bytes());
            query.extend(padding.to_be_bytes());
            query.resize(query.len() + usize::from(padding), 0);
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_padded_to_its_length() {
        let plain = query(7, "who.example.test", 0);
        assert_eq!(plain.len(), 12 + 18 + 4 + 11);
        assert_eq!(query(7, "who.example.test", plain.len() + 3), plain);
        for length in [plain.len() + 4, 1000, 3000] {
            assert_eq!(query(7, "who.example.test", length).len(), length);
        }
    }
}
