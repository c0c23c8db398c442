//! Walks over the tables that the packet path fills itself. What counts as expired is decided as the packet path
//! decides it, and an entry goes by one compare-and-swap, so that each race with a packet has one winner.

use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::{BackendId, BackendState},
    flow::{Entry, FlowState, Tick, WAYS, Word},
    fragment::{FRAGMENT_TIMEOUT_SECONDS, FragmentKey, FragmentRecord},
    limits::{ERRORS_AT_ONCE, ERRORS_PER_SECOND},
    reply::{REPLY_SETTLED_SECONDS, REPLY_TIMEOUT_SECONDS, ReplyWord},
    service::FrontendId,
};
use zerocopy::IntoBytes as _;

use super::{DataplaneError, Named, maps::Maps};

/// Time-outs in ticks, which are 64 jiffies long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    /// By the bits of a flow's state.
    pub(super) states: [u64; 16],
    /// After the last query.
    pub(super) reply: u32,
    /// After the last query, once answered.
    pub(super) reply_settled: u32,
    /// After a datagram's first fragment.
    pub(super) fragment: u32,
    /// ICMP errors that one CPU may send in one tick.
    pub(super) errors: u32,
}

impl Ticks {
    /// Later than any tick can be.
    const NEVER: u64 = 1 << 30;

    /// The time-outs on a kernel of so many jiffies per second.
    pub(super) fn new(jiffies_per_second: u32) -> Self {
        let ticks = |seconds: u32| {
            let jiffies = u64::from(seconds) * u64::from(jiffies_per_second);
            jiffies.div_ceil(1 << Tick::JIFFIES_SHIFT) as u32
        };
        let mut states = [Self::NEVER; 16];
        for state in FlowState::ALL {
            if let Some(seconds) = state.timeout_seconds() {
                states[state.to_bits() as usize] = u64::from(ticks(seconds));
            }
        }
        Self {
            states,
            reply: ticks(REPLY_TIMEOUT_SECONDS),
            reply_settled: ticks(REPLY_SETTLED_SECONDS),
            fragment: ticks(FRAGMENT_TIMEOUT_SECONDS),
            errors: ((ERRORS_PER_SECOND << Tick::JIFFIES_SHIFT) / jiffies_per_second.max(1)).clamp(1, ERRORS_AT_ONCE),
        }
    }
}

/// A backend whose count of active flows is not what the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// The backend.
    pub backend: BackendId,
    /// Flows in the table.
    pub in_table: u64,
    /// What the counter says.
    pub counted: u64,
}

/// What one sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows evicted, or ended because of their backend's state.
    pub evicted: u64,
    /// Ids still named.
    pub named: Named,
}

/// Evicts and tells what is left.
pub(super) fn sweep(maps: &Maps, ticks: &Ticks, now: Tick) -> Result<Swept, DataplaneError> {
    let states = States::snapshot(maps);
    let mut names = Names::default();
    let mut evicted = 0;
    for (way, entry) in maps.flows.it.all().flat_map(ways) {
        let Some((word, flow)) = read(way, entry) else { continue };
        // If a packet was quicker, the flow lives or another has its way. The next sweep will see.
        if is_over(ticks, now, word) && evict(maps, way, word, flow.backend) {
            evicted += 1;
            continue;
        }
        if word.state().is_active() && !may_stay(states.of(flow.backend), word.state()) {
            evicted += u64::from(retire(maps, way, word, now, flow.backend));
        }
        names.backend(flow.backend);
        names.frontend(flow.frontend);
    }
    for entries in maps.replies.it.all() {
        for words in entries.chunks_exact(2) {
            let word = ReplyWord(words[1].load(Ordering::Acquire));
            let is_over = age(now, word.seen()) > u64::from(ticks.reply);
            if word.is_live() && !(is_over && replace(&words[1], word.0, 0)) {
                names.frontend(word.frontend());
            }
        }
    }
    for (key, record) in maps.fragments.entries::<FragmentKey, FragmentRecord>()? {
        if age(now, Tick(record.seen)) > u64::from(ticks.fragment) {
            maps.fragments
                .it
                .delete(key.as_bytes())
                .map_err(|error: io::Error| maps.fragments.error("remove an expired record", error))?;
        } else {
            names.backend(record.backend);
            names.frontend(record.frontend);
        }
    }
    Ok(Swept { evicted, named: names.into() })
}

