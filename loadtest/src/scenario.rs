//! Traffic scripts: TOML in, checked values out. Unknown keys, bad values and
//! parts that contradict each other are refused with line and column, so that
//! a misspelt weight can never silently become another load.

mod body;
mod period;
mod problem;
mod validate;

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

pub use body::Body;
pub use period::{Period, Range};
pub use problem::Problem;

use crate::error::{Error, Result};
use crate::pacer::Spacing;
use crate::template::Template;

/// A whole traffic script.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "ringfence-loadtest scenario")]
pub struct Scenario {
    /// The name that reports carry.
    pub name: String,
    /// What the script is for, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Seeds every choice and every generated value: equal seeds, equal
    /// traffic.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How requests are sent.
    #[serde(default)]
    pub load: Load,
    /// Whose requests they are.
    #[schemars(with = "Option<Population>")]
    pub population: Option<Spanned<Population>>,
    /// The level of load over time, one stage after the other.
    #[serde(rename = "stage")]
    #[schemars(with = "Vec<Stage>")]
    pub stages: Vec<Spanned<Stage>>,
    /// What is requested.
    #[serde(rename = "operation")]
    #[schemars(with = "Vec<Operation>")]
    pub operations: Vec<Spanned<Operation>>,
    /// Noisy neighbours: single tenants that send far more for a while.
    #[serde(default, rename = "flood")]
    #[schemars(with = "Vec<Flood>")]
    pub floods: Vec<Spanned<Flood>>,
    /// Where `--check` keeps the rows that it watches; needed for `--check`.
    #[schemars(with = "Option<Checks>")]
    pub checks: Option<Spanned<Checks>>,
    /// Thresholds; a missed one ends the run with exit code 99.
    #[serde(default, rename = "gate")]
    #[schemars(with = "Vec<Gate>")]
    pub gates: Vec<Spanned<Gate>>,
}

/// How requests are sent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Open: requests arrive at a rate, whatever the target does. Closed: a
    /// number of clients, each waiting for its answer.
    pub model: Model,
    /// Open model: how arrivals are spaced.
    pub arrivals: Spacing,
    /// Open model: at most this many connections in all. Arrivals that find
    /// none free wait, and their wait is part of their latency.
    #[schemars(range(min = 1))]
    pub connections: usize,
    /// Open model: at most this many arrivals wait at a time; more are
    /// dropped, counted and shown.
    #[schemars(range(min = 1))]
    pub backlog: usize,
    /// A request without an answer after this long is given up; a write's
    /// outcome is then indeterminate.
    pub timeout: Period,
    /// Closed model: each client's pause after an answer, fixed ("100ms") or
    /// uniform between two ("50ms..200ms").
    pub think_time: Range,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            model: Model::Open,
            arrivals: Spacing::Even,
            connections: 64,
            backlog: 100_000,
            timeout: Period::from_secs(10),
            think_time: Range::ZERO,
        }
    }
}

/// The two models of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// Levels are requests per second.
    Open,
    /// Levels are clients.
    Closed,
}

/// Whose requests they are. At most one of `tenants`, `count` and `list`;
/// with none of them, every tenant that has a key in the environment file.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Population {
    /// These tenants, by slug. Keys come from the environment file, or from
    /// the admin API.
    pub tenants: Vec<String>,
    /// This many tenants, created through the admin API where missing.
    #[schemars(range(min = 1))]
    pub count: Option<usize>,
    /// The slugs of created tenants begin with this.
    pub prefix: Option<String>,
    /// Up to this many of the tenants that the admin API lists.
    #[schemars(range(min = 1))]
    pub list: Option<usize>,
    /// How requests spread over the tenants.
    pub spread: Spread,
    /// Zipf: the exponent; the higher, the more the first tenants get.
    #[schemars(range(min = 0.0))]
    pub exponent: Option<f64>,
    /// Whales: how many tenants are whales.
    #[schemars(range(min = 1))]
    pub whales: Option<usize>,
    /// Whales: which part of all requests is theirs.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub whale_share: Option<f64>,
    /// The regions that created tenants are put in, in turn.
    pub regions: Vec<String>,
}

/// How requests spread over the tenants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// All alike.
    #[default]
    Uniform,
    /// The nth tenant gets 1/nᵉ of the first one's.
    Zipf,
    /// A few get a given part, the others share the rest.
    Whales,
}

