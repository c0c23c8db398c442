//! Where configuration comes from. A source publishes its whole state each time.
#![forbid(unsafe_code)]

pub mod file;
mod reader;
