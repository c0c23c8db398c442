//! clsact filters and what else runs on an interface, by rtnetlink. By interface number, because names change owners.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::sys::{self, Point, XdpMode};

/// Ours is the first filter of its hook. The handle tells it from others of this priority: "EK".
const PRIORITY: u16 = 1;
const HANDLE: u32 = 0x454b;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// The kernel's word for a program that runs in the stack.
const XDP_ATTACHED_SKB: u8 = 2;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `TC_H_MAKE(TC_H_CLSACT, 0)` and `TC_H_CLSACT`.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

/// `ETH_P_ALL` in network order.
const EVERY_PROTOCOL: u16 = 0x0003_u16.to_be();

const MESSAGE_HEADER: usize = 16;
const TC_HEADER: usize = 20;
const LINK_HEADER: usize = 16;

/// A filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The lower runs first.
    pub(super) priority: u16,
    /// `bpf`, `flower` and so on.
    pub(super) kind: String,
    /// Its name, where it has one.
    pub(super) name: String,
    /// The program's id, where it is one.
    pub(super) program: Option<u32>,
    handle: u32,
}

impl Filter {
    /// Whether we put it there.
    pub(super) fn is_ours(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && self.kind == "bpf" && self.name.starts_with("evenkeel")
    }
}

/// Makes room for filters; `false` where there is already.
pub(super) fn add_clsact(ifindex: u32) -> io::Result<bool> {
    let mut request = Request::tc(RTM_NEWQDISC, NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE, ifindex);
    request.tc_part(CLSACT_HANDLE, CLSACT_PARENT, 0);
    request.attribute(TCA_KIND, b"clsact\0");
    match request.send() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the room for filters, and so every filter.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let mut request = Request::tc(RTM_DELQDISC, NLM_F_ACK, ifindex);
    request.tc_part(CLSACT_HANDLE, CLSACT_PARENT, 0);
    request.send().map(drop)
}

/// Puts a program in our place of a hook, which another program of ours leaves at the same moment.
pub(super) fn put_filter(ifindex: u32, direction: Point, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
    let mut request = Request::tc(RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE, ifindex);
    request.tc_part(HANDLE, parent(direction), info());
    request.attribute(TCA_KIND, b"bpf\0");
    let options = request.begin(TCA_OPTIONS);
    request.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    request.attribute(TCA_BPF_NAME, format!("evenkeel:{name}\0").as_bytes());
    request.attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    request.end(options);
    request.send().map(drop)
}

/// Empties our place of a hook.
pub(super) fn remove_filter(ifindex: u32, direction: Point) -> io::Result<()> {
    let mut request = Request::tc(RTM_DELTFILTER, NLM_F_ACK, ifindex);
    request.tc_part(HANDLE, parent(direction), info());
    request.attribute(TCA_KIND, b"bpf\0");
    request.send().map(drop)
}

/// The filters of a hook, ours included.
pub(super) fn filters(ifindex: u32, direction: Point) -> io::Result<Vec<Filter>> {
    let mut request = Request::tc(RTM_GETTFILTER, NLM_F_DUMP, ifindex);
    request.tc_part(0, parent(direction), 0);
    let messages = request.send()?;
    Ok(messages.iter().filter(|message| message.kind == RTM_NEWTFILTER).filter_map(filter).collect())
}

/// The XDP program of an interface, and how it is run.
pub(super) fn xdp_program(ifindex: u32) -> io::Result<Option<(u32, XdpMode)>> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let messages = Request::new(RTM_GETLINK, NLM_F_ACK, &header).send()?;
    let program = |message: &Message| {
        let attributes = message.body.get(LINK_HEADER..)?;
        let xdp = attribute(attributes, IFLA_XDP)?;
        let id = attribute(xdp, IFLA_XDP_PROG_ID).and_then(number).filter(|id| *id != 0)?;
        let is_generic = attribute(xdp, IFLA_XDP_ATTACHED) == Some(&[XDP_ATTACHED_SKB]);
        Some((id, if is_generic { XdpMode::Generic } else { XdpMode::Native }))
    };
    Ok(messages.iter().filter(|message| message.kind == RTM_NEWLINK).find_map(program))
}

