//! What the data path asks of a packet, at whichever hook it was caught.

use lb_common::{
    addr::{Addr, Family, Port, Protocol},
    device::Abilities,
    reason::Reason,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{parse::Parsed, wire::checksum::Sum};

/// A packet from its link-layer header on.
pub trait Packet {
    /// Whether a later hook sees what this one leaves alone, so that nothing is lost that cannot be sent here.
    const IS_EARLY: bool;

    /// Bytes of the whole packet, also of those not in reach of [`Packet::read`].
    fn length(&self) -> usize;

    /// Packets on the wire this stands for: more than one when a device or the stack merged segments.
    fn segments(&self) -> u64;

    /// Bytes of the largest packet on the wire that this stands for, from the IP header on.
    fn largest(&self, parsed: &Parsed) -> usize;

    /// Whether it can be rewritten here and be handed to a device with these abilities.
    fn can_be_handed(&self, parsed: &Parsed, device: Abilities) -> bool;

    /// Whether its link-layer address is the device's own: not another host's, of which a promiscuous device sees packets
    /// too, and no group's, which Linux does not forward.
    fn is_to_device(&self) -> bool;

    /// A header at `offset`, by value: a rewrite moves the packet under any reference.
    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T>;

    /// Changes addresses, ports, hop limit and the checksums that cover them.
    ///
    /// # Errors
    /// When the kernel refuses. The packet may be changed in part then and must not go on.
    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason>;

    /// Changes the link-layer addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_link(&mut self, link: &Link) -> Result<(), Reason>;
}

/// A packet that can be turned into an answer to its sender.
pub trait Answerable: Packet {
    /// The sum of so many bytes at `offset`, a multiple of four. A constant number, because the verifier would follow each
    /// length by itself.
    fn sum<const LENGTH: usize>(&self, offset: usize) -> Option<Sum>;

    /// Cuts the packet after `kept` bytes, counted from the IP header on, and puts `header` before them. They stay as they
    /// came, also a checksum in them that the sender left to its device, which no one finishes any more.
    ///
    /// # Errors
    /// When the kernel refuses. The packet may be changed in part then and must not go on.
    fn enclose<T: IntoBytes + Immutable>(&mut self, kept: usize, header: &T) -> Result<(), Reason>;
}

/// Which end of a packet is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from: a reply.
    Source,
    /// Where it goes: towards a backend.
    Destination,
}

/// A change of one end of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// The family of both addresses.
    pub family: Family,
    /// Which end.
    pub side: Side,
    /// The address there now.
    pub old_address: Addr,
    /// The address it gets.
    pub new_address: Addr,
    /// Whether a hop is counted, as when the packet is routed past the stack.
    pub is_hop: bool,
    /// Whether there is a transport header: not in a later fragment.
    pub has_transport: bool,
    /// The port of that end. Not an option, because the verifier would see the parts of one that is not there copied.
    pub transport: TransportEdit,
}

/// A change of one port.
#[derive(Clone, Copy, Debug)]
pub struct TransportEdit {
    /// Bytes before the transport header.
    pub offset: usize,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port there now.
    pub old_port: Port,
    /// The port it gets.
    pub new_port: Port,
}

/// Link-layer addresses in the order of the Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Link {
    /// The next hop's, as it lies in the packet.
    pub destination: [u16; 3],
    /// Our device's, as it lies in the packet.
    pub source: [u16; 3],
}
