//! BIND 9 with zone data of its own in each instance, so that a client can tell who answered,
//! and with its own count of what arrived.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    ask::Ask,
    lab::{Host, Lab},
    namespace::Namespace,
    process::{Running, wait_until},
};

/// The question whose answer is the name of the server.
pub const WHO: &str = "who.example.test";
/// The ports it listens on: two, because one service cannot spread per flow and another per packet to the same one.
pub const PORTS: [u16; 2] = [53, 5300];
/// Sizes of whole answers, in bytes, that `sSIZE.example.test TXT` has over UDP without a cookie.
pub const SIZES: [usize; 3] = [1232, 1400, 4096];

/// A running `named`.
#[derive(Debug)]
pub struct Bind {
    who: String,
    namespace: Namespace,
    running: Running,
}

/// What reached a BIND since it started: requests by transport and family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// UDP over IPv4.
    pub udp4: u64,
    /// UDP over IPv6.
    pub udp6: u64,
    /// TCP over IPv4.
    pub tcp4: u64,
    /// TCP over IPv6.
    pub tcp6: u64,
}

impl Arrivals {
    /// All of them.
    pub fn total(self) -> u64 {
        self.udp4 + self.udp6 + self.tcp4 + self.tcp6
    }
}

impl Bind {
    /// Starts one on each backend of the lab, named `b1`, `b2`, …, and waits until they answer.
    ///
    /// # Errors
    /// As [`Bind::start`].
    pub fn start_all(lab: &Lab) -> Result<Vec<Self>> {
        let start = |(index, host): (usize, &Host)| Self::start(lab, &format!("b{}", index + 1), host);
        lab.backends().iter().enumerate().map(start).collect()
    }

    /// Starts one on a host and waits until it answers over both families.
    ///
    /// # Errors
    /// It does not start; the end of its log is in the error.
    pub fn start(lab: &Lab, who: &str, host: &Host) -> Result<Self> {
        let directory = lab.directory(&format!("bind-{who}"))?;
        fs::write(directory.join("zone"), zone(who))?;
        let configuration = directory.join("named.conf");
        fs::write(&configuration, named_conf(&directory))?;
        let mut command = host.namespace.command(&own_copy(lab)?.to_string_lossy());
        command.args(["-g", "-c"]).arg(&configuration);
        let running = Running::start(who, command, &directory.join("log"))?;
        let mut bind = Self { who: who.to_owned(), namespace: host.namespace.clone(), running };
        for address in [host.v4, host.v6] {
            bind.wait_for_answer(address)?;
        }
        Ok(bind)
    }

    /// The name it answers with.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// What has reached it since it started, by its own statistics; its start cost one query of each family or more.
    ///
    /// # Errors
    /// It does not answer, or not as BIND 9.18 does.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let body = self.namespace.enter(|| get(STATISTICS, "/json/v1/traffic"))?;
        let statistics: Value = serde_json::from_str(&body).with_context(|| format!("{}: {body}", self.who))?;
        let traffic = statistics.get("traffic").with_context(|| format!("{}: no traffic in {body}", self.who))?;
        let count = |family: &str, transport: &str| {
            // A histogram of sizes; a family or transport that nothing came by is left out.
            let name = format!("dns-{transport}-requests-sizes-received-{family}");
            let nested = traffic.pointer(&format!("/{family}/{transport}/request-sizes"));
            let sizes = nested.or_else(|| traffic.get(&name)).and_then(Value::as_object);
            sizes.map_or(0, |sizes| sizes.values().filter_map(Value::as_u64).sum())
        };
        Ok(Arrivals {
            udp4: count("ipv4", "udp"),
            udp6: count("ipv6", "udp"),
            tcp4: count("ipv4", "tcp"),
            tcp6: count("ipv6", "tcp"),
        })
    }

    /// Ends it as an operator would, and waits until it is gone.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop(mut self) -> Result<()> {
        self.running.signal(Signal::SIGTERM)?;
        self.running.wait(Duration::from_secs(10)).map(drop)
    }

    /// Leaves it running after this value is gone.
    pub fn keep(self) {
        self.running.keep();
    }

    fn wait_for_answer(&mut self, address: IpAddr) -> Result<()> {
        let (who, running) = (&self.who, &mut self.running);
        wait_until(&format!("{who} answers at {address}"), Duration::from_secs(10), || {
            ensure!(running.is_running()?, "{who} has ended: {}", running.log_tail());
            let ask = Ask::from_one_socket(SocketAddr::new(address, 53), 1).patience(Duration::from_millis(100));
            Ok(ask.run(&self.namespace)?.answered() == 1)
        })
        .with_context(|| running.log_tail())
    }
}

/// Where it tells its statistics, inside its namespace.
const STATISTICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8053);

/// A copy of the program in the lab: Debian's AppArmor profile would keep `/usr/sbin/named` from our directories.
fn own_copy(lab: &Lab) -> Result<PathBuf> {
    let copy = lab.directory("bind")?.join("named");
    if !copy.exists() {
        fs::copy("/usr/sbin/named", &copy).context("/usr/sbin/named: package bind9")?;
    }
    Ok(copy)
}

fn named_conf(directory: &Path) -> String {
    let directory = directory.display();
    let listen = PORTS.map(|port| format!("listen-on port {port} {{ any; }}; listen-on-v6 port {port} {{ any; }};"));
    let listen = listen.join("\n    ");
    format!(
        r#"options {{
    directory "{directory}";
    pid-file none;
    {listen}
    recursion no;
    dnssec-validation no;
    minimal-responses yes;
    answer-cookie no;
    edns-udp-size 4096;
    max-udp-size 4096;
    session-keyfile none;
    tcp-clients 2000;
}};
controls {{ }};
statistics-channels {{ inet 127.0.0.1 port 8053 allow {{ 127.0.0.1; }}; }};
zone "example.test" {{ type primary; file "{directory}/zone"; }};
"#
    )
}

fn zone(who: &str) -> String {
    let mut zone = format!(
        "$TTL 60\n@ SOA ns.example.test. admin.example.test. 1 3600 600 86400 60\n@ NS ns\nns A 192.0.2.1\n\
         ns AAAA 2001:db8::1\nwho TXT \"{who}\"\n"
    );
    for size in SIZES {
        let name = format!("s{size}");
        // RFC 1035, 4.1 and RFC 6891, 6.1.2: header, question, one record with a compressed name, an empty OPT.
        let around = 12 + (name.len() + ".example.test.".len() + 1 + 4) + 12 + 11;
        writeln!(zone, "{name} TXT {}", text(size - around)).expect("a string takes all");
    }
    zone
}

/// Character strings that take exactly `length` bytes in a message, a length byte each included.
fn text(mut length: usize) -> String {
    let mut strings = Vec::new();
    while length > 0 {
        let string = (length - 1).min(255);
        // Letters by their place, so that a fragment at a wrong one shows.
        let letter = |at: usize| char::from(b'a' + ((length - at) * (length - at) / 8 % 23) as u8);
        strings.push(format!("\"{}\"", (0..string).map(letter).collect::<String>()));
        length -= string + 1;
    }
    strings.join(" ")
}

/// A GET over a connection of its own.
fn get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("statistics at {server}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("statistics that are no text")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_takes_exactly_the_asked_length() {
        for length in [1, 2, 255, 256, 257, 511, 512, 513, 4000] {
            let strings = text(length);
            let wire: usize = strings.split(' ').map(|string| string.len() - 2 + 1).sum();
            assert_eq!(wire, length);
        }
    }
}
