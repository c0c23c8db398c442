//! `evenkeel detach`: takes everything away that `run` has put into the kernel.

use std::{fs, path::Path};

use anyhow::{Context as _, Error, Result, anyhow};
use clap::Args;

use super::{Folders, permitted, print};
use crate::{
    dataplane::{
        attach::{self, Detached},
        pins::{Lock, Pins, PinsError},
    },
    state::State,
};

/// Removes hooks, maps and state; nothing is balanced any more.
#[derive(Args, Debug)]
pub(crate) struct Detach {
    #[command(flatten)]
    folders: Folders,
}

impl Detach {
    pub(crate) fn run(&self) -> Result<()> {
        permitted()?;
        let Folders { pins, state } = &self.folders;
        let pins = Pins::new(pins);
        // The lock that keeps a controller from starting meanwhile lies there.
        fs::create_dir_all(state).with_context(|| state.display().to_string())?;
        let mut lock = Lock::take(&pins, state).map_err(refusal)?;
        let detached = attach::detach(&pins, &mut lock)?;
        State::remove(state)?;
        drop(lock);
        print(&told(detached))
    }
}

/// Says of a running controller what to do about it; whoever detaches wants none in its place.
fn refusal(error: PinsError) -> Error {
    if let PinsError::InUse { path, pid } = &error { anyhow!("{}", in_use(path, *pid)) } else { error.into() }
}

fn in_use(path: &Path, pid: Option<u32>) -> String {
    let (which, by_hand) = match pid {
        Some(pid) => (format!("a controller (process {pid})"), format!("`kill {pid}`")),
        None => ("a controller".to_owned(), "SIGTERM".to_owned()),
    };
    format!(
        "{which} is running and uses {}; stop it first, with `systemctl stop evenkeel`, or with {by_hand} where systemd \
         did not start it",
        path.display()
    )
}

fn told(detached: Detached) -> String {
    match detached {
        Detached { hooks: 0, has_maps: false } => "nothing was there\n".into(),
        Detached { hooks, has_maps: true } => format!("removed {} and the maps with all flows\n", count(hooks)),
        Detached { hooks, has_maps: false } => format!("removed {}; there were no maps\n", count(hooks)),
    }
}

fn count(hooks: usize) -> String {
    if hooks == 1 { "1 hook".into() } else { format!("{hooks} hooks") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_controller_is_named_with_how_to_stop_it() {
        let message = |pid| refusal(PinsError::InUse { path: "/run/evenkeel".into(), pid }).to_string();
        assert_eq!(
            message(Some(7)),
            "a controller (process 7) is running and uses /run/evenkeel; stop it first, with `systemctl stop evenkeel`, \
             or with `kill 7` where systemd did not start it"
        );
        assert_eq!(
            message(None),
            "a controller is running and uses /run/evenkeel; stop it first, with `systemctl stop evenkeel`, or with \
             SIGTERM where systemd did not start it"
        );
        assert_eq!(
            refusal(PinsError::Absent("/pins".into())).to_string(),
            "nothing is pinned in /pins; is a controller running, with the same --pins?"
        );
    }

    #[test]
    fn what_was_removed_is_told() {
        assert_eq!(told(Detached::default()), "nothing was there\n");
        assert_eq!(told(Detached { hooks: 3, has_maps: true }), "removed 3 hooks and the maps with all flows\n");
        assert_eq!(told(Detached { hooks: 1, has_maps: false }), "removed 1 hook; there were no maps\n");
    }
}
