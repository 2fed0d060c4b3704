//! The clients that watch rows while the load runs: for each register a
//! writer that also reads its own writes back, and a reader beside it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::register::{Declared, Read, Register, Seen, Session};
use super::{Findings, Violation};
use crate::calendar;
use crate::client::{Answer, Connection, Failure};
use crate::engine::Plan;
use crate::journal::Fate;
use crate::record::micros;
use crate::scenario::Checks;
use crate::script::RowTemplate;
use crate::template::Surroundings;
use crate::token::{self, Token, Write};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const APIKEY: HeaderName = HeaderName::from_static("apikey");
/// A register is updated so many times at most before its row is left.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=8;
/// Of a reader's looks, one in so many is another tenant's.
const STRANGE_ONE_IN: u8 = 8;
/// After a write that failed, a writer waits before it begins a new row.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Watch {
    plan: Arc<Plan>,
    checks: Checks,
    row: RowTemplate,
    declared: Declared,
    begin: Instant,
    stop: CancellationToken,
    next_register: AtomicU32,
    findings: RefCell<Findings>,
    finished: RefCell<Vec<Register>>,
    reads: Cell<u64>,
}

/// What the sessions leave behind.
#[derive(Debug)]
pub(super) struct Watched {
    /// All registers that were begun.
    pub(super) registers: Vec<Register>,
    /// What was wrong.
    pub(super) findings: Findings,
    /// How many reads were judged.
    pub(super) reads: u64,
}

/// A register that its writer and its reader share.
#[derive(Debug)]
struct Shared {
    register: RefCell<Register>,
    /// The row's key as the service gave it, JSON; none before the insert.
    key: RefCell<Option<String>>,
    /// Set when the row is left alone.
    over: Cell<bool>,
}

impl Watch {
    pub(super) fn new(
        plan: Arc<Plan>,
        checks: Checks,
        begin: Instant,
        stop: CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Watch {
            row: RowTemplate::compile(checks.row.as_ref()),
            declared: Declared {
                staleness: micros(checks.staleness.duration()),
                monotonic: checks.monotonic,
            },
            plan,
            checks,
            begin,
            stop,
            next_register: AtomicU32::new(0),
            findings: RefCell::default(),
            finished: RefCell::default(),
            reads: Cell::new(0),
        })
    }

    /// Watches rows until stopped.
    pub(super) async fn run(self: Rc<Self>) -> Watched {
        let slots = (0..self.checks.registers).map(|slot| self.clone().slot(slot));
        futures_util::future::join_all(slots).await;
        Watched {
            registers: self.finished.take(),
            findings: self.findings.take(),
            reads: self.reads.get(),
        }
    }

    /// One register after the other, for one tenant.
    async fn slot(self: Rc<Self>, slot: usize) {
        let tenant = slot % self.plan.population.tenants.len();
        let mut random = fastrand::Rng::with_seed(self.plan.seed ^ (slot as u64 + 1) << 40);
        let mut writer = Client::new(&self, tenant, slot);
        let mut reader = Client::new(&self, tenant, slot + 1);
        let mut stranger = Client::new(
            &self,
            (tenant + 1) % self.plan.population.tenants.len(),
            slot,
        );
        while !self.stop.is_cancelled() {
            let number = self.next_register.fetch_add(1, Ordering::Relaxed);
            let name = &self.plan.population.tenants[tenant].slug;
            let shared = Shared {
                register: RefCell::new(Register::new(number, tenant, name)),
                key: RefCell::default(),
                over: Cell::new(false),
            };
            let mut reader_random = fastrand::Rng::with_seed(random.u64(..));
            let write = async {
                let left_well = writer.live(&shared, &mut random).await;
                shared.over.set(true);
                left_well
            };
            let (left_well, ()) = tokio::join!(
                write,
                reader.read_along(&shared, &mut stranger, &mut reader_random)
            );
            self.finished
                .borrow_mut()
                .push(shared.register.into_inner());
            if !left_well {
                self.pause(AFTER_FAILURE).await;
            }
        }
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = self.stop.cancelled() => {}
        }
    }

    fn now(&self) -> u64 {
        micros(self.begin.elapsed())
    }

    fn found(&self, violation: Option<Violation>) {
        if let Some(violation) = violation {
            self.findings.borrow_mut().add(violation);
        }
    }
}

/// A client of one tenant with a connection to each router.
#[derive(Debug)]
struct Client {
    watch: Rc<Watch>,
    tenant: usize,
    connections: Vec<Connection>,
    /// The router of the next write.
    next: usize,
    fresh: fastrand::Rng,
    sequence: u64,
}

impl Client {
    fn new(watch: &Rc<Watch>, tenant: usize, first: usize) -> Self {
        let seed = watch.plan.run.bytes().fold(first as u64, |hash, byte| {
            hash.rotate_left(9) ^ u64::from(byte)
        });
        Client {
            watch: watch.clone(),
            tenant,
            connections: watch
                .plan
                .targets
                .iter()
                .cloned()
                .map(Connection::new)
                .collect(),
            next: first,
            fresh: fastrand::Rng::with_seed(seed),
            sequence: seed << 20,
        }
    }

