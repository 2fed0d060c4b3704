//! A small service in memory that speaks enough of the data API to be driven,
//! with switches that make it slow or wrong in one precise way. It is what
//! the instrument is calibrated against; the service under test is real.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use loadtest::environment::{Admin, Environment};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

/// How the service misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) enum Fault {
    /// Not at all.
    #[default]
    None,
    /// Nothing is answered during the last `length` of each `period`.
    Stall { period: Duration, length: Duration },
    /// Every nth insert is acknowledged and not done.
    LoseInsert(u64),
    /// Every nth update is acknowledged and not done.
    LoseUpdate(u64),
    /// Every nth insert is done twice.
    Double(u64),
    /// Every nth insert is refused and done.
    Phantom(u64),
    /// Every nth read sees all tenants' rows.
    Leak(u64),
    /// The second router's reads see the rows as they were so long ago.
    StaleRouter(Duration),
    /// Every nth read, through any router, sees the rows of so long ago.
    StaleRead(u64, Duration),
    /// Every nth write is done, and the connection cut before the answer.
    Cut(u64),
    /// Deletes are acknowledged and not done.
    KeepDeleted,
    /// Each request is answered after so long.
    Slow(Duration),
    /// Every nth request is answered with 503.
    Refuse(u64),
}

#[derive(Debug, Clone)]
struct Row {
    table: String,
    tenant: String,
    /// Each value with the moment it became visible; `None` is a deletion.
    versions: Vec<(Instant, Option<Map<String, Value>>)>,
}

#[derive(Debug, Default)]
struct State {
    rows: Vec<Row>,
    next_id: u64,
    reads: u64,
    writes: BTreeMap<Counted, u64>,
    requests: u64,
    tenants: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Counted {
    Insert,
    Update,
    Any,
}

/// A running service with two routers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) routers: [SocketAddr; 2],
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub(crate) fn start(fault: Fault) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let begin = Instant::now();
        let routers = [0, 1].map(|router| {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            let state = state.clone();
            runtime.spawn(accept(listener, state, fault, router, begin));
            address
        });
        Server {
            routers,
            state,
            runtime: Some(runtime),
        }
    }

    /// What the tester is told about it.
    pub(crate) fn environment(&self, tenants: &[&str]) -> Environment {
        Environment {
            targets: self
                .routers
                .iter()
                .map(|router| format!("http://{router}/rest/v1"))
                .collect(),
            admin: None,
            keys: tenants
                .iter()
                .map(|tenant| ((*tenant).to_owned(), format!("key-{tenant}")))
                .collect(),
            shards: BTreeMap::new(),
        }
    }

    /// The same with the admin API.
    pub(crate) fn environment_with_admin(&self) -> Environment {
        let url = format!("http://{}", self.routers[0]);
        Environment {
            admin: Some(Admin {
                url,
                token: "t".to_owned(),
            }),
            ..self.environment(&[])
        }
    }

    /// How many rows a table has now, all tenants together.
    pub(crate) fn rows(&self, table: &str) -> usize {
        let state = self.state.lock().unwrap();
        state
            .rows
            .iter()
            .filter(|row| row.table == table && row.versions.last().unwrap().1.is_some())
            .count()
    }

    /// Ends it at once, cutting every connection.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// Ends it from another thread, once it has been asked a while.
    pub(crate) fn killer(&mut self) -> impl FnOnce() + Send + 'static {
        let (runtime, state) = (self.runtime.take(), self.state.clone());
        move || {
            while state.lock().unwrap().reads < 50 {
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Some(runtime) = runtime {
                runtime.shutdown_background();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    fault: Fault,
    router: usize,
    begin: Instant,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &state, fault, router, begin));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Debug)]
struct CutConnection;

impl std::fmt::Display for CutConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for CutConnection {}

