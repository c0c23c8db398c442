//! The Internet checksum (RFC 1071), and how it follows a change without reading the packet again (RFC 1624).
//! Sums are of 16-bit words as they lie in memory, which gives the same result in either byte order.

use lb_common::addr::{Addr, Family, Protocol};

/// A ones'-complement sum of up to 2¹⁶ words, not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(pub u32);

impl Sum {
    /// The sum with a word exchanged (RFC 1624, equation 3).
    #[inline(always)]
    #[must_use]
    pub const fn exchange(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u32 + new as u32)
    }

    /// The sum with an address exchanged.
    #[inline(always)]
    #[must_use]
    pub fn exchange_address(self, family: Family, old: &Addr, new: &Addr) -> Self {
        match family {
            Family::V4 => self.exchange_word(old.0[3], new.0[3]),
            Family::V6 => self
                .exchange_word(old.0[0], new.0[0])
                .exchange_word(old.0[1], new.0[1])
                .exchange_word(old.0[2], new.0[2])
                .exchange_word(old.0[3], new.0[3]),
        }
    }

    #[inline(always)]
    const fn exchange_word(self, old: u32, new: u32) -> Self {
        self.exchange(old as u16, new as u16).exchange((old >> 16) as u16, (new >> 16) as u16)
    }

    /// The sum with two words more, as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, words: u32) -> Self {
        Self(self.0 + (words & 0xffff) + (words >> 16))
    }

    /// The checksum field of all that is in this sum.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum field that held `field` before the words in this sum were exchanged.
    #[inline(always)]
    pub const fn apply(self, field: u16) -> u16 {
        !Self(self.0 + !field as u32).fold()
    }

    #[inline(always)]
    const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }
}

/// The sum of a pseudo header (RFC 768, RFC 9293, RFC 8200 section 8.1), which a transport checksum begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PseudoSum(u64);

impl PseudoSum {
    /// The sum for a transport header with its payload of `length` bytes.
    #[inline(always)]
    pub const fn new(source: &Addr, destination: &Addr, protocol: Protocol, length: u32) -> Self {
        let [a, b, c, d] = source.0;
        let [e, f, g, h] = destination.0;
        // What maps an IPv4 address into IPv6 adds zeros and all ones, and both are zero.
        let addresses = a as u64 + b as u64 + c as u64 + d as u64 + e as u64 + f as u64 + g as u64 + h as u64;
        Self(addresses + (protocol.0 as u16).to_be() as u64 + length.to_be() as u64)
    }

    /// The sum in 16 bits, as a sender leaves it to its device to be finished.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let words = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let words = (words & 0xffff) + (words >> 16 & 0xffff) + (words >> 32);
        let words = (words & 0xffff) + (words >> 16);
        ((words & 0xffff) + (words >> 16)) as u16
    }
}

/// The checksum of bytes, computed anew, for tests.
pub fn checksum(bytes: impl IntoIterator<Item = u8>) -> u16 {
    let mut sum = 0_u32;
    let mut high = true;
    for byte in bytes {
        sum += if high { (byte as u32) << 8 } else { byte as u32 };
        sum = (sum & 0xffff) + (sum >> 16);
        high = !high;
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn following_a_change_equals_computing_anew(
            mut words in prop::collection::vec(any::<u16>(), 8..40), at in 0_usize..4, new: [u32; 4],
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
            let before = checksum(bytes(&words)).to_be();
            let old = |words: &[u16], i: usize| (words[at + 2 * i + 1] as u32) << 16 | words[at + 2 * i] as u32;
            if words.len() < at + 8 { words.resize(at + 8, 0); }
            let before_grown = checksum(bytes(&words)).to_be();
            prop_assert_eq!(before, before_grown);
            let old_address = Addr([old(&words, 0), old(&words, 1), old(&words, 2), old(&words, 3)]);
            for (i, word) in new.iter().enumerate() {
                words[at + 2 * i] = *word as u16;
                words[at + 2 * i + 1] = (word >> 16) as u16;
            }
            let after = checksum(bytes(&words)).to_be();
            let followed = Sum::default().exchange_address(Family::V6, &old_address, &Addr(new)).apply(before);
            // Zero and all ones are the same sum.
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0);
            prop_assert!(same(followed, after), "{:#x} {:#x}", followed, after);
        }
    }

    #[test]
    fn the_example_of_rfc_1624_gives_its_answer() {
        assert_eq!(Sum::default().exchange(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_carry_out_of_the_carries_is_added_too() {
        assert_eq!(Sum(0x1_ffff).apply(0xffff), !1);
    }
}
