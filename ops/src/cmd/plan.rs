//! `ringfence plan`, and the limits that plans and tenants have.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::Answer;
use crate::admin::{Admin, segment};
use crate::output::{Column, Output, show};

/// What can be done with plans.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List plans and their limits.
    List,
    /// Set or unset limits of a plan; one that is new is made. Routers know at once.
    Set {
        /// Its name; `default` is the plan of tenants that have no other.
        plan: String,
        /// What is to change.
        #[command(flatten)]
        limits: Limits,
    },
}

/// Limits as options; each takes a number, or `none` to unset it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Requests a second, on all routers together.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    requests_per_second: Option<Limit>,
    /// Requests at once after a pause [default: those of one second].
    #[arg(long, value_name = "N|none", value_parser = limit)]
    burst: Option<Limit>,
    /// Requests being answered at a time, on all routers together.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    concurrency: Option<Limit>,
    /// Rows of one answer; more are cut off, as by a smaller `limit`.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    rows: Option<Limit>,
    /// Bytes of what one read answers.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    response_bytes: Option<Limit>,
    /// Bytes of a request's body.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    request_bytes: Option<Limit>,
    /// Milliseconds of one request on its shard.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    statement_ms: Option<Limit>,
    /// Milliseconds a second of all requests together on their shard: 500 is half of
    /// one connection.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    shard_ms_per_second: Option<Limit>,
}

/// A limit as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Unset,
    At(u32),
}

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit::Unset),
        number => number
            .parse()
            .map(Limit::At)
            .map_err(|_| "a whole number, or none".to_owned()),
    }
}

impl From<Limit> for Value {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::Unset => Self::Null,
            Limit::At(number) => number.into(),
        }
    }
}

impl Limits {
    /// What the admin API is told.
    pub(super) fn changes(self) -> Map<String, Value> {
        let all = [
            ("requests_per_second", self.requests_per_second),
            ("burst", self.burst),
            ("concurrency", self.concurrency),
            ("rows", self.rows),
            ("response_bytes", self.response_bytes),
            ("request_bytes", self.request_bytes),
            ("statement_ms", self.statement_ms),
            ("shard_ms_per_second", self.shard_ms_per_second),
        ];
        let given = all
            .into_iter()
            .filter_map(|(name, limit)| Some((name.to_owned(), limit?.into())));
        given.collect()
    }
}

const LIST: &[Column] = &[
    ("plan", |p| show(&p["id"])),
    ("tenants", |p| show(&p["tenants"])),
    ("requests/s", |p| of(p, "requests_per_second")),
    ("burst", |p| of(p, "burst")),
    ("at once", |p| of(p, "concurrency")),
    ("rows", |p| of(p, "rows")),
    ("answer", |p| of(p, "response_bytes")),
    ("body", |p| of(p, "request_bytes")),
    ("statement", |p| of(p, "statement_ms")),
    ("shard time", |p| of(p, "shard_ms_per_second")),
];

/// A limit of something that has limits.
pub(super) fn of(item: &Value, name: &str) -> String {
    let limit = &item["limits"][name];
    let unit = match name {
        "response_bytes" | "request_bytes" => " B",
        "statement_ms" => " ms",
        "shard_ms_per_second" => " ms/s",
        _ => "",
    };
    match limit.as_u64() {
        Some(limit) => format!("{limit}{unit}"),
        None => "-".to_owned(),
    }
}

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        match self {
            Self::List => {
                let mut plans = admin.get("/plans", &[]).await?;
                let items = admin.items(&mut plans, "GET /plans")?;
                Ok(Output::list(items, LIST))
            }
            Self::Set { plan, limits } => {
                let path = format!("/plans/{}", segment(&plan));
                let body = json!({ "limits": limits.changes() });
                let plan = admin.post(&path, &body).await?;
                Ok(Output::list(vec![plan.clone()], LIST).with_json(plan))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_shows_what_it_limits() {
        let plan = json!({
            "id": "gold", "tenants": 3,
            "limits": { "requests_per_second": 100, "rows": 1_000, "statement_ms": 500,
                "shard_ms_per_second": 250 },
        });
        insta::assert_snapshot!(Output::list(vec![plan], LIST).text, @r"
        PLAN  TENANTS  REQUESTS/S  BURST  AT ONCE  ROWS  ANSWER  BODY  STATEMENT  SHARD TIME
        gold  3        100         -      -        1000  -       -     500 ms     250 ms/s
        ");
    }

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!(limit("7"), Ok(Limit::At(7)));
        assert_eq!(limit("none"), Ok(Limit::Unset));
        assert!(limit("-1").is_err() && limit("many").is_err());
    }
}
