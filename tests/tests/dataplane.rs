//! The data path's user side against a real kernel: adopting maps, refusing what does not fit, sweeping, attaching.
//!
//! All of it happens in a mount and a network namespace of this process's own, which end with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{BufRead as _, BufReader},
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{
    addr::{Port, Protocol},
    backend::{BackendId, BackendState, Endpoint, EndpointId, Way},
    device::{Abilities, Device},
    flow::{Client, Entry, FlowState, Tick, WAYS, Word},
    reason::Reason,
    reply::ReplyWord,
    selector::{NthRule, Slot},
    service::{Frontend, FrontendId, FrontendInfo, Index, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
};
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Dataplane as _,
        attach::{self, HookReport, Hooks, Mode, Outcome, Point, Role, XdpMode},
        bpf::{Bpf, Opening, Options},
        maps::Maps,
        mmap::{Access, Mapping},
        pins::{DEFAULT_PINS, Pins, PinsError},
        sys::{self, Grace, Map},
    },
    plan::{
        change::Change,
        tables::{BackendRecord, Run, Tables},
    },
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use tempfile::TempDir;
use testbed::harness::{self, Needs, trial};

/// Set for the process that is to be killed: where its pins are.
const VICTIM: &str = "EVENKEEL_TEST_VICTIM";

fn main() -> ExitCode {
    if let Some(root) = env::var_os(VICTIM) {
        return victim(Path::new(&root));
    }
    if geteuid().is_root() {
        leave_the_host().expect("root may make namespaces");
    }
    let root = |name, body: fn() -> Result<()>| trial(name, Needs::Root, body);
    harness::run_side_by_side(vec![
        root("what_was_applied_is_read_back_by_the_next_controller", what_was_applied_is_read_back),
        root("a_process_that_only_looks_sees_the_same", a_process_that_only_looks_sees_the_same),
        root("a_killed_controller_leaves_cursors_hooks_and_tables", a_killed_controller_leaves_everything),
        root("records_are_changed_in_place_and_cleared", records_are_changed_in_place_and_cleared),
        root("thousands_of_entries_are_written_and_read", thousands_of_entries_are_written_and_read),
        root("no_program_takes_the_verifier_more_than_300000_instructions", no_program_takes_the_verifier_long),
        root("what_does_not_fit_is_refused_with_the_limit_to_raise", what_does_not_fit_is_refused),
        root("maps_of_another_size_are_refused_by_name", maps_of_another_size_are_refused),
        root("maps_of_another_kind_are_refused_by_name", maps_of_another_kind_are_refused),
        root("detach_removes_what_another_version_pinned", detach_removes_what_another_version_pinned),
        root("detach_leaves_a_folder_of_others_alone", detach_leaves_a_folder_of_others_alone),
        root("a_missing_map_is_refused_by_name", a_missing_map_is_refused),
        root("another_layout_is_refused", another_layout_is_refused),
        root("an_interrupted_making_is_begun_again", an_interrupted_making_is_begun_again),
        root("a_second_controller_is_refused", a_second_controller_is_refused),
        root("a_missing_bpf_filesystem_is_mounted_in_its_usual_place", a_missing_bpf_filesystem_is_mounted),
        root("a_folder_on_another_filesystem_is_refused", a_folder_on_another_filesystem_is_refused),
        root("every_way_to_wait_for_a_grace_period_works", every_way_to_wait_works),
        root("the_length_of_a_jiffy_is_the_kernels", the_length_of_a_jiffy_is_the_kernels),
        root("a_sweep_evicts_exactly_what_has_expired", a_sweep_evicts_exactly_what_has_expired),
        root("flows_of_real_packets_are_counted_and_evicted", flows_of_real_packets_are_counted_and_evicted),
        root("a_sweep_evicts_what_a_backend_may_not_keep", a_sweep_evicts_what_a_backend_may_not_keep),
        root("a_sweep_forgets_replies_that_are_too_old", a_sweep_forgets_replies_that_are_too_old),
        root("late_answers_keep_a_removed_backend_named", late_answers_keep_a_removed_backend_named),
        root("an_audit_finds_a_wrong_count", an_audit_finds_a_wrong_count),
        root("tcx_hooks_come_change_and_go", || hooks_come_change_and_go(Mode::Tcx)),
        root("clsact_hooks_come_change_and_go", || hooks_come_change_and_go(Mode::Clsact)),
        root("hooks_move_between_tcx_and_clsact", hooks_move_between_tcx_and_clsact),
        root("no_packet_is_missed_while_tcx_programs_are_replaced", || no_packet_is_missed(Mode::Tcx)),
        root("no_packet_is_missed_while_clsact_programs_are_replaced", || no_packet_is_missed(Mode::Clsact)),
        root("an_interface_with_a_used_number_is_hooked_anew_by_tcx", || a_used_number(Mode::Tcx)),
        root("an_interface_with_a_used_number_is_hooked_anew_by_clsact", || a_used_number(Mode::Clsact)),
        root("an_interface_that_is_gone_does_not_hold_up_the_rest", an_interface_that_is_gone),
        root("programs_of_others_are_reported_in_their_order", programs_of_others_are_reported),
        root("xdp_hooks_come_change_and_go_in_front_of_tcx", || xdp_hooks_come_change_and_go(Mode::Tcx)),
        root("xdp_hooks_come_change_and_go_in_front_of_clsact", || xdp_hooks_come_change_and_go(Mode::Clsact)),
        root("xdp_hooks_are_adopted_by_the_next_controller", xdp_hooks_are_adopted),
        root("an_xdp_program_of_someone_else_leaves_traffic_control_to_us", an_xdp_program_of_someone_else),
        root("xdp_hooks_go_with_their_interface", xdp_hooks_go_with_their_interface),
        root("what_xdp_has_decided_traffic_control_does_not_decide_again", what_xdp_has_decided_is_not_decided_again),
        root("what_no_rule_takes_at_xdp_draws_one_ticket", what_no_rule_takes_draws_one_ticket),
        root("a_note_of_someone_elses_xdp_program_is_not_believed", a_note_of_someone_else_is_not_believed),
        root("a_clsact_qdisc_of_someone_else_stays", a_clsact_qdisc_of_someone_else_stays),
        root("detaching_needs_the_controller_to_be_gone", detaching_needs_the_controller_to_be_gone),
    ])
}

// Adopting.

fn what_was_applied_is_read_back() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, opening) = ground.open()?;
    ensure!(opening == Opening { is_adopted: false, has_mounted: false }, "{opening:?}");
    ensure!(bpf.read()? == Tables::default(), "new maps are empty");
    bpf.apply(&sample_changes())?;
    ensure!(bpf.read()? == sample_tables(), "{:#?}", bpf.read()?);
    drop(bpf);
    let (bpf, opening) = ground.open()?;
    ensure!(opening.is_adopted);
    ensure!(bpf.read()? == sample_tables(), "{:#?}", bpf.read()?);
    Ok(())
}

fn a_process_that_only_looks_sees_the_same() -> Result<()> {
    let ground = Ground::new()?;
    let error = Maps::look(&ground.pins).err().context("there is nothing to look at")?;
    let expected = format!(
        "nothing is pinned in {}; is a controller running, with the same --pins?",
        ground.pins.path().display()
    );
    ensure!(error.to_string() == expected, "{error}");
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    let maps = Maps::look(&ground.pins)?;
    ensure!(maps.read()? == sample_tables());
    let counters = maps.counters()?;
    ensure!(counters == bpf.counters()?);
    let backends: Vec<u32> = counters.traffic.keys().map(|id| id.0).collect();
    ensure!(backends == [1, 2, 3], "{backends:?}");
    ensure!(counters.services.len() == 2 && counters.reasons.len() == Reason::ALL.len(), "{counters:?}");
    Ok(())
}

fn a_killed_controller_leaves_everything() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("kill")?;
    let mut child = Command::new(env::current_exe()?)
        .env(VICTIM, ground.root.path())
        .env("EVENKEEL_TEST_IFINDEX", veth.ifindex.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("was piped")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line}");
    child.kill()?;
    child.wait()?;
    ensure!(sys::tcx_programs(veth.ifindex, Point::Ingress)?.len() == 1, "the hook survives");
    let before = ground.not_ours()?;
    veth.send(10)?;
    ensure!(ground.not_ours()? == before + 10, "the packet path goes on");
    let (bpf, opening) = ground.open()?;
    ensure!(opening.is_adopted);
    ensure!(bpf.read()? == sample_tables());
    ensure!(bpf.maps().cursor(ServiceId(1)) == Some(7), "{:?}", bpf.maps().cursor(ServiceId(1)));
    ensure!(ground.not_ours()? == before + 10, "counters survive");
    let reports = attach::apply(&bpf, &veth.clients(), Mode::Tcx)?;
    ensure!(outcomes(&reports)? == [Outcome::Replaced], "{reports:?}");
    ensure!(ground.generations()? == ["programs-2"], "the programs of before are gone: {:?}", ground.generations()?);
    veth.send(10)?;
    ensure!(ground.not_ours()? == before + 20);
    Ok(())
}

