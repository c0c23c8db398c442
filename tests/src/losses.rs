//! What a lab's own sockets and devices have lost, so that a query without an answer can be told from one that was
//! dropped on its way.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};

use crate::{lab::Lab, namespace::Namespace};

/// Datagrams that a UDP socket had no room for and frames that a device dropped, by namespace and where; what is zero
/// is missing.
///
/// # Errors
/// A namespace does not say.
pub fn losses(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let hosts = lab.clients().iter().chain(lab.backends()).map(|host| &host.namespace);
    let mut losses = BTreeMap::new();
    for namespace in hosts.chain([lab.balancer()]) {
        let (v4, v6, devices) = namespace.enter(|| Ok((read("snmp")?, read("snmp6")?, read("dev")?)))?;
        for (place, count) in sockets_v4(&v4).chain(sockets_v6(&v6)).chain(dropped(&devices)) {
            if count > 0 {
                losses.insert(format!("{} {place}", short(namespace)), count);
            }
        }
    }
    Ok(losses)
}

fn read(name: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{name}");
    fs::read_to_string(&path).context(path)
}

/// Its role in the lab.
fn short(namespace: &Namespace) -> &str {
    namespace.name().split_once('-').map_or(namespace.name(), |(_, role)| role)
}

/// A line of names and a line of numbers.
fn sockets_v4(snmp: &str) -> impl Iterator<Item = (String, u64)> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp: "));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let both = names.split_whitespace().zip(numbers.split_whitespace());
    both.filter(|(name, _)| name.ends_with("bufErrors"))
        .filter_map(|(name, number)| Some((format!("IPv4 {name}"), number.parse().ok()?)))
}

/// A name and a number on each line.
fn sockets_v6(snmp6: &str) -> impl Iterator<Item = (String, u64)> {
    let pairs = snmp6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    pairs.filter_map(|(name, number)| {
        let name = name.strip_prefix("Udp6")?;
        name.ends_with("bufErrors").then_some((format!("IPv6 {name}"), number.trim().parse().ok()?))
    })
}

/// The fourth number of a device is what it dropped of what it received, the twelfth of what it sent.
fn dropped(devices: &str) -> impl Iterator<Item = (String, u64)> {
    devices.lines().filter_map(|line| line.split_once(':')).flat_map(|(device, numbers)| {
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |place: usize, what: &str| Some((format!("{} {what}", device.trim()), *numbers.get(place)?));
        [at(3, "received"), at(11, "sent")].into_iter().flatten().collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let snmp =
            "Ip: Forwarding\nIp: 1\nUdp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 5 7 0\nUdpLite: A\nUdpLite: 1\n";
        let expected = [("IPv4 RcvbufErrors".to_owned(), 7), ("IPv4 SndbufErrors".to_owned(), 0)];
        assert_eq!(sockets_v4(snmp).collect::<Vec<_>>(), expected);
        let snmp6 = "Ip6InReceives    \t3\nUdp6InErrors   \t9\nUdp6RcvbufErrors        \t4\n";
        assert_eq!(sockets_v6(snmp6).collect::<Vec<_>>(), [("IPv6 RcvbufErrors".to_owned(), 4)]);
        let devices = "Inter-| Receive | Transmit\n face |bytes\n  eth0: 100 2 0 5 0 0 0 0 200 4 0 6 0 0 0 0\n";
        let expected = [("eth0 received".to_owned(), 5), ("eth0 sent".to_owned(), 6)];
        assert_eq!(dropped(devices).collect::<Vec<_>>(), expected);
    }
}
