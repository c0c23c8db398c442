//! Everything that is BPF: the maps, the bounds check, the helpers. All unsafe code of the data path but the atomics.

pub mod exit;
pub mod kernel;
pub mod maps;
pub mod packet;