/// The process that is killed.
fn victim(root: &Path) -> ExitCode {
    let run = || -> Result<()> {
        let (mut bpf, _) = Bpf::open_or_create(&options(root))?;
        bpf.apply(&sample_changes())?;
        let ifindex = env::var("EVENKEEL_TEST_IFINDEX")?.parse()?;
        let hooks = Hooks { name: "victim".to_owned(), ingress: Some(Role::Clients), egress: false, xdp: None };
        outcomes(&attach::apply(&bpf, &BTreeMap::from([(ifindex, hooks)]), Mode::Tcx)?)?;
        println!("ready");
        thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn records_are_changed_in_place_and_cleared() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    bpf.apply(&[
        Change::SetBackendState(BackendId(1), BackendState::UdpGone),
        Change::SetBackendWay(BackendId(2), Way::Neighbour { ifindex: 77 }),
        Change::RemoveFrontend(key("fd00:9::2", 53)),
        Change::Grace,
    ])?;
    let mut expected = sample_tables();
    expected.backends.get_mut(&BackendId(1)).context("is in the sample")?.state = BackendState::UdpGone;
    expected.backends.get_mut(&BackendId(2)).context("is in the sample")?.way = Way::Neighbour { ifindex: 77 };
    expected.frontends.remove(&key("fd00:9::2", 53));
    ensure!(bpf.read()? == expected, "{:#?}", bpf.read()?);
    let mut all = vec![Change::RemoveFrontend(key("10.9.0.2", 53)), Change::RemoveFrontend(key("10.9.0.3", 53))];
    all.extend([1, 2].map(|id| Change::SwapService(ServiceId(id), ServiceWord::default())));
    all.push(Change::Grace);
    all.extend([1, 2, 3].map(|id| Change::ClearBackend(BackendId(id))));
    all.extend(sample_tables().endpoints.into_keys().map(Change::RemoveEndpoint));
    all.extend([1, 2, 3].map(|id| Change::ClearFrontendInfo(FrontendId(id))));
    all.extend([1, 2].map(|id| Change::ClearService(ServiceId(id))));
    bpf.apply(&all)?;
    ensure!(bpf.read()? == Tables::default(), "{:#?}", bpf.read()?);
    // What was never there may be removed too.
    bpf.apply(&[Change::RemoveFrontend(key("10.9.0.2", 53)), Change::RemoveEndpoint(key("10.1.1.1", 1))])?;
    Ok(())
}

fn thousands_of_entries_are_written_and_read() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    let mut expected = Tables::default();
    let mut changes = Vec::new();
    for number in 1..=4000 {
        let key = SocketKey::new(
            IpAddr::from([10, 1, (number >> 8) as u8, number as u8]).into(),
            Port::new(53),
            Protocol::UDP,
        );
        let info = FrontendInfo { key, service: ServiceId(1) };
        let frontend = Frontend { frontend: FrontendId(number), service: ServiceId(1) };
        expected.frontend_infos.insert(FrontendId(number), info);
        expected.frontends.insert(key, frontend);
        changes.push(Change::WriteFrontendInfo(FrontendId(number), info));
    }
    changes.extend(expected.frontends.iter().map(|(key, frontend)| Change::PutFrontend(*key, *frontend)));
    expected.services.insert(ServiceId(1), ServiceWord::default());
    bpf.apply(&changes)?;
    ensure!(bpf.read()? == expected);
    Ok(())
}

// Refusing.

fn no_program_takes_the_verifier_long() -> Result<()> {
    let ground = Ground::new()?;
    let (bpf, _) = ground.open()?;
    let verified = bpf.verified_instructions()?;
    ensure!(verified.len() == 13, "{verified:?}");
    for (name, taken) in &verified {
        let taken = taken.with_context(|| format!("{name}: the kernel does not tell"))?;
        ensure!((1..=300_000).contains(&taken), "{name} takes {taken} of the kernel's 1,000,000: {verified:?}");
    }
    Ok(())
}

fn what_does_not_fit_is_refused() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    let capacity = Capacity::default();
    let record = sample_tables().backends[&BackendId(1)];
    let policy = sample_tables().policies[&PolicyId(1)];
    let info = sample_tables().frontend_infos[&FrontendId(1)];
    for (change, message) in [
        (
            Change::WriteBackend(BackendId(capacity.backends), record),
            format!(
                "map BACKENDS: backend {0} is beyond its {0} entries; raise `backends` under [limits]",
                capacity.backends
            ),
        ),
        (
            Change::WriteRun(Run { chunk: capacity.slot_chunks, start: 0 }, vec![1]),
            format!(
                "map SLOTS: a run at {0}/0 is beyond its {0} entries; raise `slots` under [limits]",
                capacity.slot_chunks
            ),
        ),
        (
            Change::WritePolicy(PolicyId(capacity.policies), policy),
            format!(
                "map POLICIES: policy {0} is beyond its {0} entries; raise `services` under [limits]",
                capacity.policies
            ),
        ),
        (
            Change::StartService(ServiceId(capacity.services), 0),
            format!(
                "map CURSORS: service {0} is beyond its {0} entries; raise `services` under [limits]",
                capacity.services
            ),
        ),
        (
            Change::WriteFrontendInfo(FrontendId(capacity.frontend_infos), info),
            format!(
                "map FRONTEND_INFO: frontend {0} is beyond its {0} entries; raise `services` under [limits]",
                capacity.frontend_infos
            ),
        ),
    ] {
        let error = bpf.apply(std::slice::from_ref(&change)).err().with_context(|| format!("{change:?}"))?;
        ensure!(error.to_string() == message, "{error}");
    }
    let frontend = Frontend { frontend: FrontendId(1), service: ServiceId(1) };
    let one_too_many: Vec<Change> = (0..=capacity.frontends)
        .map(|number| {
            Change::PutFrontend(
                SocketKey::new(IpAddr::from(number.to_be_bytes()).into(), Port::new(1), Protocol::UDP),
                frontend,
            )
        })
        .collect();
    let error = bpf.apply(&one_too_many).err().context("the map is full")?;
    let expected = format!(
        "map FRONTENDS: one of {} entries is beyond its {} entries; raise `services` under [limits]",
        capacity.frontends + 1,
        capacity.frontends
    );
    ensure!(error.to_string() == expected, "{error}");
    Ok(())
}

fn maps_of_another_size_are_refused() -> Result<()> {
    let ground = Ground::new()?;
    drop(ground.open()?);
    let capacity = Capacity::default();
    let wanted = Capacity { flow_buckets: capacity.flow_buckets * 2, ..capacity };
    let error = Bpf::open_or_create(&Options { capacity: wanted, ..ground.options() }).err().context("is refused")?;
    let expected = format!(
        "pinned map FLOWS has max_entries {}, this configuration makes it {}; start with the old [limits], or remove \
         the pins with `evenkeel detach` and start again (flows are lost)",
        capacity.flow_buckets, wanted.flow_buckets
    );
    ensure!(error.to_string() == expected, "{error}");
    ensure!(ground.generations()? == ["programs-1"], "nothing of the refused one stays: {:?}", ground.generations()?);
    let (_, opening) = ground.open()?;
    ensure!(opening.is_adopted, "and what was there is as good as before");
    Ok(())
}

fn maps_of_another_kind_are_refused() -> Result<()> {
    let ground = Ground::new()?;
    drop(ground.open()?);
    for (stranger, expected) in [
        ("SERVICES", "pinned map CURSORS has value size 8, this configuration makes it 64"),
        ("ENDPOINTS", "pinned map CURSORS has type hash, this configuration makes it array"),
    ] {
        let other = sys::open_pin(&ground.pins.path().join(stranger))?;
        let path = ground.pins.path().join("CURSORS");
        sys::unpin(&path)?;
        sys::pin(std::os::fd::AsFd::as_fd(&other), &path)?;
        let error = ground.open().err().context("is refused")?;
        ensure!(error.to_string().starts_with(expected), "{error}");
    }
    Ok(())
}

