//! The answer's body, built by Postgres, out of the rows `r`.
//!
//! Where all keys are names of the catalog, they are the columns' names and
//! Postgres' own row functions do it. A key of the request's own making is a
//! parameter instead, and the object is put together around it.

use schema::ident::Ident;

use super::fragment::{Alias, Fragment};
use super::level::{WHOLE_ROW, names_are_the_catalogs};
use crate::plan::{Handler, Key, Node, Output, Plan};
use crate::request::accept::MediaType;

/// Arguments that one call of `jsonb_build_object` takes, halved.
const PAIRS_MAX: usize = 50;

/// `, … as body` of rows that hold the outputs of `node`.
pub(super) fn rows(sql: &mut Fragment, plan: &Plan, node: &Node) {
    if !plan.body {
        return;
    }
    if let Some(handler) = &plan.handler {
        return made(sql, handler);
    }
    sql.push(", ");
    match &plan.media {
        MediaType::Csv => csv(sql, &node.outputs),
        MediaType::GeoJson => geo_json(sql),
        MediaType::Object { stripped } => stripped_if(sql, *stripped, |sql| one(sql, node)),
        MediaType::StrippedArray => stripped_if(sql, true, |sql| array(sql, node)),
        MediaType::Any
        | MediaType::Json
        | MediaType::OpenApi
        | MediaType::Plan(_)
        | MediaType::Other(_) => {
            array(sql, node);
            sql.push("::text");
        }
    }
    sql.push(" as body");
}

/// `, … as body` of a function's one row.
pub(super) fn row(sql: &mut Fragment, plan: &Plan, node: &Node) {
    match &plan.media {
        _ if !plan.body || plan.handler.is_some() => rows(sql, plan, node),
        MediaType::Json | MediaType::Object { .. } | MediaType::StrippedArray => {
            let stripped = matches!(
                plan.media,
                MediaType::StrippedArray | MediaType::Object { stripped: true }
            );
            sql.push(", ");
            stripped_if(sql, stripped, |sql| one(sql, node));
            sql.push(" as body");
        }
        _ => rows(sql, plan, node),
    }
}

/// `, … as body` of a function's values: `r.value`.
pub(super) fn values(sql: &mut Fragment, plan: &Plan, set: bool) {
    if !plan.body {
        return;
    }
    if let Some(handler) = &plan.handler {
        return made(sql, handler);
    }
    if plan.media == MediaType::Csv {
        sql.push(
            ", 'pgrst_scalar' || E'\\n' || coalesce(pg_catalog.string_agg(\
             pg_catalog.substr(r::text, 2, pg_catalog.length(r::text) - 2), E'\\n'), '') as body",
        );
        return;
    }
    let (object, stripped) = match plan.media {
        MediaType::Object { stripped } => (true, stripped),
        MediaType::StrippedArray => (false, true),
        _ => (false, false),
    };
    sql.push(", ");
    stripped_if(sql, stripped, |sql| {
        sql.push(match (set, object) {
            // One value of a set is a row of one column to PostgREST.
            (true, true) => {
                "'{\"pgrst_scalar\":' || coalesce((pg_catalog.json_agg(r.value)->0)::text, 'null') || '}'"
            }
            (true, false) => "coalesce(pg_catalog.json_agg(r.value), '[]')",
            (false, _) => "coalesce(pg_catalog.json_agg(r.value)->0, 'null')",
        });
    });
    sql.push(" as body");
}

/// `, … as body` as the application makes it: sent as Postgres' binary format has
/// it, so that bytes are bytes.
fn made(sql: &mut Fragment, handler: &Handler) {
    sql.push(", ");
    match handler {
        Handler::Value => sql.push("(pg_catalog.array_agg(r.value))[1]"),
        Handler::Rows(aggregate) => {
            sql.name(aggregate);
            sql.push("(r)");
        }
        Handler::WholeRows(aggregate) => {
            sql.name(aggregate);
            sql.push("(r.");
            sql.ident(&Ident::new(WHOLE_ROW));
            sql.push(")");
        }
    }
    sql.push(" as body");
}

