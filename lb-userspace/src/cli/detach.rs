//! `evenkeel detach`: takes everything away that `run` has put into the kernel.

use std::fs;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{Folders, permitted, print};
use crate::{
    dataplane::{
        attach::{self, Detached},
        pins::Pins,
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
        // The lock that keeps a controller from starting meanwhile lies there.
        fs::create_dir_all(state).with_context(|| state.display().to_string())?;
        let detached = attach::detach_all(&Pins::new(pins), state)?;
        State::remove(state)?;
        print(&told(detached))
    }
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
    fn what_was_removed_is_told() {
        assert_eq!(told(Detached::default()), "nothing was there\n");
        assert_eq!(told(Detached { hooks: 3, has_maps: true }), "removed 3 hooks and the maps with all flows\n");
        assert_eq!(told(Detached { hooks: 1, has_maps: false }), "removed 1 hook; there were no maps\n");
    }
}
