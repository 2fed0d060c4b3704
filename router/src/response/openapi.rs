//! The schema as an OpenAPI 2.0 document.

use bytes::Bytes;
use schema::catalog::{Catalog, Column, Function, Parameter, Relation, RelationKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::Api;
use crate::plan::Description;

/// What a role may use of a schema; see `sql::describe`.
#[derive(Debug, Deserialize)]
struct Privileges {
    /// (name, SELECT, INSERT, UPDATE, DELETE).
    relations: Vec<(String, bool, bool, bool, bool)>,
    functions: Vec<String>,
}

impl Privileges {
    /// The relation as the role may use it; none where it may not at all.
    fn limit(&self, relation: &Relation) -> Option<Relation> {
        let name = relation.name.name.as_str();
        let found = self.relations.iter().find(|(other, ..)| other == name)?;
        let (_, select, insert, update, delete) = *found;
        let limited = Relation {
            insertable: relation.insertable && insert,
            updatable: relation.updatable && update,
            deletable: relation.deletable && delete,
            ..relation.clone()
        };
        (select || limited.insertable || limited.updatable || limited.deletable).then_some(limited)
    }
}

/// Describes what a schema exposes, to a role with these privileges, or to all.
/// Privileges that can't be read are none.
pub(super) fn document(
    config: &Api,
    described: &Description,
    privileges: Option<&Bytes>,
) -> String {
    let (catalog, schema) = (&described.catalog, described.schema.as_str());
    let privileges = privileges.map(|body| {
        serde_json::from_slice(body).unwrap_or(Privileges {
            relations: Vec::new(),
            functions: Vec::new(),
        })
    });
    let mut relations: Vec<Relation> = catalog
        .relations
        .values()
        .filter(|relation| relation.name.schema.as_str() == schema)
        .filter_map(|relation| match &privileges {
            Some(privileges) => privileges.limit(relation),
            None => Some(relation.clone()),
        })
        .collect();
    relations.sort_by(|a, b| a.name.cmp(&b.name));
    let mut functions: Vec<&Function> = catalog
        .functions
        .values()
        .filter_map(|overloads| overloads.first())
        .filter(|function| function.name.schema.as_str() == schema)
        .filter(|function| match &privileges {
            Some(may) => may
                .functions
                .iter()
                .any(|name| name == function.name.name.as_str()),
            None => true,
        })
        .collect();
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    let mut paths = Map::new();
    paths.insert(
        "/".into(),
        json!({"get": {
            "tags": ["Introspection"],
            "summary": "OpenAPI description (this document)",
            "produces": ["application/openapi+json", "application/json"],
            "responses": {"200": {"description": "OK"}},
        }}),
    );
    let mut definitions = Map::new();
    let mut parameters = shared_parameters();
    for relation in &relations {
        let name = relation.name.name.as_str();
        paths.insert(format!("/{name}"), path(relation));
        definitions.insert(name.to_owned(), definition(catalog, relation));
        parameters.extend(own_parameters(relation));
    }
    for function in functions {
        let name = function.name.name.as_str();
        paths.insert(format!("/rpc/{name}"), call(function));
    }
    let (title, description) = match catalog.schema_comments.get(&schema.into()) {
        Some(comment) => summary(comment),
        None => ("standard public schema", ""),
    };
    json!({
        "swagger": "2.0",
        "info": {
            "title": title,
            "description": description,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "basePath": match config.rest_prefix.as_str() { "" => "/", prefix => prefix },
        "consumes": MEDIA,
        "produces": MEDIA,
        "paths": paths,
        "definitions": definitions,
        "parameters": parameters,
    })
    .to_string()
}

/// What relations take and give.
const MEDIA: [&str; 4] = [
    "application/json",
    "application/vnd.pgrst.object+json;nulls=stripped",
    "application/vnd.pgrst.object+json",
    "text/csv",
];

/// A comment's first line, and the others without the blank ones before them.
fn summary(comment: &str) -> (&str, &str) {
    let (first, rest) = comment.split_once('\n').unwrap_or((comment, ""));
    (first, rest.trim_start_matches('\n'))
}

/// An operation's members, with what the comment says of it.
fn operation(tag: String, comment: Option<&str>, members: Value) -> Value {
    let mut operation = Map::new();
    operation.insert("tags".into(), json!([tag]));
    if let Some((first, rest)) = comment.map(summary) {
        operation.insert("summary".into(), json!(first));
        operation.insert("description".into(), json!(rest));
    }
    if let Value::Object(members) = members {
        operation.extend(members);
    }
    Value::Object(operation)
}

/// The parameters that all relations have.
fn shared_parameters() -> Map<String, Value> {
    let query = |name: &str, description: &str| json!({"name": name, "description": description, "required": false, "in": "query", "type": "string"});
    let prefer = |values: &[&str]| {
        json!({"name": "Prefer", "description": "Preference", "required": false, "in": "header",
            "type": "string", "enum": values})
    };
    const RETURN: [&str; 3] = ["return=representation", "return=minimal", "return=none"];
    const RESOLUTION: [&str; 2] = [
        "resolution=ignore-duplicates",
        "resolution=merge-duplicates",
    ];
    let pages = "Limiting and Pagination";
    let header = |name: &str| json!({"name": name, "description": pages, "required": false, "in": "header", "type": "string"});
    let mut unit = header("Range-Unit");
    unit["default"] = json!("items");
    [
        ("preferReturn", prefer(&RETURN)),
        ("preferCount", prefer(&["count=none"])),
        ("preferPost", prefer(&[&RETURN[..], &RESOLUTION].concat())),
        ("select", query("select", "Filtering Columns")),
        ("on_conflict", query("on_conflict", "On Conflict")),
        ("order", query("order", "Ordering")),
        ("range", header("Range")),
        ("rangeUnit", unit),
        ("offset", query("offset", pages)),
        ("limit", query("limit", pages)),
    ]
    .map(|(name, parameter)| (name.to_owned(), parameter))
    .into_iter()
    .collect()
}

/// A relation's body and filters.
fn own_parameters(relation: &Relation) -> Vec<(String, Value)> {
    let name = relation.name.name.as_str();
    let body = json!({"name": name, "description": name, "required": false, "in": "body",
        "schema": reference("definitions", name)});
    let filters = relation.columns.iter().map(|column| {
        let mut filter = json!({"name": column.name.as_str(), "required": false, "in": "query",
            "format": column.base_type, "type": "string"});
        if let Some(comment) = &column.comment {
            filter["description"] = json!(comment);
        }
        (filter_name(relation, column), filter)
    });
    std::iter::once((format!("body.{name}"), body))
        .chain(filters)
        .collect()
}

fn filter_name(relation: &Relation, column: &Column) -> String {
    format!(
        "rowFilter.{}.{}",
        relation.name.name.as_str(),
        column.name.as_str()
    )
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/{kind}/{name}")})
}

fn path(relation: &Relation) -> Value {
    let name = relation.name.name.as_str();
    let columns = relation.columns.iter();
    let filters: Vec<String> = columns
        .map(|column| filter_name(relation, column))
        .collect();
    let body = format!("body.{name}");
    let made = |parameters: &[&str], with_filters: bool, responses: Value| {
        let filters = filters.iter().filter(|_| with_filters);
        let names = filters
            .map(String::as_str)
            .chain(parameters.iter().copied());
        let parameters: Vec<Value> = names.map(|name| reference("parameters", name)).collect();
        let members = json!({"parameters": parameters, "responses": responses});
        operation(name.to_owned(), relation.comment.as_deref(), members)
    };
    let mut methods = Map::new();
    let shape = [
        "select",
        "order",
        "range",
        "rangeUnit",
        "offset",
        "limit",
        "preferCount",
    ];
    let rows = json!({"type": "array", "items": reference("definitions", name)});
    let answers = json!({
        "200": {"description": "OK", "schema": rows},
        "206": {"description": "Partial Content"},
    });
    methods.insert("get".into(), made(&shape, true, answers));
    if relation.insertable {
        let answers = json!({"201": {"description": "Created"}});
        let parameters = [&*body, "select", "preferPost"];
        methods.insert("post".into(), made(&parameters, false, answers));
    }
    let nothing = json!({"204": {"description": "No Content"}});
    if relation.deletable {
        methods.insert(
            "delete".into(),
            made(&["preferReturn"], true, nothing.clone()),
        );
    }
    if relation.updatable {
        let parameters = [&*body, "preferReturn"];
        methods.insert("patch".into(), made(&parameters, true, nothing));
    }
    Value::Object(methods)
}

fn definition(catalog: &Catalog, relation: &Relation) -> Value {
    let properties: Map<String, Value> = relation
        .columns
        .iter()
        .map(|column| {
            (
                column.name.as_str().to_owned(),
                property(catalog, relation, column),
            )
        })
        .collect();
    let required: Vec<&str> = relation
        .columns
        .iter()
        .filter(|column| !column.nullable)
        .map(|column| column.name.as_str())
        .collect();
    let mut definition = Map::new();
    if let Some(comment) = &relation.comment {
        definition.insert("description".into(), json!(comment));
    }
    if !required.is_empty() {
        definition.insert("required".into(), json!(required));
    }
    definition.insert("properties".into(), Value::Object(properties));
    definition.insert("type".into(), json!("object"));
    Value::Object(definition)
}

fn property(catalog: &Catalog, relation: &Relation, column: &Column) -> Value {
    let mut property = Map::new();
    property.insert("format".into(), json!(column.base_type));
    property.extend(json_type(&column.base_type));
    if let Some(default) = column
        .default
        .as_deref()
        .and_then(|text| constant(column, text))
    {
        property.insert("default".into(), default);
    }
    if let Some(length) = column.max_length {
        property.insert("maxLength".into(), json!(length));
    }
    if !column.enum_labels.is_empty() {
        property.insert("enum".into(), json!(column.enum_labels));
    }
    let notes = notes(catalog, relation, column);
    let notes = (!notes.is_empty()).then(|| format!("Note:\n{}", notes.join("\n")));
    let parts = column.comment.clone().into_iter().chain(notes);
    let description: Vec<String> = parts.collect();
    if !description.is_empty() {
        property.insert("description".into(), json!(description.join("\n\n")));
    }
    Value::Object(property)
}

/// A default as JSON; none where it is no constant of a JSON type.
fn constant(column: &Column, text: &str) -> Option<Value> {
    if json_type(&column.base_type).get("type") != Some(&json!("string")) {
        return serde_json::from_str(text).ok();
    }
    let literal = text.strip_suffix(&*format!("::{}", column.base_type));
    Some(json!(
        literal.map_or(text, |literal| literal.trim_matches('\''))
    ))
}

/// Which keys a column is. The tags are for programs that read the document.
fn notes(catalog: &Catalog, relation: &Relation, column: &Column) -> Vec<String> {
    let primary = relation.primary_key.contains(&column.name);
    let primary = primary.then(|| "This is a Primary Key.<pk/>".to_owned());
    let is_table = |name| {
        let found = catalog.relations.get(name);
        found.is_some_and(|found| found.kind == RelationKind::Table)
    };
    let mut keys = catalog.foreign_keys.iter();
    let key = keys.find(|key| {
        let own = key.table == relation.name && key.columns == [column.name.clone()];
        own && !key.one_to_one && is_table(&key.foreign_table)
    });
    let foreign = key.and_then(|key| {
        let (table, column) = (
            key.foreign_table.name.as_str(),
            key.foreign_columns.first()?,
        );
        let column = column.as_str();
        Some(format!(
            "This is a Foreign Key to `{table}.{column}`.<fk table='{table}' column='{column}'/>"
        ))
    });
    primary.into_iter().chain(foreign).collect()
}

fn json_type(base_type: &str) -> Map<String, Value> {
    let mut found = Map::new();
    let name = match base_type {
        "smallint" | "integer" | "bigint" => "integer",
        "real" | "double precision" | "numeric" => "number",
        "boolean" => "boolean",
        "json" | "jsonb" => return found,
        array if array.ends_with("[]") => {
            let items = json_type(array.trim_end_matches("[]"));
            found.insert("items".into(), Value::Object(items));
            "array"
        }
        _ => "string",
    };
    found.insert("type".into(), json!(name));
    found
}

fn call(function: &Function) -> Value {
    let name = function.name.name.as_str();
    let schema = format!("{}.", function.name.schema.as_str());
    let format = |parameter: &Parameter| {
        let name = &*parameter.type_name;
        name.strip_prefix(&schema).unwrap_or(name).to_owned()
    };
    let mut in_query = Vec::new();
    let mut properties = Map::new();
    for parameter in &function.parameters {
        let name = parameter.name.as_str();
        let mut property = json_type(&parameter.base_type);
        property.insert("format".into(), json!(format(parameter)));
        let mut given = property.clone();
        // Anything but numbers and truth is text in a URL.
        if !parameter.variadic && (!given.contains_key("type") || given.contains_key("items")) {
            given.remove("items");
            given.insert("type".into(), json!("string"));
        }
        if parameter.variadic {
            given.insert("collectionFormat".into(), json!("multi"));
        }
        given.insert("name".into(), json!(name));
        given.insert("in".into(), json!("query"));
        given.insert("required".into(), json!(parameter.required));
        in_query.push(Value::Object(given));
        properties.insert(name.to_owned(), Value::Object(property));
    }
    let required = function
        .parameters
        .iter()
        .filter(|parameter| parameter.required);
    let required: Vec<&str> = required.map(|parameter| parameter.name.as_str()).collect();
    let mut arguments = Map::new();
    arguments.insert("type".into(), json!("object"));
    if !required.is_empty() {
        arguments.insert("required".into(), json!(required));
    }
    if !properties.is_empty() {
        arguments.insert("properties".into(), Value::Object(properties));
    }
    let made = |parameters: Vec<Value>| {
        let mut members =
            json!({"produces": MEDIA[..3], "responses": {"200": {"description": "OK"}}});
        if !parameters.is_empty() {
            members["parameters"] = json!(parameters);
        }
        operation(
            format!("(rpc) {name}"),
            function.comment.as_deref(),
            members,
        )
    };
    let body = json!({"name": "args", "in": "body", "required": true, "schema": arguments});
    json!({"get": made(in_query), "post": made(vec![body])})
}
