//! `ringfence`: what a DBA types.

use std::process::ExitCode;

use clap::Parser;
use ops::cmd::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    let exit = match Cli::parse().run().await {
        Ok(()) => ops::Exit::Ok,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            error.exit()
        }
    };
    ExitCode::from(exit as u8)
}
