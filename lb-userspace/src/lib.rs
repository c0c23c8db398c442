//! The controller and the command line of Evenkeel.
//!
//! A change of configuration is read from left to right: `source` makes what is wanted (`model`) of a file, `plan`
//! makes tables of that with the help of `selector`, and changes of the difference to what is programmed, and
//! `dataplane` applies them. `network` sees what the host looks like and chooses the way to each backend; `reconcile`
//! is the story that calls all of these in order; `state` and `cli` tell of it.

pub mod cli;
pub mod reconcile;
pub mod source;
pub mod model;
pub mod selector;
pub mod plan;
pub mod dataplane;
pub mod network;
pub mod settings;
pub mod capacity;
pub mod state;
pub mod trace;
