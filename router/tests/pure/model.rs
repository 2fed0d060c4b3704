//! A small schema as introspection would find it: for planning without a server.

use std::collections::HashMap;
use std::sync::Arc;

use router::plan::Model;
use schema::catalog::{
    Catalog, Column, Fingerprint, ForeignKey, Function, Parameter, Relation, RelationKind, Returns,
    Scope, Shape, UniqueKey, Volatility,
};
use schema::ident::{Ident, QualifiedName};

fn public(name: &str) -> QualifiedName {
    QualifiedName::new("public", name)
}

fn column(name: &str, kind: &str) -> Column {
    Column {
        name: Ident::new(name),
        type_name: kind.into(),
        base_type: kind.into(),
        nullable: name != "id",
        default: (name == "id").then(|| "nextval('s'::regclass)".into()),
        generated: false,
        enum_labels: Vec::new(),
        max_length: None,
        comment: None,
        representation: None,
    }
}

fn table(name: &str, columns: &[(&str, &str)]) -> (QualifiedName, Relation) {
    let key = vec![Ident::new("id")];
    let relation = Relation {
        name: public(name),
        kind: RelationKind::Table,
        scope: Scope::Distributed {
            tenant_column: Ident::new("tenant_id"),
            hidden: true,
        },
        uncacheable: None,
        columns: columns
            .iter()
            .map(|(name, kind)| column(name, kind))
            .collect(),
        primary_key: key.clone(),
        unique_keys: vec![UniqueKey {
            name: Ident::new(format!("{name}_pkey")),
            columns: key,
        }],
        insertable: true,
        updatable: true,
        deletable: true,
        comment: None,
    };
    (public(name), relation)
}

fn foreign_key(from: &str, column: &str, to: &str) -> ForeignKey {
    ForeignKey {
        name: Ident::new(format!("{from}_{column}_fkey")),
        table: public(from),
        columns: vec![Ident::new(column)],
        foreign_table: public(to),
        foreign_columns: vec![Ident::new("id")],
        one_to_one: false,
        through_view: false,
    }
}

fn parameter(name: &str, kind: &str, required: bool) -> Parameter {
    Parameter {
        name: Ident::new(name),
        type_name: kind.into(),
        base_type: kind.into(),
        required,
        variadic: false,
    }
}

/// Companies, their contacts and deals, and two functions.
pub(crate) fn crm() -> Model {
    let relations = [
        table(
            "companies",
            &[
                ("id", "bigint"),
                ("name", "text"),
                ("data", "jsonb"),
                ("tags", "text[]"),
                ("parent_id", "bigint"),
            ],
        ),
        table(
            "contacts",
            &[
                ("id", "bigint"),
                ("company_id", "bigint"),
                ("email", "text"),
            ],
        ),
        table(
            "deals",
            &[
                ("id", "bigint"),
                ("company_id", "bigint"),
                ("contact_id", "bigint"),
                ("amount", "numeric"),
            ],
        ),
    ];
    let search = Function {
        name: public("search"),
        parameters: vec![
            parameter("query", "text", true),
            parameter("top", "integer", false),
        ],
        returns: Returns {
            set: true,
            shape: Shape::Relation(public("contacts")),
        },
        volatility: Volatility::Stable,
        settings: Vec::new(),
        comment: None,
    };
    let echo = Function {
        name: public("echo"),
        parameters: vec![parameter("", "json", true)],
        returns: Returns {
            set: false,
            shape: Shape::Scalar("json".into()),
        },
        volatility: Volatility::Volatile,
        ..search.clone()
    };
    let functions = [search, echo].map(|function| (function.name.clone(), vec![function]));
    Model::new(Arc::new(Catalog {
        fingerprint: Fingerprint("test".into()),
        server_major: 15,
        relations: HashMap::from(relations),
        foreign_keys: vec![
            foreign_key("contacts", "company_id", "companies"),
            foreign_key("deals", "company_id", "companies"),
            foreign_key("deals", "contact_id", "contacts"),
            foreign_key("companies", "parent_id", "companies"),
        ],
        functions: HashMap::from(functions),
        computed_relationships: Vec::new(),
        media_handlers: Vec::new(),
        schema_comments: HashMap::new(),
        roles: vec!["authenticated".into()],
        reads_request_settings: false,
        reads_claims: false,
        hidden: Vec::new(),
    }))
}
