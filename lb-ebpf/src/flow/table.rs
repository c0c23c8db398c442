//! The flow table: find, claim, evict within two buckets (docs/adr/0002).
//!
//! A way's word says all that look-up and eviction need, and changes only by compare-and-swap, or by a store of the one
//! who made it busy: a race of a hit and an eviction has one winner. Inserts of one client are serialised by a lock.

use lb_common::{
    backend::{BackendId, BackendState, EndpointId},
    flow::{Client, Entry, FlowState, LOCKS, Tick, WAYS, Word},
    hash::{Place, flow_place},
    reason::Reason,
    selector::Slot,
    service::FrontendId,
};

use super::state::{self, From};
use crate::{
    atomic::{Hidden, Ranks, Shared, smaller},
    kernel::{FlowBucket, Kernel, forget},
    select::{Chooser, TRIES, Ticket},
    wire::TcpFlags,
};

/// A flow that is in the table.
pub struct Found<'k> {
    way: &'k Shared,
    word: Word,
    /// What the client connected to.
    pub frontend: FrontendId,
    /// Who serves it.
    pub backend: BackendId,
}

/// The flow of a packet from `client` to `frontend`.
#[inline(always)]
pub fn find_by_frontend<'k>(kernel: &'k impl Kernel, client: Client, frontend: FrontendId) -> Option<Found<'k>> {
    find(kernel, &Key::new(client), Peer::Frontend(frontend))
}

/// The flow of a packet from `endpoint` to `client`.
#[inline(always)]
pub fn find_by_endpoint<'k>(kernel: &'k impl Kernel, client: Client, endpoint: EndpointId) -> Option<Found<'k>> {
    let key = Key::new(client);
    // A flow that goes on before one that has moved: the same backend may have been chosen again.
    match find(kernel, &key, Peer::Endpoint(endpoint)) {
        Some(found) => Some(found),
        None => find(kernel, &key, Peer::EndpointMoved(endpoint)),
    }
}

impl Found<'_> {
    /// Notes a packet of the flow. A lost race is as good: someone else noted one.
    #[inline(always)]
    pub fn note(&self, now: Tick, from: From, flags: TcpFlags) {
        let state = self.word.state();
        if state == FlowState::Moved {
            return;
        }
        let next = state::next(state, from, flags);
        let word = self.word.with(next, now);
        if word == self.word || self.way.replace(self.word.0, word.0) || next == state {
            return;
        }
        // The state must not be lost to a CPU that only noted the time.
        let again = Word(self.way.load());
        if again.is_same_tenant(self.word) {
            self.way.replace(again.0, again.with(state::next(again.state(), from, flags), now).0);
        }
    }

    /// Whether a packet of the client opens the conversation anew, its backend being in this state.
    #[inline(always)]
    pub fn opens_anew(&self, flags: TcpFlags, backend: BackendState) -> bool {
        state::opens_anew(self.word.state(), flags, backend)
    }

    /// Takes the flow out of the table, its backend having heard nothing of it.
    #[inline(always)]
    pub fn evict(&self, kernel: &impl Kernel) {
        self.end(kernel, free(self.word));
    }

    /// Ends the flow for its client. What its backend still answers is translated a while longer.
    #[inline(always)]
    pub fn retire(&self, kernel: &impl Kernel, now: Tick) {
        self.end(kernel, self.word.with(FlowState::Moved, now));
    }

    /// Another packet of the flow may have changed the word meanwhile; then once more.
    #[inline(always)]
    fn end(&self, kernel: &impl Kernel, ended: Word) {
        if self.way.replace(self.word.0, ended.0) {
            count_down(kernel, self.backend);
            return;
        }
        let again = Word(self.way.load());
        if again.is_same_tenant(self.word) && again.state().is_active() && self.way.replace(again.0, ended.0) {
            count_down(kernel, self.backend);
        }
    }
}

/// What became of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It was given this backend.
    Made {
        /// The backend.
        backend: BackendId,
        /// Whether it is another than the ticket's, which clashed.
        is_diverted: bool,
    },
    /// Another CPU had begun it just before.
    Known(BackendId),
    /// No rule of the nth chain takes it.
    Unmatched,
    /// Every backend tried serves this client's address and port for another frontend.
    Clash,
}

