//! The rows of one level: select list, source, joins, conditions, order, page.

use schema::ident::Ident;

use super::condition;
use super::fragment::{Alias, Fragment};
use crate::plan::{
    Arguments, Call, ColumnRef, Embed, FieldRef, Handler, Key, Link, Node, OrderTerm, Output, Plan,
    Source, Value,
};
use crate::request::name::{JsonKey, JsonStep};
use crate::request::order::{Direction, Nulls};
use crate::request::page::Page;
use crate::request::select::Aggregate;

/// Where [`Source::Produced`] rows stand.
pub(super) enum Origin<'a> {
    /// There are none: the level reads a relation.
    Own,
    /// In a CTE: `w`.
    Cte,
    /// In the call itself.
    Call(&'a Call),
}

/// The column of a CTE that holds the whole row, for functions of it.
pub(super) const WHOLE_ROW: &str = "ringfence row";

/// A level's rows by name, and how functions of a whole row get one.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    pub(super) rows: Alias,
    pub(super) in_cte: bool,
}

/// What a level's rows hang from.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// Nothing: it is the outermost.
    Top(&'a Origin<'a>),
    /// A row of another level.
    Below {
        parent: Scope,
        embed: &'a Embed,
        junction: Option<Alias>,
    },
}

/// The outermost level as a select: of outputs, or of whole rows where an
/// aggregate of the application's wants such.
pub(super) fn top(sql: &mut Fragment, plan: &Plan, node: &Node, origin: &Origin<'_>) {
    let (scope, place) = (Scope::top(origin), Place::Top(origin));
    if !matches!(plan.handler, Some(Handler::WholeRows(_))) {
        return select(sql, node, scope, place);
    }
    sql.push("select ");
    whole_row(sql, scope);
    sql.push(" as ");
    sql.ident(&Ident::new(WHOLE_ROW));
    source(sql, node, scope, place);
    conditions(sql, node, scope, place);
    order(sql, node, scope);
    page(sql, &node.page);
}

/// ` from … where …` of the outermost level, for counting.
pub(super) fn matching(sql: &mut Fragment, node: &Node, origin: &Origin<'_>) {
    let place = Place::Top(origin);
    source(sql, node, Scope::top(origin), place);
    conditions(sql, node, Scope::top(origin), place);
}

/// ` from … where …` of an embed's rows that belong to its parent's row.
pub(super) fn linked(sql: &mut Fragment, parent: Scope, scope: Scope, embed: &Embed) {
    let place = Place::below(sql, parent, embed);
    source(sql, &embed.node, scope, place);
    conditions(sql, &embed.node, scope, place);
}

impl Scope {
    fn top(origin: &Origin<'_>) -> Self {
        Self {
            rows: Alias::ROOT,
            in_cte: matches!(origin, Origin::Cte),
        }
    }

    /// A new level below another one.
    pub(super) fn below(sql: &mut Fragment) -> Self {
        Self {
            rows: sql.alias('t'),
            in_cte: false,
        }
    }
}

impl<'a> Place<'a> {
    fn below(sql: &mut Fragment, parent: Scope, embed: &'a Embed) -> Self {
        let through = matches!(embed.link, Link::Junction { .. });
        Self::Below {
            parent,
            embed,
            junction: through.then(|| sql.alias('j')),
        }
    }
}

fn source(sql: &mut Fragment, node: &Node, scope: Scope, place: Place<'_>) {
    sql.push(" from ");
    if let Place::Below {
        embed: Embed {
            link: Link::Junction { name, .. },
            ..
        },
        junction: Some(junction),
        ..
    } = place
    {
        sql.name(name);
        sql.push(" ");
        sql.rows(junction);
        sql.push(" cross join ");
    }
    match (&node.source, place) {
        (Source::Relation { name, .. }, _) => sql.name(name),
        (Source::Computed { function }, Place::Below { parent, .. }) => {
            sql.name(function);
            sql.push("(");
            whole_row(sql, parent);
            sql.push(")");
        }
        (_, Place::Top(Origin::Call(call))) => function(sql, call),
        (Source::Produced | Source::Computed { .. }, _) => sql.push("w"),
    }
    sql.push(" ");
    sql.rows(scope.rows);
}

