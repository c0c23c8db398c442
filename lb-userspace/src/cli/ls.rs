//! `evenkeel ls`: services, backends and counters, `ipvsadm -Ln`'s job.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::Result;
use clap::Args;
use lb_common::{
    backend::{BackendId, BackendState},
    selector::{NthRule, Slot},
    service::{Index, Policy, ServiceId},
    stats::{ServiceStats, Traffic},
};
use serde::Serialize;

use super::{
    Folders, permitted, print,
    table::{Paint, Table, Tone, grouped, number, text},
};
use crate::{
    dataplane::{Counters, maps::Maps, pins::Pins},
    model::Rule,
    plan::tables::{BackendRecord, Run, Tables, choice_words},
    selector::nth,
    state::State,
};

/// Lists services and backends, with what they are doing.
#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// Also show what has been counted, and how even it is
    #[arg(long, conflicts_with = "rate")]
    stats: bool,
    /// Also show what is counted within one second
    #[arg(long)]
    rate: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    folders: Folders,
}

impl Ls {
    pub(crate) fn run(&self) -> Result<()> {
        permitted()?;
        let maps = Maps::look(&Pins::new(&self.folders.pins))?;
        let state = State::read(&self.folders.state)?.unwrap_or_default();
        let before = maps.counters()?;
        let (counters, unit) = if self.rate {
            thread::sleep(Duration::from_secs(1));
            (since(&maps.counters()?, &before), Unit::PerSecond)
        } else {
            (before, Unit::Total)
        };
        let listing = listing(&maps.read()?, &counters, &state, unit);
        if self.json {
            print(&(serde_json::to_string_pretty(&listing)? + "\n"))
        } else {
            print(&render(&listing, self.stats || self.rate, Paint::of_stdout()))
        }
    }
}

