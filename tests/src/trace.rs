//! Packets that a program of XDP wanted sent and the kernel did not send: told by tracepoints, each labelled with the
//! program, so that those of other labs are not taken for ours.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::lab::Lab;

/// A trace of a lab's own; it goes with the lab.
#[derive(Debug)]
pub struct Trace {
    directory: PathBuf,
}

impl Trace {
    /// Begins to listen to what the kernel refuses to redirect, and to programs that end with no verdict.
    ///
    /// # Errors
    /// The kernel shows no traces, or has no such tracepoint.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mounted = lab.directory("traces")?;
        mount(Some("traces"), &mounted, Some("tracefs"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("{}: no traces", mounted.display()))?;
        let directory = lab.prefix().trace();
        fs::create_dir(&directory).with_context(|| format!("{}: not made", directory.display()))?;
        for event in ["xdp_redirect_err", "xdp_exception"] {
            let switch = directory.join("events/xdp").join(event).join("enable");
            fs::write(&switch, "1").with_context(|| format!("{}", switch.display()))?;
        }
        Ok(Self { directory })
    }

    /// What it has heard of these programs since it began or was last asked, a line each.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn heard_of(&self, programs: &[u64]) -> Result<Vec<String>> {
        let trace = self.directory.join("trace");
        let lines = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
        fs::write(&trace, "")?;
        let is_of = |line: &&str| programs.iter().any(|program| line.contains(&format!(" prog_id={program} ")));
        Ok(lines.lines().filter(is_of).map(str::to_owned).collect())
    }
}

/// The programs of XDP that are on the balancer's devices.
///
/// # Errors
/// `ip` does not say.
pub fn programs(lab: &Lab) -> Result<Vec<u64>> {
    let listed = lab.balancer().sh("ip -json link show")?;
    let links: serde_json::Value = serde_json::from_str(&listed).with_context(|| listed.clone())?;
    let links = links.as_array().with_context(|| listed.clone())?;
    Ok(links.iter().filter_map(|link| link["xdp"]["prog"]["id"].as_u64()).collect())
}
