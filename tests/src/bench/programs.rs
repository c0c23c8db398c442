//! The bench's own programs, loaded from the object that `cargo xtask bench` has built.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray},
    programs::{Program, SchedClassifier, TcAttachType, TestRunResult, Xdp, XdpMode},
};
use nix::net::if_::if_nametoindex;
use zerocopy::transmute;

use super::{
    figures::Hook,
    stream::{Stream, recipe::Recipe},
};
use crate::namespace::Namespace;

/// Names the object.
const OBJECT: &str = "EVENKEEL_BENCH_OBJECT";

/// Frames that the kernel generates at once, as a driver's poll takes them.
const BATCH: u32 = 64;

/// Programs that are loaded, each set with maps of its own.
#[derive(Debug)]
pub(super) struct Programs {
    ebpf: Ebpf,
}

/// Where the maps are pinned that say what a front goes on in.
pub(super) const TARGETS: [(Hook, &str); 2] = [(Hook::Tc, "TC_TARGET"), (Hook::Xdp, "XDP_TARGET")];

impl Programs {
    /// Loads the named programs; each of `pinned` is a map, and where it is pinned.
    ///
    /// # Errors
    /// There is no object, or the kernel refuses a program.
    pub(super) fn load(names: &[&str], pinned: &[(&str, PathBuf)], gateway: [u8; 6]) -> Result<Self> {
        let object = env::var_os(OBJECT)
            .map(PathBuf::from)
            .with_context(|| format!("{OBJECT} names no object: the bench is run by `cargo xtask`, which builds it"))?;
        let [a, b, c, d, e, f] = gateway;
        let gateway = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let mut loader = EbpfLoader::new();
        // Nothing in the programs depends on the layout of the kernel's own types.
        loader.btf(None).override_global("GATEWAY", &gateway, true);
        for (map, path) in pinned {
            loader.map_pin_path(map, path);
        }
        let mut ebpf = loader.load_file(&object).with_context(|| object.display().to_string())?;
        for name in names {
            let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            match hook(name) {
                Hook::Tc => <&mut SchedClassifier>::try_from(program)?.load(),
                Hook::Xdp => <&mut Xdp>::try_from(program)?.load(),
            }
            .with_context(|| (*name).to_owned())?;
        }
        Ok(Self { ebpf })
    }

    /// A program, to go on in.
    pub(super) fn program(&self, name: &str) -> Result<&Program> {
        self.ebpf.program(name).with_context(|| format!("no program {name}"))
    }

    /// Lets the reference look this up, beside others that are not asked for.
    pub(super) fn know(&mut self, keys: impl Iterator<Item = [u32; 5]>) -> Result<()> {
        let map = self.ebpf.map_mut("KNOWN").context("no map KNOWN")?;
        let mut known: HashMap<_, [u32; 5], u32> = map.try_into()?;
        keys.zip(0..).try_for_each(|(key, number)| Ok(known.insert(key, number, 0)?))
    }

    /// Runs a front so many times over a packet: the last verdict, and the nanoseconds of each run by the kernel's clock.
    pub(super) fn run(&mut self, front: &str, stream: &Stream, times: u32, ifindex: u32) -> Result<(u32, f64)> {
        self.write(&stream.recipe)?;
        let options = TestRunOptions { data_in: Some(&stream.packet), repeat: times, ..TestRunOptions::default() };
        let result = match hook(front) {
            Hook::Tc => <&SchedClassifier>::try_from(self.program(front)?)?.test_run(options),
            Hook::Xdp => {
                let context = arrival(&stream.packet, ifindex);
                let options = TestRunOptions { ctx_in: Some(&context), ..options };
                <&Xdp>::try_from(self.program(front)?)?.test_run(options)
            }
        };
        let TestRunResult { return_value, duration, .. } = result.with_context(|| front.to_owned())?;
        Ok((return_value, duration.as_nanos() as f64))
    }

    /// Sends so many frames, two at least, out of a device of the current namespace; returns the nanoseconds from one to
    /// the next, in which all happens that the kernel does for them on this CPU.
    pub(super) fn generate(&mut self, stream: &Stream, frames: u32, device: &str) -> Result<f64> {
        let ifindex = if_nametoindex(device).with_context(|| device.to_owned())?;
        self.write(&Recipe { ifindex, frames: u64::from(frames), ..stream.recipe })?;
        let context = arrival(&stream.packet, ifindex);
        let options = TestRunOptions {
            data_in: Some(&stream.packet),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        <&Xdp>::try_from(self.program("xdp_generate")?)?.test_run(options).context("live frames")?;
        let Recipe { sent, began, ended, .. } = self.read()?;
        ensure!(sent == u64::from(frames), "{sent} frames generated instead of {frames}");
        Ok((ended - began) as f64 / f64::from(frames - 1))
    }

    /// Attaches a program where a device receives; it goes with this value.
    pub(super) fn attach(&mut self, name: &str, namespace: &Namespace, device: &str) -> Result<()> {
        namespace.enter(|| {
            let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            match hook(name) {
                Hook::Tc => {
                    <&mut SchedClassifier>::try_from(program)?.attach(device, TcAttachType::Ingress)?;
                }
                Hook::Xdp => {
                    <&mut Xdp>::try_from(program)?.attach(device, XdpMode::Driver)?;
                }
            }
            Ok(())
        })
    }

    /// Packets that sinks and answers have taken.
    pub(super) fn taken(&self) -> Result<u64> {
        let taken: PerCpuArray<_, u64> = self.ebpf.map("TAKEN").context("no map TAKEN")?.try_into()?;
        Ok(taken.get(&0, 0)?.iter().sum())
    }

    fn write(&mut self, recipe: &Recipe) -> Result<()> {
        let map = self.ebpf.map_mut("RECIPE").context("no map RECIPE")?;
        let mut map: Array<_, Words> = map.try_into()?;
        let words: Words = transmute!(*recipe);
        Ok(map.set(0, words, 0)?)
    }

    fn read(&self) -> Result<Recipe> {
        let map = self.ebpf.map("RECIPE").context("no map RECIPE")?;
        let map: Array<_, Words> = map.try_into()?;
        Ok(transmute!(map.get(&0, 0)?))
    }
}

/// A recipe as aya takes it.
type Words = [u64; size_of::<Recipe>() / size_of::<u64>()];

/// The hook that a program is for, by the names in the object.
fn hook(program: &str) -> Hook {
    if program.starts_with("xdp") { Hook::Xdp } else { Hook::Tc }
}

/// `struct xdp_md` of a packet that has come in by a device.
fn arrival(packet: &[u8], ifindex: u32) -> Vec<u8> {
    let (data, data_end, data_meta, queue, egress) = (0, packet.len() as u32, 0, 0, 0);
    [data, data_end, data_meta, ifindex, queue, egress].into_iter().flat_map(u32::to_ne_bytes).collect()
}
