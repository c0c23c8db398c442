//! The figures as a chart of bars, readable on light and on dark ground.

use std::fmt::Write as _;

use lb_common::addr::Family;

use super::figures::{EMPTY, Figures, counted};

/// Bars under one heading, and what they are of.
struct Panel {
    title: String,
    /// What the bars of each group are, in their order.
    series: Vec<String>,
    groups: Vec<Group>,
}

/// What is compared, and a bar for each of the series.
struct Group {
    name: String,
    bars: Vec<Option<f64>>,
}

const WIDTH: usize = 900;
const LABELS: usize = 330;
/// Where the longest bar ends; its figure is behind it.
const LONGEST: usize = WIDTH - LABELS - 90;
const BAR: usize = 12;
const BETWEEN: usize = 8;
const LINE: usize = 20;

/// The chart.
pub(super) fn chart(figures: &Figures) -> String {
    let panels: Vec<_> = panels(figures).into_iter().filter(|panel| !panel.groups.is_empty()).collect();
    let mut body = String::new();
    let mut y = LINE;
    for line in heading(figures) {
        text(&mut body, 10, y, "note", &line);
        y += LINE;
    }
    for panel in &panels {
        y = draw(&mut body, panel, y + LINE);
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>Evenkeel measured</title>\n{STYLE}\n{body}</svg>\n"
    )
}

const STYLE: &str = "<style>\
    text { font: 12px sans-serif; fill: #1f2328 } .title { font-weight: bold; font-size: 14px } .note { fill: #59636e }\
    .s0 { fill: #0969da } .s1 { fill: #8250df }\
    @media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .note { fill: #9198a1 } .s0 { fill: #4493f8 } \
    .s1 { fill: #ab7df8 } }\
    </style>";

fn heading(figures: &Figures) -> Vec<String> {
    let machine = &figures.machine;
    let mut lines = vec![
        format!("Linux {}, {} × {}, {} rounds", machine.kernel, machine.cpus, machine.cpu, figures.rounds),
        "Two bars that differ by less than a fifth are alike.".to_owned(),
    ];
    lines.extend(machine.mitigations.iter().map(|(fault, what)| format!("{fault}: {what}")));
    if figures.is_quick {
        lines.push("A quick run: no figure means anything.".to_owned());
    }
    lines
}

fn panels(figures: &Figures) -> Vec<Panel> {
    vec![stages(figures), frames(figures), round_trips(figures), queries(figures)]
}

fn stages(figures: &Figures) -> Panel {
    let of_v4 = figures.stages.iter().filter(|row| row.family == Family::V4 && row.name != EMPTY);
    let groups = of_v4.map(|row| {
        let v6 = figures.stages.iter().find(|other| {
            (other.family, other.hook, other.name, other.clients) == (Family::V6, row.hook, row.name, row.clients)
        });
        let bars = vec![figures.above_empty(row), v6.and_then(|row| figures.above_empty(row))];
        Group { name: format!("{}: {}", row.hook.name(), row.title()), bars }
    });
    Panel {
        title: "Programs: ns a packet above an empty one (less is better)".to_owned(),
        series: vec!["IPv4".to_owned(), "IPv6".to_owned()],
        groups: groups.collect(),
    }
}

/// A group for each way, and a bar for each row it has.
fn by_way<'a, R: 'a>(
    rows: impl Iterator<Item = &'a R>,
    way: impl Fn(&R) -> &'static str,
    figure: impl Fn(&R) -> Option<f64>,
) -> Vec<Group> {
    let mut groups = Vec::<Group>::new();
    for row in rows {
        let name = way(row);
        match groups.last_mut().filter(|group| group.name == name) {
            Some(group) => group.bars.push(figure(row)),
            None => groups.push(Group { name: name.to_owned(), bars: vec![figure(row)] }),
        }
    }
    groups
}

fn frames(figures: &Figures) -> Panel {
    let mut flows: Vec<u32> = figures.frames.iter().map(|row| row.flows).collect();
    flows.sort_unstable();
    flows.dedup();
    Panel {
        title: "Frames one way: thousands a second, on one CPU with generator and sink (more is better)".to_owned(),
        series: flows.iter().map(|flows| counted(*flows, "flow")).collect(),
        groups: by_way(figures.frames.iter(), |row| row.way, |row| Some(1e6 / row.nanoseconds.least()?)),
    }
}