fn a_missing_map_is_refused() -> Result<()> {
    let ground = Ground::new()?;
    drop(ground.open()?);
    sys::unpin(&ground.pins.path().join("ACTIVE"))?;
    let error = ground.open().err().context("is refused")?;
    let expected = format!(
        "pinned map ACTIVE is missing in {}; remove the rest with `evenkeel detach` and start again",
        ground.pins.path().display()
    );
    ensure!(error.to_string() == expected, "{error}");
    ensure!(attach::detach_all(&ground.pins, &ground.options().state)?.has_maps);
    let (_, opening) = ground.open()?;
    ensure!(!opening.is_adopted);
    Ok(())
}

fn another_layout_is_refused() -> Result<()> {
    let ground = Ground::new()?;
    drop(ground.open()?);
    ground.write_version(9)?;
    let error = ground.open().err().context("is refused")?;
    let expected = format!("{} holds map layout 9, this version reads layout 2; ", ground.pins.path().display());
    ensure!(error.to_string().starts_with(&expected), "{error}");
    ensure!(Maps::look(&ground.pins).is_err_and(|error| matches!(error, PinsError::Layout { found: 9, .. })));
    Ok(())
}

fn detach_removes_what_another_version_pinned() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("layout")?;
    let (bpf, _) = ground.open()?;
    outcomes(&attach::apply(&bpf, &veth.clients(), Mode::Tcx)?)?;
    drop(bpf);
    ground.write_version(9)?;
    let folder = ground.pins.path();
    let strange = sys::open_pin(&folder.join("SERVICES"))?;
    sys::pin(std::os::fd::AsFd::as_fd(&strange), &folder.join("MAGLEV"))?;
    sys::pin(std::os::fd::AsFd::as_fd(&strange), &folder.join("filters/strange"))?;
    let link = folder.join(format!("links/{}-ingress", veth.ifindex));
    std::fs::rename(&link, folder.join(format!("links/{}", veth.name)))?;
    ensure!(ground.open().is_err() && veth.hooks(Mode::Tcx)?.0, "another layout goes on until it is detached");
    let detached = attach::detach_all(&ground.pins, &ground.options().state)?;
    ensure!(detached.has_maps, "{detached:?}");
    ensure!(!folder.exists(), "{} is still there", folder.display());
    ensure!(veth.hooks(Mode::Tcx)? == (false, false), "a link of another name is detached as well");
    let (_, opening) = ground.open()?;
    ensure!(!opening.is_adopted);
    Ok(())
}

fn detach_leaves_a_folder_of_others_alone() -> Result<()> {
    let ground = Ground::new()?;
    let (bpf, _) = ground.open()?;
    let map = sys::open_pin(&ground.pins.path().join("SERVICES"))?;
    drop(bpf);
    let root = ground.root.path().join("bpf");
    std::fs::create_dir(root.join("others"))?;
    for folder in [root.join("others"), root] {
        let theirs = folder.join("theirs");
        sys::pin(std::os::fd::AsFd::as_fd(&map), &theirs)?;
        let refused = attach::detach_all(&Pins::new(&folder), &ground.options().state);
        ensure!(refused.is_err() && theirs.exists(), "{refused:?}");
    }
    Ok(())
}

fn an_interrupted_making_is_begun_again() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    drop(bpf);
    // The version is written last.
    ground.write_version(0)?;
    let (bpf, opening) = ground.open()?;
    ensure!(!opening.is_adopted);
    ensure!(bpf.read()? == Tables::default());
    Ok(())
}

fn a_second_controller_is_refused() -> Result<()> {
    let ground = Ground::new()?;
    let first = ground.open()?;
    let error = ground.open().err().context("is refused")?;
    let expected = format!(
        "another controller (process {}) uses {}; stop that one, or give this one its own --pins and --state",
        std::process::id(),
        ground.options().state.display()
    );
    ensure!(error.to_string() == expected, "{error}");
    let other_state = ground.root.path().join("other");
    std::fs::create_dir(&other_state)?;
    let error = Bpf::open_or_create(&Options { state: other_state, ..ground.options() }).err().context("is refused")?;
    let expected = format!(
        "another controller uses {}; stop that one, or give this one its own --pins and --state",
        ground.pins.path().display()
    );
    ensure!(error.to_string() == expected, "{error}");
    drop(first);
    ground.open()?;
    Ok(())
}

fn a_missing_bpf_filesystem_is_mounted() -> Result<()> {
    let ground = Ground::new()?;
    let options = Options { pins: Pins::new(DEFAULT_PINS), ..ground.options() };
    let mount_point = Path::new(DEFAULT_PINS).parent().context("lies in the mount point")?;
    // This process has a `/sys` of its own, in which nothing is mounted.
    ensure!(!sys::is_bpffs(mount_point)?);
    let opened = Bpf::open_or_create(&options).map(|(_, opening)| opening);
    let again = Bpf::open_or_create(&options).map(|(_, opening)| opening);
    let detached = attach::detach_all(&options.pins, &options.state);
    let stays_mounted = sys::is_bpffs(mount_point)?;
    if stays_mounted {
        umount2(mount_point, MntFlags::MNT_DETACH)?;
    }
    ensure!(detached?.has_maps && !stays_mounted, "what was mounted is unmounted");
    ensure!(opened? == Opening { is_adopted: false, has_mounted: true });
    ensure!(again? == Opening { is_adopted: true, has_mounted: false });
    Ok(())
}

fn a_folder_on_another_filesystem_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let pins = Pins::new(folder.path().join("pins"));
    let options = Options { pins, state: folder.path().to_owned(), capacity: Capacity::default(), trace: None };
    let error = Bpf::open_or_create(&options).err().context("is refused")?;
    let path = folder.path().join("pins");
    let expected = format!(
        "{0} is not on a bpf filesystem; mount one (`mount -t bpf bpf {0}`) or use /sys/fs/bpf/evenkeel",
        path.display()
    );
    ensure!(error.to_string() == expected, "{error}");
    ensure!(!path.exists());
    Ok(())
}

// Time.

fn every_way_to_wait_works() -> Result<()> {
    for grace in [Grace::probe()?, Grace::map_of_maps()?] {
        let start = Instant::now();
        for _ in 0..3 {
            grace.wait()?;
        }
        let took = start.elapsed() / 3;
        ensure!(took < Duration::from_secs(1), "{grace:?} took {took:?}");
    }
    Ok(())
}

fn the_length_of_a_jiffy_is_the_kernels() -> Result<()> {
    let ground = Ground::new()?;
    let (bpf, _) = ground.open()?;
    let (start, first) = (Instant::now(), bpf.jiffies()?);
    thread::sleep(Duration::from_millis(400));
    let passed = bpf.jiffies()?.wrapping_sub(first);
    let expected = start.elapsed().as_secs_f64() / sys::jiffy()?.as_secs_f64();
    ensure!((f64::from(passed) - expected).abs() < expected / 10.0 + 2.0, "{passed} jiffies, {expected} expected");
    Ok(())
}

// Sweeping.

