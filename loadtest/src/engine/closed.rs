//! The closed model: clients that send, wait for the answer, think, and send
//! again. A slow target slows the load down; that is what this model means.

use std::rc::Rc;
use std::time::Duration;

use super::StreamKind;
use super::lane::Lane;

/// How often a client that is not needed now looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// After a refused connection a client waits, or it would only count
/// refusals.
const REFUSED: Duration = Duration::from_millis(20);

/// Starts a thread's share of the clients.
pub(super) fn spawn(lane: &Rc<Lane>, stream: usize) {
    let StreamKind::Closed { profile, .. } = &lane.plan().streams[stream].kind else {
        return;
    };
    let clients = profile.peak().ceil() as usize;
    for client in (lane.thread()..clients).step_by(lane.plan().threads) {
        lane.tasks.spawn_local(run(lane.clone(), stream, client));
    }
}

async fn run(lane: Rc<Lane>, stream: usize, client: usize) {
    let StreamKind::Closed { profile, think } = &lane.plan().streams[stream].kind else {
        return;
    };
    let (mut connection, slot) = lane.connection(client / lane.plan().threads);
    let end = profile.seconds();
    tokio::time::sleep_until(lane.moment(Duration::ZERO).into()).await;
    loop {
        let now = lane.now();
        if now.as_secs_f64() >= end || lane.stop().is_cancelled() {
            return;
        }
        if profile.level(now.as_secs_f64()) <= client as f64 {
            wait(&lane, LOOK_AGAIN).await;
            continue;
        }
        lane.recorder().due(Duration::ZERO, false);
        let connected = lane.serve(&mut connection, slot, lane.draw(now)).await;
        let pause = lane.pause(*think);
        let pause = if connected { pause } else { pause.max(REFUSED) };
        if !pause.is_zero() {
            wait(&lane, pause).await;
        }
    }
}

async fn wait(lane: &Rc<Lane>, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = lane.stop().cancelled() => {}
    }
}