/// Gives the flow of `client` to `frontend` a backend, once, however many CPUs begin it at the same time.
///
/// # Errors
/// When the table has no room, or a record is missing. No ticket was drawn then.
#[inline(always)]
pub fn begin<K: Kernel>(
    kernel: &K,
    client: Client,
    frontend: FrontendId,
    first: FlowState,
    chooser: &Chooser<'_>,
) -> Result<Begun, Reason> {
    let now = kernel.now();
    if let Some(position) = kernel.sweep_position()
        && let Some(bucket) = kernel.flow_bucket(position.fetch_add(1) as u32 & kernel.flow_mask())
    {
        sweep(kernel, bucket, now);
    }
    let key = Key::new(client);
    let place = flow_place(kernel.secret(), kernel.flow_mask(), client);
    let buckets = Buckets {
        first: kernel.flow_bucket(place.first).ok_or(Reason::Inconsistent)?,
        second: kernel.flow_bucket(place.second).ok_or(Reason::Inconsistent)?,
    };
    let mut tries = 0;
    while tries < CLAIMS.get() {
        tries += 1;
        let victim = Victim::choose(kernel, &buckets, now);
        let (outcome, evicted) = kernel
            .locked(place.first & (LOCKS - 1), || claim(&buckets, &victim, &key, &place, frontend, first, now, chooser))
            .ok_or(Reason::Inconsistent)?;
        if let Some(backend) = evicted {
            count_down(kernel, backend);
        }
        match outcome {
            Outcome::Begun(begun) => {
                if let Begun::Made { backend, .. } = begun
                    && let Some(active) = kernel.active(backend)
                {
                    active.fetch_add(1);
                }
                return Ok(begun);
            }
            Outcome::NoRoom => return Err(Reason::FlowTableFull),
            Outcome::Lost => {}
        }
    }
    Err(Reason::Contention)
}

/// Evicts what has expired in a bucket. Each new flow does so with the next one of the table, so that the counts of
/// active flows stay exact also while no controller runs.
#[inline(always)]
fn sweep(kernel: &impl Kernel, bucket: &FlowBucket, now: Tick) {
    for (way, entry) in bucket.words.iter().zip(&bucket.entries) {
        let word = Word(way.load());
        if word.state_bits() != FlowState::Free.to_bits() {
            evict_expired(kernel, way, entry, word, rank(kernel, word, now));
        }
    }
}

/// Evicts a flow of this rank, if it has expired.
#[inline(always)]
fn evict_expired(kernel: &impl Kernel, way: &Shared, entry: &[Shared; Entry::WORDS], word: Word, rank: u64) {
    if rank >> 32 != EXPIRED >> 32 {
        return;
    }
    let backend = backend_of(entry);
    if way.replace(word.0, free(word).0) && word.state().is_active() {
        count_down(kernel, backend);
    }
}

enum Outcome {
    Begun(Begun),
    NoRoom,
    Lost,
}

/// What happens under the lock. No look-up, no function that is not inlined.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "fetched before the lock; a struct would only rename them")]
fn claim(
    buckets: &Buckets<'_>,
    victim: &Victim,
    key: &Key,
    place: &Place,
    frontend: FrontendId,
    first: FlowState,
    now: Tick,
    chooser: &Chooser<'_>,
) -> (Outcome, Option<BackendId>) {
    // The second look: packets of one flow come here one after the other.
    if let Some(found) = buckets.find(key, place.tag, Peer::Frontend(frontend)) {
        return (Outcome::Begun(Begun::Known(found.backend)), None);
    }
    if !victim.has_room {
        return (Outcome::NoRoom, None);
    }
    let bucket = if victim.is_second { buckets.second } else { buckets.first };
    let (Some(way), Some(entry)) = (bucket.words.get(victim.way & 7), bucket.entries.get(victim.way & 7)) else {
        return (Outcome::Lost, None);
    };
    let version = victim.word.version().wrapping_add(1);
    let busy = Word::new(0, version, FlowState::Busy, Tick(0));
    if !victim.is_evictable || !way.replace(victim.word.0, busy.0) {
        return (Outcome::Lost, None);
    }
    let evicted = if victim.word.state().is_active() { Some(backend_of(entry)) } else { None };
    let position = match chooser.draw() {
        Ticket::Position(position) => position,
        Ticket::Unmatched => {
            way.publish(free(busy).0);
            return (Outcome::Begun(Begun::Unmatched), evicted);
        }
    };
    let mut tries = 0;
    while tries < TRIES.get() {
        let slot = chooser.slot(position, tries);
        // By this endpoint the same client and port may be known for another frontend already; its replies could not be
        // told apart.
        if buckets.find(key, place.tag, Peer::EndpointOfAnother(slot.endpoint, frontend)).is_none() {
            write(entry, key, frontend, slot);
            way.publish(Word::new(place.tag, version, first, now).0);
            let begun = Begun::Made { backend: slot.backend, is_diverted: tries > 0 };
            return (Outcome::Begun(begun), evicted);
        }
        tries += 1;
    }
    way.publish(free(busy).0);
    (Outcome::Begun(Begun::Clash), evicted)
}

