//! A request, from its headers to its answer: the only caller of the stages.
//!
//! ApiRequest → TenantContext → Placement → Plan → connection → Statement →
//! rows → Response. Each stage takes values and returns a value or an error,
//! and none calls the next. A request that its shard refuses for its placement
//! waits off the pools and enters again at Placement.

mod cached;
mod serve;
mod visible;

pub(crate) use cached::Filled;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use telemetry::trace::{CHILDREN_MAX, Parent, Place};
use tenancy::auth::TenantContext;
use tenancy::quota;
use tokio::time::{Instant as Deadline, timeout_at};

use crate::app::{Admission, App};
use crate::cache::control::Control;
use crate::cache::key::Key;
use crate::cache::shared::Patience;
use crate::cache::{Level, label};
use crate::config::{Api, Limits};
use crate::error::{Error, Hidden, Refusal};
use crate::event::access_log::add_milliseconds;
use crate::event::{Did, Event, HoldReason, KeyUse, RequestDone, Route, Slow, Source};
use crate::execute::{ExecuteError, guarded_read};
use crate::guard::{self, Visible};
use crate::hold::Held;
use crate::http::outgoing::Beyond;
use crate::idempotency::{self, Keep};
use crate::placement::{self, Moved, Target};
use crate::plan::{self, Form, Model, Plan};
use crate::quota::Pass;
use crate::request::body;
use crate::request::{ApiRequest, RequestParts};
use crate::response::{self, Row, cors};
use crate::shards::Loaded;
use crate::sql;
use crate::tag;
use crate::tenant;
use crate::token::{self, Token};
use serve::{Failed, Served, Work};

/// Answers one request, and observes it.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let started = Instant::now();
    let (admission, _in_flight) = app.admit();
    let (head, body) = request.into_parts();
    let id = app.request_id(&head.headers);
    let origins = &app.config.api.cors_origins;
    if let Some(preflight) = cors::preflight(origins, &head.method, &head.headers) {
        return preflight.map(Body::from);
    }
    let mut seen = Seen::of(app.events.tracer.begin(Parent::of(&head.headers)));
    let path = path_behind(&app.config.api.rest_prefix, head.uri.path());
    let incoming = Incoming {
        method: &head.method,
        path: path.unwrap_or(head.uri.path()),
        query: head.uri.query().unwrap_or_default(),
        headers: &head.headers,
        deadline: Deadline::now() + app.config.limits.request(),
    };
    let answered = match path {
        Some(_) if admission == Admission::Full => answer(&app, &incoming, body, &mut seen).await,
        Some(_) => spare(&app, admission, &incoming, &mut seen).await,
        None => Err(Error::Path),
    };
    let answered = match answered {
        // Only what the shard itself says of the second try settles the first.
        Err(error) if seen.unknown && !error.is_the_shards() => Err(Error::OutcomeUnknown),
        other => other,
    };
    let mut response = answered.unwrap_or_else(|error| {
        let response = error.response(head.method == Method::HEAD);
        seen.code = Some(error.report().code.into_owned());
        seen.fault = error.fault();
        if response.status().is_server_error() {
            let causes = tenancy::chain(&error);
            tracing::warn!(request_id = &*id, error = causes, "request failed");
        }
        response
    });
    if let Some(pass) = &seen.pass {
        let busy = seen.stages.spent(Stage::Transaction);
        let bytes = response.body().len() as u64;
        pass.answered(response.status(), seen.rows, bytes, busy);
        pass.tell(response.headers_mut());
    }
    response = tag::conditional(&head.method, &head.headers, response);
    if response.status() == StatusCode::NOT_MODIFIED {
        app.events.emit(&Event::NotModified);
    }
    response = outgoing(&app, &head.method, &mut seen, response);
    seen.stages.finish(&mut response, &id);
    if let Some(token) = seen.token.map(|token| token.to_string().try_into()) {
        let name = HeaderName::from_static(token::HEADER);
        response
            .headers_mut()
            .extend(token.map(|value| (name, value)).ok());
    }
    cors::allow(origins, &head.headers, response.headers_mut());
    if app.is_draining() && head.version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    let took = started.elapsed();
    let slow = app.config.log.is_slow(took).then(|| Slow {
        statement: seen.statement.as_deref(),
        stages: seen.stages.all().collect(),
    });
    app.events.emit(&Event::Answered(&RequestDone {
        id: &id,
        tenant: seen.tenant,
        shard: seen.shard.as_deref(),
        method: &head.method,
        path: head.uri.path(),
        route: route(incoming.path),
        from: seen.from,
        status: response.status(),
        code: seen.code.as_deref(),
        took,
        bytes: response.body().len(),
        slow,
        trace: seen.trace.as_ref(),
        did: seen.stages.did.as_deref().unwrap_or_default(),
        statement: seen.statement.as_deref(),
        fault: seen.fault,
    }));
    response.map(Body::from)
}

