//! Ring 2: random packets, on which the host and the kernel must agree.

use std::process::ExitCode;

use anyhow::{Result, bail};
use lb_common::{addr::Protocol, backend::Way};
use lb_userspace::{dataplane::bpf::Program, plan::Plan};
use testbed::{
    cases::{DEFAULT_WAY, Machine, host::Host, kernel, planned},
    harness::{Needs, run, trial},
    packet::{Packet, eth},
};

/// Packets in all.
const PACKETS: usize = 100_000;

/// Packets on one state of the tables: few enough that no flow expires meanwhile, since only the kernel's clock runs.
const RUN: usize = 2_000;

fn main() -> ExitCode {
    if Needs::Root.unmet().is_none()
        && let Err(error) = kernel::enter()
    {
        eprintln!("agreement: {error:#}");
        return ExitCode::FAILURE;
    }
    let runs = SERVICES.iter().map(|(name, services)| {
        trial(&format!("host and kernel agree on {name}"), Needs::Root, move || agree(services))
    });
    run(runs.collect())
}

fn agree(services: &str) -> Result<()> {
    for seed in 1..=(PACKETS / RUN / SERVICES.len()) as u64 {
        let way = WAYS[seed as usize % WAYS.len()];
        let plan = planned(services, way, &Plan::default())?;
        let (mut host, mut kernel) = (Host::default(), kernel::Kernel::new()?);
        host.program(&plan)?;
        kernel.program(&plan)?;
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for number in 0..RUN {
            let (at, bytes) = (dice.one_of(&PROGRAMS), dice.packet());
            let (expected, found) = (host.run(at, &bytes)?, kernel.run(at, &bytes)?);
            if expected != found {
                bail!(
                    "seed {seed}, {way:?}, packet {number} at {}: {bytes:02x?}\n  host:   {expected:02x?}\n  kernel: {found:02x?}",
                    at.name()
                );
            }
        }
    }
    Ok(())
}

/// One for each seed, in turn.
const WAYS: [Way; 3] = [DEFAULT_WAY, Way::Peer { ifindex: 1 }, Way::Stack];

const PROGRAMS: [Program; 6] = [
    Program::IngressClients,
    Program::IngressClients,
    Program::IngressClients,
    Program::IngressBackends,
    Program::IngressBoth,
    Program::EgressClients,
];

/// Services without chance in them, since each side has its own.
const SERVICES: [(&str, &str); 5] = [
    (
        "rr",
        r#"[[service]]
        name = "dns"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "10.9.0.3", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = ["10.100.13.2", "10.100.13.3:5353", "10.100.13.4", "fd00:100:13::2", "[fd00:100:13::3]:5353"]"#,
    ),
    (
        "wrr",
        r#"[[service]]
        name = "dns"
        selector = "wrr"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = [
            { address = "10.100.13.2", weight = 3 }, { address = "10.100.13.3:5353", weight = 2 },
            { address = "fd00:100:13::2", weight = 5 }, { address = "fd00:100:13::3", weight = 1 },
        ]"#,
    ),
    (
        "nth with unmatched choices",
        r#"[[service]]
        name = "dns"
        selector = "nth"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
        ]
        rules = [
            { every = 4, packet = 1, backend = "10.100.13.2" }, { every = 3, packet = 0, backend = "10.100.13.3:5353" },
            { every = 2, packet = 1, backend = "fd00:100:13::2" }, { every = 5, packet = 0, backend = "fd00:100:13::3" },
        ]"#,
    ),
    (
        "per-packet rr",
        r#"[[service]]
        name = "dns"
        schedule = "per-packet"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "10.9.0.3", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = ["10.100.13.2", "10.100.13.3:5353", "fd00:100:13::2", "[fd00:100:13::3]:5353"]"#,
    ),
    (
        "two services on one port, per packet and per flow",
        r#"[[service]]
        name = "a"
        schedule = "per-packet"
        selector = "nth"
        listen = [{ address = "10.9.0.2", port = 53, protocols = ["udp"] }]
        backends = ["10.100.13.2"]
        [[service]]
        name = "b"
        listen = [{ address = "10.9.0.3", port = 53, protocols = ["udp"] }, { address = "fd00:9::2", port = 53, protocols = ["udp"] }]
        backends = ["10.100.13.3:5353", "10.100.13.4", "fd00:100:13::2"]"#,
    ),
];

/// A reproducible source of chance (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())]
    }

    /// Mostly what the services know, in every mixture; now and then with a byte changed or the end cut off.
    fn packet(&mut self) -> Vec<u8> {
        const V4: [&str; 9] = [
            "10.9.0.1",
            "10.9.0.2",
            "10.9.0.3",
            "10.9.0.1",
            "10.9.0.2",
            "10.100.13.2",
            "10.100.13.3",
            "10.100.13.4",
            "10.9.0.9",
        ];
        const V6: [&str; 7] =
            ["fd00:9::1", "fd00:9::2", "fd00:9::1", "fd00:9::2", "fd00:100:13::2", "fd00:100:13::3", "fd00:9::9"];
        let pool: &[&str] = if self.roll(2) == 0 { &V4 } else { &V6 };
        let mut packet = eth().between(self.one_of(pool), self.one_of(pool)).hops(self.one_of(&[64, 64, 64, 2, 1, 0]));
        if self.roll(16) == 0 {
            packet = packet.link(self.one_of(&[[2, 0, 0, 0, 0, 9], [1, 0, 0x5e, 0, 0, 1]]), [2, 0, 0, 0, 0, 1]);
        }
        packet = self.transport(packet);
        for _ in 0..self.one_of(&[0, 0, 0, 0, 1, 2, 7]) {
            packet = packet.extension(self.one_of(&[0, 43, 60]));
        }
        packet = packet.options(self.one_of(&[0, 0, 0, 0, 3, 10]));
        let payload = vec![self.roll(256) as u8; self.one_of(&[0, 1, 20, 600])];
        let mut bytes = packet.payload(&payload).bytes();
        // The kernel's test run wants a whole IP header.
        let headers = 14 + 40;
        if self.roll(8) == 0 && bytes.len() > headers {
            let at = 14 + self.roll(bytes.len() - 14);
            bytes[at] = self.roll(256) as u8;
        }
        if self.roll(16) == 0 && bytes.len() > headers {
            bytes.truncate(headers + self.roll(bytes.len() - headers));
        }
        bytes
    }

    fn transport(&mut self, packet: Packet) -> Packet {
        const PORTS: [u16; 9] = [53, 53, 53, 5353, 4000, 4001, 4002, 4003, 54];
        let (source, destination) = (self.one_of(&PORTS), self.one_of(&PORTS));
        let identification = self.roll(4) as u32;
        match self.roll(12) {
            0..=4 => packet.udp(source, destination),
            5 => packet.udp(source, destination).without_checksum(),
            6..=8 => packet.tcp(source, destination).flags(self.one_of(&[0x02, 0x02, 0x12, 0x10, 0x11, 0x14])),
            9 => packet.udp(source, destination).first_fragment(identification),
            10 => packet.later_fragment(identification, 8 + 8 * self.roll(100), Protocol::UDP),
            _ => packet.raw(self.one_of(&[Protocol::UDP, Protocol::TCP, Protocol(1), Protocol(44)])),
        }
    }
}