fn round_trips(figures: &Figures) -> Panel {
    Panel {
        title: "Ping-pong: µs a round trip, p50 and p99 (less is better)".to_owned(),
        series: vec!["p50".to_owned(), "p99".to_owned()],
        groups: figures
            .round_trips
            .iter()
            .map(|row| Group { name: row.way.to_owned(), bars: vec![row.p50.least(), row.p99.least()] })
            .collect(),
    }
}

fn queries(figures: &Figures) -> Panel {
    let mut sockets: Vec<u32> = figures.queries.iter().map(|row| row.sockets).collect();
    sockets.sort_unstable();
    sockets.dedup();
    Panel {
        title: "dnsperf against four BINDs: thousands of queries a second (more is better)".to_owned(),
        series: sockets.iter().map(|sockets| counted(*sockets, "socket")).collect(),
        groups: by_way(figures.queries.iter(), |row| row.way, |row| Some(row.per_second.median()? / 1000.0)),
    }
}

/// Draws a panel from `y` on, and returns where it ends.
fn draw(body: &mut String, panel: &Panel, mut y: usize) -> usize {
    text(body, 10, y, "title", &panel.title);
    y += LINE;
    let mut x = LABELS;
    for (number, series) in panel.series.iter().enumerate() {
        bar(body, x, y - BAR + 2, BAR as f64, number);
        text(body, x + BAR + 4, y, "note", series);
        x += 120;
    }
    y += BETWEEN;
    let all = panel.groups.iter().flat_map(|group| group.bars.iter().flatten());
    let most = all.copied().fold(0.0, f64::max);
    for group in &panel.groups {
        text(body, 10, y + BAR - 2, "", &group.name);
        for (number, figure) in group.bars.iter().enumerate() {
            if let Some(figure) = figure {
                let share = if most > 0.0 { figure.max(0.0) / most } else { 0.0 };
                let length = share * LONGEST as f64;
                bar(body, LABELS, y, length, number);
                text(body, LABELS + length as usize + 6, y + BAR - 2, "note", &shown(*figure));
            }
            y += BAR + 1;
        }
        y += BETWEEN;
    }
    y
}

/// With as many digits as mean something.
fn shown(figure: f64) -> String {
    if figure.abs() < 100.0 { format!("{figure:.1}") } else { format!("{figure:.0}") }
}

fn bar(body: &mut String, x: usize, y: usize, length: f64, series: usize) {
    let class = format!("s{}", series % 2);
    writeln!(body, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>")
        .expect("a string takes all");
}

fn text(body: &mut String, x: usize, y: usize, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    writeln!(body, "<text x=\"{x}\" y=\"{y}\"{class}>{words}</text>").expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        figures::{Frames, Hook, tests::stage},
        samples::Samples,
    };

    fn frames_of(way: &'static str, flows: u32, nanoseconds: f64) -> Frames {
        Frames { way, flows, nanoseconds: Samples::from_iter([nanoseconds]), sent: 1, delivered: 1 }
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let frames =
            vec![frames_of("ours", 1, 500.0), frames_of("ours", 4096, 1000.0), frames_of("<theirs>", 1, 2000.0)];
        let chart = chart(&Figures { frames, ..Figures::default() });
        let widths: Vec<&str> = chart.split("width=\"").skip(2).filter_map(|rest| rest.split('"').next()).collect();
        // The legend has a square for each of the two series.
        assert_eq!(widths, ["12.0", "12.0", "480.0", "240.0", "120.0"]);
        assert!(chart.contains(">2000</text>") && chart.contains(">500</text>"), "{chart}");
        assert!(chart.contains("&lt;theirs&gt;") && !chart.contains("<theirs>"), "{chart}");
        assert!(chart.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn each_element_is_closed_and_what_was_not_measured_has_no_panel() {
        let stages = vec![stage(Hook::Tc, EMPTY, 40.0), stage(Hook::Tc, "flow hit", 160.0)];
        let chart = chart(&Figures { stages, ..Figures::default() });
        assert_eq!(chart.matches("<text").count(), chart.matches("</text>").count());
        assert!(chart.contains("Programs") && !chart.contains("dnsperf"), "{chart}");
        assert!(chart.contains(">120</text>"), "{chart}");
    }
}
