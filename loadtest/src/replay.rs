//! Replay of an access log: the same requests at the same distances in time,
//! or N times as fast, for other tenants. A log has no bodies, so only reads
//! are replayed; how many writes were left out is said.

mod line;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Uri};

use crate::engine::{Logged, Plan, Stream, StreamKind};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::population::Population;
use crate::run::{self, Options, Prepared};
use crate::scenario;
use crate::script::Script;
use crate::token;
pub use line::Request;

/// Requests are reported by method and table; after so many kinds, the rest
/// together.
const KINDS_MAX: usize = 50;
/// Connections of a replay, over all threads.
const CONNECTIONS: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(10);
/// What a router's log has before the table's name.
const ROUTER_PATH: &str = "/rest/v1";

/// A log that was read.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Log {
    /// What is replayed, by time.
    pub requests: Vec<Request>,
    /// Requests that could change something, left out.
    pub writes: u64,
    /// Lines that are not of a request.
    pub other_lines: u64,
}

impl Log {
    /// Reads a log: Nginx' combined format, Nginx' JSON, or a router's own,
    /// also mixed.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Log`] when nothing can be replayed.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut log = Log::default();
        for line in BufReader::new(file).lines() {
            log.take(&line.map_err(failed)?);
        }
        if log.requests.is_empty() {
            let reason = format!(
                "no request to replay in {} lines (Nginx' combined format, JSON lines with time, method and path; \
                 only GET and HEAD)",
                log.writes + log.other_lines
            );
            return Err(Error::Log {
                path: path.to_owned(),
                reason,
            });
        }
        log.arrange();
        Ok(log)
    }

    fn take(&mut self, line: &str) {
        match line::parse(line) {
            None => self.other_lines += 1,
            Some(request) if !matches!(request.method, Method::GET | Method::HEAD) => {
                self.writes += 1
            }
            Some(request) => self.requests.push(request),
        }
    }

    /// Sorts by time, lets the log begin at 0, and spreads the requests of a
    /// log that knows only whole seconds evenly over each second: sent all at
    /// its begin they would be a load that never was.
    fn arrange(&mut self) {
        self.requests.sort_by(|a, b| a.at.total_cmp(&b.at));
        if self
            .requests
            .iter()
            .all(|request| request.at.fract() == 0.0)
        {
            let mut begin = 0;
            while begin < self.requests.len() {
                let second = self.requests[begin].at;
                let count = self.requests[begin..]
                    .iter()
                    .take_while(|request| request.at == second)
                    .count();
                for (place, request) in self.requests[begin..begin + count].iter_mut().enumerate() {
                    request.at += place as f64 / count as f64;
                }
                begin += count;
            }
        }
        let first = self.requests.first().map_or(0.0, |request| request.at);
        for request in &mut self.requests {
            request.at -= first;
        }
    }
}

/// Makes a log ready to be driven `speed` times as fast as it was written.
/// Tenants named in `map` become those; others become themselves if they are
/// known, else the known ones in turn, the busiest first.
///
/// # Errors
/// When targets or tenants cannot be used.
pub async fn prepare(
    title: &str,
    log: Log,
    speed: f64,
    map: &[(String, String)],
    environment: &Environment,
    options: &Options,
) -> Result<Prepared> {
    let targets = run::targets(environment)?;
    let population = Population::gather(&scenario::Population::default(), environment).await?;
    let tenants = remap(&log.requests, map, &population)?;
    let prefix = targets
        .first()
        .map(|target| target.prefix.clone())
        .unwrap_or_default();
    let mut kinds: Vec<(String, Method)> = Vec::new();
    let mut place_of: HashMap<String, usize> = HashMap::new();
    let (mut arrivals, mut paths) = (Vec::new(), Vec::new());
    for request in &log.requests {
        let path = request
            .path
            .strip_prefix(ROUTER_PATH)
            .unwrap_or(&request.path);
        // What a client once sent and HTTP cannot carry is not sent again.
        let Ok(uri) = format!("{prefix}{path}").parse::<Uri>() else {
            continue;
        };
        arrivals.push(Logged {
            due: Duration::from_secs_f64(request.at / speed),
            operation: kind(path, &request.method, &mut kinds, &mut place_of),
            tenant: tenants
                .get(request.tenant.as_deref().unwrap_or_default())
                .copied()
                .unwrap_or_default(),
            path: paths.len(),
        });
        paths.push(uri);
    }
    let plan = Plan {
        script: Script::of_log(kinds.clone()),
        population,
        targets,
        streams: vec![Stream {
            start: Duration::ZERO,
            kind: StreamKind::Log {
                arrivals,
                connections: CONNECTIONS,
            },
        }],
        timeout: TIMEOUT,
        look_for_leaks: false,
        run: token::run_name(),
        seed: 1,
        threads: run::threads(options, CONNECTIONS),
        journal_limit: 0,
        log_paths: paths,
    };
    let description = format!(
        "Replay at {speed} × speed; {} writes and {} other lines of the log left out.",
        log.writes, log.other_lines
    );
    Ok(Prepared {
        plan: Arc::new(plan),
        title: (title.to_owned(), description),
        model: "replay",
        gates: Vec::new(),
        checks: None,
        rows: kinds.into_iter().map(|(name, _)| name).collect(),
        flood_windows: Vec::new(),
    })
}