/// Everything `ls` shows; its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Listing {
    /// What the counters mean.
    unit: Unit,
    /// By name, family, protocol and port.
    services: Vec<Service>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Unit {
    Total,
    PerSecond,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Service {
    id: u32,
    name: String,
    selector: String,
    schedule: String,
    frontends: Vec<String>,
    /// New choices.
    tickets: u64,
    /// Choices that went elsewhere because of a clash.
    diverted: u64,
    /// Choices of which nothing came.
    refused: u64,
    /// Choices that no nth rule took.
    unmatched: u64,
    /// Over how many choices the deviations of its backends are: those since the last change of slots.
    deviation_over: u64,
    backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Backend {
    id: u32,
    address: String,
    state: &'static str,
    way: &'static str,
    /// The part of new choices it is to get, 0 to 1.
    share: f64,
    /// Flows it has now.
    active: u64,
    choices: u64,
    /// How far the choices since the last change of slots are from its share, in percent; nothing before there are any.
    deviation: Option<f64>,
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
}

fn listing(tables: &Tables, counters: &Counters, state: &State, unit: Unit) -> Listing {
    let mut services: Vec<Service> = tables
        .services
        .iter()
        .map(|(id, word)| service(*id, tables.policies.get(&word.policy), tables, counters, state, unit))
        .collect();
    services.sort_by(|a, b| (&a.name, &a.frontends).cmp(&(&b.name, &b.frontends)));
    Listing { unit, services }
}

fn service(
    id: ServiceId,
    policy: Option<&Policy>,
    tables: &Tables,
    counters: &Counters,
    state: &State,
    unit: Unit,
) -> Service {
    let known = state.service(id);
    let shares = policy.map(|policy| shares(policy, tables)).unwrap_or_default();
    let of_service = |(_, record): &(&BackendId, &BackendRecord)| record.service == id;
    let in_service = || tables.backends.iter().filter(of_service);
    let since_change = |backend: &BackendId| {
        let from = match unit {
            Unit::Total => state.counted_from.get(&backend.0).copied().unwrap_or(0),
            Unit::PerSecond => 0,
        };
        counters.traffic.get(backend).map_or(0, |traffic| traffic.choices.saturating_sub(from))
    };
    // Those of removed backends are history.
    let chosen: u64 =
        in_service().filter(|(backend, _)| shares.contains_key(backend)).map(|(id, _)| since_change(id)).sum();
    let deviation = |backend: &BackendId, share: f64| {
        let expected = chosen as f64 * share;
        (expected > 0.0).then(|| (since_change(backend) as f64 - expected) / expected * 100.0)
    };
    let ServiceStats { tickets, diverted, refused, unmatched } =
        counters.services.get(&id).copied().unwrap_or_default();
    let schedule = if policy.is_some_and(Policy::is_per_packet) { "per-packet" } else { "per-flow" };
    Service {
        id: id.0,
        name: known.map_or_else(|| format!("service {}", id.0), |known| known.key.name.clone()),
        selector: known.map_or_else(|| index_name(policy).to_owned(), |known| known.selector.clone()),
        schedule: schedule.to_owned(),
        frontends: tables
            .frontends
            .iter()
            .filter(|(_, frontend)| frontend.service == id)
            .map(|(key, _)| key.to_string())
            .collect(),
        tickets,
        diverted,
        refused,
        unmatched,
        deviation_over: chosen,
        backends: in_service()
            .map(|(id, record)| {
                let share = shares.get(id).copied().unwrap_or(0.0);
                let Traffic { choices, packets_in, bytes_in, packets_out, bytes_out } =
                    counters.traffic.get(id).copied().unwrap_or_default();
                Backend {
                    id: id.0,
                    address: record.key.to_string(),
                    state: record.state.name(),
                    way: record.way.name(),
                    share,
                    active: counters.active.get(id).copied().unwrap_or(0),
                    choices,
                    deviation: deviation(id, share),
                    packets_in,
                    bytes_in,
                    packets_out,
                    bytes_out,
                }
            })
            .collect(),
    }
}

/// The part of new choices that each backend of a policy gets, from the slots themselves.
fn shares(policy: &Policy, tables: &Tables) -> BTreeMap<BackendId, f64> {
    let run = tables.runs.get(&Run::of(policy));
    let Some(words) = run.zip(choice_words(policy)).and_then(|(words, count)| words.get(..count)) else {
        return BTreeMap::new();
    };
    let mut shares = BTreeMap::new();
    match policy.index() {
        Some(Index::Random | Index::Cursor) => {
            for word in words {
                *shares.entry(Slot::from_word(*word).backend).or_insert(0.0) += 1.0 / words.len() as f64;
            }
        }
        Some(Index::Chain) => {
            let rules: Vec<Rule<BackendId>> = words
                .chunks_exact(NthRule::WORDS)
                .map(|words| NthRule::from_words([words[0], words[1]]))
                .map(|rule| Rule { every: rule.every, packet: rule.packet, backend: rule.slot.backend })
                .collect();
            for (rule, share) in rules.iter().zip(nth::shares(&rules)) {
                *shares.entry(rule.backend).or_insert(0.0) += share;
            }
        }
        None => {}
    }
    shares
}

/// What the maps themselves tell of a selector.
fn index_name(policy: Option<&Policy>) -> &'static str {
    match policy.and_then(Policy::index) {
        Some(Index::Random) => "random",
        Some(Index::Cursor) => "in turn",
        Some(Index::Chain) => "nth",
        None => "no policy",
    }
}

/// What was counted between the two.
fn since(after: &Counters, before: &Counters) -> Counters {
    let minus = |a: u64, b: u64| a.saturating_sub(b);
    let mut difference = after.clone();
    for (id, now) in &mut difference.traffic {
        let then = before.traffic.get(id).copied().unwrap_or_default();
        *now = Traffic {
            choices: minus(now.choices, then.choices),
            packets_in: minus(now.packets_in, then.packets_in),
            bytes_in: minus(now.bytes_in, then.bytes_in),
            packets_out: minus(now.packets_out, then.packets_out),
            bytes_out: minus(now.bytes_out, then.bytes_out),
        };
    }
    for (id, now) in &mut difference.services {
        let then = before.services.get(id).copied().unwrap_or_default();
        *now = ServiceStats {
            tickets: minus(now.tickets, then.tickets),
            diverted: minus(now.diverted, then.diverted),
            refused: minus(now.refused, then.refused),
            unmatched: minus(now.unmatched, then.unmatched),
        };
    }
    difference
}

fn render(listing: &Listing, with_counters: bool, paint: Paint) -> String {
    if listing.services.is_empty() {
        return "no services\n".into();
    }
    let mut out = String::new();
    for (i, service) in listing.services.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        out += &headline(service, paint);
        if with_counters {
            out += &tickets(service, listing.unit, paint);
        }
        out += &backends(service, listing.unit, with_counters).render("  ", paint);
    }
    out
}

