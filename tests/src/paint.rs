//! Colours, on a terminal only.

use std::{env, io::IsTerminal};

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { is_on: false };
    /// Colours.
    #[cfg(test)]
    pub(crate) const COLOURED: Self = Self { is_on: true };

    /// Colours on a terminal whose user has nothing against it.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        Self { is_on: stream.is_terminal() && env::var_os("NO_COLOR").is_none() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Makes room for the next line on a terminal that shows a progress.
    pub(crate) fn clear(self) -> &'static str {
        if self.is_on { "\x1b[K" } else { "" }
    }
}
