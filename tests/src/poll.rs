//! Sockets that are waited for together.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// Sockets, each by an index of its owner's.
pub(crate) struct Poll(Epoll);

impl Poll {
    /// None yet.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::empty())?))
    }

    /// Adds a socket, which does not block from now on.
    pub(crate) fn add(&self, socket: &UdpSocket, index: usize) -> Result<()> {
        socket.set_nonblocking(true)?;
        Ok(self.0.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?)
    }

    /// Waits until some have something to read, at most so long; to a millisecond, and at least one.
    pub(crate) fn ready(&self, patience: Duration) -> Result<Vec<usize>> {
        let timeout = EpollTimeout::try_from(patience.max(Duration::from_millis(1))).context("a patience of weeks")?;
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.0.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let index = |event: &EpollEvent| usize::try_from(event.data()).expect("an index of its owner's");
        Ok(events[..ready].iter().map(index).collect())
    }
}