/// `, … as headers, … as status`.
pub(super) fn settings(sql: &mut Fragment) {
    sql.push(
        ", nullif(pg_catalog.current_setting('response.headers', true), '') as headers, \
         nullif(pg_catalog.current_setting('response.status', true), '') as status",
    );
}

fn stripped_if(sql: &mut Fragment, stripped: bool, json: impl FnOnce(&mut Fragment)) {
    if stripped {
        sql.push("pg_catalog.json_strip_nulls((");
        json(sql);
        sql.push(")::json)::text");
    } else {
        sql.push("(");
        json(sql);
        sql.push(")::text");
    }
}

fn array(sql: &mut Fragment, node: &Node) {
    if names_are_the_catalogs(&node.outputs) {
        sql.push("coalesce(pg_catalog.json_agg(r), '[]')");
        return;
    }
    sql.push("('[' || coalesce(");
    texts(sql, &node.outputs);
    sql.push(", '') || ']')");
}

/// The one row as an object.
pub(super) fn one(sql: &mut Fragment, node: &Node) {
    if names_are_the_catalogs(&node.outputs) {
        sql.push("coalesce(pg_catalog.json_agg(r)->0, 'null')");
        return;
    }
    // Several rows are refused, but not before their text was read as JSON.
    sql.push("case when pg_catalog.count(*) = 1 then ");
    texts(sql, &node.outputs);
    sql.push(" else 'null' end");
}

/// All rows' objects, joined as `json_agg` joins them.
fn texts(sql: &mut Fragment, outputs: &[Output]) {
    sql.push("pg_catalog.string_agg('{' || ");
    sql.list(
        " || ',' || ",
        outputs.iter().enumerate(),
        |sql, (number, output)| {
            match &output.key {
                Key::Model(name) => sql.literal(&member(name.as_str())),
                Key::Request(key) => {
                    sql.param(member(key));
                    sql.push("::text");
                }
            }
            sql.push(" || coalesce(pg_catalog.to_json(r.");
            sql.numbered(number);
            sql.push(")::text, 'null')");
        },
    );
    sql.push(" || '}', E', \\n ')");
}

/// `"key":`, escaped as JSON asks.
fn member(key: &str) -> String {
    format!("{}:", serde_json::Value::from(key))
}

/// A row `alias` as one jsonb object.
pub(super) fn object(sql: &mut Fragment, alias: Alias, outputs: &[Output]) {
    if names_are_the_catalogs(outputs) {
        sql.push("pg_catalog.to_jsonb(");
        sql.rows(alias);
        sql.push(")");
        return;
    }
    let numbered: Vec<(usize, &Output)> = outputs.iter().enumerate().collect();
    sql.list(" || ", numbered.chunks(PAIRS_MAX), |sql, chunk| {
        sql.push("pg_catalog.jsonb_build_object(");
        sql.list(", ", chunk, |sql, (number, output)| {
            match &output.key {
                Key::Model(name) => sql.literal(name.as_str()),
                Key::Request(key) => {
                    sql.param(key.clone());
                    sql.push("::text");
                }
            }
            sql.push(", ");
            sql.rows(alias);
            sql.push(".");
            sql.numbered(*number);
        });
        sql.push(")");
    });
}

/// A header row, then rows as Postgres prints composite values.
fn csv(sql: &mut Fragment, outputs: &[Output]) {
    let header: Vec<&str> = outputs.iter().map(|output| output.key.as_str()).collect();
    let header = header.join(",");
    sql.push("case when pg_catalog.count(*) > 0 then ");
    if names_are_the_catalogs(outputs) {
        sql.literal(&header);
    } else {
        sql.param(header);
        sql.push("::text");
    }
    sql.push(
        " else '' end || E'\\n' || coalesce(pg_catalog.string_agg(\
         pg_catalog.substr(r::text, 2, pg_catalog.length(r::text) - 2), E'\\n'), '')",
    );
}

fn geo_json(sql: &mut Fragment) {
    sql.push(
        "pg_catalog.json_build_object('type', 'FeatureCollection', 'features', \
         coalesce(pg_catalog.json_agg(st_asgeojson(r)::json), '[]'))::text",
    );
}
