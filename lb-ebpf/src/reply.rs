//! Per-packet UDP: who asked which endpoint, through which frontend. No flow is kept; an answer finds here whose
//! address it must carry, also when it is repeated or late (docs/adr/0002).

use lb_common::{
    backend::EndpointId,
    flow::{Client, Tick},
    hash::{ReplyPlace, reply_place},
    reply::{REPLIES_PER_BUCKET, ReplyWord},
    service::FrontendId,
};

use crate::{
    atomic::{Hidden, Ranks, Shared, smaller},
    kernel::{Kernel, ReplyBucket, forget},
};

/// What became of the note that a client asks an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Answers will find the frontend.
    Noted,
    /// Another frontend awaits answers of this endpoint to this client: they could not be told apart.
    Clash,
    /// Another CPU took the entry this was to be written to. Worth another try.
    Lost,
    /// Everything in reach still awaits an answer.
    NoRoom,
    /// A record is missing.
    Inconsistent,
}

/// Notes that `client` asks `endpoint` through `frontend`.
#[inline(always)]
pub fn ask(kernel: &impl Kernel, client: Client, endpoint: EndpointId, frontend: FrontendId) -> Asked {
    let now = kernel.now();
    let Some((check, first, second)) = places(kernel, client, endpoint) else { return Asked::Inconsistent };
    // An entry of this frontend that is still to be confirmed may yet be taken back, so it does not count.
    let counts = |word: ReplyWord| word.is_confirmed() || word.frontend() != frontend;
    if let Some((bucket, found)) = find_awaited(kernel, first, second, check, now, counts) {
        if found.word.frontend() != frontend {
            return Asked::Clash;
        }
        return refresh(kernel, bucket, &found, check, now);
    }
    let new = ReplyWord::new(frontend, now);
    let bucket = emptier(kernel, first, second, now);
    if bucket.best >= STAYS & RANK_BITS {
        return Asked::NoRoom;
    }
    let Some([guard, shared]) = bucket.bucket.entries.get((bucket.best & 7) as usize) else {
        return Asked::Inconsistent;
    };
    let word = ReplyWord(shared.load());
    if rank(kernel, word, now) & RANK_BITS >= STAYS & RANK_BITS || !shared.replace(word.0, new.0) {
        return Asked::Lost;
    }
    guard.publish(check ^ new.frontend_bits());
    // The third look: another CPU may have written the same pair for another frontend meanwhile. The swap above orders
    // both, so at least one of the two sees the other, and that one steps back.
    if is_claimed_by_another(kernel, first, check, frontend, now)
        || is_claimed_by_another(kernel, second, check, frontend, now)
    {
        shared.replace(new.0, 0);
        return Asked::Clash;
    }
    shared.replace(new.0, new.confirmed().0);
    Asked::Noted
}

/// Takes back the note that `client` asks `endpoint` through `frontend`: nothing was sent there, and what the endpoint
/// answers is someone else's.
#[inline(always)]
pub fn take_back(kernel: &impl Kernel, client: Client, endpoint: EndpointId, frontend: FrontendId) {
    let Some((check, first, second)) = places(kernel, client, endpoint) else { return };
    let is_its = |word: ReplyWord| word.frontend() == frontend;
    if let Some((bucket, found)) = find_awaited(kernel, first, second, check, kernel.now(), is_its)
        && let Some((_, shared)) = found.entry(kernel, bucket)
    {
        // A lost race is as good: another CPU has sent a query there, or the entry is another pair's.
        shared.replace(found.word.0, 0);
    }
}

/// Whether `client` lately asked `endpoint` through another frontend than this.
#[inline(always)]
pub fn is_asked_by_another(
    kernel: &impl Kernel,
    client: Client,
    endpoint: EndpointId,
    frontend: FrontendId,
) -> Option<bool> {
    let (check, first, second) = places(kernel, client, endpoint)?;
    let is_another = |word: ReplyWord| word.frontend() != frontend;
    Some(find_awaited(kernel, first, second, check, kernel.now(), is_another).is_some())
}

