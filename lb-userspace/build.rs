//! Builds the kernel half, so that the binary carries it.

use std::{env, fs, panic::resume_unwind, path::Path, process::ExitCode, thread};

use xtask::{bpf, folders};

fn main() -> ExitCode {
    for source in bpf::SOURCES {
        println!("cargo::rerun-if-changed={}", folders::workspace().join(source).display());
    }
    for choice in [bpf::COMPILER_VARIABLE, bpf::LINKER_VARIABLE] {
        println!("cargo::rerun-if-env-changed={choice}");
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> anyhow::Result<()> {
    let toolchain = bpf::find()?;
    let folder = env::var("OUT_DIR")?;
    let objects = [
        (bpf::Object::Plain, "EVENKEEL_BPF_OBJECT", "evenkeel.bpf.o"),
        (bpf::Object::Tracing, "EVENKEEL_TRACING_BPF_OBJECT", "evenkeel-tracing.bpf.o"),
    ];
    // Each is made of one unit of code, by one thread of the compiler.
    let built = thread::scope(|scope| {
        let toolchain = &toolchain;
        let builds = objects.map(|(object, ..)| scope.spawn(move || bpf::build(toolchain, object)));
        builds.map(|build| build.join().unwrap_or_else(|payload| resume_unwind(payload)))
    });
    for (built, (_, variable, name)) in built.into_iter().zip(objects) {
        // A copy of this build's own, because another profile may build the next one over it.
        let own = Path::new(&folder).join(name);
        fs::copy(built?, &own)?;
        println!("cargo::rustc-env={variable}={}", own.display());
    }
    Ok(())
}
