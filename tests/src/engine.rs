//! The rules a container engine leaves on its host, which a balancer has to live with.

use anyhow::Result;

use crate::{
    lab::{Lab, Reach},
    namespace::Namespace,
};

/// The engine's rules in a lab's balancer; dropping them takes them back.
#[derive(Debug)]
pub struct Engine {
    balancer: Namespace,
    /// Every rule with its tool, as it was added.
    rules: Vec<(&'static str, String)>,
}

impl Engine {
    /// Adds them: FORWARD policy DROP, MASQUERADE of what the containers send out, and a raw drop of what comes to a
    /// container directly from outside; bridged frames pass the same rules where the kernel has that.
    ///
    /// # Errors
    /// A rule is refused.
    pub fn start(lab: &Lab) -> Result<Self> {
        let balancer = lab.balancer().clone();
        let device = match lab.layout().reach {
            Reach::Bridge => "br0",
            Reach::Veths => "v+",
            Reach::Routed => "eth1",
        };
        let mut engine = Self { balancer, rules: Vec::new() };
        engine.balancer.sh("iptables -P FORWARD DROP")?;
        engine.balancer.sh("ip6tables -P FORWARD DROP")?;
        for (tool, subnet) in [("iptables", "10.100.13.0/24"), ("ip6tables", "fd00:100:13::/64")] {
            let established = "-m conntrack --ctstate RELATED,ESTABLISHED";
            engine.add(tool, format!("filter FORWARD -o {device} {established} -j ACCEPT"))?;
            engine.add(tool, format!("filter FORWARD -i {device} ! -o {device} -j ACCEPT"))?;
            engine.add(tool, format!("nat POSTROUTING -s {subnet} ! -o {device} -j MASQUERADE"))?;
            for backend in lab.backends() {
                let address = if tool == "iptables" { backend.v4 } else { backend.v6 };
                engine.add(tool, format!("raw PREROUTING -d {address} ! -i {device} -j DROP"))?;
            }
        }
        if engine.balancer.sh("sysctl -n net.bridge.bridge-nf-call-iptables").is_ok() {
            engine
                .balancer
                .sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")?;
        }
        Ok(engine)
    }

    /// Takes the rules back.
    ///
    /// # Errors
    /// A rule is not there any more.
    pub fn stop(mut self) -> Result<()> {
        self.take_back()
    }

    /// Leaves the rules after this value is gone.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    fn add(&mut self, tool: &'static str, rule: String) -> Result<()> {
        let (table, rest) = rule.split_once(' ').unwrap_or(("filter", &rule));
        self.balancer.sh(&format!("{tool} -w -t {table} -A {rest}"))?;
        self.rules.push((tool, rule));
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        while let Some((tool, rule)) = self.rules.pop() {
            let (table, rest) = rule.split_once(' ').unwrap_or(("filter", &rule));
            self.balancer.sh(&format!("{tool} -w -t {table} -D {rest}"))?;
        }
        self.balancer.sh("iptables -P FORWARD ACCEPT")?;
        self.balancer.sh("ip6tables -P FORWARD ACCEPT")?;
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The namespace goes a moment later, with whatever could not be taken back.
        let _ = self.take_back();
    }
}
