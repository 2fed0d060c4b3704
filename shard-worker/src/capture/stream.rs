//! A router's stream: reads what it asks, writes what it is owed. A router that
//! does not read is cut off, and comes back to resume or to begin anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tenancy::changes::{
    FRAME_MAX, FromRouter, FromWorker, Generation, Lsn, RouterRun, decode, encode,
};
use tenancy::id::ShardId;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::outlet::{Outlet, Waiting};
use super::{Capture, metric};
use crate::app::App;
use crate::error::Error;

/// Longest wait for a router's first message.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a router to take a message.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// How often a router is asked for a sign of life.
const ALIVE: Duration = Duration::from_secs(5);
/// A router that was silent for this long is gone.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// Where the router is, shard by shard.
type Positions = BTreeMap<ShardId, (Generation, Lsn)>;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the router closed it")]
    Closed,
    #[error("the router did not say hello")]
    NoHello,
    #[error("the router sent what is no message: {0}")]
    Wire(#[from] tenancy::changes::WireError),
    #[error("the connection broke: {0}")]
    Broken(#[from] axum::Error),
    #[error("the router does not read")]
    Slow,
    #[error("the router is silent")]
    Silent,
}

/// `GET /changes`.
pub(crate) async fn upgrade(State(app): State<Arc<App>>, request: Request) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let known = app.capture.secret.as_deref().map(str::as_bytes);
    match (given, known) {
        (Some(given), Some(known)) if verify_slices_are_equal(given, known).is_ok() => {}
        _ => return Error::Unauthorized.into_response(),
    }
    let (mut parts, _) = request.into_parts();
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade
            .max_message_size(FRAME_MAX)
            .max_frame_size(FRAME_MAX)
            .on_upgrade(move |socket| serve(app.capture.clone(), socket)),
        Err(rejection) => rejection.into_response(),
    }
}

async fn serve(capture: Arc<Capture>, socket: WebSocket) {
    let Some(outlet) = capture.outlets.open() else {
        tracing::warn!("too many streams: a router was turned away");
        return;
    };
    let (mut write, mut read) = socket.split();
    let end = tokio::select! {
        () = capture.stop.cancelled() => End::Closed,
        end = talk(&capture, &outlet, &mut read, &mut write) => end,
    };
    capture.outlets.close(outlet.connection);
    for shard in capture.all() {
        shard.forget(outlet.connection);
    }
    match end {
        End::Closed => tracing::debug!("a router's stream ended"),
        End::Slow => {
            metric::cut_off();
            tracing::warn!("a router's stream ended: {end}");
        }
        _ => tracing::info!("a router's stream ended: {end}"),
    }
    let _ = timeout(WRITE_MAX, write.send(Message::Close(None))).await;
}

async fn talk(
    capture: &Capture,
    outlet: &Arc<Outlet>,
    read: &mut SplitStream<WebSocket>,
    write: &mut SplitSink<WebSocket, Message>,
) -> End {
    let hello = timeout(HELLO_MAX, next(read)).await;
    let run = match hello {
        Ok(Ok(FromRouter::Hello { run, name })) => {
            tracing::debug!(name, "a router opened its stream");
            run
        }
        Ok(Err(end)) => return end,
        Ok(Ok(_)) | Err(_) => return End::NoHello,
    };
    for shard in capture.all() {
        shard.introduce(outlet);
    }
    // Reading does not wait for writing: what a slow router has applied counts.
    tokio::select! {
        end = listen(capture, outlet, run, read) => end,
        end = tell(capture, outlet, write) => end,
    }
}

