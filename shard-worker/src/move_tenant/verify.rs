//! Every row of the tenants, compared on both sides while they are being
//! written to. Chunks of the primary key are read on the sending side, then,
//! once all that was written there has arrived, on the receiving one. A row
//! that differs may just have changed: it is looked at again, until it was
//! equal once. Rows that never are get locked for a moment, so that they stand
//! still; who differs then is named, and the move stops. Rows that were written
//! to since ([`super::touched`]) are compared again, the last ones in the
//! cut-over, while writes are held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::try_join_all;
use schema::ident::Ident;
use schema::tenant_tables::{TenantTable, tenant_tables};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::copy::require_applied;
use super::servers::Servers;
use super::side::Side;
use super::touched::{ROWS_MAX, Touched};
use super::{Checked, Move, Moving, State, Way, Wish, failpoint, way_back, wish};
use crate::job::{Context, JobError, Step, store};
use crate::reconcile;

/// Rows of one chunk.
const CHUNK: i64 = 4_000;
/// A state's progress is written after so long.
const SHOWN: Duration = Duration::from_millis(1_500);
/// Tenants that are compared as a whole, together, and their rows of one table.
const TENANTS_AT_ONCE: usize = 100;
const ROWS_AT_ONCE: i64 = 100_000;
/// Looks at rows that differ, before they are locked.
const ROUNDS: u32 = 12;
const PAUSE: Duration = Duration::from_millis(20);
/// Rows that were written to are compared again until so few are left: the rest
/// is compared while the tenant is held.
const FEW: usize = 25;
/// More of one tenant are not compared while it is held.
pub(super) const HELD_MAX: usize = 2_000;
/// So many at once.
const RECHECKED: usize = 2_000;
/// Rows that are locked at once.
const LOCKED_MAX: usize = 500;
/// Longest wait for a lock on one of them, and for what was written before to
/// arrive while they are locked.
const STILL_MAX: Duration = Duration::from_millis(300);
/// Longest wait for one marker.
const MARKER_MAX: Duration = Duration::from_secs(20);
/// Rows that are named.
const NAMED: usize = 10;

/// How the sides of a session print values.
const ALIKE: &str =
    "set datestyle = 'ISO, YMD'; set intervalstyle = 'iso_8601'; set timezone = 'UTC';
    set extra_float_digits = 1; set bytea_output = 'hex'; set lc_monetary = 'C'";

/// A row's key, as text.
pub(super) type Key = Vec<String>;
/// Rows of a chunk: a hash by key.
type Rows = BTreeMap<Key, i64>;

/// Some chunks.
pub(super) async fn verify(
    context: &Context,
    job: &Move,
    way: Way,
    (mut tenant, mut table, mut after, mut rows): (usize, usize, Option<Key>, u64),
) -> Result<Step<Move>, JobError> {
    failpoint(context, "verifying")?;
    let (from, to) = job.plan.ends(way);
    let source = Side::open(context, from).await?;
    let target = Side::open(context, to).await?;
    alike(&source, &target).await?;
    match way {
        Way::Forward => require_applied(&target, context).await?,
        Way::Back => {
            let way_back_gone = way_back::gone(context, job, &source, &target).await?;
            let is_over = wish(context).await? == Some(Wish::Complete);
            if way_back_gone.is_some() || is_over {
                let mut next = job.to(done(job, way));
                next.way_back_gone = way_back_gone;
                return Ok(Step::Next(next));
            }
        }
    }
    let tables = tenant_tables(&*source.client).await?;
    let id = context.job().id;
    let servers = Some(Servers::of(way, &source, &target).await?);
    let mut is_new = servers != job.servers;
    let job = &Move {
        servers,
        ..job.clone()
    };
    let watches = &context.app().watches;
    let touched = match watches.get(id, way) {
        Some(touched) => touched,
        None => {
            is_new = true;
            watches.begin(context, job, way).await?
        }
    };
    if is_new && (tenant, table, &after) != (0, 0, &None) {
        // What was written before is not known, or a server lacks what it had.
        return Ok(job.next(State::verifying(way)));
    }
    let sides = (&source, &target, &tables[..]);
    let until = Instant::now() + SHOWN;
    let (mut equal, mut at_once) = (BTreeMap::new(), tenant);
    while let Some(moving) = job.plan.tenants.get(tenant) {
        if moving.crossed == (way == Way::Forward) {
            // The other side is written to by now.
            tenant += 1;
            continue;
        }
        if tenant >= at_once && (table, &after) == (0, &None) && job.plan.tenants.len() > 1 {
            equal = equal_at_once(sides, &job.plan.tenants[tenant..]).await?;
            at_once = tenant + TENANTS_AT_ONCE;
        }
        if let Some(counted) = equal.remove(&moving.id) {
            rows += counted;
            tenant += 1;
            continue;
        }
        while let Some(compared) = tables.get(table) {
            if touched.len() > ROWS_MAX / 2 {
                match recheck(context, job, way, &touched, sides, until).await {
                    Err(JobError::Refused(why)) => return mismatch(context, job, way, why).await,
                    rechecked => rechecked?,
                }
            }
            // Its rows run out on each shard by themselves: they may differ.
            let expires = compared.name.schema.as_str() == "ringfence";
            if !expires {
                let comparison = Comparison {
                    context,
                    way,
                    source: &source,
                    target: &target,
                    table: compared,
                    tenant: moving.id,
                };
                let found = comparison.chunk(after.as_ref()).await?;
                rows += found.rows;
                if !found.differ.is_empty() {
                    let why = comparison.told(&moving.slug, &found.differ);
                    return mismatch(context, job, way, why).await;
                }
                after = found.last;
            }
            if expires || after.is_none() {
                table += 1;
            }
            if Instant::now() >= until {
                return Ok(job.next(State::Verifying {
                    way,
                    tenant,
                    table,
                    after,
                    rows,
                }));
            }
        }
        table = 0;
        tenant += 1;
    }
    tracing::info!(rows, "all rows are equal on both shards");
    let mut next = job.clone();
    next.checked = Some(Checked { rows, differ: None });
    next.state = done(job, way);
    Ok(Step::Next(next))
}

