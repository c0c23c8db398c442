//! What the figures were measured on.

use std::{collections::BTreeMap, fs, path::Path};

/// Facts of a machine that decide its figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that the bench may run on.
    pub cpus: usize,
    /// What the kernel does about each fault of the processor that it has.
    pub mitigations: BTreeMap<String, String>,
}

impl Facts {
    /// Those of this machine; what it does not tell is empty.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu(&read("/proc/cpuinfo")),
            cpus: crate::ask::allowed_cpus().map_or(0, |cpus| cpus.len()),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
        }
    }

    /// The mitigations in one line.
    pub fn mitigated(&self) -> String {
        let each: Vec<_> = self.mitigations.iter().map(|(fault, what)| format!("{fault}: {what}")).collect();
        if each.is_empty() { "none".to_owned() } else { each.join("; ") }
    }
}

/// The name of the first processor.
fn cpu(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.trim_start().strip_prefix(':'));
    name.unwrap_or("unknown").trim().to_owned()
}

fn mitigations(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let read = entries.filter_map(|entry| {
        let what = fs::read_to_string(entry.path()).ok()?;
        let what = what.trim().strip_prefix("Mitigation: ").unwrap_or(what.trim()).to_owned();
        (what != "Not affected").then(|| (entry.file_name().to_string_lossy().into_owned(), what))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_processor_is_read() {
        assert_eq!(cpu("processor\t: 0\nmodel name\t: A CPU of 2026\nflags\t: x\n"), "A CPU of 2026");
        assert_eq!(cpu("processor\t: 0\n"), "unknown");
    }

    #[test]
    fn faults_that_the_processor_has_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, what) in [("a", "Mitigation: Retpolines; STIBP\n"), ("b", "Not affected\n"), ("c", "Vulnerable\n")] {
            fs::write(folder.path().join(name), what).unwrap();
        }
        let mitigations = mitigations(folder.path());
        let facts = Facts { mitigations, ..Facts::default() };
        assert_eq!(facts.mitigated(), "a: Retpolines; STIBP; c: Vulnerable");
    }
}
