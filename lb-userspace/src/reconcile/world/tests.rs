//! The order of things, on a data path in memory that writes down what is done to it.

use std::{cell::RefCell, fs};

use lb_common::{addr::Protocol, backend::Way, device::Device};

use super::*;
use crate::{
    dataplane::{
        Counters,
        attach::{AttachError, Mode},
        bpf::Program,
        memory::Memory,
    },
    model::{At, Choice, Listen, Schedule, Service, Target as Backend, draft::Host},
    network::testing::{BR0, ETH3, V1, V3, ip, lab, mac, meet},
    reconcile::Asker,
    settings::{HookSetting, WaySetting},
    source::file,
};

/// A data path in memory, and what was done to it in order.
struct Recorder {
    memory: Memory,
    log: RefCell<Vec<String>>,
    /// Interfaces that refuse programs.
    refusing: BTreeSet<u32>,
    /// Those that refuse programs where packets leave.
    refusing_egress: BTreeSet<u32>,
    /// Those that refuse programs of XDP.
    refusing_xdp: BTreeSet<u32>,
    /// Counters cannot be read.
    is_uncounted: bool,
    /// The devices for XDP, each time that it was told of the network.
    told: Vec<BTreeSet<u32>>,
}

impl Dataplane for Recorder {
    fn read(&self) -> Result<Tables, DataplaneError> {
        self.memory.read()
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), DataplaneError> {
        if !changes.is_empty() {
            let is_wait = changes.first() == Some(&Change::Grace);
            self.log.borrow_mut().push(if is_wait { "wait".into() } else { "maps".into() });
        }
        self.memory.apply(changes)
    }

    fn counters(&self) -> Result<Counters, DataplaneError> {
        if self.is_uncounted {
            return Err(DataplaneError::Unreadable { map: "TRAFFIC", what: "nothing".into() });
        }
        self.memory.counters()
    }

    fn sweep(&mut self) -> Result<Named, DataplaneError> {
        self.memory.sweep()
    }

    fn follow_network(&mut self, devices: &BTreeMap<u32, Device>) {
        self.told.push(devices.values().map(|device| device.ifindex).collect());
    }
}

fn attach(recorder: &Recorder, wanted: &BTreeMap<u32, Hooks>) -> Result<Vec<HookReport>, PinsError> {
    let role = |hooks: &Hooks| hooks.ingress.map_or("none", Role::name).replace("clients and backends", "both");
    let xdp = |hooks: &Hooks| hooks.xdp.map_or_else(String::new, |mode| format!("+{}", mode.name()));
    let egress = |hooks: &Hooks| if hooks.egress { "+egress" } else { "" };
    let one = |hooks: &Hooks| format!("{}={}{}{}", hooks.name, role(hooks), egress(hooks), xdp(hooks));
    recorder.log.borrow_mut().push(wanted.values().map(one).collect::<Vec<_>>().join(" "));
    let report = |ifindex: u32, hooks: &Hooks, point, program, refusing: &BTreeSet<u32>| HookReport {
        ifindex,
        name: hooks.name.clone(),
        point,
        mode: Mode::Tcx,
        program: Some(program),
        outcome: match refusing.contains(&ifindex) {
            true => Err(AttachError::Gone { ifindex, name: hooks.name.clone() }),
            false => Ok(Outcome::Attached),
        },
        foreign: Vec::new(),
    };
    let reports = |(ifindex, hooks): (&u32, &Hooks)| {
        let ingress = report(*ifindex, hooks, Point::Ingress, Program::IngressBoth, &recorder.refusing);
        let egress = || report(*ifindex, hooks, Point::Egress, Program::EgressClients, &recorder.refusing_egress);
        let xdp = |mode| {
            let early = report(*ifindex, hooks, Point::Xdp, Program::XdpBoth, &recorder.refusing_xdp);
            HookReport { mode: Mode::Xdp(mode), ..early }
        };
        [Some(ingress), hooks.egress.then(egress), hooks.xdp.filter(|_| hooks.ingress.is_some()).map(xdp)]
            .into_iter()
            .flatten()
    };
    Ok(wanted.iter().flat_map(reports).collect())
}