fn a_sweep_evicts_exactly_what_has_expired() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    let flows = ground.mapping("FLOWS")?;
    let active = ground.mapping("ACTIVE")?;
    let per_tick = sys::jiffy()?.as_secs_f64() * 64.0;
    let now = bpf.now()?;
    let (mut stay, mut go, mut bucket) = (Vec::new(), 0, 0);
    for state in FlowState::ALL {
        let Some(seconds) = state.timeout_seconds() else { continue };
        let limit = (f64::from(seconds) / per_tick).ceil() as u32;
        // One tick to spare on either side, because time goes on while the test runs.
        for (age, is_over) in [(0, false), (limit - 2, false), (limit + 1, true), (limit + 1000, true)] {
            bucket += 7919;
            let seen = Tick(now.0.wrapping_sub(age) & Tick::MASK);
            let place = (bucket % flows.entries(), bucket as usize % WAYS);
            put_flow(&flows, &active, place, state, seen, BackendId(2), FrontendId(3))?;
            if is_over { go += 1 } else { stay.push((place, state)) }
        }
    }
    let busy = (1, 3);
    word(&flows, busy)?.store(Word::new(0, 9, FlowState::Busy, Tick(0)).0, Ordering::SeqCst);
    let swept = bpf.sweep_now()?;
    ensure!(swept.evicted == go, "{} evicted, {go} expected", swept.evicted);
    ensure!(swept.named.backends == BTreeSet::from([BackendId(2)]), "{:?}", swept.named);
    ensure!(swept.named.frontends == BTreeSet::from([FrontendId(3)]), "{:?}", swept.named);
    for (place, state) in &stay {
        ensure!(Word(word(&flows, *place)?.load(Ordering::SeqCst)).state() == *state, "{state:?} at {place:?}");
    }
    let in_use = flows.all().flat_map(|bucket| &bucket[..WAYS]).filter(|way| way.load(Ordering::SeqCst) != 0);
    let free = |way: &&AtomicU64| Word(way.load(Ordering::SeqCst)).state() == FlowState::Free;
    ensure!(in_use.filter(|way| !free(way)).count() == stay.len() + 1, "only what was put there, and the busy way");
    let count = active.entry(2).context("is in the map")?[0].load(Ordering::SeqCst);
    let in_table = stay.iter().filter(|(_, state)| state.is_active()).count() as u64;
    ensure!(count == in_table, "{count} active, {in_table} flows");
    ensure!(bpf.audit().is_empty(), "{:?}", bpf.audit());
    ensure!(bpf.sweep_now()?.evicted == 0, "a second sweep finds nothing");
    Ok(())
}

fn flows_of_real_packets_are_counted_and_evicted() -> Result<()> {
    const FLOWS: u64 = 40;
    let ground = Ground::new()?;
    let veth = Veth::new("flow")?;
    let (mut bpf, _) = ground.open()?;
    // The first service of the sample, reached at the address that the other end sends to.
    let [first, second] = [BackendId(1), BackendId(2)];
    bpf.apply(&sample_changes())?;
    bpf.apply(&[Change::SetBackendWay(second, Way::Stack)])?;
    bpf.apply(&veth.frontend(FrontendId(1), ServiceId(1)))?;
    outcomes(&attach::apply(&bpf, &veth.clients(), Mode::Tcx)?)?;
    let sockets = (0..FLOWS).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..3 {
        for socket in &sockets {
            socket.send_to(b"hello", (veth.target.as_str(), 9))?;
        }
    }
    let counters = bpf.counters()?;
    let stats = counters.services[&ServiceId(1)];
    ensure!((stats.tickets, stats.diverted, stats.refused) == (FLOWS, 0, 0), "{stats:?}");
    for id in [first, second] {
        let traffic = counters.traffic[&id];
        ensure!((traffic.choices, traffic.packets_in) == (FLOWS / 2, 3 * FLOWS / 2), "{id:?}: {traffic:?}");
        ensure!(counters.active[&id] == FLOWS / 2, "{counters:?}");
    }
    ensure!(bpf.maps().cursor(ServiceId(1)) == Some(7 + FLOWS));
    ensure!(bpf.audit().is_empty(), "{:?}", bpf.audit());
    let swept = bpf.sweep_now()?;
    ensure!(swept.evicted == 0 && swept.named.backends == BTreeSet::from([first, second]), "{swept:?}");
    bpf.apply(&[Change::SetBackendState(first, BackendState::UdpGone), Change::Grace])?;
    let swept = bpf.sweep_now()?;
    // Its answers may be late, so it stays named.
    ensure!(swept.evicted == FLOWS / 2 && swept.named.backends == BTreeSet::from([first, second]), "{swept:?}");
    ensure!(bpf.counters()?.active[&first] == 0 && bpf.audit().is_empty(), "{:?}", bpf.audit());
    Ok(())
}

fn a_sweep_evicts_what_a_backend_may_not_keep() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    let flows = ground.mapping("FLOWS")?;
    let active = ground.mapping("ACTIVE")?;
    let now = bpf.now()?;
    for backend in 1..=4 {
        put_flow(&flows, &active, (backend, 0), FlowState::Established, now, BackendId(backend), FrontendId(1))?;
        put_flow(&flows, &active, (backend, 1), FlowState::UdpAssured, now, BackendId(backend), FrontendId(2))?;
    }
    bpf.apply(&[
        Change::SetBackendState(BackendId(1), BackendState::Drain),
        Change::SetBackendState(BackendId(2), BackendState::UdpGone),
        Change::SetBackendState(BackendId(3), BackendState::Dead),
    ])?;
    // Nothing waits for late answers of a service that keeps flows.
    let (key, endpoint) = (
        key("fd00:100:13::4", 53),
        Endpoint { id: EndpointId(3), flags: Endpoint::FLOWS, backend: BackendId(3), zero: 0 },
    );
    bpf.apply(&[Change::PutEndpoint(key, endpoint)])?;
    // Backend 4 has no record at all.
    let swept = bpf.sweep_now()?;
    ensure!(swept.evicted == 5, "{swept:?}");
    for backend in 1..=4 {
        let state = |way| Ok::<_, anyhow::Error>(Word(word(&flows, (backend, way))?.load(Ordering::SeqCst)).state());
        let expected = match backend {
            1 => (FlowState::Established, FlowState::UdpAssured),
            2 => (FlowState::Established, FlowState::Moved),
            _gone => (FlowState::Moved, FlowState::Moved),
        };
        ensure!((state(0)?, state(1)?) == expected, "backend {backend}: {:?} {:?}", state(0)?, state(1)?);
    }
    ensure!(swept.named.backends == (1..=4).map(BackendId).collect(), "late answers still name them: {swept:?}");
    ensure!(bpf.audit().is_empty(), "{:?}", bpf.audit());
    ensure!(bpf.sweep_now()?.evicted == 0, "each flow ends once");
    Ok(())
}

fn a_sweep_forgets_replies_that_are_too_old() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    let replies = ground.mapping("REPLIES")?;
    let now = bpf.now()?;
    let old = Tick(now.0.wrapping_sub((31.0 / (sys::jiffy()?.as_secs_f64() * 64.0)) as u32 + 2) & Tick::MASK);
    let words = replies.entry(5).context("is in the map")?;
    for (way, (frontend, seen)) in [(11, now), (12, old), (13, now)].into_iter().enumerate() {
        words[way * 2].store(0x1234, Ordering::SeqCst);
        words[way * 2 + 1].store(ReplyWord::new(FrontendId(frontend), seen).0, Ordering::SeqCst);
    }
    let named = bpf.sweep()?;
    ensure!(named.frontends == BTreeSet::from([FrontendId(11), FrontendId(13)]), "{named:?}");
    ensure!(words[3].load(Ordering::SeqCst) == 0, "the old one is free");
    Ok(())
}

fn late_answers_keep_a_removed_backend_named() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    ensure!(bpf.sweep()?.backends.is_empty());
    // Backend 3 is of a per-packet service, backend 1 is not; neither has flows.
    bpf.apply(&[
        Change::SetBackendState(BackendId(1), BackendState::UdpGone),
        Change::SetBackendState(BackendId(3), BackendState::UdpGone),
    ])?;
    ensure!(bpf.sweep()?.backends == BTreeSet::from([BackendId(3)]), "{:?}", bpf.sweep()?);
    Ok(())
}

fn an_audit_finds_a_wrong_count() -> Result<()> {
    let ground = Ground::new()?;
    let (mut bpf, _) = ground.open()?;
    bpf.apply(&sample_changes())?;
    let flows = ground.mapping("FLOWS")?;
    let active = ground.mapping("ACTIVE")?;
    put_flow(&flows, &active, (3, 0), FlowState::Established, bpf.now()?, BackendId(2), FrontendId(1))?;
    ensure!(bpf.audit().is_empty());
    active.entry(2).context("is in the map")?[0].fetch_add(4, Ordering::SeqCst);
    let [miscount] = bpf.audit()[..] else { bail!("{:?}", bpf.audit()) };
    ensure!((miscount.backend, miscount.in_table, miscount.counted) == (BackendId(2), 1, 5), "{miscount:?}");
    Ok(())
}

// Attaching.

