//! What a tenant may use: limits of its plan, overridden by its own, and how
//! they are told to routers in few bytes a tenant.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The plan of tenants that name none.
pub const DEFAULT_PLAN: &str = "default";

/// Limits; each that is none is not set. What a newer version added is
/// passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests a second, on all routers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Requests at once after a pause; those of one second where it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests being answered at a time, on all routers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Rows of one answer: more are cut off, as a smaller `limit` would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// Bytes of what one read answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u32>,
    /// Bytes of one request's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u32>,
    /// Time of one request on its shard, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_ms: Option<u32>,
    /// Time of all its requests on the shards, in milliseconds a second: 500 is
    /// half of one connection, on all routers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_ms_per_second: Option<u32>,
}

/// A limit that can't be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitError(String);

impl Limits {
    /// These, where `own` says nothing else.
    #[must_use]
    pub fn overridden(self, own: Self) -> Self {
        Self {
            requests_per_second: own.requests_per_second.or(self.requests_per_second),
            burst: own.burst.or(self.burst),
            concurrency: own.concurrency.or(self.concurrency),
            rows: own.rows.or(self.rows),
            response_bytes: own.response_bytes.or(self.response_bytes),
            request_bytes: own.request_bytes.or(self.request_bytes),
            statement_ms: own.statement_ms.or(self.statement_ms),
            shard_ms_per_second: own.shard_ms_per_second.or(self.shard_ms_per_second),
        }
    }

    /// Those of a column of the control database. Only workers write it, so
    /// another form is a newer version's, and limits nothing here.
    pub fn stored(value: Option<Value>) -> Self {
        value
            .and_then(|value| serde_json::from_value(value).ok())
            .unwrap_or_default()
    }

    /// These with some set to a number, or, by null, unset.
    ///
    /// # Errors
    /// A name that is no limit, and what is no positive number: zero would be a
    /// suspension by another name.
    pub fn changed(self, changes: &Map<String, Value>) -> Result<Self, LimitError> {
        let mut limits = self;
        for (name, value) in changes {
            let value = match value {
                Value::Null => None,
                value => Some(positive(name, value)?),
            };
            *limits.named(name)? = value;
        }
        Ok(limits)
    }

    fn named(&mut self, name: &str) -> Result<&mut Option<u32>, LimitError> {
        Ok(match name {
            "requests_per_second" => &mut self.requests_per_second,
            "burst" => &mut self.burst,
            "concurrency" => &mut self.concurrency,
            "rows" => &mut self.rows,
            "response_bytes" => &mut self.response_bytes,
            "request_bytes" => &mut self.request_bytes,
            "statement_ms" => &mut self.statement_ms,
            "shard_ms_per_second" => &mut self.shard_ms_per_second,
            _ => {
                let name: String = name.chars().take(40).collect();
                return Err(LimitError(format!("there is no limit \"{name}\"")));
            }
        })
    }

    /// One router's share of a limit of all `sharers`: never nothing.
    pub fn share(limit: u32, sharers: usize) -> u32 {
        let sharers = u32::try_from(sharers).unwrap_or(u32::MAX).max(1);
        limit.div_ceil(sharers).max(1)
    }
}

fn positive(name: &str, value: &Value) -> Result<u32, LimitError> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    match number {
        Some(0) => Err(LimitError(format!(
            "{name} must be above 0: suspend the tenant to refuse all its requests"
        ))),
        Some(number) => Ok(number),
        None => Err(LimitError(format!("{name} must be a whole number"))),
    }
}

/// A plan, as routers know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRow {
    /// Its id.
    pub id: Arc<str>,
    /// Its limits.
    pub limits: Limits,
}

/// What sets a tenant's limits: its plan, and what it has of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LimitSet {
    /// The plan.
    pub plan: Arc<str>,
    /// Overrides.
    pub own: Limits,
}

impl Default for LimitSet {
    fn default() -> Self {
        Self {
            plan: DEFAULT_PLAN.into(),
            own: Limits::default(),
        }
    }
}

/// Every limit set in use, once: an exception names one by its number. Number
/// 0 is the default plan's.
#[derive(Clone, Debug)]
pub struct LimitSets {
    sets: Vec<LimitSet>,
    numbers: HashMap<LimitSet, u32>,
    /// By number, with the plans of today.
    effective: Vec<Limits>,
}