fn world(memory: Memory, refusing: &[u32]) -> (World<Recorder>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = Recorder {
        memory,
        log: RefCell::default(),
        refusing: refusing.iter().copied().collect(),
        refusing_egress: BTreeSet::new(),
        refusing_xdp: BTreeSet::new(),
        is_uncounted: false,
        told: Vec::new(),
    };
    let state = State { pid: 7, config: "evenkeel.toml".into(), ..State::default() };
    let world = World::new(recorder, attach, Capacity::default(), state, folder.path().to_owned());
    (world.expect("memory can be read"), folder)
}

fn empty() -> Memory {
    Memory::new(Capacity::default())
}

fn loaded(backends: &[&str]) -> Loaded {
    let backend = |text: &&str| Backend { address: ip(text), port: None };
    let desired = Desired {
        services: vec![Service {
            name: "dns".into(),
            listens: vec![Listen { at: At::Address(ip("192.0.2.53")), port: 53, protocols: [Protocol::UDP].into() }],
            schedule: Schedule::PerFlow,
            choice: Choice::RoundRobin(backends.iter().map(backend).collect()),
        }],
    };
    Loaded { desired, settings: Settings::default(), warnings: Vec::new(), places: Places::default() }
}

/// The configuration of a file.
fn read(text: &str) -> Loaded {
    file::parse("evenkeel.toml", text, &Host { cpus: 2, interfaces: None }).expect("nothing is wrong with it")
}

/// What was done since this was last asked.
fn done(world: &World<Recorder>) -> Vec<String> {
    world.dataplane.log.take()
}

fn ways(world: &World<Recorder>) -> Vec<(String, Way)> {
    world.tables.backends.values().map(|record| (record.key.to_string(), record.way)).collect()
}

const REPLIES: &str = "br0=backends v1=backends v2=backends v3=backends";
const ALL: &str = "eth3=clients br0=backends v1=backends v2=backends v3=backends";

#[test]
fn replies_are_taken_then_maps_written_then_clients_let_in() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    assert_eq!(done(&world), [REPLIES, "maps", "wait", ALL]);
    assert_eq!(ways(&world), [("10.0.0.2:53/udp".to_owned(), Way::Peer { ifindex: V1 })]);
    assert_eq!(world.dataplane.read().expect("read"), world.tables);
}

#[test]
fn nothing_is_done_when_nothing_has_changed() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    done(&world);
    world.follow(&lab());
    assert_eq!(done(&world), [""; 0]);
}

#[test]
fn a_restarted_container_is_followed_without_touching_its_service() {
    let mut view = lab();
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2", "10.0.0.3"]), &view).expect("a good start");
    let before = world.tables.clone();
    done(&world);
    view.links.remove(&V1);
    view.forwarding.clear();
    world.follow(&view);
    assert_eq!(ways(&world)[0].1, Way::Neighbour { ifindex: BR0 });
    meet(&mut view, BR0, "10.0.0.2", mac(3));
    world.follow(&view);
    assert_eq!(ways(&world)[0].1, Way::Peer { ifindex: V3 });
    assert_eq!(world.tables.services, before.services, "no new policy for a new way");
    assert!(done(&world).iter().any(|step| step == "maps"));
}

#[test]
fn a_reload_that_asks_for_what_cannot_be_changes_nothing() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let before = world.tables.clone();
    done(&world);
    let elsewhere = read(
        "[[service]]\nname = \"dns\"\nlisten = [\n  { address = \"203.0.113.9\", port = 53, protocols = [\"udp\"] },\n]\n\
         backends = [\"10.0.0.3\"]\n",
    );
    let error = world.reload(elsewhere, &lab()).expect_err("no such address");
    world.refuse(&error);
    assert_eq!((done(&world), &world.tables), (Vec::new(), &before));
    let refusal = world.state.last_refusal.clone().expect("the refusal is shown");
    assert_eq!(refusal.messages, [error.to_string()]);
    assert!(refusal.messages[0].starts_with("evenkeel.toml:4:3: service dns: no interface"), "{error}");

    world.reload(loaded(&["10.0.0.3"]), &lab()).expect("a good configuration");
    assert_eq!(world.state.last_refusal, None);
}

#[test]
fn limits_cannot_change_while_running() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let larger = read(
        "[limits]\nflows = 1_048_576\n[[service]]\nname = \"dns\"\nbackends = [\"10.0.0.2\"]\n\
         listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }]",
    );
    let error = world.reload(larger, &lab()).expect_err("other limits");
    assert_eq!(
        error.to_string(),
        "evenkeel.toml:2:9: [limits] are not those in force, and maps cannot grow while flows are in them; take the change \
         back, or stop the controller, remove the maps with `evenkeel detach` and start again (flows are lost)"
    );
}