/// Those of the first few tenants whose rows are equal as a whole, with their number:
/// small ones take as many statements as there are tables, together. Who differs may
/// just have written, and is compared row by row.
async fn equal_at_once(
    (source, target, tables): Sides<'_>,
    tenants: &[Moving],
) -> Result<BTreeMap<Uuid, u64>, JobError> {
    let tenants = tenants.iter().take(TENANTS_AT_ONCE).map(|tenant| tenant.id);
    let mut equal: BTreeMap<Uuid, u64> = tenants.map(|tenant| (tenant, 0)).collect();
    let tenants: Vec<Uuid> = equal.keys().copied().collect();
    let tables = tables
        .iter()
        .filter(|table| table.name.schema.as_str() != "ringfence");
    for table in tables {
        let sql = format!(
            "select r.tenant, count(*), sum(r.hash)::text
             from (select {column} as tenant, {} as hash from {} where {column} = any($1) limit {ROWS_AT_ONCE}) r
             group by 1",
            hash(table),
            table.name,
            column = table.tenant_column
        );
        let params: [&(dyn ToSql + Sync); 1] = [&tenants];
        let (there, here) = tokio::try_join!(
            source.client.query(&sql, &params),
            target.client.query(&sql, &params)
        )?;
        let sums = |rows: &[Row]| -> BTreeMap<Uuid, (i64, String)> {
            let sum = |row: &Row| (row.get(0), (row.get(1), row.get(2)));
            rows.iter().map(sum).collect()
        };
        let (there, here) = (sums(&there), sums(&here));
        for side in [&there, &here] {
            if side.values().map(|(rows, _)| rows).sum::<i64>() >= ROWS_AT_ONCE {
                return Ok(BTreeMap::new());
            }
        }
        equal.retain(|tenant, rows| {
            let (there, here) = (there.get(tenant), here.get(tenant));
            *rows += there.map_or(0, |(rows, _)| rows.unsigned_abs());
            there == here
        });
    }
    Ok(equal)
}

/// Before the switch the move ends there. Afterwards someone decides.
async fn mismatch(
    context: &Context,
    job: &Move,
    way: Way,
    why: String,
) -> Result<Step<Move>, JobError> {
    tracing::error!(why, "shards differ");
    match way {
        Way::Forward => Err(JobError::Refused(why)),
        Way::Back => {
            // It is asked for anew once someone has looked.
            let (control, id) = (context.control(), context.job().id);
            store::clear_wish(control, id, Wish::RollBack.name()).await?;
            let mut next = job.clone();
            next.checked = Some(Checked {
                rows: 0,
                differ: Some(why),
            });
            next.servers = None;
            next.state = done(job, way);
            Ok(Step::Next(next))
        }
    }
}

fn done(job: &Move, way: Way) -> State {
    match way {
        Way::Forward => State::CatchingUp {
            tries: 0,
            why: None,
        },
        Way::Back => State::Retained {
            until: job.retained_until,
        },
    }
}

