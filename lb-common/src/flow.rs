//! The flow table's layout: one entry per flow, found from both directions.
//!
//! A bucket is found by what both directions know of the client: its address, port and protocol. The packet towards a
//! backend then compares the frontend, the reply compares the endpoint.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Addr, Port, Protocol},
    backend::{BackendId, EndpointId},
    service::FrontendId,
};

/// Ways in a bucket.
pub const WAYS: usize = 8;

/// Locks of the table; a power of two.
pub const LOCKS: u32 = 4096;

/// A bucket of `FLOWS`: 320 bytes, 5 cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bucket {
    /// A [`Word`] for each way.
    pub words: [u64; WAYS],
    /// An [`Entry`] for each way.
    pub entries: [[u64; Entry::WORDS]; WAYS],
}

/// What look-up and eviction must know of a way, in one word: `tag 20 | version 16 | state 4 | seen 24`.
///
/// It changes only by compare-and-swap, or by a store of the one who made it [`FlowState::Busy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u64);

const STATE_SHIFT: u32 = 24;
const VERSION_SHIFT: u32 = 28;
const TAG_SHIFT: u32 = 44;

impl Word {
    /// A word of these parts. `tag` has 20 bits, `version` 16.
    #[inline(always)]
    pub const fn new(tag: u64, version: u64, state: FlowState, seen: Tick) -> Self {
        Self(
            tag << TAG_SHIFT
                | (version & 0xffff) << VERSION_SHIFT
                | (state.to_bits()) << STATE_SHIFT
                | seen.0 as u64 & Tick::MASK as u64,
        )
    }

    /// Bits of the hash, so that most other flows are told apart without reading their entry.
    #[inline(always)]
    pub const fn tag(self) -> u64 {
        self.0 >> TAG_SHIFT
    }

    /// Counts how often the way was claimed, wrapping at 16 bits.
    #[inline(always)]
    pub const fn version(self) -> u64 {
        self.0 >> VERSION_SHIFT & 0xffff
    }

    /// The bits of the state; see [`FlowState::from_bits`].
    #[inline(always)]
    pub const fn state_bits(self) -> u64 {
        self.0 >> STATE_SHIFT & 0xf
    }

    /// The state.
    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits(self.state_bits())
    }

    /// When the flow was last seen.
    #[inline(always)]
    pub const fn seen(self) -> Tick {
        Tick(self.0 as u32 & Tick::MASK)
    }

    /// The same flow in another state, seen at another time.
    #[inline(always)]
    pub const fn with(self, state: FlowState, seen: Tick) -> Self {
        Self::new(self.tag(), self.version(), state, seen)
    }

    /// Whether both words speak of the same tenant of the way: same tag, same version.
    #[inline(always)]
    pub const fn is_same_tenant(self, other: Self) -> bool {
        (self.0 ^ other.0) >> VERSION_SHIFT == 0
    }
}

/// Coarse time: jiffies / 64, modulo 2²⁴. At 250 Hz a tick is 256 ms and the wrap-around comes after 49 days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The bits a tick has.
    pub const MASK: u32 = 0xff_ffff;
    /// Jiffies in one tick, as a shift.
    pub const JIFFIES_SHIFT: u32 = 6;
    /// Another CPU's tick may be ahead of ours by this much.
    pub const SLACK: u32 = 4;

    /// The tick of a count of jiffies.
    #[inline(always)]
    pub const fn from_jiffies(jiffies: u64) -> Self {
        Self((jiffies >> Self::JIFFIES_SHIFT) as u32 & Self::MASK)
    }

    /// Ticks from `earlier` to now, plus [`Tick::SLACK`], so that an `earlier` slightly in the future counts as just now.
    ///
    /// Signed: what lies further in the future, as when whoever looked at the clock was held up afterwards, counts as
    /// just now as well and not as half a wrap-around old. Without a branch, for the verifier.
    #[inline(always)]
    pub const fn since_with_slack(self, earlier: Self) -> u32 {
        let age = self.0.wrapping_add(Self::SLACK).wrapping_sub(earlier.0) & Self::MASK;
        age & (age >> (Self::MASK.count_ones() - 1)).wrapping_sub(1)
    }
}

/// Where a flow is in its life. The order of the numbers is the layout's, not a ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// No flow.
    Free = 0,
    /// Being written by the one who claimed it.
    Busy = 1,
    /// TCP: the client's SYN was seen.
    HalfOpen = 2,
    /// TCP: the backend answered the SYN, the client has not confirmed.
    Answered = 3,
    /// TCP: data may flow.
    Established = 4,
    /// TCP: the client has sent its FIN.
    ClientClosed = 5,
    /// TCP: the backend has sent its FIN.
    BackendClosed = 6,
    /// TCP: both have sent a FIN, or one a RST.
    Closing = 7,
    /// UDP: nothing came back yet.
    Udp = 8,
    /// UDP: answered once.
    UdpAnswered = 9,
    /// UDP: asked again after an answer.
    UdpAssured = 10,
    /// The conversation went to another backend, or is over and was opened anew. No packet of the client finds this any
    /// more; late answers do, and carry the frontend's address.
    Moved = 11,
}

impl FlowState {
    /// States there are.
    pub const COUNT: usize = 12;

