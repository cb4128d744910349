//! The `guard` command.

use std::process::ExitCode;

use guard::commands::Arguments;

// Two, so that what Docker says is heard while a policy is loaded.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Ok(arguments) => arguments.run().await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("guard: {failure}");
            failure.exit_code()
        }
    }
}
