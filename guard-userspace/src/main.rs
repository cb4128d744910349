//! The `guard` command.

use std::process::ExitCode;

use guard::commands::Arguments;

#[tokio::main(flavor = "current_thread")]
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
