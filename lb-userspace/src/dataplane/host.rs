//! What the host must have for the data path to run. Probed once into [`Facts`], judged by a pure function, so that the
//! messages can be tested anywhere.

use std::{fs, io, path::Path};

/// The oldest kernel that this is tested on. Below 5.5 arrays cannot be mapped, below 5.6 maps have no batches.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// tcx links came with this kernel; before it clsact filters serve.
pub const TCX_KERNEL: (u32, u32) = (6, 6);

/// What was found out about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Effective capabilities, a bit for each.
    pub capabilities: u64,
    /// Whether the kernel describes its own types.
    pub has_btf: bool,
    /// The kernel's release, as `uname -r` says it.
    pub release: String,
}

/// Why the data path cannot run here, and what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Not root, nor the capabilities that would do instead.
    #[error(
        "programs can be loaded into the kernel by root only; run this with sudo, or with the capabilities bpf, perfmon \
         and net_admin"
    )]
    NotPermitted,
    /// Too old.
    #[error("kernel {release} is too old; {}.{} or newer is needed, which Debian 12 and Ubuntu 24.04 have", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    OldKernel {
        /// What runs.
        release: String,
    },
    /// No BTF.
    #[error(
        "kernel {release} does not describe its types (/sys/kernel/btf/vmlinux is missing); boot one built with \
         CONFIG_DEBUG_INFO_BTF=y, as distributions build theirs"
    )]
    NoBtf {
        /// What runs.
        release: String,
    },
}

/// Finds the facts of this host and process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn probe() -> io::Result<Facts> {
    let status = fs::read_to_string("/proc/self/status")?;
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status names no capabilities"))?;
    Ok(Facts {
        capabilities,
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        release: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
    })
}

/// Judges them.
///
/// # Errors
/// The first thing that is missing.
pub fn check(facts: &Facts) -> Result<(), Unfit> {
    if !may_load(facts.capabilities) {
        return Err(Unfit::NotPermitted);
    }
    if !is_at_least(&facts.release, OLDEST_KERNEL) {
        return Err(Unfit::OldKernel { release: facts.release.clone() });
    }
    if !facts.has_btf {
        return Err(Unfit::NoBtf { release: facts.release.clone() });
    }
    Ok(())
}

/// Whether a release is of this version or a later one. One that cannot be read is taken to be new.
pub fn is_at_least(release: &str, (major, minor): (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(found_major)), Some(Ok(found_minor))) => (found_major, found_minor) >= (major, minor),
        (Some(_) | None, Some(_) | None) => true,
    }
}

fn may_load(capabilities: u64) -> bool {
    // Numbers of linux/capability.h.
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    has(NET_ADMIN) && (has(SYS_ADMIN) || has(BPF) && has(PERFMON))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Facts {
        Facts { capabilities: 0x1ff_ffff_ffff, has_btf: true, release: "6.1.0-56-amd64".to_owned() }
    }

    fn message(facts: Facts) -> String {
        check(&facts).expect_err("something is missing").to_string()
    }

    #[test]
    fn each_missing_thing_is_one_sentence_with_a_way_out() {
        assert_eq!(check(&root()), Ok(()));
        assert_eq!(
            message(Facts { capabilities: 0, ..root() }),
            "programs can be loaded into the kernel by root only; run this with sudo, or with the capabilities bpf, \
             perfmon and net_admin"
        );
        assert_eq!(
            message(Facts { release: "5.15.0-91-generic".to_owned(), ..root() }),
            "kernel 5.15.0-91-generic is too old; 6.1 or newer is needed, which Debian 12 and Ubuntu 24.04 have"
        );
        assert_eq!(
            message(Facts { has_btf: false, ..root() }),
            "kernel 6.1.0-56-amd64 does not describe its types (/sys/kernel/btf/vmlinux is missing); boot one built \
             with CONFIG_DEBUG_INFO_BTF=y, as distributions build theirs"
        );
    }

    #[test]
    fn three_capabilities_do_instead_of_root() {
        let three = 1 << 12 | 1 << 38 | 1 << 39;
        assert_eq!(check(&Facts { capabilities: three, ..root() }), Ok(()));
        for missing in [12, 38, 39] {
            assert_eq!(check(&Facts { capabilities: three & !(1 << missing), ..root() }), Err(Unfit::NotPermitted));
        }
    }

    #[test]
    fn releases_compare_by_number() {
        for (release, expected) in [
            ("6.1.0", true),
            ("6.0.19", false),
            ("6.12.38+deb13-amd64", true),
            ("10.0", true),
            ("5.99", false),
            ("odd", true),
        ] {
            assert_eq!(is_at_least(release, OLDEST_KERNEL), expected, "{release}");
        }
    }
}
