//! What a shard's nodes, and clients that are merely connected, cost: reads with
//! 0, 1 and 2 replicas, the looks at a node, and idle connections.

use std::time::Duration;

use ops::local::{Cluster, Content, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Args, Bench, Failure, Sample, Work, connect, cpu, median, process, resident};

/// Reads with so many replicas.
pub(crate) struct Replicated {
    pub(crate) replicas: usize,
    pub(crate) sample: Sample,
    /// CPU time of the primary for each read, which replicas take off it.
    pub(crate) primary_us: f64,
}

/// What is spent on nobody's request.
pub(crate) struct Idle {
    /// CPU time of a node for one look at it, of five a second and router.
    pub(crate) look_us: f64,
    pub(crate) connections: usize,
    pub(crate) bytes_each: u64,
}

const READ: Work = Work {
    name: "one row by key",
    path: "companies?id=eq.{id}",
    params: &[],
    inserts: 0,
    goal: None,
};
const CONNECTIONS: usize = 10_000;
const LOOKS: u32 = 2_000;

/// Runs all of it on a cluster of its own.
pub(crate) async fn measure(args: &Args) -> Result<(Vec<Replicated>, Idle), Failure> {
    eprintln!("· starting a cluster of one shard with two replicas and one router");
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, most_files());
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(2),
        routers: Some(1),
        content: Content::Demo {
            extra: 0,
            rows: Some(5_000),
        },
        ..Options::default()
    })
    .await?;
    let bench = Bench::new(&cluster, args).await?;
    let mut rows = Vec::new();
    for replicas in [2, 1, 0] {
        if replicas == 1 {
            cluster.shut_down("s1-replica2").await?;
        }
        // One second old is fine: the replicas answer, as far as there are any.
        let prefer = match replicas {
            0 => "read=primary",
            _ => "max-staleness=2",
        };
        let script = bench.wrk_script(&READ, "wrk.lua", "/rest/v1/", &[("prefer", prefer)])?;
        let (mut samples, mut at_primary) = (Vec::new(), Vec::new());
        for round in 1..=args.rounds {
            eprintln!("· {replicas} replicas: round {round} of {}", args.rounds);
            let before = cpu(bench.postgres_pid);
            let sample =
                bench.measured(Some(bench.router_pid), || bench.wrk(&script, &bench.url))?;
            let spent = cpu(bench.postgres_pid).saturating_sub(before);
            at_primary.push(spent.as_secs_f64() * 1e6 / (sample.rate * args.seconds as f64));
            samples.push(sample);
        }
        at_primary.sort_by(f64::total_cmp);
        rows.push(Replicated {
            replicas,
            sample: median(&samples),
            primary_us: at_primary[at_primary.len() / 2],
        });
    }
    rows.reverse();
    let look_us = look(&cluster).await?;
    let idle = idle_connections(&cluster, &bench, look_us).await?;
    cluster.down().await;
    Ok((rows, idle))
}

/// What one look costs the primary.
async fn look(cluster: &Cluster) -> Result<f64, Failure> {
    let pid = process(cluster, "s1-primary")?;
    let client = connect(&cluster.router_dsn("s1-primary")?).await?;
    let text = "select is_primary, system_id, timeline, lsn from ringfence.node()";
    let question = client.prepare(text).await?;
    let before = cpu(pid);
    for _ in 0..LOOKS {
        client.query_one(&question, &[]).await?;
    }
    let spent = cpu(pid).saturating_sub(before);
    Ok(spent.as_secs_f64() * 1e6 / f64::from(LOOKS))
}

/// Clients that have sent one request each and stay connected.
async fn idle_connections(
    cluster: &Cluster,
    bench: &Bench<'_>,
    look_us: f64,
) -> Result<Idle, Failure> {
    eprintln!("· {CONNECTIONS} idle connections");
    let address = cluster.router_url(0).replace("http://", "");
    let request = format!(
        "GET /rest/v1/companies?limit=1 HTTP/1.1\r\nhost: x\r\napikey: {}\r\n\r\n",
        bench.key
    );
    let before = resident(bench.router_pid);
    let mut streams = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).await?;
        if !answer[..length].starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&answer[..length]).into());
        }
        streams.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = resident(bench.router_pid);
    let bytes_each = after.saturating_sub(before) / streams.len() as u64;
    Ok(Idle {
        look_us,
        connections: streams.len(),
        bytes_each,
    })
}

/// As many files as this process may open at all; its children inherit it.
fn most_files() -> rustix::process::Rlimit {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    }
}
