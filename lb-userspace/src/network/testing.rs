//! A network to test with: clients on `eth3`, containers behind `br0` and behind veths of their own, a tunnel.

use std::net::IpAddr;

use lb_common::addr::Family;

use super::{Link, Mac, Neighbour, Peer, Route, View, XdpFeatures};

pub(crate) const ETH3: u32 = 3;
pub(crate) const BR0: u32 = 4;
pub(crate) const V1: u32 = 11;
pub(crate) const V2: u32 = 12;
pub(crate) const V3: u32 = 13;
pub(crate) const POD: u32 = 20;
pub(crate) const WG0: u32 = 21;

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("a valid address")
}

/// The link-layer address that ends in this number.
pub(crate) fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Makes `address` a resolved neighbour.
pub(crate) fn meet(view: &mut View, device: u32, address: &str, mac: Mac) {
    view.neighbours.insert((device, ip(address)), Neighbour { mac, is_permanent: false });
}

/// 10.0.0.2 and .3 are containers behind `v1` and `v2`, .4 is one that does not run behind `v3`; 10.1.0.1 is behind the
/// veth `pod`, 10.9.0.1 behind the tunnel `wg0`, 172.16.0.1 behind a router on `br0`; 192.0.2.9 is another host on
/// `eth3`, 198.51.100.1 an address on `lo`.
pub(crate) fn lab() -> View {
    // As kernels say: a veth takes what is redirected to it only while its other end has GRO on.
    let features = |kind: &str| match kind {
        "" => 0x67,
        "veth" => 0x23,
        _ => 0,
    };
    let link = |name: &str, kind: &str| Link {
        name: name.into(),
        kind: kind.into(),
        link_layer: 1,
        mtu: 1500,
        is_running: true,
        xdp: Some(XdpFeatures(features(kind))),
        ..Link::default()
    };
    let port = |name: &str, peer| Link { master: Some(BR0), peer: Some(peer), ..link(name, "veth") };
    let through = |device| Route::Through { device, gateway: None };
    let mut view = View {
        links: [
            (1, Link { link_layer: 772, xdp: Some(XdpFeatures(0)), ..link("lo", "") }),
            (ETH3, link("eth3", "")),
            (BR0, link("br0", "bridge")),
            (V1, port("v1", Peer::Station(mac(1)))),
            (V2, port("v2", Peer::Station(mac(2)))),
            (V3, port("v3", Peer::Station(mac(3)))),
            (POD, Link { peer: Some(Peer::Station(mac(9))), ..link("pod", "veth") }),
            (WG0, Link { link_layer: 0xfffe, ..link("wg0", "wireguard") }),
        ]
        .into(),
        addresses: [
            (1, [ip("198.51.100.1")].into()),
            (ETH3, [ip("192.0.2.53"), ip("192.0.2.54"), ip("2001:db8::53")].into()),
            (BR0, [ip("10.0.0.1")].into()),
        ]
        .into(),
        routes: [
            (ip("10.0.0.2"), through(BR0)),
            (ip("10.0.0.3"), through(BR0)),
            (ip("10.0.0.4"), through(BR0)),
            (ip("172.16.0.1"), Route::Through { device: BR0, gateway: Some(ip("10.0.0.9")) }),
            (ip("10.1.0.1"), through(POD)),
            (ip("10.9.0.1"), through(WG0)),
            (ip("192.0.2.9"), through(ETH3)),
            (ip("198.51.100.1"), Route::Local),
            (ip("203.0.113.1"), Route::None),
        ]
        .into(),
        forwards: Family::ALL.into(),
        ..View::default()
    };
    meet(&mut view, BR0, "10.0.0.2", mac(1));
    meet(&mut view, BR0, "10.0.0.3", mac(2));
    view.forwarding.insert((BR0, mac(1)), [V1].into());
    view
}
