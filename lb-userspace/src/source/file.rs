//! The configuration file: TOML, read whole or refused whole, with every fault by name and place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::reader;
use crate::{
    model::{
        Desired, Part, Rejected,
        draft::{Draft, Host, Place},
        fault::Fault,
        validate::validate,
    },
    settings::{Limit, Settings},
};

/// What a good file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The services that are wanted.
    pub desired: Desired,
    /// Settings of the process.
    pub settings: Settings,
    /// What is odd, but can be done.
    pub warnings: Vec<Complaint>,
    /// Where all of it was read.
    pub places: Places,
}

/// Where the parts of a configuration were read, for what only the network tells to be wrong with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    file: String,
    parts: BTreeMap<(String, Part), (usize, usize)>,
    limits: Vec<(Limit, (usize, usize))>,
}

impl Places {
    fn new(file: &str, lines: &Lines<'_>, draft: &Draft) -> Self {
        let mut parts = BTreeMap::new();
        for interface in &draft.interfaces {
            let part = Part::Interface(interface.value.clone());
            parts.entry((String::new(), part)).or_insert_with(|| lines.position(interface.place));
        }
        for service in &draft.services {
            let Some(name) = &service.name else { continue };
            let mut note = |part, place| {
                parts.entry((name.value.clone(), part)).or_insert_with(|| lines.position(place));
            };
            note(Part::Whole, service.place);
            for item in service.listens.iter().flat_map(|list| &list.items) {
                note(Part::Listen(item.value.listen.clone()), item.place);
            }
            for target in service.targets() {
                note(Part::Backend(target.value), target.place);
            }
        }
        let limits = draft.limit_places.iter().map(|(limit, place)| (*limit, lines.position(*place))).collect();
        Self { file: file.to_owned(), parts, limits }
    }

    /// What is rejected, with the place of the part; without one where there is none, as in what no file said.
    pub fn locate(&self, rejected: &Rejected) -> String {
        let place = |part: &Part| self.parts.get(&(rejected.service.clone(), part.clone()));
        match place(&rejected.part).or_else(|| place(&Part::Whole)) {
            Some((line, column)) => format!("{}:{line}:{column}: {rejected}", self.file),
            None => rejected.to_string(),
        }
    }

    /// A message about a limit, with its place; that of the file where the limit is not given.
    pub fn locate_limit(&self, limit: Limit, message: &str) -> String {
        let place = self.limits.iter().find(|(key, _)| *key == limit).map_or((1, 1), |(_, place)| *place);
        format!("{}:{}:{}: {message}", self.file, place.0, place.1)
    }
}

/// Reads a configuration file.
///
/// # Errors
/// When it cannot be read, or has any fault: then all of them.
pub fn load(path: &Path, host: &Host) -> Result<Loaded, FileError> {
    let unreadable = |source| FileError::Unreadable { file: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&path.display().to_string(), &text, host)
}

/// Reads the text of a configuration file; `file` is what it is called in messages.
///
/// # Errors
/// When it has any fault: all of them.
pub fn parse(file: &str, text: &str, host: &Host) -> Result<Loaded, FileError> {
    let positions = Lines::new(text);
    let complain = |faults: &[Fault], of_warnings: bool| -> Vec<Complaint> {
        let mut told: Vec<_> = faults.iter().filter(|fault| fault.what.is_warning() == of_warnings).collect();
        told.sort_by_key(|fault| fault.place);
        told.into_iter().map(|fault| Complaint::new(file, &positions, fault)).collect()
    };
    let (draft, settings, mut faults) =
        reader::read(text, host).map_err(|faults| FileError::Refused(complain(&faults, false)))?;
    let (desired, more) = validate(&draft, host);
    faults.extend(more);
    let refusals = complain(&faults, false);
    if refusals.is_empty() {
        let places = Places::new(file, &positions, &draft);
        Ok(Loaded { desired, settings, warnings: complain(&faults, true), places })
    } else {
        Err(FileError::Refused(refusals))
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{}: {source}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has faults, one at least.
    #[error("{}", lines(.0))]
    Refused(Vec<Complaint>),
}

fn lines(complaints: &[Complaint]) -> String {
    complaints.iter().map(Complaint::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing to tell about a file, and where in it. Shown as `evenkeel.toml:14:13: service dns: …`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The service it is about.
    pub service: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Complaint {
    fn new(file: &str, lines: &Lines<'_>, fault: &Fault) -> Self {
        let (line, column) = lines.position(fault.place);
        let message = fault.what.to_string();
        Self { file: file.to_owned(), line, column, service: fault.service.clone(), message }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if let Some(service) = &self.service {
            write!(f, "service {service}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The lines of a text, to find many places in it.
struct Lines<'t> {
    text: &'t str,
    /// Where each begins.
    starts: Vec<usize>,
    /// A character is a byte, so that columns need not be counted.
    is_ascii: bool,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let starts = [0].into_iter().chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { text, starts, is_ascii: text.is_ascii() }
    }

    /// The line and the column, both from 1.
    fn position(&self, Place(offset): Place) -> (usize, usize) {
        let offset = if self.text.is_char_boundary(offset) { offset } else { self.text.len() };
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = if self.is_ascii { offset - start } else { self.text[start..offset].chars().count() };
        (line, column + 1)
    }
}

impl Host {
    /// This machine, as its `/sys` tells it. Needs no rights.
    ///
    /// # Errors
    /// When `/sys` cannot be read.
    pub fn of_this_machine() -> io::Result<Self> {
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
        Ok(Self { cpus: cpus(&possible), interfaces: Some(interfaces(Path::new("/sys/class/net"))?) })
    }
}

/// The names of folders: beside the interfaces there lies `bonding_masters`, a file.
fn interfaces(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut interfaces = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_dir() {
            interfaces.extend(entry.file_name().into_string());
        }
    }
    Ok(interfaces)
}

/// The number of CPUs in a list such as `0-3,5`.
fn cpus(list: &str) -> u32 {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.trim().split(',').filter_map(range).sum::<u32>().max(1)
}

#[cfg(test)]
mod tests;