impl LimitSets {
    /// Only the default plan.
    pub fn new(plans: &[PlanRow]) -> Self {
        let mut sets = Self {
            sets: Vec::new(),
            numbers: HashMap::new(),
            effective: Vec::new(),
        };
        sets.number(&LimitSet::default(), plans);
        sets
    }

    /// The set's number; a new one is added.
    pub fn number(&mut self, set: &LimitSet, plans: &[PlanRow]) -> u32 {
        if let Some(number) = self.numbers.get(set) {
            return *number;
        }
        let number = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.numbers.insert(set.clone(), number);
        self.effective.push(effective(set, plans));
        number
    }

    /// The number of a set that is there.
    pub fn known(&self, set: &LimitSet) -> Option<u32> {
        self.numbers.get(set).copied()
    }

    /// The limits of that number.
    pub fn get(&self, number: u32) -> Limits {
        let found = self.effective.get(number as usize);
        found
            .or(self.effective.first())
            .copied()
            .unwrap_or_default()
    }

    /// The sets, in order of their numbers.
    pub fn sets(&self) -> &[LimitSet] {
        &self.sets
    }

    /// These with other plans.
    #[must_use]
    pub fn with_plans(&self, plans: &[PlanRow]) -> Self {
        let effective = self.sets.iter().map(|set| effective(set, plans)).collect();
        Self {
            effective,
            ..self.clone()
        }
    }
}

/// A plan that is not known (any longer) limits as the default one does.
fn effective(set: &LimitSet, plans: &[PlanRow]) -> Limits {
    let of = |id: &str| plans.iter().find(|plan| *plan.id == *id);
    let plan = of(&set.plan).or_else(|| of(DEFAULT_PLAN));
    plan.map(|plan| plan.limits)
        .unwrap_or_default()
        .overridden(set.own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(id: &str, rate: u32) -> PlanRow {
        PlanRow {
            id: id.into(),
            limits: Limits {
                requests_per_second: Some(rate),
                rows: Some(1_000),
                ..Limits::default()
            },
        }
    }

    #[test]
    fn own_limits_come_before_the_plans() {
        let plans = [plan("default", 10), plan("gold", 100)];
        let mut sets = LimitSets::new(&plans);
        let own = Limits {
            requests_per_second: Some(7),
            ..Limits::default()
        };
        let gold = LimitSet {
            plan: "gold".into(),
            own: Limits::default(),
        };
        let number = sets.number(&gold, &plans);
        assert_eq!(sets.get(number).requests_per_second, Some(100));
        let gold = LimitSet { own, ..gold };
        let number = sets.number(&gold, &plans);
        assert_eq!(sets.number(&gold, &plans), number);
        assert_eq!(sets.get(number).requests_per_second, Some(7));
        assert_eq!(sets.get(number).rows, Some(1_000));
        assert_eq!(sets.get(0).requests_per_second, Some(10));
        // A plan that goes leaves the default one's limits.
        let sets = sets.with_plans(&plans[..1]);
        assert_eq!(sets.get(1).requests_per_second, Some(10));
        assert_eq!(sets.get(number).requests_per_second, Some(7));
    }

    #[test]
    fn shares_are_never_nothing() {
        assert_eq!(Limits::share(10, 3), 4);
        assert_eq!(Limits::share(1, 8), 1);
        assert_eq!(Limits::share(5, 0), 5);
    }

    #[test]
    fn changes_set_and_unset_and_name_what_cannot_be_meant() {
        let changed = |text: &str| {
            let before = Limits {
                rows: Some(5),
                ..Limits::default()
            };
            let changes: Map<String, Value> = serde_json::from_str(text).unwrap();
            before.changed(&changes).map_err(|error| error.to_string())
        };
        assert_eq!(changed(r#"{"rows": null}"#), Ok(Limits::default()));
        let burst = changed(r#"{"burst": 9}"#).unwrap();
        assert_eq!((burst.burst, burst.rows), (Some(9), Some(5)));
        for (text, why) in [
            (
                r#"{"rows": 0}"#,
                "rows must be above 0: suspend the tenant to refuse all its requests",
            ),
            (r#"{"rows": -1}"#, "rows must be a whole number"),
            (r#"{"rows": "many"}"#, "rows must be a whole number"),
            (r#"{"row": 1}"#, "there is no limit \"row\""),
        ] {
            assert_eq!(changed(text).unwrap_err(), why);
        }
    }
}