/// Through which frontend `client` asked `endpoint`, if it did lately.
#[inline(always)]
pub fn answer(kernel: &impl Kernel, client: Client, endpoint: EndpointId) -> Option<FrontendId> {
    let now = kernel.now();
    let (check, first, second) = places(kernel, client, endpoint)?;
    let (bucket, found) = find_awaited(kernel, first, second, check, now, ReplyWord::is_confirmed)?;
    if !found.word.is_answered() {
        found.entry(kernel, bucket)?.1.replace(found.word.0, found.word.answered().0);
    }
    Some(found.word.frontend())
}

/// What an entry of this pair is known by, and the two buckets it may be in.
#[inline(always)]
fn places(kernel: &impl Kernel, client: Client, endpoint: EndpointId) -> Option<(u64, &ReplyBucket, &ReplyBucket)> {
    let ReplyPlace { first, second, check } = reply_place(kernel.secret(), kernel.reply_mask(), client, endpoint);
    Some((check, kernel.reply_bucket(first)?, kernel.reply_bucket(second)?))
}

/// What was read of an entry.
struct Found {
    at: usize,
    word: ReplyWord,
}

impl Found {
    #[inline(always)]
    fn entry<'k>(&self, kernel: &impl Kernel, bucket: &'k ReplyBucket) -> Option<(&'k Shared, &'k Shared)> {
        let [guard, shared] = bucket.entries.get(forget(kernel.scratch()?, self.at as u64) as usize)?;
        Some((guard, shared))
    }
}

/// The entry of a pair that was asked lately. One that was not counts as gone.
#[inline(always)]
fn find_awaited<'k>(
    kernel: &impl Kernel,
    first: &'k ReplyBucket,
    second: &'k ReplyBucket,
    check: u64,
    now: Tick,
    counts: impl Fn(ReplyWord) -> bool,
) -> Option<(&'k ReplyBucket, Found)> {
    match find(kernel, first, check, now, &counts) {
        Some(found) => Some((first, found)),
        None => find(kernel, second, check, now, &counts).map(|found| (second, found)),
    }
}

#[inline(always)]
fn find(
    kernel: &impl Kernel,
    bucket: &ReplyBucket,
    check: u64,
    now: Tick,
    counts: &impl Fn(ReplyWord) -> bool,
) -> Option<Found> {
    let mut i = 0;
    while i < REPLIES_PER_BUCKET {
        let [shared_guard, shared] = &bucket.entries[i];
        let guard = shared_guard.load();
        let word = ReplyWord(shared.load());
        if guard ^ word.frontend_bits() == check && word.is_live() && counts(word) && is_awaited(kernel, word, now) {
            // Read again: the entry may have been written for another pair between the two.
            if shared_guard.load() == guard {
                return Some(Found { at: i, word });
            }
        }
        i += 1;
    }
    None
}

#[inline(always)]
fn is_claimed_by_another(
    kernel: &impl Kernel,
    bucket: &ReplyBucket,
    check: u64,
    frontend: FrontendId,
    now: Tick,
) -> bool {
    let mut i = 0;
    while i < ROLLED.get() as usize {
        let Some([guard, shared]) = bucket.entries.get(i) else { break };
        let word = ReplyWord(shared.load());
        if word.is_live()
            && word.frontend() != frontend
            && guard.load() ^ word.frontend_bits() == check
            && is_awaited(kernel, word, now)
        {
            return true;
        }
        i += 1;
    }
    false
}

/// [`REPLIES_PER_BUCKET`], for the loops that run only for a new pair.
static ROLLED: Hidden = Hidden(REPLIES_PER_BUCKET as u64);

/// Ticks after which a known pair's time is written again: a hot pair is not written by every query. So its last query
/// may be younger than it says by as much.
const REFRESH_TICKS: u32 = 4;

