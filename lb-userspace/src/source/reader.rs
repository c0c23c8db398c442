//! From TOML to a draft: types, keys and spelling. What the parts are together is judged in `model::validate`.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{addr::Protocol, selector::Selector};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use crate::{
    capacity::Capacity,
    model::{
        At, Listen, Schedule, Target,
        draft::{BackendDraft, Draft, Host, List, ListenDraft, Place, Placed, RuleDraft, ServiceDraft},
        fault::{Fault, What},
        validate::nearest,
    },
    settings::{HookSetting, Limit, Limits, Settings, WaySetting},
};

/// Reads what can be read, and says what cannot.
///
/// # Errors
/// When the text is no TOML: what is left of a broken document means nothing.
pub(super) fn read(text: &str, host: &Host) -> Result<(Draft, Settings, Vec<Fault>), Vec<Fault>> {
    let mut reader = Reader { host, service: None, faults: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = Place(error.span().map_or(0, |span| span.start));
        reader.blame(place, What::Syntax(error.message().replace('\n', " ")));
    }
    if !errors.is_empty() {
        return Err(reader.faults);
    }
    let (draft, settings) = reader.document(document.get_ref());
    Ok((draft, settings, reader.faults))
}

/// Keys of later milestones.
const LATER_KEYS: [&str; 2] = ["kubernetes", "metrics"];
const LATER_SERVICE_KEYS: [&str; 5] = ["health", "timeouts", "affinity", "source-ranges", "mode"];
const LATER_SELECTORS: [&str; 10] =
    ["lc", "wlc", "sed", "nq", "sh", "dh", "hash", "maglev", "p2c", "least-outstanding"];

type Value<'i> = Spanned<DeValue<'i>>;

