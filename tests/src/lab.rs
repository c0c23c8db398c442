//! Topologies of network namespaces: clients, a balancer, backends.
//! Built with `ip`, nothing tuned in them, and gone when the value is dropped or the process is interrupted.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use crate::{cleanup::Prefix, namespace::Namespace, process::run};

/// The balancer's device towards the clients.
pub const CLIENT_SIDE: &str = "eth3";
/// The balancer's addresses on [`CLIENT_SIDE`], those of the label `eth3` first, then those of `eth3:1`.
pub const FRONTENDS: [IpAddr; 4] = [v4(10, 9, 0, 2), v6(9, 2), v4(10, 9, 0, 3), v6(9, 3)];

/// How the balancer reaches its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the bridge `br0` and a port `v1`, `v2`, … for each, as a container engine makes it.
    Bridge,
    /// Through a plain veth `v1`, `v2`, … for each.
    Veths,
    /// Through its NIC `eth1`, at whose other end a switch is.
    Routed,
}

/// What the devices of the lab may leave to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As the kernel sets them.
    Untouched,
    /// No checksum, segmentation or receive offload on any device.
    Off,
    /// The balancer's devices finish checksums themselves, as a wire's NIC would: wrong sums show.
    FinishedByBalancer,
    /// Clients and backends finish checksums themselves, and so look at those that reach them: wrong sums show.
    FinishedByHosts,
}

/// What a lab is to look like; a value to start from is [`Layout::default`].
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// How many client namespaces; from two on they share a switch with the balancer.
    pub clients: usize,
    /// How many backend namespaces.
    pub backends: usize,
    /// How the balancer reaches them.
    pub reach: Reach,
    /// The MTU of every device.
    pub mtu: u32,
    /// What the devices may leave to others.
    pub offloads: Offloads,
    /// Whether the other ends of the balancer's devices receive as a NIC does (GRO is on), so that these take packets from
    /// XDP.
    pub far_gro: bool,
}

impl Default for Layout {
    fn default() -> Self {
        let (reach, offloads) = (Reach::Bridge, Offloads::Untouched);
        Self { clients: 1, backends: 4, reach, mtu: 1500, offloads, far_gro: false }
    }
}

/// A host of the lab with its addresses.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    prefix: Prefix,
    layout: Layout,
    clients: Vec<Host>,
    backends: Vec<Host>,
    balancer: Namespace,
    /// The balancer's device for each backend; a new one after each restart.
    ports: BTreeMap<usize, String>,
    restarts: usize,
    kept: bool,
}

impl Lab {
    /// Builds the lab.
    ///
    /// # Errors
    /// Not root, or a command of the building is refused; what was built until then is removed.
    pub fn up(layout: Layout) -> Result<Self> {
        ensure!((1..=50).contains(&layout.clients), "a lab has 1 to 50 clients, not {}", layout.clients);
        ensure!((1..=200).contains(&layout.backends), "a lab has 1 to 200 backends, not {}", layout.backends);
        allow_many_files()?;
        let prefix = Prefix::take()?;
        let host = |role: String, v4, v6| Host { namespace: Namespace::named(prefix.namespace(&role)), v4, v6 };
        let clients =
            (1..=layout.clients).map(|n| host(format!("client{n}"), v4(10, 9, 0, 100 + octet(n)), v6(9, 0x100 + n)));
        let backends =
            (1..=layout.backends).map(|n| host(format!("b{n}"), v4(10, 100, 13, 1 + octet(n)), v6_backend(1 + n)));
        let (clients, backends) = (clients.collect(), backends.collect());
        let balancer = Namespace::named(prefix.namespace("balancer"));
        let mut lab =
            Self { prefix, layout, clients, backends, balancer, ports: BTreeMap::new(), restarts: 0, kept: false };
        lab.build().context("the lab was not built")?;
        Ok(lab)
    }

    /// What it was built from.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The namespace of the balancer.
    pub fn balancer(&self) -> &Namespace {
        &self.balancer
    }