/// Too much is in flight, but what is in memory waits for nothing.
async fn spare(
    app: &Arc<App>,
    admission: Admission,
    incoming: &Incoming<'_>,
    seen: &mut Seen,
) -> Result<http::Response<Bytes>, Error> {
    if admission == Admission::FromMemory && cached::may_be_at_once(app, incoming) {
        let (tenant, own) = authenticate(app, incoming, seen).await?;
        let known = cached::known(app, incoming, &tenant, &own, seen);
        if let Some(hit) = known.and_then(|known| cached::at_once(app, &known, seen)) {
            app.events.metrics.spared.increment(1);
            return Ok(hit);
        }
    }
    app.events.metrics.shed.increment(1);
    Err(Error::Overloaded)
}

/// The answer, counted until its client has taken it. There is no room for a read's?
/// Then it is refused, unless it comes out of memory, where it was already.
fn outgoing(
    app: &App,
    method: &Method,
    seen: &mut Seen,
    mut response: http::Response<Bytes>,
) -> http::Response<Bytes> {
    let beyond = match *method {
        Method::GET | Method::HEAD if seen.from != Source::Memory => Beyond::Refused,
        _ => Beyond::Given,
    };
    let body = std::mem::take(response.body_mut());
    match app.outgoing.hold(body, beyond) {
        Some(body) => {
            *response.body_mut() = body;
            response
        }
        None => {
            app.events.metrics.shed.increment(1);
            let error = Error::Overloaded;
            seen.code = Some(error.report().code.into_owned());
            error.response(false)
        }
    }
}

/// Whose request it is, within its limits.
async fn authenticate(
    app: &App,
    incoming: &Incoming<'_>,
    seen: &mut Seen,
) -> Result<(TenantContext, quota::Limits), Error> {
    let tenant = tenant::identify(app, incoming.headers, incoming.deadline).await?;
    seen.tenant = Some(tenant.tenant().0);
    let own = app.placements.load().limits(tenant.tenant());
    let pass = app.quotas.admit(tenant.tenant().0, own);
    seen.pass = Some(pass.inspect_err(|limited| app.events.emit(&Event::Limited(*limited)))?);
    seen.stages.mark(Stage::Auth);
    Ok((tenant, own))
}

/// The stages, in order.
async fn answer(
    app: &Arc<App>,
    incoming: &Incoming<'_>,
    body: Body,
    seen: &mut Seen,
) -> Result<http::Response<Bytes>, Error> {
    app.retries.earn();
    let (tenant, own) = authenticate(app, incoming, seen).await?;
    let mut looked = None;
    // Boxed: their state is large, and what memory answers need not carry it about.
    if let Some(known) = cached::known(app, incoming, &tenant, &own, seen) {
        if let Some(hit) = cached::at_once(app, &known, seen) {
            return Ok(hit);
        }
        match Box::pin(cached::from_redis(app, &known, seen)).await {
            Ok(hit) => return Ok(hit),
            Err(asked) => looked = asked,
        }
    }
    Box::pin(planned(app, incoming, body, (&tenant, own), looked, seen)).await
}

