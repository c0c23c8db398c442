//! `evenkeel run`: the controller, in the foreground.

use std::{io, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::Folders;
use crate::{
    reconcile::{self, Options},
    settings::{HookSetting, WaySetting},
};

/// Balances what a configuration file says, until it is stopped; the data path goes on then.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The configuration; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE", default_value = "/etc/evenkeel/evenkeel.toml")]
    config: PathBuf,
    /// The way to backends, instead of the file's: auto, redirect-peer, redirect-neigh or stack
    #[arg(long, value_parser = way)]
    way: Option<WaySetting>,
    /// The hook, instead of the file's: auto or tc
    #[arg(long, value_parser = hook)]
    hook: Option<HookSetting>,
    #[command(flatten)]
    folders: Folders,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        log_to_stderr()?;
        let Self { config, way, hook, folders: Folders { pins, state } } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(reconcile::run(&Options { config, pins, state, way, hook }))?;
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

/// Logs what `EVENKEEL_LOG` names (`debug`, or `lb_userspace::network=trace`), `info` and above without it.
fn log_to_stderr() -> Result<()> {
    const VARIABLE: &str = "EVENKEEL_LOG";
    let filter = match std::env::var(VARIABLE) {
        Ok(wanted) => wanted.parse().with_context(|| format!("{VARIABLE}={wanted}"))?,
        Err(_unset) => Targets::new().with_default(LevelFilter::INFO),
    };
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let format = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(is_terminal);
    tracing_subscriber::registry().with(format).with(filter).init();
    Ok(())
}
