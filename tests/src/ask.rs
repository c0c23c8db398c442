//! A UDP client that counts exactly: every query is asked once, every answer is matched by its ID,
//! its source compared, and the server's name read from it.

use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::{bind::WHO, namespace::Namespace, poll::Poll};

/// What to ask; `Ask::from_…` begins, [`Ask::run`] asks.
#[derive(Clone, Debug)]
pub struct Ask {
    server: SocketAddr,
    question: String,
    sockets: Sockets,
    cpus: usize,
    window: usize,
    patience: Duration,
}

#[derive(Clone, Debug)]
enum Sockets {
    /// One for this many queries, bound to the port.
    One(usize, u16),
    /// One for each query, bound to the port.
    Each(Range<u16>),
}

impl Ask {
    /// Asks `count` times from one socket for each sending CPU.
    pub fn from_one_socket(server: SocketAddr, count: usize) -> Self {
        Self::new(server, Sockets::One(count, 0))
    }

    /// Asks once from each of the ports, with a socket of its own, so that no flow is seen twice; see [`Ports`].
    pub fn from_each_port(server: SocketAddr, ports: Range<u16>) -> Self {
        Self::new(server, Sockets::Each(ports))
    }

    fn new(server: SocketAddr, sockets: Sockets) -> Self {
        let (question, patience) = (WHO.to_owned(), Duration::from_secs(2));
        Self { server, question, sockets, cpus: 1, window: 64, patience }
    }

    /// Asks for the TXT record of another name than [`WHO`].
    #[must_use]
    pub fn question(mut self, name: &str) -> Self {
        name.clone_into(&mut self.question);
        self
    }

    /// Sends from this many CPUs at once, a thread pinned to each; 1 unless said.
    #[must_use]
    pub fn cpus(mut self, cpus: usize) -> Self {
        self.cpus = cpus;
        self
    }

    /// Binds the one socket to this port, or with several CPUs theirs to this one and the next; to free ones unless said.
    ///
    /// # Panics
    /// When it asks from each port of a range.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        match &mut self.sockets {
            Sockets::One(_, own) => *own = port,
            Sockets::Each(_) => unreachable!("each socket has its port already"),
        }
        self
    }

    /// Has at most this many queries of a CPU on their way; 64 unless said, so that no queue overruns.
    #[must_use]
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// Waits this long for each answer; 2 s unless said.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How many queries it asks.
    pub fn count(&self) -> usize {
        match &self.sockets {
            Sockets::One(count, _) => *count,
            Sockets::Each(ports) => ports.len(),
        }
    }

    /// Asks from within a namespace.
    ///
    /// # Errors
    /// A socket cannot be made, or there are fewer CPUs than asked for.
    pub fn run(&self, client: &Namespace) -> Result<Answers> {
        let cpus = allowed_cpus()?;
        ensure!(self.cpus <= cpus.len(), "{} CPUs to send from, but only {} here", self.cpus, cpus.len());
        let start = Instant::now();
        let parts = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.cpus)
                .map(|part| {
                    let (share, cpu) = (self.share(part), cpus[part]);
                    scope.spawn(move || {
                        client.enter_thread()?;
                        pin(cpu)?;
                        Asker::new(self, share)?.ask_all()
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Answers>>| thread.join().expect("no asker panics");
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let mut all = Answers::default();
        for part in parts {
            all.by_query.extend(part.by_query);
            all.wrong_source += part.wrong_source;
            all.repeated += part.repeated;
            all.malformed += part.malformed;
        }
        all.elapsed = start.elapsed();
        Ok(all)
    }

    /// The part that one of the CPUs asks.
    fn share(&self, part: usize) -> Sockets {
        let cut = |part: usize| self.count() * part / self.cpus;
        let (from, to) = (cut(part), cut(part + 1));
        match &self.sockets {
            Sockets::One(_, 0) => Sockets::One(to - from, 0),
            Sockets::One(_, port) => Sockets::One(to - from, port + u16::try_from(part).expect("few CPUs")),
            Sockets::Each(ports) => {
                let port = |offset: usize| ports.start + u16::try_from(offset).expect("an offset within the ports");
                Sockets::Each(port(from)..port(to))
            }
        }
    }
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Who answered each query, in the order of asking; with several CPUs, one CPU's after the other's.
    pub by_query: Vec<Option<String>>,
    /// Datagrams from another address or port than the one asked.
    pub wrong_source: usize,
    /// Answers to what had been answered already.
    pub repeated: usize,
    /// Datagrams from the right source that answer none of the queries.
    pub malformed: usize,
    /// How long all of it took.
    pub elapsed: Duration,
}

impl Answers {
    /// How many queries were answered from the right source.
    pub fn answered(&self) -> usize {
        self.by_query.iter().flatten().count()
    }

    /// How many were not.
    pub fn unanswered(&self) -> usize {
        self.by_query.len() - self.answered()
    }

    /// Answers by server; one that answered nothing is missing.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for who in self.by_query.iter().flatten() {
            *counts.entry(who.as_str()).or_default() += 1;
        }
        counts
    }

    /// Answers of the servers named `b1` to `bN`.
    pub fn of_backends(&self, backends: usize) -> Vec<usize> {
        let counts = self.counts();
        (1..=backends).map(|n| counts.get(format!("b{n}").as_str()).copied().unwrap_or(0)).collect()
    }

    /// Everything was answered, once, by the frontend that was asked.
    pub fn is_clean(&self) -> bool {
        self.unanswered() == 0 && self.wrong_source == 0 && self.repeated == 0 && self.malformed == 0
    }
}