/// The stages from the request's parsing on. `looked`: what is left of its wait for
/// Redis, where that was asked in vain.
async fn planned(
    app: &Arc<App>,
    incoming: &Incoming<'_>,
    body: Body,
    (tenant, own): (&TenantContext, quota::Limits),
    mut looked: Option<Patience>,
    seen: &mut Seen,
) -> Result<http::Response<Bytes>, Error> {
    let request = ApiRequest::parse(&incoming.parts(), &app.config.api)?;
    let bounds = &app.config.limits;
    let body_max = least(bounds.body_bytes_max, own.request_bytes);
    let body = read_body(body, bounds, body_max, incoming.deadline).await?;
    let api = limited_api(&app.config.api, &own);
    let mut key = match request.method.writes() {
        true => Keep::read(
            &incoming.parts(),
            &body,
            tenant.claims(),
            &app.config.limits,
        )?,
        false => None,
    };
    let payload = body::parse(&request, incoming.content_type(), body)?;
    seen.stages.mark(Stage::Parse);

    let mut moved = None;
    let mut held = None;
    // Newer placements were waited for.
    let mut refreshed = false;
    let mut replanned = 0;
    let mut lost = 0;
    let mut answered_before = false;
    loop {
        let target = placement::locate(app, tenant.tenant(), moved.as_ref())?;
        seen.shard = Some(target.shard.id.clone());
        let Some(loaded) = target.shard.loaded() else {
            // This router, or the shard, has just begun.
            let stay = seat(app, &mut held, tenant, incoming.deadline)?;
            wait(app, stay, HoldReason::NoSchema, &target).await?;
            seen.stages.mark(Stage::Hold);
            continue;
        };
        let model = loaded.model.clone();
        let plan = plan::plan(&model, &api, &request, &payload)?;
        let keep = key.as_ref().filter(|_| plan.form == Form::Write);
        // What is kept is text.
        if keep.is_some() && plan.handler.is_some() {
            return Err(Error::NotImplemented(
                "Idempotency-Key with a media type of the application's own.",
            ));
        }
        let statement = match keep {
            Some(keep) if answered_before => Some(keep.kept()),
            keep => sql::statement(&plan, keep, Some(bytes_max(bounds, &own))),
        };
        let Some(statement) = statement else {
            return response::without_rows(&app.config.api, &request, &plan);
        };
        seen.stages.mark(Stage::Plan);

        let mut guard = guard::guard(
            tenant,
            target.epoch,
            &request,
            &incoming.visible(),
            model.catalog(),
            &app.config.api,
            &plan,
        );
        guard.claim = keep.filter(|_| !answered_before).map(Keep::claim);
        let answer_max = answer_max(bounds, &own, plan.form);
        let application = seen.recorded().map(guard::application);
        let work = Work {
            app,
            target: &target,
            tenant,
            guard,
            statement: &statement,
            wanted: request.wanted(),
            deadline: statement_deadline(&own, incoming.deadline),
            answer_max,
            application,
            looked: looked.take(),
        };
        let done = match request.method.reads() {
            true => read(&work, incoming, &request, &plan, &loaded, &own, seen).await,
            false => match change(&work, &plan, &request, seen).await {
                // It expired since it was found.
                Ok(served) if answered_before && served.answer.number("page").is_none() => {
                    answered_before = false;
                    continue;
                }
                done => done.map(|served| {
                    let row = Row::read(&served.answer);
                    made(&work, &request, &plan, row, seen)
                }),
            },
        };
        if seen.recorded().is_some() || app.config.log.is_slow(seen.stages.total()) {
            seen.statement = Some(match plan.form {
                Form::Read => guarded_read(&statement.text),
                Form::ReadOnlyTransaction | Form::Write | Form::WriteAndRollBack => statement.text,
            });
        }
        let why = match done {
            Ok(mut made) => {
                if answered_before {
                    app.events.emit(&Event::Key(KeyUse::Replayed));
                    made = made.map(idempotency::replayed);
                }
                seen.stages.mark(Stage::Response);
                return made;
            }
            // The model may be older than the schema: again, if there is a newer
            // one. Nothing was written, and what failed is not repeated.
            Err(Failed::Execute(error))
                if error.may_be_stale_plan() && replanned < REPLANNED_MAX =>
            {
                replanned += 1;
                let until = incoming.deadline.min(Deadline::now() + SCHEMA_LOOK_MAX);
                target.shard.look_at_schema(until).await;
                let now = target.shard.loaded();
                if now.is_some_and(|now| !now.is_of_the_same_schema(&loaded)) {
                    continue;
                }
                return Err(failed(error, tenant, &model, &plan, answer_max));
            }
            // Once more, and no more: the statement itself might be what kills the node.
            Err(Failed::Execute(error))
                if error.is_the_nodes() && lost < LOST_MAX && app.may_retry() =>
            {
                lost += 1;
                Refused::NoPrimary
            }
            // Under its key a write can be tried again: it finds what became of it.
            Err(Failed::Execute(ExecuteError::Unknown)) if keep.is_some() && lost < LOST_MAX => {
                lost += 1;
                seen.unknown = true;
                app.events.emit(&Event::Key(KeyUse::Resolved));
                Refused::NoPrimary
            }
            Err(Failed::Execute(error)) => match refused_placement(&error) {
                Some(why) => why,
                None => {
                    if error.sqlstate() == Some(idempotency::OTHER_REQUEST) {
                        if let Some(earlier) = keep.and_then(Keep::earlier) {
                            key = Some(earlier);
                            continue;
                        }
                        app.events.emit(&Event::Key(KeyUse::Refused));
                    }
                    return Err(failed(error, tenant, &model, &plan, answer_max));
                }
            },
            Err(Failed::NoPrimary) => Refused::NoPrimary,
            Err(Failed::LostWrite { token, left_at }) => {
                return Err(Error::LostWrite {
                    timeline: token.generation.timeline,
                    lsn: token.lsn,
                    left_at,
                });
            }
            Err(Failed::Busy) => return Err(Error::Overloaded),
            Err(Failed::Limited(limited)) => {
                app.events.emit(&Event::Limited(limited));
                return Err(limited.into());
            }
        };
        seen.stages.mark(Stage::Transaction);
        let reason = match why {
            Refused::Answered => {
                answered_before = true;
                continue;
            }
            Refused::SameKey => HoldReason::SameKey,
            Refused::Suspended => return Err(Error::Suspended),
            Refused::Moved(to) => {
                // Followed at once: only a shard that is not known yet is waited for.
                let known = app.shards.get(&to.shard).is_some();
                let newer = moved.as_ref().is_none_or(|m: &Moved| to.epoch > m.epoch);
                if newer {
                    moved = Some(to);
                    if known {
                        continue;
                    }
                }
                HoldReason::Moved
            }
            // Where a shard sent the request to, the tenant may not have arrived yet.
            Refused::Unknown if moved.is_some() => HoldReason::Moved,
            Refused::Unknown if refreshed => return Err(Error::NoTenant),
            Refused::Unknown | Refused::Stale => HoldReason::StalePlacement,
            Refused::Fenced => HoldReason::Fenced,
            Refused::NoPrimary => HoldReason::NoPrimary,
        };
        let stay = seat(app, &mut held, tenant, incoming.deadline)?;
        wait(app, stay, reason, &target).await?;
        refreshed |= reason == HoldReason::StalePlacement;
        seen.stages.mark(Stage::Hold);
    }
}

