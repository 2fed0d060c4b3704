//! The shipped scenarios and their schema are what they say; bad ones are
//! refused at the right place.

use std::path::{Path, PathBuf};

use loadtest::scenario::{Scenario, json_schema};
use serde_json::Value;

const SHIPPED: [&str; 13] = [
    "busy_neighbour",
    "cache_stampede",
    "crm_day",
    "failover",
    "hot_tenant",
    "huge_neighbour",
    "move_under_load",
    "noisy_neighbour",
    "overload",
    "read_heavy",
    "slow_neighbour",
    "soak",
    "write_burst",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

#[test]
fn shipped_scenarios_are_valid_and_named_after_their_files() {
    for name in SHIPPED {
        let scenario = Scenario::read(&folder().join(format!("{name}.toml")))
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(scenario.name, name);
        assert!(
            !scenario.description.is_empty() && !scenario.gates.is_empty(),
            "{name}"
        );
    }
    let files = std::fs::read_dir(folder()).unwrap();
    let scenarios = files.filter(|file| {
        file.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "toml")
    });
    assert_eq!(scenarios.count(), SHIPPED.len());
}

/// Editors read the file; `schema` prints the same. Write it anew with
/// `cargo run -p loadtest -- schema > loadtest/scenarios/schema.json`.
#[test]
fn the_schema_beside_the_scenarios_is_the_one_of_the_types() {
    let file: Value =
        serde_json::from_slice(&std::fs::read(folder().join("schema.json")).unwrap()).unwrap();
    let types: Value = serde_json::from_str(&json_schema()).unwrap();
    assert!(file == types, "scenarios/schema.json is old");
}

/// Every key that a shipped scenario uses is one that the schema knows.
#[test]
fn the_schema_knows_every_key_of_the_shipped_scenarios() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    for name in SHIPPED {
        let text = std::fs::read_to_string(folder().join(format!("{name}.toml"))).unwrap();
        let scenario: toml::Value = toml::from_str(&text).unwrap();
        known(&schema, &schema, &scenario, name);
    }
}

fn known(root: &Value, schema: &Value, value: &toml::Value, path: &str) {
    let mut schema = schema;
    let resolved;
    if let Some(any) = schema["anyOf"].as_array() {
        resolved = any
            .iter()
            .find(|one| one["type"] != "null")
            .unwrap()
            .clone();
        schema = &resolved;
    }
    let target = schema["$ref"]
        .as_str()
        .map(|reference| root.pointer(reference.trim_start_matches('#')).unwrap());
    let schema = target.unwrap_or(schema);
    match value {
        toml::Value::Table(table) => {
            let Some(properties) = schema["properties"].as_object() else {
                return;
            };
            assert_eq!(schema["additionalProperties"], false, "{path}");
            for (key, value) in table {
                let property = properties
                    .get(key)
                    .unwrap_or_else(|| panic!("{path}.{key} is not in the schema"));
                known(root, property, value, &format!("{path}.{key}"));
            }
        }
        toml::Value::Array(items) => {
            for item in items {
                known(root, &schema["items"], item, path);
            }
        }
        _ => {}
    }
}

const GOOD: &str = r#"name = "x"
[load]
timeout = "2s"
[population]
tenants = ["acme", "globex"]
[checks]
table = "notes"
[[stage]]
kind = "constant"
duration = "1s"
level = 5
[[operation]]
name = "list"
path = "/notes"
save = { note = "id" }
[[operation]]
name = "add"
method = "POST"
path = "/contacts"
body = { email = "{{email}}", title = "{{canary}}" }
[[flood]]
operation = "list"
rate = 10
start = "0s"
duration = "1s"
[[gate]]
metric = "p99_ms"
max = 5
"#;

/// Each change of the good scenario, where it is refused, and what is said.
#[test]
fn bad_scenarios_are_refused_with_line_and_column() {
    Scenario::parse("good.toml", GOOD).unwrap_or_else(|e| panic!("{e}"));
    for (from, to, line, column, said) in [
        (
            "name = \"x\"\n",
            "name = \"x\"\nnaem = 1\n",
            2,
            1,
            "unknown field `naem`",
        ),
        (
            "timeout = \"2s\"",
            "timeout = \"2 parsecs\"",
            3,
            11,
            "not a length of time",
        ),
        (
            "timeout = \"2s\"",
            "timeuot = \"2s\"",
            3,
            1,
            "unknown field `timeuot`",
        ),
        (
            "timeout = \"2s\"",
            "connections = \"many\"",
            3,
            15,
            "invalid type",
        ),
        (
            "[\"acme\", \"globex\"]",
            "[\"acme\", \"acme\"]",
            4,
            1,
            "named twice",
        ),
        (
            "[\"acme\", \"globex\"]",
            "[\"acme\"]\ncount = 4",
            4,
            1,
            "give one of",
        ),
        (
            "[\"acme\", \"globex\"]",
            "[\"acme\"]\nspread = \"even\"",
            6,
            10,
            "unknown variant",
        ),
        (
            "kind = \"constant\"",
            "kind = \"ramp\"",
            8,
            1,
            "a ramp stage",
        ),
        ("level = 5", "level = -5", 8, 1, "must not be negative"),
        (
            "duration = \"1s\"\nlevel",
            "duration = \"0s\"\nlevel",
            8,
            1,
            "above zero",
        ),
        (
            "path = \"/notes\"\n",
            "path = \"notes\"\n",
            14,
            8,
            "begins with",
        ),
        (
            "path = \"/notes\"\n",
            "path = \"/no tes\"\n",
            14,
            8,
            "percent-encode",
        ),
        (
            "path = \"/notes\"\n",
            "path = \"/notes?id=eq.{{pick nte}}\"\n",
            12,
            1,
            "nothing can fill the list \"nte\"",
        ),
        (
            "method = \"POST\"",
            "method = \"SEND\"",
            18,
            10,
            "not a method",
        ),
        (
            "method = \"POST\"",
            "method = \"POST\"\nweight = -1",
            19,
            10,
            "negative",
        ),
        (
            "\"{{email}}\"",
            "\"{{emial}}\"",
            20,
            18,
            "no generator is called \"emial\"",
        ),
        ("\"{{email}}\"", "\"{{canary}}\"", 19, 8, "once into a POST"),
        (
            "method = \"POST\"",
            "method = \"PATCH\"",
            19,
            8,
            "once into a POST",
        ),
        (
            "method = \"POST\"\npath = \"/contacts\"",
            "method = \"DELETE\"\npath = \"/notes\"",
            19,
            8,
            "{{canary}}",
        ),
        (
            "name = \"add\"",
            "name = \"list\"",
            16,
            1,
            "two operations are called \"list\"",
        ),
        (
            "operation = \"list\"\nrate",
            "operation = \"lits\"\nrate",
            22,
            13,
            "no operation is called \"lits\"",
        ),
        ("rate = 10", "rate = 0", 23, 8, "above zero"),
        (
            "rate = 10",
            "rate = 10\ntenant = \"initech\"",
            24,
            10,
            "not one of the population's",
        ),
        ("max = 5", "", 26, 1, "needs `max` or `min`"),
        (
            "metric = \"p99_ms\"",
            "metric = \"p98_ms\"",
            27,
            10,
            "unknown variant `p98_ms`",
        ),
        ("max = 5", "max = 5 5", 28, 7, ""),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = Scenario::parse("bad.toml", &GOOD.replacen(from, to, 1)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("bad.toml:{line}:{column}: ")) && text.contains(said),
            "{to}: {text}"
        );
        assert_eq!(error.exit_code(), 104);
    }
}