fn conditions(sql: &mut Fragment, node: &Node, scope: Scope, place: Place<'_>) {
    let mut terms = Terms::new(sql);
    if let Place::Below {
        parent,
        embed,
        junction,
    } = place
    {
        belonging(&mut terms, parent, scope, &embed.link, junction);
    }
    if let Source::Relation { tenant, .. } = &node.source {
        terms.tenant(scope.rows, tenant.as_ref());
    }
    if let Place::Top(Origin::Own | Origin::Call(_)) = place {
        terms.guard();
    }
    for one in &node.conditions {
        terms.next();
        condition::condition(terms.sql, scope, &node.embeds, one);
    }
}

fn belonging(
    terms: &mut Terms<'_>,
    parent: Scope,
    scope: Scope,
    link: &Link,
    junction: Option<Alias>,
) {
    match link {
        Link::Computed => {}
        Link::Columns(pairs) => terms.equal(parent.rows, scope.rows, pairs),
        Link::Junction {
            tenant,
            parent: above,
            child,
            ..
        } => {
            let junction = junction.unwrap_or(scope.rows);
            terms.equal(parent.rows, junction, above);
            terms.tenant(junction, tenant.as_ref());
            terms.equal(junction, scope.rows, child);
        }
    }
}

/// ` where … and …`.
pub(super) struct Terms<'a> {
    pub(super) sql: &'a mut Fragment,
    first: bool,
}

impl<'a> Terms<'a> {
    pub(super) fn new(sql: &'a mut Fragment) -> Self {
        Self { sql, first: true }
    }

    pub(super) fn next(&mut self) {
        self.sql.push(if self.first { " where " } else { " and " });
        self.first = false;
    }

    /// The rows are the tenant's.
    pub(super) fn tenant(&mut self, rows: Alias, column: Option<&Ident>) {
        if let Some(column) = column {
            self.next();
            self.sql.column(rows, column);
            self.sql.push(" = ");
            self.sql.tenant();
        }
    }

    /// Any reference to the guard's row makes Postgres fetch it first.
    pub(super) fn guard(&mut self) {
        if self.sql.guarded() {
            self.next();
            self.sql.push("g.tenant is not null");
        }
    }

    fn equal(&mut self, left: Alias, right: Alias, pairs: &[(Ident, Ident)]) {
        for (a, b) in pairs {
            self.next();
            self.sql.column(right, b);
            self.sql.push(" = ");
            self.sql.column(left, a);
        }
    }
}

fn select(sql: &mut Fragment, node: &Node, scope: Scope, place: Place<'_>) {
    let spreads = node
        .embeds
        .iter()
        .enumerate()
        .filter(|(_, embed)| embed.spread && !embed.node.outputs.is_empty());
    let spreads: Vec<(usize, Alias, &Embed)> = spreads
        .map(|(index, embed)| (index, sql.alias('s'), embed))
        .collect();
    sql.push("select ");
    outputs(sql, node, scope, &spreads);
    source(sql, node, scope, place);
    for (_, alias, embed) in &spreads {
        sql.push(" left join lateral (");
        spread(sql, scope, embed);
        sql.push(") ");
        sql.rows(*alias);
        sql.push(" on true");
    }
    conditions(sql, node, scope, place);
    if node.grouped() {
        group(sql, node, scope);
    }
    order(sql, node, scope);
    match place {
        // Keys make it one row; a view's or a function's word is not taken for it.
        Place::Below { embed, .. } if embed.to_one && node.page.is_whole() => {
            sql.push(" limit 1");
        }
        Place::Below { .. } | Place::Top(_) => page(sql, &node.page),
    }
}

/// What a row holds that is its own alone: no embed's rows.
pub(super) fn own_outputs(sql: &mut Fragment, node: &Node, scope: Scope) {
    outputs(sql, node, scope, &[]);
}

fn outputs(sql: &mut Fragment, node: &Node, scope: Scope, spreads: &[(usize, Alias, &Embed)]) {
    let named = names_are_the_catalogs(&node.outputs);
    let outputs = node.outputs.iter().enumerate();
    sql.list(", ", outputs, |sql, (index, output)| {
        self::output(sql, node, scope, spreads, output);
        sql.push(" as ");
        match &output.key {
            Key::Model(name) if named => sql.ident(name),
            Key::Model(_) | Key::Request(_) => sql.numbered(index),
        }
    });
}

/// Keys that are all names of the catalog can be columns' names; a request's
/// own key can't, so then columns are numbered and `body` names the values.
pub(super) fn names_are_the_catalogs(outputs: &[Output]) -> bool {
    outputs
        .iter()
        .all(|output| matches!(output.key, Key::Model(_)))
}

