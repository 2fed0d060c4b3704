//! `/admin/v1/jobs`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::error::Error;
use crate::job::JobInfo;
use crate::job::store::{self, Wanted};

/// A look at a watched job, should news be lost.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    open: Option<bool>,
    kind: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct Jobs {
    items: Vec<JobInfo>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<List>, QueryRejection>,
) -> Result<Json<Jobs>, Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let wanted = Wanted {
        open: query.open.unwrap_or(false),
        kind: query.kind.as_deref(),
        limit: query.limit.unwrap_or(50),
    };
    let items = store::list(&app.control, &wanted).await?;
    Ok(Json(Jobs { items }))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(job): Path<String>,
) -> Result<Json<JobInfo>, Error> {
    Ok(Json(store::show(&app.control, id(&job)?).await?))
}

/// Asks for the job's end; its answer shows whether that was possible later on.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(job): Path<String>,
) -> Result<Json<JobInfo>, Error> {
    Ok(Json(store::cancel(&app.control, &actor, id(&job)?).await?))
}

/// Has a job that waits for a person go on.
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(job): Path<String>,
) -> Result<Json<JobInfo>, Error> {
    Ok(Json(store::retry(&app.control, &actor, id(&job)?).await?))
}

/// The job now and after each transition, as server-sent events named `job`,
/// until it is over.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Path(job): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Error> {
    let id = id(&job)?;
    let place = app.job_watchers.clone().try_acquire_owned();
    let watcher = Watcher {
        _place: place.map_err(|_| Error::TooManyWatchers)?,
        first: Some(store::show(&app.control, id).await?),
        news: app.job_news.subscribe(),
        seen: (0, String::new()),
        over: false,
        app,
        id,
    };
    let stream = futures_util::stream::unfold(watcher, Watcher::next);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// Someone who watches a job.
struct Watcher {
    app: Arc<App>,
    id: Uuid,
    news: watch::Receiver<u64>,
    first: Option<JobInfo>,
    seen: (i64, String),
    over: bool,
    /// One of a bounded number.
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if self.over {
                return None;
            }
            let job = match self.first.take() {
                Some(job) => Ok(job),
                None => {
                    let _ = tokio::time::timeout(LOOK, self.news.changed()).await;
                    store::show(&self.app.control, self.id).await
                }
            };
            // A control database that is away for a while is no reason to hang up.
            let Ok(job) = job else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let now = (job.revision, job.status.clone());
            if now == self.seen {
                continue;
            }
            self.seen = now;
            self.over = job.done;
            let data = serde_json::to_string(&job).unwrap_or_default();
            return Some((Ok(Event::default().event("job").data(data)), self));
        }
    }
}

fn id(job: &str) -> Result<Uuid, Error> {
    Uuid::parse_str(job).map_err(|_| Error::BadRequest(format!("{job} is no job's id")))
}
