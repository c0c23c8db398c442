//! What devices say of XDP, by the generic netlink family "netdev": asked for, listened to and read. Decides nothing.
//!
//! Kernels before 6.3 have no such family; there nothing is told, which is no error.

use std::io;

use netlink_sys::{AsyncSocket as _, TokioSocket, protocols::NETLINK_GENERIC};

use super::{
    XdpFeatures,
    conversation::Conversation,
    frame::{Frame, NLM_F_DUMP, NLM_F_REQUEST, Request, attributes, text, u16_at, u32_at, u64_at},
};

/// Asks the devices of the network namespace that it was opened in.
pub(super) struct Netdev {
    conversation: Conversation,
    family: Family,
}

impl Netdev {
    /// Finds the family in the namespace of the calling thread, where the kernel has it.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let conversation = Conversation::open(NETLINK_GENERIC)?;
        Ok(match conversation.ask(&find_family(), family)? {
            Frame::Message(family) => Some(Self { conversation, family }),
            Frame::Answer(errno) if errno != libc::ENOENT => return Err(io::Error::from_raw_os_error(errno)),
            Frame::Answer(_) | Frame::Interrupted | Frame::Done | Frame::Other => None,
        })
    }

    /// What every device says.
    pub(super) fn devices(&self) -> io::Result<Vec<Device>> {
        self.conversation.dump(&list_devices(self.family.id), device)
    }
}

/// Begins to listen in the namespace of the calling thread, within a tokio runtime, for devices that say something else
/// than before; nothing where the kernel does not tell. What comes is read by [`device`].
pub(super) fn listen() -> io::Result<Option<TokioSocket>> {
    let Some(Netdev { family: Family { changes: Some(group), .. }, .. }) = Netdev::open()? else { return Ok(None) };
    let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_ref().add_membership(group)?;
    Ok(Some(socket))
}

/// How this kernel numbers the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Family {
    id: u16,
    /// The multicast group that is told of devices.
    changes: Option<u32>,
}

/// What a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) ifindex: u32,
    pub(super) xdp: XdpFeatures,
}

const NETDEV_CMD_DEV_GET: u8 = 1;

/// The command and the version, as which every generic netlink family has 1 so far; the rest is reserved.
const fn generic(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

const GENERIC_HEADER: usize = generic(0).len();

fn find_family() -> Vec<u8> {
    const GENL_ID_CTRL: u16 = 16;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    let mut request = Request::new(GENL_ID_CTRL, NLM_F_REQUEST, &generic(CTRL_CMD_GETFAMILY));
    request.attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    request.finish()
}

fn list_devices(family: u16) -> Vec<u8> {
    Request::new(family, NLM_F_REQUEST | NLM_F_DUMP, &generic(NETDEV_CMD_DEV_GET)).finish()
}

/// Reads the answer to [`find_family`].
fn family(_kind: u16, body: &[u8]) -> Option<Family> {
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const CTRL_ATTR_MCAST_GROUPS: u16 = 7;

    let (mut id, mut changes) = (None, None);
    for (kind, value) in attributes(body.get(GENERIC_HEADER..)?) {
        match kind {
            CTRL_ATTR_FAMILY_ID => id = u16_at(value, 0),
            CTRL_ATTR_MCAST_GROUPS => changes = attributes(value).find_map(|(_, group)| group_of_changes(group)),
            _ => {}
        }
    }
    Some(Family { id: id?, changes })
}

/// The number of a multicast group, if it is the one that is told of devices.
fn group_of_changes(group: &[u8]) -> Option<u32> {
    const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
    const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

    let value_of = |wanted| attributes(group).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = value_of(CTRL_ATTR_MCAST_GRP_NAME).map(text)?;
    (name == "mgmt").then(|| u32_at(value_of(CTRL_ATTR_MCAST_GRP_ID)?, 0)).flatten()
}

/// Reads what a device says, as an answer or unasked; that one is gone is rtnetlink's to tell.
pub(super) fn device(_kind: u16, body: &[u8]) -> Option<Device> {
    const NETDEV_CMD_DEV_ADD_NTF: u8 = 2;
    const NETDEV_CMD_DEV_CHANGE_NTF: u8 = 4;
    const NETDEV_A_DEV_IFINDEX: u16 = 1;
    const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

    if ![NETDEV_CMD_DEV_GET, NETDEV_CMD_DEV_ADD_NTF, NETDEV_CMD_DEV_CHANGE_NTF].contains(body.first()?) {
        return None;
    }
    let (mut ifindex, mut xdp) = (None, None);
    for (kind, value) in attributes(body.get(GENERIC_HEADER..)?) {
        match kind {
            NETDEV_A_DEV_IFINDEX => ifindex = u32_at(value, 0),
            NETDEV_A_DEV_XDP_FEATURES => xdp = u64_at(value, 0).map(XdpFeatures),
            _ => {}
        }
    }
    Some(Device { ifindex: ifindex?, xdp: xdp? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Attributes of these kinds and values, as the body of a message or of another attribute.
    fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut request = Request::new(0, 0, &[]);
        let header = Request::new(0, 0, &[]).finish().len();
        for (kind, value) in attributes {
            request.attribute(*kind, value);
        }
        request.finish().split_off(header)
    }

    fn body(command: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        [&generic(command)[..], &nested(attributes)].concat()
    }

    #[test]
    fn the_family_says_its_number_and_the_group_of_changes() {
        let group = |name: &[u8], id: u32| nested(&[(2, &id.to_ne_bytes()), (1, name)]);
        let groups = |names: [&[u8]; 2]| nested(&[(1, &group(names[0], 5)), (2, &group(names[1], 6))]);
        for (names, changes) in [
            ([&b"mgmt\0"[..], b"page-pool\0"], Some(5)),
            ([b"page-pool\0", b"mgmt\0"], Some(6)),
            ([b"page-pool\0", b"management\0"], None),
        ] {
            let answer =
                body(1, &[(2, b"netdev\0"), (1, &35_u16.to_ne_bytes()), (3, &[1, 0, 0, 0]), (7, &groups(names))]);
            assert_eq!(family(16, &answer), Some(Family { id: 35, changes }));
        }
        assert_eq!(family(16, &body(1, &[(2, b"netdev\0")])), None, "without a number");
    }

    #[test]
    fn a_device_says_its_features_whatever_else_it_says() {
        let said = |command| {
            let attributes: [(u16, &[u8]); 4] =
                [(1, &7_u32.to_ne_bytes()), (2, &[]), (3, &0x67_u64.to_ne_bytes()), (5, &[0; 8])];
            device(35, &body(command, &attributes))
        };
        let expected = Some(Device { ifindex: 7, xdp: XdpFeatures(0x67) });
        assert_eq!(said(1), expected, "asked for");
        assert_eq!(said(2), expected, "a new one");
        assert_eq!(said(3), None, "one that is gone");
        assert_eq!(said(4), expected, "a change");
        assert_eq!(device(35, &body(1, &[(1, &7_u32.to_ne_bytes())])), None, "nothing of XDP");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            command in 0_u8..6,
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            family(16, &bytes);
            device(35, &bytes);
            let body = [&generic(command)[..], &bytes].concat();
            family(16, &body);
            device(35, &body);
            family(16, &self::body(1, &[(7, &bytes)]));
        }
    }
}