#[test]
fn a_fault_that_only_the_network_tells_is_told_with_its_place() {
    let (mut world, _folder) = world(empty(), &[]);
    let text = "way = \"redirect-peer\"\n[[service]]\nname = \"a\"\n\
                listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }]\nbackends = [\"10.0.0.2\"]\n\
                [[service]]\nname = \"b\"\nlisten = [{ interface = \"eth3\", port = 53, protocols = [\"udp\"] }]\n\
                backends = [\n  \"10.0.0.2\",\n  \"10.0.0.4\",\n  \"192.0.2.54\",\n]\n";
    let error = world.begin(read(text), &lab()).expect_err("all of it is wrong");
    let said = error.to_string();
    for expected in [
        "evenkeel.toml:8:11: service b: frontend 192.0.2.53:53/udp is claimed by service a as well; let one of them \
         have it",
        "evenkeel.toml:12:3: service b: backend 192.0.2.54:53/udp is the frontend itself; remove it, or give it \
         another port",
        "evenkeel.toml:11:3: service b: backend 10.0.0.4: way redirect-peer cannot be: its link-layer address on br0 is \
         not known yet; use `way = \"auto\"`",
    ] {
        assert!(said.lines().any(|line| line == expected), "{said}\nnot: {expected}");
    }
}

#[test]
fn a_removed_backend_is_freed_once_no_flow_names_it() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2", "10.0.0.3"]), &lab()).expect("a good start");
    let removed = *world.tables.backends.keys().next().expect("two backends");
    world.reload(loaded(&["10.0.0.3"]), &lab()).expect("a good configuration");
    world.dataplane.memory.set_named(Named { backends: [removed].into(), ..Named::default() });
    world.sweep();
    assert!(world.tables.backends.contains_key(&removed));
    assert_eq!(world.state.last_sweep.map(|sweep| sweep.waiting_backends), Some(1));
    world.dataplane.memory.set_named(Named::default());
    world.sweep();
    assert!(!world.tables.backends.contains_key(&removed));
    assert_eq!(world.dataplane.read().expect("read"), world.tables);
}

#[test]
fn a_fault_half_way_is_gone_on_from_with_the_next_event() {
    let (mut world, _folder) = world(empty().failing_after(3), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect_err("the data path is at fault");
    assert_eq!(world.dataplane.read().expect("read"), world.tables, "what is there is known");
    world.dataplane.memory = Memory::with_tables(Capacity::default(), world.tables.clone());
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    assert_eq!(world.tables.frontends.len(), 1);
}

#[test]
fn a_reload_after_a_fault_is_not_taken_for_done() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    world.dataplane.memory = world.dataplane.memory.clone().failing_after(0);
    world.reload(loaded(&["10.0.0.2", "10.0.0.3"]), &lab()).expect_err("the data path is at fault");
    world.dataplane.memory = Memory::with_tables(Capacity::default(), world.tables.clone());
    world.reload(loaded(&["10.0.0.2", "10.0.0.3"]), &lab()).expect("a good configuration");
    assert_eq!(world.tables.backends.len(), 2);
}

#[test]
fn what_was_running_is_brought_back_after_a_reload_that_failed_half_way() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let policies = |world: &World<Recorder>| world.tables.policies.len();
    let before = (policies(&world), world.tables.backends.clone());
    world.dataplane.memory = world.dataplane.memory.clone().failing_after(2);
    world.reload(loaded(&["10.0.0.2", "10.0.0.3"]), &lab()).expect_err("the data path is at fault");
    world.dataplane.memory = Memory::with_tables(Capacity::default(), world.tables.clone());
    world.follow(&lab());
    world.sweep();
    assert_eq!((policies(&world), world.tables.backends.clone()), before);
    done(&world);
    world.follow(&lab());
    assert_eq!(done(&world), [""; 0], "and that is all");
}

#[test]
fn what_is_odd_about_a_configuration_is_shown_as_long_as_it_is_in_force() {
    let (mut world, _folder) = world(empty(), &[]);
    let complaint =
        file::Complaint { file: "evenkeel.toml".into(), line: 1, column: 2, service: None, message: "odd".into() };
    let odd = Loaded { warnings: vec![complaint], ..loaded(&["10.0.0.2"]) };
    world.begin(odd, &lab()).expect("a good start");
    let mut view = lab();
    meet(&mut view, BR0, "10.0.0.2", mac(3));
    world.follow(&view);
    assert_eq!(world.state.warnings, ["evenkeel.toml:1:2: odd"]);
    world.reload(loaded(&["10.0.0.2"]), &view).expect("a good configuration");
    assert_eq!(world.state.warnings, [""; 0]);
}

