//! Programs on interfaces: tcx links where the kernel has them, clsact filters else. Both outlive this process, and a
//! program is replaced by another without a packet seeing neither.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    bpf::{self, Bpf, Program},
    pins::{self, Lock, Pins, PinsError},
    sys::{self, LinkState},
    tc,
};
use crate::capacity::Capacity;

pub use super::sys::Direction;

/// What is wanted on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Its name, for reports.
    pub name: String,
    /// Who is behind it.
    pub ingress: Option<Role>,
    /// Whether replies that the stack forwards leave by it.
    pub egress: bool,
}

/// Who is behind an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Clients.
    Clients,
    /// Backends.
    Backends,
    /// Both.
    Both,
}

impl Role {
    /// The name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Backends => "backends",
            Self::Both => "clients and backends",
        }
    }

    const fn program(self) -> Program {
        match self {
            Self::Clients => Program::IngressClients,
            Self::Backends => Program::IngressBackends,
            Self::Both => Program::IngressBoth,
        }
    }
}

/// By what a program is held on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// A pinned link, from kernel 6.6 on.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

impl Mode {
    /// The better one of what this kernel has.
    pub fn of_this_kernel() -> Self {
        // The loopback has this number in every namespace; a kernel without tcx does not know the question.
        match sys::tcx_programs(1, Direction::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_) => Self::Clsact,
        }
    }

    /// `tcx` or `clsact`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What became of one hook.
#[derive(Debug)]
pub struct HookReport {
    /// The interface.
    pub ifindex: u32,
    /// Its name; empty where it is not wanted any more and only its number is known.
    pub name: String,
    /// Which of its hooks.
    pub direction: Direction,
    /// By what the program is held.
    pub mode: Mode,
    /// The program; `None` where none is wanted.
    pub program: Option<Program>,
    /// What was done.
    pub outcome: Result<Outcome, AttachError>,
    /// What others have there.
    pub foreign: Vec<Foreign>,
}

/// What was done with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// There was none of our programs; now there is.
    Attached,
    /// Another of our programs was there.
    Replaced,
    /// This program was there.
    Kept,
    /// One of our programs was there and is not wanted any more.
    Removed,
}

/// A program that someone else put on the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// How it is attached: `xdp`, `tcx` or `clsact`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether packets come to it before ours.
    pub is_before: bool,
    interface: String,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, is_before, interface } = self;
        if *is_before {
            write!(
                f,
                "{kind} program {name} on {interface} sees packets first, and what it keeps is not balanced; detach it, \
                 or make sure that it passes them on"
            )
        } else {
            write!(
                f,
                "{kind} program {name} on {interface} comes after ours and does not see what is balanced; detach it if \
                 it was meant to"
            )
        }
    }
}

