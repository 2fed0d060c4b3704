//! All tables that hold a tenant's rows on a shard: what is deleted, exported,
//! imported and moved with it. Reference tables are nobody's.

use std::collections::HashMap;

use tokio_postgres::GenericClient;

use crate::ident::{Ident, QualifiedName};

/// A table with tenants' rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantTable {
    /// Its name; of a partitioned table the root's.
    pub name: QualifiedName,
    /// The column that says whose a row is.
    pub tenant_column: Ident,
    /// All other columns, in attribute order.
    pub columns: Vec<TenantColumn>,
    /// The primary key's columns without the tenant's; empty where there is none.
    pub key: Vec<Ident>,
    /// Tables that hold the rows: its partitions, or itself.
    pub leaves: Vec<QualifiedName>,
    /// Foreign keys to other tables of tenants and to reference tables.
    pub foreign_keys: Vec<TenantForeignKey>,
    /// The planner's idea of its rows, of all tenants.
    pub rows_estimate: i64,
}

impl TenantTable {
    /// A SELECT of the tenant's (`$1`) rows that name by `key` what is not there.
    pub fn orphans(&self, key: &TenantForeignKey) -> String {
        let pairs = || key.columns.iter().zip(&key.foreign_columns);
        let set: Vec<String> = pairs()
            .map(|(own, _)| format!("c.{own} is not null"))
            .collect();
        // The tenant's column as a value, so that the planner knows whose rows
        // the referenced ones are.
        let equal: Vec<String> = pairs()
            .map(|(own, of)| match *own == self.tenant_column {
                true => format!("p.{of} = $1"),
                false => format!("p.{of} = c.{own}"),
            })
            .collect();
        format!(
            "select from {} c where c.{} = $1 and {} and not exists (select from {} p where {})",
            self.name,
            self.tenant_column,
            set.join(" and "),
            key.table,
            equal.join(" and ")
        )
    }
}

/// A column of a tenant's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantColumn {
    /// Its name.
    pub name: Ident,
    /// `format_type()` with modifiers.
    pub type_name: String,
    /// GENERATED ALWAYS AS (…) STORED: Postgres computes it.
    pub generated: bool,
    /// A row can be inserted without it: it may be null, or has a default.
    pub optional: bool,
    /// The sequence that fills it.
    pub sequence: Option<QualifiedName>,
}

/// A foreign key as `(own columns) references table (columns)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantForeignKey {
    /// Its name.
    pub name: Ident,
    /// Referencing columns, in order.
    pub columns: Vec<Ident>,
    /// The referenced table.
    pub table: QualifiedName,
    /// Referenced columns, in the same order.
    pub foreign_columns: Vec<Ident>,
}

const TABLES: &str = "
    select c.oid, n.nspname, c.relname, r.tenant_column, greatest(c.reltuples, 0)::bigint as rows_estimate,
      array(select a.attname::text from pg_index i, unnest(i.indkey::int2[]) with ordinality k (num, n)
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.num
        where i.indrelid = c.oid and i.indisprimary and a.attname <> r.tenant_column and k.n <= i.indnkeyatts
        order by k.n) as key
    from ringfence.relation r
    join pg_class c on c.oid = r.relid
    join pg_namespace n on n.oid = c.relnamespace
    where r.kind = 'distributed'
    order by n.nspname, c.relname";

const COLUMNS: &str = "
    select a.attrelid as oid, a.attname, format_type(a.atttypid, a.atttypmod) as type_name,
      a.attgenerated <> '' as generated,
      (not a.attnotnull or a.atthasdef or a.attidentity <> '') as optional,
      s.schema as sequence_schema, s.name as sequence_name
    from ringfence.relation r
    join pg_attribute a on a.attrelid = r.relid and a.attnum > 0 and not a.attisdropped
      and a.attname <> r.tenant_column
    left join lateral (
      select sn.nspname as schema, sc.relname as name
      from pg_depend d
      join pg_class sc on sc.oid = d.objid and sc.relkind = 'S'
      join pg_namespace sn on sn.oid = sc.relnamespace
      where a.attidentity <> '' and d.classid = 'pg_class'::regclass and d.deptype = 'i'
        and d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
      union all
      select sn.nspname, sc.relname
      from pg_attrdef f
      join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
      join pg_class sc on sc.oid = d.refobjid and sc.relkind = 'S'
      join pg_namespace sn on sn.oid = sc.relnamespace
      where f.adrelid = a.attrelid and f.adnum = a.attnum
      limit 1) s on true
    where r.kind = 'distributed'
    order by a.attrelid, a.attnum";

