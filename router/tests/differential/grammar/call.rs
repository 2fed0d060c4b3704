//! Calls of functions.

use super::Grammar;
use super::select::Level;
use crate::case::{Case, Section};

/// A function with the arguments of some calls: by name for GET, as JSON for POST.
struct Sample {
    name: &'static str,
    by_get: &'static [&'static [(&'static str, &'static str)]],
    by_post: &'static [&'static str],
    /// The relation whose rows it returns.
    rows_of: Option<&'static str>,
}

const fn sample(
    name: &'static str,
    by_get: &'static [&'static [(&'static str, &'static str)]],
    by_post: &'static [&'static str],
) -> Sample {
    Sample {
        name,
        by_get,
        by_post,
        rows_of: None,
    }
}

const SAMPLES: &[Sample] = &[
    sample(
        "add",
        &[
            &[("a", "1"), ("b", "2")],
            &[("a", "5")],
            &[("b", "5")],
            &[("a", "x")],
            &[],
        ],
        &[
            r#"{"a":1,"b":2}"#,
            r#"{"a":1}"#,
            r#"{"b":1}"#,
            r#"{"a":"7"}"#,
            r#"{"a":"x"}"#,
            r#"[{"a":1},{"a":2}]"#,
            "{}",
            "",
            r#"{"a":1,"c":2}"#,
            r#"{"a":null}"#,
            "[]",
            "{",
        ],
    ),
    sample(
        "greet",
        &[
            &[("name", "Ada")],
            &[("name", "x.y")],
            &[("name", "")],
            &[("name", "a"), ("name", "b")],
        ],
        &[
            r#"{"name":"Ada"}"#,
            r#"{"name":"\"q\""}"#,
            r#"{"name":null}"#,
            r#"{"nam":"x"}"#,
        ],
    ),
    sample(
        "no_arguments",
        &[&[], &[("x", "1")]],
        &["{}", "", r#"{"x":1}"#],
    ),
    sample("no_argument", &[&[]], &["{}"]),
    sample("nothing", &[&[]], &["{}"]),
    sample("null_text", &[&[]], &["{}"]),
    sample("names", &[&[]], &["{}"]),
    sample(
        "pairs",
        &[&[("n", "3")], &[("n", "0")], &[("n", "1")]],
        &[r#"{"n":2}"#, r#"{"n":1}"#, r#"{"n":0}"#],
    ),
    sample("totals", &[&[]], &["{}"]),
    sample(
        "echo",
        &[&[]],
        &[r#"{"a":[1,{"b":null}]}"#, "[1,2]", "\"x\"", "{}", "17"],
    ),
    sample(
        "whole",
        &[&[("data", "{\"a\":1}")]],
        &[r#"{"data":{"a":1}}"#, r#"{"data":[1]}"#, r#"{"data":"x"}"#],
    ),
    sample(
        "total_of",
        &[&[("numbers", "1"), ("numbers", "2")], &[("numbers", "5")]],
        &[
            r#"{"numbers":[1,2,3]}"#,
            r#"{"numbers":[]}"#,
            r#"{"numbers":"{4,5}"}"#,
        ],
    ),
    sample(
        "sizes",
        &[
            &[("numbers", "{1,2}")],
            &[("numbers", "{}"), ("range", "[1,2)")],
        ],
        &[
            r#"{"numbers":[1,2]}"#,
            r#"{"numbers":"{1}","range":"[1,3]"}"#,
        ],
    ),
    sample(
        "moods",
        &[&[("m", "calm")], &[("m", "none")]],
        &[r#"{"m":"wild"}"#, r#"{"m":"none"}"#],
    ),
    sample(
        "overloaded",
        &[&[("a", "1")], &[("a", "1"), ("b", "2")], &[("c", "x")], &[]],
        &[
            r#"{"a":1}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"c":"x"}"#,
            r#"{"a":1,"c":"x"}"#,
        ],
    ),
    sample("twice", &[&[("a", "1")]], &[r#"{"a":1}"#]),
    // Not 40001, which version 12 tries again for ever.
    sample(
        "failing",
        &[&[("code", "P0001")], &[("code", "23505")]],
        &[
            r#"{"code":"P0001"}"#,
            r#"{"code":"23505"}"#,
            r#"{"code":"42501"}"#,
            r#"{"code":"PT402"}"#,
            r#"{"code":"22023"}"#,
            r#"{"code":"P0002"}"#,
            r#"{"code":"28000"}"#,
            r#"{"code":"54001"}"#,
            r#"{"code":"21000"}"#,
            r#"{"code":"XX000"}"#,
            r#"{"code":"42883"}"#,
            r#"{"code":"42P01"}"#,
            r#"{"code":"0L000"}"#,
        ],
    ),
    sample("teapot", &[&[]], &["{}"]),
    Sample {
        ..sample("sneaky_write", &[&[]], &["{}"])
    },
    Sample {
        rows_of: Some("shows"),
        ..sample(
            "cheap",
            &[&[("below", "10")], &[("below", "100")]],
            &[r#"{"below":10}"#, r#"{"below":100}"#],
        )
    },
    Sample {
        rows_of: Some("shows"),
        ..sample(
            "the_show",
            &[&[("which", "1")], &[("which", "99")]],
            &[r#"{"which":2}"#, r#"{"which":99}"#],
        )
    },
    Sample {
        rows_of: Some("shows"),
        ..sample(
            "rename",
            &[&[("which", "1"), ("title", "x")]],
            &[
                r#"{"which":1,"title":"new"}"#,
                r#"{"which":99,"title":"new"}"#,
            ],
        )
    },
];

impl<'a> Grammar<'a> {
    pub(super) fn call_by_get(&mut self) -> Case {
        let sample = self.pick(SAMPLES);
        let mut case = self.call(sample, Section::CallByGet);
        for (name, value) in *self.pick(sample.by_get) {
            case.params.push(((*name).to_owned(), (*value).to_owned()));
        }
        if self.chance(10) {
            case.method = "HEAD";
        }
        case
    }

    pub(super) fn call_by_post(&mut self) -> Case {
        let sample = self.pick(SAMPLES);
        let mut case = self.call(sample, Section::CallByPost);
        case.method = "POST";
        case.header("Content-Type", "application/json");
        case.body = Some((*self.pick(sample.by_post)).to_owned());
        case.header("Prefer", "tx=rollback");
        if self.chance(6) {
            case.params.push(("columns".into(), "a".into()));
        }
        case
    }

    fn call(&mut self, sample: &Sample, section: Section) -> Case {
        let mut case = Case::get(&format!("/rpc/{}", sample.name));
        case.section = section;
        case.ordered = false;
        if let Some(relation) = sample.rows_of {
            let relation = self.world.relation(relation);
            let mut levels = Vec::new();
            if self.chance(50) {
                let depth = usize::from(self.chance(40));
                let select = self.select(Section::Select, relation, depth, &[], &mut levels);
                case.params.push(("select".into(), select));
            } else {
                levels.push(Level::plain(relation));
            }
            if self.chance(40) {
                case.params.push(("order".into(), "id.desc".into()));
                if self.chance(50) {
                    case.params.push(("limit".into(), "2".into()));
                }
            }
            if self.chance(20) && sample.name != "the_show" {
                case.params.push(("price".into(), "gt.6".into()));
            }
        }
        if self.chance(15) {
            case.header(
                "Accept",
                self.word(&[
                    "application/vnd.pgrst.object+json",
                    "text/csv",
                    "application/json",
                    "*/*",
                    "text/plain",
                    "application/vnd.pgrst.object+json;nulls=stripped",
                    "application/octet-stream",
                ]),
            );
        }
        if section == Section::CallByGet && self.chance(15) {
            case.header("Prefer", "count=exact");
        }
        case
    }
}
