//! Whether shards have the same schema: every object of the application as a
//! text, and what differs.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use tokio_postgres::{Client, Error};

/// The application's objects by name, such as `column public.people.name`,
/// with their definitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects(pub BTreeMap<String, String>);

/// An object that not all shards have alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The object's kind and name.
    pub object: String,
    /// Its definition and the shards that have it so; none where it is missing.
    pub variants: Vec<(Option<String>, Vec<String>)>,
}

/// All but what extensions bring, and Ringfence's own: in one consistent read.
const OBJECTS: &str = "
    with home as (
      select n.oid, n.nspname from pg_namespace n
      where n.nspname not in ('pg_catalog', 'information_schema', 'ringfence')
        and n.nspname !~ '^pg_(toast|temp)'
    ), member as (select d.classid, d.objid from pg_depend d where d.deptype = 'e'),
    rel as (
      select c.*, h.nspname, quote_ident(h.nspname) || '.' || quote_ident(c.relname) as full_name
      from pg_class c join home h on h.oid = c.relnamespace
      where not exists (select from member m where m.classid = 'pg_class'::regclass and m.objid = c.oid)
    )
    select 'schema ' || quote_ident(nspname), '' from home
    union all
    select case relkind when 'v' then 'view ' when 'm' then 'materialized view ' when 'S' then 'sequence '
             when 'f' then 'foreign table ' else 'table ' end || full_name,
      concat_ws(' ', relkind, relpersistence, 'of ' || relowner::regrole::text,
        case when relrowsecurity then 'row security' end, case when relforcerowsecurity then 'forced' end,
        array_to_string(reloptions, ','),
        case when relkind in ('v', 'm') then pg_get_viewdef(oid) end,
        case when relkind = 'p' then pg_get_partkeydef(oid) end,
        case when relispartition then pg_get_expr(relpartbound, oid) end,
        (select 'ringfence ' || r.kind from ringfence.relation r where r.relid = rel.oid),
        (select string_agg(a.text, ',' order by a.text) from (
           select case x.grantee when 0 then 'public' else x.grantee::regrole::text end || '=' || x.privilege_type as text
           from aclexplode(relacl) x) a))
    from rel where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all
    select 'column ' || full_name || '.' || quote_ident(a.attname),
      concat_ws(' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
        nullif(a.attidentity, ''), nullif(a.attgenerated, ''),
        (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d where d.adrelid = a.attrelid and d.adnum = a.attnum),
        case when a.attcollation <> t.typcollation then a.attcollation::regcollation::text end,
        (select string_agg(g.text, ',' order by g.text) from (
           select case x.grantee when 0 then 'public' else x.grantee::regrole::text end || '=' || x.privilege_type as text
           from aclexplode(a.attacl) x) g))
    from rel join pg_attribute a on a.attrelid = rel.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    where relkind in ('r', 'p', 'v', 'm', 'f')
    union all
    select 'constraint ' || full_name || '.' || quote_ident(k.conname),
      concat_ws(' ', pg_get_constraintdef(k.oid), case when not k.convalidated then 'not valid' end)
    from rel join pg_constraint k on k.conrelid = rel.oid where k.contype <> 'n'
    union all
    select 'index ' || full_name, concat_ws(' ', pg_get_indexdef(i.indexrelid),
      case when not i.indisvalid then 'invalid' end, case when i.indisreplident then 'replica identity' end)
    from rel join pg_index i on i.indexrelid = rel.oid
    union all
    select 'trigger ' || full_name || '.' || quote_ident(t.tgname), concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
    from rel join pg_trigger t on t.tgrelid = rel.oid where not t.tgisinternal and t.tgparentid = 0
    union all
    select 'policy ' || full_name || '.' || quote_ident(p.polname),
      concat_ws(' ', p.polcmd, p.polpermissive, (select string_agg(coalesce(r.rolname, 'public'), ',' order by r.rolname)
          from unnest(p.polroles) o left join pg_roles r on r.oid = o),
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    from rel join pg_policy p on p.polrelid = rel.oid
    union all
    select 'function ' || quote_ident(h.nspname) || '.' || quote_ident(p.proname)
        || '(' || pg_get_function_identity_arguments(p.oid) || ')',
      concat_ws(' ', 'of ' || p.proowner::regrole::text,
        (select string_agg(g.text, ',' order by g.text) from (
           select case x.grantee when 0 then 'public' else x.grantee::regrole::text end as text
           from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x) g),
        case when p.prokind in ('f', 'p', 'w') then pg_get_functiondef(p.oid) else 'aggregate' end)
    from pg_proc p join home h on h.oid = p.pronamespace
    where not exists (select from member m where m.classid = 'pg_proc'::regclass and m.objid = p.oid)
    union all
    select 'type ' || quote_ident(h.nspname) || '.' || quote_ident(t.typname),
      concat_ws(' ', t.typtype, 'of ' || t.typowner::regrole::text,
        (select string_agg(quote_literal(e.enumlabel), ',' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid),
        case when t.typtype = 'd' then concat_ws(' ', format_type(t.typbasetype, t.typtypmod),
          case when t.typnotnull then 'not null' end, t.typdefault) end,
        (select string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ',' order by a.attnum)
         from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped),
        (select string_agg(pg_get_constraintdef(k.oid), ',' order by k.conname) from pg_constraint k
         where k.contypid = t.oid and k.contype <> 'n'))
    from pg_type t join home h on h.oid = t.typnamespace
    where (t.typtype in ('e', 'd', 'r')
        or exists (select from pg_class c where c.oid = t.typrelid and c.relkind = 'c'))
      and not exists (select from member m where m.classid = 'pg_type'::regclass and m.objid = t.oid)
    union all
    select 'statistics ' || quote_ident(h.nspname) || '.' || quote_ident(x.stxname), pg_get_statisticsobjdef(x.oid)
    from pg_statistic_ext x join home h on h.oid = x.stxnamespace
    union all
    select 'extension ' || quote_ident(e.extname), '' from pg_extension e";

/// Reads all objects. `client` must have nothing else under way.
pub async fn objects(client: &Client) -> Result<Objects, Error> {
    client
        .batch_execute(
            "begin isolation level repeatable read read only; set local search_path = ''",
        )
        .await?;
    let rows = client.query(OBJECTS, &[]).await;
    client
        .batch_execute(if rows.is_ok() { "commit" } else { "rollback" })
        .await?;
    let rows = rows?;
    let object = |row: &tokio_postgres::Row| (row.get(0), row.get(1));
    Ok(Objects(rows.iter().map(object).collect()))
}

impl Objects {
    /// A digest: equal ones mean equal schemas.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for (object, definition) in &self.0 {
            text.push_str(object);
            text.push('\0');
            text.push_str(definition);
            text.push('\0');
        }
        let bytes = digest(&SHA256, text.as_bytes());
        let short = bytes.as_ref().iter().take(8);
        short.map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What differs among shards, by object; at most `limit` objects.
pub fn differences(shards: &[(String, Objects)], limit: usize) -> Vec<Difference> {
    let all: BTreeSet<&String> = shards.iter().flat_map(|(_, o)| o.0.keys()).collect();
    let mut found = Vec::new();
    for object in all {
        let mut variants: Vec<(Option<String>, Vec<String>)> = Vec::new();
        for (shard, objects) in shards {
            let definition = objects.0.get(object);
            match variants
                .iter_mut()
                .find(|(known, _)| known.as_ref() == definition)
            {
                Some((_, who)) => who.push(shard.clone()),
                None => variants.push((definition.cloned(), vec![shard.clone()])),
            }
        }
        if variants.len() > 1 {
            // What most have comes first.
            variants.sort_by_key(|(_, who)| std::cmp::Reverse(who.len()));
            found.push(Difference {
                object: object.clone(),
                variants,
            });
        }
        if found.len() == limit {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(&str, &str)]) -> Objects {
        let owned = list.iter().map(|(o, d)| ((*o).to_owned(), (*d).to_owned()));
        Objects(owned.collect())
    }

    #[test]
    fn differing_objects_are_named_with_who_has_them_how() {
        let same = of(&[("table public.a", "r"), ("column public.a.b", "text")]);
        let other = of(&[("table public.a", "r"), ("column public.a.b", "integer")]);
        let less = of(&[("table public.a", "r")]);
        assert_eq!(same.fingerprint(), same.clone().fingerprint());
        assert_ne!(same.fingerprint(), other.fingerprint());
        let shards = [
            ("s1".to_owned(), other),
            ("s2".into(), same.clone()),
            ("s3".into(), same),
            ("s4".into(), less),
        ];
        let found = differences(&shards, 10);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].object, "column public.a.b");
        assert_eq!(
            found[0].variants,
            [
                (Some("text".into()), vec!["s2".into(), "s3".into()]),
                (Some("integer".into()), vec!["s1".into()]),
                (None, vec!["s4".into()]),
            ]
        );
        assert!(differences(&shards[1..3], 10).is_empty());
    }
}
