//! From a shard's system catalogs to a [`Catalog`].
//!
//! What is proven here, and not just declared: a distributed table has forced
//! row security and exactly the policy that `ringfence.distribute` makes; a
//! reference table can't be written by API roles; a view runs with its caller's
//! rights over relations that are themselves exposed; a function that runs with
//! its owner's rights has an owner that does not pass row security. Everything
//! else is left out, and listed with the reason.

mod assemble;
mod functions;
mod rows;
mod view;

use std::time::Instant;

use tokio_postgres::Client;

use crate::catalog::Catalog;

/// Why a schema model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shard's answer, or the lack of one.
    #[error("the system catalogs can't be read")]
    Postgres(#[from] tokio_postgres::Error),
    /// A view's stored rule does not have the form that Postgres writes.
    #[error("the rule of view {0} can't be read")]
    ViewRule(String),
}

/// Loads the model of the schemas `exposed` in one consistent read.
///
/// `client` must have nothing else in flight: the read is a transaction of its
/// own, with an empty `search_path`, so that every name comes out qualified.
pub async fn load(client: &Client, exposed: &[&str]) -> Result<Catalog, Error> {
    let started = Instant::now();
    client
        .batch_execute(
            "begin isolation level repeatable read read only; set local search_path = ''",
        )
        .await?;
    let raw = rows::read(client, exposed).await;
    client
        .batch_execute(if raw.is_ok() { "commit" } else { "rollback" })
        .await?;
    let catalog = assemble::catalog(raw?)?;
    tracing::debug!(
        relations = catalog.relations.len(),
        took_ms = started.elapsed().as_millis() as u64,
        "schema model loaded"
    );
    Ok(catalog)
}

/// A number that differs after every change of the shard's schema; cheap to ask.
pub async fn version(client: &Client) -> Result<i64, Error> {
    let row = client
        .query_one("select version from ringfence.schema_version", &[])
        .await?;
    Ok(row.get(0))
}
