//! What Evenkeel is compared with: the rules of iptables and nft that spread DNS over backends today.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{CLIENT_SIDE, Lab},
    namespace::Namespace,
    statistic::Nth,
};

/// How the rules choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// iptables: `--mode random` with 1/n, 1/(n−1), … and a last rule that takes the rest.
    Random,
    /// iptables: `--mode nth`, rule by rule as given; see [`crate::statistic`].
    Nth(Vec<Nth>),
    /// nft: `numgen inc mod n`.
    NftNumgen,
}

/// The rules in a lab's balancer, for both families and protocols; dropping them takes them back.
#[derive(Debug)]
pub struct Reference {
    balancer: Namespace,
}

impl Reference {
    /// Adds them for what clients send to a port of the balancer; each family and protocol has counters of its own.
    ///
    /// # Errors
    /// A rule is refused.
    pub fn start(lab: &Lab, rules: &Rules, port: u16) -> Result<Self> {
        let reference = Self { balancer: lab.balancer().clone() };
        match rules {
            Rules::Random => {
                let count = lab.backends().len();
                let choices = (0..count).map(|backend| match count - backend {
                    1 => (backend, String::new()),
                    left => (backend, format!("-m statistic --mode random --probability {:.10}", 1.0 / left as f64)),
                });
                reference.add_iptables(lab, port, &choices.collect::<Vec<_>>())?;
            }
            Rules::Nth(rules) => {
                let nth = |rule: &Nth| {
                    let statistic = format!("-m statistic --mode nth --every {} --packet {}", rule.every, rule.packet);
                    (rule.backend, statistic)
                };
                reference.add_iptables(lab, port, &rules.iter().map(nth).collect::<Vec<_>>())?;
            }
            Rules::NftNumgen => reference.add_nft(lab, port)?,
        }
        reference.forget_connections()?;
        Ok(reference)
    }

    /// Takes the rules back.
    ///
    /// # Errors
    /// They do not go.
    pub fn stop(self) -> Result<()> {
        self.take_back()
    }

    /// Lets the kernel forget what it has decided for each connection, so that the same ports are new ones again.
    ///
    /// # Errors
    /// `conntrack` is missing or refused.
    pub fn forget_connections(&self) -> Result<()> {
        self.balancer.sh("conntrack -F -f ipv4")?;
        self.balancer.sh("conntrack -F -f ipv6")?;
        Ok(())
    }

    fn add_iptables(&self, lab: &Lab, port: u16, choices: &[(usize, String)]) -> Result<()> {
        for tool in ["iptables-restore", "ip6tables-restore"] {
            let mut table = String::from("*nat\n");
            for protocol in ["udp", "tcp"] {
                for (backend, choice) in choices {
                    let backend = &lab.backends()[*backend];
                    let target = match tool {
                        "iptables-restore" => format!("{}:{port}", backend.v4),
                        _ => format!("[{}]:{port}", backend.v6),
                    };
                    let arrives = format!("-i {CLIENT_SIDE} -p {protocol} -m {protocol} --dport {port}");
                    table.push_str(&format!("-A PREROUTING {arrives} {choice} -j DNAT --to-destination {target}\n"));
                }
            }
            table.push_str("COMMIT\n");
            // One transaction: each addition by itself sets the counters of the legacy tool's earlier rules back.
            self.feed(tool, &["-w", "--noflush"], &table)?;
        }
        Ok(())
    }

    fn add_nft(&self, lab: &Lab, port: u16) -> Result<()> {
        let count = lab.backends().len();
        let mut rules = String::new();
        for (family, name) in [("ip", "v4"), ("ip6", "v6")] {
            let backends =
                lab.backends().iter().enumerate().map(|(index, backend)| {
                    format!("{index} : {}", if family == "ip" { backend.v4 } else { backend.v6 })
                });
            let map = backends.collect::<Vec<_>>().join(", ");
            let chosen = format!("dnat to numgen inc mod {count} map {{ {map} }}");
            rules.push_str(&format!(
                "table {family} evenkeel_reference_{name} {{ chain prerouting {{ \
                 type nat hook prerouting priority dstnat; \
                 iifname {CLIENT_SIDE} udp dport {port} {chosen}; iifname {CLIENT_SIDE} tcp dport {port} {chosen}; }}; }};\n"
            ));
        }
        self.feed("nft", &["-f", "-"], &rules)
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = self.balancer.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| program.to_owned())?;
        child.stdin.take().context("a pipe to it")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn take_back(&self) -> Result<()> {
        self.balancer.sh("iptables -w -t nat -F PREROUTING")?;
        self.balancer.sh("ip6tables -w -t nat -F PREROUTING")?;
        for table in ["ip evenkeel_reference_v4", "ip6 evenkeel_reference_v6"] {
            // Only there if it was nft's turn.
            let _ = self.balancer.sh(&format!("nft delete table {table}"));
        }
        self.forget_connections()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // The namespace goes a moment later, with whatever could not be taken back.
        let _ = self.take_back();
    }
}
