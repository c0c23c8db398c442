//! A DNS server of our own for what BIND would not do: to answer late, and to tell when and from whom each query came.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::lab::Host;

/// A query that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// From whom, as the server sees it.
    pub from: SocketAddr,
    /// Its ID.
    pub id: u16,
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Responder {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts one on a port of a host, for both families; it answers every query with its name, `delay` after it came.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(host: &Host, who: &str, port: u16, delay: Duration) -> Result<Self> {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let socket = host.namespace.enter(|| UdpSocket::bind(any).with_context(|| format!("port {port}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let (arrivals, is_over) = (Arc::<Mutex<Vec<Arrival>>>::default(), Arc::<AtomicBool>::default());
        let server = Server { socket, who: who.to_owned(), delay, waiting: VecDeque::new() };
        let (seen, stop) = (Arc::clone(&arrivals), Arc::clone(&is_over));
        let thread = thread::spawn(move || server.serve(&seen, &stop));
        Ok(Self { arrivals, is_over, thread: Some(thread) })
    }

    /// All that has arrived so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and has said so then.
            let _ = thread.join();
        }
    }
}

struct Server {
    socket: UdpSocket,
    who: String,
    delay: Duration,
    /// Answers not yet due, the next one first.
    waiting: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
}

impl Server {
    fn serve(mut self, seen: &Mutex<Vec<Arrival>>, is_over: &AtomicBool) {
        let mut buffer = [0; 4096];
        while !is_over.load(Ordering::Acquire) {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, source)) => {
                    let at = Instant::now();
                    if let Some((id, answer)) = answer(&buffer[..length], &self.who) {
                        let from = SocketAddr::new(source.ip().to_canonical(), source.port());
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push(Arrival { at, from, id });
                        self.waiting.push_back((at + self.delay, source, answer));
                    }
                }
                // An ICMP error for an earlier answer is no matter of this query.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("responder {}: {error}", self.who),
            }
            self.send_due();
        }
    }

    fn send_due(&mut self) {
        while let Some((_, to, answer)) = self.waiting.pop_front_if(|(due, ..)| *due <= Instant::now()) {
            // Whoever asked may be gone.
            let _ = self.socket.send_to(&answer, to);
        }
    }
}

/// The ID of a query, and the answer to it: one TXT record with the server's name.
fn answer(query: &[u8], who: &str) -> Option<(u16, Vec<u8>)> {
    let id = u16::from_be_bytes([*query.first()?, *query.get(1)?]);
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    // The question alone: what follows it, such as an OPT record, is not copied.
    let question = query.get(12..end + 5)?;
    let mut answer = id.to_be_bytes().to_vec();
    answer.extend_from_slice(&[0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    let length = u8::try_from(who.len()).ok()?;
    answer.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, length + 1, length]);
    answer.extend_from_slice(who.as_bytes());
    Some((id, answer))
}
