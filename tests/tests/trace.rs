//! The decision trace: what it costs when it is off, and what it says when it is on.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Ebpf, EbpfLoader, programs::Program as Loaded};
use lb_userspace::trace::Filter;
use testbed::{
    ask::Ask,
    bind::Bind,
    evenkeel::Evenkeel,
    harness::{on_root, run},
    lab::{FRONTENDS, Lab, Layout, Offloads, Reach},
};
use xtask::bpf::{self, With};

fn main() -> ExitCode {
    run(vec![on_root("off, the programs are those of a build without it", off_it_costs_nothing)])
}

/// What the kernel makes of each program: instructions that the verifier took, bytes that are left of it.
type Sizes = BTreeMap<String, (u32, u32)>;

fn off_it_costs_nothing() -> Result<()> {
    let toolchain = bpf::find()?;
    let with = sizes(&toolchain, With::Trace, 0)?;
    let without = sizes(&toolchain, With::Nothing, 0)?;
    println!("{:#?}\n{:#?}", with, without);
    println!("{:#?}", sizes(&toolchain, With::Trace, 1)?);
    ensure!(with == without, "with the trace off: {with:?}, without a trace: {without:?}");
    Ok(())
}

fn sizes(toolchain: &bpf::Toolchain, with: With, trace: u32) -> Result<Sizes> {
    let object = fs::read(bpf::build(toolchain, with)?)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None).override_global("TRACE", &trace, false);
    let mut ebpf = loader.load(&object)?;
    let mut sizes = Sizes::new();
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Loaded::SchedClassifier(classifier) => classifier.load(),
            Loaded::Xdp(xdp) => xdp.load(),
            _ => bail!("{name} is of another kind"),
        };
        loaded.with_context(|| name.to_owned())?;
        let info = program.info()?;
        let verified = info.verified_instruction_count().context("the kernel does not tell")?;
        let translated = info.size_translated().context("the kernel does not tell")?;
        sizes.insert(name.to_owned(), (verified, translated));
    }
    Ok(sizes)
}
