//! Which backend a conversation was given: found again for every packet of it, in both directions.

pub mod state;
pub mod table;

pub use table::{Begun, Found, begin, find_by_endpoint, find_by_frontend};

#[cfg(test)]
mod tests;
