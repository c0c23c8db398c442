//! Sizes that the map layout fixes.

/// Counts the layouts of the pinned maps. A controller adopts pins of its own number only.
pub const LAYOUT_VERSION: u32 = 2;

/// Words of 8 bytes in one large value of `SLOTS`, 4 MiB; a run lies within one.
pub const SLOTS_PER_CHUNK: u32 = 1 << 19;

/// ICMP errors that one CPU sends in a second at most. An error is an answer to anyone who sends what does not fit, and a
/// path MTU, once told, is known for minutes.
pub const ERRORS_PER_SECOND: u32 = 100;

/// ICMP errors that one CPU sends at once at most: some for each sender of a burst.
pub const ERRORS_AT_ONCE: u32 = 20;

/// Rules of an nth chain.
pub const NTH_RULES_MAX: u32 = 32;

/// The largest weight.
pub const WEIGHT_MAX: u32 = 256;

/// Services, counted per family, protocol and port.
pub const SERVICES_MAX: u32 = 1 << 16;

/// Backends, counted per such service.
pub const BACKENDS_MAX: u32 = 1 << 18;

/// Flows for which room can be made: 2²⁷ ways, 5 GiB.
pub const FLOWS_MAX: u32 = 80_000_000;
