//! Answers of backends that are larger than what fits on the way to the client: the backend is told, and sends less.
//! By each way, over both families, over TCP and UDP, and wherever checksums are finished: a wrong one in the error, and
//! the backend would not believe it.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use testbed::{
    curl,
    evenkeel::Evenkeel,
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Host, Lab, Layout, Offloads, Reach},
    nginx::{Nginx, large},
};

fn main() -> ExitCode {
    run_side_by_side(vec![
        on_root("backends behind a bridge learn what fits on the way to a client", || {
            by_each_way(Reach::Bridge, &["redirect-peer", "redirect-neigh", "stack"])
        }),
        on_root("backends on plain veths learn what fits on the way to a client", || {
            by_each_way(Reach::Veths, &["redirect-peer"])
        }),
        on_root("backends behind a nic learn what fits on the way to a client", || {
            by_each_way(Reach::Routed, &["redirect-neigh", "stack"])
        }),
    ])
}

/// What fits towards the client, on links that carry 1500 bytes else.
const FITS: u32 = 1400;

/// Fits on every link but that one.
const ANSWER: [u8; 1440] = [b'a'; 1440];

fn by_each_way(reach: Reach, ways: &[&str]) -> Result<()> {
    let mut lab = Lab::up(Layout { reach, backends: 1, ..Layout::default() })?;
    lab.narrow_client_side(FITS)?;
    let backend = lab.backends()[0].clone();
    let server = Nginx::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &configuration(&backend, ways[0]))?;
    let is_over = AtomicBool::new(false);
    let told = thread::scope(|scope| {
        let answering = [backend.v4, backend.v6].map(|own| {
            let (backend, is_over) = (&backend, &is_over);
            scope.spawn(move || backend.namespace.enter(|| answer_large((own, PORT).into(), is_over)))
        });
        let told = OFFLOADS.into_iter().try_for_each(|offloads| {
            lab.set_offloads(offloads)?;
            ways.iter().try_for_each(|way| {
                evenkeel.apply(&configuration(&backend, way))?;
                evenkeel.wait_for_way(way)?;
                learn_over_both_families(&lab, &evenkeel, way).with_context(|| format!("{way}, offloads {offloads:?}"))
            })
        });
        is_over.store(true, Ordering::SeqCst);
        let answered = answering.map(|thread| thread.join().expect("no server panics"));
        answered.into_iter().fold(told, Result::and)
    });
    told?;
    evenkeel.stop()?;
    server.into_iter().try_for_each(Nginx::stop)?;
    lab.down()
}

/// In an order in which receive offload, once off, is not needed again.
const OFFLOADS: [Offloads; 4] =
    [Offloads::Untouched, Offloads::FinishedByBalancer, Offloads::FinishedByHosts, Offloads::Off];

fn learn_over_both_families(lab: &Lab, evenkeel: &Evenkeel, way: &str) -> Result<()> {
    let client = lab.client();
    for (frontend, address) in [(FRONTENDS[0], client.v4), (FRONTENDS[1], client.v6)] {
        for (protocol, ask) in [("tcp", download as fn(&Lab, SocketAddr) -> Result<()>), ("udp", ask_twice)] {
            let learned = || -> Result<()> {
                forget_what_fits(lab)?;
                ensure!(what_fits(lab, address)?.is_none(), "something is known about what fits already");
                let before = too_big(evenkeel)?;
                ask(lab, (frontend, PORT).into())?;
                ensure!(what_fits(lab, address)? == Some(FITS), "{:?} fits", what_fits(lab, address)?);
                let counted = too_big(evenkeel)? - before;
                // What goes through the stack is for the stack to refuse.
                ensure!((counted > 0) == (way != "stack"), "{counted} packets were too big");
                Ok(())
            };
            learned().with_context(|| format!("{protocol} of {frontend}"))?;
        }
    }
    Ok(())
}

fn download(lab: &Lab, server: SocketAddr) -> Result<()> {
    let body = curl::get(&lab.client().namespace, &curl::url(server, "/large"))?;
    ensure!(body == large(), "other bytes came down");
    Ok(())
}

/// The first answer is lost, and what is too big in one packet comes in several the second time.
fn ask_twice(lab: &Lab, server: SocketAddr) -> Result<()> {
    lab.client().namespace.enter(|| {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut answer = [0; 2048];
        socket.send(b"first")?;
        let first = socket.recv(&mut answer);
        ensure!(first.is_err_and(|error| is_late(&error)), "what does not fit was answered with");
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"second")?;
        let length = socket.recv(&mut answer).context("the second answer")?;
        ensure!(answer[..length] == ANSWER, "another answer of {length} bytes");
        Ok(())
    })
}

/// Answers every datagram until it is over.
fn answer_large(own: SocketAddr, is_over: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind(own)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut query = [0; 64];
    while !is_over.load(Ordering::SeqCst) {
        match socket.recv_from(&mut query) {
            // The error about an earlier answer may be told to this one; who asked will ask again.
            Ok((_, client)) => drop(socket.send_to(&ANSWER, client)),
            Err(error) if is_late(&error) || error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).with_context(|| format!("{own}")),
        }
    }
    Ok(())
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What the backend has learned to fit on the way to this address.
fn what_fits(lab: &Lab, client: IpAddr) -> Result<Option<u32>> {
    let route = lab.backends()[0].namespace.sh(&format!("ip route get {client}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// What is learned is kept at the route.
fn forget_what_fits(lab: &Lab) -> Result<()> {
    let backend = &lab.backends()[0].namespace;
    for family in ["-4", "-6"] {
        let route = backend.sh(&format!("ip {family} route show default"))?;
        backend.sh(&format!("ip {family} route del {route}"))?;
        backend.sh(&format!("ip {family} route add {route}"))?;
    }
    Ok(())
}

/// How many packets were counted as too big until now.
fn too_big(evenkeel: &Evenkeel) -> Result<u64> {
    let status = evenkeel.status()?;
    let counted = status["not_balanced"].as_array().context("a status")?;
    let packets = |one: &serde_json::Value| one["packets"].as_u64().context("a count");
    counted.iter().find(|one| one["reason"] == "too_big").map_or(Ok(0), packets)
}

/// Of frontends and backends.
const PORT: u16 = 80;

fn configuration(backend: &Host, way: &str) -> String {
    let (v4, v6) = (backend.v4, backend.v6);
    format!(
        "way = \"{way}\"\n[[service]]\nname = \"web\"\nselector = \"rr\"\nbackends = [\"{v4}:{PORT}\", \"[{v6}]:{PORT}\"]\n\
         listen = [{{ interface = \"eth3\", port = {PORT}, protocols = [\"tcp\", \"udp\"] }}]\n"
    )
}