/// Where the tenant may see fewer rows at once than others, the planner is told so.
fn limited_api<'a>(api: &'a Api, own: &quota::Limits) -> Cow<'a, Api> {
    let Some(rows) = own.rows.map(u64::from) else {
        return Cow::Borrowed(api);
    };
    let rows_max = Some(api.rows_max.map_or(rows, |max| max.min(rows)));
    Cow::Owned(Api {
        rows_max,
        ..api.clone()
    })
}

/// How long the shard may take from now on.
fn statement_deadline(own: &quota::Limits, deadline: Deadline) -> Deadline {
    let own = own.statement_ms.map(u64::from).map(Duration::from_millis);
    own.map_or(deadline, |own| deadline.min(Deadline::now() + own))
}

/// Bytes at most of an answer's body that are read. What was written is not kept from
/// its writer: its statement refuses to write what would answer more.
fn answer_max(bounds: &Limits, own: &quota::Limits, form: Form) -> usize {
    match form.writes() {
        true => usize::MAX,
        false => bytes_max(bounds, own),
    }
}

/// Bytes at most of an answer's body.
fn bytes_max(bounds: &Limits, own: &quota::Limits) -> usize {
    least(bounds.response_bytes_max, own.response_bytes)
}

fn least(bound: usize, own: Option<u32>) -> usize {
    let own = own.and_then(|own| usize::try_from(own).ok());
    own.map_or(bound, |own| bound.min(own))
}

/// Longest wait for a look at the shard's schema.
const SCHEMA_LOOK_MAX: Duration = Duration::from_secs(5);

