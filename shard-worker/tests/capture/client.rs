//! A router's side of the stream, as strict as a router is, and psql's side of
//! the shard.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use ops::local::Cluster;
use tenancy::changes::{
    Cell, CellSet, FromRouter, FromWorker, Generation, Lsn, PATH, RouterRun, decode, encode,
};
use tenancy::id::TenantId;
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_postgres::types::FromSqlOwned;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(60);
/// After this time a barrier is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Waits until it is so.
pub(crate) async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so().await {
        assert!(Instant::now() < deadline, "it did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A superuser's session.
pub(crate) struct Shard(tokio_postgres::Client);

impl Shard {
    pub(crate) async fn connect(cluster: &Cluster, node: &str) -> Self {
        Self::open(&cluster.shard_dsn(node).unwrap()).await
    }

    pub(crate) async fn open(dsn: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.0.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn value<T: FromSqlOwned>(&self, sql: &str) -> T {
        self.0.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn show(&self, name: &str) -> String {
        self.value(&format!("select current_setting('{name}')"))
            .await
    }

    /// The distributed table `t`.
    pub(crate) async fn make_table(&self) {
        self.run(
            "create table t (id bigint generated always as identity primary key, note text);
             select ringfence.distribute('t')",
        )
        .await;
    }

    pub(crate) async fn insert(&self, tenant: TenantId) {
        self.run(&format!("insert into t (tenant_id) values ('{tenant}')"))
            .await;
    }

    /// Behind all that was committed.
    pub(crate) async fn position(&self) -> Lsn {
        let lsn: String = self.value("select pg_current_wal_lsn()::text").await;
        lsn.parse().unwrap()
    }
}

/// A router that follows shard `s1`.
pub(crate) struct Router {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    run: RouterRun,
    place: Option<(Generation, Lsn)>,
    /// Says nothing of what it applies.
    pub(crate) silent: bool,
    /// Its last `Start` went on where it was.
    pub(crate) resumed: bool,
    /// The cells of each `Changes`.
    pub(crate) raised: Vec<CellSet>,
    leases: VecDeque<(u64, Lsn)>,
    barriers: VecDeque<u64>,
    captured: bool,
    gone: bool,
}

impl Router {
    /// Opens a stream to the n-th worker, from 0.
    pub(crate) async fn open(cluster: &Cluster, worker: usize) -> Self {
        let run = RouterRun(Uuid::new_v4().as_u128());
        Self {
            socket: connect(cluster, worker, run).await,
            run,
            place: None,
            silent: false,
            resumed: false,
            raised: Vec::new(),
            leases: VecDeque::new(),
            barriers: VecDeque::new(),
            captured: false,
            gone: false,
        }
    }

    /// The same router, after its stream broke.
    pub(crate) async fn reopen(&mut self, cluster: &Cluster, worker: usize) {
        self.socket = connect(cluster, worker, self.run).await;
        self.captured = false;
        self.gone = false;
    }

    pub(crate) fn generation(&self) -> Generation {
        self.place.unwrap().0
    }

    pub(crate) fn watermark(&self) -> Lsn {
        self.place.unwrap().1
    }

    /// How many `Changes` raised anything; the others are positions alone.
    pub(crate) fn changes(&self) -> usize {
        self.raised.iter().filter(|cells| !cells.is_empty()).count()
    }

    /// How many `Changes` named the cell.
    pub(crate) fn times_raised(&self, cell: Cell) -> usize {
        self.raised
            .iter()
            .filter(|cells| cells.contains(cell))
            .count()
    }

    /// Follows the shard, once it is captured.
    pub(crate) async fn follow(&mut self) {
        let resume = self.place.take();
        while self.place.is_none() {
            while !std::mem::take(&mut self.captured) {
                self.step().await;
            }
            self.gone = false;
            let shard = "s1".into();
            self.send(FromRouter::Follow { shard, resume }).await;
            while self.place.is_none() && !self.gone {
                self.step().await;
            }
        }
        self.gone = false;
    }

    /// The capture was lost, and is found again.
    pub(crate) async fn follow_again(&mut self) {
        while !self.gone {
            self.step().await;
        }
        self.gone = false;
        self.follow().await;
    }

    /// Goes on at this worker where another left off.
    pub(crate) async fn take_over(&mut self, generation: Generation, watermark: Lsn) {
        self.place = Some((generation, watermark));
        self.gone = false;
        self.follow().await;
    }

    /// Until its watermark is there. Asks for a barrier, so that it is moved on;
    /// and again: the worker forgets it after a second. Follows again, if need be.
    pub(crate) async fn catch_up(&mut self, lsn: Lsn) {
        let deadline = Instant::now() + LONG;
        let mut asked = None::<Instant>;
        while self.watermark() < lsn {
            assert!(Instant::now() < deadline, "{lsn} did not come");
            // A slow machine's worker may have lost the slot for a moment.
            if self.gone {
                self.follow().await;
            }
            if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                asked = Some(Instant::now());
                self.barrier(u64::MAX, lsn).await;
            }
            if let Ok(message) = tokio::time::timeout(ASK_AGAIN, self.receive()).await {
                self.apply(message.expect("the stream ended")).await;
            }
        }
    }

    pub(crate) async fn ping(&mut self, id: u64) {
        let shard = "s1".into();
        self.send(FromRouter::Ping { shard, id }).await;
    }

    /// The position of a lease; applied already.
    /// Asked for again meanwhile: who lost the slot for a moment has forgotten it.
    pub(crate) async fn lease(&mut self, id: u64) -> Lsn {
        let deadline = Instant::now() + LONG;
        let mut asked = Instant::now();
        loop {
            if let Some((_, lsn)) = self.leases.iter().find(|(of, _)| *of == id).copied() {
                while self.watermark() < lsn {
                    self.step().await;
                }
                return lsn;
            }
            assert!(Instant::now() < deadline, "no lease comes");
            if self.gone {
                self.follow().await;
            }
            if asked.elapsed() >= ASK_AGAIN {
                asked = Instant::now();
                self.ping(id).await;
            }
            if let Ok(message) = tokio::time::timeout(ASK_AGAIN, self.receive()).await {
                self.apply(message.expect("the stream ended")).await;
            }
        }
    }

    pub(crate) async fn barrier(&mut self, id: u64, lsn: Lsn) {
        let generation = self.place.unwrap().0;
        self.send(FromRouter::Barrier {
            shard: "s1".into(),
            id,
            system: generation.system,
            timeline: generation.timeline,
            lsn,
        })
        .await;
    }

    /// Asks again meanwhile: the worker forgets it after a second.
    pub(crate) async fn barrier_done(&mut self, id: u64, lsn: Lsn) {
        let deadline = Instant::now() + LONG;
        let mut asked = Instant::now();
        while !self.barriers.contains(&id) {
            assert!(Instant::now() < deadline, "{lsn} is not everywhere");
            if self.gone {
                self.follow().await;
            }
            if asked.elapsed() >= ASK_AGAIN {
                asked = Instant::now();
                self.barrier(id, lsn).await;
            }
            if let Ok(message) = tokio::time::timeout(ASK_AGAIN, self.receive()).await {
                self.apply(message.expect("the stream ended")).await;
            }
        }
    }

    /// What comes within this time; most often nothing should. Positions alone
    /// do not count.
    pub(crate) async fn quiet_for(&mut self, time: Duration) -> Option<FromWorker> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = tokio::time::timeout(left, self.receive()).await.ok()?;
            let message = message.unwrap();
            // One that was asked for again is answered again.
            let known = matches!(&message, FromWorker::BarrierDone { id, .. } if self.barriers.contains(id));
            self.apply(message.clone()).await;
            match message {
                _ if known => {}
                FromWorker::Changes { cells, .. } if cells.is_empty() => {}
                // Asked for by `catch_up`.
                FromWorker::BarrierDone { id: u64::MAX, .. } => {}
                message => return Some(message),
            }
        }
    }

    /// Until the worker says that it has lost the shard; it must not have
    /// answered this ping and this barrier.
    pub(crate) async fn wait_until_gone(&mut self, ping: u64, barrier: u64) {
        while !std::mem::take(&mut self.gone) {
            self.step().await;
        }
        assert!(!self.leases.iter().any(|(id, _)| *id == ping));
        assert!(!self.barriers.contains(&barrier));
    }

    pub(crate) async fn wait_until_closed(&mut self) {
        while self.receive().await.is_some() {}
    }

    /// Asks to follow another shard.
    pub(crate) async fn ask_for(&mut self, shard: &str) -> FromWorker {
        let (shard, resume) = (shard.into(), None);
        self.send(FromRouter::Follow { shard, resume }).await;
        loop {
            // Its own shard's messages go on meanwhile.
            let message = self.receive().await.unwrap();
            let own = match &message {
                FromWorker::Captures { shard, .. }
                | FromWorker::Start { shard, .. }
                | FromWorker::Changes { shard, .. }
                | FromWorker::Lease { shard, .. }
                | FromWorker::BarrierDone { shard, .. }
                | FromWorker::Gone { shard } => *shard == "s1".into(),
            };
            if !own {
                return message;
            }
        }
    }

    pub(crate) async fn send(&mut self, message: FromRouter) {
        self.send_raw(encode(&message).unwrap()).await;
    }

    pub(crate) async fn send_raw(&mut self, frame: Vec<u8>) {
        self.socket
            .send(Message::Binary(frame.into()))
            .await
            .unwrap();
    }

    async fn step(&mut self) {
        let message = tokio::time::timeout(LONG, self.receive()).await;
        let message = message.expect("no message came").expect("the stream ended");
        self.apply(message).await;
    }

    /// What a router does with it.
    async fn apply(&mut self, message: FromWorker) {
        match message {
            FromWorker::Captures { .. } => self.captured = true,
            FromWorker::Start {
                generation,
                watermark,
                resumed,
                ..
            } => {
                self.place = Some((generation, watermark));
                self.resumed = resumed;
                self.say_applied().await;
            }
            FromWorker::Changes {
                generation,
                prev,
                lsn,
                cells,
                ..
            } => {
                assert_eq!(self.place, Some((generation, prev)), "a gap");
                self.raised.push(cells);
                self.place = Some((generation, lsn));
                self.say_applied().await;
            }
            FromWorker::Lease { id, lsn, .. } => self.leases.push_back((id, lsn)),
            FromWorker::BarrierDone { id, .. } => self.barriers.push_back(id),
            FromWorker::Gone { .. } => self.gone = true,
        }
    }

    async fn say_applied(&mut self) {
        if let Some((generation, lsn)) = self.place
            && !self.silent
        {
            let shard = "s1".into();
            self.send(FromRouter::Applied {
                shard,
                generation,
                lsn,
            })
            .await;
        }
    }

    async fn receive(&mut self) -> Option<FromWorker> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Binary(frame) => return Some(decode(&frame).unwrap()),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

/// Which of two workers captures the shard; its router follows it.
pub(crate) async fn whoever_captures(routers: &mut [Router; 2]) -> usize {
    let [a, b] = routers;
    let holder = tokio::select! {
        () = a.step() => 0,
        () = b.step() => 1,
    };
    routers[holder].follow().await;
    holder
}

async fn connect(
    cluster: &Cluster,
    worker: usize,
    run: RouterRun,
) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let request = request(cluster, worker, Some(cluster.stream_secret()));
    let (mut socket, _) = connect_async(request).await.unwrap();
    let hello = FromRouter::Hello {
        run,
        name: "test".into(),
    };
    let frame = encode(&hello).unwrap();
    socket.send(Message::Binary(frame.into())).await.unwrap();
    socket
}

/// The status with which the stream is refused.
pub(crate) async fn status_of(cluster: &Cluster, secret: Option<&str>) -> u16 {
    match connect_async(request(cluster, 0, secret)).await {
        Err(Error::Http(response)) => response.status().as_u16(),
        Ok(_) => 101,
        Err(error) => panic!("{error}"),
    }
}

fn request(
    cluster: &Cluster,
    worker: usize,
    secret: Option<&str>,
) -> tokio_tungstenite::tungstenite::handshake::client::Request {
    let url = cluster.worker_urls()[worker].replacen("http", "ws", 1) + PATH;
    let mut request = url.into_client_request().unwrap();
    if let Some(secret) = secret {
        let bearer = format!("Bearer {secret}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
    }
    request
}
