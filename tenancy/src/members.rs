//! Who is here: the live routers and workers. Each writes a heartbeat into the
//! control database once a second, and reads everybody's with it.
//!
//! Routers divide budgets by their own number, and connect to every worker. So
//! who is known stays known for a while: through a control database that is
//! down for however long, or that lost all heartbeats in a crash of its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::tls::Tls;

/// How often a member says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait for the control database's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A heartbeat older than this, in seconds, says nothing.
const FRESH_MAX: f64 = 3.0;
/// A known member without fresh heartbeats for so long is gone. Only time in
/// which others' heartbeats could be read counts.
const MISSED_MAX: Duration = Duration::from_secs(3);

/// All live routers and workers, each list in order of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Routers, this one included where it is one.
    pub routers: Vec<Member>,
    /// Workers, this one included where it is one.
    pub workers: Vec<Member>,
}

impl Members {
    /// By how many a router divides what all routers share; 1 at least.
    pub fn sharers(&self) -> usize {
        self.routers.len().max(1)
    }
}

/// One run of a router or worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Of this run: the same process started again has another.
    pub instance: Uuid,
    /// Its configured name; two may have the same.
    pub name: String,
    /// Its region; none means the default one.
    pub region: Option<String>,
    /// Base address of its admin listener.
    pub admin_url: String,
    /// Where a worker serves the stream of changes.
    pub stream_url: Option<String>,
    /// Its program's version.
    pub version: String,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Serves tenants.
    Router,
    /// Serves administrators, and does jobs.
    Worker,
}

/// Who writes heartbeats.
#[derive(Clone, Debug)]
pub struct Me {
    /// What it is.
    pub kind: Kind,
    /// What others are told of it.
    pub member: Member,
}

impl Me {
    /// A new run of a process.
    pub fn new(kind: Kind, name: &str, region: Option<String>, admin_url: String) -> Self {
        Self {
            kind,
            member: Member {
                instance: Uuid::new_v4(),
                name: name.into(),
                region,
                admin_url,
                stream_url: None,
                version: env!("CARGO_PKG_VERSION").into(),
            },
        }
    }
}

/// The address under which others reach what listens on `listen`: as configured,
/// or else the listener's own, with the machine's name where it is on all of
/// the machine's addresses.
pub fn reachable(advertised: Option<&str>, listen: SocketAddr) -> String {
    if let Some(url) = advertised {
        return url.trim_end_matches('/').to_owned();
    }
    if !listen.ip().is_unspecified() {
        return format!("http://{listen}");
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = match name.trim() {
        "" => "localhost",
        name => name,
    };
    format!("http://{name}:{}", listen.port())
}

/// Writes heartbeats until `stop`, and keeps `members` current.
///
/// It has a connection of its own: a large fetch of placements takes longer
/// than others wait for a heartbeat.
pub async fn follow(
    config: tokio_postgres::Config,
    tls: Tls,
    me: Me,
    members: watch::Sender<Arc<Members>>,
    stop: CancellationToken,
) {
    let mut roll = Roll::new(me.clone(), &members.borrow());
    let publish = |now: Members| {
        members.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                *before = Arc::new(now);
            }
            changed
        })
    };
    publish(roll.members());
    let mut config = config;
    config
        .connect_timeout(ANSWER_MAX)
        .application_name("ringfence-members");
    let mut client = None;
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        match timeout(ANSWER_MAX, beat(&config, &tls, &me, &mut client)).await {
            Ok(Ok(alive)) => {
                roll.take(Instant::now(), alive);
                publish(roll.members());
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %crate::chain(&error), "no heartbeat");
                client = None;
            }
            Err(_) => client = None,
        }
    }
    if let Some(client) = client {
        let (kind, instance) = (me.kind, me.member.instance);
        let _ = timeout(ANSWER_MAX, leave(&client, kind, instance)).await;
    }
}

/// One heartbeat; returns who else has a fresh one.
async fn beat(
    config: &tokio_postgres::Config,
    tls: &Tls,
    me: &Me,
    client: &mut Option<Client>,
) -> Result<Vec<(Kind, Member)>, tokio_postgres::Error> {
    let connected = match client.take() {
        Some(client) => client,
        None => {
            let (client, connection) = tls.connect(config).await?;
            tokio::spawn(connection);
            client
        }
    };
    let Member {
        instance,
        name,
        region,
        admin_url,
        stream_url,
        version,
    } = &me.member;
    let rows = match me.kind {
        Kind::Router => {
            let sql = "select * from ringfence.router_heartbeat($1, $2, $3, $4, $5)";
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [instance, name, region, admin_url, version];
            connected.query(sql, &values).await?
        }
        Kind::Worker => {
            let sql = "select * from ringfence.heartbeat('worker', $1, $2, $3, $4, $5, $6)";
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [instance, name, region, admin_url, stream_url, version];
            connected.query(sql, &values).await?
        }
    };
    *client = Some(connected);
    Ok(rows
        .iter()
        .filter(|row| row.get::<_, f64>("seen_seconds_ago") <= FRESH_MAX)
        .map(member)
        .collect())
}

fn member(row: &Row) -> (Kind, Member) {
    let kind = match row.get("member_kind") {
        "router" => Kind::Router,
        _ => Kind::Worker,
    };
    let member = Member {
        instance: row.get("member_instance"),
        name: row.get("member_name"),
        region: row.get("member_region"),
        admin_url: row.get("member_admin_url"),
        stream_url: row.get("member_stream_url"),
        version: row.get("member_version"),
    };
    (kind, member)
}

