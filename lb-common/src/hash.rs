//! Keyed hashes that both sides compute: where a flow and a reply lie in their tables.
//!
//! SipHash-1-3 guards the reply table, where a foreign packet that matched would be given a frontend's address; a
//! mixed multiply-add hash with a secret per boot finds buckets of the flow table, whose whole key is compared anyway.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{backend::EndpointId, flow::Client};

/// Secret words, drawn once per boot and kept with the tables they address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Secret(pub [u64; Secret::WORDS]);

/// Where the secret words come from: a [`Secret`], or read-only data of the BPF program that must be read anew each time.
pub trait SecretWords {
    /// The word at `index`, which is below [`Secret::WORDS`].
    fn word(&self, index: usize) -> u64;
}

impl SecretWords for Secret {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        self.0[index]
    }
}

impl Secret {
    /// Words the hashes take.
    pub const WORDS: usize = 26;

    /// The key of the reply table's check, apart from the words of the linear hashes, which timing might betray.
    const CHECK: usize = 24;
}

/// Where a client's flows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bucket that is preferred.
    pub first: u32,
    /// The other one; never the same.
    pub second: u32,
    /// Bits for [`crate::flow::Word::tag`].
    pub tag: u64,
}

/// The place of `client` in a table of `mask + 1` buckets, at least two and a power of two.
#[inline(always)]
pub fn flow_place(secret: &impl SecretWords, mask: u32, client: Client) -> Place {
    let words = client.to_words();
    let hash = mixed_sum::<0>(secret, words);
    let first = hash as u32 & mask;
    let second = (hash >> 32) as u32 & mask;
    Place {
        first,
        second: if second == first { first ^ 1 } else { second },
        // Bits above those that choose buckets in any table of up to a million of them.
        tag: hash >> 20 & 0xfff | (hash >> 56) << 12,
    }
}

/// Where replies of an endpoint to a client lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyPlace {
    /// One bucket.
    pub first: u32,
    /// The other one; never the same.
    pub second: u32,
    /// What guards the entry.
    pub check: u64,
}

/// The place of the pair `client` and `endpoint` in a table of `mask + 1` buckets, at least two and a power of two.
///
/// The buckets come from other secrets than the check; else a foreign packet would have `entries` chances in 2⁶⁴.
#[inline(always)]
pub fn reply_place(secret: &impl SecretWords, mask: u32, client: Client, endpoint: EndpointId) -> ReplyPlace {
    let [a, b, c] = client.to_words();
    let words = [a, b, c | (endpoint.0 as u64) << 32];
    let hash = mixed_sum::<14>(secret, words);
    let first = hash as u32 & mask;
    let second = (hash >> 32) as u32 & mask;
    ReplyPlace {
        first,
        second: if second == first { first ^ 1 } else { second },
        check: siphash_1_3(secret.word(Secret::CHECK), secret.word(Secret::CHECK + 1), words),
    }
}

