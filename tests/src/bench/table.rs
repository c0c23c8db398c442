//! The figures for a person: aligned, coloured on a terminal only.

use lb_common::addr::Family;

use super::{
    figures::{EMPTY, Figures, Frames, Queries, Stage},
    stand::{IPTABLES, NFT},
    targets::{TARGETS, Verdict},
};
use crate::paint::Paint;

/// All of it.
pub(super) fn text(figures: &Figures, paint: Paint) -> String {
    let parts =
        [machine(figures), stages(figures), frames(figures), round_trips(figures), queries(figures), verified(figures)];
    let mut text = String::new();
    for (title, head, lines) in parts.into_iter().filter(|(.., lines)| !lines.is_empty()) {
        text.push_str(&format!("{}\n", paint.bold(&title)));
        if !head.is_empty() {
            text.push_str(&format!("{}\n", paint.dim(&head)));
        }
        lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text.push('\n');
    }
    text.push_str(&targets(figures, paint));
    for fault in figures.faults() {
        text.push_str(&paint.bad(&format!("{fault}\n")));
    }
    text
}

/// A title, the heads of the columns, the lines.
type Table = (String, String, Vec<String>);

fn machine(figures: &Figures) -> Table {
    let facts = &figures.machine;
    let quick = if figures.is_quick { "; a quick run, no figure of which means anything" } else { "" };
    let lines = vec![
        format!("Linux {}, {} × {}, {} rounds{quick}", facts.kernel, facts.cpus, facts.cpu, figures.rounds),
        format!("mitigations: {}", facts.mitigated()),
    ];
    ("Measured on".to_owned(), String::new(), lines)
}

fn stages(figures: &Figures) -> Table {
    let title = "Programs, nanoseconds a packet above an empty program: least, median, and times one hash look-up";
    let family = |name: &str| format!("{:>8}{:>8}{:>9}", name, "median", "look-ups");
    let head = format!("{:49}{}  {}", "", family("IPv4"), family("IPv6"));
    let of_v4 = figures.stages.iter().filter(|row| row.family == Family::V4);
    let lines = of_v4.map(|row| {
        let v6 = figures.stages.iter().find(|other| {
            (other.family, other.hook, other.name, other.clients) == (Family::V6, row.hook, row.name, row.clients)
        });
        let cells: Vec<_> = [Some(row), v6].into_iter().flatten().map(|row| stage(figures, row)).collect();
        format!("{:4} {:44}{}", row.hook.name(), row.title(), cells.join("  "))
    });
    (title.to_owned(), head, lines.collect())
}

fn stage(figures: &Figures, row: &Stage) -> String {
    if row.name == EMPTY {
        // Above itself it is nothing; what it took with the front is what the others are freed of.
        return format!("{:>25}", format!("{} with its front", number(row.nanoseconds.least(), 0)));
    }
    let above = number(figures.above_empty(row), 0);
    let median = number(figures.median_above_empty(row), 0);
    format!("{above:>8}{median:>8}{:>9}", number(figures.in_look_ups(row), 1))
}

fn frames(figures: &Figures) -> Table {
    let title = "Frames one way, 64 bytes, generator and sink on the same CPU";
    let columns = ["ns", "median", "frames/s", "x nft", "x iptables"].map(|name| format!("{name:>11}")).concat();
    let head = format!("{:34}{:>6}{columns}{:>11}", "", "flows", "came");
    let lines = figures.frames.iter().map(|row| {
        let beside = |way: &str| {
            let other = figures.frames.iter().find(|other: &&Frames| (other.way, other.flows) == (way, row.flows))?;
            Some(other.nanoseconds.least()? / row.nanoseconds.least()?)
        };
        let rate = row.nanoseconds.least().map(|least| 1e9 / least);
        let came = if row.delivered == row.sent { "all".to_owned() } else { format!("{}/{}", row.delivered, row.sent) };
        format!(
            "{:34}{:>6}{:>11}{:>11}{:>11}{:>11}{:>11}{came:>11}",
            row.way,
            row.flows,
            number(row.nanoseconds.least(), 0),
            number(row.nanoseconds.median(), 0),
            number(rate, 0),
            number(beside(NFT), 2),
            number(beside(IPTABLES), 2),
        )
    });
    (title.to_owned(), head, lines.collect())
}