fn named(keys: &BTreeSet<Key>) -> String {
    let names: Vec<String> = keys
        .iter()
        .take(NAMED)
        .map(|key| format!("({})", key.join(", ")))
        .collect();
    match keys.len() > NAMED {
        true => format!("{}, …", names.join(", ")),
        false => names.join(", "),
    }
}

/// What a chunk came to.
struct Found {
    rows: u64,
    /// The last key, where there may be more behind it.
    last: Option<Key>,
    differ: BTreeSet<Key>,
}

/// One table of one tenant on both sides.
struct Comparison<'a> {
    context: &'a Context,
    way: Way,
    source: &'a Side,
    target: &'a Side,
    table: &'a TenantTable,
    tenant: Uuid,
}

impl Comparison<'_> {
    fn told(&self, slug: &str, differ: &BTreeSet<Key>) -> String {
        format!(
            "{} rows of tenant {slug} in {} differ between shards {} and {}: {}",
            differ.len(),
            self.table.name,
            self.source.shard,
            self.target.shard,
            named(differ)
        )
    }

    async fn chunk(&self, after: Option<&Key>) -> Result<Found, JobError> {
        let first = self.read(&self.source.client, after, None).await?;
        let is_last = i64::try_from(first.len()).unwrap_or(CHUNK) < CHUNK;
        let upto = match is_last {
            true => None,
            false => self.last(after).await?,
        };
        let mut differ: Option<BTreeSet<Key>> = None;
        let mut there = first;
        let rows = there.len() as u64;
        for round in 0..ROUNDS {
            if round > 0 {
                there = self
                    .read_range(&self.source.client, after, upto.as_ref())
                    .await?;
            }
            // What is equal at once has arrived: the marker is for what is not.
            if round > 0 {
                self.arrive().await?;
            }
            let here = self
                .read_range(&self.target.client, after, upto.as_ref())
                .await?;
            let now = differences(&there, &here);
            let still = match differ {
                None => now,
                // What was equal once has arrived.
                Some(before) => before.intersection(&now).cloned().collect(),
            };
            let is_equal = still.is_empty();
            differ = Some(still);
            if is_equal {
                break;
            }
            sleep(PAUSE * round).await;
        }
        let mut differ = differ.unwrap_or_default();
        if !differ.is_empty() && differ.len() <= LOCKED_MAX {
            differ = self.standing_still(&differ).await?;
        }
        Ok(Found {
            rows,
            last: upto,
            differ,
        })
    }

    /// Looks at rows while nobody can change them. Who writes to them waits
    /// meanwhile: a stream that is slow is not waited for here.
    ///
    /// # Errors
    /// [`JobError::Wait`] where what was written takes too long to arrive.
    async fn standing_still(&self, keys: &BTreeSet<Key>) -> Result<BTreeSet<Key>, JobError> {
        let info = self.context.shard_info(&self.source.shard).await?;
        let logins = &self.context.app().logins;
        let mut locker = logins
            .as_mover(&info.id, &reconcile::addresses(&info))
            .await?;
        let lock = locker.transaction().await?;
        let wait_max = format!("set local lock_timeout = {}", STILL_MAX.as_millis());
        lock.batch_execute(&wait_max).await?;
        let sql = format!("select from {} for share of moved", self.named_rows());
        lock.execute(&sql, &[&self.tenant, &json_of(keys)]).await?;
        let there = self.read_keys(&self.source.client, keys).await?;
        let (job, target) = (self.context.job().id, self.target);
        self.source
            .arrive_on(target, job, self.way, STILL_MAX)
            .await?;
        let here = self.read_keys(&self.target.client, keys).await?;
        lock.rollback().await?;
        Ok(differences(&there, &here))
    }

    async fn read_keys(&self, client: &Client, keys: &BTreeSet<Key>) -> Result<Rows, JobError> {
        let sql = format!(
            "select array[{}] as key, {} from {}",
            columns(key_of(self.table), "::text"),
            hash(self.table),
            self.named_rows()
        );
        let keys = json_of(keys);
        let params: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.tenant, Type::UUID), (&keys, Type::TEXT)];
        let rows = client.query_typed(&sql, &params).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Rows of the keys in `$2`, by the primary key's index.
    fn named_rows(&self) -> String {
        let equal = key_of(self.table)
            .iter()
            .enumerate()
            .map(|(position, key)| {
                let type_name = self.type_of(key);
                format!("moved.{key} = (wanted.\"ringfence key\" ->> {position})::{type_name}")
            });
        let equal: Vec<String> = equal.collect();
        format!(
            "jsonb_array_elements($2::text::jsonb) wanted (\"ringfence key\")
             join {} moved on moved.{} = $1 and {}",
            self.table.name,
            self.table.tenant_column,
            equal.join(" and ")
        )
    }

    fn type_of(&self, key: &Ident) -> &str {
        let column = self.table.columns.iter().find(|column| column.name == *key);
        // The tenant's own is not among them.
        column.map_or("uuid", |column| column.type_name.as_str())
    }

    /// Waits until all that was committed on the sending side is here.
    async fn arrive(&self) -> Result<(), JobError> {
        let job = self.context.job().id;
        let (target, way) = (self.target, self.way);
        let arrived = self.source.arrive_on(target, job, way, MARKER_MAX).await;
        arrived.map(drop)
    }

    async fn read(
        &self,
        client: &Client,
        after: Option<&Key>,
        upto: Option<&Key>,
    ) -> Result<Rows, JobError> {
        let sql = self.sql(after.is_some(), upto.is_some(), true);
        self.rows(client, &sql, after, upto).await
    }

    async fn read_range(
        &self,
        client: &Client,
        after: Option<&Key>,
        upto: Option<&Key>,
    ) -> Result<Rows, JobError> {
        let sql = self.sql(after.is_some(), upto.is_some(), false);
        self.rows(client, &sql, after, upto).await
    }

    async fn rows(
        &self,
        client: &Client,
        sql: &str,
        after: Option<&Key>,
        upto: Option<&Key>,
    ) -> Result<Rows, JobError> {
        let none = Key::new();
        let (after, upto) = (after.unwrap_or(&none), upto.unwrap_or(&none));
        let params: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.tenant, Type::UUID),
            (after, Type::TEXT_ARRAY),
            (upto, Type::TEXT_ARRAY),
        ];
        let rows = client.query_typed(sql, &params).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The last key of the chunk behind `after`, by the shard's own order.
    async fn last(&self, after: Option<&Key>) -> Result<Option<Key>, JobError> {
        let chunk = self.sql(after.is_some(), false, true);
        let sql = format!("select c.key from ({chunk}) c offset {}", CHUNK - 1);
        let none = Key::new();
        let after = after.unwrap_or(&none);
        let params: [&(dyn ToSql + Sync); 3] = [&self.tenant, after, &none];
        let row = self.source.client.query_opt(&sql, &params).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Keys and hashes of the rows behind `$2` and up to `$3`.
    fn sql(&self, after: bool, upto: bool, chunk: bool) -> String {
        let keys = key_of(self.table);
        let bound = |number: usize, sign: &str| {
            let values = keys.iter().enumerate().map(|(position, key)| {
                let type_name = self.type_of(key);
                format!("(${number}::text[])[{}]::{type_name}", position + 1)
            });
            let values: Vec<String> = values.collect();
            format!(
                " and row({}) {sign} row({})",
                columns(keys, ""),
                values.join(", ")
            )
        };
        let unused = |number: usize| format!(" and ${number}::text[] is not null");
        format!(
            "select array[{}] as key, {} from {} where {} = $1{}{} order by {}{}",
            columns(keys, "::text"),
            hash(self.table),
            self.table.name,
            self.table.tenant_column,
            if after { bound(2, ">") } else { unused(2) },
            if upto { bound(3, "<=") } else { unused(3) },
            columns(keys, ""),
            if chunk {
                format!(" limit {CHUNK}")
            } else {
                String::new()
            },
        )
    }
}

