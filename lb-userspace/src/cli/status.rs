//! `evenkeel status`: what is attached where and why, the way to each backend and why not a better one, and what
//! happened last.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lb_common::{limits::LAYOUT_VERSION, reason::Reason, stats::EarlyStats};
use serde::Serialize;

use super::{
    Folders, permitted, print,
    table::{Paint, Table, Tone, grouped, number, text},
};
use crate::{
    dataplane::{
        Counters,
        maps::Maps,
        pins::{Lock, Pins},
    },
    state::{HookState, Moment, State},
};

/// Shows hooks, ways, and what happened last.
#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    folders: Folders,
}

impl Status {
    pub(crate) fn run(&self) -> Result<()> {
        permitted()?;
        let counters = Maps::look(&Pins::new(&self.folders.pins))?.counters()?;
        let state = State::read(&self.folders.state)?.unwrap_or_default();
        let is_running = Lock::is_taken(&self.folders.state)?;
        let report = Report::new(state, &counters, is_running, self.folders.pins.clone());
        if self.json {
            print(&(serde_json::to_string_pretty(&report)? + "\n"))
        } else {
            print(&render(&report, Moment::now(), Paint::of_stdout()))
        }
    }
}

/// Everything `status` shows; its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    is_running: bool,
    pins: PathBuf,
    layout: u32,
    #[serde(flatten)]
    state: State,
    /// What XDP did with packets of ours where it looks first.
    xdp: Vec<Early>,
    /// Packets that were not balanced, by reason; those that were none of ours are not listed.
    not_balanced: Vec<NotBalanced>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Early {
    /// The interface that they came in by.
    interface: String,
    /// Packets it sent on.
    sent: u64,
    /// Packets it left to traffic control, which sends or counts them.
    left: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct NotBalanced {
    reason: &'static str,
    packets: u64,
    help: &'static str,
}

impl Report {
    fn new(mut state: State, counters: &Counters, is_running: bool, pins: PathBuf) -> Self {
        if !is_running {
            let what =
                "no controller is running: packets flow on, but changes of backends and network are not followed";
            state.warnings.insert(0, what.into());
        }
        let counted = |reason: &Reason| {
            let packets = counters.reasons.get(reason).copied().unwrap_or(0);
            let not_balanced = NotBalanced { reason: reason.name(), packets, help: reason.help().trim() };
            (packets > 0 && *reason != Reason::NotOurs).then_some(not_balanced)
        };
        let not_balanced = Reason::ALL.iter().filter_map(counted).collect();
        let looks_first = state.hooks.iter().filter(|hook| hook.xdp.is_some());
        let early = |hook: &HookState| {
            let EarlyStats { sent, left } = counters.early.get(&hook.ifindex).copied().unwrap_or_default();
            Early { interface: hook.interface.clone(), sent, left }
        };
        let xdp = looks_first.map(early).collect();
        Self { is_running, pins, layout: LAYOUT_VERSION, state, xdp, not_balanced }
    }
}

fn render(report: &Report, now: Moment, paint: Paint) -> String {
    let mut out = facts(report, now, paint);
    out += &section("Altered by someone else", bullets(&report.state.altered, paint, Tone::Warning), paint);
    out += &section("Look at this", bullets(&report.state.warnings, paint, Tone::Warning), paint);
    if let Some(refusal) = &report.state.last_refusal {
        let title = format!("Refused {}; what was running before goes on", refusal.at.ago(now));
        out += &section(&title, bullets(&refusal.messages, paint, Tone::Warning), paint);
    }
    out += &section("Hooks", hooks(report, paint), paint);
    out += &section("Ways", ways(report, paint), paint);
    out += &section("XDP", early(report, paint), paint);
    out += &section("Not balanced", not_balanced(report, paint), paint);
    out
}

fn facts(report: &Report, now: Moment, paint: Paint) -> String {
    let state = &report.state;
    let controller = match (report.is_running, state.stopped) {
        (true, _) => {
            format!("running since {}, process {}", state.started.ago(now).trim_end_matches(" ago"), state.pid)
        }
        (false, Some(stopped)) => format!("stopped {}", stopped.ago(now)),
        (false, None) => "not running".into(),
    };
    let tone = if report.is_running { Tone::Good } else { Tone::Warning };
    let change = state.last_change.as_ref().map_or_else(
        || "none".into(),
        |last| {
            format!(
                "{}: {}, {} steps, in force after {:.1} ms, applied after {:.1} ms",
                last.at.ago(now),
                last.cause,
                last.changes,
                last.stored_ms,
                last.applied_ms
            )
        },
    );
    let sweep = state.last_sweep.map_or_else(
        || "none".into(),
        |last| match last.waiting_backends {
            0 => last.at.ago(now),
            waiting => format!("{}; {waiting} removed backends still have flows", last.at.ago(now)),
        },
    );
    let pins = match state.opening.as_str() {
        "" => format!("{}, layout {}", report.pins.display(), report.layout),
        opening => format!("{}, layout {}, {opening}", report.pins.display(), report.layout),
    };
    let mut lines = vec![("controller", paint.text(tone, &controller))];
    if !state.config.as_os_str().is_empty() {
        lines.push(("configuration", state.config.display().to_string()));
    }
    lines.extend([("last change", change), ("last sweep", sweep), ("pins", pins)]);
    let line =
        |(name, value): (&str, String)| format!("{}  {value}\n", paint.text(Tone::Title, &format!("{name:<13}")));
    lines.into_iter().map(line).collect()
}

fn section(title: &str, body: String, paint: Paint) -> String {
    if body.is_empty() { body } else { format!("\n{}\n{body}", paint.text(Tone::Title, title)) }
}

fn bullets(lines: &[String], paint: Paint, tone: Tone) -> String {
    lines.iter().map(|line| format!("  {}\n", paint.text(tone, line))).collect()
}

fn hooks(report: &Report, paint: Paint) -> String {
    if report.state.hooks.is_empty() {
        return "  nothing is attached\n".into();
    }
    let mut table = Table::new(&["INTERFACE", "FOR", "MODE", "WHY"]);
    for hook in &report.state.hooks {
        let modes: Vec<&str> = hook.xdp.as_deref().into_iter().chain([hook.mode.as_str()]).collect();
        table.row(vec![
            text(&hook.interface),
            text(purpose(hook)),
            text(modes.join(", ")),
            text(reasons(hook)).in_tone(Tone::Faint),
        ]);
    }
    table.render("  ", paint)
}

/// What is wrong with a hook, and why it is no better one.
fn reasons(hook: &HookState) -> String {
    let xdp = match (hook.xdp_why.as_str(), &hook.xdp) {
        ("", _) => String::new(),
        (why, Some(_)) => why.to_owned(),
        (why, None) => format!("not XDP: {why}"),
    };
    let all = [hook.why.clone(), xdp];
    all.into_iter().filter(|why| !why.is_empty()).collect::<Vec<_>>().join("; ")
}

fn purpose(hook: &HookState) -> String {
    let ingress = hook.ingress.as_deref();
    let egress = hook.egress.then_some("stack's replies");
    ingress.into_iter().chain(egress).collect::<Vec<_>>().join(", ")
}

fn ways(report: &Report, paint: Paint) -> String {
    if report.state.ways.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["BACKEND", "WAY", "THROUGH", "BACK", "WHY"]);
    for way in &report.state.ways {
        let through = way.interface.as_deref().unwrap_or("-");
        let address = way.address.to_string();
        table.row(vec![
            text(address),
            text(&way.way),
            text(through),
            text(&way.back),
            text(&way.why).in_tone(Tone::Faint),
        ]);
    }
    table.render("  ", paint)
}