/// Both buckets a flow may be in.
struct Buckets<'k> {
    first: &'k FlowBucket,
    second: &'k FlowBucket,
}

/// A client in the words of an entry.
struct Key {
    client: Client,
    words: [u64; 3],
}

/// By what the other end of a flow is known in one direction.
#[derive(Clone, Copy)]
enum Peer {
    /// The client's direction.
    Frontend(FrontendId),
    /// The backend's direction.
    Endpoint(EndpointId),
    /// The backend's direction, for what the client is served elsewhere by now.
    EndpointMoved(EndpointId),
    /// This endpoint, known for any frontend but this.
    EndpointOfAnother(EndpointId, FrontendId),
}

impl Peer {
    /// The states in which a flow is found. What has moved is found by its replies only.
    #[inline(always)]
    const fn states(self) -> (u64, u64) {
        let (first, last, moved) =
            (FlowState::HalfOpen.to_bits(), FlowState::UdpAssured.to_bits(), FlowState::Moved.to_bits());
        match self {
            Self::Frontend(_) | Self::Endpoint(_) => (first, last),
            Self::EndpointMoved(_) => (moved, moved),
            Self::EndpointOfAnother(..) => (first, moved),
        }
    }
}

impl Key {
    #[inline(always)]
    fn new(client: Client) -> Self {
        Self { client, words: client.to_words() }
    }
}

#[inline(always)]
fn find<'k>(kernel: &'k impl Kernel, key: &Key, peer: Peer) -> Option<Found<'k>> {
    let place = flow_place(kernel.secret(), kernel.flow_mask(), key.client);
    let first = kernel.flow_bucket(place.first)?;
    let (bucket, seen) = match find_in(first, key, place.tag, peer) {
        Some(seen) => (first, seen),
        None => {
            let second = kernel.flow_bucket(place.second)?;
            (second, find_in(second, key, place.tag, peer)?)
        }
    };
    Some(Found {
        way: bucket.words.get(forget(kernel.scratch()?, seen.way as u64) as usize)?,
        word: seen.word,
        frontend: seen.frontend,
        backend: seen.backend,
    })
}

impl Buckets<'_> {
    #[inline(always)]
    fn find(&self, key: &Key, tag: u64, peer: Peer) -> Option<Seen> {
        match find_in(self.first, key, tag, peer) {
            Some(found) => Some(found),
            None => find_in(self.second, key, tag, peer),
        }
    }
}

/// What was read of a flow.
struct Seen {
    way: usize,
    word: Word,
    frontend: FrontendId,
    backend: BackendId,
}

/// Word, entry, word again: if the word is still the same tenant's, so was the entry.
#[inline(always)]
fn find_in(bucket: &FlowBucket, key: &Key, tag: u64, peer: Peer) -> Option<Seen> {
    let mut i = 0;
    while i < WAYS {
        let way = &bucket.words[i];
        let entry = &bucket.entries[i];
        let word = Word(way.load());
        let state = word.state_bits();
        let (first, last) = peer.states();
        if word.tag() == tag && state >= first && state <= last {
            let whom = entry[2].load();
            let served = entry[3].load();
            let is_peer = match peer {
                Peer::Frontend(frontend) => whom == key.words[2] | (frontend.0 as u64) << 32,
                Peer::Endpoint(endpoint) | Peer::EndpointMoved(endpoint) => {
                    whom & 0xffff_ffff == key.words[2] && served >> 32 == endpoint.0 as u64
                }
                Peer::EndpointOfAnother(endpoint, frontend) => {
                    whom & 0xffff_ffff == key.words[2]
                        && whom >> 32 != frontend.0 as u64
                        && served >> 32 == endpoint.0 as u64
                }
            };
            if is_peer
                && entry[1].load() == key.words[1]
                && entry[0].load() == key.words[0]
                && Word(way.load()).is_same_tenant(word)
            {
                return Some(Seen {
                    way: i,
                    word,
                    frontend: FrontendId((whom >> 32) as u32),
                    backend: BackendId(served as u32),
                });
            }
        }
        i += 1;
    }
    None
}

#[inline(always)]
fn write(entry: &[Shared; Entry::WORDS], key: &Key, frontend: FrontendId, slot: Slot) {
    entry[0].store(key.words[0]);
    entry[1].store(key.words[1]);
    entry[2].store(key.words[2] | (frontend.0 as u64) << 32);
    entry[3].store(slot.to_word());
}

#[inline(always)]
fn backend_of(entry: &[Shared; Entry::WORDS]) -> BackendId {
    BackendId(entry[3].load() as u32)
}

