//! The `guard` command.

use std::process::ExitCode;

use guard::{commands::Arguments, memory, privileges};
use tokio::runtime::Builder;

/// Two, so that one can answer clients while the other loads a policy.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    memory::limit_heaps();
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .on_thread_start(privileges::follow)
        .on_thread_park(privileges::follow)
        .on_thread_unpark(privileges::follow)
        .enable_all()
        .build();
    let result = runtime
        .map_err(|error| anyhow::Error::from(error).into())
        .and_then(|runtime| {
            let result = runtime.block_on(async { Arguments::parse()?.run().await });
            // A task that still waits for an answer must not delay the end of the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("guard: {failure}");
            failure.exit_code()
        }
    }
}
