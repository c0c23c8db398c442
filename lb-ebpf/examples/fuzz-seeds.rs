//! Writes the seeds of the fuzz target into its corpus. What else is in there stays.

use std::{fs, io, path::Path};

use lb_ebpf::testing::fuzz::seeds;

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/pipeline");
    fs::create_dir_all(&folder)?;
    for seed in seeds::all() {
        fs::write(folder.join(seed.name), seed.bytes)?;
    }
    Ok(())
}
