//! `evenkeel run`: the controller, in the foreground.

use std::{io, path::PathBuf};

use anyhow::Result;
use clap::Args;
use lb_common::trace::TARGET;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    filter::{ParseError, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::Folders;
use crate::{
    reconcile::{self, Options, RunError},
    settings::{HookSetting, WaySetting},
    trace::Filter,
};

/// Balances what a configuration file says, until it is stopped; the data path goes on then.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The configuration; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE", default_value = "/etc/evenkeel/evenkeel.toml")]
    config: PathBuf,
    /// The way to backends, instead of the file's: auto, redirect-peer, redirect-neigh, xdp-redirect or stack
    #[arg(long, value_parser = way)]
    way: Option<WaySetting>,
    /// The hook, instead of the file's: auto, xdp, xdp-generic or tc
    #[arg(long, value_parser = hook)]
    hook: Option<HookSetting>,
    /// Logs for each packet that fits where it went and why: any, tcp, udp 10.9.0.1, 10.9.0.1:5353, port 53
    #[arg(long, value_name = "FILTER")]
    trace: Option<Filter>,
    #[command(flatten)]
    folders: Folders,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        log_to_stderr()?;
        let Self { config, way, hook, trace, folders: Folders { pins, state } } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(reconcile::run(&Options { config, pins, state, way, hook, trace }))?;
        Ok(())
    }
}

fn way(name: &str) -> Result<WaySetting, String> {
    let known = WaySetting::ALL.into_iter().find(|setting| setting.name() == name);
    known.ok_or_else(|| format!("one of {}", WaySetting::ALL.map(WaySetting::name).join(", ")))
}

fn hook(name: &str) -> Result<HookSetting, String> {
    let known = HookSetting::ALL.into_iter().find(|setting| setting.name() == name);
    known.ok_or_else(|| format!("one of {}", HookSetting::ALL.map(HookSetting::name).join(", ")))
}

/// What says how much is logged.
const LOG: &str = "EVENKEEL_LOG";

fn log_to_stderr() -> Result<()> {
    // Whoever asks for a trace wants to see it, however little else is logged.
    let filter = filter(std::env::var(LOG).ok().as_deref())?.with_target(TARGET, LevelFilter::INFO);
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let format = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(is_terminal);
    tracing_subscriber::registry().with(format).with(filter).init();
    Ok(())
}

/// What is wanted (`debug`, or `lb_userspace::network=trace`), `info` and above where nothing is.
fn filter(wanted: Option<&str>) -> Result<Targets, RunError> {
    let refused = |wanted, error| {
        let right = "write for example info, debug or lb_userspace::network=trace";
        RunError::Refused(vec![format!("{LOG}={wanted}: {error}; {right}")])
    };
    match wanted {
        Some(wanted) => wanted.parse().map_err(|error: ParseError| refused(wanted, error)),
        None => Ok(Targets::new().with_default(LevelFilter::INFO)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::exit_code, *};

    #[test]
    fn a_log_filter_that_cannot_be_is_wrong_usage() {
        let error = filter(Some("lb_userspace=loud")).expect_err("there is no such level");
        assert!(error.to_string().starts_with("EVENKEEL_LOG=lb_userspace=loud: "), "{error}");
        assert_eq!(exit_code(&error.into()), 2);
        for good in [None, Some("debug"), Some("lb_userspace::network=trace")] {
            assert!(filter(good).is_ok(), "{good:?}");
        }
    }
}
