//! The command tree: one file a command.

pub mod archive;
pub mod audit;
pub mod cache;
pub mod doctor;
pub mod health;
pub mod issuer;
pub mod job;
pub mod key;
pub mod local;
pub mod migrate;
pub mod moves;
pub mod node;
pub mod plan;
pub mod query;
pub mod rebalance;
pub mod ring;
pub mod schema;
pub mod shard;
pub mod status;
pub mod tenant;
pub mod usage;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin::Admin;
use crate::error::Result;
use crate::output::{Format, Output};
use crate::target::{self, Given};

/// Manages tenants, keys, shards and nodes of a Ringfence deployment.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such thing,
            4 not reachable, 5 not allowed";

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// The admin API's address [default: that of the local cluster].
    #[arg(
        long,
        global = true,
        env = "RINGFENCE_ADMIN_URL",
        hide_env_values = true
    )]
    url: Option<String>,
    /// The admin API's token [default: that of the local cluster].
    #[arg(
        long,
        global = true,
        env = "RINGFENCE_ADMIN_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// A file with that token.
    #[arg(
        long,
        global = true,
        env = "RINGFENCE_ADMIN_TOKEN_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    token_file: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Never ask, as if no terminal were there.
    #[arg(long, global = true)]
    no_input: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tenants: create, list, show, limit, suspend, resume, export, import, delete.
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// API keys of tenants: create, list, revoke.
    #[command(subcommand)]
    Key(key::Command),
    /// Issuers of tokens: list, put, delete.
    #[command(subcommand)]
    Issuer(issuer::Command),
    /// Who changed what.
    Audit(audit::Audit),
    /// What workers do over many steps: list, show, cancel, retry.
    #[command(subcommand)]
    Job(job::Command),
    /// Changes of the schema on all shards: new, lint, plan, apply, status.
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Plans of tenants, and what they may use: list, set.
    #[command(subcommand)]
    Plan(plan::Command),
    /// Moves of tenants between shards: start, watch, roll back.
    #[command(subcommand, name = "move")]
    Move(moves::Command),
    /// Where tenants should live: plan, and apply what was read; status, pause,
    /// resume, cancel.
    #[command(subcommand)]
    Rebalance(rebalance::Command),
    /// An application's schema as it is: adopt.
    #[command(subcommand)]
    Schema(schema::Command),
    /// Shards: list, add.
    #[command(subcommand)]
    Shard(shard::Command),
    /// Postgres servers of the shards.
    #[command(subcommand)]
    Node(node::Command),
    /// The ring that places new tenants.
    #[command(subcommand)]
    Ring(ring::Command),
    /// What routers keep in their caches: stats, purge.
    #[command(subcommand)]
    Cache(cache::Command),
    /// Shards and their nodes on one screen.
    Status(status::Status),
    /// What is not as it should be on the shards, and why.
    Doctor(doctor::Doctor),
    /// Ask shards by SQL: read only, side by side, merged.
    Query(query::Query),
    /// Ask a service whether it is ready, for container engines.
    Health(health::Health),
    /// A cluster of real servers on this machine.
    Local(local::Local),
}

impl Cli {
    /// Does what was asked for, and prints the result.
    ///
    /// # Errors
    /// What went wrong; its [`crate::Exit`] is the program's exit code.
    pub async fn run(self) -> Result<()> {
        let global = self.global;
        let admin = || global.admin();
        let output = match self.command {
            Command::Tenant(command) => command.run(&admin()?, global.no_input).await,
            Command::Key(command) => command.run(&admin()?, global.no_input).await,
            Command::Issuer(command) => command.run(&admin()?, global.no_input).await,
            Command::Audit(audit) => audit.run(&admin()?).await,
            Command::Job(command) => command.run(&admin()?).await,
            Command::Migrate(command) => command.run(admin, global.no_input).await,
            Command::Plan(command) => command.run(&admin()?).await,
            Command::Move(command) => command.run(&admin()?, global.no_input).await,
            Command::Rebalance(command) => command.run(&admin()?, global.no_input).await,
            Command::Schema(command) => command.run(admin).await,
            Command::Shard(command) => command.run(&admin()?).await,
            Command::Node(command) => command.run(&admin()?).await,
            Command::Ring(command) => command.run(&admin()?).await,
            Command::Cache(command) => command.run(&admin()?).await,
            Command::Status(status) => status.run(&admin()?, global.output).await,
            Command::Doctor(doctor) => doctor.run(&admin()?, global.no_input).await,
            Command::Query(query) => query.run(&admin()?).await,
            Command::Health(health) => health.run().await,
            Command::Local(local) => match local.run().await? {
                Some(output) => Ok(output),
                None => return Ok(()),
            },
        }?;
        output.print(global.output)?;
        output.failed.map_or(Ok(()), Err)
    }
}

impl Global {
    /// The admin API that was named, or that of the local cluster.
    fn admin(&self) -> Result<Admin> {
        let token = match (&self.token, &self.token_file) {
            (None, Some(path)) => Some(target::read_token(path)?),
            (token, _) => token.clone(),
        };
        let given = Given {
            url: self.url.clone(),
            token,
        };
        let target = target::find(given, &target::current_folder()?)?;
        Admin::new(&target.url, &target.token)
    }
}

/// What a command answers.
type Answer = Result<Output>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every command's help, as a reader sees it.
    #[test]
    fn help() {
        let mut text = String::new();
        let mut root = Cli::command().term_width(80);
        // Propagates the global options into every command.
        root.build();
        collect(&mut root, &mut text);
        insta::assert_snapshot!(text);
    }

    fn collect(command: &mut clap::Command, text: &mut String) {
        text.push_str(&format!("\n# {}\n\n", command.get_bin_name().unwrap_or("")));
        text.push_str(&command.render_help().to_string());
        for sub in command.get_subcommands_mut() {
            if sub.get_name() != "help" {
                collect(sub, text);
            }
        }
    }

    #[test]
    fn command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