fn hooks_come_change_and_go(mode: Mode) -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("come")?;
    let (bpf, _) = ground.open()?;
    ensure!(Mode::of_this_kernel() == Mode::Tcx, "this kernel has tcx");
    let hooks = |ingress, egress| {
        BTreeMap::from([(veth.ifindex, Hooks { name: veth.name.clone(), ingress, egress, xdp: None })])
    };
    for (wanted, expected) in [
        (hooks(Some(Role::Clients), false), vec![Outcome::Attached]),
        (hooks(Some(Role::Clients), false), vec![Outcome::Kept]),
        (hooks(Some(Role::Clients), true), vec![Outcome::Kept, Outcome::Attached]),
        (hooks(Some(Role::Both), true), vec![Outcome::Replaced, Outcome::Kept]),
        (hooks(None, true), vec![Outcome::Kept, Outcome::Removed]),
        (hooks(Some(Role::Backends), false), vec![Outcome::Attached, Outcome::Removed]),
        (BTreeMap::new(), vec![Outcome::Removed]),
        (hooks(Some(Role::Backends), true), vec![Outcome::Attached, Outcome::Attached]),
    ] {
        let reports = attach::apply(&bpf, &wanted, mode)?;
        ensure!(outcomes(&reports)? == expected, "{wanted:?}: {reports:?}");
        let wanted = wanted.get(&veth.ifindex);
        let is_ingress = wanted.is_some_and(|hooks| hooks.ingress.is_some());
        let is_egress = wanted.is_some_and(|hooks| hooks.egress);
        ensure!(veth.hooks(mode)? == (is_ingress, is_egress), "{:?}", veth.hooks(mode)?);
        let before = ground.not_ours()?;
        veth.send(5)?;
        ensure!(ground.not_ours()? == before + if is_ingress { 5 } else { 0 });
    }
    drop(bpf);
    ensure!(veth.hooks(mode)? == (true, true), "the controller's end changes nothing");
    let detached = attach::detach_all(&ground.pins, &ground.options().state)?;
    ensure!((detached.hooks, detached.has_maps) == (2, true), "{detached:?}");
    ensure!(veth.hooks(mode)? == (false, false));
    ensure!(!veth.has_clsact()?, "the qdisc that we made is gone");
    ensure!(!ground.pins.path().exists());
    ensure!(attach::detach_all(&ground.pins, &ground.options().state)?.hooks == 0, "again is no error");
    Ok(())
}

fn hooks_move_between_tcx_and_clsact() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("move")?;
    let (bpf, _) = ground.open()?;
    for mode in [Mode::Clsact, Mode::Tcx, Mode::Clsact, Mode::Tcx] {
        let reports = attach::apply(&bpf, &veth.clients(), mode)?;
        ensure!(outcomes(&reports)? == [Outcome::Attached], "{reports:?}");
        let before = ground.not_ours()?;
        veth.send(5)?;
        ensure!(ground.not_ours()? == before + 5, "by {} each packet is seen once", mode.name());
        ensure!(veth.has_clsact()? == (mode == Mode::Clsact));
    }
    Ok(())
}

fn no_packet_is_missed(mode: Mode) -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("miss")?;
    let (mut bpf, _) = ground.open()?;
    // Each packet is a query of its own, so that it goes through the program array too.
    let backends = [BackendId(1), BackendId(2)];
    let tables = sample_tables();
    let policy = Policy { flags: Policy::PER_PACKET, ..tables.policies[&PolicyId(1)] };
    let replies = tables
        .endpoints
        .iter()
        .map(|(key, endpoint)| Change::PutEndpoint(*key, Endpoint { flags: Endpoint::REPLIES, ..*endpoint }));
    bpf.apply(&sample_changes())?;
    bpf.apply(&replies.collect::<Vec<_>>())?;
    bpf.apply(&backends.map(|id| Change::SetBackendWay(id, Way::Stack)))?;
    bpf.apply(&[
        Change::WritePolicy(PolicyId(2), policy),
        Change::SwapService(ServiceId(1), ServiceWord { policy: PolicyId(2), change: 5 }),
    ])?;
    bpf.apply(&veth.frontend(FrontendId(1), ServiceId(1)))?;
    outcomes(&attach::apply(&bpf, &veth.clients(), mode)?)?;
    drop(bpf);
    let done = AtomicBool::new(false);
    let (sent, reloads) = thread::scope(|scope| -> Result<(u64, u32)> {
        let sender = scope.spawn(|| -> Result<u64> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                socket.send_to(b"hello", (veth.target.as_str(), 9))?;
                sent += 1;
            }
            Ok(sent)
        });
        let reload = || -> Result<u32> {
            for number in 0..10 {
                let (bpf, opening) = ground.open()?;
                ensure!(opening.is_adopted);
                let role = if number % 2 == 0 { Role::Both } else { Role::Clients };
                let hooks = Hooks { name: veth.name.clone(), ingress: Some(role), egress: false, xdp: None };
                let reports = attach::apply(&bpf, &BTreeMap::from([(veth.ifindex, hooks)]), mode)?;
                ensure!(outcomes(&reports)? == [Outcome::Replaced], "{reports:?}");
            }
            Ok(10)
        };
        let reloads = reload();
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the sender does not panic")?;
        Ok((sent, reloads?))
    })?;
    let counters = Maps::look(&ground.pins)?.counters()?;
    let stats = counters.services[&ServiceId(1)];
    ensure!(stats.tickets == sent, "{} of {sent} packets drew a ticket during {reloads} reloads", stats.tickets);
    for id in backends {
        let choices = counters.traffic[&id].choices;
        ensure!(choices.abs_diff(sent / 2) <= 1, "{choices} of {sent} packets went to {id:?}");
    }
    let reasons: Vec<_> = counters.reasons.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(reasons.is_empty(), "{reasons:?}");
    ensure!(sent > 1000, "only {sent} packets were sent");
    ensure!(ground.generations()? == ["programs-11"], "{:?}", ground.generations()?);
    Ok(())
}

fn a_used_number(mode: Mode) -> Result<()> {
    let ground = Ground::new()?;
    let (bpf, _) = ground.open()?;
    let first = Veth::numbered("used", Some(4242))?;
    ensure!(outcomes(&attach::apply(&bpf, &first.clients(), mode)?)? == [Outcome::Attached]);
    drop(first);
    let second = Veth::numbered("used", Some(4242))?;
    let reports = attach::apply(&bpf, &second.clients(), mode)?;
    ensure!(outcomes(&reports)? == [Outcome::Attached], "{reports:?}");
    let before = ground.not_ours()?;
    second.send(3)?;
    ensure!(ground.not_ours()? == before + 3);
    Ok(())
}

fn an_interface_that_is_gone() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("gone")?;
    let (bpf, _) = ground.open()?;
    for mode in [Mode::Tcx, Mode::Clsact] {
        let mut wanted = veth.clients();
        let gone = Hooks { name: "eth9".to_owned(), ingress: Some(Role::Clients), egress: false, xdp: None };
        wanted.insert(999_999, gone);
        let reports = attach::apply(&bpf, &wanted, mode)?;
        ensure!(reports.len() == 2 && reports[0].outcome.is_ok(), "{reports:?}");
        let error = reports[1].outcome.as_ref().err().context("there is no such interface")?;
        ensure!(error.to_string() == "interface eth9 (999999) is gone", "{error}");
        ensure!(veth.hooks(mode)?.0);
    }
    let path = ground.pins.path().to_owned();
    drop(veth);
    let reports = attach::apply(&bpf, &BTreeMap::new(), Mode::Tcx)?;
    ensure!(outcomes(&reports)? == [Outcome::Removed], "{reports:?}");
    let left = |folder: &str| -> Result<usize> { Ok(std::fs::read_dir(path.join(folder))?.count()) };
    ensure!(left("links")? == 0 && left("filters")? == 0, "no pin of a vanished interface stays");
    Ok(())
}

fn programs_of_others_are_reported() -> Result<()> {
    let (ground, other) = (Ground::new()?, Ground::new()?);
    let veth = Veth::new("both")?;
    let (bpf, _) = ground.open()?;
    let (other, _) = other.open()?;
    let reports = attach::apply(&other, &veth.clients(), Mode::Tcx)?;
    ensure!(reports.iter().all(|report| report.foreign.is_empty()), "{reports:?}");
    let texts = |reports: &[HookReport]| -> Vec<String> {
        reports.iter().flat_map(|report| &report.foreign).map(ToString::to_string).collect()
    };
    let reports = attach::apply(&bpf, &veth.clients(), Mode::Tcx)?;
    let after = format!(
        "tcx program ingress_clients on {} comes after ours and does not see what is balanced; detach it if it was \
         meant to",
        veth.name
    );
    ensure!(texts(&reports) == [after], "{:?}", texts(&reports));
    let reports = attach::apply(&other, &veth.clients(), Mode::Tcx)?;
    let before = format!(
        "tcx program ingress_clients on {} sees packets first, and what it keeps is not balanced; detach it, or make \
         sure that it passes them on",
        veth.name
    );
    ensure!(texts(&reports) == [before], "{:?}", texts(&reports));
    run("tc", &["qdisc", "add", "dev", &veth.name, "clsact"])?;
    // The classic program "return 0": nothing matches.
    run("tc", &["filter", "add", "dev", &veth.name, "ingress", "prio", "77", "bpf", "bytecode", "1,6 0 0 0"])?;
    let reports = attach::apply(&bpf, &veth.clients(), Mode::Tcx)?;
    ensure!(texts(&reports).iter().any(|text| text.starts_with("clsact program bpf on")), "{:?}", texts(&reports));
    Ok(())
}