#[test]
fn a_port_that_cannot_be_hooked_is_not_used() {
    let (mut world, _folder) = world(empty(), &[V1]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    assert_eq!(ways(&world)[0].1, Way::Stack);
    assert_eq!(world.state.ways[0].why, "replies cannot be taken: interface v1 (11) is gone");
    world.dataplane.refusing.clear();
    world.follow(&lab());
    assert_eq!(ways(&world)[0].1, Way::Peer { ifindex: V1 }, "tried again");
}

#[test]
fn no_client_is_let_in_where_the_stacks_replies_cannot_be_taken() {
    let (mut world, _folder) = world(empty(), &[]);
    world.dataplane.refusing_egress.insert(ETH3);
    world.begin(loaded(&["10.9.0.1"]), &lab()).expect("a good start");
    assert_eq!(done(&world), ["eth3=none+egress", "maps", "wait"]);
    let warning = "no client is let in at eth3: what the stack answers them there cannot be rewritten: interface eth3 \
                   (3) is gone";
    assert_eq!(world.state.warnings, [warning]);
    assert_eq!(world.state.hooks[0].why, "interface eth3 (3) is gone");
    world.follow(&lab());
    assert_eq!(done(&world), ["eth3=none+egress"; 2], "tried again");

    world.dataplane.refusing_egress.clear();
    world.follow(&lab());
    assert_eq!(done(&world), ["eth3=none+egress", "eth3=clients+egress"]);
    assert_eq!(world.state.warnings, [""; 0]);
    world.follow(&lab());
    assert_eq!(done(&world), [""; 0], "and that is all");
}

#[test]
fn clients_are_shut_out_when_the_stacks_replies_can_no_longer_be_taken() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.9.0.1"]), &lab()).expect("a good start");
    world.dataplane.refusing_egress.insert(ETH3);
    done(&world);
    world.look_after_hooks(&lab());
    world.follow(&lab());
    assert_eq!(done(&world), ["eth3=clients+egress", "eth3=clients+egress", "eth3=none+egress"]);
}

#[test]
fn a_start_is_refused_where_the_kernel_refuses_an_xdp_that_was_asked_for() {
    let generic = || {
        let mut loaded = loaded(&["10.0.0.2"]);
        loaded.settings.hook = HookSetting::XdpGeneric;
        loaded
    };
    let (mut new, _folder) = world(empty(), &[]);
    new.dataplane.refusing_xdp.insert(ETH3);
    let error = new.begin(generic(), &lab()).expect_err("the kernel refuses");
    let said =
        "hook xdp-generic cannot be at eth3: interface eth3 (3) is gone; use `hook = \"auto\"` and `way = \"auto\"`";
    assert_eq!(error.to_string(), said);

    let (mut adopted, _folder) = world(new.dataplane.memory.clone(), &[]);
    adopted.dataplane.refusing_xdp.insert(ETH3);
    adopted.remember(&State::default(), &lab(), &[]);
    adopted.begin(generic(), &lab()).expect("clients count on it");
    let hook = adopted.state.hooks.iter().find(|hook| hook.interface == "eth3").expect("it is hooked");
    assert_eq!((hook.xdp.as_deref(), hook.why.as_str()), (None, "interface eth3 (3) is gone"));
}

#[test]
fn an_interface_that_is_gone_is_shown_no_longer() {
    let mut view = lab();
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &view).expect("a good start");
    done(&world);
    view.links.remove(&V3);
    world.follow(&view);
    let without = "eth3=clients br0=backends v1=backends v2=backends";
    assert_eq!(done(&world), [without, without], "its pins are dropped");
    let shown: Vec<&str> = world.state.hooks.iter().map(|hook| hook.interface.as_str()).collect();
    assert_eq!(shown, ["eth3", "br0", "v1", "v2"]);
    world.follow(&view);
    assert_eq!(done(&world), [""; 0], "and that is all");
}

