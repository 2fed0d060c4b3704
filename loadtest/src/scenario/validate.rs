//! What the types cannot say: parts of a scenario that contradict each other.
//! One function a rule; each problem carries the place that it is about.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;

use super::{
    Body, Checks, Flood, Gate, Model, Operation, Population, Scenario, Spread, Stage, StageKind,
};
use crate::template::{Part, Template};

type Refusal = (Range<usize>, String);
type Checked = Result<(), Refusal>;

pub(super) fn validate(scenario: &Scenario) -> Checked {
    for stage in &scenario.stages {
        check_stage(stage)?;
    }
    if let Some(population) = &scenario.population {
        check_population(population)?;
    }
    check_operations(scenario)?;
    check_lists(scenario)?;
    check_canaries(scenario)?;
    for flood in &scenario.floods {
        check_flood(scenario, flood)?;
    }
    for gate in &scenario.gates {
        check_gate(scenario, gate)?;
    }
    if let Some(checks) = &scenario.checks {
        check_checks(checks)?;
    }
    check_load(scenario)
}

fn refuse<T>(at: &Spanned<T>, message: impl Into<String>) -> Checked {
    Err((at.span(), message.into()))
}

fn check_load(scenario: &Scenario) -> Checked {
    let load = &scenario.load;
    let stage = &scenario.stages[0];
    if load.connections == 0 || load.backlog == 0 {
        return refuse(
            stage,
            "load.connections and load.backlog must be at least 1",
        );
    }
    if load.timeout.duration().is_zero() {
        return refuse(stage, "load.timeout must be above zero");
    }
    if load.model == Model::Open && load.think_time != super::Range::ZERO {
        return refuse(stage, "load.think_time belongs to the closed model");
    }
    Ok(())
}

