//! Where the workspace, its build folder and its tools lie.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Returns the root of the workspace.
pub fn workspace() -> PathBuf {
    // The compiled-in path is that of the checkout which compiled this crate, and each checkout compiles its own.
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Returns the build folder in use, from inside a build script too.
pub fn target() -> PathBuf {
    let of_build_script = env::var_os("OUT_DIR").and_then(|out| {
        let out = PathBuf::from(out);
        out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).map(Path::to_path_buf)
    });
    let chosen = || env::var_os("CARGO_TARGET_DIR").map(|folder| workspace().join(folder));
    of_build_script.or_else(chosen).unwrap_or_else(|| workspace().join("target"))
}

/// Returns the folder of the tools that `cargo xtask setup` installs; one per checkout, whatever the build folder is.
pub fn tools() -> PathBuf {
    workspace().join("target/tools")
}