#[test]
fn hooks_are_looked_after_though_nothing_has_changed() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    done(&world);
    let hooks = world.state.hooks.clone();
    assert_ne!(hooks.iter().find(|hook| hook.ifindex == ETH3).expect("eth3 is hooked").xdp_why, "");
    world.look_after_hooks(&lab());
    assert_eq!(done(&world), [ALL]);
    assert_eq!(world.state.hooks, hooks, "why XDP is not there is still told");
    world.dataplane.refusing.insert(V1);
    world.look_after_hooks(&lab());
    world.follow(&lab());
    assert_eq!(ways(&world)[0].1, Way::Stack, "its replies are not taken any more");
    done(&world);
    world.look_after_hooks(&lab());
    assert_eq!(done(&world), [""; 0], "what failed is tried with the next look at the network");
}

#[test]
fn counters_that_cannot_be_read_do_not_refuse_what_is_applied() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    world.dataplane.is_uncounted = true;
    world.reload(loaded(&["10.0.0.2", "10.0.0.3"]), &lab()).expect("it is applied");
    assert_eq!(world.tables.backends.len(), 2);
    assert_eq!(world.dataplane.read().expect("read"), world.tables);
    assert_eq!(world.state.last_change.as_ref().map(|change| change.cause.as_str()), Some("configuration"));
}

#[test]
fn a_refusal_is_as_old_as_what_it_says() {
    let (mut world, _folder) = world(empty(), &[]);
    let refused = |why: &str| RunError::Refused(vec![why.to_owned()]);
    let first = Some(LastRefusal { at: Moment(5), messages: vec!["no eth4".into()] });
    world.state.last_refusal.clone_from(&first);
    world.refuse_again(&refused("no eth4"));
    assert_eq!(world.state.last_refusal, first);
    world.refuse_again(&refused("no address"));
    let last = world.state.last_refusal.expect("it is refused");
    assert!(last.at > Moment(5) && last.messages == ["no address"], "{last:?}");
}

#[test]
fn the_state_is_written_when_it_has_changed() {
    let (mut world, folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let file = folder.path().join("state.json");
    fs::remove_file(&file).expect("it was written");
    world.write_state();
    assert!(!file.exists(), "it is as it was");
    world.state.altered = vec!["FLOWS".into()];
    world.write_state();
    // Not the whole state: its milliseconds are fractions, which JSON rounds.
    let read = State::read(folder.path()).expect("read").expect("written");
    assert_eq!((read.altered, read.services), (world.state.altered.clone(), world.state.services.clone()));
}

#[test]
fn a_fault_of_the_named_interfaces_is_told_with_its_place() {
    let (mut world, _folder) = world(empty(), &[]);
    let text = "interfaces = [\"eth3\", \"wg0\"]\n[[service]]\nname = \"a\"\n\
                listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\"] }]\nbackends = [\"10.0.0.2\"]\n";
    let error = world.begin(read(text), &lab()).expect_err("nothing comes in by wg0");
    assert_eq!(
        error.to_string(),
        "evenkeel.toml:1:23: clients cannot be balanced at wg0: it has no link-layer addresses; name those that they \
         come in by instead"
    );
}

#[test]
fn a_restart_takes_no_program_away_from_clients() {
    let (mut first, folder) = world(empty(), &[]);
    first.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let known = State::read(folder.path()).expect("read").expect("written");
    for (known, held) in [(known, held(&first)), (State::default(), Vec::new())] {
        let steps = [ALL, ALL];
        let (mut second, _folder) = world(first.dataplane.memory.clone(), &[]);
        second.remember(&known, &lab(), &held);
        second.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
        assert_eq!(done(&second), steps);
        assert_eq!(second.tables, first.tables);
        assert_eq!(second.services, first.services);
    }
}

/// What the kernel would hold of the hooks of this world.
fn held(world: &World<Recorder>) -> Vec<(Place, Held)> {
    let places = |(ifindex, hooks): (&u32, &Hooks)| {
        let ingress = hooks.ingress.map(|_| Point::Ingress);
        let egress = hooks.egress.then_some(Point::Egress);
        let place = |point| (Place { ifindex: *ifindex, point }, Held::Link);
        let xdp = hooks.xdp.map(|_| Point::Xdp);
        ingress.into_iter().chain(egress).chain(xdp).map(place).collect::<Vec<_>>()
    };
    world.hooks.iter().flat_map(places).collect()
}

#[test]
fn an_interface_renamed_between_two_controllers_keeps_its_clients() {
    let (mut first, folder) = world(empty(), &[]);
    first.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let known = State::read(folder.path()).expect("read").expect("written");
    let mut view = lab();
    view.links.get_mut(&ETH3).expect("the lab has eth3").name = "lan0".into();
    let renamed = ALL.replace("eth3", "lan0");
    let (mut second, _folder) = world(first.dataplane.memory.clone(), &[]);
    second.remember(&known, &view, &held(&first));
    second.begin(loaded(&["10.0.0.2"]), &view).expect("a good start");
    assert_eq!(done(&second), [renamed.as_str(), &renamed]);

    let (mut unknowing, _folder) = world(first.dataplane.memory.clone(), &[]);
    unknowing.remember(&State::default(), &view, &held(&first));
    unknowing.begin(loaded(&["10.0.0.2"]), &view).expect("a good start");
    assert_eq!(done(&unknowing), ["lan0=both br0=both v1=both v2=both v3=both", &renamed]);
}

/// Removes what no flow names, as the loop does.
fn sweep(world: &mut World<Recorder>, named: Named) {
    world.dataplane.memory.set_named(named);
    world.sweep();
    world.follow(&lab());
}

fn named_backends(world: &World<Recorder>) -> Named {
    Named { backends: world.tables.backends.keys().copied().collect(), ..Named::default() }
}

#[test]
fn replies_of_a_removed_backend_are_taken_until_it_is_cleared() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let flows = named_backends(&world);
    done(&world);
    world.reload(loaded(&["192.0.2.9"]), &lab()).expect("a good configuration");
    const BOTH: &str = "eth3=both br0=backends v1=backends v2=backends v3=backends";
    let said = done(&world);
    assert_eq!(said.first().map(String::as_str), Some(BOTH));
    // The new one is behind a NIC, on which XDP comes last.
    assert_eq!(said[said.len() - 2..], ["wait".to_owned(), BOTH.replace("eth3=both", "eth3=both+xdp")]);
    assert_eq!(ways(&world)[0], ("10.0.0.2:53/udp".to_owned(), Way::Peer { ifindex: V1 }));
    sweep(&mut world, flows);
    assert_eq!(done(&world), [""; 0], "flows name it still");
    sweep(&mut world, Named::default());
    let said = done(&world);
    assert_eq!(said.last().map(String::as_str), Some("eth3=both+xdp"), "{said:?}");
}

