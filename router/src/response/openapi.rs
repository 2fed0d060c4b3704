//! The schema as an OpenAPI 2.0 document.

use bytes::Bytes;
use schema::catalog::{Column, Function, Relation};
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
    paths.insert("/".into(), json!({"get": {"summary": "OpenAPI description (this document)", "responses": {"200": {"description": "OK"}}}}));
    let mut definitions = Map::new();
    for relation in &relations {
        let name = relation.name.name.as_str();
        paths.insert(format!("/{name}"), path(relation));
        definitions.insert(name.to_owned(), definition(relation));
    }
    for function in functions {
        let name = function.name.name.as_str();
        paths.insert(format!("/rpc/{name}"), call(function));
    }
    let comment = catalog.schema_comments.get(&schema.into());
    json!({
        "swagger": "2.0",
        "info": {
            "title": comment.map_or("standard public schema", String::as_str),
            "version": env!("CARGO_PKG_VERSION"),
        },
        "basePath": match config.rest_prefix.as_str() { "" => "/", prefix => prefix },
        "consumes": ["application/json", "application/vnd.pgrst.object+json", "text/csv"],
        "produces": ["application/json", "application/vnd.pgrst.object+json", "text/csv"],
        "paths": paths,
        "definitions": definitions,
    })
    .to_string()
}

fn path(relation: &Relation) -> Value {
    let name = relation.name.name.as_str();
    let filters: Vec<Value> = relation
        .columns
        .iter()
        .map(|column| {
            json!({"name": column.name.as_str(), "in": "query", "required": false, "type": "string"})
        })
        .collect();
    let body = json!({"name": name, "in": "body", "required": false, "schema": {"$ref": format!("#/definitions/{name}")}});
    let operation = |parameters: Vec<Value>, status: &str| {
        json!({
            "tags": [name],
            "summary": relation.comment.as_deref().and_then(|c| c.lines().next()),
            "parameters": parameters,
            "responses": {status: {"description": "OK"}},
        })
    };
    let shape = ["select", "order", "offset", "limit"]
        .map(|key| json!({"name": key, "in": "query", "required": false, "type": "string"}));
    let mut read = filters.clone();
    read.extend(shape);
    let mut methods = Map::new();
    methods.insert("get".into(), operation(read, "200"));
    if relation.insertable {
        methods.insert("post".into(), operation(vec![body.clone()], "201"));
    }
    if relation.updatable {
        let mut parameters = filters.clone();
        parameters.push(body);
        methods.insert("patch".into(), operation(parameters, "204"));
    }
    if relation.deletable {
        methods.insert("delete".into(), operation(filters, "204"));
    }
    Value::Object(methods)
}

fn definition(relation: &Relation) -> Value {
    let properties: Map<String, Value> = relation
        .columns
        .iter()
        .map(|column| (column.name.as_str().to_owned(), property(relation, column)))
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

fn property(relation: &Relation, column: &Column) -> Value {
    let mut property = Map::new();
    property.insert("format".into(), json!(column.type_name));
    property.extend(json_type(&column.base_type));
    if let Some(default) = &column.default {
        property.insert("default".into(), json!(default));
    }
    if let Some(length) = column.max_length {
        property.insert("maxLength".into(), json!(length));
    }
    if !column.enum_labels.is_empty() {
        property.insert("enum".into(), json!(column.enum_labels));
    }
    let key = relation.primary_key.contains(&column.name);
    let note = key.then_some("Note:\nThis is a Primary Key.<pk/>");
    let parts = column.comment.as_deref().into_iter().chain(note);
    let description: Vec<&str> = parts.collect();
    if !description.is_empty() {
        property.insert("description".into(), json!(description.join("\n\n")));
    }
    Value::Object(property)
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
    let properties: Map<String, Value> = function
        .parameters
        .iter()
        .map(|parameter| {
            let mut property = json_type(&parameter.base_type);
            property.insert("format".into(), json!(parameter.type_name));
            (parameter.name.as_str().to_owned(), Value::Object(property))
        })
        .collect();
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
    arguments.insert("properties".into(), Value::Object(properties));
    json!({
        "post": {
            "tags": [format!("(rpc) {name}")],
            "summary": function.comment.as_deref().and_then(|c| c.lines().next()),
            "parameters": [{"name": "args", "in": "body", "required": true, "schema": arguments}],
            "responses": {"200": {"description": "OK"}},
        }
    })
}
