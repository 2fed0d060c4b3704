//! What shards hold when a file is looked at: before the first one what the caller
//! knows of them, then as each statement leaves them.

use std::collections::{BTreeMap, BTreeSet};

/// What a table was declared to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// Every row belongs to a tenant.
    Distributed,
    /// The same rows for all tenants.
    Reference,
    /// Neither.
    Plain,
}

/// Tables by name, `schema.table`.
#[derive(Clone, Debug, Default)]
pub struct Known {
    tables: BTreeMap<String, Table>,
    /// Columns that constraints say are not null, by table and constraint.
    checks: BTreeMap<(String, String), String>,
}

#[derive(Clone, Debug)]
struct Table {
    kind: RelationKind,
    /// The file and line that make it; none where shards hold it already.
    made: Option<(String, u32)>,
    /// Its exclusion constraints without the tenant, by name; empty for one without.
    excludes: BTreeSet<String>,
}

impl Known {
    /// Nothing but what Postgres brings.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a table that shards hold already.
    pub fn with(mut self, name: &str, kind: RelationKind) -> Self {
        let table = Table {
            kind,
            made: None,
            excludes: BTreeSet::new(),
        };
        self.tables.insert(canonical(name), table);
        self
    }

    /// What a table is; one that nothing is known of counts as distributed,
    /// because then the rules are strictest.
    pub(super) fn kind(&self, name: &str) -> RelationKind {
        let table = self.tables.get(&canonical(name));
        table.map_or(RelationKind::Distributed, |table| table.kind)
    }

    pub(super) fn create(&mut self, name: &str, file: &str, line: u32) {
        let table = Table {
            kind: RelationKind::Plain,
            made: Some((file.to_owned(), line)),
            excludes: BTreeSet::new(),
        };
        self.tables.entry(canonical(name)).or_insert(table);
    }

    pub(super) fn declare(&mut self, name: &str, kind: RelationKind) {
        let table = Table {
            kind,
            made: None,
            excludes: BTreeSet::new(),
        };
        self.tables
            .entry(canonical(name))
            .and_modify(|table| table.kind = kind)
            .or_insert(table);
    }

    /// Notes an exclusion constraint without the tenant.
    pub(super) fn exclude(&mut self, table: &str, constraint: Option<&str>) {
        if let Some(table) = self.tables.get_mut(&canonical(table)) {
            let name = constraint.map(canonical).unwrap_or_default();
            table.excludes.insert(name);
        }
    }

    /// A constraint is no longer there.
    pub(super) fn drop_constraint(&mut self, table: &str, constraint: &str) {
        if let Some(table) = self.tables.get_mut(&canonical(table)) {
            table.excludes.remove(&canonical(constraint));
        }
    }

    pub(super) fn excludes(&self, name: &str) -> bool {
        let table = self.tables.get(&canonical(name));
        table.is_some_and(|table| !table.excludes.is_empty())
    }

    /// A table becomes a partition: what it is, its table says.
    pub(super) fn attach(&mut self, name: &str) {
        if let Some(table) = self.tables.get_mut(&canonical(name)) {
            table.made = None;
        }
    }

    /// Notes a constraint by which a column is not null.
    pub(super) fn check(&mut self, table: &str, constraint: &str, column: &str) {
        let key = (canonical(table), canonical(constraint));
        self.checks.insert(key, column.to_owned());
    }

    /// The column that a constraint says is not null, where it is known to be one.
    pub(super) fn checked(&self, table: &str, constraint: &str) -> Option<&str> {
        let key = (canonical(table), canonical(constraint));
        self.checks.get(&key).map(String::as_str)
    }

    /// All that are known.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tables.keys()
    }

    pub(super) fn drop(&mut self, name: &str) {
        self.tables.remove(&canonical(name));
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        let from = canonical(from);
        if let Some(table) = self.tables.remove(&from) {
            let schema = from.split_once('.').map_or("public", |(schema, _)| schema);
            let to = canonical(to);
            let bare = to.split_once('.').map_or(to.as_str(), |(_, name)| name);
            self.tables.insert(format!("{schema}.{bare}"), table);
        }
    }

    /// Tables that the files made and left unscoped, with where they were made.
    pub(super) fn unscoped(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        self.tables.iter().filter_map(|(name, table)| {
            let (file, line) = table.made.as_ref()?;
            let plain = table.kind == RelationKind::Plain;
            plain.then_some((name.as_str(), file.as_str(), *line))
        })
    }
}

/// A name as Postgres understands it: unquoted parts in lower case, quotes
/// gone, `public` where no schema is named.
pub(crate) fn canonical(name: &str) -> String {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = name.trim().chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                push(&mut parts, '"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c if quoted => push(&mut parts, c),
            c if c.is_whitespace() => {}
            c => push(&mut parts, c.to_ascii_lowercase()),
        }
    }
    match parts.len() {
        1 => format!("public.{}", parts.concat()),
        _ => parts.join("."),
    }
}

fn push(parts: &mut [String], c: char) {
    if let Some(part) = parts.last_mut() {
        part.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_as_postgres_does() {
        assert_eq!(canonical("People"), "public.people");
        assert_eq!(canonical("app . \"People\""), "app.People");
        assert_eq!(canonical("\"a\"\"b.c\""), "public.a\"b.c");
    }
}
