//! The flow table in the kernel, at the size it is made for: what `lb-ebpf` shows of it with threads, on the real maps.

use std::{process::ExitCode, thread};

use anyhow::{Context, Result, bail, ensure};
use lb_common::reason::Reason;
use lb_userspace::{
    capacity::Capacity,
    dataplane::{Dataplane, bpf::Program},
    plan::Plan,
    settings::Limits,
};
use testbed::{
    ask::{allowed_cpus, pin},
    cases::{DEFAULT_WAY, Machine, Outcome, kernel, planned},
    harness::{Needs, run_side_by_side, trial},
    packet::{Packet, eth},
};

fn main() -> ExitCode {
    if Needs::Root.unmet().is_none()
        && let Err(error) = kernel::enter()
    {
        eprintln!("table: {error:#}");
        return ExitCode::FAILURE;
    }
    run_side_by_side(vec![
        trial("two cpus that begin the same million flows draw a ticket for each, once", Needs::Root, same_flows),
        trial("ten thousand live connections survive a flood of 1.6 million", Needs::Root, flood),
    ])
}

const SERVICE: &str = r#"[[service]]
name = "dns"
selector = "nth"
listen = [{ address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] }]
backends = ["10.100.13.2", "10.100.13.3", "10.100.13.4", "10.100.13.5"]
"#;

fn machine(flows: u32) -> Result<kernel::Kernel> {
    let limits = Limits { flows, replies: 4096, services: 64, backends: 256, ..Limits::default() };
    let mut kernel = kernel::Kernel::of(Capacity::from(&limits))?;
    kernel.program(&planned(SERVICE, DEFAULT_WAY, &Plan::default())?)?;
    Ok(kernel)
}

/// Client number `n`'s packets begin with this: no two clients have one address and port.
fn from_client(n: u32) -> String {
    let [_, a, b, c] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    format!("10.{}.{b}.{c}", 128 | a & 0x3f)
}

fn to_frontend(n: u32) -> Packet {
    eth().between(&from_client(n), "10.9.0.2")
}

fn port(n: u32) -> u16 {
    1024 + (n >> 8) as u16
}

fn same_flows() -> Result<()> {
    const FLOWS: u32 = 1_000_000;
    let cpus = allowed_cpus()?;
    let [first, second, ..] = cpus[..] else { bail!("two CPUs to begin flows on, but only {} here", cpus.len()) };
    let mut machine = machine(FLOWS)?;
    let bpf = machine.bpf();
    thread::scope(|scope| {
        let cpus: Vec<_> = [first, second]
            .into_iter()
            .map(|cpu| {
                let bpf = &*bpf;
                scope.spawn(move || -> Result<()> {
                    pin(cpu)?;
                    for n in 0..FLOWS {
                        let (verdict, _) =
                            bpf.run_once(Program::IngressClients, &to_frontend(n).udp(port(n), 53).bytes())?;
                        ensure!(verdict == REDIRECT, "flow {n} came to verdict {verdict}");
                    }
                    Ok(())
                })
            })
            .collect();
        cpus.into_iter().try_for_each(|cpu| cpu.join().expect("the thread does not panic"))
    })?;
    let counters = bpf.counters()?;
    let distinct: std::collections::BTreeSet<(String, u16)> = (0..FLOWS).map(|n| (from_client(n), port(n))).collect();
    let tickets: u64 = counters.services.values().map(|service| service.tickets).sum();
    let active: u64 = counters.active.values().sum();
    ensure!(tickets == distinct.len() as u64, "{tickets} tickets for {} flows", distinct.len());
    ensure!(active == tickets, "{active} active flows for {tickets} tickets");
    let choices: Vec<u64> = counters.traffic.values().map(|backend| backend.choices).filter(|n| *n > 0).collect();
    let (min, max) = (choices.iter().min().context("no choices")?, choices.iter().max().context("no choices")?);
    ensure!(choices.len() == 4 && max - min <= 1, "choices {choices:?}");
    let miscounts = bpf.audit();
    ensure!(miscounts.is_empty(), "{miscounts:?}");
    Ok(())
}

fn flood() -> Result<()> {
    const LIVE: u32 = 10_000;
    const FLOOD: u32 = 1_600_000;
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    // 60 % of 65,536 ways.
    let mut machine = machine(39_000)?;
    for n in 0..LIVE {
        let syn = machine.run(Program::IngressClients, &to_frontend(n).tcp(port(n), 53).flags(SYN).bytes())?;
        let Outcome::Redirected(bytes) = syn else { anyhow::bail!("the connection of client {n} came to {syn:?}") };
        let backend = std::net::Ipv4Addr::new(bytes[30], bytes[31], bytes[32], bytes[33]).to_string();
        let answer = eth().between(&backend, &from_client(n)).tcp(53, port(n)).flags(SYN_ACK).bytes();
        machine.bpf().run_once(Program::IngressBackends, &answer)?;
        machine.bpf().run_once(Program::IngressClients, &to_frontend(n).tcp(port(n), 53).flags(ACK).bytes())?;
    }
    for n in LIVE..LIVE + FLOOD {
        let (verdict, _) =
            machine.bpf().run_once(Program::IngressClients, &to_frontend(n).tcp(port(n), 53).flags(SYN).bytes())?;
        // A half-open flow makes room for the next one, and no two buckets are full of the established ones.
        ensure!(verdict == REDIRECT, "the flood's connection {n} came to verdict {verdict}");
    }
    let begun: u64 = machine.bpf().counters()?.services.values().map(|service| service.tickets).sum();
    ensure!(begun == u64::from(LIVE + FLOOD), "{begun} flows were begun");
    for n in 0..LIVE {
        let (verdict, _) =
            machine.bpf().run_once(Program::IngressClients, &to_frontend(n).tcp(port(n), 53).flags(ACK).bytes())?;
        ensure!(verdict == REDIRECT, "the connection of client {n} is gone");
    }
    let reasons = machine.bpf().counters()?.reasons;
    ensure!(reasons.get(&Reason::NoFlow).copied().unwrap_or(0) == 0, "{reasons:?}");
    let miscounts = machine.bpf().audit();
    ensure!(miscounts.is_empty(), "{miscounts:?}");
    Ok(())
}

/// The verdict of a packet that is sent on past the stack.
const REDIRECT: i32 = 7;