/// A stage of the load. Levels are requests per second (open model) or
/// clients (closed model).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its shape.
    pub kind: StageKind,
    /// How long it lasts.
    pub duration: Period,
    /// `constant`, `soak`: the level. `spike`: the level before and after.
    #[schemars(range(min = 0.0))]
    pub level: Option<f64>,
    /// `ramp`: the level when it begins.
    #[schemars(range(min = 0.0))]
    pub from: Option<f64>,
    /// `ramp`: the level when it ends.
    #[schemars(range(min = 0.0))]
    pub to: Option<f64>,
    /// `spike`: the level in its middle third.
    #[schemars(range(min = 0.0))]
    pub peak: Option<f64>,
}

/// The shape of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    /// One level.
    Constant,
    /// From one level to another, linearly.
    Ramp,
    /// A level, a peak in the middle third, the level again.
    Spike,
    /// One level for long; the report compares its begin with its end.
    Soak,
}

/// One kind of request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its name in reports; unique.
    pub name: String,
    /// How often it is chosen, relative to the others. 0: only where another
    /// part of the script names it.
    #[serde(default = "one")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub weight: Spanned<f64>,
    /// The HTTP method.
    #[serde(default = "get")]
    #[schemars(with = "String")]
    pub method: Spanned<String>,
    /// Path and query, a template; begins with `/`, relative to the target.
    #[schemars(with = "Template")]
    pub path: Spanned<Template>,
    /// More headers; values are templates.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Template>")]
    pub headers: BTreeMap<String, Spanned<Template>>,
    /// The body: a TOML table or array is sent as JSON, its texts are
    /// templates; a text is a template sent as it is.
    pub body: Option<Body>,
    /// Sends the body as a JSON array of this many renderings.
    #[schemars(with = "Option<u32>", range(min = 1, max = 100_000))]
    pub rows: Option<Spanned<u32>>,
    /// The statuses that are answers; others are errors. Default: any 2xx,
    /// and 304.
    #[serde(default)]
    pub expect: Vec<u16>,
    /// Keeps values of the answer's rows for `{{pick …}}` and `{{take …}}`:
    /// the list's name, and the field.
    #[serde(default)]
    pub save: BTreeMap<String, String>,
    /// How often it is done for each tenant before the clock starts; not
    /// measured.
    #[serde(default)]
    pub prepare: u32,
}

/// A noisy neighbour.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    /// Who floods: a tenant's slug. Default: the population's first.
    #[schemars(with = "Option<String>")]
    pub tenant: Option<Spanned<String>>,
    /// What it sends, by the operation's name.
    #[schemars(with = "String")]
    pub operation: Spanned<String>,
    /// Requests per second, always as an open model.
    #[schemars(with = "f64", range(min = 0.0))]
    pub rate: Spanned<f64>,
    /// When it begins, from the begin of the run.
    pub start: Period,
    /// How long it lasts.
    pub duration: Period,
    /// At most this many connections.
    #[serde(default = "flood_connections")]
    #[schemars(range(min = 1))]
    pub connections: usize,
}

/// Where `--check` keeps the rows that it watches, and what is declared to
/// hold for them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// The table; it needs a key column and a text column.
    pub table: String,
    /// Its primary key column, filled by the service.
    pub key: String,
    /// The text column that carries the token.
    pub column: String,
    /// Other columns of inserted rows; texts are templates.
    pub row: Option<Body>,
    /// How many rows are watched at a time, over all tenants.
    #[schemars(range(min = 1, max = 1_000))]
    pub registers: usize,
    /// Each writer's pause between two writes.
    pub pause: Period,
    /// The declared bound: how long after its acknowledgement a write may be
    /// missing from reads of others, through any router.
    pub staleness: Period,
    /// Which reads may not go back in time.
    pub monotonic: Monotonic,
    /// How many inserts the journal holds; later ones are not verified, and
    /// the report says so.
    #[schemars(range(min = 1))]
    pub journal: usize,
}

impl Default for Checks {
    fn default() -> Self {
        Checks {
            table: "notes".to_owned(),
            key: "id".to_owned(),
            column: "body".to_owned(),
            row: None,
            registers: 4,
            pause: Period::from_millis(50),
            staleness: Period::from_millis(250),
            monotonic: Monotonic::Acknowledged,
            journal: 2_000_000,
        }
    }
}