fn filter(message: &Message) -> Option<Filter> {
    let handle = number(message.body.get(8..12)?)?;
    let info = number(message.body.get(16..20)?)?;
    let attributes = message.body.get(TC_HEADER..)?;
    // A dump also names each priority, without a handle.
    if handle == 0 {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
    Some(Filter {
        priority: (info >> 16) as u16,
        kind: attribute(attributes, TCA_KIND).map(text).unwrap_or_default(),
        name: attribute(options, TCA_BPF_NAME).map(text).unwrap_or_default(),
        program: attribute(options, TCA_BPF_ID).and_then(number),
        handle,
    })
}

fn parent(direction: Point) -> u32 {
    match direction {
        Point::Ingress => 0xffff_fff2,
        Point::Egress => 0xffff_fff3,
        Point::Xdp => unreachable!("traffic control has no such hook"),
    }
}

const fn info() -> u32 {
    (PRIORITY as u32) << 16 | EVERY_PROTOCOL as u32
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A message under construction.
struct Request(Vec<u8>);

struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; MESSAGE_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// A message about traffic control.
    fn tc(kind: u16, flags: u16, ifindex: u32) -> Self {
        let mut request = Self::new(kind, flags, &[0; TC_HEADER]);
        request.0[MESSAGE_HEADER + 4..MESSAGE_HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
        request
    }

    fn tc_part(&mut self, handle: u32, parent: u32, info: u32) {
        for (word, value) in [handle, parent, info].into_iter().enumerate() {
            let at = MESSAGE_HEADER + 8 + word * 4;
            self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend_from_slice(value);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends it, and reads until the kernel has said all.
    fn send(mut self) -> io::Result<Vec<Message>> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let mut socket = File::from(sys::netlink_socket()?);
        socket.write_all(&self.0)?;
        let mut messages = Vec::new();
        // More than the kernel puts into one piece of a dump.
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = match socket.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            let mut rest = &buffer[..length];
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(messages),
                    NLMSG_ERROR => match body.get(..4).and_then(number).map(u32::cast_signed) {
                        Some(0) => return Ok(messages),
                        Some(error) => return Err(io::Error::from_raw_os_error(-error)),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                    kind => messages.push(Message { kind, body: body.to_vec() }),
                }
                rest = next;
            }
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The first message: its kind, its body, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes.get(..4)?)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(MESSAGE_HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_are_found_again() {
        let mut request = Request::tc(RTM_NEWTFILTER, 0, 7);
        request.tc_part(HANDLE, parent(Point::Ingress), info());
        request.attribute(TCA_KIND, b"bpf\0");
        let options = request.begin(TCA_OPTIONS);
        request.attribute(TCA_BPF_NAME, b"evenkeel:ingress_both\0");
        request.attribute(TCA_BPF_ID, &42_u32.to_ne_bytes());
        request.end(options);
        let message = Message { kind: RTM_NEWTFILTER, body: request.0[MESSAGE_HEADER..].to_vec() };
        let found = filter(&message).expect("it has a handle");
        assert_eq!((found.priority, found.kind.as_str(), found.program), (1, "bpf", Some(42)));
        assert!(found.is_ours());
    }

    #[test]
    fn a_filter_of_another_name_or_place_is_not_ours() {
        let ours = Filter {
            priority: PRIORITY,
            kind: "bpf".to_owned(),
            name: "evenkeel:x".to_owned(),
            program: Some(1),
            handle: HANDLE,
        };
        assert!(ours.is_ours());
        for other in [
            Filter { priority: 2, ..ours.clone() },
            Filter { handle: 1, ..ours.clone() },
            Filter { name: "cil_from_netdev".to_owned(), ..ours.clone() },
            Filter { kind: "flower".to_owned(), ..ours.clone() },
        ] {
            assert!(!other.is_ours(), "{other:?}");
        }
    }

    #[test]
    fn what_ends_too_early_is_no_message() {
        for length in 0..20 {
            let mut bytes = vec![0; length];
            if let Some(field) = bytes.get_mut(..4) {
                field.copy_from_slice(&40_u32.to_ne_bytes());
            }
            assert!(split(&bytes).is_none());
            assert!(attribute(&bytes, TCA_KIND).is_none());
        }
    }
}
