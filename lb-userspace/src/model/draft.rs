//! What a source has read and nobody has judged yet: each part beside the place it was read from.

use std::collections::BTreeSet;

use lb_common::selector::Selector;

use super::{Listen, Schedule, Target};
use crate::settings::{Limit, Limits};

/// Where something was read: the offset of its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub usize);

/// Something beside the place it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// What was read.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// A list as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T> {
    /// Where it begins.
    pub place: Place,
    /// The items that could be read.
    pub items: Vec<Placed<T>>,
    /// Whether that is all of them; if not, nothing follows from what is missing.
    pub is_whole: bool,
}

/// All that was read.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The services in their order.
    pub services: Vec<ServiceDraft>,
    /// How much there may be of what, and the places of the limits that were given.
    pub limits: Limits,
    /// Those places.
    pub limit_places: Vec<(Limit, Place)>,
    /// Interfaces that clients come in by.
    pub interfaces: Vec<Placed<String>>,
}

/// A service as it was read.
#[derive(Clone, Debug)]
pub struct ServiceDraft {
    /// Where it begins.
    pub place: Place,
    /// What to call it in messages: its name, or its number if it has none.
    pub label: String,
    /// Its name; nothing if it could not be read, which has been told.
    pub name: Option<Placed<String>>,
    /// Its frontends.
    pub listens: Option<List<ListenDraft>>,
    /// Its selector; nothing if it could not be read.
    pub selector: Option<Placed<Selector>>,
    /// Its schedule; nothing if it could not be read.
    pub schedule: Option<Placed<Schedule>>,
    /// Its backends.
    pub backends: Option<List<BackendDraft>>,
    /// Its nth rules.
    pub rules: Option<List<RuleDraft>>,
}

impl ServiceDraft {
    /// Who is named as a backend, whether in a list or in rules.
    pub fn targets(&self) -> Vec<Placed<Target>> {
        let listed = self.backends.iter().flat_map(|list| &list.items);
        let ruled = self.rules.iter().flat_map(|list| &list.items);
        listed
            .map(|item| Placed { value: item.value.target, place: item.place })
            .chain(ruled.map(|item| item.value.target))
            .collect()
    }
}

/// A frontend as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenDraft {
    /// The frontend.
    pub listen: Listen,
    /// Where its address or interface is named.
    pub at_place: Place,
}

/// A backend as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendDraft {
    /// Where it is.
    pub target: Target,
    /// Its weight, of any size.
    pub weight: Option<Placed<i64>>,
}

/// An nth rule as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleDraft {
    /// Of any size.
    pub every: Placed<i64>,
    /// Of any size.
    pub packet: Placed<i64>,
    /// Who gets what it takes.
    pub target: Placed<Target>,
}

/// What has to be known of the machine to judge a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Possible CPUs, each of which has its own part of some maps.
    pub cpus: u32,
    /// Names of its interfaces; nothing where they do not matter.
    pub interfaces: Option<BTreeSet<String>>,
}
