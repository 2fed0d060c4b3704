//! Tenants' archives on their way out and in. What is under way holds a few parts
//! in memory, however large the tenant is.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt, stream};
use schema::archive::dump::{self, Wanted};
use schema::archive::load::{self, Import};
use schema::archive::manifest::ArchivedTenant;
use schema::archive::read::{self, Piece};
use schema::archive::{ArchiveError, Digests, Manifest};
use schema::tenant_tables::{TenantTable, tenant_tables};
use serde_json::{Value, json};
use tenancy::chain;
use tenancy::control::{
    Actor, ControlError, NewPlace, NewTenant, TenantInfo, insert_tenant, write_audit,
};
use tenancy::placement::TenantState;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::job::{self, JobInfo, Kind, NewJob};
use crate::reconcile;
use crate::shard::Address;
use crate::tenant_restore::TenantRestore;

/// As many archives are written or read by one worker at once.
pub const AT_ONCE_MAX: usize = 4;
/// Longest wait for a replica to get as far as the primary was.
const REPLICA_MAX: Duration = Duration::from_secs(3);
/// Longest wait for the next bytes of who sends an archive.
const SENT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the job to have prepared the shard.
const OPENED_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the audit log at an export's end.
const AUDIT_MAX: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// An archive that is being written.
pub struct Export {
    /// Bytes that its rows have, as the planner sees it.
    pub estimate: u64,
    /// The archive; it ends with an error where it is not whole.
    pub body: Body,
}

/// Writes a tenant's archive, from a replica that has all that was committed
/// before, or else from the primary.
pub async fn export(
    app: &Arc<App>,
    actor: &Actor,
    tenant: &TenantInfo,
    compress: bool,
    on_primary: bool,
) -> Result<Export, Error> {
    // Its fence may be there already, which is all that the shard looks at.
    if tenant.state == TenantState::Importing.name() {
        return Err(Error::Control(ControlError::Conflict(format!(
            "tenant {} is being imported: its rows are not whole yet",
            tenant.slug
        ))));
    }
    let slots = app.archives.clone();
    let slot = slots
        .try_acquire_owned()
        .map_err(|_| Error::TooManyArchives)?;
    let nodes = nodes(app, &tenant.shard).await?;
    let replica = match on_primary {
        true => None,
        false => {
            app.logins
                .as_mover_on_replica(&tenant.shard, &nodes, REPLICA_MAX)
                .await?
        }
    };
    let source = if replica.is_some() {
        "replica"
    } else {
        "primary"
    };
    let mut client = match replica {
        Some(client) => client,
        None => app.logins.as_mover(&tenant.shard, &nodes).await?,
    };
    let estimate = dump::estimate(&client, tenant.id).await;
    let estimate = estimate.map_err(ArchiveError::Postgres)?;
    let wanted = Wanted {
        tenant: ArchivedTenant {
            id: tenant.id,
            slug: Some(tenant.slug.clone()),
            name: Some(tenant.name.clone()),
        },
        compress,
    };
    let (out, mut packed) = channel::<Vec<u8>>(1);
    let writer = AbortOnDropHandle::new(tokio::spawn(async move {
        let digests = dump::dump(&mut client, &wanted, &out).await;
        drop(slot);
        digests
    }));
    // What goes wrong before the first byte is an answer of its own.
    let Some(first) = packed.recv().await else {
        return Err(match writer.await {
            Ok(Err(error)) => Error::Archive(error),
            Ok(Ok(_)) => Error::Archive(ArchiveError::Gone),
            Err(error) => Error::Archive(ArchiveError::Io(io::Error::other(error))),
        });
    };
    let taken = Taken {
        actor: actor.clone(),
        slug: tenant.slug.clone(),
        note: json!({ "id": tenant.id, "shard": tenant.shard, "from": source }),
    };
    audit(app, &taken, taken.note.clone(), "begun").await?;
    let body = stream::once(async { Ok(first) }).chain(rest(app.clone(), taken, packed, writer));
    Ok(Export {
        estimate,
        body: Body::from_stream(body),
    })
}

/// Whose data is taken away, by whom.
struct Taken {
    actor: Actor,
    slug: String,
    note: Value,
}

