//! The schema changes on three shards under `crm_day`: a column, an index, a
//! table and a back-fill, round after round. By turns the same load runs
//! without any change, so that the two differ by the changes alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ops::local::{Cluster, Options};
use serde_json::Value;
use tokio_postgres::NoTls;

use super::{Args, Failure, Fault, Seen, load};

const SHARDS: [&str; 3] = ["s1", "s2", "s3"];
/// Rows that an index is built of and a back-fill goes through, on each shard: as
/// many as two cores get through, beside the load, in half of its usual time.
const ROWS: u32 = 30_000;
const ROUNDS: usize = 3;
/// Of the load without changes.
const P99_RATIO_MAX: f64 = 1.5;
/// The load's begin is left alone.
const BEGIN: Duration = Duration::from_secs(2);
const WARM_SECONDS: u64 = 8;

/// What the load saw.
pub(super) struct Compared {
    before: Vec<Run>,
    during: Vec<Run>,
    /// How long the changes took, each round.
    changes: Vec<Duration>,
}

struct Run {
    seen: Seen,
    p99_ms: f64,
}

pub(super) async fn suffer(args: &Args) -> Result<Compared, Failure> {
    let cluster = Cluster::start(Options {
        shards: Some(SHARDS.len() as u16),
        replicas: Some(1),
        routers: Some(2),
        caches: true,
        ..Options::default()
    })
    .await?;
    for shard in SHARDS {
        fill(&cluster, shard).await?;
    }
    let folder = args.reports.clone().unwrap_or(cluster.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let files = cluster.path().join("chaos");
    std::fs::create_dir_all(&files)?;
    let mut seen = Compared {
        before: Vec::new(),
        during: Vec::new(),
        changes: Vec::new(),
    };
    let warm = Args {
        seconds: WARM_SECONDS,
        ..args.clone()
    };
    run(&cluster, &warm, folder.join("migrate-warm.json"), None).await?;
    for round in 0..ROUNDS {
        let report = |name: &str| folder.join(format!("migrate-{name}-{round}.json"));
        let (before, _) = run(&cluster, args, report("before"), None).await?;
        write(&files, round)?;
        let (during, took) = run(&cluster, args, report("during"), Some(&files)).await?;
        eprintln!(
            "· migrate: p99 {:.1} ms without, {:.1} ms with changes, which took {:.1} s",
            before.p99_ms,
            during.p99_ms,
            took.as_secs_f64()
        );
        seen.before.push(before);
        seen.during.push(during);
        seen.changes.push(took);
    }
    cluster.down().await;
    Ok(seen)
}

/// One run of the load, with or without the changes in its middle.
async fn run(
    cluster: &Cluster,
    args: &Args,
    report: PathBuf,
    files: Option<&Path>,
) -> Result<(Run, Duration), Failure> {
    let mut load = load(cluster, args, "crm_day", &report)?;
    let mut took = Duration::ZERO;
    if let Some(files) = files {
        tokio::time::sleep(BEGIN).await;
        let begun = Instant::now();
        apply(cluster, files).await?;
        took = begun.elapsed();
        if load.try_wait()?.is_some() {
            let seconds = took.as_secs();
            let problem =
                format!("the changes took {seconds} s, the load less: give it more --seconds");
            return Err(problem.into());
        }
    }
    load.wait().await?;
    let text = std::fs::read_to_string(&report)
        .map_err(|error| format!("the load tester wrote no report: {error}"))?;
    let report: Value = serde_json::from_str(&text)?;
    let p99_ms = report["total"]["latency_ms"]["p99"].as_f64();
    let run = Run {
        seen: Seen::read(Fault::Migrate, &report),
        p99_ms: p99_ms.ok_or("the report has no p99")?,
    };
    Ok((run, took))
}

/// As its user does.
async fn apply(cluster: &Cluster, files: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe()?.with_file_name("ringfence");
    let applied = tokio::process::Command::new(program)
        .args(["migrate", "apply", "--wait", "--no-input", "--dir"])
        .arg(files)
        .env("RINGFENCE_ADMIN_URL", cluster.admin_url())
        .env("RINGFENCE_ADMIN_TOKEN", cluster.admin_token())
        .output()
        .await?;
    match applied.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&applied.stderr).into_owned().into()),
    }
}

/// A round's files: a column, an index, a table, a back-fill.
fn write(folder: &Path, round: usize) -> Result<(), Failure> {
    let files = [
        (
            "column",
            format!("alter table activities add column extra_{round} int;\n"),
        ),
        (
            "index",
            format!(
                "-- ringfence: no-transaction\n\
                 create index concurrently activities_extra_{round} on activities (tenant_id, minutes, kind);\n"
            ),
        ),
        (
            "table",
            format!(
                "create table extra_{round} (id bigint generated always as identity primary key, note text);\n\
                 select ringfence.distribute('extra_{round}');\n"
            ),
        ),
        (
            "backfill",
            format!(
                "-- ringfence: no-transaction\n-- ringfence: backfill rows 1000\n\
                 update activities set extra_{round} = minutes where extra_{round} is null;\n"
            ),
        ),
    ];
    for (place, (name, text)) in files.iter().enumerate() {
        let number = round * files.len() + place + 1;
        std::fs::write(folder.join(format!("{number:03}_{name}_{round}.sql")), text)?;
    }
    Ok(())
}

/// Rows of tenants that are nobody's, so that the load's are not more to read.
async fn fill(cluster: &Cluster, shard: &str) -> Result<(), Failure> {
    let dsn = cluster.shard_dsn(&format!("{shard}-primary"))?;
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(&format!(
            "set session_replication_role = replica;
             insert into activities (tenant_id, kind, subject, minutes)
             select md5((n % 50)::text)::uuid, (enum_range(null::activity_kind))[1 + n % 2],
               'No. ' || n || md5(n::text), 1 + n % 90
             from generate_series(1, {ROWS}) n;
             analyze activities"
        ))
        .await?;
    Ok(())
}

impl Compared {
    fn p99(runs: &[Run]) -> f64 {
        let mut sorted: Vec<f64> = runs.iter().map(|run| run.p99_ms).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    fn ratio(&self) -> f64 {
        Self::p99(&self.during) / Self::p99(&self.before)
    }

    pub(super) fn is_good(&self) -> bool {
        let runs = self.before.iter().chain(&self.during);
        let mut seen = runs.map(|run| &run.seen);
        self.ratio() <= P99_RATIO_MAX
            && seen.all(|seen| seen.requests > 0 && seen.failed == 0 && seen.violations == 0)
    }

    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header([
            "LOAD",
            "REQUESTS",
            "FAILED",
            "P99",
            "LONGEST",
            "VIOLATIONS",
        ]);
        for (name, runs) in [("without", &self.before), ("with changes", &self.during)] {
            let sum = |of: fn(&Seen) -> u64| runs.iter().map(|run| of(&run.seen)).sum::<u64>();
            let longest = runs.iter().map(|run| run.seen.longest_ms);
            table.add_row([
                name.to_owned(),
                sum(|seen| seen.requests).to_string(),
                sum(|seen| seen.failed).to_string(),
                format!("{:.1} ms", Self::p99(runs)),
                format!("{:.0} ms", longest.fold(0.0, f64::max)),
                sum(|seen| seen.violations as u64).to_string(),
            ]);
        }
        let took: f64 = self.changes.iter().map(Duration::as_secs_f64).sum();
        table.add_row([
            format!("ratio of p99 {:.2}", self.ratio()),
            format!("{took:.0} s of changes"),
            if self.is_good() { "good" } else { "BAD" }.to_owned(),
        ]);
        table
    }
}