#[test]
fn replies_of_the_last_service_are_taken_until_its_backends_are_cleared() {
    let none = || Loaded { desired: Desired::default(), ..loaded(&[]) };
    for (backend, before, removed) in
        [("10.0.0.2", ALL, REPLIES), ("10.9.0.1", "eth3=clients+egress", "eth3=none+egress")]
    {
        let (mut world, _folder) = world(empty(), &[]);
        world.begin(loaded(&[backend]), &lab()).expect("a good start");
        let flows = named_backends(&world);
        assert_eq!(done(&world).last().map(String::as_str), Some(before));
        world.reload(none(), &lab()).expect("a good configuration");
        assert_eq!(done(&world).last().map(String::as_str), Some(removed));
        sweep(&mut world, flows);
        assert_eq!(done(&world).iter().filter(|step| step.contains('=')).count(), 0, "flows name it still");
        sweep(&mut world, Named::default());
        assert_eq!(done(&world).last().map(String::as_str), Some(""), "none is left");
        assert!(world.hooks.is_empty());
    }
}

#[test]
fn replies_through_the_stack_are_taken_until_the_backend_behind_it_is_cleared() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2", "10.9.0.1"]), &lab()).expect("a good start");
    let eth3 = |world: &World<Recorder>| world.hooks[&ETH3].egress;
    let flows = named_backends(&world);
    assert!(eth3(&world));
    world.reload(loaded(&["10.0.0.2"]), &lab()).expect("a good configuration");
    assert!(eth3(&world));
    sweep(&mut world, flows);
    assert!(eth3(&world));
    sweep(&mut world, Named::default());
    assert!(!eth3(&world));
}

#[test]
fn the_state_tells_names_ways_and_hooks() {
    let (mut world, folder) = world(empty(), &[]);
    world.begin(loaded(&["10.0.0.2"]), &lab()).expect("a good start");
    let state = State::read(folder.path()).expect("read").expect("written");
    let service = &state.services[0];
    assert_eq!((service.key.name.as_str(), service.selector.as_str()), ("dns", "rr"));
    assert_eq!((state.ways[0].interface.as_deref(), state.ways[0].why.as_str()), (Some("v1"), "port v1 of bridge br0"));
    let eth3 = state.hooks.iter().find(|hook| hook.ifindex == ETH3).expect("eth3 is hooked");
    assert_eq!((eth3.ingress.as_deref(), eth3.mode.as_str()), (Some("clients"), "tcx"));
    assert_eq!(state.last_change.map(|change| change.cause), Some("start".to_owned()));
}

