//! What the controller itself is told: where to attach, how to forward, how much room to make. Services are in
//! [`crate::model`].

use lb_common::limits::{BACKENDS_MAX, FLOWS_MAX, SERVICES_MAX, SLOTS_PER_CHUNK};
use serde::Serialize;

/// Settings of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces that clients come in by; empty means those of the frontends.
    pub interfaces: Vec<String>,
    /// Where the programs are attached.
    pub hook: HookSetting,
    /// How packets travel to backends.
    pub way: WaySetting,
    /// How much room the maps have.
    pub limits: Limits,
}

impl Settings {
    /// Whether XDP is asked for, be it of use or not.
    pub fn asks_for_xdp(&self) -> bool {
        let by_hook = match self.hook {
            HookSetting::Xdp | HookSetting::XdpGeneric => true,
            HookSetting::Auto | HookSetting::Tc => false,
        };
        by_hook || self.way == WaySetting::XdpRedirect
    }
}

/// Where the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookSetting {
    /// The best each interface can.
    #[default]
    Auto,
    /// XDP in the driver, and traffic control for what that leaves.
    Xdp,
    /// XDP in the stack, and traffic control for what that leaves.
    XdpGeneric,
    /// Traffic control.
    Tc,
}

impl HookSetting {
    /// Every setting.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Xdp, Self::XdpGeneric, Self::Tc];

    /// The name in configurations and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        }
    }
}

/// How packets travel to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaySetting {
    /// The best for each backend.
    #[default]
    Auto,
    /// Straight into the container behind a veth.
    RedirectPeer,
    /// Out of the device the route names.
    RedirectNeigh,
    /// The same, by XDP already.
    XdpRedirect,
    /// Through the host's stack.
    Stack,
}

impl WaySetting {
    /// Every setting.
    pub const ALL: [Self; 5] = [Self::Auto, Self::RedirectPeer, Self::RedirectNeigh, Self::XdpRedirect, Self::Stack];

    /// The name in configurations and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::RedirectPeer => "redirect-peer",
            Self::RedirectNeigh => "redirect-neigh",
            Self::XdpRedirect => "xdp-redirect",
            Self::Stack => "stack",
        }
    }
}

/// How much there may be of what; [`crate::capacity::Capacity`] makes map sizes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Flows at a time.
    pub flows: u32,
    /// Clients of per-packet services at a time, counted per endpoint they asked.
    pub replies: u32,
    /// Services, counted per family, protocol and port.
    pub services: u32,
    /// Backends, counted per such service.
    pub backends: u32,
    /// Words of slots; without a value what `backends` makes likely.
    pub slots: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 1 << 18, replies: 1 << 16, services: 1024, backends: 4096, slots: None }
    }
}

/// A key of `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// `flows`
    Flows,
    /// `replies`
    Replies,
    /// `services`
    Services,
    /// `backends`
    Backends,
    /// `slots`
    Slots,
}

impl Limit {
    /// Every key.
    pub const ALL: [Self; 5] = [Self::Flows, Self::Replies, Self::Services, Self::Backends, Self::Slots];

    /// The key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Replies => "replies",
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Slots => "slots",
        }
    }

    /// The largest value the map layout has room for.
    pub const fn max(self) -> u32 {
        match self {
            Self::Flows => FLOWS_MAX,
            Self::Replies => FLOWS_MAX,
            Self::Services => SERVICES_MAX,
            Self::Backends => BACKENDS_MAX,
            Self::Slots => SLOTS_PER_CHUNK * 64,
        }
    }
}

impl Limits {
    /// The value of a key; what is derived where `slots` has none.
    pub fn get(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Flows => self.flows,
            Limit::Replies => self.replies,
            Limit::Services => self.services,
            Limit::Backends => self.backends,
            Limit::Slots => self.slots.unwrap_or_else(|| self.backends.saturating_mul(8).max(SLOTS_PER_CHUNK)),
        }
    }

    /// The same limits with one of them changed.
    #[must_use]
    pub fn with(mut self, limit: Limit, value: u32) -> Self {
        match limit {
            Limit::Flows => self.flows = value,
            Limit::Replies => self.replies = value,
            Limit::Services => self.services = value,
            Limit::Backends => self.backends = value,
            Limit::Slots => self.slots = Some(value),
        }
        self
    }
}