/// Others need not wait for the heartbeats that no longer come.
async fn leave(client: &Client, kind: Kind, instance: Uuid) -> Result<(), tokio_postgres::Error> {
    let sql = match kind {
        Kind::Router => "select ringfence.router_leave($1)",
        Kind::Worker => "select ringfence.leave('worker', $1)",
    };
    client.query(sql, &[&instance]).await.map(drop)
}

/// Who is known, and how long nothing was heard of each. Pure.
struct Roll {
    me: Me,
    known: HashMap<Uuid, (Kind, Member, Duration)>,
    read: Option<Instant>,
}

impl Roll {
    fn new(me: Me, before: &Members) -> Self {
        let routers = before.routers.iter().map(|member| (Kind::Router, member));
        let workers = before.workers.iter().map(|member| (Kind::Worker, member));
        let mut known: HashMap<_, _> = routers
            .chain(workers)
            .map(|(kind, member)| (member.instance, (kind, member.clone(), Duration::ZERO)))
            .collect();
        let own = (me.kind, me.member.clone(), Duration::ZERO);
        known.insert(me.member.instance, own);
        Self {
            me,
            known,
            read: None,
        }
    }

    /// Takes a reading: who had a fresh heartbeat at `now`.
    fn take(&mut self, now: Instant, alive: Vec<(Kind, Member)>) {
        // While nothing could be read, nobody could be heard.
        let since = self.read.replace(now).map(|before| now - before);
        let since = since.unwrap_or_default().min(BEAT * 2);
        for (_, _, missed) in self.known.values_mut() {
            *missed += since;
        }
        for (kind, member) in alive {
            self.known
                .insert(member.instance, (kind, member, Duration::ZERO));
        }
        let own = self.me.member.instance;
        self.known
            .retain(|instance, (_, _, missed)| *instance == own || *missed < MISSED_MAX);
    }

    fn members(&self) -> Members {
        let list = |wanted: Kind| {
            let known = self.known.values();
            let mut list: Vec<Member> = known
                .filter(|(kind, _, _)| *kind == wanted)
                .map(|(_, member, _)| member.clone())
                .collect();
            list.sort_by(|a, b| (&a.name, a.instance).cmp(&(&b.name, b.instance)));
            list
        };
        Members {
            routers: list(Kind::Router),
            workers: list(Kind::Worker),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(kind: Kind, name: &str) -> Me {
        Me::new(kind, name, None, format!("http://{name}:7500"))
    }

    fn known(roll: &Roll) -> String {
        let members = roll.members();
        let all = members.routers.iter().chain(&members.workers);
        all.map(|m| m.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn alive(who: &[&Me]) -> Vec<(Kind, Member)> {
        let alive = who.iter();
        alive.map(|me| (me.kind, me.member.clone())).collect()
    }

    #[test]
    fn who_falls_silent_is_gone_after_a_while() {
        let (own, other) = (me(Kind::Router, "r1"), me(Kind::Router, "r2"));
        let worker = me(Kind::Worker, "w1");
        let mut roll = Roll::new(own.clone(), &Members::default());
        assert_eq!(known(&roll), "r1");
        let start = Instant::now();
        roll.take(start, alive(&[&own, &other, &worker]));
        assert_eq!(known(&roll), "r1 r2 w1");
        for second in 1..=2 {
            roll.take(start + BEAT * second, alive(&[&own, &worker]));
            assert_eq!(known(&roll), "r1 r2 w1", "after {second} s");
        }
        roll.take(start + BEAT * 3, alive(&[&own, &worker]));
        assert_eq!(known(&roll), "r1 w1");
        assert_eq!(roll.members().sharers(), 1);
    }

    /// The table is empty after a crash of the control database: a minute
    /// without readings, then one in which only this router has a heartbeat.
    #[test]
    fn everybody_outlives_a_control_database_that_forgot_them() {
        let (own, other) = (me(Kind::Router, "r1"), me(Kind::Router, "r2"));
        let worker = me(Kind::Worker, "w1");
        let mut roll = Roll::new(own.clone(), &Members::default());
        let start = Instant::now();
        roll.take(start, alive(&[&own, &other, &worker]));
        roll.take(start + BEAT * 60, alive(&[&own]));
        assert_eq!(known(&roll), "r1 r2 w1");
        roll.take(start + BEAT * 61, alive(&[&own, &other, &worker]));
        assert_eq!(known(&roll), "r1 r2 w1");
    }

    #[test]
    fn addresses_are_reachable_ones() {
        let listen = "10.1.2.3:7500".parse().unwrap();
        assert_eq!(reachable(None, listen), "http://10.1.2.3:7500");
        let given = Some("http://router-1.svc:7500/");
        assert_eq!(reachable(given, listen), "http://router-1.svc:7500");
        let everywhere = reachable(None, "0.0.0.0:7500".parse().unwrap());
        assert!(!everywhere.contains("0.0.0.0"), "{everywhere}");
    }

    #[test]
    fn a_start_from_a_file_keeps_whom_it_names_until_others_are_heard() {
        let (own, before) = (me(Kind::Router, "r1"), me(Kind::Router, "r1"));
        let worker = me(Kind::Worker, "w1");
        let file = Members {
            routers: vec![before.member],
            workers: vec![worker.member.clone()],
        };
        let mut roll = Roll::new(own.clone(), &file);
        assert_eq!(known(&roll), "r1 r1 w1");
        let start = Instant::now();
        for second in 0..4 {
            roll.take(start + BEAT * second, alive(&[&own, &worker]));
        }
        assert_eq!(known(&roll), "r1 w1");
    }
}
