//! Rows that are written to while a move's rows are compared: their keys, from
//! the source's log, so that they are compared again, the last of them while
//! writes are held.
//!
//! The slot is a temporary one and ends with its worker: another worker knows
//! nothing of what was written before, and compares all rows again. The memory
//! is bounded: while it is full nothing more is read, and Postgres waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgwire_replication::{PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent};
use schema::tenant_tables::{TenantTable, tenant_tables};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::verify::{Key, key_of};
use super::{Move, Way, names};
use crate::capture::decode::{Bytes, DecodeError, each_row};
use crate::capture::slot::encryption;
use crate::job::{Context, JobError};
use crate::reconcile;

/// Keys that are remembered at most.
pub(super) const ROWS_MAX: usize = 100_000;
/// Events that are read ahead: whole rows, of any size. What is not read waits in
/// Postgres.
const BUFFERED: usize = 64;
/// A reader that nobody asks any longer ends.
const UNUSED_MAX: Duration = Duration::from_secs(180);
/// How often it looks whether it is asked, and whether there is room again.
const LOOK: Duration = Duration::from_secs(2);
const FULL_LOOK: Duration = Duration::from_millis(20);
/// Longest wait for the slot, which waits for open transactions.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// Markers that are remembered.
const MARKERS_MAX: usize = 16;
/// Values come as sessions that compare print them.
const OPTIONS: &str = "-c datestyle=ISO,YMD -c intervalstyle=iso_8601 -c timezone=UTC -c extra_float_digits=1 \
    -c bytea_output=hex -c lc_monetary=C -c wal_sender_timeout=300000";

/// A tenant and a table, `schema.name` quoted.
type Place = (Uuid, String);

/// What was written to since a moment.
pub(super) struct Touched {
    /// Which way what was written goes.
    way: Way,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

/// The moves' that this worker watches.
#[derive(Default)]
pub struct Watches(Mutex<HashMap<Uuid, Arc<Touched>>>);

#[derive(Default)]
struct Shared {
    memory: Mutex<Memory>,
    /// A marker came, or the stream has ended.
    news: Notify,
}

struct Memory {
    rows: BTreeMap<Place, BTreeSet<Key>>,
    count: usize,
    markers: VecDeque<Uuid>,
    asked: Instant,
    over: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            count: 0,
            markers: VecDeque::new(),
            asked: Instant::now(),
            over: false,
        }
    }
}

impl Watches {
    /// What is known of a move that way; none where its stream has ended, or never
    /// began.
    pub(super) fn get(&self, job: Uuid, way: Way) -> Option<Arc<Touched>> {
        let known = self.lock().get(&job).cloned();
        known.filter(|touched| touched.way == way && !touched.shared.lock().over)
    }

    /// The same; where nothing is known, what is written from now on is.
    pub(super) async fn begin(
        &self,
        context: &Context,
        job: &Move,
        way: Way,
    ) -> Result<Arc<Touched>, JobError> {
        let touched = Arc::new(Touched::open(context, job, way).await?);
        let mut all = self.lock();
        all.retain(|_, touched| !touched.shared.lock().over);
        all.insert(context.job().id, touched.clone());
        Ok(touched)
    }

