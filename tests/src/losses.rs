//! What a lab's own sockets and devices have lost, so that a query without an answer can be told from one that was
//! dropped on its way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};

use crate::{
    lab::{CLIENT_SIDE, Lab},
    namespace::Namespace,
};

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

/// What the balancer's veths have done for XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handed {
    /// Frames they took from it and put into the queue of the other end.
    pub sent: u64,
    /// Frames they took from it and had no room for there.
    pub refused: u64,
    /// Frames that came in and were lost on their way to it or from it to another device.
    pub lost: u64,
    /// Frames that came in and that it dropped, for a reason of its own.
    pub dropped: u64,
}

impl Handed {
    /// What was added to it after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            refused: self.refused - before.refused,
            lost: self.lost - before.lost,
            dropped: self.dropped - before.dropped,
        }
    }

    /// A name and a number on each line, as `ethtool -S` says.
    fn read(statistics: &str) -> Self {
        let mut handed = Self::default();
        for (name, number) in statistics.lines().filter_map(|line| line.trim().split_once(": ")) {
            let Some((_, what)) = name.split_once("_queue_").and_then(|(_, rest)| rest.split_once('_')) else {
                continue;
            };
            let number: u64 = number.parse().unwrap_or(0);
            match (name.starts_with("tx_"), what) {
                (true, "xdp_xmit") => handed.sent += number,
                (true, "xdp_xmit_errors") => handed.refused += number,
                (false, "drops") => handed.lost += number,
                (false, "xdp_drops") => handed.dropped += number,
                (_, _) => {}
            }
        }
        handed
    }
}

/// Adds up what the balancer's veths have done for XDP in their drivers; XDP in the stack is not counted there.
///
/// # Errors
/// A device does not say.
pub fn handed(lab: &Lab) -> Result<Handed> {
    let ports: BTreeSet<&str> = (0..lab.backends().len()).map(|backend| lab.port(backend)).collect();
    let mut sum = Handed::default();
    for device in [CLIENT_SIDE].into_iter().chain(ports) {
        let one = Handed::read(&lab.balancer().sh(&format!("ethtool -S {device}"))?);
        sum.sent += one.sent;
        sum.refused += one.refused;
        sum.lost += one.lost;
        sum.dropped += one.dropped;
    }
    Ok(sum)
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
    fn what_veths_did_for_xdp_is_added_up() {
        let statistics = "NIC statistics:\n     peer_ifindex: 5\n     rx_queue_0_xdp_packets: 9\n     rx_queue_0_drops: 1\n     \
                          rx_queue_0_xdp_drops: 2\n     rx_queue_1_xdp_drops: 3\n     tx_queue_0_xdp_xmit: 40\n     \
                          tx_queue_1_xdp_xmit: 50\n     tx_queue_1_xdp_xmit_errors: 6\n";
        assert_eq!(Handed::read(statistics), Handed { sent: 90, refused: 6, lost: 1, dropped: 5 });
    }

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