#[inline(always)]
fn free(word: Word) -> Word {
    Word::new(0, word.version(), FlowState::Free, Tick(0))
}

#[inline(always)]
fn count_down(kernel: &impl Kernel, backend: BackendId) {
    if let Some(active) = kernel.active(backend) {
        active.fetch_add(u64::MAX);
    }
}

/// The way to use: the compare-and-swap on its word decides later. Without room the second look still comes first: the
/// flow may be there by now.
struct Victim {
    has_room: bool,
    /// False when the way was taken while it was chosen.
    is_evictable: bool,
    is_second: bool,
    way: usize,
    word: Word,
}

impl Victim {
    #[inline(always)]
    fn choose(kernel: &impl Kernel, buckets: &Buckets<'_>, now: Tick) -> Self {
        let first = Weight::of(kernel, buckets.first, now);
        let second = Weight::of(kernel, buckets.second, now);
        // Room in both: the first while it has some to spare, else the emptier one. Else the one with the better victim.
        let is_second = if first.best < CLOSING && second.best < CLOSING {
            first.used >= PREFER_FIRST_BELOW && second.used < first.used
        } else {
            second.best < first.best
        };
        let (best, bucket) = if is_second { (second.best, buckets.second) } else { (first.best, buckets.first) };
        let way = (best & 7) as usize;
        let word = match bucket.words.get(way) {
            Some(way) => Word(way.load()),
            None => Word(0),
        };
        Self {
            has_room: best < STAYS & RANK_BITS,
            is_evictable: rank(kernel, word, now) & RANK_BITS < STAYS & RANK_BITS,
            is_second,
            way,
            word,
        }
    }
}

/// [`WAYS`], for the loops that run only for a new flow.
static ROLLED: Hidden = Hidden(WAYS as u64);

/// How often a way is claimed before giving up on a race for it.
static CLAIMS: Hidden = Hidden(3);

/// Ways in use from which the first bucket is no longer preferred.
const PREFER_FIRST_BELOW: u64 = 6;

/// The best way to evict, older first, with its number in the low bits; and how many ways are in use. Weighed is what is
/// left when the expired are gone, which must not clash.
struct Weight {
    best: u64,
    used: u64,
}

impl Weight {
    #[inline(always)]
    fn of(kernel: &impl Kernel, bucket: &FlowBucket, now: Tick) -> Self {
        let mut weight = Self { best: RANK_BITS, used: 0 };
        let mut i = 0;
        while i < ROLLED.get() as usize {
            let (Some(way), Some(entry)) = (bucket.words.get(i), bucket.entries.get(i)) else { break };
            let word = Word(way.load());
            let rank = rank(kernel, word, now);
            evict_expired(kernel, way, entry, word, rank);
            weight.used += rank >> USED_SHIFT;
            weight.best = smaller(weight.best, rank & RANK_BITS | i as u64);
            i += 1;
        }
        weight
    }
}

const USED_SHIFT: u32 = 40;
const USED: u64 = 1 << USED_SHIFT;
const RANK_BITS: u64 = USED - 1;
const EXPIRED: u64 = 1 << 32;
const CLOSING: u64 = 2 << 32;
const HALF_OPEN: u64 = 3 << 32;
const STAYS: u64 = 4 << 32 | USED;

/// Who goes first: by the bits of the state, and 16 further for the same state when it has expired.
/// A table and arithmetic without a branch; with branches the verifier followed every combination of ways.
static RANKS: Ranks = Ranks({
    let mut ranks = [STAYS; 32];
    ranks[FlowState::Free as usize] = 0;
    ranks[FlowState::HalfOpen as usize] = HALF_OPEN | USED;
    ranks[FlowState::Answered as usize] = HALF_OPEN | USED;
    ranks[FlowState::Closing as usize] = CLOSING | USED;
    ranks[FlowState::Moved as usize] = CLOSING | USED;
    ranks[16 + FlowState::Free as usize] = 0;
    let mut state = FlowState::HalfOpen as usize;
    while state < FlowState::COUNT {
        ranks[16 + state] = EXPIRED;
        state += 1;
    }
    ranks
});

/// The rank of a way: class, then age, the three low bits free for its number.
#[inline(always)]
fn rank(kernel: &impl Kernel, word: Word, now: Tick) -> u64 {
    let state = word.state_bits();
    let age = now.since_with_slack(word.seen()) as u64;
    let is_expired = kernel.state_ticks(state).wrapping_add(Tick::SLACK as u64).wrapping_sub(age) >> 63;
    // The older the smaller; `used` stays above.
    RANKS.get(state | is_expired << 4) + ((Tick::MASK as u64 - age) << 4)
}
