//! Conditions.

use schema::ident::QualifiedName;

use super::fragment::Fragment;
use super::level::{self, Scope};
use crate::plan::{Condition, Embed, FieldRef, array_literal};
use crate::request::filter::{Is, Operation, Operator, Quantifier, SearchSyntax, Test};
use crate::request::logic::Join;

/// One condition on the rows of `scope`, whose embeds it may refer to.
pub(super) fn condition(sql: &mut Fragment, scope: Scope, embeds: &[Embed], one: &Condition) {
    match one {
        Condition::Test { field, operation } => test(sql, scope, field, operation),
        Condition::Group {
            negated,
            join,
            items,
        } => {
            sql.push(if *negated { "not (" } else { "(" });
            let separator = match join {
                Join::And => " and ",
                Join::Or => " or ",
            };
            sql.list(separator, items, |sql, item| {
                condition(sql, scope, embeds, item)
            });
            sql.push(")");
        }
        Condition::Exists { negated, embed } => {
            let Some(embed) = embeds.get(*embed) else {
                return;
            };
            // Rows that are aggregated to one always give that one.
            if embed.node.one_group() {
                return sql.push(if *negated { "false" } else { "true" });
            }
            sql.push(if *negated { "not exists (" } else { "exists (" });
            let below = Scope::below(sql);
            sql.push("select 1");
            level::linked(sql, scope, below, embed);
            sql.push(")");
        }
    }
}

fn test(sql: &mut Fragment, scope: Scope, field: &FieldRef, operation: &Operation) {
    if operation.negated {
        sql.push("not (");
    }
    match &operation.test {
        Test::Search {
            syntax,
            config,
            query,
        } => search(sql, scope, field, *syntax, config.as_deref(), query),
        test => {
            level::field(sql, scope, field);
            let representation = field.representation.as_deref();
            let from_text = representation.and_then(|shown| shown.from_text.as_ref());
            match from_text {
                Some(from_text) => compare_shown(sql, from_text, test),
                None => compare(sql, test),
            }
        }
    }
    if operation.negated {
        sql.push(")");
    }
}

/// ` operator $n`. The parameter's type is left to Postgres, which takes it
/// from the field.
fn compare(sql: &mut Fragment, test: &Test) {
    match test {
        Test::Compare {
            operator,
            quantifier,
            value,
        } => {
            sql.push(symbol(*operator));
            sql.push(match quantifier {
                Some(Quantifier::Any) => "any(",
                Some(Quantifier::All) => "all(",
                None => "",
            });
            sql.param(value.clone());
            if quantifier.is_some() {
                sql.push(")");
            }
        }
        Test::In(elements) => {
            sql.push(" = any(");
            sql.param(array_literal(listed(elements)));
            sql.push(")");
        }
        Test::Is(is) => sql.push(match is {
            Is::Null => " is null",
            Is::NotNull => " is not null",
            Is::True => " is true",
            Is::False => " is false",
            Is::Unknown => " is unknown",
        }),
        Test::Distinct(value) => {
            sql.push(" is distinct from ");
            sql.param(value.clone());
        }
        Test::Search { .. } => {}
    }
}

/// One empty element is none, as PostgREST has it: of whatever type.
fn listed(elements: &[String]) -> &[String] {
    match elements {
        [only] if only.is_empty() => &[],
        elements => elements,
    }
}

/// As [`compare`], values being made of what clients write by a function.
fn compare_shown(sql: &mut Fragment, from_text: &QualifiedName, test: &Test) {
    match test {
        Test::Compare {
            operator,
            quantifier: None,
            value,
        } if !matches!(operator, Operator::Like | Operator::Ilike) => {
            sql.push(symbol(*operator));
            sql.name(from_text);
            sql.push("(");
            sql.param(value.clone());
            sql.push("::text)");
        }
        Test::In(elements) => {
            sql.push(" = any(array(select ");
            sql.name(from_text);
            sql.push("(v) from pg_catalog.unnest(");
            sql.param(array_literal(listed(elements)));
            sql.push("::text[]) v))");
        }
        Test::Compare { .. } | Test::Distinct(_) | Test::Is(_) | Test::Search { .. } => {
            compare(sql, test);
        }
    }
}

fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq => " = ",
        Operator::Neq => " <> ",
        Operator::Gt => " > ",
        Operator::Gte => " >= ",
        Operator::Lt => " < ",
        Operator::Lte => " <= ",
        Operator::Like => " like ",
        Operator::Ilike => " ilike ",
        Operator::Match => " ~ ",
        Operator::Imatch => " ~* ",
        Operator::Contains => " @> ",
        Operator::Contained => " <@ ",
        Operator::Overlaps => " && ",
        Operator::StrictlyLeft => " << ",
        Operator::StrictlyRight => " >> ",
        Operator::NotRight => " &< ",
        Operator::NotLeft => " &> ",
        Operator::Adjacent => " -|- ",
    }
}

fn search(
    sql: &mut Fragment,
    scope: Scope,
    field: &FieldRef,
    syntax: SearchSyntax,
    config: Option<&str>,
    query: &str,
) {
    let vector = &*field.base_type == "tsvector" && field.path.is_empty();
    let configuration = |sql: &mut Fragment| {
        if let Some(config) = config {
            sql.param(config.to_owned());
            sql.push("::regconfig, ");
        }
    };
    if !vector {
        sql.push("pg_catalog.to_tsvector(");
        configuration(sql);
    }
    level::field(sql, scope, field);
    sql.push(if vector { " @@ " } else { ") @@ " });
    sql.push(match syntax {
        SearchSyntax::Query => "pg_catalog.to_tsquery(",
        SearchSyntax::Plain => "pg_catalog.plainto_tsquery(",
        SearchSyntax::Phrase => "pg_catalog.phraseto_tsquery(",
        SearchSyntax::Web => "pg_catalog.websearch_to_tsquery(",
    });
    configuration(sql);
    sql.param(query.to_owned());
    sql.push("::text)");
}
