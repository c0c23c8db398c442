//! A client that asks at an even rate whatever becomes of the answers, and remembers of each query when it was sent,
//! by which socket, and who answered: so what was lost can be told by time and by backend.

use std::{
    collections::{BTreeMap, HashMap},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ask::{parse, query},
    bind::WHO,
    namespace::Namespace,
    poll::Poll,
};

/// Where to ask, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// The frontend.
    pub server: SocketAddr,
    /// How many sockets ask in turn; each is a flow.
    pub sockets: usize,
    /// Queries a second.
    pub rate: u32,
}

/// A steady client on its way; dropping it ends it.
#[derive(Debug)]
pub struct Asking {
    sent: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Record>>>,
}

/// One query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// When it was sent.
    pub sent: Instant,
    /// The socket that sent it.
    pub socket: usize,
    /// Who answered.
    pub who: Option<String>,
}

/// All that a steady client has asked.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order of asking.
    pub queries: Vec<Query>,
    /// Datagrams from another address or port than the one asked.
    pub wrong_source: usize,
    /// Answers to what was answered already, or to nothing that was asked.
    pub odd: usize,
}

impl Steady {
    /// How long the last answers are waited for.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// Starts it from within a namespace.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn start(self, client: &Namespace) -> Result<Asking> {
        let any = match self.server.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let sockets = client.enter(|| (0..self.sockets).map(|_| Ok(UdpSocket::bind((any, 0))?)).collect::<Result<_>>());
        let (sent, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let asker = Asker::new(self, sockets?)?;
        let (count, stop) = (Arc::clone(&sent), Arc::clone(&is_over));
        let thread = thread::spawn(move || asker.ask_until(&stop, &count));
        Ok(Asking { sent, is_over, thread: Some(thread) })
    }
}

impl Asking {
    /// How many queries it has sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// Ends it once the last answers had their time.
    ///
    /// # Errors
    /// It could not go on asking.
    pub fn finish(mut self) -> Result<Record> {
        self.is_over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it was started")?;
        thread.join().ok().context("the steady client panicked")?
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Whatever it has to say was not asked for.
            let _ = thread.join();
        }
    }
}

impl Record {
    /// The queries that nobody answered.
    pub fn unanswered(&self) -> impl Iterator<Item = &Query> {
        self.queries.iter().filter(|query| query.who.is_none())
    }

    /// How often each server has answered.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for who in self.queries.iter().filter_map(|query| query.who.as_deref()) {
            *counts.entry(who).or_default() += 1;
        }
        counts
    }

    /// Who answers each socket, where that is one server.
    pub fn server_of_sockets(&self) -> BTreeMap<usize, &str> {
        let mut servers: BTreeMap<usize, Option<&str>> = BTreeMap::new();
        for query in &self.queries {
            if let Some(who) = query.who.as_deref() {
                let known = servers.entry(query.socket).or_insert(Some(who));
                *known = known.filter(|known| *known == who);
            }
        }
        servers.into_iter().filter_map(|(socket, who)| Some((socket, who?))).collect()
    }
}

struct Asker {
    steady: Steady,
    sockets: Vec<UdpSocket>,
    poll: Poll,
    message: Vec<u8>,
    /// The query that last had an ID; there are fewer IDs than queries.
    by_id: HashMap<u16, usize>,
    record: Record,
}

impl Asker {
    fn new(steady: Steady, sockets: Vec<UdpSocket>) -> Result<Self> {
        ensure!(steady.rate > 0 && !sockets.is_empty(), "{steady:?} asks nothing");
        let poll = Poll::new()?;
        for (index, socket) in sockets.iter().enumerate() {
            poll.add(socket, index)?;
        }
        let (by_id, record) = (HashMap::new(), Record::default());
        Ok(Self { steady, sockets, poll, message: query(WHO), by_id, record })
    }

    fn ask_until(mut self, is_over: &AtomicBool, sent: &AtomicUsize) -> Result<Record> {
        let pause = Duration::from_secs(1) / self.steady.rate;
        let mut due = Instant::now();
        while !is_over.load(Ordering::SeqCst) {
            // What the machine had no time for is not made up for in a burst, which no queue might take.
            due = due.max(Instant::now().checked_sub(Duration::from_millis(5)).unwrap_or(due));
            while due <= Instant::now() {
                self.send();
                due += pause;
            }
            sent.store(self.record.queries.len(), Ordering::SeqCst);
            self.receive(due)?;
        }
        let end = Instant::now() + Steady::PATIENCE;
        while Instant::now() < end && self.record.unanswered().next().is_some() {
            self.receive(end)?;
        }
        Ok(self.record)
    }

    fn send(&mut self) {
        let index = self.record.queries.len();
        let socket = index % self.sockets.len();
        let id = u16::try_from(index & 0xffff).expect("16 bits");
        self.message[..2].copy_from_slice(&id.to_be_bytes());
        self.by_id.insert(id, index);
        self.record.queries.push(Query { sent: Instant::now(), socket, who: None });
        // What the client's own host does not let out is a query without an answer like any other.
        let _ = self.sockets[socket].send_to(&self.message, self.steady.server);
    }

    fn receive(&mut self, until: Instant) -> Result<()> {
        for socket in self.poll.ready(until.saturating_duration_since(Instant::now()))? {
            while self.receive_from(socket)? {}
        }
        Ok(())
    }

    /// Takes one datagram from a socket, and says whether there may be another.
    fn receive_from(&mut self, socket: usize) -> Result<bool> {
        let mut buffer = [0; 2048];
        let (length, source) = match self.sockets[socket].recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("socket {socket}")),
        };
        if (source.ip(), source.port()) != (self.steady.server.ip(), self.steady.server.port()) {
            self.record.wrong_source += 1;
            return Ok(true);
        }
        let answer = parse(&buffer[..length]);
        let asked = answer.and_then(|(id, who)| Some((*self.by_id.get(&id)?, who)));
        match asked.and_then(|(index, who)| Some((self.record.queries.get_mut(index)?, who))) {
            Some((query, who)) if query.socket == socket && query.who.is_none() => query.who = Some(who),
            Some(_) | None => self.record.odd += 1,
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_two_servers_answer_has_no_server() {
        let sent = Instant::now();
        let query = |socket, who: Option<&str>| Query { sent, socket, who: who.map(str::to_owned) };
        let queries = vec![
            query(0, Some("b1")),
            query(1, Some("b1")),
            query(0, None),
            query(1, Some("b2")),
            query(0, Some("b1")),
        ];
        let record = Record { queries, ..Record::default() };
        assert_eq!(record.server_of_sockets(), [(0, "b1")].into());
        assert_eq!(record.counts(), [("b1", 3), ("b2", 1)].into());
        assert_eq!(record.unanswered().count(), 1);
    }
}
