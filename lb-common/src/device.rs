//! Devices that XDP programs run on or send out of, and the sizes of what is kept of next hops.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Records of `DEVICES`, a power of two. A device lies at its number modulo this; of two that fall together one has none.
pub const DEVICES: u32 = 4096;

/// Records of `CLIENT_HOPS` and of `BACKEND_HOPS` on each CPU, a power of two.
pub const HOPS: u32 = 4096;

/// Bytes of a record of `CLIENT_HOPS` and of `BACKEND_HOPS`, a cache line. What is in it is the packet path's own affair.
pub const HOP_RECORD: usize = 64;

/// A record of `DEVICES`: two words, each changed by one atomic store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Device {
    /// Its number; zero is no device.
    pub ifindex: u32,
    /// What it can do.
    pub abilities: Abilities,
    /// Its link-layer address, as a packet to it begins.
    pub address: [u16; 3],
    /// Always zero.
    pub zero: u16,
}

/// What a device can do with packets that an XDP program hands to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Abilities(pub u32);

impl Abilities {
    /// It sends them.
    pub const SENDS: Self = Self(1);
    /// It sends those too that lie in several pieces.
    pub const SENDS_PIECES: Self = Self(2);

    /// Whether it has every ability of `other`.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The abilities of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Device {
    /// The place of the device with this number.
    #[inline(always)]
    pub const fn place(ifindex: u32) -> u32 {
        ifindex & (DEVICES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_two_words() {
        assert_eq!(size_of::<Device>(), 16);
        assert!(DEVICES.is_power_of_two());
    }

    #[test]
    fn who_sends_pieces_must_say_both() {
        let both = Abilities::SENDS.with(Abilities::SENDS_PIECES);
        assert!(both.has(Abilities::SENDS) && both.has(both));
        assert!(!Abilities::SENDS.has(both));
        assert!(!Abilities::default().has(Abilities::SENDS));
    }
}