/// Which reads of one session may not go back in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Monotonic {
    /// Once seen and acknowledged, a version never disappears again. A read
    /// that overlaps the unacknowledged write may see it new, then old.
    Acknowledged,
    /// Once seen, a version never disappears again.
    Strict,
}

/// A threshold.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// What is measured.
    pub metric: Metric,
    /// The highest value that passes.
    pub max: Option<f64>,
    /// The lowest value that passes.
    pub min: Option<f64>,
    /// Only this operation; not for every metric.
    #[schemars(with = "Option<String>")]
    pub operation: Option<Spanned<String>>,
}

/// What a gate can look at. Latencies are milliseconds from the moment a
/// request was due; ratios lie between 0 and 1 unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Median latency.
    P50Ms,
    /// 90th percentile of the latency.
    P90Ms,
    /// 95th percentile of the latency.
    P95Ms,
    /// 99th percentile of the latency.
    P99Ms,
    /// 99.9th percentile of the latency.
    P999Ms,
    /// Highest latency.
    MaxMs,
    /// Mean latency.
    MeanMs,
    /// Requests that failed, of all that were due.
    ErrorRatio,
    /// Arrivals that were dropped or never sent, of all that were due.
    DroppedRatio,
    /// Arrivals sent more than a millisecond after they were due, of all.
    LateRatio,
    /// Expected answers per second.
    RatePerS,
    /// Answers from either cache, of all whose origin is known.
    HitRatio,
    /// The worst tenant's p99 divided by the median tenant's.
    FairnessRatio,
    /// The p99 of tenants that do not flood, during the floods, divided by
    /// theirs outside them.
    BystanderP99Ratio,
}

impl Operation {
    /// The table that the path names, when it names one literally.
    pub fn table(&self) -> Option<&str> {
        let crate::template::Part::Literal(text) = self.path.get_ref().parts().first()? else {
            return None;
        };
        let table = text.strip_prefix('/')?.split('?').next()?;
        (!table.is_empty() && !table.contains('/')).then_some(table)
    }

    /// The column of the body that carries a canary.
    pub fn canary_column(&self) -> Option<&str> {
        let Some(Body::Object(fields)) = &self.body else {
            return None;
        };
        fields.iter().find_map(|(name, value)| match value {
            Body::Text(template) if template.has_canary() => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Metric {
    /// Whether it can be looked at for a single operation.
    fn by_operation(self) -> bool {
        match self {
            Metric::P50Ms
            | Metric::P90Ms
            | Metric::P95Ms
            | Metric::P99Ms
            | Metric::P999Ms
            | Metric::MaxMs
            | Metric::MeanMs
            | Metric::ErrorRatio
            | Metric::RatePerS
            | Metric::HitRatio => true,
            Metric::DroppedRatio
            | Metric::LateRatio
            | Metric::FairnessRatio
            | Metric::BystanderP99Ratio => false,
        }
    }
}

impl Scenario {
    /// Reads and checks a scenario file.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Scenario`] with the first problem.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Checks a scenario's text; `file` is only named in problems.
    ///
    /// # Errors
    /// [`Error::Scenario`] with the first problem.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| {
            Error::Scenario(Box::new(Problem::at(
                file,
                text,
                error.span(),
                error.message(),
            )))
        })?;
        validate::validate(&scenario).map_err(|(span, message)| {
            Error::Scenario(Box::new(Problem::at(file, text, Some(span), &message)))
        })?;
        Ok(scenario)
    }
}

impl Scenario {
    /// Whether the scenario says where `--check` may keep its rows.
    ///
    /// # Errors
    /// [`Error::Scenario`] when it does not.
    pub fn checkable(&self, path: &Path) -> Result<()> {
        if self.checks.is_some() {
            return Ok(());
        }
        let message = "--check needs a [checks] section that names a table for the watched rows";
        Err(Error::Scenario(Box::new(Problem::at(
            &path.display().to_string(),
            "",
            None,
            message,
        ))))
    }
}

/// The JSON Schema of scenarios, for editors.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(Scenario);
    // Pretty-printing a value that is already JSON cannot fail.
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

fn default_seed() -> u64 {
    1
}

fn one() -> Spanned<f64> {
    Spanned::new(0..0, 1.0)
}

fn get() -> Spanned<String> {
    Spanned::new(0..0, "GET".to_owned())
}

fn flood_connections() -> usize {
    64
}