    /// A row's whole life. Returns false when a write was not acknowledged
    /// and the row is therefore left to the audit.
    async fn live(&mut self, shared: &Shared, random: &mut fastrand::Rng) -> bool {
        let watch = self.watch.clone();
        let versions = random.u32(VERSIONS);
        for version in 1..=versions {
            if !self.write(shared, false, random).await {
                return false;
            }
            self.read_back(shared).await;
            if watch.stop.is_cancelled() {
                return true;
            }
            if version < versions {
                watch.pause(watch.checks.pause.duration()).await;
            }
        }
        if random.bool() {
            if !self.write(shared, true, random).await {
                return false;
            }
            self.read_back(shared).await;
        }
        true
    }

    /// Writes the next version through the next router.
    async fn write(&mut self, shared: &Shared, deletes: bool, random: &mut fastrand::Rng) -> bool {
        let watch = self.watch.clone();
        let place = self.next % self.connections.len();
        self.next += 1;
        let target = self.connections[place].target().clone();
        let request = self.write_request(shared, deletes, random, &target.prefix);
        shared
            .register
            .borrow_mut()
            .begin_write(deletes, watch.now(), target.name());
        let result = self.send(place, request).await;
        let (fate, status) = match &result {
            Ok(answer) => (Fate::of_status(answer.status), answer.status),
            Err(Failure::Refused) => (Fate::Failed, 0),
            Err(Failure::Timeout | Failure::Cut) => (Fate::Indeterminate, 0),
        };
        shared
            .register
            .borrow_mut()
            .end_write(fate, status, watch.now());
        if fate != Fate::Acknowledged {
            return false;
        }
        if shared.key.borrow().is_none() {
            let key = result
                .ok()
                .and_then(|answer| key_of(&answer.body, &watch.checks.key));
            // Without its key the row can only be found by its token.
            *shared.key.borrow_mut() = key;
        }
        true
    }

    fn write_request(
        &mut self,
        shared: &Shared,
        deletes: bool,
        random: &mut fastrand::Rng,
        prefix: &str,
    ) -> Request<Full<Bytes>> {
        let checks = &self.watch.checks;
        let register = shared.register.borrow();
        let version = register.next_version();
        let text = self
            .token(
                Write::Register {
                    register: register.number,
                    version,
                },
                self.tenant,
            )
            .to_string();
        let mut row = Map::new();
        let method = match (deletes, version) {
            (true, _) => Method::DELETE,
            (false, 1) => {
                let tenant = &self.watch.plan.population.tenants[self.tenant];
                row = self.watch.row.render(&mut Surroundings {
                    random,
                    fresh: &mut self.fresh,
                    sequence: &mut self.sequence,
                    run: &self.watch.plan.run,
                    tenant: &tenant.slug,
                    now: calendar::now(),
                });
                Method::POST
            }
            (false, _) => Method::PATCH,
        };
        row.insert(checks.column.clone(), Value::String(text));
        let mut path = format!("{prefix}/{}", checks.table);
        if version > 1 {
            path.push('?');
            path.push_str(&self.filter(shared.key.borrow().as_deref(), register.number, true));
        }
        let body = if deletes {
            Bytes::new()
        } else {
            Bytes::from(Value::Object(row).to_string())
        };
        self.request(method, &path, body)
    }

    /// Reads the row through the router that took the write, and another.
    async fn read_back(&mut self, shared: &Shared) {
        let wrote = (self.next + self.connections.len() - 1) % self.connections.len();
        let other = self.next % self.connections.len();
        self.read(shared, Session::Writer, wrote, true).await;
        if other != wrote {
            self.read(shared, Session::Writer, other, false).await;
        }
    }

