//! Rule 1: finds the shard's primary, and takes its one slot; makes it anew where
//! it is not the one of this server and timeline. The row `ringfence.capture`
//! says which slot is current; each change of it is compare-and-set.

use std::time::Duration;

use futures_util::future::join_all;
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationConfig, TlsConfig};
use tenancy::changes::{Generation, Lsn};
use tenancy::tls::{Tls, TlsMode};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Row};

use super::shard::{Condition, Shard};
use super::visible::Snapshot;
use crate::shard::{Address, Logins};

/// The slot's and the publication's name, on every shard.
pub(super) const NAME: &str = "ringfence_capture";

/// Longest wait for a node to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Longest wait for a statement that waits for nothing.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a slot, which waits for every writing transaction to end.
const CREATE_MAX: Duration = Duration::from_secs(600);
/// How often a standby looks whether the slot is free.
const STANDBY_LOOK: Duration = Duration::from_millis(100);
/// How long it looks before it finds the primary anew.
const STANDBY_MAX: Duration = Duration::from_secs(2);
/// Messages that wait to be decoded; each may be as large as a row.
const BUFFERED: usize = 32;
/// How often the slot is confirmed.
const CONFIRM_EVERY: Duration = Duration::from_millis(200);
/// Postgres ends the session of a worker that was silent for this long, so that
/// a frozen one does not keep the slot from the others.
const SILENT_MS_MAX: u64 = 1_400;

/// Why a shard is not captured now.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    /// No node is a primary that can be reached.
    #[error("no node is a reachable primary: {0}")]
    NoPrimary(String),
    /// Another worker has the slot.
    #[error("another worker has the slot")]
    Busy,
    /// The shard has not been prepared for it.
    #[error("the shard is not prepared for capture yet")]
    Unprepared,
    /// A statement failed.
    #[error("a statement failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// The replication session failed.
    #[error("the replication session failed")]
    Replication(#[from] PgWireError),
    /// What it sent can't be understood.
    #[error("the log can't be decoded")]
    Decode(#[from] super::decode::DecodeError),
    /// No answer in time.
    #[error("the primary did not answer in time")]
    Slow,
    /// The session, or an answer, is not what it must be.
    #[error("the primary's answer is not what it must be: {0}")]
    Unexpected(&'static str),
    /// There is a newer primary.
    #[error("there is a primary on a newer timeline")]
    Deposed,
}

/// The shard's primary, with a session of its own.
pub(super) struct Primary {
    pub(super) client: Client,
    pub(super) address: Address,
    system: u64,
    pub(super) timeline: u32,
}

/// The slot, taken.
pub(super) struct Held {
    pub(super) replication: ReplicationClient,
    pub(super) generation: Generation,
    /// Everything up to here was published by whoever had it before.
    pub(super) start: Lsn,
}

/// The reachable primary; of several, the one on the newest timeline.
pub(super) async fn find_primary(
    logins: &Logins,
    nodes: &[Address],
) -> Result<Primary, CaptureError> {
    let looks = nodes.iter().map(|node| look_at(logins, node));
    let mut newest: Option<Primary> = None;
    let mut reason = "it has no nodes".to_owned();
    for look in join_all(looks).await {
        match look {
            Ok(Some(primary)) => {
                let timeline = newest.as_ref().map(|newest| newest.timeline);
                if timeline.is_none_or(|timeline| timeline < primary.timeline) {
                    newest = Some(primary);
                }
            }
            Ok(None) => {}
            Err(error) => reason = tenancy::chain(&error),
        }
    }
    newest.ok_or(CaptureError::NoPrimary(reason))
}

/// The node, if it is a primary.
async fn look_at(logins: &Logins, node: &Address) -> Result<Option<Primary>, CaptureError> {
    let client = connect(logins, node).await?;
    let row = in_time(client.query_one(
        "select pg_is_in_recovery(), (select system_identifier from pg_control_system()),
           case when pg_is_in_recovery() then 0
             else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end",
        &[],
    ))
    .await?;
    let standby: bool = row.try_get(0)?;
    let (system, timeline): (i64, i32) = (row.try_get(1)?, row.try_get(2)?);
    Ok((!standby).then(|| Primary {
        client,
        address: node.clone(),
        system: system as u64,
        timeline: timeline as u32,
    }))
}

/// A session for statements. Its commits do not wait for standbys: what they
/// write is of use on this server only.
pub(super) async fn connect(logins: &Logins, node: &Address) -> Result<Client, CaptureError> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&node.host)
        .port(node.port)
        .user("ringfence_worker")
        .dbname(&logins.database)
        .application_name("ringfence-worker capture")
        .options("-c synchronous_commit=local -c statement_timeout=0")
        .connect_timeout(CONNECT_MAX);
    if let Some(password) = &logins.roles.worker {
        config.password(password);
    }
    let (client, connection) = timeout(CONNECT_MAX * 2, logins.tls.connect(&config))
        .await
        .map_err(|_| CaptureError::Slow)??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a capture's connection ended");
        }
    });
    Ok(client)
}

