//! What goes on, on stderr.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Instant,
};

/// Tells what goes on; on a terminal in one line.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
}

impl Progress {
    pub(super) fn begin() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn say(&self, what: &str) {
        let mut stderr = io::stderr().lock();
        let seconds = self.start.elapsed().as_secs();
        // Nothing is to be done about a stderr that is gone.
        let _ = if stderr.is_terminal() {
            // The cursor goes back to the line's start, for whoever prints next.
            write!(stderr, "\r\x1b[K{seconds:>4} s  {what} …\r")
        } else {
            writeln!(stderr, "{seconds:>4} s  {what} …")
        };
    }

    /// Makes room for what is printed next.
    pub(super) fn end(&self) {
        let mut stderr = io::stderr().lock();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K");
        }
    }
}
