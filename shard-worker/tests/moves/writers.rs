//! Clients of a tenant that write through the router, remember what was
//! acknowledged, and hold it against what is there in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

/// Writers that run.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Ledger>>,
}

/// What one client knows.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Rows whose insert was acknowledged, and no delete was sent.
    present: BTreeSet<String>,
    /// Rows whose delete was acknowledged.
    gone: BTreeSet<String>,
    /// Rows of which nobody knows.
    unknown: BTreeSet<String>,
    /// Its company, and the numbers that its row may hold.
    company: i64,
    numbers: Vec<i64>,
    /// Requests that were refused or failed: status and answer.
    pub(crate) failed: Vec<String>,
    /// Reads that did not see what was acknowledged before.
    pub(crate) stale: Vec<String>,
    /// The longest answer of all.
    pub(crate) slowest: Duration,
}

struct Writer {
    http: reqwest::Client,
    base: String,
    key: String,
    name: String,
    ledger: Ledger,
}

impl Writers {
    /// `count` clients of the router at `base`, each as fast as it is answered,
    /// with a pause in between.
    pub(crate) fn start(base: &str, key: &str, count: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let run = Uuid::new_v4().simple().to_string();
        let tasks = (0..count).map(|number| {
            let writer = Writer {
                http: reqwest::Client::new(),
                base: format!("{base}/rest/v1"),
                key: key.to_owned(),
                name: format!("{}-{number}", &run[..8]),
                ledger: Ledger::default(),
            };
            tokio::spawn(writer.run(stop.clone(), acknowledged.clone(), pause))
        });
        let tasks = tasks.collect();
        Self {
            stop,
            acknowledged,
            tasks,
        }
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for so many more acknowledged writes.
    pub(crate) async fn more(&self, count: u64) {
        let wanted = self.acknowledged() + count;
        let deadline = Instant::now() + crate::stage::SOON;
        while self.acknowledged() < wanted {
            assert!(Instant::now() < deadline, "writers stand still");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends them, and holds what they know against the shard that serves the tenant.
    pub(crate) async fn finish(self, shard: &Client, tenant: Uuid) -> Vec<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledgers = Vec::new();
        for task in self.tasks {
            ledgers.push(task.await.unwrap());
        }
        let rows = shard
            .query(
                "select subject, count(*) from activities where tenant_id = $1 group by subject",
                &[&tenant],
            )
            .await
            .unwrap();
        let there: BTreeMap<String, i64> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        for ledger in &ledgers {
            for subject in &ledger.present {
                assert_eq!(there.get(subject), Some(&1), "acknowledged: {subject}");
            }
            for subject in &ledger.gone {
                assert_eq!(there.get(subject), None, "deleted: {subject}");
            }
            for subject in &ledger.unknown {
                assert!(there.get(subject).copied().unwrap_or(0) <= 1, "{subject}");
            }
            let row = shard
                .query_one(
                    "select employees from companies where tenant_id = $1 and id = $2",
                    &[&tenant, &ledger.company],
                )
                .await
                .unwrap();
            let number = i64::from(row.get::<_, i32>(0));
            assert!(ledger.numbers.contains(&number), "{number} of {ledger:?}");
        }
        ledgers
    }
}

impl Writer {
    async fn run(
        mut self,
        stop: Arc<AtomicBool>,
        acknowledged: Arc<AtomicU64>,
        pause: Duration,
    ) -> Ledger {
        while !stop.load(Ordering::Relaxed) && self.ledger.company == 0 {
            let body = json!({ "name": self.name, "employees": 0 });
            let path = "companies?select=id";
            if let Some((StatusCode::CREATED, rows)) = self.send(Method::POST, path, body).await {
                self.ledger.company = rows[0]["id"].as_i64().unwrap();
                self.ledger.numbers = vec![0];
            }
        }
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let done = match turn % 4 {
                0 => self.count(turn).await,
                1 | 2 => self.insert(turn).await,
                _ => self.delete().await,
            };
            acknowledged.fetch_add(u64::from(done), Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
        self.ledger
    }

    async fn insert(&mut self, turn: i64) -> bool {
        let subject = format!("{}-{turn}", self.name);
        let body = json!({ "kind": "call", "subject": subject, "minutes": 1 });
        match self.send(Method::POST, "activities?select=id", body).await {
            Some((StatusCode::CREATED, _)) => {
                self.ledger.present.insert(subject.clone());
                let path = format!("activities?select=id&subject=eq.{subject}");
                if let Some((StatusCode::OK, rows)) =
                    self.send(Method::GET, &path, Value::Null).await
                    && rows.as_array().map(Vec::len) != Some(1)
                {
                    self.ledger.stale.push(format!("{subject}: {rows}"));
                }
                true
            }
            _ => {
                self.ledger.unknown.insert(subject);
                false
            }
        }
    }

    async fn delete(&mut self) -> bool {
        let Some(subject) = self.ledger.present.pop_first() else {
            return false;
        };
        let path = format!("activities?subject=eq.{subject}");
        match self.send(Method::DELETE, &path, Value::Null).await {
            Some((StatusCode::OK, rows)) if rows.as_array().map(Vec::len) == Some(1) => {
                self.ledger.gone.insert(subject);
                true
            }
            Some((StatusCode::OK, rows)) => {
                let lost = format!("{subject} was acknowledged and not there: {rows}");
                self.ledger.stale.push(lost);
                false
            }
            _ => {
                self.ledger.unknown.insert(subject);
                false
            }
        }
    }

    async fn count(&mut self, turn: i64) -> bool {
        let path = format!("companies?select=id&id=eq.{}", self.ledger.company);
        let body = json!({ "employees": turn });
        match self.send(Method::PATCH, &path, body).await {
            Some((StatusCode::OK, rows)) if rows.as_array().map(Vec::len) == Some(1) => {
                self.ledger.numbers = vec![turn];
                true
            }
            Some((StatusCode::OK, rows)) => {
                self.ledger
                    .stale
                    .push(format!("the counted row is away: {rows}"));
                false
            }
            _ => {
                self.ledger.numbers.push(turn);
                false
            }
        }
    }

    /// Status and body; none where nobody answered. What is not a success is
    /// remembered.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Value,
    ) -> Option<(StatusCode, Value)> {
        let began = Instant::now();
        let request = self
            .http
            .request(method.clone(), format!("{}/{path}", self.base))
            .header("apikey", &self.key)
            .header("prefer", "return=representation");
        let request = match body {
            Value::Null => request,
            body => request.json(&body),
        };
        let answer = async {
            let answer = request.send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Ok::<_, reqwest::Error>((status, value))
        };
        let answer = answer.await;
        self.ledger.slowest = self.ledger.slowest.max(began.elapsed());
        match answer {
            Ok((status, value)) => {
                if !status.is_success() {
                    self.ledger
                        .failed
                        .push(format!("{method} {path}: {status} {value}"));
                }
                Some((status, value))
            }
            Err(error) => {
                self.ledger.failed.push(format!("{method} {path}: {error}"));
                None
            }
        }
    }
}
