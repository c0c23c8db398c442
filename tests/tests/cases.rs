//! Ring 2: the case table on the host and in the kernel.

use std::process::ExitCode;

use testbed::{
    cases::{host::Host, kernel, table::cases},
    harness::{Needs, run_side_by_side, trial},
};

fn main() -> ExitCode {
    if Needs::Root.unmet().is_none()
        && let Err(error) = kernel::enter()
    {
        eprintln!("cases: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for case in cases() {
        let (on_host, in_kernel) = (case.clone(), case);
        trials
            .push(trial(&format!("host: {}", on_host.name), Needs::Nothing, move || on_host.run(&mut Host::default())));
        trials.push(trial(&format!("kernel: {}", in_kernel.name), Needs::Root, move || {
            in_kernel.run(&mut kernel::Kernel::new()?)
        }));
    }
    run_side_by_side(trials)
}