    /// Every state, at the index of its bits.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Free,
        Self::Busy,
        Self::HalfOpen,
        Self::Answered,
        Self::Established,
        Self::ClientClosed,
        Self::BackendClosed,
        Self::Closing,
        Self::Udp,
        Self::UdpAnswered,
        Self::UdpAssured,
        Self::Moved,
    ];

    /// The four bits in a [`Word`].
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self as u64
    }

    /// The state of four bits. Values no one writes count as busy, so that they are neither found nor evicted.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Free,
            2 => Self::HalfOpen,
            3 => Self::Answered,
            4 => Self::Established,
            5 => Self::ClientClosed,
            6 => Self::BackendClosed,
            7 => Self::Closing,
            8 => Self::Udp,
            9 => Self::UdpAnswered,
            10 => Self::UdpAssured,
            11 => Self::Moved,
            _ => Self::Busy,
        }
    }

    /// Whether a flow in this state is one of its backend's active flows.
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        match self {
            Self::Free | Self::Busy | Self::Moved => false,
            Self::HalfOpen
            | Self::Answered
            | Self::Established
            | Self::ClientClosed
            | Self::BackendClosed
            | Self::Closing
            | Self::Udp
            | Self::UdpAnswered
            | Self::UdpAssured => true,
        }
    }

    /// Seconds without a packet after which a flow in this state may be evicted; `None` where there is no flow.
    ///
    /// Half-open and closing ones live as long as a backend repeats itself to a client that is gone, because what it sends
    /// must carry the frontend's address; a flood evicts them first all the same.
    pub const fn timeout_seconds(self) -> Option<u32> {
        match self {
            Self::Free => None,
            Self::Busy => None,
            Self::HalfOpen => Some(60),
            Self::Answered => Some(60),
            Self::Established => Some(24 * 60 * 60),
            Self::ClientClosed => Some(120),
            Self::BackendClosed => Some(120),
            Self::Closing => Some(120),
            Self::Udp => Some(30),
            Self::UdpAnswered => Some(30),
            Self::UdpAssured => Some(120),
            Self::Moved => Some(30),
        }
    }
}

/// Who speaks to whom: four words, written only while the way is [`FlowState::Busy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who the client is.
    pub client: Client,
    /// What it connected to.
    pub frontend: FrontendId,
    /// Who serves it.
    pub backend: BackendId,
    /// Where that backend is.
    pub endpoint: EndpointId,
}

impl Entry {
    /// Words of an entry.
    pub const WORDS: usize = 4;

    /// The entry as it lies in the table.
    #[inline(always)]
    pub const fn to_words(self) -> [u64; Self::WORDS] {
        let [a, b, c] = self.client.to_words();
        [a, b, c | (self.frontend.0 as u64) << 32, (self.endpoint.0 as u64) << 32 | self.backend.0 as u64]
    }

    /// The entry taken apart.
    #[inline(always)]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self {
            client: Client::from_words([words[0], words[1], words[2] & 0xffff_ffff]),
            frontend: FrontendId((words[2] >> 32) as u32),
            backend: BackendId(words[3] as u32),
            endpoint: EndpointId((words[3] >> 32) as u32),
        }
    }
}

/// What both directions know of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// The client's address.
    pub address: Addr,
    /// The client's port.
    pub port: Port,
    /// The protocol it speaks.
    pub protocol: Protocol,
}

impl Client {
    /// The address in two words, port and protocol in the low half of a third.
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 3] {
        let a = self.address.0;
        [
            (a[1] as u64) << 32 | a[0] as u64,
            (a[3] as u64) << 32 | a[2] as u64,
            (self.protocol.0 as u64) << 16 | self.port.0 as u64,
        ]
    }

    /// The client taken apart.
    #[inline(always)]
    pub const fn from_words(words: [u64; 3]) -> Self {
        Self {
            address: Addr([words[0] as u32, (words[0] >> 32) as u32, words[1] as u32, (words[1] >> 32) as u32]),
            port: Port(words[2] as u16),
            protocol: Protocol((words[2] >> 16) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn a_bucket_is_five_cache_lines() {
        assert_eq!(size_of::<Bucket>(), 320);
    }

    #[test]
    fn states_are_their_bits() {
        for (bits, state) in FlowState::ALL.into_iter().enumerate() {
            assert_eq!(state.to_bits(), bits as u64);
            assert_eq!(FlowState::from_bits(bits as u64), state);
        }
        assert_eq!(FlowState::from_bits(15), FlowState::Busy);
    }

    #[test]
    fn words_and_entries_survive_the_table() {
        let word = Word::new(0xf_ffff, 0xffff, FlowState::UdpAssured, Tick(Tick::MASK));
        assert_eq!((word.tag(), word.version(), word.seen().0), (0xf_ffff, 0xffff, Tick::MASK));
        assert_eq!(word.state(), FlowState::UdpAssured);
        assert!(word.is_same_tenant(word.with(FlowState::Free, Tick(0))));
        assert!(!word.is_same_tenant(Word::new(0xf_ffff, 0, FlowState::UdpAssured, Tick(Tick::MASK))));

        let address: IpAddr = "2001:db8:1:2:3:4:5:6".parse().expect("a valid address");
        let entry = Entry {
            client: Client { address: address.into(), port: Port::new(65_000), protocol: Protocol::UDP },
            frontend: FrontendId(u32::MAX),
            backend: BackendId(1),
            endpoint: EndpointId(u32::MAX),
        };
        assert_eq!(Entry::from_words(entry.to_words()), entry);
    }

    #[test]
    fn time_wraps_without_making_flows_old() {
        assert_eq!(Tick(3).since_with_slack(Tick(Tick::MASK)), 4 + Tick::SLACK);
        assert_eq!(Tick(10).since_with_slack(Tick(12)), Tick::SLACK - 2);
        assert_eq!(Tick(10).since_with_slack(Tick(1000)), 0, "a clock that was read long ago");
        assert_eq!(Tick(400_000).since_with_slack(Tick(0)), 400_000 + Tick::SLACK);
    }
}
