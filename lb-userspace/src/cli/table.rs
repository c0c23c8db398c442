//! Aligned columns, and colour where a terminal shows them.

use std::{
    env,
    fmt::{self, Write as _},
    io::{IsTerminal as _, stdout},
};

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// For a pipe or a file.
    Plain,
    /// For a terminal.
    Colour,
}

/// What a text is, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A title.
    Title,
    /// Said in passing.
    Faint,
    /// As it should be.
    Good,
    /// Someone should look.
    Warning,
    /// Nothing special.
    Plain,
}

impl Paint {
    /// What suits the standard output. `NO_COLOR` is heeded (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if stdout().is_terminal() && !unwanted { Self::Colour } else { Self::Plain }
    }

    /// The text in its tone.
    pub(crate) fn text(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Plain, _) | (Self::Colour, Tone::Plain) => return text.to_owned(),
            (Self::Colour, Tone::Title) => "1",
            (Self::Colour, Tone::Faint) => "2",
            (Self::Colour, Tone::Good) => "32",
            (Self::Colour, Tone::Warning) => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    is_number: bool,
}

/// A text, aligned to the left.
pub(crate) fn text(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone: Tone::Plain, is_number: false }
}

/// A number, aligned to the right.
pub(crate) fn number(number: impl fmt::Display) -> Cell {
    Cell { text: number.to_string(), tone: Tone::Plain, is_number: true }
}

impl Cell {
    /// The same in this tone.
    #[must_use]
    pub(crate) fn in_tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

/// Rows under titles.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these titles, aligned as what is below them.
    pub(crate) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|title| text(*title).in_tone(Tone::Title)).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table, each line after `indent` and with a line break.
    pub(crate) fn render(&self, indent: &str, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column| cells(column).map(|cell| columns_of(&cell.text)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let has_numbers = |column| cells(column).any(|cell| cell.is_number);
        let right: Vec<bool> = (0..columns).map(has_numbers).collect();
        let mut lines = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - columns_of(&cell.text));
                let painted = paint.text(cell.tone, &cell.text);
                let gap = if column == 0 { "" } else { "  " };
                let is_last = column + 1 == row.len();
                let written = match (right[column], is_last) {
                    (true, _) => write!(line, "{gap}{space}{painted}"),
                    (false, true) => write!(line, "{gap}{painted}"),
                    (false, false) => write!(line, "{gap}{painted}{space}"),
                };
                written.expect("a string takes all that is written to it");
            }
            lines.push_str(line.trim_end());
            lines.push('\n');
        }
        lines
    }
}

fn columns_of(text: &str) -> usize {
    text.chars().count()
}

/// A number with thousands apart, so that millions can be read.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push('_');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_where_the_text_does() {
        let mut table = Table::new(&["BACKEND", "ACTIVE", "WHY"]);
        table.row(vec![text("10.0.0.2:53"), number(7), text("")]);
        table.row(vec![text("b"), number(12_345), text("because")]);
        assert_eq!(
            table.render("  ", Paint::Plain),
            "  BACKEND      ACTIVE  WHY\n  10.0.0.2:53       7\n  b             12345  because\n"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec![text("use").in_tone(Tone::Good), text("x")]);
        assert_eq!(table.render("", Paint::Colour), "\x1b[1mA\x1b[0m    \x1b[1mB\x1b[0m\n\x1b[32muse\x1b[0m  x\n");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1_000", "1_234_567"]);
    }
}