/// Compares every counter of active flows with the table. Flows that come and go meanwhile may show as a difference.
pub(super) fn audit(maps: &Maps) -> Vec<Miscount> {
    let mut in_table: BTreeMap<BackendId, u64> = BTreeMap::new();
    for (way, entry) in maps.flows.it.all().flat_map(ways) {
        if let Some((_, flow)) = read(way, entry).filter(|(word, _)| word.state().is_active()) {
            *in_table.entry(flow.backend).or_default() += 1;
        }
    }
    (0..)
        .map(BackendId)
        .zip(maps.active.it.all())
        .map(|(backend, words)| Miscount {
            backend,
            in_table: in_table.get(&backend).copied().unwrap_or(0),
            counted: words[0].load(Ordering::Relaxed),
        })
        .filter(|miscount| miscount.in_table != miscount.counted)
        .collect()
}

/// Each way of a bucket: its word and its entry.
fn ways(bucket: &[AtomicU64]) -> impl Iterator<Item = (&AtomicU64, &[AtomicU64])> {
    let (words, entries) = bucket.split_at(WAYS);
    words.iter().zip(entries.chunks_exact(Entry::WORDS))
}

/// Word, entry, word again; `None` where there is no flow, or it is just being written.
fn read(way: &AtomicU64, entry: &[AtomicU64]) -> Option<(Word, Entry)> {
    let mut word = Word(way.load(Ordering::Acquire));
    loop {
        match word.state() {
            FlowState::Free => return None,
            FlowState::Busy => return None,
            FlowState::HalfOpen
            | FlowState::Answered
            | FlowState::Established
            | FlowState::ClientClosed
            | FlowState::BackendClosed
            | FlowState::Closing
            | FlowState::Udp
            | FlowState::UdpAnswered
            | FlowState::UdpAssured
            | FlowState::Moved => {}
        }
        let words = std::array::from_fn(|i| entry[i].load(Ordering::Acquire));
        let again = Word(way.load(Ordering::Acquire));
        if again.is_same_tenant(word) {
            return Some((again, Entry::from_words(words)));
        }
        word = again;
    }
}

fn evict(maps: &Maps, way: &AtomicU64, word: Word, backend: BackendId) -> bool {
    let free = Word::new(0, word.version(), FlowState::Free, Tick(0));
    if !replace(way, word.0, free.0) {
        return false;
    }
    if word.state().is_active() {
        count_down(maps, backend);
    }
    true
}

/// Ends a flow for its client; late answers are translated until it expires.
fn retire(maps: &Maps, way: &AtomicU64, word: Word, now: Tick, backend: BackendId) -> bool {
    let is_retired = replace(way, word.0, word.with(FlowState::Moved, now).0);
    if is_retired {
        count_down(maps, backend);
    }
    is_retired
}

fn count_down(maps: &Maps, backend: BackendId) {
    if let Some(active) = maps.active.it.entry(backend.0) {
        active[0].fetch_sub(1, Ordering::SeqCst);
    }
}