    /// Keeps what is known of a move that way only.
    pub(super) fn keep(&self, job: Uuid, way: Option<Way>) {
        self.lock()
            .retain(|of, touched| *of != job || Some(touched.way) == way);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Touched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn insert(&mut self, place: Place, key: Key) {
        self.count += usize::from(self.rows.entry(place).or_default().insert(key));
    }

    /// Some of it, at most so many keys; it is remembered no longer.
    fn take(&mut self, keys_max: usize) -> BTreeMap<Place, BTreeSet<Key>> {
        let mut taken: BTreeMap<Place, BTreeSet<Key>> = BTreeMap::new();
        let mut left = keys_max;
        while left > 0
            && let Some((place, mut keys)) = self.rows.pop_first()
        {
            if keys.len() > left {
                let last = keys.iter().nth(left).cloned();
                let rest = last.map(|last| keys.split_off(&last));
                self.rows.insert(place.clone(), rest.unwrap_or_default());
            }
            left -= keys.len();
            self.count -= keys.len();
            taken.insert(place, keys);
        }
        taken
    }
}

impl Touched {
    async fn open(context: &Context, job: &Move, way: Way) -> Result<Self, JobError> {
        let (id, logins) = (context.job().id, &context.app().logins);
        let (source, _) = job.plan.ends(way);
        let nodes = reconcile::addresses(&context.shard_info(source).await?);
        let (client, primary) = logins.mover_primary(source, &nodes).await?;
        let tables = tenant_tables(&client).await?;
        let mut publications = vec![names::markers(id, way)];
        publications.extend(job.publications(id, way));
        let slot = names::watch(id, Uuid::new_v4());
        let config = ReplicationConfig::new(
            primary.host.as_str(),
            "ringfence_mover",
            logins.roles.mover.as_deref().unwrap_or_default(),
            logins.database.as_str(),
            slot.as_str(),
            publications,
        )
        .with_port(primary.port)
        .with_tls(encryption(&logins.tls, &primary.host))
        .with_options(OPTIONS)
        .with_buffer_size(BUFFERED)
        .with_application_name("ringfence-worker move");
        let opened = async {
            let mut replication = ReplicationClient::connect_gated(config).await?;
            let make = format!(
                "CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"
            );
            replication.simple_query(&make).await?;
            replication.start().await?;
            replication.wait_started().await?;
            Ok::<_, PgWireError>(replication)
        };
        let cannot = |why: String| {
            JobError::Wait(format!(
                "what is written on shard {source} can't be followed: {why}"
            ))
        };
        let replication = timeout(OPEN_MAX, opened)
            .await
            .map_err(|_| cannot("open transactions are waited for".into()))?
            .map_err(|error| cannot(tenancy::chain(&error)))?;
        let shared = Arc::new(Shared::default());
        let reader = tokio::spawn(read(replication, Keys::of(&tables), shared.clone()));
        Ok(Self {
            way,
            shared,
            reader,
        })
    }

    /// Rows that are remembered.
    pub(super) fn len(&self) -> usize {
        let mut memory = self.shared.lock();
        memory.asked = Instant::now();
        memory.count
    }

    /// Some of it, at most so many keys, to be compared.
    pub(super) fn take(&self, keys_max: usize) -> Taken<'_> {
        let rows = self.shared.lock().take(keys_max);
        Taken {
            shared: &self.shared,
            rows,
        }
    }

    /// What is remembered of a tenant, by table.
    pub(super) fn of(&self, tenant: Uuid) -> BTreeMap<String, BTreeSet<Key>> {
        let memory = self.shared.lock();
        let own = memory.rows.iter().filter(|((of, _), _)| *of == tenant);
        own.map(|((_, table), keys)| (table.clone(), keys.clone()))
            .collect()
    }

    /// Until all that was committed before this marker is remembered; the
    /// caller bounds it.
    ///
    /// # Errors
    /// [`JobError::Wait`] where the stream has ended.
    pub(super) async fn wait_for(&self, marker: Uuid) -> Result<(), JobError> {
        loop {
            let news = self.shared.news.notified();
            {
                let memory = self.shared.lock();
                if memory.markers.contains(&marker) {
                    return Ok(());
                }
                if memory.over {
                    let why = "what is written is not followed any longer";
                    return Err(JobError::Wait(why.into()));
                }
            }
            news.await;
        }
    }
}

/// Rows that are being compared. Unless they were found equal they are
/// remembered again: their comparison may break off anywhere.
pub(super) struct Taken<'a> {
    shared: &'a Shared,
    pub(super) rows: BTreeMap<Place, BTreeSet<Key>>,
}

impl Taken<'_> {
    /// They are equal on both sides.
    pub(super) fn compared(mut self) {
        self.rows.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut memory = self.shared.lock();
        for (place, keys) in std::mem::take(&mut self.rows) {
            for key in keys {
                memory.insert(place.clone(), key);
            }
        }
    }
}

