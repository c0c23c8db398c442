//! `evenkeel check`: validates a configuration, and shows what it means and the memory it takes. Needs no kernel and
//! no rights.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use lb_common::addr::{Family, Protocol};
use serde::Serialize;

use super::{
    print,
    table::{Paint, Table, Tone, grouped, number, text},
};
use crate::{
    capacity::{Capacity, MapMemory, readable},
    model::{self, At, Chain, Choice, Listen, Rule, Schedule, Target, draft::Host},
    reconcile::RunError,
    selector,
    source::file::{self, Complaint, FileError, Loaded},
};

/// Validates a configuration, and shows what it means and the memory it takes.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(&self) -> Result<()> {
        let host = Host::of_this_machine().context("/sys")?;
        let loaded = match file::load(&self.file, &host) {
            Ok(loaded) => loaded,
            Err(error) => {
                if self.json {
                    print(&(serde_json::to_string_pretty(&refusal(&error))? + "\n"))?;
                }
                return Err(RunError::Refused(vec![error.to_string()]).into());
            }
        };
        let report = report(&loaded, host.cpus);
        if self.json {
            print(&(serde_json::to_string_pretty(&report)? + "\n"))
        } else {
            print(&render(&report, Paint::of_stdout()))
        }
    }
}

/// The JSON of a refused configuration.
#[derive(Debug, PartialEq, Serialize)]
struct Refusal {
    faults: Vec<Complaint>,
}

/// A file that cannot be read has its one fault at its beginning.
fn refusal(error: &FileError) -> Refusal {
    let faults = match error {
        FileError::Refused(faults) => faults.clone(),
        FileError::Unreadable { file, source } => {
            let (file, message) = (file.display().to_string(), source.to_string());
            vec![Complaint { file, line: 1, column: 1, service: None, message }]
        }
    };
    Refusal { faults }
}

