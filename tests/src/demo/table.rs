//! The table of the demo: aligned for a person, coloured on a terminal only.

use crate::paint::Paint;

/// What one run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// Answers by backend.
    pub(super) counts: Vec<usize>,
    /// How many were asked.
    pub(super) asked: usize,
}

impl Cell {
    /// The most less the fewest.
    pub(super) fn spread(&self) -> usize {
        let most = self.counts.iter().max().copied().unwrap_or(0);
        most - self.counts.iter().min().copied().unwrap_or(0)
    }

    /// Nobody answered anything.
    pub(super) fn is_unanswered(&self) -> bool {
        self.answered() == 0
    }

    fn answered(&self) -> usize {
        self.counts.iter().sum()
    }

    /// How far the farthest backend is from its fair share, in percent of that.
    fn deviation(&self) -> f64 {
        let fair = self.asked as f64 / self.counts.len() as f64;
        let farthest = self.counts.iter().map(|count| (*count as f64 - fair).abs()).fold(0.0, f64::max);
        100.0 * farthest / fair
    }

    fn text(&self, paint: Paint) -> String {
        let counts: String = self.counts.iter().map(|count| format!("{count:>COUNT$}")).collect();
        let deviation = format!("{:>DEVIATION$}", format!("{:.1} %", self.deviation()));
        let deviation = if self.spread() <= 1 { paint.good(&deviation) } else { deviation };
        let answered = format!("{:>ANSWERED$}", format!("{}/{}", self.answered(), self.asked));
        let answered = if self.answered() == self.asked { answered } else { paint.bad(&answered) };
        format!("{counts}{deviation}{answered}")
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// How many queries from one socket, and how many from many.
    pub(super) asked: usize,
    /// What came of them.
    pub(super) cells: Vec<Cell>,
}

impl Row {
    pub(super) fn line(&self, paint: Paint) -> String {
        let cells: Vec<_> = self.cells.iter().map(|cell| cell.text(paint)).collect();
        format!("{}{:>ASKED$}{}", paint.clear(), self.asked, cells.join(BETWEEN))
    }
}

/// The two lines above the table.
pub(super) fn head(backends: usize, paint: Paint) -> String {
    let half: String = (1..=backends).map(|n| format!("{:>COUNT$}", format!("b{n}"))).collect();
    let half = format!("{half}{:>DEVIATION$}{:>ANSWERED$}", "deviation", "answered");
    let width = half.len();
    let over = format!("{:ASKED$}{:^width$}{BETWEEN}{:^width$}", "", "from one socket", "from many sockets");
    format!("{}\n{}", paint.dim(over.trim_end()), paint.dim(&format!("{:>ASKED$}{half}{BETWEEN}{half}", "queries")))
}

const ASKED: usize = 8;
const COUNT: usize = 6;
const DEVIATION: usize = 11;
const ANSWERED: usize = 13;
const BETWEEN: &str = "   ";

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(counts: [usize; 4], asked: usize) -> Cell {
        Cell { counts: counts.to_vec(), asked }
    }

    #[test]
    fn lines_are_aligned() {
        let row = Row { asked: 100, cells: vec![cell([100, 0, 0, 0], 100), cell([25, 25, 26, 24], 100)] };
        let head = head(4, Paint::PLAIN);
        let lines: Vec<_> = head.lines().collect();
        assert_eq!(
            [lines[1], &row.line(Paint::PLAIN)],
            [
                " queries    b1    b2    b3    b4  deviation     answered       b1    b2    b3    b4  deviation     answered",
                "     100   100     0     0     0    300.0 %      100/100       25    25    26    24      4.0 %      100/100",
            ]
        );
    }

    #[test]
    fn deviation_is_that_of_the_farthest_backend() {
        assert_eq!(cell([12_000, 0, 0, 0], 12_000).deviation(), 300.0);
        assert_eq!(cell([3000, 3000, 2970, 3030], 12_000).deviation(), 1.0);
        assert_eq!(cell([25, 25, 25, 25], 100).deviation(), 0.0);
    }

    #[test]
    fn unanswered_queries_are_red() {
        let painted = cell([24, 25, 25, 25], 100).text(Paint::COLOURED);
        assert!(painted.contains("\x1b[31m       99/100\x1b[0m"), "{painted:?}");
    }
}