/// By the columns' names: their order may differ between shards.
fn hash(table: &TenantTable) -> String {
    let mut names: Vec<&Ident> = table.columns.iter().map(|column| &column.name).collect();
    names.sort();
    let values: Vec<String> = names.iter().map(ToString::to_string).collect();
    format!("hashtextextended(row({})::text, 0)", values.join(", "))
}

/// The columns that name a tenant's row. A table with one row a tenant has no other
/// than the tenant's.
pub(super) fn key_of(table: &TenantTable) -> &[Ident] {
    match table.key.is_empty() {
        true => std::slice::from_ref(&table.tenant_column),
        false => &table.key,
    }
}

/// Keys as a JSON array of arrays.
fn json_of(keys: &BTreeSet<Key>) -> String {
    serde_json::to_string(keys).unwrap_or_default()
}

/// The sides of a comparison, and the tables.
pub(super) type Sides<'a> = (&'a Side, &'a Side, &'a [TenantTable]);

/// Sets how values are printed, on both sides.
pub(super) async fn alike(source: &Side, target: &Side) -> Result<(), JobError> {
    tokio::try_join!(
        source.client.batch_execute(ALIKE),
        target.client.batch_execute(ALIKE)
    )?;
    Ok(())
}

/// Compares rows that were written to since they were compared, until few are
/// left or time is over.
///
/// # Errors
/// [`JobError::Refused`] names rows that differ.
pub(super) async fn recheck(
    context: &Context,
    job: &Move,
    way: Way,
    touched: &Touched,
    (source, target, tables): Sides<'_>,
    until: Instant,
) -> Result<(), JobError> {
    while touched.len() > FEW && Instant::now() < until {
        let taken = touched.take(RECHECKED);
        let of = |(tenant, name): &(Uuid, String)| {
            let moving = job
                .plan
                .tenants
                .iter()
                .find(|t| t.id == *tenant && t.crossed != (way == Way::Forward))?;
            let table = tables
                .iter()
                .find(|table| table.name.to_string() == *name)?;
            // Its rows run out on each shard by themselves.
            (table.name.schema.as_str() != "ringfence").then_some((moving, table))
        };
        let mut open: Vec<(&str, Comparison<'_>, BTreeSet<Key>)> = Vec::new();
        for (place, keys) in &taken.rows {
            if let Some((moving, table)) = of(place) {
                let comparison = Comparison {
                    context,
                    way,
                    source,
                    target,
                    table,
                    tenant: moving.id,
                };
                open.push((&moving.slug, comparison, keys.clone()));
            }
        }
        for round in 0..ROUNDS {
            let mut there = Vec::with_capacity(open.len());
            for (_, comparison, keys) in &open {
                there.push(comparison.read_keys(&source.client, keys).await?);
            }
            // One marker for all of them.
            if let Some((_, comparison, _)) = open.first() {
                comparison.arrive().await?;
            }
            let mut still = Vec::new();
            for ((slug, comparison, keys), there) in open.into_iter().zip(there) {
                let here = comparison.read_keys(&target.client, &keys).await?;
                let differ = differences(&there, &here);
                if !differ.is_empty() {
                    still.push((slug, comparison, differ));
                }
            }
            open = still;
            if open.is_empty() {
                break;
            }
            sleep(PAUSE * round).await;
        }
        for (slug, comparison, keys) in &open {
            let differ = comparison.standing_still(keys).await?;
            if !differ.is_empty() {
                return Err(JobError::Refused(comparison.told(slug, &differ)));
            }
        }
        taken.compared();
    }
    Ok(())
}

/// What is left of a tenant is compared while nobody writes: all has arrived by now.
///
/// # Errors
/// [`JobError::Refused`] names rows that differ.
pub(super) async fn compare_held(
    context: &Context,
    moving: &Moving,
    touched: &Touched,
    (source, target, tables): Sides<'_>,
) -> Result<(), JobError> {
    let touched = touched.of(moving.id);
    let mut compared = Vec::new();
    for (name, keys) in &touched {
        let table = tables.iter().find(|table| table.name.to_string() == *name);
        let Some(table) = table.filter(|table| table.name.schema.as_str() != "ringfence") else {
            continue;
        };
        let comparison = Comparison {
            context,
            // All has arrived: nothing is waited for.
            way: Way::Forward,
            source,
            target,
            table,
            tenant: moving.id,
        };
        compared.push(async move {
            let (there, here) = tokio::try_join!(
                comparison.read_keys(&source.client, keys),
                comparison.read_keys(&target.client, keys)
            )?;
            let differ = differences(&there, &here);
            match differ.is_empty() {
                true => Ok(()),
                false => Err(JobError::Refused(comparison.told(&moving.slug, &differ))),
            }
        });
    }
    try_join_all(compared).await.map(drop)
}

fn columns(names: &[Ident], suffix: &str) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name}{suffix}")).collect();
    names.join(", ")
}

/// Keys that one side lacks, or has with other values.
fn differences(there: &Rows, here: &Rows) -> BTreeSet<Key> {
    let keys = there.keys().chain(here.keys());
    keys.filter(|key| there.get(*key) != here.get(*key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_differ_by_their_absence_and_by_their_values() {
        let rows = |pairs: &[(&str, i64)]| -> Rows {
            pairs
                .iter()
                .map(|(key, hash)| (vec![(*key).to_owned()], *hash))
                .collect()
        };
        let (there, here) = (
            rows(&[("1", 1), ("2", 2), ("3", 3)]),
            rows(&[("1", 1), ("2", 5), ("4", 4)]),
        );
        assert_eq!(named(&differences(&there, &here)), "(2), (3), (4)");
        assert!(differences(&there, &there).is_empty());
    }
}