/// Why a program could not be put on an interface, or taken off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no such interface.
    #[error("interface {name} ({ifindex}) is gone")]
    Gone {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// The kernel refused.
    #[error("interface {name} ({ifindex}) {} by {}: {source}", direction.name(), mode.name())]
    Refused {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: String,
        /// Which hook.
        direction: Direction,
        /// By what.
        mode: Mode,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes the hooks what is `wanted`, all others of these pins being removed. One that fails does not hold up the rest.
///
/// # Errors
/// When the pins cannot be listed.
pub fn apply(bpf: &Bpf, wanted: &BTreeMap<u32, Hooks>, mode: Mode) -> Result<Vec<HookReport>, PinsError> {
    let pins = bpf.pins();
    let places: BTreeMap<Place, (&str, Program)> = wanted
        .iter()
        .flat_map(|(ifindex, hooks)| {
            let ingress = hooks.ingress.map(|role| (Direction::Ingress, role.program()));
            let egress = hooks.egress.then_some((Direction::Egress, Program::EgressClients));
            ingress
                .into_iter()
                .chain(egress)
                .map(|(direction, program)| (Place { ifindex: *ifindex, direction }, (hooks.name.as_str(), program)))
        })
        .collect();
    let mut reports = Vec::new();
    for (place, (name, program)) in &places {
        let outcome = match mode {
            // The new one first: for a moment both see the packets, never none.
            Mode::Tcx => {
                put_link(bpf, *place, *program).and_then(|outcome| drop_filter(pins, *place).map(|()| outcome))
            }
            Mode::Clsact => {
                put_filter(bpf, *place, *program).and_then(|outcome| drop_link(pins, *place).map(|()| outcome))
            }
        };
        let outcome = outcome.map_err(|source| {
            if is_gone(&source) {
                drop((drop_link(pins, *place), drop_filter(pins, *place)));
            }
            failure(*place, name, mode, source)
        });
        let foreign = foreign(bpf, *place, name).unwrap_or_default();
        reports.push(HookReport {
            ifindex: place.ifindex,
            name: (*name).to_owned(),
            direction: place.direction,
            mode,
            program: Some(*program),
            outcome,
            foreign,
        });
    }
    for (held, place) in held(pins)?.into_iter().filter(|(_, place)| !places.contains_key(place)) {
        let dropped = match held {
            Mode::Tcx => drop_link(pins, place),
            Mode::Clsact => drop_filter(pins, place),
        };
        reports.push(HookReport {
            ifindex: place.ifindex,
            name: String::new(),
            direction: place.direction,
            mode: held,
            program: None,
            outcome: dropped.map(|()| Outcome::Removed).map_err(|source| failure(place, "", held, source)),
            foreign: Vec::new(),
        });
    }
    drop_qdiscs(pins)?;
    if reports.iter().all(|report| report.outcome.is_ok()) {
        bpf.retire_earlier()?;
    }
    Ok(reports)
}

/// What [`detach_all`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Programs that were on interfaces.
    pub hooks: usize,
    /// Whether there were maps.
    pub has_maps: bool,
}

/// As [`detach`], with the lock held as long as that takes.
///
/// # Errors
/// When a controller is running, or something cannot be removed.
pub fn detach_all(pins: &Pins, state: &Path) -> Result<Detached, PinsError> {
    detach(pins, &mut Lock::take(pins, state)?)
}

/// Takes every program of these pins off its interface and removes the pins and their folder. Filters of clsact are
/// found in the network namespace of this process only, which has to be the controller's. Of the lock, which has to be
/// that of these pins, the state stays.
///
/// # Errors
/// When something cannot be removed.
pub fn detach(pins: &Pins, lock: &mut Lock) -> Result<Detached, PinsError> {
    if !pins.path().exists() {
        return Ok(Detached::default());
    }
    let held = held(pins)?;
    for (mode, place) in &held {
        let (path, dropped) = match mode {
            Mode::Tcx => (link_pin(pins, *place), drop_link(pins, *place)),
            Mode::Clsact => (filter_pin(pins, *place), drop_filter(pins, *place)),
        };
        dropped.map_err(|source| PinsError::Io { path, source })?;
    }
    let others = if pins.is_made_by_controller() { pins::names(&pins.links())? } else { Vec::new() };
    for name in others {
        // A link as another version names them. Where it cannot be detached its pin goes all the same.
        if let Ok(link) = sys::open_pin(&pins.links().join(name)) {
            sys::link_detach(link.as_fd()).ok();
        }
    }
    drop_qdiscs(pins)?;
    let has_maps = pins.map(pins::SETTINGS).exists();
    let maps = bpf::wanted_shapes(&Capacity::default())
        .map_err(|error| PinsError::Io { path: pins.path().to_owned(), source: io::Error::other(error) })?;
    let has_mounted = pins.remove_all(maps.into_keys())?;
    lock.give_pins_back();
    if has_mounted {
        pins::unmount()?;
    }
    Ok(Detached { hooks: held.len(), has_maps })
}

/// The hooks that these pins hold, by what and where.
///
/// # Errors
/// When the pins cannot be listed.
pub fn held(pins: &Pins) -> Result<Vec<(Mode, Place)>, PinsError> {
    let places = |folder: PathBuf, mode: Mode| -> Result<Vec<(Mode, Place)>, PinsError> {
        Ok(pins::names(&folder)?.iter().filter_map(|name| Place::parse(name)).map(|place| (mode, place)).collect())
    };
    let mut held = places(pins.links(), Mode::Tcx)?;
    held.extend(places(pins.filters(), Mode::Clsact)?);
    Ok(held)
}

/// One hook of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The interface.
    pub ifindex: u32,
    /// Which of its hooks.
    pub direction: Direction,
}