fn replace(word: &AtomicU64, current: u64, value: u64) -> bool {
    word.compare_exchange(current, value, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

fn is_over(ticks: &Ticks, now: Tick, word: Word) -> bool {
    age(now, word.seen()) > ticks.states[word.state_bits() as usize]
}

/// Ticks since, never less than zero for another CPU's clock that is ahead by less than the slack.
fn age(now: Tick, seen: Tick) -> u64 {
    u64::from(now.since_with_slack(seen)).saturating_sub(u64::from(Tick::SLACK))
}

/// Whether a backend in `backend` may keep a flow in `flow`.
fn may_stay(backend: BackendState, flow: FlowState) -> bool {
    match backend {
        BackendState::Dead => false,
        BackendState::Use => true,
        BackendState::Drain => true,
        BackendState::UdpGone => match flow {
            FlowState::Free
            | FlowState::Busy
            | FlowState::HalfOpen
            | FlowState::Answered
            | FlowState::Established
            | FlowState::ClientClosed
            | FlowState::BackendClosed
            | FlowState::Closing => true,
            FlowState::Udp | FlowState::UdpAnswered | FlowState::UdpAssured | FlowState::Moved => false,
        },
    }
}

/// The states of all backends at one time. Only the one who sweeps changes them.
struct States(Vec<BackendState>);

impl States {
    fn snapshot(maps: &Maps) -> Self {
        let mut states = vec![BackendState::Dead; maps.active.it.entries() as usize];
        for (id, record) in maps.backends_now() {
            if let Some(state) = states.get_mut(id.0 as usize) {
                *state = record.state;
            }
        }
        Self(states)
    }

    fn of(&self, id: BackendId) -> BackendState {
        self.0.get(id.0 as usize).copied().unwrap_or(BackendState::Dead)
    }
}

/// Ids as bits: there are few ids and many entries that name them.
#[derive(Default)]
struct Names {
    backends: Vec<bool>,
    frontends: Vec<bool>,
}

impl Names {
    fn backend(&mut self, id: BackendId) {
        set(&mut self.backends, id.0);
    }

    fn frontend(&mut self, id: FrontendId) {
        set(&mut self.frontends, id.0);
    }
}

fn set(bits: &mut Vec<bool>, index: u32) {
    let index = index as usize;
    if bits.len() <= index {
        bits.resize(index + 1, false);
    }
    bits[index] = true;
}

impl From<Names> for Named {
    fn from(names: Names) -> Self {
        // Zero is nothing, and a fragment of a reply names no backend.
        let ids = |bits: Vec<bool>| (0_u32..).zip(bits).filter(|(id, is_named)| *is_named && *id != 0);
        Self {
            backends: ids(names.backends).map(|(id, _)| BackendId(id)).collect(),
            frontends: ids(names.frontends).map(|(id, _)| FrontendId(id)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_are_never_shorter_than_promised() {
        for hz in [100, 250, 300, 1000] {
            let ticks = Ticks::new(hz);
            for state in FlowState::ALL {
                let found = ticks.states[state.to_bits() as usize];
                match state.timeout_seconds() {
                    Some(seconds) => {
                        let jiffies = u64::from(seconds) * u64::from(hz);
                        assert!(found * 64 >= jiffies && found * 64 < jiffies + 64, "{state:?} at {hz} Hz");
                        assert!(found < u64::from(Tick::MASK), "{state:?} at {hz} Hz");
                    }
                    None => assert_eq!(found, Ticks::NEVER, "{state:?}"),
                }
            }
        }
    }

    #[test]
    fn a_flow_expires_when_the_packet_path_says_so() {
        // lb_ebpf: `(state_ticks + SLACK).wrapping_sub(since_with_slack) >> 63`.
        let ticks = Ticks::new(250);
        let state = FlowState::HalfOpen;
        let time_out = ticks.states[state.to_bits() as usize] as u32;
        for now in [0, 5, 1000, Tick::MASK] {
            // From slightly ahead to past the time-out.
            for back in 0..time_out + 10 {
                let seen = (now + 3_u32).wrapping_sub(back) & Tick::MASK;
                let word = Word::new(1, 1, state, Tick(seen));
                let age = u64::from(Tick(now).since_with_slack(Tick(seen)));
                let limit = u64::from(time_out + Tick::SLACK);
                assert_eq!(is_over(&ticks, Tick(now), word), limit.wrapping_sub(age) >> 63 == 1, "{seen} at {now}");
                assert_eq!(is_over(&ticks, Tick(now), word), back > time_out + 3, "{seen} at {now}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_slightly_ahead_makes_no_flow_old() {
        let word = Word::new(1, 1, FlowState::HalfOpen, Tick(104));
        assert!(!is_over(&Ticks::new(250), Tick(100), word));
    }

    #[test]
    fn a_removed_backend_keeps_its_tcp_flows_only() {
        for state in FlowState::ALL {
            let is_udp = state >= FlowState::Udp;
            assert_eq!(may_stay(BackendState::UdpGone, state), !is_udp, "{state:?}");
            assert!(!may_stay(BackendState::Dead, state));
            assert!(may_stay(BackendState::Use, state) && may_stay(BackendState::Drain, state));
        }
    }

    #[test]
    fn no_entry_is_ever_the_id_zero() {
        let mut names = Names::default();
        names.backend(BackendId(0));
        names.backend(BackendId(9));
        names.frontend(FrontendId(3));
        let named = Named::from(names);
        assert_eq!(named.backends.into_iter().collect::<Vec<_>>(), [BackendId(9)]);
        assert_eq!(named.frontends.into_iter().collect::<Vec<_>>(), [FrontendId(3)]);
    }
}