fn output(
    sql: &mut Fragment,
    node: &Node,
    scope: Scope,
    spreads: &[(usize, Alias, &Embed)],
    output: &Output,
) {
    let value = |sql: &mut Fragment| match &output.value {
        Value::Field { field, cast } => {
            if cast.is_some() {
                sql.push("cast(");
            }
            shown(sql, scope, field);
            if let Some(cast) = cast {
                sql.push(" as ");
                sql.cast(cast);
                sql.push(")");
            }
        }
        Value::Rows => sql.push("pg_catalog.count(*)"),
        // Something that is there for each row, for the level above to count.
        Value::Row if output.aggregate.is_none() => sql.push("1"),
        Value::Row => sql.push("*"),
        Value::Embed(index) => {
            if let Some(embed) = node.embeds.get(*index) {
                embedded(sql, scope, embed);
            }
        }
        Value::Lifted { embed, output } => {
            if let Some((_, alias, _)) = spreads.iter().find(|(index, ..)| index == embed) {
                sql.rows(*alias);
                sql.push(".");
                sql.numbered(*output);
            }
        }
    };
    let Some(call) = &output.aggregate else {
        return value(sql);
    };
    if call.cast.is_some() {
        sql.push("cast(");
    }
    sql.push(match call.function {
        Aggregate::Sum => "pg_catalog.sum(",
        Aggregate::Avg => "pg_catalog.avg(",
        Aggregate::Count => "pg_catalog.count(",
        Aggregate::Max => "pg_catalog.max(",
        Aggregate::Min => "pg_catalog.min(",
    });
    value(sql);
    sql.push(")");
    if let Some(cast) = &call.cast {
        sql.push(" as ");
        sql.cast(cast);
        sql.push(")");
    }
}

/// A field as an answer shows it.
fn shown(sql: &mut Fragment, scope: Scope, field: &FieldRef) {
    let representation = field.representation.as_deref();
    let Some(to_json) = representation.and_then(|shown| shown.to_json.as_ref()) else {
        return self::field(sql, scope, field);
    };
    sql.name(to_json);
    sql.push("(");
    self::field(sql, scope, field);
    sql.push(")");
}

/// A field of a level's rows.
pub(super) fn field(sql: &mut Fragment, scope: Scope, field: &FieldRef) {
    let json = matches!(&*field.base_type, "json" | "jsonb");
    let wrap = !field.path.is_empty();
    if wrap {
        sql.push(if json { "(" } else { "(pg_catalog.to_jsonb(" });
    }
    match &field.column {
        ColumnRef::Column(name) => sql.column(scope.rows, name),
        ColumnRef::Computed(function) => {
            sql.name(function);
            sql.push("(");
            whole_row(sql, scope);
            sql.push(")");
        }
    }
    if wrap && !json {
        sql.push(")");
    }
    for JsonStep { text, key } in &field.path {
        sql.push(if *text { "->>" } else { "->" });
        match key {
            JsonKey::Name(name) => {
                sql.param(name.clone());
                sql.push("::text");
            }
            JsonKey::Index(index) => {
                sql.param(index.to_string());
                sql.push("::int");
            }
        }
    }
    if wrap {
        sql.push(")");
    }
}

fn whole_row(sql: &mut Fragment, scope: Scope) {
    if scope.in_cte {
        sql.column(scope.rows, &Ident::new(WHOLE_ROW));
    } else {
        sql.rows(scope.rows);
    }
}

/// An embed's rows as one JSON value.
fn embedded(sql: &mut Fragment, parent: Scope, embed: &Embed) {
    let alias = sql.alias('r');
    let build = |sql: &mut Fragment| super::body::object(sql, alias, &embed.node.outputs);
    sql.push("(select ");
    if embed.to_one {
        build(sql);
    } else {
        sql.push("coalesce(pg_catalog.jsonb_agg(");
        build(sql);
        sql.push("), '[]')");
    }
    sql.push(" from (");
    below(sql, parent, embed);
    sql.push(") ");
    sql.rows(alias);
    sql.push(")");
}

/// A spread embed's outputs, numbered: of one row, or an array of all rows each.
fn spread(sql: &mut Fragment, parent: Scope, embed: &Embed) {
    let alias = sql.alias('r');
    let numbers = 0..embed.node.outputs.len();
    let named = names_are_the_catalogs(&embed.node.outputs);
    let outputs = embed.node.outputs.iter().zip(numbers);
    sql.push("select ");
    sql.list(", ", outputs, |sql, (output, number)| {
        if !embed.to_one {
            sql.push("coalesce(pg_catalog.jsonb_agg(");
        }
        match &output.key {
            Key::Model(name) if named => sql.column(alias, name),
            Key::Model(_) | Key::Request(_) => {
                sql.rows(alias);
                sql.push(".");
                sql.numbered(number);
            }
        }
        if !embed.to_one {
            sql.push("), '[]')");
        }
        sql.push(" as ");
        sql.numbered(number);
    });
    sql.push(" from (");
    below(sql, parent, embed);
    sql.push(") ");
    sql.rows(alias);
}