#[test]
fn what_nobody_speaks_for_is_doubted_once_until_the_links_change() {
    let mut view = lab();
    meet(&mut view, BR0, "10.0.0.4", mac(77));
    let backends = [ip("10.0.0.4")].into();
    let mut asker = Asker::default();
    assert_eq!(asker.questions(&view, &view, &backends).len(), 1);
    assert_eq!(asker.questions(&view, &view, &backends), [], "the same answer again is believed");
    assert_eq!(asker.questions(&view, &View::default(), &backends).len(), 1, "whoever it was may be gone");
    meet(&mut view, BR0, "10.0.0.4", mac(78));
    assert_eq!(asker.questions(&view, &view, &backends).len(), 1, "another answer");
}

#[test]
fn what_someone_else_writes_into_the_maps_is_told_and_left_alone() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["10.100.13.2"]), &lab()).expect("the configuration is sound");
    world.audit();
    assert_eq!(world.state.altered, Vec::<String>::new());

    let id = *world.tables.backends.keys().next().expect("there is a backend");
    world.dataplane.memory.apply(&[Change::SetBackendState(id, BackendState::Dead)]).expect("memory takes it");
    let altered = world.dataplane.read().expect("memory can be read");
    world.audit();
    assert_eq!(world.state.altered, ["BACKENDS"]);
    assert_eq!(world.dataplane.read().expect("memory can be read"), altered, "nothing was repaired in silence");

    world.dataplane.memory.apply(&[Change::SetBackendState(id, BackendState::Use)]).expect("memory takes it");
    world.audit();
    assert_eq!(world.state.altered, Vec::<String>::new());
}

/// With eth3's link-layer address, by which XDP knows what is meant for it.
fn addressed() -> View {
    let mut view = lab();
    view.links.get_mut(&ETH3).expect("the lab has eth3").mac = Some(mac(33));
    view
}

/// With these settings of XDP.
fn asked(backends: &[&str], hook: HookSetting, way: WaySetting) -> Loaded {
    Loaded { settings: Settings { hook, way, ..Settings::default() }, ..loaded(backends) }
}

#[test]
fn the_packet_path_is_told_of_the_network_when_it_changes_and_not_otherwise() {
    let (mut world, _folder) = world(empty(), &[]);
    let mut view = addressed();
    world.begin(loaded(&["192.0.2.9"]), &view).expect("a good start");
    assert_eq!(world.dataplane.told, [BTreeSet::from([ETH3])]);
    world.follow(&view);
    world.follow(&view);
    assert_eq!(world.dataplane.told.len(), 1, "nothing has changed");
    done(&world);

    // Nothing that is decided hangs on it, but a next hop that is kept may.
    view.routes.insert(ip("203.0.113.7"), crate::network::Route::Local);
    world.follow(&view);
    assert_eq!((world.dataplane.told.len(), done(&world)), (2, Vec::new()));
    world.follow(&view);
    assert_eq!(world.dataplane.told.len(), 2);

    view.links.get_mut(&ETH3).expect("the lab has eth3").mac = None;
    world.follow(&view);
    assert_eq!(world.dataplane.told.last(), Some(&BTreeSet::new()), "without an address it is nobody's");
}

#[test]
fn xdp_is_put_last_where_it_has_something_to_send() {
    let (mut world, _folder) = world(empty(), &[]);
    world.begin(loaded(&["192.0.2.9"]), &addressed()).expect("a good start");
    assert_eq!(done(&world), ["eth3=backends", "maps", "wait", "eth3=both+xdp"]);
    world.reload(asked(&["192.0.2.9"], HookSetting::Tc, WaySetting::Auto), &addressed()).expect("a good configuration");
    assert_eq!(done(&world), ["eth3=both"], "and taken away when it is not wanted");
}