/// What the writer has packed; ends as the writer does.
fn rest(
    app: Arc<App>,
    taken: Taken,
    packed: Receiver<Vec<u8>>,
    writer: AbortOnDropHandle<Result<Digests, ArchiveError>>,
) -> impl Stream<Item = io::Result<Vec<u8>>> {
    stream::unfold(Some((app, taken, packed, writer)), |state| async {
        let (app, taken, mut packed, writer) = state?;
        app.failpoints.hit("export_part");
        if let Some(bytes) = packed.recv().await {
            return Some((Ok(bytes), Some((app, taken, packed, writer))));
        }
        let slug = &taken.slug;
        let mut note = taken.note.clone();
        let why = match writer.await {
            Ok(Ok(digests)) => {
                let (rows, bytes) = (digests.rows, digests.bytes);
                tracing::info!(tenant = slug, rows, bytes, "tenant exported");
                note["rows"] = rows.into();
                note["bytes"] = bytes.into();
                audit_end(&app, &taken, note, "done").await;
                return None;
            }
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        note["error"] = why.as_str().into();
        audit_end(&app, &taken, note, "failed").await;
        tracing::warn!(tenant = slug, error = why, "export ended early");
        // Ends the connection, not the body: nobody takes the half for the whole.
        Some((Err(io::Error::other(why)), None))
    })
}

/// How it ended is on record, too, where the control database can be reached: what
/// was taken away can't be taken back.
async fn audit_end(app: &App, taken: &Taken, note: Value, result: &str) {
    let written = timeout(AUDIT_MAX, audit(app, taken, note, result)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::warn!(
            tenant = taken.slug,
            result,
            "an export's end is not in the audit log"
        );
    }
}

/// Who takes a tenant's data away is on record.
async fn audit(app: &App, taken: &Taken, note: Value, result: &str) -> Result<(), Error> {
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    let (actor, action) = (&taken.actor, "tenant.export");
    let (slug, note) = (&taken.slug, Some(note));
    write_audit(&transaction, actor, action, slug, None, note, result).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    Ok(())
}

/// How an archive is to be taken in.
#[derive(Clone, Debug)]
pub struct Intake {
    /// The new tenant's slug; where none is given the archive's.
    pub slug: Option<String>,
    /// Its id; a new one where none is given.
    pub id: Option<Uuid>,
    /// Its shard; the ring's where none is given.
    pub shard: Option<String>,
    /// Its region; the default one where none is given.
    pub region: Option<String>,
}

/// Takes in an archive from its first byte to its last, and returns the job
/// that makes a tenant of it. Sent again after a break, the same archive goes
/// on where it was.
pub async fn import(
    app: &App,
    actor: &Actor,
    intake: &Intake,
    body: Body,
) -> Result<JobInfo, Error> {
    let slots = app.archives.clone();
    let _slot = slots
        .try_acquire_owned()
        .map_err(|_| Error::TooManyArchives)?;
    let (pieces, taken) = channel::<Piece>(1);
    let (chunks, unread) = channel::<io::Result<Bytes>>(2);
    let _sender = AbortOnDropHandle::new(tokio::spawn(forward(body, chunks)));
    let reader: JoinHandle<Result<Digests, ArchiveError>> =
        tokio::task::spawn_blocking(move || {
            let from = Unread {
                chunks: unread,
                chunk: Bytes::new(),
                is_over: false,
            };
            read::read(from, |piece| {
                pieces.blocking_send(piece).map_err(|_| ArchiveError::Gone)
            })
        });
    let mut target: Option<Target> = None;
    let outcome = take(app, actor, intake, taken, reader, &mut target).await;
    let Some(target) = target else {
        return outcome.and(Err(Error::Archive(ArchiveError::Gone)));
    };
    match outcome {
        Ok(()) => Ok(job::store::show(&app.control, target.import.job).await?),
        // The job ended it, and knows why.
        Err(Error::Archive(ArchiveError::Gone)) => Err(ended(app, target.import.job).await?),
        Err(Error::Archive(error)) => {
            if error.is_final() {
                load::refuse(&target.client, target.import.job, &error).await?;
            }
            Err(Error::Archive(error))
        }
        Err(error) => Err(error),
    }
}

/// Where an archive's rows go.
struct Target {
    client: Client,
    import: Arc<Import>,
    lanes: Lanes,
}

/// Parts that are put at once. Rows cost the shard's processor most, one for each.
const LANES_MAX: usize = 2;

/// Connections by which parts are put.
struct Lanes {
    free: Vec<Client>,
    busy: JoinSet<Result<Client, ArchiveError>>,
}

impl Lanes {
    /// One that is free, or the first that comes to be.
    async fn next(&mut self) -> Result<Client, ArchiveError> {
        match self.free.pop() {
            Some(client) => Ok(client),
            None => self.done().await.unwrap_or(Err(ArchiveError::Gone)),
        }
    }

    /// The next part's end; none where none is being put.
    async fn done(&mut self) -> Option<Result<Client, ArchiveError>> {
        let put = self.busy.join_next().await?;
        Some(put.unwrap_or_else(|broken| Err(ArchiveError::Io(io::Error::other(broken)))))
    }
}

async fn take(
    app: &App,
    actor: &Actor,
    intake: &Intake,
    mut taken: Receiver<Piece>,
    reader: JoinHandle<Result<Digests, ArchiveError>>,
    target: &mut Option<Target>,
) -> Result<(), Error> {
    let mut tables: Arc<[TenantTable]> = Arc::default();
    while let Some(piece) = taken.recv().await {
        match (piece, target.as_mut()) {
            (Piece::Manifest(manifest, digest), _) => {
                let job = begin(app, actor, intake, &manifest, &digest).await?;
                let opened = opened(app, job).await?;
                tables = at(&opened.client).await?.into();
                let is_complete = opened.import.state == "complete";
                *target = Some(opened);
                if is_complete {
                    return Ok(());
                }
            }
            (Piece::Part { table, is, lines }, Some(target)) => {
                let mut client = target.lanes.next().await?;
                let (import, tables) = (target.import.clone(), tables.clone());
                let failpoints = app.failpoints.clone();
                target.lanes.busy.spawn(async move {
                    load::put(&mut client, &import, &tables, table, &is, lines).await?;
                    failpoints.hit("import_part");
                    Ok(client)
                });
            }
            (Piece::Part { .. }, None) => return Err(Error::Archive(ArchiveError::Gone)),
        }
    }
    if let Some(target) = target.as_mut() {
        while let Some(put) = target.lanes.done().await {
            put?;
        }
    }
    let digests = reader.await.map_err(io::Error::other);
    let digests = digests.map_err(ArchiveError::Io)??;
    match target.as_mut() {
        None => Err(Error::Archive(ArchiveError::Gone)),
        Some(target) => Ok(load::complete(&mut target.client, &target.import, &digests).await?),
    }
}

/// The shard's tables, named as in archives.
async fn at(client: &Client) -> Result<Vec<TenantTable>, Error> {
    let read = async {
        client.batch_execute("set search_path = pg_catalog").await?;
        tenant_tables(client).await
    };
    Ok(read.await.map_err(ArchiveError::Postgres)?)
}

/// The job of this very archive, or a new one with its tenant.
async fn begin(
    app: &App,
    actor: &Actor,
    intake: &Intake,
    manifest: &Manifest,
    digest: &str,
) -> Result<Uuid, Error> {
    let slug = intake.slug.clone().or_else(|| manifest.tenant.slug.clone());
    let slug = slug.ok_or_else(|| {
        Error::BadRequest("the archive has no name of its tenant: say which it gets (as)".into())
    })?;
    match app.control.tenant(&slug).await {
        Ok(found) => return under_way(app, &found, digest).await,
        Err(ControlError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let new = NewTenant {
        id: intake.id,
        name: manifest
            .tenant
            .name
            .clone()
            .filter(|_| intake.slug.is_none()),
        region: intake.region.clone(),
        slug,
    };
    let place = NewPlace {
        state: TenantState::Importing,
        shard: intake.shard.as_deref(),
    };
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    // Before the version's row, as whoever else starts a job.
    job::store::lock_starts(&transaction).await?;
    let (tenant, is_new) = insert_tenant(&transaction, actor, &new, place).await?;
    if !is_new {
        return Err(exists(&tenant));
    }
    // An archive's rows would come in behind what a migration has filled.
    let shards = std::slice::from_ref(&tenant.shard);
    job::store::refuse_beside(&transaction, &[Kind::Migrate], shards).await?;
    let state = TenantRestore::of(&tenant, manifest, digest);
    let job = NewJob {
        kind: Kind::TenantRestore,
        object: &tenant.slug,
        tenant: Some(tenant.id),
        shards,
        state: &state,
    };
    let id = job::store::insert(&transaction, actor, &job).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    Ok(id)
}

async fn under_way(app: &App, found: &TenantInfo, digest: &str) -> Result<Uuid, Error> {
    if found.state != TenantState::Importing.name() {
        return Err(exists(found));
    }
    let Some((job, state)) = job::store::open_of_tenant(&app.control, found.id).await? else {
        return Err(exists(found));
    };
    let state: Option<TenantRestore> = serde_json::from_value(state).ok();
    let arrival = state.as_ref().and_then(TenantRestore::arrival);
    match arrival.is_some_and(|arrival| arrival.digest == digest) {
        true => Ok(job),
        false => Err(Error::Control(ControlError::Conflict(format!(
            "another archive is being imported as {}: job {job}",
            found.slug
        )))),
    }
}

fn exists(found: &TenantInfo) -> Error {
    Error::Control(ControlError::Conflict(format!(
        "there is a tenant {} already: an import makes a new one, under a name that is free",
        found.slug
    )))
}

/// Waits until the job has prepared the shard.
async fn opened(app: &App, job: Uuid) -> Result<Target, Error> {
    let until = Instant::now() + OPENED_MAX;
    let shard = job::store::show(&app.control, job).await?.shards.pop();
    let shard = shard.unwrap_or_default();
    let nodes = nodes(app, &shard).await?;
    let client = app.logins.as_mover(&shard, &nodes).await?;
    let mut lanes = Lanes {
        free: Vec::new(),
        busy: JoinSet::new(),
    };
    for _ in 0..LANES_MAX {
        let lane = app.logins.as_mover(&shard, &nodes).await?;
        at(&lane).await?;
        lanes.free.push(lane);
    }
    loop {
        if let Some(import) = load::look(&client, job).await? {
            return match (import.state.as_str(), &import.problem) {
                ("open" | "complete", None) => Ok(Target {
                    client,
                    import: Arc::new(import),
                    lanes,
                }),
                _ => Err(ended(app, job).await?),
            };
        }
        let seen = job::store::show(&app.control, job).await?;
        if seen.done || seen.phase == "cleaning_up" || seen.phase == "cleaned" {
            return Err(ended(app, job).await?);
        }
        if Instant::now() >= until {
            return Err(Error::Archive(ArchiveError::Slow("prepared")));
        }
        sleep(LOOK).await;
    }
}

/// Why a job takes nothing any longer, once it says so.
async fn ended(app: &App, job: Uuid) -> Result<Error, Error> {
    let until = Instant::now() + OPENED_MAX;
    loop {
        let seen = job::store::show(&app.control, job).await?;
        if seen.done || Instant::now() >= until {
            let problem = seen.problem.unwrap_or_default();
            let said = |field: &str| problem[field].as_str().map(str::to_owned);
            let why = match said("message") {
                Some(message) => message,
                None => format!("the import was {}", seen.status),
            };
            return Ok(Error::Import(why));
        }
        sleep(LOOK).await;
    }
}

async fn nodes(app: &App, shard: &str) -> Result<Vec<Address>, Error> {
    let shards = app.control.shards().await?;
    let found = shards.iter().find(|info| info.id == shard);
    Ok(found.map(reconcile::addresses).unwrap_or_default())
}

/// Passes a body on, and says when it has ended: by an empty chunk.
async fn forward(body: Body, chunks: Sender<io::Result<Bytes>>) {
    let mut body = body.into_data_stream();
    loop {
        let (chunk, is_last) = match timeout(SENT_MAX, body.next()).await {
            Err(_) => (Err(io::ErrorKind::TimedOut.into()), true),
            Ok(None) => (Ok(Bytes::new()), true),
            Ok(Some(Ok(chunk))) if chunk.is_empty() => continue,
            Ok(Some(Ok(chunk))) => (Ok(chunk), false),
            Ok(Some(Err(_))) => (Err(io::ErrorKind::ConnectionAborted.into()), true),
        };
        if chunks.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

/// Reads what was forwarded. Without its end it is broken off, not over.
struct Unread {
    chunks: Receiver<io::Result<Bytes>>,
    chunk: Bytes,
    is_over: bool,
}

impl Read for Unread {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && !self.is_over {
            let next = self.chunks.blocking_recv();
            self.chunk = next.unwrap_or_else(|| Err(io::ErrorKind::ConnectionAborted.into()))?;
            self.is_over = self.chunk.is_empty();
        }
        let length = self.chunk.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}