/// Stages 5 to 9 of a read: from a cache, or from the shard.
async fn read(
    work: &Work<'_>,
    incoming: &Incoming<'_>,
    request: &ApiRequest,
    plan: &Plan,
    loaded: &Loaded,
    own: &quota::Limits,
    seen: &mut Seen,
) -> Result<Result<http::Response<Bytes>, Error>, Failed> {
    let app = work.app;
    let question = cached::question(
        app,
        work.tenant,
        work.target,
        loaded,
        plan,
        work.statement,
        &work.guard,
    );
    let control = Control::parse(incoming.headers);
    let stages = &mut seen.stages;
    let (got, question) = match question.map(Arc::new) {
        None => (cached::direct(work, stages, Level::Bypassed).await?, None),
        Some(question) => {
            let got = cached::read(&question, work, &control, stages).await?;
            (got, Some(question))
        }
    };
    seen.from = got.level.into();
    let old = got.hit.as_ref().and_then(|hit| hit.old);
    let made = made(work, request, plan, got.row, seen);
    Ok(made.map(|mut made| {
        if let Some(question) = question.filter(|_| got.hit.is_some() && request.token.is_none()) {
            let key = Key::of_request(
                work.tenant,
                work.target.epoch,
                loaded.model.catalog(),
                incoming.method,
                incoming.path,
                incoming.query,
                incoming.headers,
            );
            app.cache
                .remember(key, question, request.clone(), plan.clone(), *own);
        }
        app.cache
            .name(made.headers_mut(), work.tenant.tenant(), plan);
        if app.cache.is_on() {
            label::put(made.headers_mut(), got.level, old);
        }
        made
    }))
}

/// Stage 9, within the tenant's bounds.
fn made(
    work: &Work<'_>,
    request: &ApiRequest,
    plan: &Plan,
    row: Row,
    seen: &mut Seen,
) -> Result<http::Response<Bytes>, Error> {
    seen.rows = u64::try_from(row.page).unwrap_or(0);
    let max = work.answer_max;
    match row.body.len() > max {
        true => Err(Error::AnswerTooLarge { max }),
        false => response::build(&work.app.config.api, request, plan, row),
    }
}

/// Stages 6 to 8 of what may change something, until it is visible.
async fn change(
    work: &Work<'_>,
    plan: &Plan,
    request: &ApiRequest,
    seen: &mut Seen,
) -> Result<Served, Failed> {
    let served = serve::serve(work, &mut seen.stages).await?;
    seen.from = Source::Shard;
    seen.stages.mark(Stage::Transaction);
    seen.token = served.token;
    if plan.form == Form::Write {
        visible::wait(work, plan, request.prefer.visibility_self, &served).await;
        seen.stages.mark(Stage::Visible);
    }
    Ok(served)
}

/// How often a request is planned again, each time with a newer model: a change of
/// the schema in several steps can make more than one plan stale.
const REPLANNED_MAX: u32 = 3;

/// How often a request that was sent is sent again after its node failed.
const LOST_MAX: u32 = 1;

/// The request's place among those that wait; the same one each time.
fn seat<'a, 'b>(
    app: &'a App,
    held: &'b mut Option<Held<'a>>,
    tenant: &TenantContext,
    deadline: Deadline,
) -> Result<&'b mut Held<'a>, Error> {
    Ok(match held {
        Some(stay) => stay,
        None => {
            let stay = app.hold_room.enter(tenant.tenant().0, deadline);
            held.insert(stay.map_err(|_| Error::Overloaded)?)
        }
    })
}

/// Waits for news that may let a held request through.
async fn wait(
    app: &App,
    stay: &mut Held<'_>,
    reason: HoldReason,
    target: &Target,
) -> Result<(), Error> {
    app.events.emit(&Event::Held { reason });
    let why = match reason {
        HoldReason::NoPrimary => {
            let mut changes = target.shard.changes();
            changes.mark_unchanged();
            target.shard.look_now();
            let news = async {
                let _ = changes.changed().await;
            };
            stay.pause(news)
                .await
                .err()
                .map(|_| "the shard has no primary")
        }
        HoldReason::NoSchema => {
            let mut changes = target.shard.changes();
            changes.mark_unchanged();
            let loaded = async {
                if target.shard.model().is_none() {
                    let _ = changes.changed().await;
                }
            };
            let ended = stay.pause(loaded).await;
            return ended.map_err(|_| Error::NoSchema);
        }
        HoldReason::SameKey => {
            let ended = stay.pause(std::future::pending()).await;
            return ended.map_err(|_| Error::SameKey);
        }
        HoldReason::Fenced | HoldReason::Moved | HoldReason::StalePlacement => {
            let mut versions = app.placements.versions();
            versions.mark_unchanged();
            app.placements.refresh();
            let news = async {
                let _ = versions.changed().await;
            };
            stay.pause(news)
                .await
                .err()
                .map(|_| "the tenant is being moved")
        }
    };
    match why {
        None => Ok(()),
        Some(why) => Err(Error::Unavailable { why }),
    }
}