/// Frontends that are named; of the rest only the number is.
const FRONTENDS_SHOWN: usize = 4;

fn headline(service: &Service, paint: Paint) -> String {
    let mut frontends = service.frontends.iter().take(FRONTENDS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if service.frontends.len() > FRONTENDS_SHOWN {
        frontends += &format!(" and {} more", service.frontends.len() - FRONTENDS_SHOWN);
    }
    if frontends.is_empty() {
        frontends += "no frontend";
    }
    let name = paint.text(Tone::Title, &service.name);
    format!("{name}  {frontends}  {} {}\n", service.selector, service.schedule)
}

fn tickets(service: &Service, unit: Unit, paint: Paint) -> String {
    let per = match unit {
        Unit::Total => "",
        Unit::PerSecond => " a second",
    };
    let mut line = format!("  {} choices{per}", grouped(service.tickets));
    for (count, what) in
        [(service.diverted, "diverted"), (service.refused, "refused"), (service.unmatched, "taken by no rule")]
    {
        if count > 0 {
            line += &paint.text(Tone::Warning, &format!(", {} {what}", grouped(count)));
        }
    }
    // What its backends got before the last change of slots tells nothing of how even it is now.
    let of_all = service.backends.iter().map(|backend| backend.choices).sum::<u64>() == service.deviation_over;
    line += &match (unit, service.deviation_over) {
        (Unit::Total, 0) if !of_all => ", none since the last change".to_owned(),
        (Unit::Total, over) if !of_all => format!(", deviation over the last {}", grouped(over)),
        (Unit::Total | Unit::PerSecond, _) => String::new(),
    };
    line + "\n"
}

fn backends(service: &Service, unit: Unit, with_counters: bool) -> Table {
    let plain = ["BACKEND", "STATE", "WAY", "SHARE", "ACTIVE"];
    let counted = match unit {
        Unit::Total => ["CHOICES", "DEVIATION", "PACKETS IN", "BYTES IN", "PACKETS OUT", "BYTES OUT"],
        Unit::PerSecond => ["CHOICES/s", "DEVIATION", "PACKETS IN/s", "BYTES IN/s", "PACKETS OUT/s", "BYTES OUT/s"],
    };
    let titles = if with_counters { [&plain[..], &counted[..]].concat() } else { plain.to_vec() };
    let mut table = Table::new(&titles);
    for backend in &service.backends {
        let mut cells = vec![
            text(&backend.address),
            text(backend.state).in_tone(tone(backend.state)),
            text(backend.way),
            number(format!("{:.1} %", backend.share * 100.0)),
            number(grouped(backend.active)),
        ];
        if with_counters {
            cells.extend([
                number(grouped(backend.choices)),
                number(backend.deviation.map_or_else(|| "-".into(), |deviation| format!("{deviation:+.2} %"))),
                number(grouped(backend.packets_in)),
                number(grouped(backend.bytes_in)),
                number(grouped(backend.packets_out)),
                number(grouped(backend.bytes_out)),
            ]);
        }
        table.row(cells);
    }
    table
}

fn tone(state: &str) -> Tone {
    if state == BackendState::Use.name() { Tone::Good } else { Tone::Warning }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        addr::{Port, Protocol},
        backend::{EndpointId, Way},
        service::{Frontend, FrontendId, PolicyId, ServiceWord, SocketKey},
    };

    use super::*;
    use crate::{plan::tables::ServiceKey, state::ServiceState};

    fn key(address: &str, port: u16) -> SocketKey {
        let ip: std::net::IpAddr = address.parse().expect("a valid address");
        SocketKey::new(ip.into(), Port::new(port), Protocol::UDP)
    }

    /// One service in turn over two backends, and a third one that was removed.
    fn tables(index: Index, words: Vec<u64>, slots_count: u32) -> Tables {
        let service = ServiceId(1);
        let record = |last: u8, state| BackendRecord {
            service,
            key: key(&format!("10.0.0.{last}"), 53),
            endpoint: EndpointId(u32::from(last)),
            state,
            way: Way::Peer { ifindex: 7 },
        };
        let policy = Policy {
            index: index.to_word(),
            flags: Policy::PER_PACKET,
            slots_chunk: 0,
            slots_start: 0,
            slots_count,
            service,
            others_count: 0,
            zero: [0; 9],
        };
        Tables {
            frontends: [(key("192.0.2.53", 53), Frontend { frontend: FrontendId(1), service })].into(),
            services: [(service, ServiceWord { policy: PolicyId(1), change: 0 })].into(),
            policies: [(PolicyId(1), policy)].into(),
            runs: [(Run { chunk: 0, start: 0 }, words)].into(),
            backends: [
                (BackendId(1), record(1, BackendState::Use)),
                (BackendId(2), record(2, BackendState::Use)),
                (BackendId(3), record(3, BackendState::UdpGone)),
            ]
            .into(),
            ..Tables::default()
        }
    }

    fn in_turn() -> Tables {
        tables(Index::Cursor, [1, 2].map(|id| slot(id).to_word()).to_vec(), 2)
    }

    fn slot(id: u32) -> Slot {
        Slot { backend: BackendId(id), endpoint: EndpointId(id) }
    }

    fn counters() -> Counters {
        let traffic =
            |choices| Traffic { choices, packets_in: choices, bytes_in: 70, packets_out: 6, bytes_out: 1_000_000 };
        Counters {
            traffic: [(BackendId(1), traffic(1000)), (BackendId(2), traffic(1002)), (BackendId(3), traffic(9))].into(),
            active: [(BackendId(1), 12)].into(),
            services: [(ServiceId(1), ServiceStats { tickets: 2011, diverted: 0, refused: 1, unmatched: 0 })].into(),
            ..Counters::default()
        }
    }

    fn state() -> State {
        let key = ServiceKey { name: "dns".into(), family: 4, protocol: 17, port: 53 };
        let service = ServiceState { id: 1, key, selector: "rr".into(), schedule: "per-packet".into() };
        State { services: vec![service], ..State::default() }
    }

    #[test]
    fn services_are_listed_with_their_backends() {
        let listing = listing(&in_turn(), &counters(), &state(), Unit::Total);
        assert_eq!(
            render(&listing, false, Paint::Plain),
            "dns  192.0.2.53:53/udp  rr per-packet\n\
            \x20 BACKEND          STATE    WAY             SHARE  ACTIVE\n\
            \x20 10.0.0.1:53/udp  use      redirect-peer  50.0 %      12\n\
            \x20 10.0.0.2:53/udp  use      redirect-peer  50.0 %       0\n\
            \x20 10.0.0.3:53/udp  removed  redirect-peer   0.0 %       0\n"
        );
    }

    #[test]
    fn counters_are_listed_with_how_even_they_are() {
        let mut tables = in_turn();
        tables.backends.remove(&BackendId(3));
        let listing = listing(&tables, &counters(), &state(), Unit::Total);
        assert_eq!(
            render(&listing, true, Paint::Plain),
            "dns  192.0.2.53:53/udp  rr per-packet\n\
            \x20 2_011 choices, 1 refused\n\
            \x20 BACKEND          STATE  WAY             SHARE  ACTIVE  CHOICES  DEVIATION  PACKETS IN  BYTES IN  PACKETS OUT  BYTES OUT\n\
            \x20 10.0.0.1:53/udp  use    redirect-peer  50.0 %      12    1_000    -0.10 %       1_000        70            6  1_000_000\n\
            \x20 10.0.0.2:53/udp  use    redirect-peer  50.0 %       0    1_002    +0.10 %       1_002        70            6  1_000_000\n"
        );
    }

    #[test]
    fn a_deviation_over_a_part_of_the_choices_says_over_how_many() {
        let state = State { counted_from: [(1, 900), (2, 901), (3, 9)].into(), ..state() };
        let listing = listing(&in_turn(), &counters(), &state, Unit::Total);
        assert_eq!(
            render(&listing, true, Paint::Plain),
            "dns  192.0.2.53:53/udp  rr per-packet\n\
            \x20 2_011 choices, 1 refused, deviation over the last 201\n\
            \x20 BACKEND          STATE    WAY             SHARE  ACTIVE  CHOICES  DEVIATION  PACKETS IN  BYTES IN  PACKETS OUT  BYTES OUT\n\
            \x20 10.0.0.1:53/udp  use      redirect-peer  50.0 %      12    1_000    -0.50 %       1_000        70            6  1_000_000\n\
            \x20 10.0.0.2:53/udp  use      redirect-peer  50.0 %       0    1_002    +0.50 %       1_002        70            6  1_000_000\n\
            \x20 10.0.0.3:53/udp  removed  redirect-peer   0.0 %       0        9          -           9        70            6  1_000_000\n"
        );
        assert_eq!(serde_json::to_value(&listing).expect("json")["services"][0]["deviation_over"], 201);
    }

    #[test]
    fn a_service_without_a_choice_since_its_change_says_so_and_a_rate_says_nothing_of_it() {
        let state = State { counted_from: [(1, 1000), (2, 1002), (3, 9)].into(), ..state() };
        let line = |unit| {
            let listing = listing(&in_turn(), &counters(), &state, unit);
            tickets(&listing.services[0], unit, Paint::Plain)
        };
        assert_eq!(line(Unit::Total), "  2_011 choices, 1 refused, none since the last change\n");
        assert_eq!(line(Unit::PerSecond), "  2_011 choices a second, 1 refused\n");
    }

    #[test]
    fn how_even_it_is_is_judged_from_the_last_change_on() {
        let state = State { counted_from: [(1, 900), (2, 912)].into(), ..state() };
        let deviations = |unit| -> Vec<String> {
            let listing = listing(&in_turn(), &counters(), &state, unit);
            listing.services[0].backends.iter().map(|one| format!("{:.2?}", one.deviation)).collect()
        };
        assert_eq!(deviations(Unit::Total), ["Some(5.26)", "Some(-5.26)", "None"]);
        assert_eq!(deviations(Unit::PerSecond), ["Some(-0.10)", "Some(0.10)", "None"]);
    }

    #[test]
    fn a_rate_is_what_came_between_two_looks() {
        let mut later = counters();
        later
            .traffic
            .insert(BackendId(1), Traffic { choices: 1007, packets_in: 1009, ..counters().traffic[&BackendId(1)] });
        later.services.insert(ServiceId(1), ServiceStats { tickets: 2018, refused: 1, ..ServiceStats::default() });
        let rate = since(&later, &counters());
        assert_eq!(rate.traffic[&BackendId(1)], Traffic { choices: 7, packets_in: 9, ..Traffic::default() });
        assert_eq!(rate.traffic[&BackendId(2)], Traffic::default());
        assert_eq!(rate.services[&ServiceId(1)], ServiceStats { tickets: 7, ..ServiceStats::default() });
        assert_eq!(rate.active, later.active, "what is there now is no rate");
    }

    #[test]
    fn shares_follow_slots_and_rules() {
        let weighted = tables(Index::Random, [1, 1, 1, 2].map(|id| slot(id).to_word()).to_vec(), 4);
        let shares_of = |tables: &Tables| -> Vec<f64> {
            listing(tables, &counters(), &state(), Unit::Total).services[0].backends.iter().map(|b| b.share).collect()
        };
        assert_eq!(shares_of(&weighted), [0.75, 0.25, 0.0]);
        let rules = [NthRule { every: 4, packet: 0, slot: slot(1) }, NthRule { every: 2, packet: 1, slot: slot(2) }];
        let chain = tables(Index::Chain, rules.into_iter().flat_map(NthRule::to_words).collect(), 2);
        assert_eq!(shares_of(&chain), [0.25, 0.375, 0.0]);
    }

    #[test]
    fn without_the_state_services_go_by_their_number() {
        let listing = listing(&in_turn(), &counters(), &State::default(), Unit::Total);
        assert!(
            render(&listing, false, Paint::Plain).starts_with("service 1  192.0.2.53:53/udp  in turn per-packet\n")
        );
    }

    #[test]
    fn many_frontends_are_counted_rather_than_named() {
        let mut tables = in_turn();
        for last in 1..=6 {
            let frontend = Frontend { frontend: FrontendId(9), service: ServiceId(1) };
            tables.frontends.insert(key(&format!("203.0.113.{last}"), 53), frontend);
        }
        let listing = listing(&tables, &counters(), &state(), Unit::Total);
        let shown = render(&listing, false, Paint::Plain);
        assert!(shown.lines().next().is_some_and(|line| line.contains(" and 3 more  rr")), "{shown}");
    }

    #[test]
    fn json_names_what_is_listed() {
        let json = serde_json::to_value(listing(&in_turn(), &counters(), &state(), Unit::PerSecond)).expect("json");
        assert_eq!(json["unit"], "per-second");
        assert_eq!(json["services"][0]["backends"][1]["choices"], 1002);
        assert_eq!(json["services"][0]["frontends"][0], "192.0.2.53:53/udp");
    }
}