fn check_stage(stage: &Spanned<Stage>) -> Checked {
    let Stage {
        kind,
        duration,
        level,
        from,
        to,
        peak,
    } = stage.get_ref();
    let given = [("level", level), ("from", from), ("to", to), ("peak", peak)];
    let (name, wanted): (&str, &[&str]) = match kind {
        StageKind::Constant => ("constant", &["level"]),
        StageKind::Soak => ("soak", &["level"]),
        StageKind::Ramp => ("ramp", &["from", "to"]),
        StageKind::Spike => ("spike", &["level", "peak"]),
    };
    for (field, value) in given {
        match (wanted.contains(&field), value) {
            (true, None) => return refuse(stage, format!("a {name} stage needs `{field}`")),
            (false, Some(_)) => return refuse(stage, format!("a {name} stage has no `{field}`")),
            (true, Some(value)) if !value.is_finite() || *value < 0.0 => {
                return refuse(stage, format!("`{field}` must not be negative"));
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
    if duration.duration().is_zero() {
        return refuse(stage, "a stage's duration must be above zero");
    }
    Ok(())
}

fn check_population(population: &Spanned<Population>) -> Checked {
    let at = population;
    let population = population.get_ref();
    let sources = [
        !population.tenants.is_empty(),
        population.count.is_some(),
        population.list.is_some(),
    ];
    if sources.iter().filter(|given| **given).count() > 1 {
        return refuse(at, "give one of `tenants`, `count` and `list`");
    }
    if population.count == Some(0) || population.list == Some(0) {
        return refuse(at, "a population needs at least one tenant");
    }
    if population.prefix.is_some() && population.count.is_none() {
        return refuse(at, "`prefix` needs `count`");
    }
    if !population.regions.is_empty() && population.count.is_none() {
        return refuse(
            at,
            "`regions` needs `count`: only created tenants are put in regions",
        );
    }
    let distinct: HashSet<&String> = population.tenants.iter().collect();
    if distinct.len() < population.tenants.len() {
        return refuse(at, "a tenant is named twice");
    }
    if population.exponent.is_some() && population.spread != Spread::Zipf {
        return refuse(at, "`exponent` needs `spread = \"zipf\"`");
    }
    if population
        .exponent
        .is_some_and(|exponent| !exponent.is_finite() || exponent < 0.0)
    {
        return refuse(at, "`exponent` must not be negative");
    }
    if (population.whales.is_some() || population.whale_share.is_some())
        && population.spread != Spread::Whales
    {
        return refuse(at, "`whales` and `whale_share` need `spread = \"whales\"`");
    }
    if population
        .whale_share
        .is_some_and(|share| !(0.0..=1.0).contains(&share))
    {
        return refuse(at, "`whale_share` lies between 0 and 1");
    }
    Ok(())
}

fn check_operations(scenario: &Scenario) -> Checked {
    let mut names = HashSet::new();
    for operation in &scenario.operations {
        let op = operation.get_ref();
        if !names.insert(op.name.as_str()) {
            return refuse(
                operation,
                format!("two operations are called {:?}", op.name),
            );
        }
        let weight = *op.weight.get_ref();
        if !weight.is_finite() || weight < 0.0 {
            return refuse(&op.weight, "a weight must not be negative");
        }
        check_request(op)?;
    }
    if !scenario
        .operations
        .iter()
        .any(|operation| *operation.get_ref().weight.get_ref() > 0.0)
    {
        let Some(first) = scenario.operations.first() else {
            return refuse(
                &scenario.stages[0],
                "a scenario needs at least one [[operation]]",
            );
        };
        return refuse(first, "no operation has a weight above zero");
    }
    Ok(())
}

fn check_request(op: &Operation) -> Checked {
    let method = op.method.get_ref();
    if !["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"].contains(&method.as_str()) {
        return refuse(
            &op.method,
            format!("{method:?} is not a method (GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS)"),
        );
    }
    let sample: String = op.path.get_ref().parts().iter().map(sample).collect();
    if !matches!(op.path.get_ref().parts().first(), Some(Part::Literal(text)) if text.starts_with('/'))
    {
        return refuse(&op.path, "a path begins with \"/\"");
    }
    if let Err(error) = sample.parse::<http::Uri>() {
        return refuse(
            &op.path,
            format!("not a path and query: {error}; percent-encode what is special"),
        );
    }
    for (name, value) in &op.headers {
        if http::HeaderName::try_from(name.as_str()).is_err() {
            return refuse(value, format!("{name:?} is not a header's name"));
        }
        let sample: String = value.get_ref().parts().iter().map(self::sample).collect();
        if http::HeaderValue::try_from(sample).is_err() {
            return refuse(value, "not a header's value");
        }
    }
    if let Some(rows) = &op.rows {
        match (rows.get_ref(), &op.body) {
            (0 | 100_001.., _) => return refuse(rows, "`rows` lies between 1 and 100,000"),
            (_, Some(Body::Object(_))) => {}
            (_, None | Some(Body::Text(_) | Body::Number(_) | Body::Bool(_) | Body::Array(_))) => {
                return refuse(rows, "`rows` needs a `body` that is a table");
            }
        }
    }
    if let Some(status) = op
        .expect
        .iter()
        .find(|status| !(100..600).contains(*status))
    {
        return refuse(
            &op.path,
            format!("{status} in `expect` is not an HTTP status"),
        );
    }
    Ok(())
}

/// A part as it may look when rendered, to try the whole.
fn sample(part: &Part) -> &str {
    match part {
        Part::Literal(text) => text,
        Part::Value(_) | Part::Saved { .. } | Part::Canary => "x",
    }
}

/// Every list that is picked from can be filled by an operation that itself
/// needs only lists that can be filled.
fn check_lists(scenario: &Scenario) -> Checked {
    let mut filled: HashSet<&str> = HashSet::new();
    loop {
        let before = filled.len();
        for operation in scenario.operations.iter().map(Spanned::get_ref) {
            if lists(operation).iter().all(|list| filled.contains(list)) {
                filled.extend(operation.save.keys().map(String::as_str));
            }
        }
        if filled.len() == before {
            break;
        }
    }
    for operation in &scenario.operations {
        if let Some(list) = lists(operation.get_ref())
            .iter()
            .find(|list| !filled.contains(**list))
        {
            return refuse(
                operation,
                format!(
                    "nothing can fill the list {list:?}: an operation that needs no unfilled list must `save` it"
                ),
            );
        }
    }
    Ok(())
}

/// The lists that an operation takes values from.
fn lists(operation: &Operation) -> Vec<&str> {
    let mut lists: Vec<&str> = operation.path.get_ref().lists().collect();
    lists.extend(
        operation
            .headers
            .values()
            .flat_map(|value| value.get_ref().lists()),
    );
    if let Some(body) = &operation.body {
        for template in templates(body) {
            lists.extend(template.lists());
        }
    }
    lists
}

fn templates(body: &Body) -> Vec<&Template> {
    match body {
        Body::Text(template) => vec![template],
        Body::Number(_) | Body::Bool(_) => vec![],
        Body::Array(items) => items.iter().flat_map(templates).collect(),
        Body::Object(fields) => fields
            .iter()
            .flat_map(|(_, value)| templates(value))
            .collect(),
    }
}

/// A canary must stay findable: it sits in a column of a plain insert, and
/// nothing else in the script changes that column or deletes from that table.
fn check_canaries(scenario: &Scenario) -> Checked {
    let mut watched: Vec<(&str, &str)> = Vec::new();
    if let Some(checks) = &scenario.checks {
        watched.push((&checks.get_ref().table, &checks.get_ref().column));
    }
    for operation in scenario.operations.iter().map(Spanned::get_ref) {
        let outside = operation.path.get_ref().has_canary()
            || operation
                .headers
                .values()
                .any(|value| value.get_ref().has_canary());
        let inside = operation.body.as_ref().map_or(0, |body| {
            templates(body).iter().filter(|t| t.has_canary()).count()
        });
        if !outside && inside == 0 {
            continue;
        }
        let upsert = operation.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("prefer")
                && value
                    .get_ref()
                    .constant()
                    .is_none_or(|text| text.contains("resolution"))
        });
        let (Some(table), Some(column)) = (operation.table(), operation.canary_column()) else {
            return refuse(
                &operation.path,
                "{{canary}} belongs into one column of a table's body, sent to /TABLE",
            );
        };
        if outside || inside > 1 || upsert || operation.method.get_ref() != "POST" {
            return refuse(
                &operation.path,
                "{{canary}} belongs once into a POST that only inserts: an update or upsert would hide what was lost",
            );
        }
        watched.push((table, column));
    }
    for operation in scenario.operations.iter().map(Spanned::get_ref) {
        let changes = |column: &str| match &operation.body {
            Some(Body::Object(fields)) => fields.iter().any(|(name, _)| name == column),
            _ => false,
        };
        for (table, column) in &watched {
            let method = operation.method.get_ref().as_str();
            if operation.table() != Some(table) {
                continue;
            }
            if method == "DELETE" || (matches!(method, "PATCH" | "PUT") && changes(column)) {
                return refuse(
                    &operation.path,
                    format!(
                        "{table}.{column} carries tokens that must stay: no DELETE on this table, \
                         no change of this column"
                    ),
                );
            }
        }
    }
    Ok(())
}

fn check_flood(scenario: &Scenario, flood: &Spanned<Flood>) -> Checked {
    let Flood {
        tenant,
        operation,
        rate,
        duration,
        connections,
        start: _,
    } = flood.get_ref();
    check_operation_name(scenario, operation)?;
    if !rate.get_ref().is_finite() || *rate.get_ref() <= 0.0 {
        return refuse(rate, "a flood's rate must be above zero");
    }
    if duration.duration().is_zero() || *connections == 0 {
        return refuse(
            flood,
            "a flood needs a duration above zero and at least one connection",
        );
    }
    let named = scenario
        .population
        .as_ref()
        .map(|population| &population.get_ref().tenants);
    if let (Some(tenant), Some(named)) = (tenant, named)
        && !named.is_empty()
        && !named.contains(tenant.get_ref())
    {
        return refuse(
            tenant,
            format!(
                "{:?} is not one of the population's tenants",
                tenant.get_ref()
            ),
        );
    }
    Ok(())
}

fn check_gate(scenario: &Scenario, gate: &Spanned<Gate>) -> Checked {
    let Gate {
        metric,
        max,
        min,
        operation,
    } = gate.get_ref();
    if max.is_none() && min.is_none() {
        return refuse(gate, "a gate needs `max` or `min`");
    }
    if let Some(operation) = operation {
        check_operation_name(scenario, operation)?;
        if !metric.by_operation() {
            return refuse(operation, "this metric is not known by operation");
        }
    }
    Ok(())
}

fn check_operation_name(scenario: &Scenario, name: &Spanned<String>) -> Checked {
    if scenario
        .operations
        .iter()
        .any(|operation| operation.get_ref().name == *name.get_ref())
    {
        return Ok(());
    }
    refuse(name, format!("no operation is called {:?}", name.get_ref()))
}

fn check_checks(checks: &Spanned<Checks>) -> Checked {
    let Checks {
        table,
        key,
        column,
        row,
        registers,
        pause: _,
        staleness: _,
        monotonic: _,
        journal,
    } = checks.get_ref();
    for name in [table, key, column] {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return refuse(
                checks,
                format!("{name:?} is not a plain name of a table or column"),
            );
        }
    }
    if !(1..=1_000).contains(registers) {
        return refuse(checks, "`registers` lies between 1 and 1,000");
    }
    if *journal == 0 {
        return refuse(checks, "`journal` must be at least 1");
    }
    match row {
        None | Some(Body::Object(_)) => {}
        Some(Body::Text(_) | Body::Number(_) | Body::Bool(_) | Body::Array(_)) => {
            return refuse(checks, "`row` is a table of columns");
        }
    }
    let templates = row.as_ref().map(templates).unwrap_or_default();
    if templates
        .iter()
        .any(|template| template.has_canary() || template.lists().next().is_some())
    {
        return refuse(
            checks,
            "`row` has no {{canary}}, {{pick …}} or {{take …}}: its own column carries the token",
        );
    }
    Ok(())
}