fn early(report: &Report, paint: Paint) -> String {
    if report.xdp.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["INTERFACE", "SENT", "LEFT TO TC"]);
    for one in &report.xdp {
        table.row(vec![text(&one.interface), number(grouped(one.sent)), number(grouped(one.left))]);
    }
    table.render("  ", paint)
}

fn not_balanced(report: &Report, paint: Paint) -> String {
    if report.not_balanced.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["REASON", "PACKETS", "WHAT IT MEANS"]);
    for one in &report.not_balanced {
        table.row(vec![text(one.reason), number(grouped(one.packets)), text(one.help).in_tone(Tone::Faint)]);
    }
    table.render("  ", paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{LastChange, LastRefusal, LastSweep, WayState};

    fn state() -> State {
        State {
            pid: 7,
            started: Moment(1000),
            config: "/etc/evenkeel.toml".into(),
            opening: "adopted from an earlier controller".into(),
            ways: vec![
                WayState {
                    address: "10.0.0.2".parse().expect("an address"),
                    way: "redirect-peer".into(),
                    interface: Some("v1".into()),
                    back: "v1 tc".into(),
                    why: "port v1 of bridge br0".into(),
                },
                WayState {
                    address: "fd00::3".parse().expect("an address"),
                    way: "stack".into(),
                    interface: None,
                    back: "eth3 egress".into(),
                    why: "no route leads to it".into(),
                },
            ],
            hooks: vec![HookState {
                interface: "eth3".into(),
                ifindex: 3,
                ingress: Some("clients".into()),
                egress: true,
                mode: "tcx".into(),
                xdp: Some("xdp".into()),
                xdp_why: String::new(),
                why: String::new(),
            }],
            last_change: Some(LastChange {
                at: Moment(1100),
                cause: "configuration".into(),
                changes: 12,
                stored_ms: 0.42,
                applied_ms: 15.26,
            }),
            last_sweep: Some(LastSweep { at: Moment(1119), waiting_backends: 1 }),
            ..State::default()
        }
    }

    fn shown(state: State, counters: &Counters, is_running: bool) -> String {
        let report = Report::new(state, counters, is_running, "/sys/fs/bpf/evenkeel".into());
        render(&report, Moment(1120), Paint::Plain)
    }

    #[test]
    fn a_running_system_is_shown_from_top_to_bottom() {
        let counters = Counters {
            reasons: [(Reason::NotOurs, 1_000_000), (Reason::NoFlow, 1234), (Reason::Clash, 0)].into(),
            early: [(3, EarlyStats { sent: 12_345, left: 6 }), (4, EarlyStats { sent: 9, left: 9 })].into(),
            ..Counters::default()
        };
        assert_eq!(
            shown(state(), &counters, true),
            "controller     running since 2 min, process 7\n\
             configuration  /etc/evenkeel.toml\n\
             last change    20 s ago: configuration, 12 steps, in force after 0.4 ms, applied after 15.3 ms\n\
             last sweep     1 s ago; 1 removed backends still have flows\n\
             pins           /sys/fs/bpf/evenkeel, layout 2, adopted from an earlier controller\n\
             \n\
             Hooks\n\
             \x20 INTERFACE  FOR                       MODE      WHY\n\
             \x20 eth3       clients, stack's replies  xdp, tcx\n\
             \n\
             Ways\n\
             \x20 BACKEND   WAY            THROUGH  BACK         WHY\n\
             \x20 10.0.0.2  redirect-peer  v1       v1 tc        port v1 of bridge br0\n\
             \x20 fd00::3   stack          -        eth3 egress  no route leads to it\n\
             \n\
             XDP\n\
             \x20 INTERFACE    SENT  LEFT TO TC\n\
             \x20 eth3       12_345           6\n\
             \n\
             Not balanced\n\
             \x20 REASON   PACKETS  WHAT IT MEANS\n\
             \x20 no_flow    1_234  A TCP packet to a frontend that neither opens a connection nor belongs to one.\n"
        );
    }

    #[test]
    fn a_refused_reload_is_shown_with_every_fault() {
        let refusal =
            LastRefusal { at: Moment(1110), messages: vec!["a.toml:1:1: one".into(), "a.toml:2:1: two".into()] };
        let state = State { last_refusal: Some(refusal), warnings: vec!["look here".into()], ..state() };
        let shown = shown(state, &Counters::default(), true);
        let expected = "\nLook at this\n  look here\n\nRefused 10 s ago; what was running before goes on\n  \
                        a.toml:1:1: one\n  a.toml:2:1: two\n\nHooks\n";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn a_controller_that_is_gone_is_the_first_thing_said() {
        let shown = shown(State { stopped: Some(Moment(1060)), ..state() }, &Counters::default(), false);
        assert!(shown.starts_with("controller     stopped 60 s ago\n"), "{shown}");
        assert!(shown.contains("\nLook at this\n  no controller is running: "), "{shown}");
    }

    #[test]
    fn nothing_but_pins_is_shown_as_such() {
        assert_eq!(
            shown(State::default(), &Counters::default(), false),
            "controller     not running\n\
             last change    none\n\
             last sweep     none\n\
             pins           /sys/fs/bpf/evenkeel, layout 2\n\
             \n\
             Look at this\n\
             \x20 no controller is running: packets flow on, but changes of backends and network are not followed\n\
             \n\
             Hooks\n\
             \x20 nothing is attached\n"
        );
    }

    #[test]
    fn json_holds_the_state_and_the_reasons() {
        let counters = Counters { reasons: [(Reason::HopLimit, 3)].into(), ..Counters::default() };
        let report = Report::new(state(), &counters, true, "/pins".into());
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["is_running"], true);
        assert_eq!(json["ways"][0]["why"], "port v1 of bridge br0");
        assert_eq!(json["not_balanced"][0]["reason"], "hop_limit");
    }
}
