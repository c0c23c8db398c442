//! The testbed: namespaces with real clients, a balancer and real servers in them, and what they are compared with.
//!
//! `lab` builds, `ask`, `steady`, `dig`, `dnsperf`, `curl` and `datagram` are clients, `bind`, `nginx` and `responder`
//! servers, `reference` holds today's rules, `evenkeel` runs ours, `bench` measures both. The scenarios lie in `tests/`.

#![deny(unsafe_code)]

pub mod lab;

pub mod road;

pub mod engine;
pub mod namespace;

pub mod bind;
pub mod nginx;
pub mod responder;

pub mod ask;
pub mod curl;
pub mod datagram;
pub mod dig;
pub mod dnsperf;
pub mod twins;
mod poll;

pub mod capture;
pub mod crowd;
pub mod steady;

pub mod chi_square;
pub mod reference;
pub mod statistic;

pub mod evenkeel;

pub mod demo;

pub mod bench;

mod paint;

pub mod cases;
pub mod packet;
pub mod tap;
pub mod theirs;

pub mod harness;
pub mod losses;
pub mod trace;

pub mod cleanup;
pub mod process;