async fn answer(
    request: Request<Incoming>,
    state: &Mutex<State>,
    fault: Fault,
    router: usize,
    begin: Instant,
) -> Result<Response<Full<Bytes>>, CutConnection> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| CutConnection)?.to_bytes();
    if head.uri.path().starts_with("/admin/") {
        return Ok(admin(&head.method, head.uri.path(), &body, state));
    }
    match fault {
        Fault::Stall { period, length } => {
            let into =
                Duration::from_nanos((begin.elapsed().as_nanos() % period.as_nanos()) as u64);
            if into >= period - length {
                tokio::time::sleep(period - into).await;
            }
        }
        Fault::Slow(delay) => tokio::time::sleep(delay).await,
        Fault::Refuse(n) => {
            let mut state = state.lock().unwrap();
            state.requests += 1;
            if state.requests.is_multiple_of(n) {
                return Ok(status(StatusCode::SERVICE_UNAVAILABLE));
            }
        }
        _ => {}
    }
    let key = head
        .headers
        .get("apikey")
        .and_then(|key| key.to_str().ok())
        .unwrap_or_default();
    let tenant = key.strip_prefix("key-").unwrap_or("anonymous").to_owned();
    let table = head
        .uri
        .path()
        .trim_start_matches("/rest/v1")
        .trim_matches('/')
        .to_owned();
    let filters = filters(head.uri.query().unwrap_or_default());
    let mut state = state.lock().unwrap();
    let answer = match head.method {
        Method::GET => read(&mut state, fault, router, &tenant, &table, &filters),
        Method::POST => insert(&mut state, fault, &tenant, &table, &body),
        Method::PATCH => update(&mut state, fault, &tenant, &table, &filters, Some(&body)),
        Method::DELETE => update(&mut state, fault, &tenant, &table, &filters, None),
        _ => status(StatusCode::METHOD_NOT_ALLOWED),
    };
    if let Fault::Cut(n) = fault
        && head.method != Method::GET
        && nth(&mut state, Counted::Any, n)
    {
        return Err(CutConnection);
    }
    Ok(answer)
}

fn nth(state: &mut State, kind: Counted, n: u64) -> bool {
    let count = state.writes.entry(kind).or_default();
    *count += 1;
    count.is_multiple_of(n)
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    json_answer(status, &Value::Null)
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("server-timing", "primary;dur=0.1".parse().unwrap());
    response
}

fn admin(method: &Method, path: &str, body: &[u8], state: &Mutex<State>) -> Response<Full<Bytes>> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let fields: Vec<&str> = path.trim_start_matches("/admin/v1/").split('/').collect();
    let mut state = state.lock().unwrap();
    match (method, fields.as_slice()) {
        (&Method::POST, ["tenants"]) => {
            let slug = body["slug"].as_str().unwrap().to_owned();
            state.tenants.push(slug.clone());
            json_answer(
                StatusCode::CREATED,
                &json!({ "id": format!("id-{slug}"), "slug": slug }),
            )
        }
        (&Method::GET, ["tenants"]) => {
            let items: Vec<Value> = state
                .tenants
                .iter()
                .map(|slug| json!({ "slug": slug, "state": "active" }))
                .collect();
            json_answer(StatusCode::OK, &json!({ "items": items, "next": null }))
        }
        (&Method::POST, ["tenants", tenant, "keys"]) => json_answer(
            StatusCode::CREATED,
            &json!({ "key": format!("key-{tenant}") }),
        ),
        _ => status(StatusCode::NOT_FOUND),
    }
}

/// Column filters as (column, operator, value); limit and offset as their own.
fn filters(query: &str) -> Vec<(String, String, String)> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(column, condition)| {
            let decode = |text: &str| percent_encoding_decode(text);
            if matches!(column, "limit" | "offset") {
                return Some((column.to_owned(), String::new(), decode(condition)));
            }
            let (operator, value) = condition.split_once('.')?;
            matches!(operator, "eq" | "like")
                .then(|| (column.to_owned(), operator.to_owned(), decode(value)))
        })
        .collect()
}

fn percent_encoding_decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).unwrap()
}

fn matches_filters(row: &Map<String, Value>, filters: &[(String, String, String)]) -> bool {
    filters.iter().all(|(column, operator, wanted)| {
        let value = match row.get(column) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => return operator.is_empty(),
        };
        match operator.as_str() {
            "eq" => value == *wanted,
            "like" => {
                let inner = wanted.trim_matches('*');
                match (wanted.starts_with('*'), wanted.ends_with('*')) {
                    (false, true) => value.starts_with(inner),
                    (true, true) => value.contains(inner),
                    (true, false) => value.ends_with(inner),
                    (false, false) => value == inner,
                }
            }
            _ => true,
        }
    })
}

