//! `nth` is what iptables does: the same rules send the same new connections to the same backends, in the same order,
//! and leave the same ones to the host.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, atomic::Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{
    addr::Family,
    backend::{BackendId, EndpointId},
    selector::{NthRule, Slot},
    service::{Index, Policy, ServiceId},
};
use lb_ebpf::{
    atomic::Shared as Word,
    select::{Chooser, Ticket},
    testing::{Cpu, Maps},
};
use lb_userspace::dataplane::{
    mmap::{Access, Mapping},
    sys::Map,
};
use serde_json::Value;
use testbed::{
    ask::{Answers, Ask, Ports},
    bind::Bind,
    evenkeel::Evenkeel,
    harness::{self, Needs},
    lab::{FRONTENDS, Host, Lab, Layout},
    reference::{Reference, Rules},
    statistic::{self, Chain, Nth},
};

/// New connections to each list of rules.
const CONNECTIONS: usize = 1200;
const BACKENDS: usize = 8;
/// What answers where no rule takes a connection: the balancer's own server.
const NONE: &str = "none";

/// The lists, and whether the state of their counters comes back only after more than a million connections.
fn lists() -> [(&'static str, Vec<Nth>, Period); 10] {
    let rules = |rules: &mut dyn Iterator<Item = (u32, u32)>| {
        (0..).zip(rules).map(|(rule, (every, packet))| Nth { every, packet, backend: rule % BACKENDS }).collect()
    };
    let primes = [2, 3, 5, 7, 11, 13, 17, 19];
    [
        ("four copies of every 4 packet 0", statistic::copied(4), Period::Short),
        ("every 4, 3, 2, 1", statistic::cascade(4), Period::Short),
        ("every 4 with packets 0 to 3", statistic::numbered(4), Period::Short),
        ("the last of every 3", rules(&mut [(3, 2)].into_iter()), Period::Short),
        ("three of every 4 and the rest", rules(&mut [(4, 0), (4, 0), (4, 0), (1, 0)].into_iter()), Period::Short),
        ("eight of every 10, from the last on", rules(&mut (0..8).map(|rule| (10, 9 - rule))), Period::Long),
        ("eight primes", rules(&mut primes.into_iter().map(|every| (every, every / 2))), Period::Long),
        ("sixteen from every 16 on", rules(&mut (0..16).map(|rule| (16 + rule, rule))), Period::Long),
        (
            "thirty-two from every 33 on",
            rules(&mut (0..32).map(|rule| (33 + rule, 7 * rule % (33 + rule)))),
            Period::Long,
        ),
        (
            "thirty-one of every 64 and the rest",
            rules(&mut (0..31).map(|rule| (64, 63 - 2 * rule)).chain([(1, 0)])),
            Period::Long,
        ),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Short,
    /// More than a million.
    Long,
}

fn main() -> ExitCode {
    let shared: Shared = Arc::default();
    let mut trials = vec![
        harness::trial("long chains come round only after a million choices", Needs::Nothing, long_chains_are_long),
        harness::trial("the index function equals the rules over a million choices", Needs::Nothing, million_choices),
    ];
    let mut add = |name: &str, body: fn(&mut Stage, Family) -> Result<()>| {
        for family in Family::ALL {
            let shared = Arc::clone(&shared);
            let body = move || harness::on_shared(&shared, Stage::set, |stage| body(stage, family));
            trials.push(harness::trial(&format!("{name}, {family}"), Needs::Root, body));
        }
    };
    add("new flows go where iptables sent them", Stage::flows_go_where_iptables_sent_them);
    add("the queries of one socket go where new flows would", Stage::queries_go_where_flows_would);
    add("after a million choices new flows still go where the rules send them", Stage::late_flows_go_on);
    add("an unmatched flow is judged again with each packet", Stage::unmatched_flows_are_judged_again);
    harness::run_side_by_side(trials)
}

/// The lab that all trials use one after the other; it goes with the last of them.
type Shared = Arc<Mutex<Option<Stage>>>;

fn long_chains_are_long() -> Result<()> {
    for (name, rules, expected) in lists() {
        let period = period(&rules);
        ensure!((period > 1_000_000) == (expected == Period::Long), "{name}: {period}");
    }
    Ok(())
}

/// After how many connections all counters of a chain are what they were at first.
fn period(rules: &[Nth]) -> u128 {
    let (mut period, mut reaching) = (1, 1);
    for rule in rules {
        let every = u128::from(rule.every);
        // So many rounds until a whole number of its own turns has reached the rule.
        let rounds = every / gcd(every, reaching);
        period *= rounds;
        reaching = reaching * rounds / every * (every - 1);
        // Nothing reaches what follows, or it is long enough as it is.
        if reaching == 0 || period > u128::from(u64::MAX) {
            break;
        }
    }
    period
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The data path's own source on the host, past what a lab has time for.
fn million_choices() -> Result<()> {
    for (name, rules, _) in lists() {
        let slot = |backend: usize| Slot { backend: BackendId(backend as u32 + 1), endpoint: EndpointId(1) };
        let words = rules
            .iter()
            .flat_map(|rule| NthRule { every: rule.every, packet: rule.packet, slot: slot(rule.backend) }.to_words());
        let maps = Maps::new(1, 1);
        maps.write_slots(0, &words.collect::<Vec<_>>());
        let policy = Policy {
            index: Index::Chain.to_word(),
            flags: 0,
            slots_chunk: 0,
            slots_start: 0,
            slots_count: rules.len() as u32,
            service: ServiceId(1),
            others_count: 0,
            zero: [0; 9],
        };
        let (cpu, cursor) = (Cpu::new(&maps, 1), Word::new(0));
        let chooser = Chooser::new(&policy, &cursor, &maps.slots, &cpu).context("a policy of a known kind")?;
        for (choice, expected) in Chain::new(&rules).take(1_100_000).enumerate() {
            let chosen = match chooser.draw() {
                Ticket::Position(position) => Some(chooser.slot(position, 0).backend.0 as usize - 1),
                Ticket::Unmatched => None,
            };
            ensure!(chosen == expected, "{name}: choice {choice} goes to {chosen:?}, not {expected:?}");
        }
    }
    Ok(())
}

impl Stage {
    fn flows_go_where_iptables_sent_them(&mut self, family: Family) -> Result<()> {
        for (list, (name, rules, _)) in lists().into_iter().enumerate() {
            let before = self.serve(list, &rules, family, Schedule::PerFlow)?;
            let answers = self.ask_from_each_port(family)?;
            let iptables = &self.iptables[&(list, family == Family::V6)];
            equal(&answers, iptables).with_context(|| format!("{name}: iptables and Evenkeel differ"))?;
            self.counted_as(&before, &answers, family).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    fn queries_go_where_flows_would(&mut self, family: Family) -> Result<()> {
        for (list, (name, rules, _)) in lists().into_iter().enumerate() {
            let before = self.serve(list, &rules, family, Schedule::PerPacket)?;
            // A port of its own, which no flow is begun from while its answers are still awaited.
            let port = self.ports.take(1).start;
            let ask = Ask::from_one_socket(frontend(family, self.services), CONNECTIONS).port(port);
            let answers = self.clean(&ask)?;
            equal(&answers, &expected(&rules, 0)).with_context(|| name.to_owned())?;
            self.counted_as(&before, &answers, family).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    fn late_flows_go_on(&mut self, family: Family) -> Result<()> {
        for (list, (name, rules, period)) in lists().into_iter().enumerate() {
            if period == Period::Short {
                continue;
            }
            let before = self.serve(list, &rules, family, Schedule::PerFlow)?;
            // A million flows are more than a lab's client has ports for: the ticket is set instead.
            let start = 1_234_567;
            self.set_cursor(before.service, start)?;
            let answers = self.ask_from_each_port(family)?;
            equal(&answers, &expected(&rules, usize::try_from(start)?)).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    fn unmatched_flows_are_judged_again(&mut self, family: Family) -> Result<()> {
        let rules = [Nth { every: 4, packet: 3, backend: 5 }];
        self.serve(lists().len(), &rules, family, Schedule::PerFlow)?;
        // One after the other, so that each is judged with what became of the one before it.
        let port = self.ports.take(1).start;
        let answers = self.clean(&Ask::from_one_socket(frontend(family, self.services), 8).port(port).window(1))?;
        let first_three = [None; 3].into_iter().chain([Some(5); 5]).map(name).collect::<Vec<_>>();
        equal(&answers, &first_three)
    }
}

/// Where the connections after the first so many go.
fn expected(rules: &[Nth], after: usize) -> Vec<String> {
    Chain::new(rules).skip(after).take(CONNECTIONS).map(name).collect()
}

fn name(backend: Option<usize>) -> String {
    backend.map_or_else(|| NONE.to_owned(), |backend| format!("b{}", backend + 1))
}

fn equal(answers: &Answers, expected: &[String]) -> Result<()> {
    ensure!(answers.by_query.len() == expected.len(), "{} of {}", answers.by_query.len(), expected.len());
    for (choice, (who, expected)) in answers.by_query.iter().zip(expected).enumerate() {
        ensure!(who.as_ref() == Some(expected), "choice {choice} went to {who:?}, not {expected}");
    }
    Ok(())
}

/// One of the frontends of a family in turn.
fn frontend(family: Family, turn: usize) -> SocketAddr {
    SocketAddr::new(FRONTENDS[usize::from(family == Family::V6) + turn % 2 * 2], 53)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PerFlow,
    PerPacket,
}

/// The lab with its servers, what iptables did with each list in it, and Evenkeel after it.
struct Stage {
    evenkeel: Evenkeel,
    /// By list and whether it was IPv6: who answered each connection.
    iptables: BTreeMap<(usize, bool), Vec<String>>,
    _servers: Vec<Bind>,
    lab: Lab,
    ports: Ports,
    services: usize,
}

impl Stage {
    fn set() -> Result<Self> {
        let lab = Lab::up(Layout { backends: BACKENDS, ..Layout::default() })?;
        let mut servers = Bind::start_all(&lab)?;
        let own = Host { namespace: lab.balancer().clone(), v4: FRONTENDS[0], v6: FRONTENDS[1] };
        servers.push(Bind::start(&lab, NONE, &own)?);
        let mut iptables = BTreeMap::new();
        for (list, (name, rules, _)) in lists().into_iter().enumerate() {
            // A port is a new one again once the kernel has forgotten its connections, which starting does.
            let reference = Reference::start(&lab, &Rules::Nth(rules.clone()), 53)?;
            for family in Family::ALL {
                let ask = Ask::from_each_port(frontend(family, list), Ports::default().take(CONNECTIONS));
                let answers = ask.run(&lab.client().namespace)?;
                ensure!(answers.is_clean(), "{name}, iptables, {family}: {} unanswered", answers.unanswered());
                equal(&answers, &expected(&rules, 0))
                    .with_context(|| format!("{name}, {family}: iptables and its simulation differ"))?;
                iptables.insert((list, family == Family::V6), answers.by_query.into_iter().flatten().collect());
            }
            reference.stop()?;
        }
        let first = configuration(&lab, 0, &statistic::cascade(4), Family::V4, Schedule::PerFlow);
        let evenkeel = Evenkeel::start(&lab, &first)?;
        Ok(Self { evenkeel, iptables, _servers: servers, lab, ports: Ports::default(), services: 0 })
    }

    /// Replaces whatever is served by one service with these rules, whose first ticket is 0: with another name and at
    /// the other frontend, for a service that is known by either goes on with the tickets it is at.
    fn serve(&mut self, list: usize, rules: &[Nth], family: Family, schedule: Schedule) -> Result<Counted> {
        self.services += 1;
        let configuration = configuration(&self.lab, self.services, rules, family, schedule);
        let told = self.evenkeel.reload(&configuration)?;
        ensure!(told.as_deref() == Some("configuration applied"), "list {list}: {told:?}");
        self.counted(family)
    }

    /// As many new flows as there are connections.
    fn ask_from_each_port(&mut self, family: Family) -> Result<Answers> {
        let ports = self.ports.take(CONNECTIONS);
        self.clean(&Ask::from_each_port(frontend(family, self.services), ports))
    }

    fn clean(&self, ask: &Ask) -> Result<Answers> {
        let answers = ask.clone().run(&self.lab.client().namespace)?;
        let (unanswered, wrong) = (answers.unanswered(), answers.wrong_source);
        if !answers.is_clean() {
            let not_balanced = &self.evenkeel.status()?["not_balanced"];
            bail!("{unanswered} unanswered, {wrong} from a wrong source: {:?}, {not_balanced}", answers.counts());
        }
        Ok(answers)
    }

    /// The kernel has counted as many choices, and as many of them unmatched, as the client has seen.
    fn counted_as(&self, before: &Counted, answers: &Answers, family: Family) -> Result<()> {
        let after = self.counted(family)?;
        let unmatched = answers.counts().get(NONE).copied().unwrap_or(0) as u64;
        ensure!(after.tickets - before.tickets == answers.by_query.len() as u64, "tickets: {before:?} {after:?}");
        ensure!(after.unmatched - before.unmatched == unmatched, "{unmatched} unmatched: {before:?} {after:?}");
        ensure!((after.diverted, after.refused) == (before.diverted, before.refused), "{before:?} {after:?}");
        Ok(())
    }

    fn counted(&self, family: Family) -> Result<Counted> {
        let listing = self.evenkeel.ls(&["--stats"])?;
        let key = format!("{}/udp", frontend(family, self.services));
        let has_it =
            |service: &&Value| service["frontends"].as_array().is_some_and(|keys| keys.contains(&key.as_str().into()));
        let services = listing["services"].as_array().context("a listing of services")?;
        let service = services.iter().find(has_it).with_context(|| format!("no service has {key}: {listing}"))?;
        let number = |name: &str| service[name].as_u64().with_context(|| format!("no {name} in {service}"));
        Ok(Counted {
            service: u32::try_from(number("id")?)?,
            tickets: number("tickets")?,
            diverted: number("diverted")?,
            refused: number("refused")?,
            unmatched: number("unmatched")?,
        })
    }

    fn set_cursor(&self, service: u32, ticket: u64) -> Result<()> {
        let [_, pins, ..] = self.evenkeel.folders();
        let cursors = Mapping::new(&Map::open(&std::path::Path::new(&pins).join("CURSORS"))?, Access::Write)?;
        cursors.entry(service).context("a service with a cursor")?[0].store(ticket, Ordering::SeqCst);
        Ok(())
    }
}

/// What the kernel has counted for the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    service: u32,
    tickets: u64,
    diverted: u64,
    refused: u64,
    unmatched: u64,
}

fn configuration(lab: &Lab, service: usize, rules: &[Nth], family: Family, schedule: Schedule) -> String {
    let rules = rules.iter().map(|rule| {
        let host = &lab.backends()[rule.backend];
        let backend = SocketAddr::new(if family == Family::V4 { host.v4 } else { host.v6 }, 53);
        format!("{{ every = {}, packet = {}, backend = \"{backend}\" }}", rule.every, rule.packet)
    });
    let schedule = match schedule {
        Schedule::PerFlow => "per-flow",
        Schedule::PerPacket => "per-packet",
    };
    let address = frontend(family, service).ip();
    format!(
        "[[service]]\nname = \"rules-{service}\"\n\
         listen = [{{ address = \"{address}\", port = 53, protocols = [\"udp\"] }}]\n\
         selector = \"nth\"\nschedule = \"{schedule}\"\nrules = [{}]\n",
        rules.collect::<Vec<_>>().join(", ")
    )
}
