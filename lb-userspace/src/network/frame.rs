//! Netlink messages of any protocol: their headers and attributes, read and written. Pure.
//!
//! What is in them is known by [`super::wire`] and [`super::netdev`]. Attributes that are not known are stepped over,
//! so that a newer kernel's messages stay readable.

/// One netlink message, its header taken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame<M> {
    /// What the protocol says.
    Message(M),
    /// The kernel's refusal, by errno; zero is its consent.
    Answer(i32),
    /// Comes before a message of a dump that changed while it was made, and may miss anything.
    Interrupted,
    /// The end of a dump.
    Done,
    /// Something of another kind.
    Other,
}

impl<M> Frame<M> {
    /// What the protocol says, if it is that.
    pub(super) fn message(self) -> Option<M> {
        match self {
            Self::Message(message) => Some(message),
            Self::Answer(_) | Self::Interrupted | Self::Done | Self::Other => None,
        }
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;

const HEADER: usize = 16;

/// Every message of one datagram, its kind and body read by `message`. What is cut short ends it.
pub(super) fn frames<M>(mut datagram: &[u8], message: impl Fn(u16, &[u8]) -> Option<M>) -> Vec<Frame<M>> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(flags)) = (u32_at(datagram, 0), u16_at(datagram, 4), u16_at(datagram, 6))
    {
        let length = length as usize;
        let Some(body) = datagram.get(HEADER..length) else { break };
        if flags & NLM_F_DUMP_INTR != 0 {
            found.push(Frame::Interrupted);
        }
        let frame = match kind {
            NLMSG_ERROR => i32_at(body, 0).map(|errno| Frame::Answer(errno.wrapping_neg())),
            NLMSG_DONE => Some(Frame::Done),
            _ => message(kind, body).map(Frame::Message),
        };
        found.push(frame.unwrap_or(Frame::Other));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The attributes of a message's body, nested ones as one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const FLAGS: u16 = 0xc000;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A message under construction.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The kinds of a datagram's messages.
    fn kinds(datagram: &[u8]) -> Vec<Frame<u16>> {
        frames(datagram, |kind, _| Some(kind))
    }

    #[test]
    fn a_dump_that_changed_meanwhile_is_told_from_a_whole_one() {
        let one = |flags| Request::new(17, flags, &[0; 16]).finish();
        let done = |flags| Request::new(NLMSG_DONE, flags, &[0; 4]).finish();
        const MULTI: u16 = 0x2;
        assert_eq!(kinds(&[one(MULTI), done(MULTI)].concat()), [Frame::Message(17), Frame::Done]);
        assert_eq!(
            kinds(&[one(MULTI | NLM_F_DUMP_INTR), done(MULTI)].concat()),
            [Frame::Interrupted, Frame::Message(17), Frame::Done]
        );
        assert_eq!(
            kinds(&[one(MULTI), done(MULTI | NLM_F_DUMP_INTR)].concat()),
            [Frame::Message(17), Frame::Interrupted, Frame::Done],
            "before the end is read"
        );
    }

    #[test]
    fn a_refusal_is_told_from_consent() {
        let answer = |code: i32| kinds(&Request::new(NLMSG_ERROR, 0, &code.to_ne_bytes()).finish());
        assert_eq!(answer(-libc::ENOENT), [Frame::Answer(libc::ENOENT)]);
        assert_eq!(answer(0), [Frame::Answer(0)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0_u16..32,
        ) {
            kinds(&bytes);
            kinds(&Request::new(kind, 0, &bytes).finish());
            attributes(&bytes).for_each(drop);
        }

        #[test]
        fn what_is_cut_short_ends_the_datagram(cut in 1_usize..20) {
            let one = || Request::new(17, 0, &[0; 4]).finish();
            let whole = [one(), one()].concat();
            prop_assert_eq!(kinds(&whole[..whole.len() - cut]), [Frame::Message(17)]);
        }
    }
}