/// A level below another one.
fn below(sql: &mut Fragment, parent: Scope, embed: &Embed) {
    let scope = Scope::below(sql);
    let place = Place::below(sql, parent, embed);
    select(sql, &embed.node, scope, place);
}

fn group(sql: &mut Fragment, node: &Node, scope: Scope) {
    let outputs = node.outputs.iter().zip(1..);
    let plain = outputs
        .filter(|(output, _)| output.aggregate.is_none() && !matches!(output.value, Value::Rows));
    let plain: Vec<(&Output, usize)> = plain.collect();
    if !plain.is_empty() {
        sql.push(" group by ");
        sql.list(", ", plain, |sql, (output, position)| {
            match (&output.value, &output.key) {
                // A cast without an alias is made of what is grouped by.
                (
                    Value::Field {
                        field,
                        cast: Some(_),
                    },
                    Key::Model(_),
                ) if field.path.is_empty() => {
                    self::field(sql, scope, field);
                }
                _ => sql.position(position),
            }
        });
    }
}

fn order(sql: &mut Fragment, node: &Node, scope: Scope) {
    if node.order.is_empty() {
        return;
    }
    sql.push(" order by ");
    sql.list(", ", &node.order, |sql, term| {
        order_field(sql, node, scope, term);
        sql.push(match term.direction {
            Some(Direction::Asc) => " asc",
            Some(Direction::Desc) => " desc",
            None => "",
        });
        sql.push(match term.nulls {
            Some(Nulls::First) => " nulls first",
            Some(Nulls::Last) => " nulls last",
            None => "",
        });
    });
}

fn order_field(sql: &mut Fragment, node: &Node, scope: Scope, term: &OrderTerm) {
    if let Some(position) = grouped_by(node, term) {
        return sql.position(position);
    }
    if let Some(embed) = term.embed.and_then(|index| node.embeds.get(index)) {
        let below = Scope::below(sql);
        sql.push("(select ");
        field(sql, below, &term.field);
        linked(sql, scope, below, embed);
        sql.push(" limit 1)");
        return;
    }
    field(sql, scope, &term.field);
}

/// The position, from 1, of the output that groups are ordered by. Among groups
/// only what they are grouped by has an order; by position, since parameters of a
/// JSON path make two equal expressions different.
fn grouped_by(node: &Node, term: &OrderTerm) -> Option<usize> {
    let is_it =
        |value: &Value| matches!(value, Value::Field { field, cast: None } if *field == term.field);
    let same = |output: &Output| match &output.value {
        _ if output.aggregate.is_some() => false,
        Value::Lifted {
            embed,
            output: below,
        } => {
            let rows = node.embeds.get(*embed).filter(|embed| embed.to_one);
            let lifted = rows.and_then(|embed| embed.node.outputs.get(*below));
            term.embed == Some(*embed) && lifted.is_some_and(|lifted| is_it(&lifted.value))
        }
        value => term.embed.is_none() && is_it(value),
    };
    let found = node.outputs.iter().position(same)?;
    node.grouped().then_some(found + 1)
}

/// Limits up to this are written into the text. Behind a parameter the planner
/// takes a limit for a tenth of all rows, finds its generic plan too dear, and
/// plans each request anew: twice the cost of a page of 20 rows. Clients use few
/// page sizes, so few texts come of it, and the statement cache is bounded.
const LITERAL_LIMIT_MAX: i64 = 1_000;

/// ` limit … offset …`.
pub(super) fn page(sql: &mut Fragment, page: &Page) {
    if let Some(limit) = page.limit {
        sql.push(" limit ");
        match limit {
            0..=LITERAL_LIMIT_MAX => sql.number(limit),
            _ => sql.param(limit.to_string()),
        }
    }
    if let Some(offset) = page.offset {
        sql.push(" offset ");
        sql.param(offset.to_string());
    }
}

/// The call of a function as a source of rows.
pub(super) fn function(sql: &mut Fragment, call: &Call) {
    if let Arguments::Json { parameters, rows } = &call.arguments
        && !parameters.is_empty()
    {
        super::call::record(sql, parameters, rows);
        sql.push(", lateral ");
    }
    super::call::invocation(sql, call);
}
