//! What comes from the distribution.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{machine, setup::listed, step};

/// A package, and what shows that it is there.
pub(crate) struct Package {
    /// Debian's name of it.
    pub(crate) name: &'static str,
    /// A command in `PATH`, or a file by its whole path.
    provides: &'static str,
    /// What it is for, as half a sentence.
    why: &'static str,
    /// The service that it would start.
    service: Option<&'static str>,
}

const fn package(name: &'static str, provides: &'static str, why: &'static str) -> Package {
    Package { name, provides, why, service: None }
}

const fn server(name: &'static str, provides: &'static str, why: &'static str, service: &'static str) -> Package {
    Package { name, provides, why, service: Some(service) }
}

/// The real servers and clients, and what builds the lab around them.
pub(crate) const LAB: &[Package] = &[
    server("bind9", "named", "the servers behind the balancer", "named"),
    package("bind9-dnsutils", "dig", "a client"),
    package("dnsperf", "dnsperf", "a client that loads"),
    server("nginx-light", "nginx", "a server for TCP", "nginx"),
    package("curl", "curl", "a client for TCP"),
    package("iproute2", "ip", "makes the namespaces"),
    package("procps", "sysctl", "sets what a namespace forwards and filters"),
    package("ethtool", "ethtool", "switches offloads on and off"),
    package("iptables", "iptables", "the reference"),
    package("nftables", "nft", "the reference"),
    package("conntrack", "conntrack", "empties the reference's table between runs"),
    package("iputils-ping", "ping", "a client"),
    package("tcpdump", "tcpdump", "shows what is on a wire"),
];

/// The distribution's compiler with BPF's core library. It stands beside rustup.
pub(crate) const COMPILER: &[Package] = &[
    package("rustc-web", "/usr/bin/rustc", "compiles the kernel half"),
    package("cargo-web", "/usr/bin/cargo", "compiles the kernel half"),
    package("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none", "the core library for BPF"),
];

/// The lints of the distribution's compiler.
pub(crate) const LINTS: &[Package] = &[package("rust-web-clippy", "/usr/bin/clippy-driver", "lints the kernel half")];

/// Its formatter.
pub(crate) const FORMAT: &[Package] = &[package("rustfmt-web", "/usr/bin/rustfmt", "checks the format")];

/// What libFuzzer is compiled with.
pub(crate) const FUZZ: &[Package] = &[package("g++", "c++", "compiles libFuzzer")];

/// What makes a Debian in a folder.
pub(crate) const FRESH: &[Package] =
    &[package("debootstrap", "debootstrap", "makes the plain Debian"), package("git", "git", "makes the fresh clone")];

/// Installs those that are missing; without their recommendations, and with no service started.
///
/// # Errors
///
/// When a package is missing and there is no apt, no way to root, or no such package.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing = missing(packages, is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let names = listed(&missing);
    machine::find("apt-get")
        .with_context(|| format!("this machine has no apt: install what Debian calls {names} by its own means"))?;
    let mut command = machine::as_root(Path::new("sh")).with_context(|| {
        format!("packages are missing ({names}) and installing them takes root: run `cargo xtask setup` as root")
    })?;
    for Package { name, why, .. } in &missing {
        eprintln!("setup: installing {name}: {why}");
    }
    let services = missing.iter().filter_map(|package| package.service).collect::<Vec<_>>().join(" ");
    command.args(["-c", INSTALL, "setup", POLICY, &services]).args(missing.iter().map(|package| package.name));
    step::run(&format!("apt-get install {names}"), &mut command)
}

/// What dpkg's scripts ask before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs `$3…` and sees to it that the services `$2` run neither now, by a policy at `$1`, nor after the next boot:
/// a name server that begins to answer on port 53 is not what someone who tries a balancer asked for.
const INSTALL: &str = r#"
policy=$1
services=$2
shift 2
export DEBIAN_FRONTEND=noninteractive
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# Without a network what is in the lists may still be in the cache.
apt-get -q update || true
apt-get -q -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 install "$@" || exit 1
if [ -n "$services" ] && command -v systemctl >/dev/null; then
    systemctl --quiet disable $services || true
fi
"#;

fn missing(packages: &[Package], is_there: impl Fn(&str) -> bool) -> Vec<&Package> {
    packages.iter().filter(|package| !is_there(package.provides)).collect()
}

fn is_there(provides: &str) -> bool {
    if provides.starts_with('/') { Path::new(provides).exists() } else { machine::find(provides).is_some() }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    use super::*;

    /// Runs the script with an `apt-get` and a `systemctl` that only write down what they are called with.
    fn install_with(apt_exits: i32, policy_before: Option<&str>) -> (bool, Option<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let fake = |name: &str, rest: &str| {
            let script = format!("#!/bin/sh\necho {name} \"$*\" >>{}\n{rest}\n", at("calls"));
            fs::write(at(name), script).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        fake(
            "apt-get",
            &format!("test -x {} && echo under a policy >>{}; exit {apt_exits}", at("policy"), at("calls")),
        );
        fake("systemctl", "");
        if let Some(text) = policy_before {
            fs::write(at("policy"), text).unwrap();
        }
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", INSTALL, "setup", &at("policy"), "named nginx", "bind9", "nginx-light"]).env("PATH", path);
        let succeeded = command.status().unwrap().success();
        (succeeded, fs::read_to_string(at("policy")).ok(), fs::read_to_string(at("calls")).unwrap())
    }

    const CALLS: &str = "apt-get -q update\nunder a policy\n\
        apt-get -q -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 install bind9 nginx-light\n\
        under a policy\n";

    #[test]
    fn services_start_neither_now_nor_later_and_the_policy_does_not_stay() {
        let expected = format!("{CALLS}systemctl --quiet disable named nginx\n");
        assert_eq!(install_with(0, None), (true, None, expected));
    }

    #[test]
    fn a_policy_does_not_stay_when_the_installation_fails() {
        assert_eq!(install_with(1, None), (false, None, CALLS.to_owned()));
    }

    #[test]
    fn a_policy_that_was_there_stays_as_it_was() {
        let (succeeded, policy, _) = install_with(0, Some("theirs"));
        assert_eq!((succeeded, policy.as_deref()), (true, Some("theirs")));
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let missing = missing(LAB, |provides| !["named", "ip"].contains(&provides));
        assert_eq!(listed(&missing), "bind9 iproute2");
    }

    #[test]
    fn nothing_is_installed_where_all_is_there() {
        assert!(missing(LAB, |_| true).is_empty());
    }

    #[test]
    fn each_server_names_the_service_that_must_not_start() {
        let services: Vec<_> = LAB.iter().filter_map(|package| package.service).collect();
        assert_eq!(services, ["named", "nginx"]);
    }

    #[test]
    fn a_package_is_known_by_a_command_or_by_a_file() {
        assert!(is_there("sh") && is_there("/proc/self") && !is_there("no-such-command") && !is_there("/no/such/file"));
    }
}
