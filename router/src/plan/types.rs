//! Names of types that a cast may name.

use schema::catalog::{Catalog, Shape};
use schema::ident::QualifiedName;

use super::TypeName;
use crate::error::Error;

/// Built-in types by every name that clients use for them.
const BUILT_IN: &[&str] = &[
    "bigint",
    "bit",
    "bit varying",
    "bool",
    "boolean",
    "box",
    "bpchar",
    "bytea",
    "char",
    "character",
    "character varying",
    "cidr",
    "circle",
    "date",
    "daterange",
    "decimal",
    "double precision",
    "float",
    "float4",
    "float8",
    "inet",
    "int",
    "int2",
    "int4",
    "int4range",
    "int8",
    "int8range",
    "integer",
    "interval",
    "json",
    "jsonb",
    "jsonpath",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "money",
    "name",
    "numeric",
    "numrange",
    "oid",
    "path",
    "point",
    "polygon",
    "real",
    "regclass",
    "regtype",
    "smallint",
    "text",
    "time",
    "time with time zone",
    "time without time zone",
    "timestamp",
    "timestamp with time zone",
    "timestamp without time zone",
    "timestamptz",
    "timetz",
    "tsquery",
    "tsrange",
    "tstzrange",
    "tsvector",
    "uuid",
    "varbit",
    "varchar",
    "xml",
];

/// The type that a cast names: a built-in one, or one that the catalog uses.
pub(super) fn cast(catalog: &Catalog, name: &str) -> Result<TypeName, Error> {
    let lower = name.to_ascii_lowercase();
    if let Some(known) = BUILT_IN.iter().find(|known| **known == lower) {
        return Ok(TypeName((*known).into()));
    }
    let known = used(catalog).find(|known| matches(known, name));
    known
        .map(|known| TypeName(known.into()))
        .ok_or_else(|| Error::NoType(name.to_owned()))
}

/// A type's name as the catalog prints it, or its part behind the schema.
fn matches(known: &str, name: &str) -> bool {
    let bare = known.rsplit_once('.').map_or(known, |(_, bare)| bare);
    known == name || bare == name || bare.trim_matches('"') == name
}

fn used(catalog: &Catalog) -> impl Iterator<Item = &str> {
    let columns = catalog
        .relations
        .values()
        .flat_map(|relation| &relation.columns);
    let columns = columns.flat_map(|column| [&*column.type_name, &*column.base_type]);
    let functions = catalog.functions.values().flatten();
    let functions = functions.flat_map(|function| {
        let returned = match &function.returns.shape {
            Shape::Scalar(name) => Some(&**name),
            Shape::Void | Shape::Relation(_) | Shape::Composite(_) | Shape::Record => None,
        };
        let parameters = function.parameters.iter().map(|p| &*p.type_name);
        parameters.chain(returned)
    });
    columns.chain(functions)
}

/// The media type that a type is named as, in lower case: of `api."text/html"`
/// `text/html`.
pub(super) fn media(type_name: &str) -> Option<String> {
    let (_, bare) = type_name.strip_suffix('"')?.rsplit_once('"')?;
    let word = |text: &str, more: &[char]| {
        let fits = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
        !text.is_empty() && text.chars().all(fits)
    };
    let (kind, of) = bare.split_once('/')?;
    let named = word(kind, &['.', '-']) && word(of, &['.', '-', '+']);
    (bare == "*/*" || named).then(|| bare.to_ascii_lowercase())
}

/// How Postgres may print the row type of a relation.
pub(super) fn row_type_spellings(name: &QualifiedName) -> [String; 3] {
    let bare = quoted_where_needed(name.name.as_str());
    let schema = quoted_where_needed(name.schema.as_str());
    [format!("{schema}.{bare}"), name.to_string(), bare]
}

fn quoted_where_needed(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.chars().all(plain) {
        name.to_owned()
    } else {
        schema::ident::Ident::new(name).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_named_as_media_types() {
        let is = |name: &str| media(name);
        assert_eq!(is("api.\"text/html\"").as_deref(), Some("text/html"));
        assert_eq!(is("\"Image/SVG+xml\"").as_deref(), Some("image/svg+xml"));
        assert_eq!(is("api.\"*/*\"").as_deref(), Some("*/*"));
        for other in [
            "text",
            "api.\"a b/c\"",
            "api.\"/x\"",
            "api.\"x\"",
            "\"a/b\"[]",
        ] {
            assert_eq!(is(other), None, "{other}");
        }
    }
}
