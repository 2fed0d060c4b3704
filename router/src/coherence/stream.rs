//! The connections to the workers: one WebSocket each, kept open, whatever
//! comes. What is said and believed is decided in [`super::follow`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::Uri;
use tenancy::changes::{self, FRAME_MAX, FromRouter, FromWorker, WireError};
use tenancy::peer::PeerConnector;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use super::clock::Boot;
use super::follow::{Connection, Say};
use super::{Coherence, LEASE};
use crate::event::{Event, Events};

/// A lease is asked for this often, so that one lost answer ends none.
const PING_EVERY: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 4);
/// Longest wait for a connection, and for a message to leave.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A worker asks for a sign of life every 5 s; one that is silent for so long is
/// gone, whatever the connection's other end says.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Pause after a connection was lost; doubles to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Messages that may wait for a worker to read them.
const QUEUE_MAX: usize = 4_096;

/// What a router shows workers, and asks of them.
#[derive(Default)]
pub struct Access {
    /// The stream's secret.
    pub secret: Option<String>,
    /// Where set, both sides prove who they are.
    pub tls: Option<PeerConnector>,
}

/// The queues to all connected workers.
#[derive(Default)]
pub(super) struct Workers {
    queues: RwLock<HashMap<Connection, mpsc::Sender<FromRouter>>>,
    next: AtomicU64,
    /// Somebody wants a lease, and none was wanted before.
    pub(super) wake: Notify,
}

impl Workers {
    /// Says something to a worker; if it reads too slowly, its connection ends.
    pub(super) fn say(&self, connection: Connection, message: FromRouter) {
        let queues = self.queues.read().unwrap_or_else(|p| p.into_inner());
        let full = queues
            .get(&connection)
            .is_some_and(|queue| queue.try_send(message).is_err());
        drop(queues);
        if full {
            self.close(connection);
        }
    }

    fn open(&self) -> (Connection, mpsc::Receiver<FromRouter>) {
        let connection = Connection(self.next.fetch_add(1, Ordering::Relaxed));
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        let mut queues = self.queues.write().unwrap_or_else(|p| p.into_inner());
        queues.insert(connection, queue);
        (connection, messages)
    }

    fn close(&self, connection: Connection) {
        let mut queues = self.queues.write().unwrap_or_else(|p| p.into_inner());
        queues.remove(&connection);
    }

    fn connected(&self) -> usize {
        self.queues.read().unwrap_or_else(|p| p.into_inner()).len()
    }
}

impl Coherence {
    /// Keeps a stream to each of the workers that `addresses` names last
    /// (`ws://host:port` or `wss://…`), and the leases that are wanted alive.
    pub fn start(
        self: &Arc<Self>,
        addresses: watch::Receiver<Vec<String>>,
        access: Access,
        events: Arc<Events>,
        stop: CancellationToken,
    ) {
        tokio::spawn(stop.clone().run_until_cancelled_owned(self.clone().tick()));
        let streams = self
            .clone()
            .keep_streams(addresses, Arc::new(access), events, stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(streams));
    }

    /// Workers that this router is connected to.
    pub fn connected(&self) -> usize {
        self.workers.connected()
    }

    async fn tick(self: Arc<Self>) {
        let mut rounds = interval(PING_EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let for_all = tokio::select! {
                _ = rounds.tick() => true,
                () = self.workers.wake.notified() => false,
            };
            self.ask_for_leases(for_all, Boot::now());
        }
    }

    /// Asks for the leases that are wanted: in a round for all of them, between
    /// two for those that nobody had asked for. A shard that wakes up must not
    /// make all others ask again.
    fn ask_for_leases(&self, for_all: bool, now: Boot) {
        for shard in self.all() {
            let mut follow = shard.follow();
            if for_all || !follow.has_asked(now, PING_EVERY) {
                let said = follow.tick(shard.is_wanted(now), now);
                drop(follow);
                self.send(said);
            }
        }
    }

