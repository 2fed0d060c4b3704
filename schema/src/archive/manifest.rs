//! What an archive says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ArchiveError;
use crate::ident::{Ident, QualifiedName};
use crate::tenant_tables::{TenantColumn, TenantTable};

/// Longest part of a table's name that its folder's name has.
const FOLDER_CHARS_MAX: usize = 60;

/// The first file: what follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version.
    pub format: u32,
    /// Whose rows they are.
    pub tenant: ArchivedTenant,
    /// The snapshot's time on its server, UTC.
    pub taken_at: String,
    /// Up to where the snapshot's server had written or replayed its log.
    pub lsn: String,
    /// Digest of the tables: equal ones take each other's archives.
    pub schema: String,
    /// The tables, also those without rows.
    pub tables: Vec<ArchivedTable>,
    /// Where the application's sequences were: an import raises its own past them.
    pub sequences: BTreeMap<String, i64>,
}

/// Whose rows they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedTenant {
    /// Its id there. An import gives it another.
    pub id: Uuid,
    /// Its slug, where who exported it knew it.
    pub slug: Option<String>,
    /// Its name for people, the same.
    pub name: Option<String>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedTable {
    /// The folder of its parts.
    pub folder: String,
    /// Its schema.
    pub schema: Ident,
    /// Its name there.
    pub name: Ident,
    /// Its columns without the tenant's and generated ones.
    pub columns: Vec<ArchivedColumn>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedColumn {
    /// Its name.
    pub name: Ident,
    /// `format_type()` with modifiers, schema-qualified where it is not Postgres' own.
    #[serde(rename = "type")]
    pub type_name: String,
    /// How its values are written.
    pub form: Form,
}

/// How a column's values are written as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As JSON has it: numbers, strings, true and false.
    Plain,
    /// As it is; but what JSON's null, or an object with the key `$ringfence`,
    /// would be mistaken for stands in an object under that key.
    Json,
    /// As a string, in Postgres' own text form.
    Text,
}

/// The last file: what an archive must hold to be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// SHA-256 of the manifest.
    pub manifest: String,
    /// All rows.
    pub rows: u64,
    /// All bytes of rows.
    pub bytes: u64,
    /// The parts, in their order.
    pub parts: Vec<PartDigest>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartDigest {
    /// Its name in the archive.
    pub path: String,
    /// Its lines.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: String,
}

impl Manifest {
    /// Rows by table, as `digests` counts them.
    pub fn rows_by_table(&self, digests: &Digests) -> Vec<(String, u64)> {
        let rows = |table: &ArchivedTable| {
            let prefix = format!("{}/", table.folder);
            let parts = digests.parts.iter();
            let own = parts.filter(|part| part.path.starts_with(&prefix));
            own.map(|part| part.rows).sum()
        };
        let tables = self.tables.iter();
        tables.map(|table| (table.label(), rows(table))).collect()
    }

    /// How the tables of a shard differ from the archive's; none: they are alike.
    pub fn differs_from(&self, tables: &[TenantTable]) -> Option<String> {
        for archived in &self.tables {
            let Some(table) = find(tables, archived) else {
                return Some(format!(
                    "table {} of the archive is not on the shard",
                    archived.label()
                ));
            };
            if let Some(what) = archived.differs_from(table) {
                return Some(format!("of table {}, {what}", archived.label()));
            }
        }
        let more = tables
            .iter()
            .find(|table| !self.tables.iter().any(|a| a.is(table)))?;
        Some(format!(
            "table {}.{} of the shard is not in the archive",
            more.name.schema.as_str(),
            more.name.name.as_str()
        ))
    }
}

/// The shard's table that is the archive's.
pub fn find<'a>(tables: &'a [TenantTable], archived: &ArchivedTable) -> Option<&'a TenantTable> {
    tables.iter().find(|table| archived.is(table))
}