fn round_trips(figures: &Figures) -> Table {
    let title = "Ping-pong, microseconds, one query at a time; the least of the rounds";
    let head = format!("{:34}{:>9}{:>9}{:>9}{:>9}{:>11}{:>9}", "", "p50", "median", "p99", "x nft", "trips/s", "lost");
    let nft = figures.round_trips.iter().find(|row| row.way == NFT).and_then(|row| row.p50.least());
    let lines = figures.round_trips.iter().map(|row| {
        let beside = row.p50.least().zip(nft).map(|(own, nft)| own / nft);
        format!(
            "{:34}{:>9}{:>9}{:>9}{:>9}{:>11}{:>9}",
            row.way,
            number(row.p50.least(), 1),
            number(row.p50.median(), 1),
            number(row.p99.least(), 1),
            number(beside, 2),
            number(row.per_second.most(), 0),
            row.lost,
        )
    });
    (title.to_owned(), head, lines.collect())
}

fn queries(figures: &Figures) -> Table {
    let title = "dnsperf against four BINDs; p50 and p99 in microseconds by dnsperf at 10,000 queries a second";
    let columns = ["queries/s", "most", "x nft", "p50", "p99", "lost"].map(|name| format!("{name:>10}")).concat();
    let head = format!("{:34}{:>8}{columns}", "", "sockets");
    let lines = figures.queries.iter().map(|row| {
        let of = |way: &str| {
            let other =
                figures.queries.iter().find(|other: &&Queries| (other.way, other.sockets) == (way, row.sockets));
            other?.per_second.median()
        };
        let beside = row.per_second.median().zip(of(NFT)).map(|(own, nft)| own / nft);
        format!(
            "{:34}{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            row.way,
            row.sockets,
            number(row.per_second.median(), 0),
            number(row.per_second.most(), 0),
            number(beside, 2),
            number(row.p50.median(), 0),
            number(row.p99.median(), 0),
            row.lost,
        )
    });
    (title.to_owned(), head, lines.collect())
}

fn verified(figures: &Figures) -> Table {
    let lines = figures.verified.iter().map(|(name, taken)| format!("{name:34}{taken:>9}"));
    ("Instructions that the verifier took".to_owned(), String::new(), lines.collect())
}

fn targets(figures: &Figures, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.bold("Targets"));
    for target in TARGETS {
        let verdict = target.judge(figures);
        let word = format!("{:12}", verdict.name());
        let word = match verdict {
            Verdict::Met => paint.good(&word),
            Verdict::Missed => paint.bad(&word),
            Verdict::NotMeasured => paint.dim(&word),
        };
        text.push_str(&format!("{word}{:>8}   {}\n", number(target.reached(figures), 2), target.name()));
    }
    text
}

/// A figure, or a dash for what was not measured.
fn number(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        figures::{Hook, LOOK_UP, tests::stage},
        samples::Samples,
    };

    #[test]
    fn rows_are_aligned_and_a_missing_figure_is_a_dash() {
        let stages =
            vec![stage(Hook::Tc, EMPTY, 40.0), stage(Hook::Tc, LOOK_UP, 80.0), stage(Hook::Tc, "flow hit", 160.0)];
        let frames = |way, nanoseconds| Frames {
            way,
            flows: 1,
            nanoseconds: Samples::from_iter([nanoseconds]),
            sent: 9,
            delivered: 8,
        };
        let frames = vec![frames("ours", 800.0), frames(NFT, 2000.0)];
        let text = text(&Figures { stages, frames, ..Figures::default() }, Paint::PLAIN);
        let line = |begins: &str| text.lines().find(|line| line.starts_with(begins)).unwrap().trim_end().to_owned();
        assert_eq!(line("tc   flow hit"), format!("tc   {:44}{:>8}{:>8}{:>9}", "flow hit", 120, 120, "3.0"));
        assert_eq!(
            line("ours"),
            format!("{:34}{:>6}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}", "ours", 1, 800, 800, 1250000, "2.50", "–", "8/9")
        );
        assert!(text.contains("frames, ours, 1 flow: 8 of 9 came"), "{text}");
        assert!(line("not measured").contains('–'), "{text}");
    }

    #[test]
    fn a_part_that_was_not_measured_is_left_out() {
        let text = text(&Figures::default(), Paint::PLAIN);
        assert!(!text.contains("Ping-pong") && !text.contains("dnsperf against"), "{text}");
    }
}