/// Everything `check` shows; its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    /// In the file's order.
    services: Vec<Service>,
    /// What is odd, but can be done.
    warnings: Vec<Complaint>,
    /// Possible CPUs of this machine.
    cpus: u32,
    /// The memory of each map.
    maps: Vec<MapMemory>,
    /// The memory of all of them.
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Service {
    name: String,
    selector: &'static str,
    /// What is chosen once, where UDP is spoken.
    udp: Option<&'static str>,
    listen: Vec<Listener>,
    /// Those of IPv4 first: each family is balanced by itself.
    backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Listener {
    /// An address, or the name of an interface.
    at: String,
    port: u16,
    protocols: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Backend {
    /// With its port, if that is not the frontend's.
    backend: String,
    family: &'static str,
    /// For selectors that have weights.
    weight: Option<u32>,
    /// For nth: this rule takes one of so many choices that reach it.
    every: Option<u32>,
    /// For nth: the number of that one, from 0.
    packet: Option<u32>,
    /// Of all new choices of its family, from 0 to 1.
    share: f64,
}

fn report(loaded: &Loaded, cpus: u32) -> Report {
    let capacity = Capacity::from(&loaded.settings.limits);
    Report {
        services: loaded.desired.services.iter().map(service).collect(),
        warnings: loaded.warnings.clone(),
        cpus,
        maps: capacity.memory(cpus),
        bytes: capacity.total_bytes(cpus),
    }
}

fn service(service: &model::Service) -> Service {
    let speaks_udp = service.listens.iter().any(|listen| listen.protocols.contains(&Protocol::UDP));
    Service {
        name: service.name.clone(),
        selector: service.choice.selector().name(),
        udp: speaks_udp.then_some(service.schedule.name()),
        listen: service.listens.iter().map(listener).collect(),
        backends: Family::ALL.into_iter().flat_map(|family| backends(&service.choice, family)).collect(),
    }
}

fn listener(listen: &Listen) -> Listener {
    let at = match &listen.at {
        At::Address(address) => address.to_string(),
        At::Interface(name) => name.clone(),
    };
    Listener {
        at,
        port: listen.port,
        protocols: listen.protocols.iter().rev().map(|protocol| protocol.name()).collect(),
    }
}

/// The backends of one family, in the selector's order.
fn backends(choice: &Choice<Target>, family: Family) -> Vec<Backend> {
    let choice = choice.filter_map(|target| (target.family() == family).then_some(*target));
    let plain = |target: &Target, share| Backend {
        backend: target.to_string(),
        family: family.name(),
        weight: None,
        every: None,
        packet: None,
        share,
    };
    let shares = selector::shares(&choice);
    match &choice {
        Choice::Random(weighted) | Choice::WeightedRoundRobin(weighted) => {
            let with_weight = |(one, share): (&model::Weighted<Target>, f64)| Backend {
                weight: Some(one.weight),
                ..plain(&one.backend, share)
            };
            weighted.iter().zip(shares).map(with_weight).collect()
        }
        Choice::Nth(chain @ (Chain::Even(_) | Chain::Rules(_))) => {
            let with_rule = |(rule, share): (&Rule<Target>, f64)| Backend {
                every: Some(rule.every),
                packet: Some(rule.packet),
                ..plain(&rule.backend, share)
            };
            selector::nth::rules(chain).iter().zip(shares).map(with_rule).collect()
        }
        Choice::RoundRobin(backends) => {
            backends.iter().zip(shares).map(|(target, share)| plain(target, share)).collect()
        }
    }
}

fn render(report: &Report, paint: Paint) -> String {
    let mut shown = String::new();
    for service in &report.services {
        shown += &paint.text(Tone::Title, &service.name);
        shown += &format!("  {}", service.selector);
        if let Some(schedule) = service.udp {
            let noted = match schedule {
                schedule if schedule == Schedule::PerPacket.name() => ", UDP per packet",
                _ => "",
            };
            shown += noted;
        }
        shown.push('\n');
        for listen in &service.listen {
            let at = match listen.at.parse() {
                Ok(address) => SocketAddr::new(address, listen.port).to_string(),
                Err(_) => format!("{}:{}", listen.at, listen.port),
            };
            shown += &format!("  on {at} {}\n", listen.protocols.join(", "));
        }
        shown += &backend_table(service).render("  ", paint);
        shown.push('\n');
    }
    if !report.warnings.is_empty() {
        shown += &paint.text(Tone::Warning, "Look at this");
        shown.push('\n');
        for warning in &report.warnings {
            shown += &format!("  {warning}\n");
        }
        shown.push('\n');
    }
    let cpus = if report.cpus == 1 { "1 possible CPU".to_owned() } else { format!("{} possible CPUs", report.cpus) };
    shown += &format!("{}  {} with {cpus}\n", paint.text(Tone::Title, "Memory"), readable(report.bytes));
    let mut maps = Table::new(&["MAP", "ENTRIES", "MEMORY"]);
    for map in &report.maps {
        maps.row(vec![text(map.map), number(grouped(map.entries.into())), number(readable(map.bytes))]);
    }
    shown + &maps.render("  ", paint)
}

fn backend_table(service: &Service) -> Table {
    let has_weights = service.backends.iter().any(|backend| backend.weight.is_some());
    let has_rules = service.backends.iter().any(|backend| backend.every.is_some());
    let mut titles = vec!["BACKEND"];
    titles.extend(has_weights.then_some("WEIGHT"));
    titles.extend(has_rules.then_some(["EVERY", "PACKET"]).into_iter().flatten());
    titles.push("SHARE");
    let mut table = Table::new(&titles);
    for backend in &service.backends {
        let numbers = [backend.weight, backend.every, backend.packet].into_iter().flatten();
        let mut cells = vec![text(&backend.backend)];
        cells.extend(numbers.map(number));
        cells.push(number(format!("{:.2} %", backend.share * 100.0)));
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[[service]]
name = "dns"
listen = [
    { interface = "eth3", port = 53, protocols = ["udp", "tcp"] },
    { address = "2001:db8::53", port = 53, protocols = ["udp"] },
]
schedule = "per-packet"
backends = ["10.0.0.2", "fd00::2", "10.0.0.3:5353"]

[[service]]
name = "web"
listen = [{ address = "192.0.2.80", port = 80, protocols = ["tcp"] }]
selector = "wrr"
backends = [{ address = "10.0.0.2", weight = 3 }, "10.0.0.3"]

[[service]]
name = "old"
listen = [{ address = "192.0.2.53", port = 54, protocols = ["udp"] }]
selector = "nth"
rules = [{ every = 4, packet = 0, backend = "10.0.0.4" }, { every = 4, packet = 1, backend = "10.0.0.5" }]
"#;

    fn example() -> Report {
        let host = Host { cpus: 2, interfaces: None };
        report(&file::parse("evenkeel.toml", TEXT, &host).expect("nothing is wrong with it"), host.cpus)
    }

    #[test]
    fn the_plan_and_the_memory_are_shown() {
        let shown = render(&example(), Paint::Plain);
        let (plan, memory) = shown.split_once("Memory").expect("memory comes last");
        assert_eq!(
            plan,
            "\
dns  rr, UDP per packet
  on eth3:53 udp, tcp
  on [2001:db8::53]:53 udp
  BACKEND           SHARE
  10.0.0.2        50.00 %
  10.0.0.3:5353   50.00 %
  fd00::2        100.00 %

web  wrr
  on 192.0.2.80:80 tcp
  BACKEND   WEIGHT    SHARE
  10.0.0.2       3  75.00 %
  10.0.0.3       1  25.00 %

old  nth
  on 192.0.2.53:54 udp
  BACKEND   EVERY  PACKET    SHARE
  10.0.0.4      4       0  25.00 %
  10.0.0.5      4       1  18.75 %

Look at this
  evenkeel.toml:21:9: service old: the rules leave 9 of 16 (56.25 %) of new choices unmatched, \
             which pass to the host; end with a rule of every = 1

"
        );
        assert!(memory.starts_with("  31.4 MiB with 2 possible CPUs\n  MAP"), "{memory}");
        assert!(memory.contains("\n  FLOWS           65_536   20.0 MiB\n"), "{memory}");
    }

    #[test]
    fn the_json_of_a_file_that_cannot_be_read_has_its_fault() {
        let host = Host { cpus: 2, interfaces: None };
        let error = file::load("/nonexistent/evenkeel.toml".as_ref(), &host).expect_err("there is none");
        assert_eq!(
            serde_json::to_value(refusal(&error)).expect("it can be written"),
            serde_json::json!({ "faults": [{
                "file": "/nonexistent/evenkeel.toml", "line": 1, "column": 1, "service": null,
                "message": "No such file or directory (os error 2)",
            }] })
        );
    }

    #[test]
    fn json_has_the_same() {
        let json = serde_json::to_value(example()).expect("it can be written");
        assert_eq!(json["services"][1]["backends"][0]["weight"], 3);
        assert_eq!(json["services"][0]["udp"], "per-packet");
        assert_eq!(json["services"][2]["backends"][1]["share"], 0.1875);
        assert_eq!(json["warnings"][0]["line"], 21);
        assert_eq!(json["bytes"], Capacity::default().total_bytes(2));
    }
}