/// Why a request was not answered where it was sent.
enum Refused {
    NoPrimary,
    Unknown,
    Stale,
    Fenced,
    Moved(Moved),
    Suspended,
    /// The first request with this key was answered.
    Answered,
    /// It still is being answered.
    SameKey,
}

/// The guard's own SQLSTATEs (schema/shard/002_fence.sql, 010_idempotency.sql).
fn refused_placement(error: &ExecuteError) -> Option<Refused> {
    let ExecuteError::Refused(error) = error else {
        return None;
    };
    Some(match error.code().code() {
        "RF001" => Refused::Unknown,
        "RF002" => Refused::Stale,
        "RF003" | "RF005" => Refused::Fenced,
        "RF004" => {
            let detail = error.detail().unwrap_or_default();
            let to: MovedDetail = serde_json::from_str(detail).ok()?;
            Refused::Moved(Moved {
                shard: to.shard.into(),
                epoch: to.epoch,
            })
        }
        "RF006" => Refused::Suspended,
        "RF032" => Refused::SameKey,
        "RF035" => Refused::Answered,
        _ => return None,
    })
}

#[derive(serde::Deserialize)]
struct MovedDetail {
    shard: String,
    epoch: i64,
}

fn failed(
    error: ExecuteError,
    tenant: &TenantContext,
    model: &Model,
    plan: &Plan,
    answer_max: usize,
) -> Error {
    match error {
        ExecuteError::Refused(error) => {
            let id = tenant.tenant().to_string();
            let hidden = Hidden {
                column: "tenant_id",
                tenant: &id,
            };
            let refusal = Refusal::new(&error, tenant.is_anonymous(), Some(hidden));
            let constraint = error.constraint().unwrap_or_default();
            let (state, detail) = (error.code().code(), refusal.detail.as_deref());
            // A domain refuses a value before there is a row.
            let detail = error
                .table()
                .and_then(|_| plan::violation::detail(model, plan, state, constraint, detail));
            Error::Postgres(Box::new(refusal.with_detail(detail)))
        }
        ExecuteError::Deadline => Error::Deadline,
        ExecuteError::TooLarge => Error::AnswerTooLarge { max: answer_max },
        ExecuteError::Lost(_) | ExecuteError::NotBegun(_) if plan.form.writes() => {
            Error::Unavailable {
                why: "the connection to the shard was lost before anything was written",
            }
        }
        ExecuteError::Lost(_) | ExecuteError::NotBegun(_) => Error::Unavailable {
            why: "the connection to the shard was lost",
        },
        ExecuteError::Unknown if plan.form.writes() => Error::OutcomeUnknown,
        ExecuteError::Unknown => Error::Unavailable {
            why: "the connection to the shard was lost",
        },
    }
}

/// The body, within its size and its time.
async fn read_body(
    body: Body,
    limits: &Limits,
    max: usize,
    deadline: Deadline,
) -> Result<Bytes, Error> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let until = deadline.min(Deadline::now() + Duration::from_millis(limits.body_ms_max));
    let collected = timeout_at(until, Limited::new(body, max).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::BodyTooLarge { max }),
        Ok(Err(_)) => Err(Error::Body("the request body could not be read".into())),
        Err(_) => Err(Error::BodyTooSlow),
    }
}

/// The path behind the prefix; none where it is not below it.
fn path_behind<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn route(path: &str) -> Route {
    match path.trim_start_matches('/') {
        "" => Route::Root,
        path if path.starts_with("rpc/") => Route::Rpc,
        path if path.contains('/') => Route::Other,
        _ => Route::Relation,
    }
}

/// What is read of a request besides its body.
struct Incoming<'a> {
    method: &'a Method,
    path: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    deadline: Deadline,
}

