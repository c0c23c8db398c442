//! Programs on interfaces: tcx links where the kernel has them, clsact filters else, and XDP links in front of either. All
//! outlive this process, and a program is replaced by another without a packet seeing neither.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    bpf::{self, Bpf, Program},
    pins::{self, Lock, Pins, PinsError},
    sys::{self, LinkState},
    tc,
};
use crate::capacity::Capacity;

pub use super::sys::{Point, XdpMode};

/// What is wanted on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Its name, for reports.
    pub name: String,
    /// Who is behind it.
    pub ingress: Option<Role>,
    /// Whether replies that the stack forwards leave by it.
    pub egress: bool,
    /// Whether what comes in is looked at by XDP first, which leaves to `ingress` what it cannot send.
    pub xdp: Option<XdpMode>,
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

    const fn early_program(self) -> Program {
        match self {
            Self::Clients => Program::XdpClients,
            Self::Backends => Program::XdpBackends,
            Self::Both => Program::XdpBoth,
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
    /// A pinned link of XDP.
    Xdp(XdpMode),
}

impl Mode {
    /// The better one of what this kernel has at traffic control.
    pub fn of_this_kernel() -> Self {
        // The loopback has this number in every namespace; a kernel without tcx does not know the question.
        match sys::tcx_programs(1, Point::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_) => Self::Clsact,
        }
    }

    /// `tcx`, `clsact`, `xdp` or `xdp-generic`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp(mode) => mode.name(),
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
    pub point: Point,
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
    #[error("interface {name} ({ifindex}) {} by {}: {source}", point.name(), mode.name())]
    Refused {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: String,
        /// Which hook.
        point: Point,
        /// By what.
        mode: Mode,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes the hooks what is `wanted`, all others of these pins being removed. One that fails does not hold up the rest.
///
/// An XDP program is put in front of what it leaves packets to, and taken away from there, so that no packet is left to
/// nobody.
///
/// # Errors
/// When the pins cannot be listed.
pub fn apply(bpf: &Bpf, wanted: &BTreeMap<u32, Hooks>, mode: Mode) -> Result<Vec<HookReport>, PinsError> {
    let pins = bpf.pins();
    let places = places(wanted, mode);
    let mut reports = Vec::new();
    for (place, held) in held(pins)?.into_iter().filter(|(place, _)| place.point == Point::Xdp) {
        if !places.iter().any(|wanted| wanted.place == place) {
            reports.push(drop_program(pins, place, held));
        }
    }
    for Wanted { place, name, program, mode } in &places {
        let outcome = put_program(bpf, *place, *program, *mode).map_err(|source| {
            if is_gone(&source) {
                drop((drop_link(pins, *place), drop_filter(pins, *place)));
            }
            failure(*place, name, *mode, source)
        });
        let foreign = foreign(bpf, *place, name).unwrap_or_default();
        reports.push(HookReport {
            ifindex: place.ifindex,
            name: (*name).to_owned(),
            point: place.point,
            mode: *mode,
            program: Some(*program),
            outcome,
            foreign,
        });
    }
    for (place, held) in held(pins)? {
        if place.point != Point::Xdp && !places.iter().any(|wanted| wanted.place == place) {
            reports.push(drop_program(pins, place, held));
        }
    }
    drop_qdiscs(pins)?;
    if reports.iter().all(|report| report.outcome.is_ok()) {
        bpf.retire_earlier()?;
    }
    Ok(reports)
}

/// A program that is wanted somewhere.
struct Wanted<'w> {
    place: Place,
    name: &'w str,
    program: Program,
    mode: Mode,
}

/// The programs that are wanted, those of XDP last.
fn places(wanted: &BTreeMap<u32, Hooks>, mode: Mode) -> Vec<Wanted<'_>> {
    let mut places = Vec::new();
    let mut early = Vec::new();
    for (ifindex, hooks) in wanted {
        let of = |point, program, mode| {
            let place = Place { ifindex: *ifindex, point };
            Wanted { place, name: hooks.name.as_str(), program, mode }
        };
        if let Some(role) = hooks.ingress {
            places.push(of(Point::Ingress, role.program(), mode));
            early.extend(hooks.xdp.map(|xdp| of(Point::Xdp, role.early_program(), Mode::Xdp(xdp))));
        }
        if hooks.egress {
            places.push(of(Point::Egress, Program::EgressClients, mode));
        }
    }
    places.append(&mut early);
    places
}