    /// Reads the row again and again until its writer leaves it, and now and
    /// then lets another tenant ask for it.
    async fn read_along(
        &mut self,
        shared: &Shared,
        stranger: &mut Client,
        random: &mut fastrand::Rng,
    ) {
        let pause = self.watch.checks.pause.duration();
        while !shared.over.get() {
            // Nothing is known to read before the insert is answered.
            if shared.key.borrow().is_some() {
                let place = random.usize(..self.connections.len());
                if stranger.tenant != self.tenant && random.u8(..STRANGE_ONE_IN) == 0 {
                    stranger.peek(shared, self.tenant, place).await;
                } else {
                    self.read(shared, Session::Reader, place, random.bool())
                        .await;
                }
            }
            let left = pause.mul_f64(random.f64()).max(Duration::from_millis(1));
            self.watch.pause(left).await;
            if self.watch.stop.is_cancelled() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Asks for a row of another tenant by its token. No row is the only right
    /// answer; any other holds that tenant's token.
    async fn peek(&mut self, shared: &Shared, owner: usize, place: usize) {
        let watch = self.watch.clone();
        let number = shared.register.borrow().number;
        let Checks { table, column, .. } = &watch.checks;
        let target = self.connections[place].target().clone();
        let filter = self.token_filter(number, owner);
        let path = format!("{}/{table}?select={column}&{filter}", target.prefix);
        let request = self.request(Method::GET, &path, Bytes::new());
        let sent = watch.now();
        if let Ok(answer) = self.send(place, request).await {
            self.look_for_leak(&answer, &path, target.name(), sent, watch.now());
        }
    }

    async fn read(&mut self, shared: &Shared, session: Session, place: usize, by_key: bool) {
        let watch = self.watch.clone();
        let number = shared.register.borrow().number;
        let Checks {
            table, key, column, ..
        } = &watch.checks;
        let target = self.connections[place].target().clone();
        let filter = self.filter(shared.key.borrow().as_deref(), number, by_key);
        let path = format!("{}/{table}?select={key},{column}&{filter}", target.prefix);
        let request = self.request(Method::GET, &path, Bytes::new());
        let sent = watch.now();
        let Ok(answer) = self.send(place, request).await else {
            return;
        };
        let done = watch.now();
        self.look_for_leak(&answer, &path, target.name(), sent, done);
        // Errors say nothing about the row.
        if answer.status != 200 {
            return;
        }
        let Some(seen) = seen(&answer.body, column, number, &watch.plan.run) else {
            return;
        };
        watch.reads.set(watch.reads.get() + 1);
        let read = Read {
            session,
            sent,
            done,
            target: target.name().to_owned(),
            seen,
        };
        let violation = shared.register.borrow_mut().read(read, watch.declared);
        watch.found(violation);
    }

    fn look_for_leak(&self, answer: &Answer, path: &str, target: &str, sent: u64, done: u64) {
        let tenant = &self.watch.plan.population.tenants[self.tenant];
        let Some(token) = token::foreign(&answer.body, &tenant.tag) else {
            return;
        };
        let reader = tenant.slug.as_str();
        self.watch.found(Some(super::leak(
            &self.watch.plan,
            reader,
            &token,
            None,
            path,
            target,
            (sent, done),
        )));
    }

    /// The condition that finds the row: its key, or its token's begin.
    fn filter(&self, key: Option<&str>, number: u32, by_key: bool) -> String {
        match key {
            Some(key) if by_key => format!("{}=eq.{key}", self.watch.checks.key),
            Some(_) | None => self.token_filter(number, self.tenant),
        }
    }

    fn token_filter(&self, number: u32, owner: usize) -> String {
        let write = Write::Register {
            register: number,
            version: 0,
        };
        let token = self.token(write, owner).to_string();
        format!(
            "{}=like.{}*",
            self.watch.checks.column,
            token.trim_end_matches("0~")
        )
    }

    fn token(&self, write: Write, owner: usize) -> Token {
        let tag = self.watch.plan.population.tenants[owner].tag;
        Token {
            tag,
            run: self.watch.plan.run.clone(),
            write,
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let has_body = !body.is_empty();
        let wants_row = method == Method::POST;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Names and tokens consist of characters that a path may hold.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Some(key) = &self.watch.plan.population.tenants[self.tenant].key {
            headers.insert(APIKEY, key.clone());
        }
        if has_body {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        if wants_row {
            headers.insert(PREFER, HeaderValue::from_static("return=representation"));
        }
        request
    }

    async fn send(
        &mut self,
        place: usize,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Answer, Failure> {
        let connection = &mut self.connections[place];
        let host = connection.target().host.clone();
        request.headers_mut().insert(header::HOST, host);
        connection
            .exchange(request, self.watch.plan.timeout, true)
            .await
    }
}

/// The key column of an inserted row, as it goes into a filter.
fn key_of(body: &[u8], key: &str) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let row = answer
        .as_array()
        .map_or(Some(&answer), |rows| rows.first())?;
    match &row[key] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What an answer shows of a register; none when it is not about it.
fn seen(body: &[u8], column: &str, number: u32, run: &str) -> Option<Seen> {
    let rows: Vec<Map<String, Value>> = serde_json::from_slice(body).ok()?;
    match rows.as_slice() {
        [] => Some(Seen::Absent),
        [row] => {
            let token = Token::parse(row.get(column)?.as_str()?.as_bytes())?;
            match token.write {
                Write::Register { register, version } if register == number && token.run == run => {
                    Some(Seen::Version(version))
                }
                Write::Register { .. } | Write::Mark(_) => None,
            }
        }
        rows => Some(Seen::Several(rows.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let token = Token {
            tag: token::Tag::of("acme"),
            run: "r".into(),
            write: Write::Register {
                register: 3,
                version: 9,
            },
        };
        let row = format!("[{{\"id\":5,\"body\":\"{token}\"}}]");
        assert_eq!(seen(row.as_bytes(), "body", 3, "r"), Some(Seen::Version(9)));
        assert_eq!(seen(row.as_bytes(), "body", 4, "r"), None);
        assert_eq!(seen(b"[]", "body", 3, "r"), Some(Seen::Absent));
        assert_eq!(seen(b"[{},{}]", "body", 3, "r"), Some(Seen::Several(2)));
        assert_eq!(seen(b"{\"message\":\"no\"}", "body", 3, "r"), None);
        assert_eq!(key_of(row.as_bytes(), "id").as_deref(), Some("5"));
        assert_eq!(key_of(b"{\"id\":\"x\"}", "id").as_deref(), Some("x"));
    }
}
