//! A UDP client that opens each flow with two packets at once: two threads on two CPUs send through the same socket.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    ask::{allowed_cpus, parse, pin, query},
    bind::WHO,
    namespace::Namespace,
};

/// Flows that were each opened by two packets.
#[derive(Clone, Debug, Default)]
pub struct Twins {
    /// Who answered the first CPU's and the second CPU's query of each flow.
    pub by_flow: Vec<[Option<String>; 2]>,
    /// Flows whose two packets were really being sent at the same moment.
    pub at_once: usize,
    /// Datagrams that are no answer to either, or not from the server.
    pub strange: usize,
}

/// Flows opened before their answers are read, so that no queue overruns.
const BATCH: usize = 100;
/// How long one waits for each answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens flows from within a namespace, one from each of the ports, until so many of them were opened by two packets
/// that were being sent at the same moment, or no port is left.
///
/// # Errors
/// A socket cannot be made, or there are no two CPUs.
pub fn ask(client: &Namespace, server: SocketAddr, ports: Range<u16>, at_once: usize) -> Result<Twins> {
    let cpus = allowed_cpus()?;
    let [first, second, ..] = cpus[..] else { bail!("two CPUs to send from, but only {} here", cpus.len()) };
    client.enter(|| {
        let mut twins = Twins::default();
        let mut ports = ports.peekable();
        while twins.at_once < at_once && ports.peek().is_some() {
            let bind = |port| bind(server.ip(), port);
            let sockets = ports.by_ref().take(BATCH).map(bind).collect::<Result<Vec<_>>>()?;
            twins.at_once += send(&sockets, server, [first, second])?;
            for socket in &sockets {
                let answers = twins.receive(socket, server)?;
                twins.by_flow.push(answers);
            }
        }
        Ok(twins)
    })
}

impl Twins {
    fn receive(&mut self, socket: &UdpSocket, server: SocketAddr) -> Result<[Option<String>; 2]> {
        let mut answers = [None, None];
        let end = Instant::now() + PATIENCE;
        while answers.iter().any(Option::is_none) {
            let left = end.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut buffer = [0; 2048];
            let (length, source) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error).context("an answer"),
            };
            let is_servers = (source.ip(), source.port()) == (server.ip(), server.port());
            let answer = parse(&buffer[..length]).filter(|_| is_servers);
            match answer.and_then(|(id, who)| Some((answers.get_mut(usize::from(id))?, who))) {
                Some((answer @ None, who)) => *answer = Some(who),
                Some((Some(_), _)) | None => self.strange += 1,
            }
        }
        Ok(answers)
    }
}

/// Sends both packets of each flow, and says how many pairs were being sent at the same moment.
fn send(sockets: &[UdpSocket], server: SocketAddr, cpus: [usize; 2]) -> Result<usize> {
    let arrived = AtomicUsize::new(0);
    let spans = thread::scope(|scope| {
        let senders = [0, 1].map(|id| {
            let arrived = &arrived;
            scope.spawn(move || {
                // Whatever fails, the other one must not wait for us for ever.
                let spans = pin(cpus[id]).and_then(|()| send_own(id, sockets, server, arrived));
                if spans.is_err() {
                    arrived.fetch_add(GONE, Ordering::SeqCst);
                }
                spans
            })
        });
        senders.map(|sender| sender.join().expect("no sender panics"))
    });
    let [first, second] = spans;
    let is_at_once = |(a, b): &((Instant, Instant), (Instant, Instant))| a.0.max(b.0) < a.1.min(b.1);
    Ok(first?.into_iter().zip(second?).filter(is_at_once).count())
}

/// More than ever arrive.
const GONE: usize = 1 << 32;

/// Sends one CPU's packet of each flow, each when both are there, and returns from when to when each was being sent.
fn send_own(
    id: usize,
    sockets: &[UdpSocket],
    server: SocketAddr,
    arrived: &AtomicUsize,
) -> Result<Vec<(Instant, Instant)>> {
    let mut query = query(WHO);
    query[..2].copy_from_slice(&u16::try_from(id)?.to_be_bytes());
    let mut spans = Vec::with_capacity(sockets.len());
    for (flow, socket) in sockets.iter().enumerate() {
        let both = 2 * (flow + 1);
        let mut all = arrived.fetch_add(1, Ordering::SeqCst) + 1;
        let mut spins = 0_u32;
        while all < both {
            spins += 1;
            if spins.is_multiple_of(10_000) {
                // The other one may wait for this very CPU, if something else runs on its own.
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            all = arrived.load(Ordering::SeqCst);
        }
        ensure!(all < GONE, "the other sender has ended");
        let start = Instant::now();
        socket.send_to(&query, server).with_context(|| format!("query to {server}"))?;
        spans.push((start, Instant::now()));
    }
    Ok(spans)
}

fn bind(server: IpAddr, port: u16) -> Result<UdpSocket> {
    let any = match server {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, port)).with_context(|| format!("source port {port}"))
}
