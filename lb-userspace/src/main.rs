//! The `evenkeel` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
