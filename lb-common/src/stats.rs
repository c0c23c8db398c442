//! What is counted, per CPU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A record of `TRAFFIC`, one per backend and CPU. Packets and bytes are counted as they are forwarded, bytes from the
/// IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    /// New choices that went to this backend: flows, or queries of a per-packet service.
    pub choices: u64,
    /// Packets sent to it.
    pub packets_in: u64,
    /// Bytes sent to it.
    pub bytes_in: u64,
    /// Packets it sent back.
    pub packets_out: u64,
    /// Bytes it sent back.
    pub bytes_out: u64,
}

/// A record of `SERVICE_STATS`, one per service and CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceStats {
    /// Tickets drawn: one for each new choice.
    pub tickets: u64,
    /// Choices that went to another backend than the ticket's, because that one already serves this client's address
    /// and port for another frontend.
    pub diverted: u64,
    /// Tickets of which nothing came: every backend tried clashed, or the reply table had no room. A full flow table
    /// draws no ticket.
    pub refused: u64,
    /// Tickets that no rule of an nth chain took.
    pub unmatched: u64,
}

/// A record of `EARLY_STATS`, one per device of `DEVICES` and CPU: what became of packets that were ours and came in by it
/// where XDP looks first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EarlyStats {
    /// Packets that XDP sent on.
    pub sent: u64,
    /// Packets that it left to traffic control, which sends or counts them.
    pub left: u64,
}

impl EarlyStats {
    /// Both added up, wrapping as the counters themselves do.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { sent: self.sent.wrapping_add(other.sent), left: self.left.wrapping_add(other.left) }
    }
}

impl Traffic {
    /// Both added up, wrapping as the counters themselves do.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            choices: self.choices.wrapping_add(other.choices),
            packets_in: self.packets_in.wrapping_add(other.packets_in),
            bytes_in: self.bytes_in.wrapping_add(other.bytes_in),
            packets_out: self.packets_out.wrapping_add(other.packets_out),
            bytes_out: self.bytes_out.wrapping_add(other.bytes_out),
        }
    }
}

impl ServiceStats {
    /// Both added up, wrapping as the counters themselves do.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            tickets: self.tickets.wrapping_add(other.tickets),
            diverted: self.diverted.wrapping_add(other.diverted),
            refused: self.refused.wrapping_add(other.refused),
            unmatched: self.unmatched.wrapping_add(other.unmatched),
        }
    }
}
