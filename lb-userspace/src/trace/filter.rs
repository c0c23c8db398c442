//! Which packets are traced: what follows `--trace`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::addr::{Addr, Family, Port, Protocol};

/// A packet is traced when it is of this family and protocol, and one of its ends has this address and this port. What is
/// not named may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The family of its addresses.
    pub family: Option<Family>,
    /// TCP or UDP.
    pub protocol: Option<Protocol>,
    /// The address of one end, as it came in or as it goes on.
    pub address: Option<Addr>,
    /// The port of that end.
    pub port: Option<Port>,
}

/// Why a filter cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write for example any, udp 10.9.0.1, tcp, 10.9.0.1:5353, [fd00::1]:53 or ipv6 port 53")]
pub struct FilterError(String);

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        let mut parts = text.split([' ', ',', '\t']).filter(|part| !part.is_empty()).peekable();
        if parts.peek().is_none() {
            return Err(FilterError("it says nothing".to_owned()));
        }
        while let Some(part) = parts.next() {
            match part {
                "any" => {}
                "ipv4" => put(&mut filter.family, Family::V4, "families")?,
                "ipv6" => put(&mut filter.family, Family::V6, "families")?,
                "tcp" => put(&mut filter.protocol, Protocol::TCP, "protocols")?,
                "udp" => put(&mut filter.protocol, Protocol::UDP, "protocols")?,
                "port" => {
                    let number = parts.next().ok_or_else(|| FilterError("`port` has no number".to_owned()))?;
                    put(&mut filter.port, port(number)?, "ports")?;
                }
                part => filter.put_end(part)?,
            }
        }
        let of_address = filter.address.map(|address| address.family());
        match (filter.family, of_address) {
            (Some(family), Some(of_address)) if family != of_address => {
                Err(FilterError(format!("no packet of {family} has an address of {of_address}")))
            }
            (Some(_) | None, Some(_) | None) => Ok(Self { family: filter.family.or(of_address), ..filter }),
        }
    }
}

impl Filter {
    /// An address, alone or with a port.
    fn put_end(&mut self, part: &str) -> Result<(), FilterError> {
        let alone = part.strip_prefix('[').and_then(|part| part.strip_suffix(']')).unwrap_or(part);
        if let Ok(address) = alone.parse::<IpAddr>() {
            return put(&mut self.address, address.into(), "addresses");
        }
        let end: SocketAddr = part.parse().map_err(|_| {
            FilterError(format!(
                "`{part}` is no address, no address with a port, and none of any, ipv4, ipv6, tcp, udp, port"
            ))
        })?;
        put(&mut self.address, end.ip().into(), "addresses")?;
        put(&mut self.port, port(&end.port().to_string())?, "ports")
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match (self.family, self.address) {
            (Some(Family::V4), None) => Some("ipv4".to_owned()),
            (Some(Family::V6), None) => Some("ipv6".to_owned()),
            // The address says it.
            (Some(_), Some(_)) | (None, Some(_) | None) => None,
        };
        let protocol = self.protocol.map(|protocol| protocol.name().to_owned());
        let address = self.address.map(|address| address.to_string());
        let port = self.port.map(|port| format!("port {port}"));
        let parts: Vec<String> = [family, protocol, address, port].into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("any") } else { f.write_str(&parts.join(" ")) }
    }
}

fn put<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), FilterError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(FilterError(format!("it names two {what}"))),
    }
}

fn port(number: &str) -> Result<Port, FilterError> {
    match number.parse() {
        Ok(0) | Err(_) => Err(FilterError(format!("`{number}` is no port: 1 to 65535"))),
        Ok(number) => Ok(Port::new(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_say_what_was_asked_for() {
        for (text, expected) in [
            ("any", "any"),
            ("udp 10.9.0.1", "udp 10.9.0.1"),
            ("tcp", "tcp"),
            ("10.9.0.1:5353", "10.9.0.1 port 5353"),
            ("[fd00::1]:53", "fd00::1 port 53"),
            ("fd00::1,udp", "udp fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("  port 53 ,\ttcp ipv6", "ipv6 tcp port 53"),
            ("10.9.0.1 ipv4 port 53", "10.9.0.1 port 53"),
        ] {
            let filter: Filter = text.parse().expect(text);
            assert_eq!(filter.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(filter), "{text}");
        }
    }

    #[test]
    fn what_no_filter_is_is_refused_by_name_and_with_examples() {
        for (text, complaint) in [
            ("", "it says nothing"),
            ("dns", "`dns` is no address"),
            ("10.9.0.300", "`10.9.0.300` is no address"),
            ("port", "`port` has no number"),
            ("port x", "`x` is no port"),
            ("10.9.0.1:0", "`0` is no port"),
            ("tcp udp", "it names two protocols"),
            ("10.9.0.1 10.9.0.2", "it names two addresses"),
            ("10.9.0.1:53 port 53", "it names two ports"),
            ("ipv4 fd00::1", "no packet of IPv4 has an address of IPv6"),
        ] {
            let error = text.parse::<Filter>().expect_err(text).to_string();
            assert!(error.starts_with(complaint) && error.contains("; write for example any, udp"), "{text}: {error}");
        }
    }
}