/// Takes the slot. Waits, for a while, while another worker has it.
pub(super) async fn acquire(
    shard: &Shard,
    primary: &Primary,
    logins: &Logins,
    worker: &str,
) -> Result<Held, CaptureError> {
    let begun = Instant::now();
    loop {
        match look(primary).await? {
            Found::Usable(incarnation) => {
                let generation = primary.generation(incarnation);
                match attach(primary, logins, worker, generation).await {
                    // Somebody was quicker.
                    Err(CaptureError::Busy) => {}
                    other => return other,
                }
            }
            Found::Unusable(incarnation) => {
                shard.set(Condition::Creating);
                create(shard, primary, &logins.tls, worker, incarnation).await?;
                continue;
            }
            Found::Busy => {}
        }
        shard.set(Condition::StandsBy);
        if begun.elapsed() > STANDBY_MAX {
            return Err(CaptureError::Busy);
        }
        sleep(STANDBY_LOOK).await;
    }
}

enum Found {
    /// The slot of this server and timeline, free.
    Usable(i64),
    /// None, or another's, or a lost one: the incarnation that it had.
    Unusable(i64),
    /// Somebody has it, or makes it.
    Busy,
}

async fn look(primary: &Primary) -> Result<Found, CaptureError> {
    let rows = in_time(primary.client.query(
        "select c.incarnation, c.state, c.system_id = $1 and c.timeline = $2 as same_server,
           c.changed_at > now() - interval '5 s' as recent,
           coalesce(s.active, false) as active,
           coalesce(s.plugin = 'pgoutput' and s.database = current_database()
             and s.wal_status <> 'lost' and s.confirmed_flush_lsn is not null, false) as usable
         from ringfence.capture c left join pg_replication_slots s on s.slot_name = $3
         where not pg_is_in_recovery()",
        &[
            &primary.system.to_string(),
            &(primary.timeline as i32),
            &NAME,
        ],
    ))
    .await;
    let rows = match rows {
        Err(CaptureError::Postgres(error))
            if error.code().is_some_and(|code| {
                // No such table, schema or column.
                ["42P01", "3F000", "42703", "42501"].contains(&code.code())
            }) =>
        {
            return Err(CaptureError::Unprepared);
        }
        rows => rows?,
    };
    let row = rows.first().ok_or(CaptureError::Unprepared)?;
    let (state, incarnation): (&str, i64) = (row.try_get("state")?, row.try_get("incarnation")?);
    if flag(row, "active")? || (state == "creating" && flag(row, "recent")?) {
        return Ok(Found::Busy);
    }
    match state == "ready" && flag(row, "same_server")? && flag(row, "usable")? {
        true => Ok(Found::Usable(incarnation)),
        false => Ok(Found::Unusable(incarnation)),
    }
}

fn flag(row: &Row, name: &str) -> Result<bool, CaptureError> {
    Ok(row.try_get::<_, Option<bool>>(name)?.unwrap_or(false))
}

/// Makes a slot, and waits until all that ran meanwhile has ended: what the slot
/// does not show is then visible to whoever reads.
async fn create(
    shard: &Shard,
    primary: &Primary,
    tls: &Tls,
    worker: &str,
    seen: i64,
) -> Result<(), CaptureError> {
    let client = &primary.client;
    let claimed = in_time(client.query_opt(
        "update ringfence.capture set incarnation = incarnation + 1, state = 'creating',
           system_id = $1, timeline = $2, worker = $3, changed_at = now()
         where incarnation = $4 returning incarnation",
        &[
            &primary.system.to_string(),
            &(primary.timeline as i32),
            &worker,
            &seen,
        ],
    ))
    .await?;
    let Some(claimed) = claimed else {
        return Err(CaptureError::Busy);
    };
    let incarnation: i64 = claimed.try_get(0)?;
    shard.count_generation();
    tracing::info!(shard = %shard.id, incarnation, "making the capture's slot");
    // The old one first: two would hold the log back, and one name is one slot.
    in_time(client.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
        &[&NAME],
    ))
    .await?;
    let made = client.execute(
        "select pg_create_logical_replication_slot($1, 'pgoutput')",
        &[&NAME],
    );
    let cancel = client.cancel_token();
    match timeout(CREATE_MAX, made).await {
        Ok(made) => drop(made?),
        Err(_) => {
            let _ = timeout(ANSWER_MAX, tls.cancel(&cancel)).await;
            return Err(CaptureError::Slow);
        }
    }
    let running = snapshot(client).await?.xmax;
    loop {
        let now = snapshot(client).await?;
        if now.xmin >= running {
            break;
        }
        let ours = in_time(client.execute(
            "update ringfence.capture set changed_at = now()
             where incarnation = $1 and state = 'creating'",
            &[&incarnation],
        ))
        .await?;
        if ours == 0 {
            return Err(CaptureError::Busy);
        }
        sleep(Duration::from_millis(50)).await;
    }
    let ready = in_time(client.execute(
        "update ringfence.capture set state = 'ready', changed_at = now()
         where incarnation = $1 and state = 'creating'",
        &[&incarnation],
    ))
    .await?;
    match ready {
        0 => Err(CaptureError::Busy),
        _ => Ok(()),
    }
}

