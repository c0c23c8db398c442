//! The decision trace: what a program tells of one packet, in the record that goes to user space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, Port, Protocol};

/// What the records are logged as.
pub const TARGET: &str = "trace";

/// Records that one CPU writes within a tenth of a second; what comes on top of them is counted.
pub const RECORDS_PER_WINDOW: u64 = 100;

/// Windows in a second.
pub const WINDOWS_PER_SECOND: u32 = 10;

/// What was decided for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// Who sent it.
    pub source: Addr,
    /// To whom, as it came in.
    pub destination: Addr,
    /// The address it was given; the one that was there where it was not changed.
    pub given: Addr,
    /// The sender's port, as it came in.
    pub source_port: Port,
    /// The receiver's port, as it came in.
    pub destination_port: Port,
    /// The port that goes with `given`.
    pub given_port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which end was changed: a value of [`Change`].
    pub change: u8,
    /// What came of it: a value of [`Outcome`].
    pub outcome: u8,
    /// Who says so: a value of [`Program`].
    pub program: u8,
    /// One where an XDP program says so.
    pub is_early: u8,
    /// Always zero.
    pub zero: u8,
    /// The device that the packet came in by, or goes out of.
    pub here: u32,
    /// What the outcome is about: the device that the packet is sent out of, the backend it is left to a later hook for,
    /// or the reason.
    pub number: u32,
}

/// A record of `TRACER`: what a CPU keeps for its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tracer {
    /// The present window of the rate limit.
    pub window: u64,
    /// Records written in it.
    pub used: u64,
    /// Records written since the programs were loaded.
    pub written: u64,
    /// Records that the limit left out since then.
    pub left_out: u64,
    /// The last one.
    pub record: Record,
}

macro_rules! numbers {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $help:literal])+ $variant:ident,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $help])+ $variant,)+
        }

        impl $name {
            /// Every value, at the index of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value with a number.
            pub fn from_number(number: u8) -> Option<Self> {
                Self::ALL.get(number as usize).copied()
            }
        }
    };
}

numbers! {
    /// Which end of a packet was changed.
    Change {
        /// None.
        None,
        /// Where it comes from: a reply.
        Source,
        /// Where it goes: towards a backend.
        Destination,
    }
}

numbers! {
    /// What came of a packet.
    Outcome {
        /// It goes on through the host's stack.
        Stack,
        /// It leaves by a device whose neighbour the kernel looks up.
        Neighbour,
        /// It goes through a veth into the namespace behind it.
        Peer,
        /// It leaves by a device with its link-layer header made.
        Link,
        /// A later hook sends it.
        Later,
        /// It is not balanced, for a reason.
        Refused,
    }
}

numbers! {
    /// The program that decided.
    Program {
        /// Where clients come in.
        Clients,
        /// Where replies come in.
        Backends,
        /// Where both come in.
        Both,
        /// Where the stack sends replies out.
        Egress,
        /// What opens a flow.
        BeginFlow,
        /// What answers a query of a per-packet service.
        Query,
    }
}

impl Program {
    /// The name in the object, without what tells the hook.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Backends => "backends",
            Self::Both => "both",
            Self::Egress => "egress",
            Self::BeginFlow => "begin_flow",
            Self::Query => "query",
        }
    }

    /// Whether what it sends was chosen for this very packet.
    pub const fn chooses(self) -> bool {
        match self {
            Self::Clients | Self::Backends | Self::Both | Self::Egress => false,
            Self::BeginFlow | Self::Query => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_what_they_stand_for() {
        for change in Change::ALL {
            assert_eq!(Change::from_number(*change as u8), Some(*change));
        }
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_number(*outcome as u8), Some(*outcome));
        }
        for program in Program::ALL {
            assert_eq!(Program::from_number(*program as u8), Some(*program));
        }
        assert_eq!(Program::from_number(u8::MAX), None);
    }
}