impl<'a> Incoming<'a> {
    fn parts(&self) -> RequestParts<'a> {
        RequestParts {
            method: self.method,
            path: self.path,
            query: self.query,
            headers: self.headers,
        }
    }

    fn visible(&self) -> Visible<'a> {
        Visible {
            method: self.method,
            path: self.path,
            headers: self.headers,
        }
    }

    fn content_type(&self) -> Option<&'a str> {
        self.headers.get(CONTENT_TYPE)?.to_str().ok()
    }
}

/// What is known of a request so far, for log and metrics.
#[derive(Default)]
struct Seen {
    tenant: Option<uuid::Uuid>,
    shard: Option<Arc<str>>,
    code: Option<String>,
    /// Where the answer came from.
    from: Source,
    /// Of what was committed, whatever went wrong with the answer then.
    token: Option<Token>,
    /// What became of a write was not known at some time.
    unknown: bool,
    /// Its place in a trace.
    trace: Option<Place>,
    /// What went wrong that must not.
    fault: Option<&'static str>,
    /// The tenant's leave to be answered.
    pass: Option<Pass>,
    /// Rows that were read or written.
    rows: u64,
    /// The last statement's text, once the request is a slow one, or if it is traced.
    statement: Option<String>,
    stages: Stages,
}

impl Seen {
    fn of(trace: Option<Place>) -> Self {
        let mut seen = Self {
            trace,
            ..Self::default()
        };
        seen.stages.did = seen.recorded().map(|_| Vec::new());
        seen
    }

    /// Its place, where its spans are sent.
    fn recorded(&self) -> Option<&Place> {
        self.trace.as_ref().filter(|place| place.is_recorded())
    }
}

/// What a request spends its time on.
#[derive(Clone, Copy)]
enum Stage {
    Auth,
    Parse,
    Plan,
    Cache,
    Pool,
    Transaction,
    Visible,
    Hold,
    Response,
}

const STAGES: [&str; 9] = [
    "auth",
    "parse",
    "plan",
    "cache",
    "pool",
    "transaction",
    "visible",
    "hold",
    "response",
];

/// Time by stage, for the header Server-Timing (W3C Server Timing).
struct Stages {
    spent: [Duration; STAGES.len()],
    started: Instant,
    since: Instant,
    /// Each by itself, where that is recorded.
    did: Option<Vec<Did>>,
}

impl Default for Stages {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            spent: [Duration::ZERO; STAGES.len()],
            started: now,
            since: now,
            did: None,
        }
    }
}

impl Stages {
    /// All time since the last mark was spent on `stage`.
    fn mark(&mut self, stage: Stage) {
        let now = Instant::now();
        self.spent[stage as usize] += now - self.since;
        if let Some(did) = self.did.as_mut().filter(|did| did.len() < CHILDREN_MAX) {
            did.push(Did {
                stage: STAGES[stage as usize],
                from: self.since,
                to: now,
            });
        }
        self.since = now;
    }

    /// So much of the time of the cache's stage was another's.
    fn was_for(&mut self, stage: Stage, spent: Duration) {
        let spent = spent.min(self.spent[Stage::Cache as usize]);
        self.spent[Stage::Cache as usize] -= spent;
        self.spent[stage as usize] += spent;
    }

    fn spent(&self, stage: Stage) -> Duration {
        self.spent[stage as usize]
    }

    /// Those that took any time.
    fn all(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let all = STAGES.into_iter().zip(self.spent);
        all.filter(|(_, spent)| !spent.is_zero())
    }

    fn total(&self) -> Duration {
        self.started.elapsed()
    }

    fn finish(&self, response: &mut http::Response<Bytes>, request_id: &str) {
        let mut text = String::with_capacity(96);
        for (name, spent) in self.all() {
            let comma = if text.is_empty() { "" } else { ", " };
            for part in [comma, name, ";dur="] {
                text.push_str(part);
            }
            add_milliseconds(&mut text, spent);
        }
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static("server-timing"), value);
        }
        if let Ok(value) = HeaderValue::try_from(request_id) {
            headers.insert(HeaderName::from_static("x-request-id"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_whole_segments() {
        assert_eq!(path_behind("/rest/v1", "/rest/v1/t"), Some("/t"));
        assert_eq!(path_behind("/rest/v1", "/rest/v1"), Some(""));
        assert_eq!(path_behind("/rest/v1", "/rest/v1x/t"), None);
        assert_eq!(path_behind("", "/t"), Some("/t"));
    }
}