#[inline(always)]
fn refresh(kernel: &impl Kernel, bucket: &ReplyBucket, found: &Found, check: u64, now: Tick) -> Asked {
    let age = now.since_with_slack(found.word.seen());
    if age < REFRESH_TICKS + Tick::SLACK && !found.word.is_answered() {
        return Asked::Noted;
    }
    let Some((guard, shared)) = found.entry(kernel, bucket) else { return Asked::Inconsistent };
    let new = ReplyWord::new(found.word.frontend(), now).confirmed();
    if shared.replace(found.word.0, new.0) {
        return Asked::Noted;
    }
    // Someone else refreshed it, or it is answered this very moment; or it was evicted for another pair.
    let again = ReplyWord(shared.load());
    if again.is_live() && guard.load() ^ again.frontend_bits() == check { Asked::Noted } else { Asked::Lost }
}

#[inline(always)]
fn is_awaited(kernel: &impl Kernel, word: ReplyWord, now: Tick) -> bool {
    now.since_with_slack(word.seen()) as u64 <= kernel.reply_ticks() + Tick::SLACK as u64
}

struct Emptier<'k> {
    bucket: &'k ReplyBucket,
    best: u64,
}

#[inline(always)]
fn emptier<'k>(kernel: &impl Kernel, first: &'k ReplyBucket, second: &'k ReplyBucket, now: Tick) -> Emptier<'k> {
    let (first_best, first_used) = weigh(kernel, first, now);
    let (second_best, second_used) = weigh(kernel, second, now);
    let is_second =
        if first_best < SETTLED && second_best < SETTLED { second_used < first_used } else { second_best < first_best };
    if is_second { Emptier { bucket: second, best: second_best } } else { Emptier { bucket: first, best: first_best } }
}

#[inline(always)]
fn weigh(kernel: &impl Kernel, bucket: &ReplyBucket, now: Tick) -> (u64, u64) {
    let mut best = RANK_BITS;
    let mut used = 0;
    let mut i = 0;
    while i < ROLLED.get() as usize {
        let Some([_, shared]) = bucket.entries.get(i) else { break };
        let rank = rank(kernel, ReplyWord(shared.load()), now);
        used += rank >> USED_SHIFT;
        best = smaller(best, rank & RANK_BITS | i as u64);
        i += 1;
    }
    (best, used)
}

const USED_SHIFT: u32 = 40;
const USED: u64 = 1 << USED_SHIFT;
const RANK_BITS: u64 = USED - 1;
const EXPIRED: u64 = 1 << 32;
const SETTLED: u64 = 2 << 32;
const STAYS: u64 = 4 << 32 | USED;

/// By answered (bit 0), live (bit 1), expired (bit 2), and settled (bit 3): not asked for a while, so that a query of
/// which the answer is still under way is unlikely.
static RANKS: Ranks = Ranks({
    let mut ranks = [0; 32];
    let mut i = 0;
    while i < 16 {
        let (answered, live, expired, settled) = (i & 1 != 0, i & 2 != 0, i & 4 != 0, i & 8 != 0);
        ranks[i] = match (live, expired, answered && settled) {
            (false, _, _) => 0,
            (true, true, _) => EXPIRED,
            (true, false, true) => SETTLED | USED,
            (true, false, false) => STAYS,
        };
        i += 1;
    }
    ranks
});

#[inline(always)]
fn rank(kernel: &impl Kernel, word: ReplyWord, now: Tick) -> u64 {
    let age = now.since_with_slack(word.seen()) as u64;
    let is_past = |ticks: u64| (ticks + Tick::SLACK as u64).wrapping_sub(age) >> 63;
    let flags = word.0 & (ReplyWord::ANSWERED | ReplyWord::LIVE);
    let index =
        flags | is_past(kernel.reply_ticks()) << 2 | is_past(kernel.reply_settled_ticks() + REFRESH_TICKS as u64) << 3;
    RANKS.get(index) + ((Tick::MASK as u64 - age) << 4)
}

#[cfg(test)]
mod tests;
