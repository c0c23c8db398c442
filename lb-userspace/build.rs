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
    let built = bpf::build(&bpf::find()?)?;
    // A copy of this build's own, because another profile may build the next one over it.
    let own = Path::new(&env::var("OUT_DIR")?).join("evenkeel.bpf.o");
    fs::copy(built, &own)?;
    println!("cargo::rustc-env=EVENKEEL_BPF_OBJECT={}", own.display());
    Ok(())
}