fn put_program(bpf: &Bpf, place: Place, program: Program, mode: Mode) -> io::Result<Outcome> {
    match mode {
        // The new one first: for a moment both see the packets, never none.
        Mode::Tcx => put_link(bpf, place, program).and_then(|outcome| drop_filter(bpf.pins(), place).map(|()| outcome)),
        Mode::Clsact => {
            put_filter(bpf, place, program).and_then(|outcome| drop_link(bpf.pins(), place).map(|()| outcome))
        }
        Mode::Xdp(mode) => put_xdp(bpf, place, program, mode),
    }
}

/// Takes away a program that is not wanted any more.
fn drop_program(pins: &Pins, place: Place, held: Held) -> HookReport {
    let (mode, dropped) = match held {
        Held::Link => {
            (if place.point == Point::Xdp { Mode::Xdp(XdpMode::Native) } else { Mode::Tcx }, drop_link(pins, place))
        }
        Held::Filter => (Mode::Clsact, drop_filter(pins, place)),
    };
    HookReport {
        ifindex: place.ifindex,
        name: String::new(),
        point: place.point,
        mode,
        program: None,
        outcome: dropped.map(|()| Outcome::Removed).map_err(|source| failure(place, "", mode, source)),
        foreign: Vec::new(),
    }
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
    for (place, held) in &held {
        let (path, dropped) = match held {
            Held::Link => (link_pin(pins, *place), drop_link(pins, *place)),
            Held::Filter => (filter_pin(pins, *place), drop_filter(pins, *place)),
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

/// The same for a data path that never came into use.
///
/// # Errors
/// When something cannot be removed.
pub fn abandon(bpf: &mut Bpf) -> Result<Detached, PinsError> {
    let pins = bpf.pins().clone();
    detach(&pins, bpf.lock())
}

/// The hooks that these pins hold, where and by what; those of XDP first, as they are to be taken away.
///
/// # Errors
/// When the pins cannot be listed.
pub fn held(pins: &Pins) -> Result<Vec<(Place, Held)>, PinsError> {
    let places = |folder: PathBuf, held: Held| -> Result<Vec<(Place, Held)>, PinsError> {
        Ok(pins::names(&folder)?.iter().filter_map(|name| Place::parse(name)).map(|place| (place, held)).collect())
    };
    let mut held = places(pins.links(), Held::Link)?;
    held.extend(places(pins.filters(), Held::Filter)?);
    held.sort_by_key(|(place, _)| (place.point, place.ifindex));
    Ok(held)
}

/// By what a pin holds a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A link of tcx or XDP.
    Link,
    /// A filter of clsact.
    Filter,
}

/// One hook of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The interface.
    pub ifindex: u32,
    /// Which of its hooks.
    pub point: Point,
}

impl Place {
    /// The name of its pin.
    fn pin_name(self) -> String {
        format!("{}-{}", self.ifindex, self.point.name())
    }

    fn parse(name: &str) -> Option<Self> {
        let (ifindex, point) = name.split_once('-')?;
        let point = Point::ALL.into_iter().find(|known| known.name() == point)?;
        Some(Self { ifindex: ifindex.parse().ok()?, point })
    }
}

/// An XDP link; one that runs in another mode is taken away first, because an interface has one.
fn put_xdp(bpf: &Bpf, place: Place, program: Program, mode: XdpMode) -> io::Result<Outcome> {
    let path = link_pin(bpf.pins(), place);
    let is_ours = open_link(&path)?.is_some_and(|(_, state)| state.ifindex == Some(place.ifindex));
    if is_ours && tc::xdp_program(place.ifindex)?.is_some_and(|(_, now)| now != mode) {
        drop_link(bpf.pins(), place)?;
    }
    put_link_by(bpf, place, program, |program| sys::xdp_attach(program, place.ifindex, mode))
}

fn put_link(bpf: &Bpf, place: Place, program: Program) -> io::Result<Outcome> {
    put_link_by(bpf, place, program, |program| sys::tcx_attach(program, place.ifindex, place.point))
}

fn put_link_by(
    bpf: &Bpf,
    place: Place,
    program: Program,
    attach: impl FnOnce(BorrowedFd<'_>) -> io::Result<OwnedFd>,
) -> io::Result<Outcome> {
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
    let link = attach(program)?;
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
    tc::put_filter(place.ifindex, place.point, loaded, program.name())?;
    Ok(outcome)
}

fn drop_filter(pins: &Pins, place: Place) -> io::Result<()> {
    let path = filter_pin(pins, place);
    if !path.exists() {
        return Ok(());
    }
    if our_filter(place)?.is_some() {
        tc::remove_filter(place.ifindex, place.point)?;
    }
    sys::unpin(&path)
}

/// The program that our filter runs there.
fn our_filter(place: Place) -> io::Result<Option<u32>> {
    let filters = tc::filters(place.ifindex, place.point)?;
    Ok(filters.iter().find(|filter| filter.is_ours()).and_then(|filter| filter.program))
}

/// Removes each clsact qdisc that we made and that nobody has a filter in any more.
fn drop_qdiscs(pins: &Pins) -> Result<(), PinsError> {
    let folder = pins.filters();
    for name in pins::names(&folder)? {
        let Some(ifindex) = name.strip_suffix("-qdisc").and_then(|ifindex| ifindex.parse().ok()) else { continue };
        let path = qdisc_mark(pins, ifindex);
        if Point::OF_TC.iter().any(|point| filter_pin(pins, Place { ifindex, point: *point }).exists()) {
            continue;
        }
        drop_qdisc(ifindex).and_then(|()| sys::unpin(&path)).map_err(|source| PinsError::Io { path, source })?;
    }
    Ok(())
}

fn drop_qdisc(ifindex: u32) -> io::Result<()> {
    for point in Point::OF_TC {
        if !tc::filters(ifindex, point)?.is_empty() {
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
    let named = |kind, id: u32, is_before| Foreign {
        kind,
        name: sys::program_name(id).unwrap_or_else(|_| format!("number {id}")),
        is_before,
        interface: interface.to_owned(),
    };
    let mut foreign = Vec::new();
    if place.point == Point::Xdp {
        // An interface has one, and that is reported where clients and replies are taken.
        return Ok(foreign);
    }
    if place.point == Point::Ingress
        && let Some((id, _)) = tc::xdp_program(place.ifindex)?
        && Some(id) != our_link(bpf, Place { point: Point::Xdp, ..place })?
    {
        foreign.push(named("xdp", id, true));
    }
    let ours: Vec<u32> = our_link(bpf, place)?.into_iter().chain(our_filter(place)?).collect();
    let mut is_before = true;
    for id in sys::tcx_programs(place.ifindex, place.point).unwrap_or_default() {
        if ours.contains(&id) {
            is_before = false;
        } else {
            foreign.push(named("tcx", id, is_before));
        }
    }
    for filter in tc::filters(place.ifindex, place.point)? {
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

/// The id of the program that our link runs there.
fn our_link(bpf: &Bpf, place: Place) -> io::Result<Option<u32>> {
    let link = open_link(&link_pin(bpf.pins(), place))?;
    Ok(link.filter(|(_, state)| state.ifindex == Some(place.ifindex)).map(|(_, state)| state.program))
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
        AttachError::Refused { ifindex, name, point: place.point, mode, source }
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
        for point in Point::ALL {
            let place = Place { ifindex: 42, point };
            assert_eq!(Place::parse(&place.pin_name()), Some(place));
        }
        for other in ["42-qdisc", "eth0-ingress", "42", "-ingress", "42-ingress-2", "42-xdp-generic"] {
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
