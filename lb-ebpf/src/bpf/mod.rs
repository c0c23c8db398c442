//! Everything that is BPF: the maps, the bounds check, the helpers. All unsafe code of the data path but the atomics.

pub(crate) mod exit;
pub(crate) mod kernel;
pub(crate) mod maps;
pub(crate) mod packet;