struct Reader<'h> {
    host: &'h Host,
    service: Option<String>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn blame(&mut self, place: Place, what: What) {
        self.faults.push(Fault { place, service: self.service.clone(), what });
    }

    fn document(&mut self, table: &DeTable<'_>) -> (Draft, Settings) {
        self.keys(table, &["interfaces", "hook", "way", "limits", "service"], &LATER_KEYS);
        let mut draft = Draft::default();
        let mut settings = Settings::default();
        if let Some(value) = table.get("interfaces") {
            let names = self.list(value, "interfaces", "a list of names, such as [\"eth3\"]", |reader, item| {
                reader.string(item, "an interface", "a name, such as \"eth3\"").map(str::to_owned)
            });
            draft.interfaces = names.items;
            settings.interfaces = draft.interfaces.iter().map(|name| name.value.clone()).collect();
        }
        if let Some(value) = table.get("hook") {
            settings.hook = self.one_of(value, "hook", &HookSetting::ALL, HookSetting::name, &[]).unwrap_or_default();
        }
        if let Some(value) = table.get("way") {
            settings.way = self.one_of(value, "way", &WaySetting::ALL, WaySetting::name, &[]).unwrap_or_default();
        }
        if let Some(value) = table.get("limits")
            && let Some(limits) = self.table(value, "limits", "a table, [limits]")
        {
            self.limits(limits, &mut draft);
        }
        let service = table.get("service");
        if service.is_none_or(|value| value.get_ref().as_array().is_some_and(|services| services.is_empty())) {
            self.blame(Place(0), What::NoService);
        }
        if let Some(value) = service
            && let Some(services) = self.array(value, "service", "a list of tables, each with [[service]]")
        {
            for (number, service) in (1..).zip(services.iter()) {
                if let Some(table) = self.table(service, "service", "a list of tables, each with [[service]]") {
                    draft.services.push(self.service(table, place(service), number));
                }
            }
            self.service = None;
        }
        settings.limits = draft.limits;
        (draft, settings)
    }

    fn limits(&mut self, table: &DeTable<'_>, draft: &mut Draft) {
        self.keys(table, &Limit::ALL.map(Limit::name), &[]);
        for limit in Limit::ALL {
            let Some(value) = table.get(limit.name()) else { continue };
            draft.limit_places.push((limit, place(value)));
            let Some(number) = self.integer(value, limit.name(), "an integer, such as 100_000") else { continue };
            match u32::try_from(number.value) {
                Ok(value) if (1..=limit.max()).contains(&value) => draft.limits = draft.limits.with(limit, value),
                Ok(_) | Err(_) => {
                    let bytes =
                        |value| Capacity::from(&Limits::default().with(limit, value)).total_bytes(self.host.cpus);
                    // Maps have up to 8 times as many entries, and their numbers 32 bits.
                    let is_possible = |value: &u32| *value > 0 && value.checked_mul(8).is_some();
                    let what = What::BadLimit {
                        limit: limit.name(),
                        value: number.value,
                        bytes: u32::try_from(number.value).ok().filter(is_possible).map(bytes),
                        max: limit.max(),
                        bytes_at_max: bytes(limit.max()),
                    };
                    self.blame(number.place, what);
                }
            }
        }
    }

    fn service(&mut self, table: &DeTable<'_>, place_of_service: Place, number: usize) -> ServiceDraft {
        // The name first, because every message says it.
        let label =
            table.get("name").and_then(|name| name.get_ref().as_str()).map_or(format!("#{number}"), str::to_owned);
        self.service = Some(label.clone());
        let known = ["name", "listen", "selector", "schedule", "backends", "rules"];
        self.keys(table, &known, &LATER_SERVICE_KEYS);
        let mut draft = ServiceDraft {
            place: place_of_service,
            label,
            name: None,
            listens: None,
            selector: Some(Placed { value: Selector::RoundRobin, place: place_of_service }),
            schedule: Some(Placed { value: Schedule::PerFlow, place: place_of_service }),
            backends: None,
            rules: None,
        };
        match table.get("name") {
            Some(value) => {
                let name = self.string(value, "name", "a text, such as \"dns\"");
                draft.name = name.map(|name| Placed { value: name.to_owned(), place: place(value) });
            }
            None => self.blame(place_of_service, What::Missing { key: "name", example: "name = \"dns\"" }),
        }
        if let Some(value) = table.get("selector") {
            let known = self.one_of(value, "selector", &Selector::ALL, Selector::name, &LATER_SELECTORS);
            draft.selector = known.map(|selector| Placed { value: selector, place: place(value) });
        }
        if let Some(value) = table.get("schedule") {
            let known = self.one_of(value, "schedule", &Schedule::ALL, Schedule::name, &[]);
            draft.schedule = known.map(|schedule| Placed { value: schedule, place: place(value) });
        }
        if let Some(value) = table.get("listen") {
            draft.listens = Some(self.list(
                value,
                "listen",
                "a list of tables, such as [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }]",
                Self::listen,
            ));
        }
        if let Some(value) = table.get("backends") {
            draft.backends = Some(self.list(
                value,
                "backends",
                "a list of addresses, such as [\"10.0.0.2\", \"10.0.0.3:5353\"]",
                Self::backend,
            ));
        }
        if let Some(value) = table.get("rules") {
            draft.rules = Some(self.list(
                value,
                "rules",
                "a list of tables, such as [{ every = 2, packet = 0, backend = \"10.0.0.2\" }]",
                Self::rule,
            ));
        }
        draft
    }

    fn listen(&mut self, value: &Value<'_>) -> Option<ListenDraft> {
        const WANTED: &str = "a table, such as { address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }";
        let table = self.table(value, "a listener", WANTED)?;
        self.keys(table, &["address", "interface", "port", "protocols"], &[]);
        let at = match (table.get("address"), table.get("interface")) {
            (Some(address), None) => {
                let text = self.string(address, "address", "a text, such as \"192.0.2.53\"");
                let address_read = text.and_then(|text| self.address(text, place(address)));
                address_read.map(|read| (At::Address(read), place(address)))
            }
            (None, Some(interface)) => {
                let name = self.string(interface, "interface", "a name, such as \"eth3\"");
                name.map(|name| (At::Interface(name.to_owned()), place(interface)))
            }
            (both, _) => {
                self.blame(place(value), What::AddressOrInterface { both: both.is_some() });
                None
            }
        };
        let port = match table.get("port") {
            Some(port) => self.port(port),
            None => self.missing(value, "port", "port = 53"),
        };
        let protocols = match table.get("protocols") {
            Some(protocols) => self.protocols(protocols),
            None => self.missing(value, "protocols", PROTOCOLS_EXAMPLE),
        };
        let (at, at_place) = at?;
        Some(ListenDraft { listen: Listen { at, port: port?, protocols: protocols? }, at_place })
    }

    fn protocols(&mut self, value: &Value<'_>) -> Option<BTreeSet<Protocol>> {
        let list = self.list(value, "protocols", "a list, such as [\"udp\", \"tcp\"]", |reader, item| {
            reader.one_of(item, "protocol", &[Protocol::UDP, Protocol::TCP], Protocol::name, &[])
        });
        if list.items.is_empty() && list.is_whole {
            self.blame(place(value), What::Empty { key: "protocols", example: PROTOCOLS_EXAMPLE });
            return None;
        }
        let protocols = list.items.into_iter().map(|protocol| protocol.value).collect();
        list.is_whole.then_some(protocols)
    }

    fn backend(&mut self, value: &Value<'_>) -> Option<BackendDraft> {
        const WANTED: &str =
            "an address, such as \"10.0.0.2\", or a table, such as { address = \"10.0.0.2\", weight = 2 }";
        match value.get_ref() {
            DeValue::Table(table) => {
                self.keys(table, &["address", "weight"], &[]);
                let target = match table.get("address") {
                    Some(address) => self.target(address),
                    None => self.missing(value, "address", "address = \"10.0.0.2\""),
                };
                let weight =
                    table.get("weight").and_then(|weight| self.integer(weight, "weight", "an integer, such as 2"));
                Some(BackendDraft { target: target?, weight })
            }
            DeValue::String(_) => self.target(value).map(|target| BackendDraft { target, weight: None }),
            other @ (DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)) => {
                self.blame(place(value), What::WrongType { key: "a backend", found: article(other), wanted: WANTED });
                None
            }
        }
    }

    fn rule(&mut self, value: &Value<'_>) -> Option<RuleDraft> {
        const WANTED: &str = "a table, such as { every = 2, packet = 0, backend = \"10.0.0.2\" }";
        let table = self.table(value, "a rule", WANTED)?;
        self.keys(table, &["every", "packet", "backend"], &[]);
        let every = match table.get("every") {
            Some(every) => self.integer(every, "every", "an integer, such as 4"),
            None => self.missing(value, "every", "every = 4"),
        };
        let packet = match table.get("packet") {
            Some(packet) => self.integer(packet, "packet", "an integer, such as 0"),
            None => Some(Placed { value: 0, place: place(value) }),
        };
        let target = match table.get("backend") {
            Some(backend) => self.target(backend).map(|target| Placed { value: target, place: place(backend) }),
            None => self.missing(value, "backend", "backend = \"10.0.0.2\""),
        };
        Some(RuleDraft { every: every?, packet: packet?, target: target? })
    }

    /// An address, with or without a port.
    fn target(&mut self, value: &Value<'_>) -> Option<Target> {
        let text = self.string(value, "address", "a text, such as \"10.0.0.2\" or \"10.0.0.2:5353\"")?;
        let place = place(value);
        let (address, port) = match split(text) {
            Some(parts) => parts,
            None => {
                self.blame(place, What::BadBackend { text: text.to_owned() });
                return None;
            }
        };
        let address = self.address(address, place);
        let port = match port.map(|port| (port, port.parse::<u16>())) {
            None => Some(None),
            Some((_, Ok(port @ 1..))) => Some(Some(port)),
            Some((text, _)) => {
                self.blame(place, What::BadPort { text: text.to_owned() });
                None
            }
        };
        Some(Target { address: address?, port: port? })
    }

    fn address(&mut self, text: &str, place: Place) -> Option<IpAddr> {
        // A zone names an interface of this host, which only link-local addresses have.
        let Ok(address) = text.split('%').next().unwrap_or(text).parse::<IpAddr>() else {
            self.blame(place, What::BadAddress { text: text.to_owned() });
            return None;
        };
        if let Some(kind) = unusable(address) {
            self.blame(place, What::UnusableAddress { text: text.to_owned(), kind });
            return None;
        }
        if text.contains('%') {
            self.blame(place, What::BadAddress { text: text.to_owned() });
            return None;
        }
        if address.to_canonical() != address {
            let plain = address.to_canonical().to_string();
            self.blame(place, What::Mapped { text: text.to_owned(), plain });
            return None;
        }
        Some(address)
    }

    fn port(&mut self, value: &Value<'_>) -> Option<u16> {
        let number = self.integer(value, "port", "an integer, such as 53")?;
        match u16::try_from(number.value) {
            Ok(port @ 1..) => Some(port),
            Ok(_) | Err(_) => {
                self.blame(number.place, What::BadPort { text: number.value.to_string() });
                None
            }
        }
    }

    /// One of a few names.
    fn one_of<T: Copy>(
        &mut self,
        value: &Value<'_>,
        key: &'static str,
        all: &[T],
        name: fn(T) -> &'static str,
        later: &[&str],
    ) -> Option<T> {
        let text = self.string(value, key, "a text, in quotes")?;
        let known = all.iter().find(|one| name(**one) == text);
        if known.is_none() {
            let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
            let (value_text, list) = (text.to_owned(), or(&names));
            let what = if later.contains(&text) {
                What::LaterValue { key, value: value_text, known: list }
            } else if let Some(nearest) = nearest(text, names) {
                What::MisspeltValue { key, value: value_text, nearest: nearest.to_owned() }
            } else {
                What::UnknownValue { key, value: value_text, known: list }
            };
            self.blame(place(value), what);
        }
        known.copied()
    }

    fn keys(&mut self, table: &DeTable<'_>, known: &[&str], later: &[&str]) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let what = if later.contains(&name) {
                What::LaterKey { key: name.to_owned() }
            } else if let Some(nearest) = nearest(name, known.iter().copied()) {
                What::MisspeltKey { key: name.to_owned(), nearest: nearest.to_owned() }
            } else {
                What::UnknownKey { key: name.to_owned(), known: known.join(", ") }
            };
            self.blame(Place(key.span().start), what);
        }
    }

    fn missing<T>(&mut self, table: &Value<'_>, key: &'static str, example: &'static str) -> Option<T> {
        self.blame(place(table), What::Missing { key, example });
        None
    }

    fn list<T>(
        &mut self,
        value: &Value<'_>,
        key: &'static str,
        wanted: &'static str,
        mut read: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> List<T> {
        let mut list = List { place: place(value), items: Vec::new(), is_whole: false };
        if let Some(array) = self.array(value, key, wanted) {
            list.items
                .extend(array.iter().filter_map(|item| Some(Placed { value: read(self, item)?, place: place(item) })));
            list.is_whole = list.items.len() == array.len();
        }
        list
    }

    fn array<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        key: &'static str,
        wanted: &'static str,
    ) -> Option<&'v DeArray<'i>> {
        let array = value.get_ref().as_array();
        self.wanted(array, value, key, wanted)
    }

    fn table<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        key: &'static str,
        wanted: &'static str,
    ) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        self.wanted(table, value, key, wanted)
    }

    fn string<'v>(&mut self, value: &'v Value<'_>, key: &'static str, wanted: &'static str) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        self.wanted(text, value, key, wanted)
    }

    fn integer(&mut self, value: &Value<'_>, key: &'static str, wanted: &'static str) -> Option<Placed<i64>> {
        let integer = value.get_ref().as_integer();
        let integer = self.wanted(integer, value, key, wanted)?;
        // Beyond 64 bits every range ends.
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i64::MAX);
        Some(Placed { value: number, place: place(value) })
    }

    fn wanted<T>(&mut self, read: Option<T>, value: &Value<'_>, key: &'static str, wanted: &'static str) -> Option<T> {
        if read.is_none() {
            self.blame(place(value), What::WrongType { key, found: article(value.get_ref()), wanted });
        }
        read
    }
}