fn a_clsact_qdisc_of_someone_else_stays() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("qdisc")?;
    run("tc", &["qdisc", "add", "dev", &veth.name, "clsact"])?;
    let (bpf, _) = ground.open()?;
    outcomes(&attach::apply(&bpf, &veth.clients(), Mode::Clsact)?)?;
    drop(bpf);
    attach::detach_all(&ground.pins, &ground.options().state)?;
    ensure!(veth.has_clsact()? && veth.hooks(Mode::Clsact)? == (false, false));
    Ok(())
}

fn detaching_needs_the_controller_to_be_gone() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("busy")?;
    let (bpf, _) = ground.open()?;
    outcomes(&attach::apply(&bpf, &veth.clients(), Mode::Tcx)?)?;
    let error = attach::detach_all(&ground.pins, &ground.options().state).err().context("is refused")?;
    ensure!(matches!(error, PinsError::InUse { .. }), "{error}");
    ensure!(veth.hooks(Mode::Tcx)?.0);
    Ok(())
}

// XDP in front of traffic control.

fn xdp_hooks_come_change_and_go(mode: Mode) -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("early")?;
    let (bpf, _) = ground.open()?;
    let (native, generic) = (Some(XdpMode::Native), Some(XdpMode::Generic));
    let (ingress, xdp) = (Point::Ingress, Point::Xdp);
    for (role, early, expected) in [
        (Some(Role::Clients), None, vec![(ingress, Outcome::Attached)]),
        (Some(Role::Clients), native, vec![(ingress, Outcome::Kept), (xdp, Outcome::Attached)]),
        (Some(Role::Clients), native, vec![(ingress, Outcome::Kept), (xdp, Outcome::Kept)]),
        (Some(Role::Both), native, vec![(ingress, Outcome::Replaced), (xdp, Outcome::Replaced)]),
        (Some(Role::Both), generic, vec![(ingress, Outcome::Kept), (xdp, Outcome::Attached)]),
        (Some(Role::Both), generic, vec![(ingress, Outcome::Kept), (xdp, Outcome::Kept)]),
        (Some(Role::Backends), native, vec![(ingress, Outcome::Replaced), (xdp, Outcome::Attached)]),
        (Some(Role::Backends), None, vec![(xdp, Outcome::Removed), (ingress, Outcome::Kept)]),
        (Some(Role::Clients), generic, vec![(ingress, Outcome::Replaced), (xdp, Outcome::Attached)]),
        // XDP leaves packets to traffic control to the last.
        (None, native, vec![(xdp, Outcome::Removed), (ingress, Outcome::Removed)]),
        (Some(Role::Clients), native, vec![(ingress, Outcome::Attached), (xdp, Outcome::Attached)]),
    ] {
        let hooks = Hooks { name: veth.name.clone(), ingress: role, egress: false, xdp: early };
        let reports = attach::apply(&bpf, &BTreeMap::from([(veth.ifindex, hooks)]), mode)?;
        let points = reports.iter().map(|report| report.point);
        let done: Vec<_> = points.zip(outcomes(&reports)?).collect();
        ensure!(done == expected, "{role:?} {early:?}: {reports:?}");
        ensure!(reports.iter().all(|report| report.foreign.is_empty()), "ours is not someone else's: {reports:?}");
        let early = early.filter(|_| role.is_some());
        ensure!(veth.early()? == early, "{:?}, not {early:?}", veth.early()?);
        ensure!(veth.hooks(mode)? == (role.is_some(), false), "{:?}", veth.hooks(mode)?);
        let before = ground.not_ours()?;
        veth.send(5)?;
        ensure!(ground.not_ours()? == before + if role.is_some() { 5 } else { 0 }, "each packet is counted once");
    }
    drop(bpf);
    ensure!(veth.early()? == native, "the controller's end changes nothing");
    let detached = attach::detach_all(&ground.pins, &ground.options().state)?;
    ensure!((detached.hooks, detached.has_maps) == (2, true), "{detached:?}");
    ensure!(veth.early()?.is_none() && veth.hooks(mode)? == (false, false));
    Ok(())
}

fn xdp_hooks_are_adopted() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("adopt")?;
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let wanted = veth.early_clients(mode);
        let (bpf, _) = ground.open()?;
        outcomes(&attach::apply(&bpf, &wanted, Mode::Tcx)?)?;
        drop(bpf);
        ensure!(veth.early()? == Some(mode));
        let (bpf, opening) = ground.open()?;
        ensure!(opening.is_adopted);
        let held: Vec<Point> = attach::held(&ground.pins)?.iter().map(|(place, _)| place.point).collect();
        ensure!(held == [Point::Xdp, Point::Ingress], "in the order in which they are taken away: {held:?}");
        let reports = attach::apply(&bpf, &wanted, Mode::Tcx)?;
        ensure!(outcomes(&reports)? == [Outcome::Replaced, Outcome::Replaced], "by the new programs: {reports:?}");
        ensure!(veth.early()? == Some(mode));
        ensure!(ground.generations()?.len() == 1, "{:?}", ground.generations()?);
    }
    Ok(())
}

fn an_xdp_program_of_someone_else() -> Result<()> {
    let (ground, other) = (Ground::new()?, Ground::new()?);
    let veth = Veth::new("taken")?;
    let (bpf, _) = ground.open()?;
    let (other, _) = other.open()?;
    outcomes(&attach::apply(&other, &veth.early_clients(XdpMode::Native), Mode::Tcx)?)?;
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let reports = attach::apply(&bpf, &veth.early_clients(mode), Mode::Tcx)?;
        let [tc, xdp] = &reports[..] else { bail!("{reports:?}") };
        ensure!(tc.outcome.is_ok(), "traffic control is attached: {tc:?}");
        let told = tc.foreign.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        ensure!(told.contains(&format!("xdp program xdp_clients on {} sees packets first", veth.name)), "{told}");
        let refused = xdp.outcome.as_ref().err().context("there is one already")?.to_string();
        let expected = format!("interface {} ({}) xdp by {}: ", veth.name, veth.ifindex, mode.name());
        ensure!(refused.starts_with(&expected), "{refused}");
        ensure!(mode == XdpMode::Generic || refused.contains("busy"), "{refused}");
        ensure!(veth.early()? == Some(XdpMode::Native), "theirs is there");
    }
    outcomes(&attach::apply(&other, &BTreeMap::new(), Mode::Tcx)?)?;
    let reports = attach::apply(&bpf, &veth.early_clients(XdpMode::Native), Mode::Tcx)?;
    ensure!(outcomes(&reports)? == [Outcome::Kept, Outcome::Attached], "{reports:?}");
    Ok(())
}

fn xdp_hooks_go_with_their_interface() -> Result<()> {
    let ground = Ground::new()?;
    let (bpf, _) = ground.open()?;
    let first = Veth::numbered("fade", Some(4343))?;
    outcomes(&attach::apply(&bpf, &first.early_clients(XdpMode::Native), Mode::Tcx)?)?;
    drop(first);
    let second = Veth::numbered("fade", Some(4343))?;
    let reports = attach::apply(&bpf, &second.early_clients(XdpMode::Native), Mode::Tcx)?;
    ensure!(outcomes(&reports)? == [Outcome::Attached, Outcome::Attached], "another of that number: {reports:?}");
    ensure!(second.early()? == Some(XdpMode::Native));
    let wanted = second.early_clients(XdpMode::Native);
    let expected = format!("interface {} (4343) is gone", second.name);
    drop(second);
    let reports = attach::apply(&bpf, &wanted, Mode::Tcx)?;
    for report in &reports {
        let error = report.outcome.as_ref().err().context("it is gone")?;
        ensure!(error.to_string() == expected, "{error}");
    }
    ensure!(std::fs::read_dir(ground.pins.path().join("links"))?.count() == 0, "no pin of it stays");
    Ok(())
}

