//! The testbed: namespaces with real clients, a balancer and real servers in them, and what they are compared with.
//!
//! `lab` builds, `ask`, `dig`, `dnsperf` and `curl` are clients, `bind` and `nginx` servers, `reference` holds today's
//! rules, `evenkeel` runs ours. The scenarios lie in `tests/`.

#![deny(unsafe_code)]

pub mod lab;

pub mod engine;
pub mod namespace;

pub mod bind;
pub mod nginx;

pub mod ask;
pub mod curl;
pub mod dig;
pub mod dnsperf;

pub mod reference;
pub mod statistic;

pub mod evenkeel;

pub mod demo;

pub mod cases;
pub mod packet;

pub mod harness;

pub mod cleanup;
pub mod process;