impl Place {
    /// The name of its pin.
    fn pin_name(self) -> String {
        format!("{}-{}", self.ifindex, self.direction.name())
    }

    fn parse(name: &str) -> Option<Self> {
        let (ifindex, direction) = name.split_once('-')?;
        let direction = Direction::ALL.into_iter().find(|known| known.name() == direction)?;
        Some(Self { ifindex: ifindex.parse().ok()?, direction })
    }
}

fn put_link(bpf: &Bpf, place: Place, program: Program) -> io::Result<Outcome> {
    let program = bpf.program(program);
    let path = link_pin(bpf.pins(), place);
    if let Some((link, state)) = open_link(&path)? {
        if state.ifindex == Some(place.ifindex) {
            if state.program == sys::program_id(program)? {
                return Ok(Outcome::Kept);
            }
            sys::link_update(link.as_fd(), program)?;
            return Ok(Outcome::Replaced);
        }
        // Its interface is gone, and the number was given to another.
        sys::unpin(&path)?;
    }
    let link = sys::tcx_attach(program, place.ifindex, place.direction)?;
    sys::pin(link.as_fd(), &path)?;
    Ok(Outcome::Attached)
}

fn drop_link(pins: &Pins, place: Place) -> io::Result<()> {
    let path = link_pin(pins, place);
    if let Some((link, _)) = open_link(&path)? {
        // Removing the pin would do so too, but some time later.
        match sys::link_detach(link.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            done => done?,
        }
    }
    sys::unpin(&path)
}