/// Hands out source ports of a client, none of them twice until all are used up.
#[derive(Clone, Debug)]
pub struct Ports {
    next: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

impl Ports {
    const FIRST: u16 = 1024;

    /// Takes the next `count` ports, from the first one again if not so many are left.
    ///
    /// # Panics
    /// When there are not so many ports at all.
    pub fn take(&mut self, count: usize) -> Range<u16> {
        let count = u16::try_from(count).expect("fewer than 64512 ports");
        let start = if self.next.checked_add(count).is_some() { self.next } else { Self::FIRST };
        self.next = start.checked_add(count).expect("fewer than 64512 ports");
        start..self.next
    }
}

/// One CPU's part of the asking.
struct Asker<'a> {
    ask: &'a Ask,
    share: Sockets,
    query: Vec<u8>,
    poll: Poll,
    /// By query, or a single one.
    sockets: Vec<Option<UdpSocket>>,
    /// What was asked and may still be waited for, oldest first.
    waiting: VecDeque<(usize, Instant)>,
    in_flight: usize,
    /// By query: given up, so that a late answer does not count as one on its way.
    given_up: Vec<bool>,
    answers: Answers,
}

impl<'a> Asker<'a> {
    fn new(ask: &'a Ask, share: Sockets) -> Result<Self> {
        let count = match &share {
            Sockets::One(count, _) => *count,
            Sockets::Each(ports) => ports.len(),
        };
        ensure!(count <= 1 << 16, "{count} queries, but an ID has 16 bits");
        let mut asker = Self {
            ask,
            share,
            query: query(&ask.question),
            poll: Poll::new()?,
            sockets: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            given_up: vec![false; count],
            answers: Answers { by_query: vec![None; count], ..Answers::default() },
        };
        if let Sockets::One(_, port) = asker.share {
            asker.add_socket(port)?;
        }
        Ok(asker)
    }

    fn ask_all(mut self) -> Result<Answers> {
        let count = self.answers.by_query.len();
        let mut next = 0;
        while next < count || self.in_flight > 0 {
            while next < count && self.in_flight < self.ask.window {
                self.send(next)?;
                next += 1;
            }
            self.receive()?;
            self.give_up_late();
        }
        Ok(self.answers)
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let socket = match &self.share {
            Sockets::One(..) => 0,
            Sockets::Each(ports) => {
                let port = ports.start + u16::try_from(index).expect("an index within the ports");
                self.add_socket(port)?;
                index
            }
        };
        self.query[..2].copy_from_slice(&id(index).to_be_bytes());
        let socket = self.sockets[socket].as_ref().expect("a socket stays until its answer");
        socket.send_to(&self.query, self.ask.server).with_context(|| format!("query to {}", self.ask.server))?;
        self.waiting.push_back((index, Instant::now() + self.ask.patience));
        self.in_flight += 1;
        Ok(())
    }

    fn add_socket(&mut self, port: u16) -> Result<()> {
        let any = match self.ask.server.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        // Not connected: an answer from a wrong source must reach us to be counted.
        let socket = UdpSocket::bind((any, port)).with_context(|| format!("source port {port}"))?;
        self.poll.add(&socket, self.sockets.len())?;
        self.sockets.push(Some(socket));
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let Some((_, deadline)) = self.waiting.front() else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        for socket in self.poll.ready(left)? {
            while self.receive_from(socket)? {}
        }
        Ok(())
    }