/// Opens the slot. Whose it is, where it begins, and that this session has it,
/// is read while it is held.
async fn attach(
    primary: &Primary,
    logins: &Logins,
    worker: &str,
    generation: Generation,
) -> Result<Held, CaptureError> {
    let config = ReplicationConfig::new(
        primary.address.host.as_str(),
        "ringfence_worker",
        logins.roles.worker.as_deref().unwrap_or_default(),
        logins.database.as_str(),
        NAME,
        NAME,
    )
    .with_port(primary.address.port)
    .with_tls(encryption(&logins.tls, &primary.address.host))
    .with_options(format!("-c wal_sender_timeout={SILENT_MS_MAX}"))
    .with_application_name("ringfence-worker capture")
    .with_status_interval(CONFIRM_EVERY)
    .with_wakeup_interval(CONFIRM_EVERY)
    .with_buffer_size(BUFFERED)
    // A tenant's id comes as 16 bytes.
    .with_binary(true);
    let opened = async {
        let mut replication = ReplicationClient::connect_gated(config).await?;
        let server = replication.identify_system().await?;
        let rows = replication.simple_query("select pg_backend_pid()").await?;
        let pid = rows
            .first()
            .and_then(|row| row.first()?.as_ref())
            .and_then(|text| std::str::from_utf8(text).ok()?.parse::<i32>().ok())
            .ok_or(CaptureError::Unexpected("a session's number"))?;
        if server.timeline != generation.timeline
            || server.system_id.parse() != Ok(generation.system)
        {
            return Err(CaptureError::Unexpected("another server or timeline"));
        }
        replication.start().await?;
        match replication.wait_started().await {
            Ok(()) => Ok((replication, pid)),
            // 55006: the slot is active for another session.
            Err(error) if error.is_server() && error.to_string().contains("55006") => {
                Err(CaptureError::Busy)
            }
            Err(error) => Err(error.into()),
        }
    };
    let (replication, pid) = timeout(ANSWER_MAX * 2, opened)
        .await
        .map_err(|_| CaptureError::Slow)??;
    // The term rises, committed, before a router is counted.
    let held = in_time(primary.client.query_opt(
        "update ringfence.capture c set term = c.term + 1, worker = $1, changed_at = now()
         from pg_replication_slots s
         where s.slot_name = $2 and s.active_pid = $3
           and c.state = 'ready' and c.incarnation = $4
         returning (s.confirmed_flush_lsn - '0/0'::pg_lsn)::text",
        &[&worker, &NAME, &pid, &(generation.incarnation as i64)],
    ))
    .await?
    .ok_or(CaptureError::Busy)?;
    let start: &str = held.try_get(0)?;
    let start = start
        .parse()
        .map_err(|_| CaptureError::Unexpected("a position"))?;
    Ok(Held {
        replication,
        generation,
        start: Lsn(start),
    })
}

/// The replication session connects by itself. A host that is an address is
/// verified like a name, which that library wants to be said.
pub(crate) fn encryption(tls: &Tls, host: &str) -> TlsConfig {
    let settings = tls.settings();
    match settings.mode {
        TlsMode::Disable => TlsConfig::disabled(),
        TlsMode::VerifyCa => TlsConfig::verify_ca(settings.ca_file.clone()),
        TlsMode::VerifyFull => {
            TlsConfig::verify_full(settings.ca_file.clone()).with_sni_hostname(host)
        }
    }
}

/// What is visible now.
pub(super) async fn snapshot(client: &Client) -> Result<Snapshot, CaptureError> {
    let row = in_time(client.query_one("select pg_current_snapshot()::text", &[])).await?;
    Snapshot::parse(row.try_get(0)?).ok_or(CaptureError::Unexpected("a snapshot"))
}

impl Primary {
    fn generation(&self, incarnation: i64) -> Generation {
        Generation {
            system: self.system,
            timeline: self.timeline,
            incarnation: incarnation as u64,
        }
    }
}

/// The statement's answer, or none in time.
pub(super) async fn in_time<T>(
    statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, CaptureError> {
    Ok(timeout(ANSWER_MAX, statement)
        .await
        .map_err(|_| CaptureError::Slow)??)
}