fn open_link(path: &Path) -> io::Result<Option<(OwnedFd, LinkState)>> {
    match sys::open_pin(path) {
        Ok(link) => sys::link_state(link.as_fd()).map(|state| Some((link, state))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn put_filter(bpf: &Bpf, place: Place, program: Program) -> io::Result<Outcome> {
    let (pin, mark) = (filter_pin(bpf.pins(), place), qdisc_mark(bpf.pins(), place.ifindex));
    let loaded = bpf.program(program);
    let ours = our_filter(place)?;
    if ours.is_none() && pin.exists() {
        // What the pins speak of is gone, and the number was given to another interface.
        sys::unpin(&pin)?;
        sys::unpin(&mark)?;
    }
    if tc::add_clsact(place.ifindex)? {
        sys::unpin(&mark)?;
        sys::pin(loaded, &mark)?;
    }
    let outcome = match ours {
        Some(id) if id == sys::program_id(loaded)? => return Ok(Outcome::Kept),
        Some(_) => Outcome::Replaced,
        None => Outcome::Attached,
    };
    // The pin first, so that the filter is found again whatever happens.
    sys::unpin(&pin)?;
    sys::pin(loaded, &pin)?;
    tc::put_filter(place.ifindex, place.direction, loaded, program.name())?;
    Ok(outcome)
}

fn drop_filter(pins: &Pins, place: Place) -> io::Result<()> {
    let path = filter_pin(pins, place);
    if !path.exists() {
        return Ok(());
    }
    if our_filter(place)?.is_some() {
        tc::remove_filter(place.ifindex, place.direction)?;
    }
    sys::unpin(&path)
}

/// The program that our filter runs there.
fn our_filter(place: Place) -> io::Result<Option<u32>> {
    let filters = tc::filters(place.ifindex, place.direction)?;
    Ok(filters.iter().find(|filter| filter.is_ours()).and_then(|filter| filter.program))
}

/// Removes each clsact qdisc that we made and that nobody has a filter in any more.
fn drop_qdiscs(pins: &Pins) -> Result<(), PinsError> {
    let folder = pins.filters();
    for name in pins::names(&folder)? {
        let Some(ifindex) = name.strip_suffix("-qdisc").and_then(|ifindex| ifindex.parse().ok()) else { continue };
        let path = qdisc_mark(pins, ifindex);
        if Direction::ALL.iter().any(|direction| filter_pin(pins, Place { ifindex, direction: *direction }).exists()) {
            continue;
        }
        drop_qdisc(ifindex).and_then(|()| sys::unpin(&path)).map_err(|source| PinsError::Io { path, source })?;
    }
    Ok(())
}

fn drop_qdisc(ifindex: u32) -> io::Result<()> {
    for direction in Direction::ALL {
        if !tc::filters(ifindex, direction)?.is_empty() {
            return Ok(());
        }
    }
    match tc::remove_clsact(ifindex) {
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done,
    }
}

/// What others have on the same way: XDP in front of everything, tcx next, clsact last.
fn foreign(bpf: &Bpf, place: Place, interface: &str) -> io::Result<Vec<Foreign>> {
    let ours = our_programs(bpf, place)?;
    let named = |kind, id: u32, is_before| Foreign {
        kind,
        name: sys::program_name(id).unwrap_or_else(|_| format!("number {id}")),
        is_before,
        interface: interface.to_owned(),
    };
    let mut foreign = Vec::new();
    if place.direction == Direction::Ingress
        && let Some(id) = tc::xdp_program(place.ifindex)?
    {
        foreign.push(named("xdp", id, true));
    }
    let mut is_before = true;
    for id in sys::tcx_programs(place.ifindex, place.direction).unwrap_or_default() {
        if ours.contains(&id) {
            is_before = false;
        } else {
            foreign.push(named("tcx", id, is_before));
        }
    }
    for filter in tc::filters(place.ifindex, place.direction)? {
        if filter.is_ours() {
            is_before = false;
            continue;
        }
        match filter.program {
            Some(id) => foreign.push(named("clsact", id, is_before)),
            None => foreign.push(Foreign { name: filter.kind, ..named("clsact", 0, is_before) }),
        }
    }
    Ok(foreign)
}

/// The ids of our programs at a place.
fn our_programs(bpf: &Bpf, place: Place) -> io::Result<Vec<u32>> {
    let link = open_link(&link_pin(bpf.pins(), place))?.map(|(_, state)| state.program);
    Ok(link.into_iter().chain(our_filter(place)?).collect())
}

fn link_pin(pins: &Pins, place: Place) -> PathBuf {
    pins.links().join(place.pin_name())
}

fn filter_pin(pins: &Pins, place: Place) -> PathBuf {
    pins.filters().join(place.pin_name())
}

/// The mark of a qdisc that we made: a pin of any program, because a bpf filesystem holds nothing else.
fn qdisc_mark(pins: &Pins, ifindex: u32) -> PathBuf {
    pins.filters().join(format!("{ifindex}-qdisc"))
}

fn failure(place: Place, name: &str, mode: Mode, source: io::Error) -> AttachError {
    let (ifindex, name) = (place.ifindex, name.to_owned());
    if is_gone(&source) {
        AttachError::Gone { ifindex, name }
    } else {
        AttachError::Refused { ifindex, name, direction: place.direction, mode, source }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_their_place() {
        for direction in Direction::ALL {
            let place = Place { ifindex: 42, direction };
            assert_eq!(Place::parse(&place.pin_name()), Some(place));
        }
        for other in ["42-qdisc", "eth0-ingress", "42", "-ingress", "42-ingress-2"] {
            assert_eq!(Place::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_others_have_there_is_one_sentence_with_a_way_out() {
        let foreign =
            Foreign { kind: "xdp", name: "filter_all".to_owned(), is_before: true, interface: "eth3".to_owned() };
        assert_eq!(
            foreign.to_string(),
            "xdp program filter_all on eth3 sees packets first, and what it keeps is not balanced; detach it, or make \
             sure that it passes them on"
        );
        let foreign = Foreign { kind: "tcx", is_before: false, ..foreign };
        assert_eq!(
            foreign.to_string(),
            "tcx program filter_all on eth3 comes after ours and does not see what is balanced; detach it if it was \
             meant to"
        );
    }
}