impl ArchivedTable {
    /// As an archive's `index`th table, from 0.
    pub fn of(index: usize, table: &TenantTable) -> Self {
        let columns = table.columns.iter().filter(|column| !column.generated);
        let (schema, name) = (&table.name.schema, &table.name.name);
        let label: String = format!("{}.{}", schema.as_str(), name.as_str())
            .chars()
            .map(|c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
                _ => '_',
            })
            .take(FOLDER_CHARS_MAX)
            .collect();
        Self {
            folder: format!("tables/{:02}-{label}", index + 1),
            schema: schema.clone(),
            name: name.clone(),
            columns: columns.map(ArchivedColumn::of).collect(),
        }
    }

    /// Its name for people.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema.as_str(), self.name.as_str())
    }

    /// Its name in SQL.
    pub fn qualified(&self) -> QualifiedName {
        QualifiedName::new(self.schema.as_str(), self.name.as_str())
    }

    /// The name of its `number`th part, from 1.
    pub fn part(&self, number: u64) -> String {
        format!("{}/{number:06}.ndjson", self.folder)
    }

    fn is(&self, table: &TenantTable) -> bool {
        self.schema == table.name.schema && self.name == table.name.name
    }

    /// A column that rows may lack is no difference.
    fn differs_from(&self, table: &TenantTable) -> Option<String> {
        for column in &self.columns {
            let name = column.name.as_str();
            match table.columns.iter().find(|c| c.name == column.name) {
                None => return Some(format!("the shard lacks column {name}")),
                Some(own) if own.generated => {
                    return Some(format!("the shard generates column {name}"));
                }
                Some(own) if own.type_name != column.type_name => {
                    return Some(format!(
                        "column {name} is {} in the archive and {} on the shard",
                        column.type_name, own.type_name
                    ));
                }
                Some(_) => {}
            }
        }
        let lacks = |own: &&TenantColumn| {
            !own.generated && !own.optional && !self.columns.iter().any(|c| c.name == own.name)
        };
        let required = table.columns.iter().find(lacks)?;
        Some(format!(
            "the archive lacks column {}, which the shard requires",
            required.name.as_str()
        ))
    }
}

impl ArchivedColumn {
    fn of(column: &TenantColumn) -> Self {
        Self {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            form: Form::of(&column.type_name),
        }
    }

    /// Refuses a type that is no type's name: it becomes SQL.
    pub(super) fn check(&self) -> Result<(), ArchiveError> {
        match self.form == Form::of(&self.type_name) {
            true => Ok(()),
            false => Err(ArchiveError::Format(format!(
                "column {} of type {} is written as {:?}",
                self.name, self.type_name, self.form
            ))),
        }
    }
}

impl Form {
    /// Of a type's name.
    fn of(type_name: &str) -> Self {
        const PLAIN: [&str; 14] = [
            "boolean",
            "smallint",
            "integer",
            "bigint",
            "real",
            "double precision",
            "numeric",
            "text",
            "character varying",
            "character",
            "uuid",
            "date",
            "timestamp without time zone",
            "timestamp with time zone",
        ];
        if type_name == "jsonb" {
            return Self::Json;
        }
        // Modifiers don't matter; arrays do: their bounds are not JSON's.
        let mut base = String::new();
        let mut depth = 0;
        for c in type_name.chars() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 => base.push(c),
                _ => {}
            }
        }
        match PLAIN.contains(&base.as_str()) {
            true => Self::Plain,
            false => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (type_name, form) in [
            ("bigint", Form::Plain),
            ("numeric(10,2)", Form::Plain),
            ("character varying(20)", Form::Plain),
            ("timestamp(3) with time zone", Form::Plain),
            ("jsonb", Form::Json),
            ("json", Form::Text),
            ("text[]", Form::Text),
            ("jsonb[]", Form::Text),
            ("interval", Form::Text),
            ("\"char\"", Form::Text),
            ("public.activity_kind", Form::Text),
        ] {
            assert_eq!(Form::of(type_name), form, "{type_name}");
        }
    }

    fn table(columns: &[(&str, &str, bool)]) -> TenantTable {
        TenantTable {
            name: QualifiedName::new("public", "odd \"name\"/"),
            tenant_column: "tenant_id".into(),
            columns: columns
                .iter()
                .map(|(name, type_name, optional)| TenantColumn {
                    name: (*name).into(),
                    type_name: (*type_name).into(),
                    generated: false,
                    optional: *optional,
                    sequence: None,
                })
                .collect(),
            key: vec!["id".into()],
            leaves: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: 0,
        }
    }

    #[test]
    fn schemas_that_take_an_archive() {
        let archived = ArchivedTable::of(0, &table(&[("id", "bigint", false)]));
        assert_eq!(archived.folder, "tables/01-public.odd__name__");
        let wider = table(&[("id", "bigint", false), ("note", "text", true)]);
        assert_eq!(archived.differs_from(&wider), None);
        let stricter = table(&[("id", "bigint", false), ("note", "text", false)]);
        assert!(archived.differs_from(&stricter).is_some());
        let other = table(&[("id", "integer", false)]);
        insta::assert_snapshot!(
            archived.differs_from(&other).unwrap(),
            @"column id is bigint in the archive and integer on the shard"
        );
        assert!(archived.differs_from(&table(&[])).is_some());
    }
}