/// Makes the service of the sample's first policy the one of what is sent here, each packet a choice of its own, and lets
/// XDP know the interface.
fn serve_each_packet(bpf: &mut Bpf, veth: &Veth, policy: Policy) -> Result<()> {
    bpf.apply(&sample_changes())?;
    let replies = sample_tables().endpoints.into_iter();
    let replies = replies.map(|(key, it)| Change::PutEndpoint(key, Endpoint { flags: Endpoint::REPLIES, ..it }));
    bpf.apply(&replies.collect::<Vec<_>>())?;
    // Through the stack, so that XDP can send nothing itself.
    bpf.apply(&[BackendId(1), BackendId(2)].map(|id| Change::SetBackendWay(id, Way::Stack)))?;
    bpf.apply(&[
        Change::WritePolicy(PolicyId(2), Policy { flags: Policy::PER_PACKET, ..policy }),
        Change::SwapService(ServiceId(1), ServiceWord { policy: PolicyId(2), change: 5 }),
    ])?;
    bpf.apply(&veth.frontend(FrontendId(1), ServiceId(1)))?;
    bpf.follow_network(&BTreeMap::from([veth.device()?]));
    Ok(())
}

fn what_xdp_has_decided_is_not_decided_again() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("note")?;
    let (mut bpf, _) = ground.open()?;
    serve_each_packet(&mut bpf, &veth, sample_tables().policies[&PolicyId(1)])?;
    outcomes(&attach::apply(&bpf, &veth.early_clients(XdpMode::Native), Mode::Tcx)?)?;
    veth.send(6)?;
    let counters = bpf.counters()?;
    let early = counters.early[&veth.ifindex];
    ensure!((early.sent, early.left) == (0, 6), "{early:?}");
    let stats = counters.services[&ServiceId(1)];
    ensure!((stats.tickets, stats.refused, stats.unmatched) == (6, 0, 0), "{stats:?}");
    for backend in [BackendId(1), BackendId(2)] {
        let traffic = counters.traffic[&backend];
        ensure!((traffic.choices, traffic.packets_in) == (3, 3), "{traffic:?}, {:?}", counters.reasons);
    }
    Ok(())
}

fn what_no_rule_takes_draws_one_ticket() -> Result<()> {
    let ground = Ground::new()?;
    let veth = Veth::new("rule")?;
    let (mut bpf, _) = ground.open()?;
    let rule = NthRule { every: 3, packet: 1, slot: Slot { backend: BackendId(1), endpoint: EndpointId(1) } };
    bpf.apply(&[Change::WriteRun(Run { chunk: 0, start: 2048 }, rule.to_words().to_vec())])?;
    let index = Index::Chain.to_word();
    let policy = Policy { index, slots_start: 2048, slots_count: 1, ..sample_tables().policies[&PolicyId(1)] };
    serve_each_packet(&mut bpf, &veth, policy)?;
    outcomes(&attach::apply(&bpf, &veth.early_clients(XdpMode::Native), Mode::Tcx)?)?;
    veth.send(9)?;
    let counters = bpf.counters()?;
    let stats = counters.services[&ServiceId(1)];
    ensure!((stats.tickets, stats.unmatched) == (9, 6), "{stats:?}");
    ensure!(counters.traffic[&BackendId(1)].packets_in == 3, "{:?}", counters.traffic);
    ensure!(counters.reasons[&Reason::NoRuleMatched] == 6, "{:?}", counters.reasons);
    Ok(())
}

fn a_note_of_someone_else_is_not_believed() -> Result<()> {
    let (ground, other) = (Ground::new()?, Ground::new()?);
    let veth = Veth::new("forge")?;
    let (mut bpf, _) = ground.open()?;
    let (mut other, _) = other.open()?;
    let policy = sample_tables().policies[&PolicyId(1)];
    // Another balancer's XDP program leaves notes of its own in front of our program.
    serve_each_packet(&mut other, &veth, policy)?;
    outcomes(&attach::apply(&other, &veth.early_clients(XdpMode::Native), Mode::Tcx)?)?;
    serve_each_packet(&mut bpf, &veth, policy)?;
    outcomes(&attach::apply(&bpf, &veth.clients(), Mode::Tcx)?)?;
    veth.send(6)?;
    ensure!(other.counters()?.early[&veth.ifindex].left == 6, "theirs decided: {:?}", other.counters()?.early);
    let stats = bpf.counters()?.services[&ServiceId(1)];
    ensure!(stats.tickets == 6, "ours decides for itself: {stats:?}");
    Ok(())
}

// What all of them stand on.

/// A bpf filesystem and a folder for the state, both gone at the end.
struct Ground {
    root: TempDir,
    pins: Pins,
}

impl Ground {
    fn new() -> Result<Self> {
        let root = TempDir::new()?;
        for folder in ["bpf", "state"] {
            std::fs::create_dir(root.path().join(folder))?;
        }
        mount(Some("bpf"), &root.path().join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let pins = options(root.path()).pins;
        Ok(Self { root, pins })
    }

    fn options(&self) -> Options {
        options(self.root.path())
    }

    fn open(&self) -> Result<(Bpf, Opening)> {
        Ok(Bpf::open_or_create(&self.options())?)
    }

    fn mapping(&self, name: &str) -> Result<Mapping> {
        Ok(Mapping::new(&Map::open(&self.pins.path().join(name))?, Access::Write)?)
    }

    fn write_version(&self, version: u64) -> Result<()> {
        let map = Map::open(&self.pins.path().join("SETTINGS"))?;
        let mut words = vec![0; map.value_bytes()];
        map.lookup(&0_u32.to_ne_bytes(), &mut words)?;
        words[..8].copy_from_slice(&version.to_ne_bytes());
        Ok(map.update(&0_u32.to_ne_bytes(), &words)?)
    }

    /// Packets that a program saw and did not know.
    fn not_ours(&self) -> Result<u64> {
        Ok(Maps::look(&self.pins)?.counters()?.reasons[&Reason::NotOurs])
    }

    fn generations(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.pins.path())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name.starts_with("programs-"));
        Ok(names)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The namespace's end does the same, if this fails.
        umount2(&self.root.path().join("bpf"), MntFlags::MNT_DETACH).ok();
    }
}

fn options(root: &Path) -> Options {
    let path: PathBuf = root.join("bpf/evenkeel");
    Options { pins: Pins::new(path), state: root.join("state"), capacity: Capacity::default(), trace: None }
}

/// A pair of interfaces, of which one is hooked and the other sends to it.
struct Veth {
    name: String,
    ifindex: u32,
    target: String,
}

impl Veth {
    fn new(name: &str) -> Result<Self> {
        Self::numbered(name, None)
    }

