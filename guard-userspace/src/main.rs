//! The `guard` command.

use std::process::ExitCode;

use clap::Parser as _;
use guard::commands::Arguments;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("guard: {failure}");
            failure.exit_code()
        }
    }
}