async fn read(mut replication: ReplicationClient, mut keys: Keys, shared: Arc<Shared>) {
    let why = loop {
        let (full, unused) = {
            let memory = shared.lock();
            (memory.count >= ROWS_MAX, memory.asked.elapsed())
        };
        if unused > UNUSED_MAX {
            break "nobody asks for it".to_owned();
        }
        if full {
            sleep(FULL_LOOK).await;
            continue;
        }
        match timeout(LOOK, replication.recv()).await {
            Err(_) => {}
            Ok(Ok(Some(ReplicationEvent::XLogData { data, .. }))) => match keys.change(&data) {
                Ok(rows) => {
                    let mut memory = shared.lock();
                    for row in rows {
                        match row {
                            Row::Written(place, key) => memory.insert(place, key),
                            Row::Marker(marker) => {
                                memory.markers.truncate(MARKERS_MAX - 1);
                                memory.markers.push_front(marker);
                                shared.news.notify_waiters();
                            }
                        }
                    }
                }
                Err(error) => break error.to_string(),
            },
            Ok(Ok(Some(ReplicationEvent::Commit { end_lsn, .. }))) => {
                replication.update_applied_lsn(end_lsn);
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => break "the stream ended".to_owned(),
            Ok(Err(error)) => break tenancy::chain(&error),
        }
    };
    shared.lock().over = true;
    shared.news.notify_waiters();
    tracing::info!(
        why,
        "what a move's tenants write is not followed any longer"
    );
}

/// A row that the log tells of.
#[derive(Debug, PartialEq, Eq)]
enum Row {
    Written(Place, Key),
    Marker(Uuid),
}

/// pgoutput's messages as keys of rows. Pure.
struct Keys {
    /// By schema and name: the quoted name, the tenant's column, the key's.
    known: HashMap<(String, String), (String, Vec<String>)>,
    described: HashMap<u32, Described>,
}

/// A table as the stream has described it: places of columns.
enum Described {
    Rows {
        name: String,
        tenant: usize,
        key: Vec<usize>,
    },
    Markers {
        id: usize,
    },
    /// It was not a tenant's when the stream began.
    Other,
}

impl Keys {
    fn of(tables: &[TenantTable]) -> Self {
        let known = tables.iter().map(|table| {
            let name = (
                table.name.schema.as_str().to_owned(),
                table.name.name.as_str().to_owned(),
            );
            let mut columns = vec![table.tenant_column.as_str().to_owned()];
            columns.extend(key_of(table).iter().map(|key| key.as_str().to_owned()));
            (name, (table.name.to_string(), columns))
        });
        Self {
            known: known.collect(),
            described: HashMap::new(),
        }
    }

    fn change(&mut self, bytes: &[u8]) -> Result<Vec<Row>, DecodeError> {
        let mut rest = Bytes(bytes);
        let mut rows = Vec::new();
        match rest.u8()? {
            b'R' => self.describe(&mut rest)?,
            kind @ (b'I' | b'U' | b'D') => each_row(kind, &mut rest, |table, rest| {
                rows.extend(self.row(table, rest)?);
                Ok(())
            })?,
            // TRUNCATE is not published; types and origins change nothing.
            _ => {}
        }
        Ok(rows)
    }

    fn describe(&mut self, rest: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let id = rest.u32()?;
        let schema = rest.name()?.to_owned();
        let name = rest.name()?.to_owned();
        let _identity = rest.u8()?;
        let mut columns = Vec::new();
        for _ in 0..rest.u16()? {
            let _flags = rest.u8()?;
            columns.push(rest.name()?.to_owned());
            let _type_and_modifier = rest.take(8)?;
        }
        let place = |wanted: &String| columns.iter().position(|column| column == wanted);
        let described = if schema == "ringfence" && name == "move_marker" {
            place(&"id".to_owned()).map(|id| Described::Markers { id })
        } else {
            self.known.get(&(schema, name)).and_then(|(name, wanted)| {
                let mut places = wanted.iter().map(place);
                let tenant = places.next()??;
                let key = places.collect::<Option<Vec<usize>>>()?;
                let name = name.clone();
                Some(Described::Rows { name, tenant, key })
            })
        };
        self.described
            .insert(id, described.unwrap_or(Described::Other));
        Ok(())
    }

    fn row(&self, table: u32, rest: &mut Bytes<'_>) -> Result<Option<Row>, DecodeError> {
        let described = self.described.get(&table);
        let described = described.ok_or(DecodeError::Table(table))?;
        let mut values: Vec<Option<&str>> = Vec::new();
        for _ in 0..rest.u16()? {
            values.push(match rest.expect(b"nut")? {
                b't' => {
                    let length = rest.u32()? as usize;
                    let value = std::str::from_utf8(rest.take(length)?);
                    Some(value.map_err(|_| DecodeError::Name)?)
                }
                _ => None,
            });
        }
        let value = |place: usize| values.get(place).copied().flatten();
        let uuid = |place| value(place).and_then(|text| Uuid::try_parse(text).ok());
        Ok(match described {
            Described::Other => None,
            Described::Markers { id } => uuid(*id).map(Row::Marker),
            Described::Rows { name, tenant, key } => {
                let key: Option<Key> = key
                    .iter()
                    .map(|place| value(*place).map(str::to_owned))
                    .collect();
                let place = uuid(*tenant).map(|tenant| (tenant, name.clone()));
                place.zip(key).map(|(place, key)| Row::Written(place, key))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        let known = HashMap::from([(
            ("public".to_owned(), "notes".to_owned()),
            (
                "\"public\".\"notes\"".to_owned(),
                vec!["tenant_id".to_owned(), "id".to_owned()],
            ),
        )]);
        Keys {
            known,
            described: HashMap::new(),
        }
    }

    fn describe(id: u32, schema: &str, name: &str, columns: &[&str]) -> Vec<u8> {
        let mut bytes = vec![b'R'];
        bytes.extend(id.to_be_bytes());
        bytes.extend(format!("{schema}\0{name}\0d").bytes());
        bytes.extend((columns.len() as u16).to_be_bytes());
        for column in columns {
            bytes.push(1);
            bytes.extend(format!("{column}\0").bytes());
            bytes.extend([0; 8]);
        }
        bytes
    }

    fn tuple(values: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.bytes());
                }
                None => bytes.push(b'n'),
            }
        }
        bytes
    }

    #[test]
    fn rows_are_known_by_their_keys_old_and_new() {
        let mut keys = keys();
        let tenant = Uuid::from_u128(7);
        let text = tenant.to_string();
        let columns = ["id", "tenant_id", "body"];
        assert!(
            keys.change(&describe(1, "public", "notes", &columns))
                .unwrap()
                .is_empty()
        );
        let place = (tenant, "\"public\".\"notes\"".to_owned());
        let written = |id: &str| Row::Written(place.clone(), vec![id.to_owned()]);
        let mut update = [
            &[b'U', 0, 0, 0, 1, b'K'][..],
            &tuple(&[Some("4"), Some(&text), None]),
        ]
        .concat();
        update.push(b'N');
        update.extend(tuple(&[Some("5"), Some(&text), Some("x")]));
        assert_eq!(keys.change(&update).unwrap(), [written("4"), written("5")]);
        keys.change(&describe(2, "ringfence", "move_marker", &["id", "job"]))
            .unwrap();
        let marker = [&[b'I', 0, 0, 0, 2, b'N'][..], &tuple(&[Some(&text), None])].concat();
        assert_eq!(keys.change(&marker).unwrap(), [Row::Marker(tenant)]);
        assert!(keys.change(&[b'I', 0, 0, 0, 9, b'N', 0, 0]).is_err());
    }

    #[test]
    fn what_is_remembered_is_taken_in_parts() {
        let mut memory = Memory::default();
        for n in 0..10 {
            let table = if n < 6 { "a" } else { "b" };
            memory.insert((Uuid::nil(), table.into()), vec![n.to_string()]);
            memory.insert((Uuid::nil(), table.into()), vec![n.to_string()]);
        }
        assert_eq!(memory.count, 10);
        let count = |taken: &BTreeMap<Place, BTreeSet<Key>>| {
            taken.values().map(BTreeSet::len).sum::<usize>()
        };
        assert_eq!(count(&memory.take(4)), 4);
        assert_eq!(count(&memory.take(5)), 5);
        assert_eq!(memory.count, 1);
        assert_eq!(count(&memory.take(5)), 1);
        assert!(memory.rows.is_empty());
    }

    #[test]
    fn what_was_not_compared_to_its_end_is_remembered_again() {
        let shared = Shared::default();
        let place = (Uuid::nil(), "a".to_owned());
        shared.lock().insert(place.clone(), vec!["1".to_owned()]);
        let take = || Taken {
            shared: &shared,
            rows: shared.lock().take(10),
        };
        let broken_off = take();
        assert_eq!(shared.lock().count, 0);
        // It is written to again meanwhile.
        shared.lock().insert(place, vec!["1".to_owned()]);
        drop(broken_off);
        assert_eq!(shared.lock().count, 1);
        take().compared();
        assert_eq!(shared.lock().count, 0);
    }
}