/// The place of a request's kind: its method and table.
fn kind(
    path: &str,
    method: &Method,
    kinds: &mut Vec<(String, Method)>,
    place_of: &mut HashMap<String, usize>,
) -> usize {
    let table = path.split('?').next().unwrap_or_default();
    let mut name = format!("{method} {table}");
    if !place_of.contains_key(&name) && kinds.len() >= KINDS_MAX {
        name = format!("{method} others");
    }
    *place_of.entry(name.clone()).or_insert_with(|| {
        kinds.push((name, method.clone()));
        kinds.len() - 1
    })
}

/// Which tenant of the population each tenant of the log becomes.
fn remap(
    requests: &[Request],
    map: &[(String, String)],
    population: &Population,
) -> Result<HashMap<String, usize>> {
    let known = |slug: &str| {
        population.place(slug).ok_or_else(|| {
            Error::Environment(format!(
                "--map names tenant {slug:?}, of which no key is known"
            ))
        })
    };
    let mut places = HashMap::new();
    for (from, to) in map {
        places.insert(from.clone(), known(to)?);
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for request in requests {
        *counts
            .entry(request.tenant.as_deref().unwrap_or_default())
            .or_default() += 1;
    }
    let mut busiest: Vec<(&str, u64)> = counts
        .into_iter()
        .filter(|(name, _)| !places.contains_key(*name))
        .collect();
    busiest.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (turn, (name, _)) in busiest.into_iter().enumerate() {
        let place = population
            .place(name)
            .unwrap_or(turn % population.tenants.len());
        places.insert(name.to_owned(), place);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> Log {
        let mut log = Log::default();
        lines.iter().for_each(|line| log.take(line));
        log.arrange();
        log
    }

    #[test]
    fn whole_seconds_are_spread_and_exact_times_kept() {
        let line = |second: u32| {
            format!(
                "1.2.3.4 - acme [10/Oct/2000:13:55:{second:02} +0000] \"GET /a HTTP/1.1\" 200 1"
            )
        };
        let lines = [line(36), line(36), line(38), "noise".to_owned()];
        let read = log(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(
            read.requests
                .iter()
                .map(|request| request.at)
                .collect::<Vec<_>>(),
            [0.0, 0.5, 2.0]
        );
        assert_eq!(read.other_lines, 1);
        let exact = log(&[
            r#"{"time":100.250,"method":"GET","path":"/a","duration_ms":0}"#,
            r#"{"time":100.000,"method":"GET","path":"/b","duration_ms":0}"#,
            r#"{"time":100.100,"method":"POST","path":"/b","duration_ms":0}"#,
        ]);
        assert_eq!(
            exact
                .requests
                .iter()
                .map(|request| request.path.as_str())
                .collect::<Vec<_>>(),
            ["/b", "/a"]
        );
        assert_eq!((exact.requests[1].at, exact.writes), (0.25, 1));
    }

    #[test]
    fn many_kinds_are_reported_together() {
        let (mut kinds, mut places) = (Vec::new(), HashMap::new());
        for n in 0..200 {
            kind(&format!("/t{n}?x=1"), &Method::GET, &mut kinds, &mut places);
        }
        assert_eq!(kinds.len(), KINDS_MAX + 1);
        assert_eq!(kinds[0].0, "GET /t0");
        assert_eq!(kind("/t3", &Method::GET, &mut kinds, &mut places), 3);
    }
}