/// A sum of products with the seven secret words from `FROM` (Dietzfelbinger 1996, "Universal hashing and k-wise
/// independent random variables"), then the finalizer of MurmurHash3 (Appleby 2011).
///
/// The sum alone is linear, and the ports of one client follow each other: under some secrets they share few buckets.
#[inline(always)]
fn mixed_sum<const FROM: usize>(secret: &impl SecretWords, words: [u64; 3]) -> u64 {
    let low = |word: u64| word & 0xffff_ffff;
    let high = |word: u64| word >> 32;
    let mut sum = secret
        .word(FROM)
        .wrapping_add(low(words[0]).wrapping_mul(secret.word(FROM + 1)))
        .wrapping_add(high(words[0]).wrapping_mul(secret.word(FROM + 2)))
        .wrapping_add(low(words[1]).wrapping_mul(secret.word(FROM + 3)))
        .wrapping_add(high(words[1]).wrapping_mul(secret.word(FROM + 4)))
        .wrapping_add(low(words[2]).wrapping_mul(secret.word(FROM + 5)))
        .wrapping_add(high(words[2]).wrapping_mul(secret.word(FROM + 6)));
    sum = (sum ^ sum >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    sum = (sum ^ sum >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    sum ^ sum >> 33
}

/// SipHash-1-3 (Aumasson and Bernstein 2012) of exactly three words.
#[inline(always)]
pub fn siphash_1_3(key0: u64, key1: u64, words: [u64; 3]) -> u64 {
    let mut v = [
        key0 ^ 0x736f_6d65_7073_6575,
        key1 ^ 0x646f_7261_6e64_6f6d,
        key0 ^ 0x6c79_6765_6e65_7261,
        key1 ^ 0x7465_6462_7974_6573,
    ];
    // The last word carries the length in bytes modulo 256 in its highest byte.
    let words = [words[0], words[1], words[2], 24 << 56];
    let mut i = 0;
    while i < words.len() {
        v[3] ^= words[i];
        v = sip_round(v);
        v[0] ^= words[i];
        i += 1;
    }
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Addr, Port, Protocol};

    fn secret() -> impl Strategy<Value = Secret> {
        any::<[u64; 32]>().prop_map(|words| Secret(core::array::from_fn(|i| words[i])))
    }

    fn client() -> impl Strategy<Value = Client> {
        (any::<[u32; 4]>(), any::<u16>(), any::<u8>()).prop_map(|(address, port, protocol)| Client {
            address: Addr(address),
            port: Port(port),
            protocol: Protocol(protocol),
        })
    }

    proptest! {
        #[test]
        fn the_two_buckets_of_a_key_differ_and_lie_in_the_table(
            secret in secret(), client in client(), bits in 1_u32..24, endpoint: u32,
        ) {
            let mask = (1 << bits) - 1;
            let flow = flow_place(&secret, mask, client);
            prop_assert!(flow.first != flow.second && flow.first <= mask && flow.second <= mask);
            prop_assert!(flow.tag < 1 << 20);
            let reply = reply_place(&secret, mask, client, EndpointId(endpoint));
            prop_assert!(reply.first != reply.second && reply.first <= mask && reply.second <= mask);
        }
    }

    proptest! {
        #[test]
        fn the_ports_of_one_client_spread_over_the_buckets(words in any::<[u64; 32]>(), address: [u8; 4], step in 1_u16..5) {
            let secret = Secret(core::array::from_fn(|i| words[i]));
            let mut load = [0_u8; 4096];
            for number in 0..4096_u16 {
                let port = Port::new(number.wrapping_mul(step));
                let address = Addr::from_v4_word(u32::from_ne_bytes(address));
                let place = flow_place(&secret, 4095, Client { address, port, protocol: Protocol::UDP });
                // The emptier of the two, as the table does.
                let (first, second) = (place.first as usize, place.second as usize);
                load[if load[second] < load[first] { second } else { first }] += 1;
            }
            // With two choices of 4096 the fullest has 3 or 4 of 4096 (Azar et al. 1994).
            prop_assert!(load.iter().all(|flows| *flows <= 5), "{:?}", load.iter().max());
        }
    }

    #[test]
    fn siphash_is_siphash() {
        let words = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110];
        assert_eq!(
            siphash_1_3(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, words),
            plain_siphash(1, 3, 0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, &words),
        );
    }

    /// The paper's pseudo-code for whole words, with the rounds as parameters: with 2 and 4 it gives the published vector.
    fn plain_siphash(c: usize, d: usize, k0: u64, k1: u64, words: &[u64]) -> u64 {
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        let last = ((words.len() as u64 * 8) & 0xff) << 56;
        for &m in words.iter().chain([&last]) {
            v[3] ^= m;
            for _ in 0..c {
                plain_round(&mut v);
            }
            v[0] ^= m;
        }
        v[2] ^= 0xff;
        for _ in 0..d {
            plain_round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    fn plain_round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13);
        v[1] ^= v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16);
        v[3] ^= v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21);
        v[3] ^= v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17);
        v[1] ^= v[2];
        v[2] = v[2].rotate_left(32);
    }

    #[test]
    fn the_plain_transcription_gives_the_published_vector() {
        // SipHash-2-4, key 00..0f, message 00..07: the reference implementation's vectors_sip64[8].
        let k = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(plain_siphash(2, 4, k.0, k.1, &[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
    }
}
