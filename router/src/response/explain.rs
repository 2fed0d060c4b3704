//! What is shown of a plan.

use bytes::Bytes;
use serde_json::Value;

use crate::request::accept::Explain;

/// Keys of a JSON plan that are estimates from statistics of all tenants.
const FIGURES: [&str; 4] = ["Startup Cost", "Total Cost", "Plan Rows", "Plan Width"];

/// The plan as a client may see it: without `figures` every estimate is 0, and
/// what can't be read is not shown at all.
pub(super) fn shown(explain: &Explain, figures: bool, plan: Bytes) -> Bytes {
    if figures {
        return plan;
    }
    if !explain.json {
        let text = String::from_utf8_lossy(&plan);
        let lines: Vec<String> = text.lines().map(without_estimates).collect();
        return lines.join("\n").into();
    }
    let Ok(mut plan) = serde_json::from_slice::<Value>(&plan) else {
        return Bytes::from_static(b"[]");
    };
    clear(&mut plan);
    serde_json::to_vec(&plan).unwrap_or_default().into()
}

fn clear(plan: &mut Value) {
    match plan {
        Value::Array(items) => items.iter_mut().for_each(clear),
        Value::Object(members) => {
            for (key, value) in members {
                if FIGURES.contains(&key.as_str()) {
                    *value = Value::from(0);
                } else {
                    clear(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `Aggregate  (cost=1.05..1.07 rows=1 width=40)`, with zeros.
fn without_estimates(line: &str) -> String {
    match line.split_once("  (cost=") {
        Some((node, rest)) => {
            let behind = rest.split_once(')').map_or("", |(_, behind)| behind);
            format!("{node}  (cost=0.00..0.00 rows=0 width=0){behind}")
        }
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(json: bool, plan: &'static str) -> String {
        let explain = Explain {
            json,
            ..Explain::default()
        };
        let shown = shown(&explain, false, Bytes::from_static(plan.as_bytes()));
        String::from_utf8(shown.to_vec()).unwrap()
    }

    #[test]
    fn estimates_are_left_out() {
        assert_eq!(
            shape(
                false,
                "Aggregate  (cost=1.05..1.07 rows=1 width=40)\n  ->  Seq Scan on t  (cost=0.00..9.99 rows=777 width=8)\n        Filter: (a = 1)"
            ),
            "Aggregate  (cost=0.00..0.00 rows=0 width=0)\n  ->  Seq Scan on t  (cost=0.00..0.00 rows=0 width=0)\n        Filter: (a = 1)"
        );
        assert_eq!(
            shape(
                true,
                r#"[{"Plan": {"Node Type": "Limit", "Plan Rows": 7, "Plans": [{"Total Cost": 1.5}]}}]"#
            ),
            r#"[{"Plan":{"Node Type":"Limit","Plan Rows":0,"Plans":[{"Total Cost":0}]}}]"#
        );
        assert_eq!(shape(true, "no JSON"), "[]");
    }
}