#[test]
fn xdp_that_was_asked_for_and_cannot_be_is_refused() {
    let (mut world, _folder) = world(empty(), &[]);
    let mut view = addressed();
    view.links.get_mut(&ETH3).expect("the lab has eth3").has_xdp = true;
    let forced = || asked(&["192.0.2.9"], HookSetting::Xdp, WaySetting::Auto);
    let error = world.begin(forced(), &view).expect_err("someone else is there");
    let said = error.to_string();
    assert!(said.contains("hook xdp cannot be at eth3: an XDP program of someone else is there"), "{said}");
    assert_eq!(done(&world), [""; 0]);
    world.begin(forced(), &addressed()).expect("they have gone");
    assert_eq!(done(&world).last().map(String::as_str), Some("eth3=both+xdp"));
}

#[test]
fn xdp_that_cannot_be_attached_is_tried_again_and_traffic_control_stays() {
    let (mut world, _folder) = world(empty(), &[]);
    world.dataplane.refusing_xdp.insert(ETH3);
    world.begin(loaded(&["192.0.2.9"]), &addressed()).expect("traffic control will do");
    let eth3 = |world: &World<Recorder>| world.state.hooks[0].clone();
    assert_eq!((eth3(&world).ingress.as_deref(), eth3(&world).xdp), (Some("clients and backends"), None));
    assert_eq!(eth3(&world).why, "interface eth3 (3) is gone");
    assert_eq!((world.state.ways[0].way.as_str(), world.state.ways[0].back.as_str()), ("redirect-neigh", "eth3 tc"));
    done(&world);
    world.follow(&addressed());
    assert!(done(&world).contains(&"eth3=both+xdp".to_owned()), "tried again");

    world.dataplane.refusing_xdp.clear();
    world.follow(&addressed());
    assert_eq!((eth3(&world).xdp.as_deref(), eth3(&world).why.as_str()), (Some("xdp"), ""));
    assert_eq!((world.state.ways[0].way.as_str(), world.state.ways[0].back.as_str()), ("xdp-redirect", "eth3 xdp"));
    done(&world);
    world.follow(&addressed());
    assert_eq!(done(&world), [""; 0], "and that is all");
}

#[test]
fn the_state_tells_where_xdp_looks_first_and_why_not_elsewhere() {
    for (backend, hook, xdp, why, way, back) in [
        ("192.0.2.9", HookSetting::Auto, Some("xdp"), "", "xdp-redirect", "eth3 xdp"),
        ("192.0.2.9", HookSetting::XdpGeneric, Some("xdp-generic"), "", "xdp-redirect", "eth3 xdp"),
        ("192.0.2.9", HookSetting::Tc, None, "traffic control was asked for", "redirect-neigh", "eth3 tc"),
        (
            "10.0.0.2",
            HookSetting::Auto,
            None,
            "no backend is reached through a device that takes packets from XDP",
            "redirect-peer",
            "v1 tc",
        ),
        ("10.0.0.2", HookSetting::Xdp, Some("xdp"), "", "redirect-peer", "v1 tc"),
        ("10.9.0.1", HookSetting::Xdp, Some("xdp"), "", "stack", "eth3 egress"),
    ] {
        let (mut world, _folder) = world(empty(), &[]);
        world.begin(asked(&[backend], hook, WaySetting::Auto), &addressed()).expect("a good start");
        let eth3 = world.state.hooks.iter().find(|hook| hook.ifindex == ETH3).expect("eth3 is hooked");
        assert_eq!((eth3.xdp.as_deref(), eth3.xdp_why.as_str()), (xdp, why), "{backend} {hook:?}");
        let chosen = &world.state.ways[0];
        assert_eq!((chosen.way.as_str(), chosen.back.as_str()), (way, back), "{backend} {hook:?}");
    }
}

#[test]
fn a_restart_takes_no_xdp_program_for_someone_elses_and_keeps_its_mode() {
    for hook in [HookSetting::Xdp, HookSetting::XdpGeneric] {
        let forced = || asked(&["192.0.2.9"], hook, WaySetting::Auto);
        let (mut first, folder) = world(empty(), &[]);
        first.begin(forced(), &addressed()).expect("a good start");
        let known = State::read(folder.path()).expect("read").expect("written");
        let mut view = addressed();
        view.links.get_mut(&ETH3).expect("the lab has eth3").has_xdp = true;
        let (mut second, _folder) = world(first.dataplane.memory.clone(), &[]);
        second.remember(&known, &view, &held(&first));
        second.begin(forced(), &view).expect("it is ours");
        assert_eq!(done(&second), [format!("eth3=both+{}", hook.name()), format!("eth3=both+{}", hook.name())]);
    }
}
