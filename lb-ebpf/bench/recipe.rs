//! What a front program writes over each packet. The testbed includes this file and fills the map that it describes.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes that a front writes at most, and a packet must have: Ethernet, IPv6, UDP.
pub const REACH: usize = 62;

/// The headers of the next packet, and which client it is of.
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct Recipe {
    /// From the IP header on, as they lie in the packet; of those that IPv4 does not have, the rest is not written.
    pub headers: [u32; 12],
    /// The Ethernet header, and two bytes that are not written.
    pub link: [u32; 4],
    /// Which headers these are, and where the client is in them: see [`Layout`].
    pub layout: u32,
    /// The device to send out of, for who sends.
    pub ifindex: u32,
    /// From which the next number comes, and is itself replaced.
    pub state: u64,
    /// What the state is multiplied by.
    pub multiplier: u64,
    /// What is then added to it.
    pub increment: u64,
    /// How far the state is shifted to become a number.
    pub shift: u32,
    /// Which bits of that count; none where there is one client only.
    pub mask: u32,
    /// Not zero where neighbouring numbers are to be clients far from each other.
    pub is_scattered: u32,
    /// Which bits of a client's address its number decides.
    pub address_mask: u32,
    /// How far the number is shifted for the client's port.
    pub port_shift: u32,
    /// Which bits of that are added to the first port.
    pub port_mask: u32,
    /// The first port.
    pub first_port: u32,
    /// Always zero.
    pub zero: u32,
    /// How many frames the generator is to send.
    pub frames: u64,
    /// How many it has sent.
    pub sent: u64,
    /// When it sent the first one, in nanoseconds.
    pub began: u64,
    /// When it sent the last one.
    pub ended: u64,
}

/// Where the client is in the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Layout {
    /// It sends, by IPv4.
    FromClient4,
    /// It receives, by IPv4.
    ToClient4,
    /// It sends, by IPv6.
    FromClient6,
    /// It receives, by IPv6.
    ToClient6,
}

impl Layout {
    /// The layout with this number.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::FromClient4,
            1 => Self::ToClient4,
            2 => Self::FromClient6,
            3 => Self::ToClient6,
            _ => return None,
        })
    }
}

impl Recipe {
    /// The next number. `last` is what the last packet came to: it decides nothing, but the processor cannot begin with
    /// the next packet before it knows.
    #[inline(always)]
    pub const fn next(&mut self, last: u32) -> u32 {
        let state = self.state ^ (last & self.zero) as u64;
        self.state = state.wrapping_mul(self.multiplier).wrapping_add(self.increment);
        (self.state >> (self.shift & 63)) as u32 & self.mask
    }

    /// The bits of a client's address, and its port.
    #[inline(always)]
    pub const fn client(&self, number: u32) -> (u32, u16) {
        let bits = if self.is_scattered == 0 { number } else { scatter(number) };
        let port = self.first_port + (bits >> (self.port_shift & 31) & self.port_mask);
        (bits & self.address_mask, port as u16)
    }
}

/// Another number for each, and far from it: the finalizer of MurmurHash3, which takes no two numbers to one.
#[inline(always)]
const fn scatter(mut number: u32) -> u32 {
    number ^= number >> 16;
    number = number.wrapping_mul(0x85eb_ca6b);
    number ^= number >> 13;
    number = number.wrapping_mul(0xc2b2_ae35);
    number ^ number >> 16
}