fn visible(row: &Row, at: Instant) -> Option<&Map<String, Value>> {
    row.versions
        .iter()
        .rev()
        .find(|(since, _)| *since <= at)?
        .1
        .as_ref()
}

fn read(
    state: &mut State,
    fault: Fault,
    router: usize,
    tenant: &str,
    table: &str,
    filters: &[(String, String, String)],
) -> Response<Full<Bytes>> {
    state.reads += 1;
    let mut at = Instant::now();
    let mut all_tenants = false;
    match fault {
        Fault::StaleRouter(age) if router == 1 => at -= age,
        Fault::StaleRead(n, age) if state.reads.is_multiple_of(n) => at -= age,
        Fault::Leak(n) => all_tenants = state.reads.is_multiple_of(n),
        _ => {}
    }
    let number = |name: &str| {
        filters
            .iter()
            .find(|filter| filter.0 == name)
            .and_then(|filter| filter.2.parse().ok())
    };
    let rows: Vec<Value> = state
        .rows
        .iter()
        .filter(|row| row.table == table && (all_tenants || row.tenant == tenant))
        .filter_map(|row| visible(row, at))
        .filter(|row| matches_filters(row, filters))
        .skip(number("offset").unwrap_or(0))
        .take(number("limit").unwrap_or(usize::MAX))
        .map(|row| Value::Object(row.clone()))
        .collect();
    json_answer(StatusCode::OK, &Value::Array(rows))
}

fn insert(
    state: &mut State,
    fault: Fault,
    tenant: &str,
    table: &str,
    body: &[u8],
) -> Response<Full<Bytes>> {
    let rows = match serde_json::from_slice(body) {
        Ok(Value::Array(rows)) => rows,
        Ok(row @ Value::Object(_)) => vec![row],
        _ => return status(StatusCode::BAD_REQUEST),
    };
    let mut answer = Vec::new();
    let mut refused = false;
    for row in rows {
        let Value::Object(mut row) = row else {
            return status(StatusCode::BAD_REQUEST);
        };
        state.next_id += 1;
        row.insert("id".to_owned(), json!(state.next_id));
        answer.push(Value::Object(row.clone()));
        let mut copies = 1;
        match fault {
            Fault::LoseInsert(n) if nth(state, Counted::Insert, n) => copies = 0,
            Fault::Double(n) if nth(state, Counted::Insert, n) => copies = 2,
            Fault::Phantom(n) if nth(state, Counted::Insert, n) => refused = true,
            _ => {}
        }
        for _ in 0..copies {
            state.rows.push(Row {
                table: table.to_owned(),
                tenant: tenant.to_owned(),
                versions: vec![(Instant::now(), Some(row.clone()))],
            });
        }
    }
    if refused {
        return json_answer(StatusCode::CONFLICT, &json!({ "message": "refused" }));
    }
    json_answer(StatusCode::CREATED, &Value::Array(answer))
}

/// Updates rows, or deletes them when there is no body.
fn update(
    state: &mut State,
    fault: Fault,
    tenant: &str,
    table: &str,
    filters: &[(String, String, String)],
    body: Option<&[u8]>,
) -> Response<Full<Bytes>> {
    let change: Option<Map<String, Value>> = body.map(|body| serde_json::from_slice(body).unwrap());
    let skip = match fault {
        Fault::LoseUpdate(n) if change.is_some() => nth(state, Counted::Update, n),
        Fault::KeepDeleted => change.is_none(),
        _ => false,
    };
    let now = Instant::now();
    for row in state
        .rows
        .iter_mut()
        .filter(|row| row.table == table && row.tenant == tenant)
    {
        let Some(current) = visible(row, now).cloned() else {
            continue;
        };
        if skip || !matches_filters(&current, filters) {
            continue;
        }
        let changed = change.as_ref().map(|change| {
            let mut row = current;
            row.extend(change.clone());
            row
        });
        row.versions.push((Instant::now(), changed));
    }
    status(StatusCode::NO_CONTENT)
}