    fn numbered(name: &str, ifindex: Option<u32>) -> Result<Self> {
        // Two trials may want one of this name at once.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let own = MADE.fetch_add(1, Ordering::SeqCst);
        let (name, peer) = (format!("{name}{own}a"), format!("{name}{own}b"));
        let number = ifindex.map(|number| number.to_string());
        let mut add = vec!["link", "add", &name];
        add.extend(number.iter().flat_map(|number| ["index", number]));
        add.extend(["type", "veth", "peer", "name", &peer]);
        run("ip", &add)?;
        let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}"));
        // The files of this network namespace, because `/sys` was mounted anew in it.
        let ifindex: u32 = read("ifindex")?.trim().parse()?;
        let mac = read("address")?;
        // Nobody speaks but the test.
        for end in [&name, &peer] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6"), "1")?;
            run("ip", &["link", "set", end, "up"])?;
        }
        let net = format!("10.{}.{}", ifindex >> 8 & 0xff, ifindex & 0xff);
        let (own, target) = (format!("{net}.1/24"), format!("{net}.2"));
        run("ip", &["address", "add", &own, "dev", &peer])?;
        run("ip", &["neighbour", "add", &target, "lladdr", mac.trim(), "dev", &peer])?;
        Ok(Self { name, ifindex, target })
    }

    /// Sends packets that come in by the hooked end.
    fn send(&self, count: u32) -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..count {
            socket.send_to(b"to nobody", (self.target.as_str(), 9))?;
        }
        Ok(())
    }

    /// What makes packets that are sent here a service's.
    fn frontend(&self, frontend: FrontendId, service: ServiceId) -> [Change; 3] {
        let key = key(&self.target, 9);
        [
            Change::WriteFrontendInfo(frontend, FrontendInfo { key, service }),
            Change::PutFrontend(key, Frontend { frontend, service }),
            Change::Grace,
        ]
    }

    fn clients(&self) -> BTreeMap<u32, Hooks> {
        let hooks = Hooks { name: self.name.clone(), ingress: Some(Role::Clients), egress: false, xdp: None };
        BTreeMap::from([(self.ifindex, hooks)])
    }

    /// The same with XDP in front.
    fn early_clients(&self, mode: XdpMode) -> BTreeMap<u32, Hooks> {
        let mut hooks = self.clients();
        hooks.values_mut().for_each(|hooks| hooks.xdp = Some(mode));
        hooks
    }

    /// How an XDP program runs on the hooked end, if any does.
    fn early(&self) -> Result<Option<XdpMode>> {
        let shown = run("ip", &["link", "show", "dev", &self.name])?;
        let mode = |word: &str| match word {
            "xdp" => Some(XdpMode::Native),
            "xdpgeneric" => Some(XdpMode::Generic),
            _ => None,
        };
        Ok(shown.split_whitespace().find_map(mode))
    }

    /// The hooked end as XDP is told of it, at its place.
    fn device(&self) -> Result<(u32, Device)> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{}/address", self.name))?;
        let bytes =
            text.trim().split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<Vec<u8>>>()?;
        let [a, b, c, d, e, f] = bytes[..] else { bail!("{text} is no link-layer address") };
        let address = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        let device = Device { ifindex: self.ifindex, abilities: Abilities::default(), address, zero: 0 };
        Ok((Device::place(self.ifindex), device))
    }

    /// Whether one program of ours is on ingress, and one on egress.
    fn hooks(&self, mode: Mode) -> Result<(bool, bool)> {
        let is_there = |direction: Point| -> Result<bool> {
            match mode {
                Mode::Tcx => Ok(sys::tcx_programs(self.ifindex, direction)?.len() == 1),
                Mode::Clsact => {
                    let filters = run("tc", &["filter", "show", "dev", &self.name, direction.name()])?;
                    Ok(filters.matches("evenkeel:").count() == 1)
                }
                Mode::Xdp(_) => bail!("XDP has no such hooks"),
            }
        };
        Ok((is_there(Point::Ingress)?, is_there(Point::Egress)?))
    }

    fn has_clsact(&self) -> Result<bool> {
        Ok(run("tc", &["qdisc", "show", "dev", &self.name])?.contains("clsact"))
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        drop(run("ip", &["link", "del", &self.name]));
    }
}

/// Namespaces of this process's own, and a `/sys` that shows them.
fn leave_the_host() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)?;
    run("ip", &["link", "set", "lo", "up"])?;
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {told}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

fn outcomes(reports: &[HookReport]) -> Result<Vec<Outcome>> {
    let outcome = |report: &HookReport| match &report.outcome {
        Ok(outcome) => Ok(*outcome),
        Err(error) => bail!("{error}"),
    };
    reports.iter().map(outcome).collect()
}

fn put_flow(
    flows: &Mapping,
    active: &Mapping,
    (bucket, way): (u32, usize),
    state: FlowState,
    seen: Tick,
    backend: BackendId,
    frontend: FrontendId,
) -> Result<()> {
    let client: IpAddr = [192, 0, 2, way as u8].into();
    let client = Client { address: client.into(), port: Port::new(1000 + way as u16), protocol: Protocol::TCP };
    let entry = Entry { client, frontend, backend, endpoint: EndpointId(backend.0) }.to_words();
    let words = flows.entry(bucket).context("the bucket is in the map")?;
    ensure!(words[way].load(Ordering::SeqCst) == 0, "each way is used once");
    for (place, word) in words[WAYS + way * Entry::WORDS..].iter().zip(entry) {
        place.store(word, Ordering::SeqCst);
    }
    words[way].store(Word::new(5, 1, state, seen).0, Ordering::SeqCst);
    let count = &active.entry(backend.0).context("the backend is in the map")?[0];
    count.fetch_add(u64::from(state.is_active()), Ordering::SeqCst);
    Ok(())
}

fn word(flows: &Mapping, (bucket, way): (u32, usize)) -> Result<&AtomicU64> {
    Ok(&flows.entry(bucket).context("the bucket is in the map")?[way])
}

fn key(address: &str, port: u16) -> SocketKey {
    let address: IpAddr = address.parse().expect("a valid address");
    SocketKey::new(address.into(), Port::new(port), Protocol::UDP)
}

/// Two services: one per flow by turns with two backends, one per packet by an nth chain.
fn sample_tables() -> Tables {
    let slot = |id: u32| Slot { backend: BackendId(id), endpoint: EndpointId(id) };
    let rule = NthRule { every: 3, packet: 1, slot: slot(3) };
    let policy = |index: Index, flags, start, count, service| Policy {
        index: index.to_word(),
        flags,
        slots_chunk: 0,
        slots_start: start,
        slots_count: count,
        service: ServiceId(service),
        others_count: 0,
        zero: [0; 9],
    };
    let backend = |id: u32, address: &str, service, way| {
        let key = key(address, 53);
        let record =
            BackendRecord { service: ServiceId(service), key, endpoint: EndpointId(id), state: BackendState::Use, way };
        (BackendId(id), record)
    };
    let frontend = |id: u32, address: &str, service| (key(address, 53), FrontendId(id), ServiceId(service));
    let frontends = [frontend(1, "10.9.0.2", 1), frontend(2, "10.9.0.3", 1), frontend(3, "fd00:9::2", 2)];
    Tables {
        frontends: frontends
            .iter()
            .map(|(key, frontend, service)| (*key, Frontend { frontend: *frontend, service: *service }))
            .collect(),
        frontend_infos: frontends
            .iter()
            .map(|(key, id, service)| (*id, FrontendInfo { key: *key, service: *service }))
            .collect(),
        services: BTreeMap::from([
            (ServiceId(1), ServiceWord { policy: PolicyId(1), change: 4 }),
            (ServiceId(2), ServiceWord { policy: PolicyId(9), change: u32::MAX }),
        ]),
        policies: BTreeMap::from([
            (PolicyId(1), policy(Index::Cursor, 0, 64, 2, 1)),
            (PolicyId(9), policy(Index::Chain, Policy::PER_PACKET, 1024, 1, 2)),
        ]),
        runs: BTreeMap::from([
            (Run { chunk: 0, start: 64 }, vec![slot(1).to_word(), slot(2).to_word()]),
            (Run { chunk: 0, start: 1024 }, rule.to_words().to_vec()),
        ]),
        backends: BTreeMap::from([
            backend(1, "10.100.13.2", 1, Way::Stack),
            backend(2, "10.100.13.3", 1, Way::Peer { ifindex: 12 }),
            backend(3, "fd00:100:13::4", 2, Way::Neighbour { ifindex: 7 }),
        ]),
        endpoints: [
            ("10.100.13.2", Endpoint::FLOWS),
            ("10.100.13.3", Endpoint::FLOWS),
            ("fd00:100:13::4", Endpoint::REPLIES),
        ]
        .into_iter()
        .zip(1..)
        .map(|((address, flags), id)| {
            (key(address, 53), Endpoint { id: EndpointId(id), flags, backend: BackendId(id), zero: 0 })
        })
        .collect(),
    }
}

/// What makes the sample of empty maps.
fn sample_changes() -> Vec<Change> {
    let tables = sample_tables();
    let mut changes = Vec::new();
    changes.extend(tables.frontend_infos.into_iter().map(|(id, info)| Change::WriteFrontendInfo(id, info)));
    changes.extend(tables.backends.into_iter().map(|(id, record)| Change::WriteBackend(id, record)));
    changes.extend(tables.endpoints.into_iter().map(|(key, endpoint)| Change::PutEndpoint(key, endpoint)));
    changes.extend(tables.runs.into_iter().map(|(run, words)| Change::WriteRun(run, words)));
    changes.extend(tables.policies.into_iter().map(|(id, policy)| Change::WritePolicy(id, policy)));
    changes.extend(tables.services.keys().map(|id| Change::StartService(*id, 7)));
    changes.extend(tables.services.into_iter().map(|(id, word)| Change::SwapService(id, word)));
    changes.extend(tables.frontends.into_iter().map(|(key, frontend)| Change::PutFrontend(key, frontend)));
    changes.push(Change::Grace);
    changes
}
