//! A tenant's life, as one file and to its end: it is exported, imported as
//! another on the other shard, and both are deleted, while the worker is killed
//! five times. The copy must have the original's digests, and no row of either may
//! be left.

use std::path::Path;
use std::time::{Duration, Instant};

use ops::admin::Admin;
use ops::local::{Cluster, Options};
use schema::archive::read::{self, Piece};
use schema::archive::{ArchiveError, Digests};
use schema::tenant_tables::tenant_tables;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{Args, Failure};

const TENANT: &str = "whale";
const COPY: &str = "whale-again";
const WORKER: &str = "worker-1";
/// Times that the worker is killed in all.
const KILLS: usize = 5;
/// Rows that are put in one statement.
const BATCH: u64 = 50_000;
/// Bytes that two rows of the tenant, of an activity and a note, have in an archive.
const PAIR_BYTES: u64 = 1_300;
/// How often the worker is looked at, to be killed in the middle of its work.
const LOOK: Duration = Duration::from_millis(10);
const TOLD: Duration = Duration::from_millis(100);
/// Below so many megabytes a deletion is over before it can be found half done: the
/// worker is killed at its beginning.
const SMALL: u64 = 100;

/// What came of it.
pub(super) struct Lived {
    rows: u64,
    bytes: u64,
    kills: usize,
    /// The copy's digests are the original's.
    same: bool,
    /// Rows that either tenant left behind, on shards and in the control database.
    left: i64,
    /// Steps, and seconds that they took, kills included.
    took: Vec<(&'static str, f64)>,
}

pub(super) async fn suffer(args: &Args) -> Result<Lived, Failure> {
    let cluster = Cluster::start(Options {
        shards: Some(2),
        replicas: Some(0),
        routers: Some(1),
        ..Options::default()
    })
    .await?;
    let admin = Admin::new(&cluster.admin_url(), cluster.admin_token())?;
    let made = admin.post("/tenants", &json!({ "slug": TENANT })).await?;
    let original = id(&made)?;
    let shard = made["shard"].as_str().unwrap_or_default().to_owned();
    let target = if shard == "s1" { "s2" } else { "s1" };
    let pairs = args.megabytes * 1_000_000 / PAIR_BYTES;
    eprintln!("· life: {pairs} activities with notes on {shard}");
    let client = connect(&cluster.shard_dsn(&format!("{shard}-primary"))?).await?;
    fill(&client, original, pairs).await?;

    let folder = cluster.path().join("archives");
    std::fs::create_dir_all(&folder)?;
    let (first, second) = (folder.join("whale.tar"), folder.join("again.tar"));
    let (first, second) = (first.display().to_string(), second.display().to_string());
    let mut life = Life {
        cluster,
        admin,
        kills: 0,
        took: Vec::new(),
    };
    let half = Moment::Bytes(&folder, args.megabytes * 500_000);
    let export = ["tenant", "export", TENANT, "--to", &first];
    life.step("export", &export, &[half]).await?;
    let digests = digests(Path::new(&first))?;
    let import = ["tenant", "import", &first, "--as", COPY, "--shard", target];
    let kind = "tenant_restore";
    let thirds = [Moment::Job(kind, 0.3), Moment::Job(kind, 0.6)];
    life.step("import", &import, &thirds).await?;
    let copy = id(&life.admin.get(&format!("/tenants/{COPY}"), &[]).await?)?;
    let export = ["tenant", "export", COPY, "--to", &second];
    life.step("export of the copy", &export, &[]).await?;
    let same = self::digests(Path::new(&second))?.parts == digests.parts;
    let kind = "tenant_delete";
    let part = if args.megabytes < SMALL { 0.0 } else { 0.3 };
    let delete = ["tenant", "delete", COPY, "--confirm", COPY, "--wait"];
    life.step("delete", &delete, &[Moment::Job(kind, part)])
        .await?;
    let delete = ["tenant", "delete", TENANT, "--confirm", TENANT, "--wait"];
    life.step("delete", &delete, &[Moment::Job(kind, part)])
        .await?;
    let mut left = 0;
    for tenant in [original, copy] {
        left += life.left(tenant).await?;
    }
    let Life {
        cluster,
        kills,
        took,
        ..
    } = life;
    cluster.down().await;
    Ok(Lived {
        rows: digests.rows,
        bytes: digests.bytes,
        kills,
        same,
        left,
        took,
    })
}

/// When the worker is killed.
#[derive(Clone, Copy)]
enum Moment<'a> {
    /// A file in this folder has so many bytes.
    Bytes(&'a Path, u64),
    /// An open job of this kind has done so much of its whole.
    Job(&'a str, f64),
}

struct Life {
    cluster: Cluster,
    admin: Admin,
    kills: usize,
    took: Vec<(&'static str, f64)>,
}

impl Life {
    /// Runs a command as its user does, and kills the worker meanwhile.
    async fn step(
        &mut self,
        name: &'static str,
        command: &[&str],
        moments: &[Moment<'_>],
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let program = std::env::current_exe()?.with_file_name("ringfence");
        let running = Command::new(program)
            .args(command)
            .arg("--no-input")
            .env("RINGFENCE_ADMIN_URL", self.cluster.admin_url())
            .env("RINGFENCE_ADMIN_TOKEN", self.cluster.admin_token())
            .kill_on_drop(true)
            .output();
        let mut running = std::pin::pin!(running);
        for moment in moments {
            let ended = tokio::select! {
                ended = &mut running => Some(ended?),
                () = self.comes(*moment) => None,
            };
            if ended.is_some() {
                return Err(format!("{name} was over before the worker could be killed").into());
            }
            eprintln!("· life: {name}: the worker is killed");
            self.cluster.kill(WORKER).await?;
            self.cluster.start_node(WORKER).await?;
            self.kills += 1;
        }
        let output = running.await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{name} failed: {said}").into());
        }
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("· life: {name}: {seconds:.1} s");
        self.took.push((name, seconds));
        Ok(())
    }

    async fn comes(&self, moment: Moment<'_>) {
        loop {
            let has_come = match moment {
                Moment::Bytes(folder, bytes) => largest(folder) >= bytes,
                Moment::Job(kind, part) => self.done(kind).await.is_some_and(|is| is >= part),
            };
            if has_come {
                // Who asked for the job has been told its name.
                return tokio::time::sleep(TOLD).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How much of its whole an open job has done; none where there is no such job.
    async fn done(&self, kind: &str) -> Option<f64> {
        let query = [("open", "true"), ("kind", kind)];
        let jobs = self.admin.get("/jobs", &query).await.unwrap_or_default();
        let progress = &jobs["items"].get(0)?["progress"];
        let number = |name: &str| progress[name].as_f64().unwrap_or(0.0);
        Some(number("done") / number("total").max(1.0))
    }

    /// Rows of a tenant, anywhere.
    async fn left(&self, tenant: Uuid) -> Result<i64, Failure> {
        let mut left = 0;
        for shard in ["s1-primary", "s2-primary"] {
            let client = connect(&self.cluster.shard_dsn(shard)?).await?;
            let own = [
                ("ringfence.fence", "tenant_id"),
                ("ringfence.import", "tenant"),
            ];
            let own = own.map(|(table, column)| (table.to_owned(), column.to_owned()));
            let tables = tenant_tables(&client).await?;
            let tables = tables
                .iter()
                .map(|table| (table.name.to_string(), table.tenant_column.to_string()));
            let places = own.into_iter().chain(tables);
            for (table, column) in places {
                let sql = format!("select count(*) from {table} where {column} = $1");
                left += client.query_one(&sql, &[&tenant]).await?.get::<_, i64>(0);
            }
            let sql = "select (select count(*) from ringfence.import_part)
                         + (select count(*) from ringfence.job_mark)";
            left += client.query_one(sql, &[]).await?.get::<_, i64>(0);
        }
        let control = connect(&self.cluster.control_dsn()).await?;
        let sql = "select (select count(*) from ringfence.api_key where tenant = $1)
                     + (select count(*) from ringfence.tenant where id = $1 and state <> 'deleted')";
        Ok(left + control.query_one(sql, &[&tenant]).await?.get::<_, i64>(0))
    }
}

/// Activities, and as many notes of them: small rows with indexes, and larger ones.
async fn fill(client: &Client, tenant: Uuid, pairs: u64) -> Result<(), Failure> {
    client
        .batch_execute("set session_replication_role = replica")
        .await?;
    let company = "insert into companies (tenant_id, name) values ($1, 'Whale') returning id";
    let company: i64 = client.query_one(company, &[&tenant]).await?.get(0);
    let mut first = 1;
    while first <= pairs {
        let last = pairs.min(first + BATCH - 1);
        let sql = format!(
            "insert into activities (tenant_id, kind, subject, minutes)
             select '{tenant}', (enum_range(null::activity_kind))[1 + n % 2],
               'No. ' || n || ', \"quoted\" ' || md5(n::text), 1 + n % 90
             from generate_series({first}, {last}) n;
             insert into notes (tenant_id, company_id, body)
             select '{tenant}', {company}, n || repeat(' ' || md5(n::text), 28)
             from generate_series({first}, {last}) n"
        );
        client.batch_execute(&sql).await?;
        first = last + 1;
    }
    client.batch_execute("analyze").await?;
    Ok(())
}

/// Bytes of the largest file.
fn largest(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
    sizes.max().unwrap_or(0)
}

fn digests(file: &Path) -> Result<Digests, Failure> {
    let read = read::read(std::fs::File::open(file)?, |_: Piece| {
        Ok::<(), ArchiveError>(())
    });
    Ok(read?)
}

fn id(tenant: &Value) -> Result<Uuid, Failure> {
    Ok(tenant["id"].as_str().unwrap_or_default().parse()?)
}

async fn connect(dsn: &str) -> Result<Client, Failure> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Lived {
    /// Whether it was as it must be.
    pub(super) fn is_good(&self) -> bool {
        self.same && self.left == 0 && self.kills == KILLS
    }

    /// What is told of it.
    pub(super) fn text(&self) -> String {
        let megabytes = self.bytes as f64 / 1e6;
        let took: Vec<String> = self
            .took
            .iter()
            .map(|(name, seconds)| format!("{name} {seconds:.1} s"))
            .collect();
        format!(
            "life: {} rows, {megabytes:.0} MB; {}; {} kills; digests {}; {} rows left: {}",
            self.rows,
            took.join(", "),
            self.kills,
            if self.same { "equal" } else { "DIFFER" },
            self.left,
            if self.is_good() { "good" } else { "BAD" }
        )
    }
}