const PROTOCOLS_EXAMPLE: &str = "protocols = [\"udp\", \"tcp\"]";

fn place(value: &Value<'_>) -> Place {
    Place(value.span().start)
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `a, b or c`.
fn or(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

/// The address and the port of `10.0.0.2`, `10.0.0.2:53`, `fd00::2` and `[fd00::2]:53`; nothing where it is neither.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    let is_address = |text: &str| text.split('%').next().is_some_and(|text| text.parse::<IpAddr>().is_ok());
    if is_address(text) {
        return Some((text, None));
    }
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_v6 = is_address(address) && address.contains(':');
        return match rest.strip_prefix(':') {
            Some(port) if is_v6 => Some((address, Some(port))),
            None if is_v6 && rest.is_empty() => Some((address, None)),
            Some(_) | None => None,
        };
    }
    let (address, port) = text.rsplit_once(':')?;
    (is_address(address) && !address.contains(':')).then_some((address, Some(port)))
}

/// What kind of address it is, if no frontend or backend can have it.
fn unusable(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        address if address.is_unspecified() => Some("the unspecified"),
        address if address.is_multicast() => Some("a multicast"),
        address if address.is_loopback() => Some("a loopback"),
        IpAddr::V4(address) if address.is_broadcast() => Some("the broadcast"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
