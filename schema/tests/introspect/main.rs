//! Introspection and the CRM, on a real Postgres.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod crm;
mod model;
mod proof;
mod support;
