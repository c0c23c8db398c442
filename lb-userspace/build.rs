//! Builds the kernel half, so that the binary carries it.

use std::{env, fs, path::Path, process::ExitCode};

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
    for (object, variable, name) in [
        (bpf::Object::Plain, "EVENKEEL_BPF_OBJECT", "evenkeel.bpf.o"),
        (bpf::Object::Tracing, "EVENKEEL_TRACING_BPF_OBJECT", "evenkeel-tracing.bpf.o"),
    ] {
        let built = bpf::build(&toolchain, object)?;
        // A copy of this build's own, because another profile may build the next one over it.
        let own = Path::new(&folder).join(name);
        fs::copy(built, &own)?;
        println!("cargo::rustc-env={variable}={}", own.display());
    }
    Ok(())
}