async fn listen(
    capture: &Capture,
    outlet: &Arc<Outlet>,
    run: RouterRun,
    read: &mut SplitStream<WebSocket>,
) -> End {
    loop {
        let message = match next(read).await {
            Ok(message) => message,
            Err(end) => return end,
        };
        let (FromRouter::Follow { shard, .. }
        | FromRouter::Ping { shard, .. }
        | FromRouter::Applied { shard, .. }
        | FromRouter::Barrier { shard, .. }) = &message
        else {
            return End::NoHello;
        };
        let Some(known) = capture.shard(shard) else {
            outlet.reply(FromWorker::Gone {
                shard: shard.clone(),
            });
            continue;
        };
        match message {
            FromRouter::Follow { resume, .. } => {
                let answer = known.follow(outlet, run, resume);
                outlet.reply(answer);
            }
            FromRouter::Ping { id, .. } => known.ping(outlet, run, id),
            FromRouter::Applied {
                generation, lsn, ..
            } => known.applied(run, generation, lsn),
            FromRouter::Barrier {
                id,
                system,
                timeline,
                lsn,
                ..
            } => known.barrier(outlet.connection, id, (system, timeline), lsn),
            FromRouter::Hello { .. } => return End::NoHello,
        }
    }
}

/// The next message. Signs of life are none, but end the silence.
async fn next(read: &mut SplitStream<WebSocket>) -> Result<FromRouter, End> {
    loop {
        let frame = timeout(SILENT_MAX, read.next()).await;
        match frame.map_err(|_| End::Silent)?.ok_or(End::Closed)?? {
            Message::Binary(frame) => return Ok(decode(&frame)?),
            Message::Close(_) => return Err(End::Closed),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Text(_) => return Err(End::NoHello),
        }
    }
}

async fn tell(
    capture: &Capture,
    outlet: &Outlet,
    write: &mut SplitSink<WebSocket, Message>,
) -> End {
    let mut positions = Positions::new();
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let told = tokio::select! {
            waiting = outlet.take() => tell_all(capture, waiting, write, &mut positions).await,
            _ = alive.tick() => write_frame(write, Message::Ping(Default::default())).await,
        };
        if let Err(end) = told {
            return end;
        }
    }
}

async fn tell_all(
    capture: &Capture,
    waiting: Waiting,
    write: &mut SplitSink<WebSocket, Message>,
    positions: &mut Positions,
) -> Result<(), End> {
    if waiting.overflown {
        return Err(End::Slow);
    }
    for reply in &waiting.replies {
        // The changes that a lease rests on go before it.
        if let FromWorker::Lease { shard, .. } = reply {
            tell_changes(capture, shard, write, positions).await?;
        }
        send(write, reply, positions).await?;
    }
    for shard in &waiting.shards {
        tell_changes(capture, shard, write, positions).await?;
    }
    Ok(())
}

async fn tell_changes(
    capture: &Capture,
    id: &ShardId,
    write: &mut SplitSink<WebSocket, Message>,
    positions: &mut Positions,
) -> Result<(), End> {
    let Some(shard) = capture.shard(id) else {
        return Ok(());
    };
    while let Some(position) = positions.get(id)
        && let Some(message) = shard.next(*position)
    {
        send(write, &message, positions).await?;
    }
    Ok(())
}

/// Sends a message, and keeps the position that it leaves the router at.
async fn send(
    write: &mut SplitSink<WebSocket, Message>,
    message: &FromWorker,
    positions: &mut Positions,
) -> Result<(), End> {
    match message {
        FromWorker::Start {
            shard,
            generation,
            watermark,
            ..
        } => {
            positions.insert(shard.clone(), (*generation, *watermark));
        }
        FromWorker::Changes {
            shard,
            generation,
            lsn,
            ..
        } => {
            positions.insert(shard.clone(), (*generation, *lsn));
        }
        FromWorker::Gone { shard } => {
            positions.remove(shard);
        }
        FromWorker::Captures { .. } | FromWorker::Lease { .. } | FromWorker::BarrierDone { .. } => {
        }
    }
    write_frame(write, Message::Binary(encode(message)?.into())).await
}

async fn write_frame(write: &mut SplitSink<WebSocket, Message>, frame: Message) -> Result<(), End> {
    match timeout(WRITE_MAX, write.send(frame)).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(End::Slow),
    }
}