    /// The first client.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// All clients.
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// All backends: `b1`, `b2`, ….
    pub fn backends(&self) -> &[Host] {
        &self.backends
    }

    /// The balancer's own device for a backend, counted from 0; a shared one where there is none.
    pub fn port(&self, backend: usize) -> &str {
        match self.layout.reach {
            Reach::Bridge | Reach::Veths => &self.ports[&backend],
            Reach::Routed => "eth1",
        }
    }

    /// The balancer's devices towards the backends.
    pub fn backend_side(&self) -> Vec<String> {
        match self.layout.reach {
            Reach::Bridge => ["br0".to_owned()].into_iter().chain(self.ports.values().cloned()).collect(),
            Reach::Veths => self.ports.values().cloned().collect(),
            Reach::Routed => vec!["eth1".to_owned()],
        }
    }

    /// A directory of the lab's own, made if need be and removed with the lab.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let directory = self.prefix.directory().join(name);
        fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
        Ok(directory)
    }

    /// A BPF file system of the lab's own, for pins; what is pinned there goes with the lab.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn pins(&self) -> Result<PathBuf> {
        let mounted = self.prefix.pins();
        if !mounted.exists() {
            self.directory("bpf")?;
            mount(Some("bpf"), &mounted, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("{}: no BPF file system", mounted.display()))?;
        }
        Ok(mounted)
    }

    /// Gives a backend a new namespace and a new device at the balancer, with its old addresses: a container restarts.
    /// What ran in it has to be ended before and started anew after.
    ///
    /// # Errors
    /// A command of the building is refused.
    pub fn restart_backend(&mut self, backend: usize) -> Result<()> {
        run("ip", &["netns", "del", self.backends[backend].namespace.name()])?;
        self.restarts += 1;
        self.add_backend(backend)?;
        self.finish_devices()
    }

    /// Changes what the devices may leave to others. Receive offload that is off stays off.
    ///
    /// # Errors
    /// A device refuses.
    pub fn set_offloads(&mut self, offloads: Offloads) -> Result<()> {
        for (namespace, device) in self.devices() {
            namespace.sh(&format!("ethtool -K {device} tx on sg on tso on gso on"))?;
        }
        self.layout.offloads = offloads;
        self.finish_devices()
    }

    /// Changes whether the far ends of the balancer's devices receive as a NIC does, so that these take packets from XDP.
    ///
    /// # Errors
    /// A device refuses.
    pub fn set_far_gro(&mut self, far_gro: bool) -> Result<()> {
        self.layout.far_gro = far_gro;
        self.finish_far_ends(if far_gro { "on" } else { "off" })
    }

    /// Leaves the lab up after this process; `remove_left` removes it.
    ///
    /// # Errors
    /// The mark that says so cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.prefix.keep()?;
        self.kept = true;
        Ok(())
    }

    /// Removes the lab and says what of it did not go; dropping it does the same and prints that.
    ///
    /// # Errors
    /// Something of it stays.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        self.prefix.remove()
    }

    /// What every part of this lab is named after.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    fn build(&mut self) -> Result<()> {
        self.add_namespace(&self.balancer)?;
        // An engine and a router set these; without them a kernel forwards nothing.
        self.balancer.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        self.add_client_side()?;
        self.add_backend_side()?;
        for backend in 0..self.backends.len() {
            self.add_backend(backend)?;
        }
        self.finish_devices()
    }

    fn add_client_side(&self) -> Result<()> {
        for client in &self.clients {
            self.add_namespace(&client.namespace)?;
        }
        match self.clients.as_slice() {
            [client] => self.add_veth(&self.balancer, CLIENT_SIDE, &client.namespace, "eth0")?,
            clients => {
                let switch = self.add_switch("lan")?;
                self.add_veth(&self.balancer, CLIENT_SIDE, &switch, "uplink")?;
                switch.sh("ip link set uplink master br0")?;
                for (index, client) in clients.iter().enumerate() {
                    self.add_veth(&switch, &format!("c{index}"), &client.namespace, "eth0")?;
                    switch.sh(&format!("ip link set c{index} master br0"))?;
                }
            }
        }
        let balancer = &self.balancer;
        balancer.sh("ip addr add 10.9.0.2/24 dev eth3")?;
        balancer.sh("ip addr add 10.9.0.3/24 dev eth3 label eth3:1")?;
        balancer.sh("ip addr add fd00:9::2/64 dev eth3 nodad")?;
        balancer.sh("ip addr add fd00:9::3/64 dev eth3 nodad")?;
        for client in &self.clients {
            let namespace = &client.namespace;
            namespace.sh(&format!("ip addr add {}/24 dev eth0", client.v4))?;
            namespace.sh(&format!("ip addr add {}/64 dev eth0 nodad", client.v6))?;
            namespace.sh("ip route add default via 10.9.0.2")?;
            namespace.sh("ip route add default via fd00:9::2")?;
        }
        Ok(())
    }

    fn add_backend_side(&self) -> Result<()> {
        let device = match self.layout.reach {
            Reach::Veths => return Ok(()),
            Reach::Bridge => {
                self.balancer.sh("ip link add br0 type bridge")?;
                self.balancer.sh(&format!("ip link set br0 mtu {} up", self.layout.mtu))?;
                "br0"
            }
            Reach::Routed => {
                let switch = self.add_switch("rack")?;
                self.add_veth(&self.balancer, "eth1", &switch, "uplink")?;
                switch.sh("ip link set uplink master br0")?;
                "eth1"
            }
        };
        self.balancer.sh(&format!("ip addr add 10.100.13.1/24 dev {device}"))?;
        self.balancer.sh(&format!("ip addr add fd00:100:13::1/64 dev {device} nodad"))?;
        Ok(())
    }

    fn add_backend(&mut self, index: usize) -> Result<()> {
        let backend = self.backends[index].clone();
        let namespace = &backend.namespace;
        let (v4, v6) = (backend.v4, backend.v6);
        self.add_namespace(namespace)?;
        let port = match self.restarts {
            0 => format!("v{}", index + 1),
            restarts => format!("v{}r{restarts}", index + 1),
        };
        match self.layout.reach {
            Reach::Bridge | Reach::Veths => self.add_veth(&self.balancer, &port, namespace, "eth0")?,
            Reach::Routed => {
                let switch = Namespace::named(self.prefix.namespace("rack"));
                self.add_veth(&switch, &port, namespace, "eth0")?;
                switch.sh(&format!("ip link set {port} master br0"))?;
            }
        }
        match self.layout.reach {
            Reach::Bridge | Reach::Routed => {
                namespace.sh(&format!("ip addr add {v4}/24 dev eth0"))?;
                namespace.sh(&format!("ip addr add {v6}/64 dev eth0 nodad"))?;
            }
            Reach::Veths => {
                self.balancer.sh(&format!("ip addr add 10.100.13.1 peer {v4} dev {port}"))?;
                self.balancer.sh(&format!("ip addr add fd00:100:13::1 peer {v6} dev {port} nodad"))?;
                namespace.sh(&format!("ip addr add {v4} peer 10.100.13.1 dev eth0"))?;
                namespace.sh(&format!("ip addr add {v6} peer fd00:100:13::1 dev eth0 nodad"))?;
            }
        }
        if self.layout.reach == Reach::Bridge {
            self.balancer.sh(&format!("ip link set {port} master br0"))?;
        }
        namespace.sh("ip route add default via 10.100.13.1")?;
        // `onlink`: the route to the peer of an IPv6 address appears a moment after the address.
        namespace.sh("ip route add default via fd00:100:13::1 dev eth0 onlink")?;
        self.ports.insert(index, port);
        Ok(())
    }

    fn finish_devices(&self) -> Result<()> {
        let balancers = |namespace: &Namespace| *namespace == self.balancer;
        let (features, is_meant): (_, fn(bool) -> bool) = match self.layout.offloads {
            Offloads::Untouched => ("", |_| false),
            Offloads::Off => ("tx off sg off tso off gso off gro off", |_| true),
            Offloads::FinishedByBalancer => ("tx off", |is_balancers| is_balancers),
            Offloads::FinishedByHosts => ("tx off", |is_balancers| !is_balancers),
        };
        for (namespace, device) in self.devices().into_iter().filter(|(namespace, _)| is_meant(balancers(namespace))) {
            namespace.sh(&format!("ethtool -K {device} {features}"))?;
        }
        if self.layout.far_gro { self.finish_far_ends("on") } else { Ok(()) }
    }

    fn finish_far_ends(&self, gro: &str) -> Result<()> {
        for (namespace, device) in self.far_ends() {
            namespace.sh(&format!("ethtool -K {device} gro {gro}"))?;
        }
        Ok(())
    }

    /// The other ends of the balancer's devices.
    fn far_ends(&self) -> Vec<(Namespace, &'static str)> {
        let switch = |role| Namespace::named(self.prefix.namespace(role));
        let mut ends = match self.clients.as_slice() {
            [client] => vec![(client.namespace.clone(), "eth0")],
            [..] => vec![(switch("lan"), "uplink")],
        };
        match self.layout.reach {
            Reach::Routed => ends.push((switch("rack"), "uplink")),
            Reach::Bridge | Reach::Veths => {
                ends.extend(self.backends.iter().map(|backend| (backend.namespace.clone(), "eth0")));
            }
        }
        ends
    }

    /// Every device of clients, balancer and backends; those of a switch are none of theirs.
    fn devices(&self) -> Vec<(&Namespace, String)> {
        let hosts = self.clients.iter().chain(&self.backends).map(|host| (&host.namespace, "eth0".to_owned()));
        let balancers = [CLIENT_SIDE.to_owned()].into_iter().chain(self.backend_side());
        hosts.chain(balancers.map(|device| (&self.balancer, device))).collect()
    }

    fn add_namespace(&self, namespace: &Namespace) -> Result<()> {
        run("ip", &["netns", "add", namespace.name()])?;
        namespace.sh("ip link set lo up")?;
        // A host is up for longer than the seconds in which its IPv6 addresses are not sure to be its own.
        namespace.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")?;
        Ok(())
    }

    /// A namespace with nothing but a bridge in it.
    fn add_switch(&self, role: &str) -> Result<Namespace> {
        let switch = Namespace::named(self.prefix.namespace(role));
        self.add_namespace(&switch)?;
        switch.sh("ip link add br0 type bridge")?;
        // The switch is a piece of hardware: no packet filter of a host looks at its frames.
        if switch.sh("sysctl -n net.bridge.bridge-nf-call-iptables").is_ok() {
            switch.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")?;
        }
        switch.sh(&format!("ip link set br0 mtu {} up", self.layout.mtu))?;
        Ok(switch)
    }

    /// A pair of devices that are up.
    ///
    /// Two queues: with one, frames of two sending CPUs are lost.
    fn add_veth(&self, here: &Namespace, device: &str, there: &Namespace, peer: &str) -> Result<()> {
        let (mtu, peer_namespace) = (self.layout.mtu, there.name());
        here.sh(&format!(
            "ip link add {device} mtu {mtu} numtxqueues 2 numrxqueues 2 type veth \
             peer name {peer} mtu {mtu} numtxqueues 2 numrxqueues 2 netns {peer_namespace}"
        ))?;
        here.sh(&format!("ip link set {device} up"))?;
        there.sh(&format!("ip link set {peer} up"))?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.prefix.remove()
        {
            eprintln!("the lab {:?} stays: {error:#}", self.prefix);
        }
    }
}

/// A client with a socket for each query needs more files than a shell allows.
fn allow_many_files() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let _ = DONE.set(());
    }
    Ok(())
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(network: u16, host: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host as u16))
}

const fn v6_backend(host: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0x13, 0, 0, 0, 0, host as u16))
}

const fn octet(n: usize) -> u8 {
    n as u8
}