    /// Takes one datagram from a socket, and says whether there may be another.
    fn receive_from(&mut self, index: usize) -> Result<bool> {
        let Some(socket) = &self.sockets[index] else { return Ok(false) };
        // A longer answer is cut here; the server's name stands at its start.
        let mut buffer = [0; 2048];
        let (length, source) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => bail!("socket {index}: {error}"),
        };
        if (source.ip(), source.port()) != (self.ask.server.ip(), self.ask.server.port()) {
            self.answers.wrong_source += 1;
            return Ok(true);
        }
        let Some((answered, who)) = parse(&buffer[..length]) else {
            self.answers.malformed += 1;
            return Ok(true);
        };
        let answered = usize::from(answered);
        let expected = match self.share {
            Sockets::One(..) => answered,
            Sockets::Each(_) => index,
        };
        match self.answers.by_query.get_mut(answered) {
            Some(slot @ None) if answered == expected => {
                *slot = Some(who);
                if !self.given_up[answered] {
                    self.in_flight -= 1;
                }
            }
            Some(Some(_)) if answered == expected => self.answers.repeated += 1,
            Some(_) | None => self.answers.malformed += 1,
        }
        if let Sockets::Each(_) = self.share {
            self.sockets[index] = None;
            return Ok(false);
        }
        Ok(true)
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        while let Some((index, deadline)) = self.waiting.front().copied() {
            let is_answered = self.answers.by_query[index].is_some();
            if !is_answered && deadline > now {
                return;
            }
            if !is_answered {
                self.given_up[index] = true;
                self.in_flight -= 1;
            }
            self.waiting.pop_front();
        }
    }
}

/// The ID of a query: its index, since no run has more than there are IDs.
fn id(index: usize) -> u16 {
    u16::try_from(index).expect("at most 65536 queries")
}

/// RFC 1035, 4.1: a query for a TXT record, its ID still 0.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(u8::try_from(label.len()).expect("a label of less than 64 bytes"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 16, 0, 1]);
    query
}

/// The ID of an answer and its first character string; nothing if it is no answer with a TXT record.
pub(crate) fn parse(message: &[u8]) -> Option<(u16, String)> {
    let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
    let (is_response, code) = (message.get(2)? & 0x80 != 0, message.get(3)? & 0x0f);
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    if !is_response || code != 0 || answers == 0 {
        return None;
    }
    let record = skip_name(message, skip_name(message, 12)? + 4)?;
    if message.get(record..record + 2)? != [0, 16] {
        return None;
    }
    let text = record + 10;
    let length = usize::from(*message.get(text)?);
    let text = message.get(text + 1..text + 1 + length)?;
    Some((id, String::from_utf8_lossy(text).into_owned()))
}

/// The offset behind a name.
fn skip_name(message: &[u8], mut offset: usize) -> Option<usize> {
    loop {
        match *message.get(offset)? {
            0 => return Some(offset + 1),
            length if length & 0xc0 == 0xc0 => return Some(offset + 2),
            length => offset += 1 + usize::from(length),
        }
    }
}

/// The CPUs this thread may run on.
///
/// # Errors
/// The kernel does not tell.
pub fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread on a CPU.
///
/// # Errors
/// The thread may not run there.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("CPU {cpu}: not pinned"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_server_is_read_from_its_answer() {
        let mut message = query("who.example.test");
        message[..8].copy_from_slice(&[0x12, 0x34, 0x84, 0, 0, 1, 0, 1]);
        message.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, 3, 2, b'b', b'7']);
        assert_eq!(parse(&message), Some((0x1234, "b7".to_owned())));
        for length in 0..message.len() {
            assert_eq!(parse(&message[..length]), None, "cut after {length} bytes");
        }
    }

    #[test]
    fn a_query_is_no_answer() {
        assert_eq!(parse(&query("who.example.test")), None);
    }

    #[test]
    fn ports_are_not_handed_out_twice_before_all_are_used() {
        let mut ports = Ports::default();
        assert_eq!(ports.take(12_000), 1024..13_024);
        assert_eq!(ports.take(52_000), 13_024..65_024);
        assert_eq!(ports.take(1000), 1024..2024);
    }

    #[test]
    fn the_shares_of_the_cpus_add_up() {
        let ask = Ask::from_each_port(SocketAddr::from(([192, 0, 2, 1], 53)), 1024..2025).cpus(2);
        let lengths: Vec<_> = (0..2)
            .map(|part| match ask.share(part) {
                Sockets::Each(ports) => (ports.start, ports.end),
                Sockets::One(..) => unreachable!("asked from each port"),
            })
            .collect();
        assert_eq!(lengths, [(1024, 1524), (1524, 2025)]);
    }
}