const LEAVES: &str = "
    select r.relid::oid as oid, n.nspname, c.relname
    from ringfence.relation r
    join pg_class root on root.oid = r.relid
    cross join lateral (
      select p.relid::oid as oid from pg_partition_tree(root.oid) p where root.relkind = 'p' and p.isleaf
      union all select root.oid where root.relkind <> 'p') leaf
    join pg_class c on c.oid = leaf.oid and c.relkind = 'r'
    join pg_namespace n on n.oid = c.relnamespace
    where r.kind = 'distributed'
    order by r.relid, n.nspname, c.relname";

const FOREIGN_KEYS: &str = "
    select k.conrelid as oid, k.conname, n.nspname, c.relname,
      array(select a.attname::text from unnest(k.conkey) with ordinality u (num, n)
        join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num order by u.n) as columns,
      array(select a.attname::text from unnest(k.confkey) with ordinality u (num, n)
        join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.num order by u.n) as foreign_columns
    from pg_constraint k
    join ringfence.relation r on r.relid = k.conrelid and r.kind = 'distributed'
    join pg_class c on c.oid = k.confrelid
    join pg_namespace n on n.oid = c.relnamespace
    where k.contype = 'f' and k.conparentid = 0
    order by k.conrelid, k.conname";

/// Reads them from a shard, in order of their names.
pub async fn tenant_tables(
    client: &impl GenericClient,
) -> Result<Vec<TenantTable>, tokio_postgres::Error> {
    let mut columns: HashMap<u32, Vec<TenantColumn>> = HashMap::new();
    for row in client.query(COLUMNS, &[]).await? {
        let sequence: Option<(String, String)> =
            Option::zip(row.get("sequence_schema"), row.get("sequence_name"));
        columns
            .entry(row.get("oid"))
            .or_default()
            .push(TenantColumn {
                name: row.get::<_, &str>("attname").into(),
                type_name: row.get("type_name"),
                generated: row.get("generated"),
                optional: row.get("optional"),
                sequence: sequence.map(|(schema, name)| QualifiedName::new(schema, name)),
            });
    }
    let mut leaves: HashMap<u32, Vec<QualifiedName>> = HashMap::new();
    for row in client.query(LEAVES, &[]).await? {
        let name = QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
        leaves.entry(row.get("oid")).or_default().push(name);
    }
    let mut foreign_keys: HashMap<u32, Vec<TenantForeignKey>> = HashMap::new();
    for row in client.query(FOREIGN_KEYS, &[]).await? {
        foreign_keys
            .entry(row.get("oid"))
            .or_default()
            .push(TenantForeignKey {
                name: row.get::<_, &str>("conname").into(),
                columns: idents(row.get("columns")),
                table: QualifiedName::new(row.get::<_, &str>(2), row.get::<_, &str>(3)),
                foreign_columns: idents(row.get("foreign_columns")),
            });
    }
    let tables = client.query(TABLES, &[]).await?;
    let table = |row: &tokio_postgres::Row| {
        let oid: u32 = row.get("oid");
        TenantTable {
            name: QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname")),
            tenant_column: row.get::<_, &str>("tenant_column").into(),
            columns: columns.remove(&oid).unwrap_or_default(),
            key: idents(row.get("key")),
            leaves: leaves.remove(&oid).unwrap_or_default(),
            foreign_keys: foreign_keys.remove(&oid).unwrap_or_default(),
            rows_estimate: row.get("rows_estimate"),
        }
    };
    let mut table = table;
    Ok(tables.iter().map(&mut table).collect())
}

fn idents(names: Vec<String>) -> Vec<Ident> {
    names.into_iter().map(Ident::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_looked_for_among_one_tenants_rows() {
        let key = TenantForeignKey {
            name: "notes_author".into(),
            columns: idents(vec!["tenant_id".into(), "author".into()]),
            table: QualifiedName::new("public", "people"),
            foreign_columns: idents(vec!["tenant".into(), "id".into()]),
        };
        let table = TenantTable {
            name: QualifiedName::new("public", "notes"),
            tenant_column: "tenant_id".into(),
            columns: Vec::new(),
            key: Vec::new(),
            leaves: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: 0,
        };
        insta::assert_snapshot!(table.orphans(&key), @r#"select from "public"."notes" c where c."tenant_id" = $1 and c."tenant_id" is not null and c."author" is not null and not exists (select from "public"."people" p where p."tenant" = $1 and p."id" = c."author")"#);
    }
}