    async fn keep_streams(
        self: Arc<Self>,
        mut addresses: watch::Receiver<Vec<String>>,
        access: Arc<Access>,
        events: Arc<Events>,
        stop: CancellationToken,
    ) {
        let mut open: HashMap<String, CancellationToken> = HashMap::new();
        loop {
            let wanted = addresses.borrow_and_update().clone();
            open.retain(|address, stop| {
                let kept = wanted.contains(address);
                if !kept {
                    stop.cancel();
                }
                kept
            });
            for address in wanted {
                if open.contains_key(&address) {
                    continue;
                }
                let ended = stop.child_token();
                open.insert(address.clone(), ended.clone());
                let stream = self.clone().keep(address, access.clone(), events.clone());
                tokio::spawn(ended.run_until_cancelled_owned(stream));
            }
            if addresses.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// One worker's stream, opened again whenever it ends.
    async fn keep(self: Arc<Self>, address: String, access: Arc<Access>, events: Arc<Events>) {
        let mut pause = PAUSE_FIRST;
        loop {
            let opened = Instant::now();
            let error = match connect(&address, &access).await {
                Ok(socket) => {
                    let (connection, messages) = self.workers.open();
                    let _open = Open(&self, connection);
                    events.emit(&Event::StreamOpened { worker: &address });
                    self.run(connection, socket, messages).await
                }
                Err(error) => error,
            };
            if opened.elapsed() > PAUSE_MAX {
                pause = PAUSE_FIRST;
            }
            events.emit(&Event::StreamLost {
                worker: &address,
                error: tenancy::chain(&error),
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Hears and says until the connection ends.
    async fn run(
        &self,
        connection: Connection,
        socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>,
        mut messages: mpsc::Receiver<FromRouter>,
    ) -> StreamError {
        let (mut sink, mut source) = socket.split();
        let hear = async {
            loop {
                let Ok(next) = timeout(SILENT_MAX, source.next()).await else {
                    return StreamError::Silent;
                };
                match next {
                    Some(Ok(Message::Binary(frame))) => match changes::decode(&frame) {
                        Ok(message) => self.hear(connection, message),
                        Err(error) => return StreamError::Wire(error),
                    },
                    Some(Ok(Message::Close(_))) | None => return StreamError::Closed,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return StreamError::Socket(Box::new(error)),
                }
            }
        };
        let say = async {
            let hello = FromRouter::Hello {
                run: self.run,
                name: self.name.clone(),
            };
            let mut next = Some(hello);
            while let Some(message) = next {
                let frame = match changes::encode(&message) {
                    Ok(frame) => Message::Binary(frame.into()),
                    Err(error) => return StreamError::Wire(error),
                };
                // Feeding waits, too, once much has been fed.
                match timeout(CONNECT_MAX, sink.feed(frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return StreamError::Socket(Box::new(error)),
                    Err(_) => return StreamError::Slow,
                }
                // What waits already goes out in one packet.
                next = match messages.try_recv() {
                    Ok(message) => Some(message),
                    Err(_) => {
                        match timeout(CONNECT_MAX, sink.flush()).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => return StreamError::Socket(Box::new(error)),
                            Err(_) => return StreamError::Slow,
                        }
                        messages.recv().await
                    }
                };
            }
            StreamError::Slow
        };
        tokio::select! {
            error = hear => error,
            error = say => error,
        }
    }

    fn hear(&self, from: Connection, message: FromWorker) {
        let now = Boot::now();
        let said = match message {
            FromWorker::Captures { shard, generation } => {
                self.tell(&shard, |follow| follow.captures(from, generation, now))
            }
            FromWorker::Start {
                shard,
                generation,
                watermark,
                resumed,
            } => self.tell(&shard, |follow| {
                follow.start(from, generation, watermark, resumed, now)
            }),
            FromWorker::Changes {
                shard,
                generation,
                prev,
                lsn,
                cells,
            } => self.tell(&shard, |follow| {
                follow.changes(from, generation, prev, lsn, &cells, now)
            }),
            FromWorker::Lease {
                shard,
                id,
                generation,
                lsn,
            } => self.tell(&shard, |follow| {
                follow.lease(from, id, generation, lsn, now);
                Vec::new()
            }),
            FromWorker::BarrierDone { shard: _, id } => {
                self.barriers.done(id);
                Vec::new()
            }
            FromWorker::Gone { shard } => self.tell(&shard, |follow| follow.gone(from, now)),
        };
        self.send(said);
    }

    /// Lets a shard's state machine decide, and shows requests what it believes.
    fn tell(
        &self,
        shard: &tenancy::id::ShardId,
        decide: impl FnOnce(&mut super::follow::Follow) -> Say,
    ) -> Say {
        let shard = self.shard(shard);
        let mut follow = shard.follow();
        let said = decide(&mut follow);
        let shown = shard.view.load();
        let same = match (&*shown, follow.view()) {
            (Some(shown), Some(view)) => Arc::ptr_eq(shown, view),
            (None, None) => true,
            _ => false,
        };
        if !same {
            shard.view.store(follow.view().cloned());
        }
        said
    }

    fn send(&self, said: Say) {
        for (connection, message) in said {
            self.workers.say(connection, message);
        }
    }
}

/// A connection's place among the queues; with it go its claims.
struct Open<'a>(&'a Coherence, Connection);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let Self(coherence, connection) = *self;
        coherence.workers.close(connection);
        let now = Boot::now();
        for shard in coherence.all() {
            let said = shard.follow().gone(connection, now);
            coherence.send(said);
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(address: &str, access: &Access) -> Result<Socket, StreamError> {
    let wrong = |error| StreamError::Socket(Box::new(error));
    let base = address.trim_end_matches('/');
    let url = match base.ends_with(changes::PATH) {
        true => base.to_owned(),
        false => format!("{base}{}", changes::PATH),
    };
    let mut request = url.into_client_request().map_err(wrong)?;
    if let Some(secret) = &access.secret {
        let bearer = format!("Bearer {secret}").try_into();
        let bearer = bearer.map_err(|_| StreamError::Secret)?;
        request.headers_mut().insert("authorization", bearer);
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(FRAME_MAX))
        .max_frame_size(Some(FRAME_MAX));
    // A barrier's small frames must not wait for each other's acknowledgement.
    let connect = async {
        let (socket, _) = match &access.tls {
            None => tokio_tungstenite::connect_async_with_config(request, Some(limits), true)
                .await
                .map_err(wrong)?,
            Some(tls) => {
                let socket = MaybeTlsStream::Rustls(encrypted(tls, request.uri()).await?);
                tokio_tungstenite::client_async_with_config(request, socket, Some(limits))
                    .await
                    .map_err(wrong)?
            }
        };
        Ok(socket)
    };
    let connected = timeout(CONNECT_MAX, connect).await;
    connected.unwrap_or(Err(StreamError::Slow))
}

/// A connection to who proved to be a worker.
async fn encrypted(tls: &PeerConnector, to: &Uri) -> Result<TlsStream<TcpStream>, StreamError> {
    let (Some("wss"), Some(host)) = (to.scheme_str(), to.host()) else {
        return Err(StreamError::Plain);
    };
    let host = host.trim_matches(['[', ']']);
    let socket = TcpStream::connect((host, to.port_u16().unwrap_or(443))).await;
    let socket = socket.map_err(StreamError::Tls)?;
    socket.set_nodelay(true).map_err(StreamError::Tls)?;
    tls.connect(socket).await.map_err(StreamError::Tls)
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the worker closed it")]
    Closed,
    #[error("the worker does not answer or read in time")]
    Slow,
    #[error("the worker is silent")]
    Silent,
    #[error("its address is not encrypted (wss://), and cache.stream_tls is set")]
    Plain,
    #[error("no encrypted connection")]
    Tls(#[source] std::io::Error),
    #[error("the stream secret can't be sent in a header")]
    Secret,
    #[error(transparent)]
    Wire(WireError),
    #[error(transparent)]
    Socket(Box<tungstenite::Error>),
}

#[cfg(test)]
mod tests {
    use tenancy::changes::Lsn;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    /// Runs a stream to a worker that reads nothing, with `said` to say; until it
    /// ends, by a clock that jumps to what is waited for.
    async fn ends_after(wire_bytes: usize, said: usize) -> (StreamError, Duration) {
        let coherence = Coherence::new("router-1".into());
        let (near, _far) = tokio::io::duplex(wire_bytes);
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let (connection, messages) = coherence.workers.open();
        for id in 0..said as u64 {
            let barrier = FromRouter::Barrier {
                shard: "shard-of-a-long-name-so-that-much-has-to-be-sent".into(),
                id,
                system: u64::MAX,
                timeline: u32::MAX,
                lsn: Lsn(u64::MAX),
            };
            coherence.workers.say(connection, barrier);
        }
        let begun = Instant::now();
        let error = coherence.run(connection, socket, messages).await;
        (error, begun.elapsed())
    }

    #[test]
    fn a_shard_that_wakes_up_makes_no_other_ask_again() {
        let coherence = Coherence::new("router-1".into());
        let (connection, mut messages) = coherence.workers.open();
        let generation = tenancy::changes::Generation {
            system: 7,
            timeline: 1,
            incarnation: 1,
        };
        let at = |ms: u64| Boot::from_nanos(1_000_000 * ms);
        let [busy, sleeper] = ["s1", "s2"].map(|id| coherence.shard(&id.into()));
        for shard in [&busy, &sleeper] {
            let mut follow = shard.follow();
            follow.captures(connection, generation, at(1));
            follow.start(connection, generation, Lsn(1), false, at(1));
        }
        let mut pinged = |for_all: bool, now: Boot| {
            coherence.ask_for_leases(for_all, now);
            let mut shards = Vec::new();
            while let Ok(message) = messages.try_recv() {
                if let FromRouter::Ping { shard, .. } = message {
                    shards.push(shard.to_string());
                }
            }
            shards.sort();
            shards.join(" ")
        };
        coherence.wanted(&busy, at(10));
        assert_eq!(pinged(true, at(10)), "s1");
        busy.follow()
            .lease(connection, 0, generation, Lsn(1), at(11));
        coherence.wanted(&busy, at(20));
        coherence.wanted(&sleeper, at(20));
        assert_eq!(pinged(false, at(20)), "s2");
        assert_eq!(pinged(false, at(21)), "");
        // A round that comes early asks all the same: a lease must not wait for
        // the next.
        assert_eq!(pinged(true, at(70)), "s1 s2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_nothing_is_left() {
        let (error, after) = ends_after(1 << 20, 0).await;
        assert!(matches!(error, StreamError::Silent), "{error}");
        assert!(after >= SILENT_MAX && after < SILENT_MAX * 2, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_reads_nothing_is_left_sooner() {
        // With little to say it is the flush that waits, with much the feeding.
        for said in [1, QUEUE_MAX - 1] {
            let (error, after) = ends_after(16, said).await;
            assert!(matches!(error, StreamError::Slow), "{said}: {error}");
            assert!(after < SILENT_MAX, "{said}: {after:?}");
        }
    }
}
