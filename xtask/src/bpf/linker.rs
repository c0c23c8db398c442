//! The BPF linker: found, or built against the LLVM that the chosen compiler brings.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    bpf::{self, LINKER_VARIABLE, compiler::Rustc},
    folders, versions,
};

/// Finds a linker of the pinned version that runs.
///
/// # Errors
///
/// When there is none.
pub fn find(llvm: u32) -> Result<PathBuf> {
    if let Some(path) = env::var_os(LINKER_VARIABLE) {
        let path = PathBuf::from(path);
        let version = version(&path).with_context(|| format!("{LINKER_VARIABLE} names no linker"))?;
        ensure!(version == pinned(), "{LINKER_VARIABLE} names {version}, and {} is what this builds with", pinned());
        return Ok(path);
    }
    let in_path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&in_path).map(|folder| folder.join("bpf-linker")).filter(|path| path.exists());
    [home(llvm).join("bin/bpf-linker")]
        .into_iter()
        .chain(in_path)
        .find(|path| version(path).is_ok_and(|version| version == pinned()))
        .with_context(|| format!("{} is neither in {} nor in PATH", pinned(), home(llvm).join("bin").display()))
}

/// Builds the linker against the LLVM of `rustc`, which takes about two minutes, and returns its path.
///
/// `run` runs the command, and tells of it as the caller likes.
///
/// # Errors
///
/// When this LLVM is not supported or its library is not found, or when the build fails.
pub fn install(rustc: &Rustc, run: impl FnOnce(&mut Command) -> Result<()>) -> Result<PathBuf> {
    let llvm = rustc.llvm;
    ensure!(
        versions::BPF_LINKER_LLVM.contains(&llvm),
        "{} brings LLVM {llvm}, and {} is built here with {:?}: use another compiler, or raise xtask/src/versions.rs",
        rustc.path.display(),
        pinned(),
        versions::BPF_LINKER_LLVM
    );
    let home = home(llvm);
    let prefix = home.join("llvm");
    link_library(&library(rustc)?, &prefix.join("lib"))?;
    let building = home.join("build");
    let mut command = bpf::clean(&rustc.cargo);
    command
        .args(["install", "bpf-linker", "--version", versions::BPF_LINKER, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&home)
        // Outside the workspace, so that its cargo configuration does not apply.
        .current_dir("/")
        .env("RUSTC", &rustc.path)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_TARGET_DIR", &building);
    run(&mut command).with_context(|| format!("{} does not build", pinned()))?;
    // Half a gigabyte that nothing reads again; a folder that stays is no harm.
    let _ = fs::remove_dir_all(&building);
    find(llvm)
}

fn pinned() -> String {
    format!("bpf-linker {}", versions::BPF_LINKER)
}

/// One folder for each LLVM, because a linker reads only what its own and older ones wrote.
fn home(llvm: u32) -> PathBuf {
    folders::tools().join(format!("bpf-linker-{}-llvm-{llvm}", versions::BPF_LINKER))
}

fn version(linker: &Path) -> Result<String> {
    bpf::first_line(Command::new(linker).arg("--version"))
}

/// Finds the LLVM library that the compiler itself is linked with.
fn library(rustc: &Rustc) -> Result<PathBuf> {
    let own = rustc.sysroot.join("lib");
    // Debian's multiarch folders, and what other distributions have in their place.
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let multiarch = multiarch.filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    let llvm = rustc.llvm;
    let system = [format!("/usr/lib/llvm-{llvm}/lib"), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
    let folders = [own].into_iter().chain(multiarch).chain(system.map(PathBuf::from));
    let names = format!("libLLVM.so.{llvm}");
    folders.flat_map(|folder| files_beginning_with(&folder, &names)).next().with_context(|| {
        format!("{names}*, the LLVM library of {}, is not where it is looked for", rustc.path.display())
    })
}

fn files_beginning_with(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(start);
    let mut found: Vec<PathBuf> = entries.filter(named).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Gives the library the name that the linker's build looks for beside its own, by which it is found when run.
fn link_library(library: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let own = library.file_name().context("the LLVM library has a name")?;
    for link in [folder.join(own), folder.join("libLLVM.so")] {
        // Left by an earlier toolchain, or not there at all.
        let _ = fs::remove_file(&link);
        symlink(library, &link).with_context(|| format!("{} cannot be made", link.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_linked_by_both_names_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libLLVM.so.22.1-rust");
        fs::write(&library, "").unwrap();
        for _ in 0..2 {
            link_library(&library, &folder.path().join("lib")).unwrap();
            for name in ["libLLVM.so", "libLLVM.so.22.1-rust"] {
                assert_eq!(fs::read_link(folder.path().join("lib").join(name)).unwrap(), library);
            }
        }
    }

    #[test]
    fn libraries_are_found_by_the_start_of_their_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libLLVM.so.22.1", "libLLVM.so.21", "libLLVM-22.so"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(files_beginning_with(folder.path(), "libLLVM.so.22"), [folder.path().join("libLLVM.so.22.1")]);
    }
}
