//! Questions to the kernel by netlink, and its whole answers. What is asked and answered is [`super::wire`]'s and
//! [`super::netdev`]'s.

use std::io;

use netlink_sys::{Socket, SocketAddr};

use super::frame::{Frame, frames};

/// One socket of one netlink protocol, in one network namespace.
pub(super) struct Conversation {
    socket: Socket,
}

/// How often a dump that was interrupted by a change is made again.
const DUMPED_AGAIN: usize = 3;

impl Conversation {
    /// Begins to speak `protocol` in the namespace of the calling thread.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Sends a question that has one answer, and reads that by `message`.
    pub(super) fn ask<M>(&self, question: &[u8], message: impl Fn(u16, &[u8]) -> Option<M>) -> io::Result<Frame<M>> {
        self.socket.send(question, 0)?;
        let (datagram, _) = self.socket.recv_from_full()?;
        Ok(frames(&datagram, message).into_iter().next().unwrap_or(Frame::Other))
    }

    /// Sends a question that is answered by a dump, and reads each message of that by `message`.
    pub(super) fn dump<M>(&self, question: &[u8], message: impl Fn(u16, &[u8]) -> Option<M>) -> io::Result<Vec<M>> {
        // The last error keeps the view before in force, which is better than one that misses a link.
        for _ in 0..=DUMPED_AGAIN {
            if let Some(all) = self.dump_once(question, &message)? {
                return Ok(all);
            }
        }
        Err(io::Error::other("changed each time while it was listed"))
    }

    /// The whole dump, or nothing where it was interrupted by a change.
    fn dump_once<M>(&self, question: &[u8], message: impl Fn(u16, &[u8]) -> Option<M>) -> io::Result<Option<Vec<M>>> {
        self.socket.send(question, 0)?;
        let mut all = Vec::new();
        let mut is_whole = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for frame in frames(&datagram, &message) {
                match frame {
                    Frame::Message(message) => all.push(message),
                    Frame::Answer(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Frame::Interrupted => is_whole = false,
                    Frame::Done => return Ok(is_whole.then_some(all)),
                    Frame::Other => {}
                }
            }
        }
    }
}
