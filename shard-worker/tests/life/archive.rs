//! A tenant goes out as an archive and comes back as another, the same to the
//! last byte, though workers die; what is damaged leaves nothing behind.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use schema::archive::read::{self, Piece};
use schema::archive::{Digests, Manifest};
use serde_json::Value;

use crate::stage::{SOON, Stage};

/// Rows of the tenant: several parts.
const ROWS: i32 = 36_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_comes_back_as_another_tenant() {
    let stage = Stage::start(40).await;
    let (acme, shard) = stage.tenant("acme").await;
    odd_values(&stage, &shard, acme).await;
    stage.fill(&shard, acme, ROWS).await;
    let folder = stage.cluster.path().join("archives");
    std::fs::create_dir(&folder).unwrap();
    let plain = folder.join("acme.tar");

    // The worker dies while it writes, and no file is there; then it is whole.
    stage.fail_at(&["export_part"]);
    let export = start(&stage, &["tenant", "export", "acme", "--to", text(&plain)]);
    stage.worker_is_dead().await;
    assert!(!plain.exists());
    stage.revive_worker().await;
    let exported = done(export.wait_with_output().await);
    assert_eq!(
        exported["rows"],
        stage.rows(&shard, acme).await.values().sum::<i64>()
    );
    // Who took it away, and how much, is on record.
    let taken = "select (after ->> 'rows')::bigint from ringfence.audit
                 where action = 'tenant.export' and object = 'acme' and result = 'done'";
    let taken = stage.control().await.query_one(taken, &[]).await;
    assert_eq!(exported["rows"], taken.unwrap().get::<_, i64>(0));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(plain.metadata().unwrap().mode() & 0o777, 0o600);
    let (manifest, digests) = contents(&plain);
    assert!(digests.parts.len() > 3, "{}", digests.parts.len());
    assert_eq!(manifest.tenant.slug.as_deref(), Some("acme"));

    // To the other shard, compressed, by a worker that dies after some parts,
    // before it has looked at them, and between fence and control row.
    let other = if shard == "s1" { "s2" } else { "s1" };
    let zst = folder.join("acme.tar.zst");
    done(
        start(&stage, &["tenant", "export", "acme", "--to", text(&zst)])
            .wait_with_output()
            .await,
    );
    assert!(zst.metadata().unwrap().len() * 3 < plain.metadata().unwrap().len());
    stage.fail_at(&["import_part", "import_verifying", "import_fence"]);
    let import = start(
        &stage,
        &[
            "tenant",
            "import",
            text(&zst),
            "--as",
            "again",
            "--shard",
            other,
        ],
    );
    for _ in 0..3 {
        stage.worker_is_dead().await;
        let state = "select state from ringfence.tenant where slug = 'again'";
        let state = stage.control().await.query_one(state, &[]).await;
        assert_eq!(state.unwrap().get::<_, &str>(0), "importing");
        stage.revive_worker().await;
    }
    let imported = done(import.wait_with_output().await);
    assert_eq!(imported["status"], "done", "{imported}");
    let (again, placed) = stage.tenant("again").await;
    assert_eq!(placed, other);
    assert_ne!(again, acme);
    assert_eq!(
        stage.rows(other, again).await,
        stage.rows(&shard, acme).await
    );
    let left = stage
        .shard(other)
        .await
        .query_one(
            "select (select count(*) from ringfence.import) + (select count(*) from ringfence.import_part)
               + (select count(*) from ringfence.job_mark)",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);

    // Its own archive has the same digests: not a byte of a row differs.
    let back = folder.join("again.tar");
    done(
        start(&stage, &["tenant", "export", "again", "--to", text(&back)])
            .wait_with_output()
            .await,
    );
    assert_eq!(contents(&back).1.parts, digests.parts);

    // It is served, and new rows get numbers of their own.
    let key = stage.new_key("again").await;
    let url = format!("{}/rest/v1/companies", stage.cluster.router_url(0));
    let http = reqwest::Client::new();
    let deadline = Instant::now() + SOON;
    loop {
        let body = serde_json::json!({ "name": "Imported Ltd" });
        let sent = http
            .post(&url)
            .header("apikey", &key)
            .json(&body)
            .send()
            .await;
        let status = sent.unwrap().status();
        if status == StatusCode::CREATED {
            break;
        }
        assert_ne!(status, StatusCode::CONFLICT);
        assert!(Instant::now() < deadline, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A name in use is refused, and so is a file that is there.
    let taken = start(&stage, &["tenant", "import", text(&plain)])
        .wait_with_output()
        .await;
    assert!(
        said(&taken).contains("there is a tenant acme already"),
        "{}",
        said(&taken)
    );
    let there = start(&stage, &["tenant", "export", "acme", "--to", text(&back)]);
    assert!(said(&there.wait_with_output().await).contains("is there already"));

    // What is not whole yet is not written as if it were.
    let importing = "update ringfence.tenant set state = $1 where slug = 'again'";
    let control = stage.control().await;
    control.execute(importing, &[&"importing"]).await.unwrap();
    let half = folder.join("half.tar");
    let refused = start(&stage, &["tenant", "export", "again", "--to", text(&half)]);
    let refused = said(&refused.wait_with_output().await);
    assert!(refused.contains("is being imported"), "{refused}");
    assert!(!half.exists());
    control.execute(importing, &[&"active"]).await.unwrap();

    // Nor does one come in while a migration fills the rows that are there.
    let migration = "insert into ringfence.job (kind, object, shards, state, status)
         values ('migrate', 'app', '{s1,s2}', '{}', 'stuck') returning id";
    let row = control.query_one(migration, &[]).await.unwrap();
    let migration: uuid::Uuid = row.get(0);
    let refused = start(&stage, &["tenant", "import", text(&zst), "--as", "beside"]);
    let refused = said(&refused.wait_with_output().await);
    assert!(refused.contains("(migrate app) is under way"), "{refused}");
    let ended = "delete from ringfence.job where id = $1";
    control.execute(ended, &[&migration]).await.unwrap();

    // What is damaged is refused by the worker, too, and nothing is left of it.
    let bytes = std::fs::read(&plain).unwrap();
    let at = bytes.len() - bytes.len() / 4;
    let at = at + bytes[at..].windows(4).position(|w| w == b"No. ").unwrap();
    let mut changed = bytes.clone();
    changed[at] = b'M';
    let cut = bytes[..bytes.len() * 3 / 4].to_vec();
    for (name, bad, code) in [("changed", changed, "RF432"), ("cut", cut, "RF431")] {
        let file = folder.join(format!("{name}.tar"));
        std::fs::write(&file, &bad).unwrap();
        let here = start(&stage, &["tenant", "import", text(&file), "--as", name]);
        assert!(!here.wait_with_output().await.status.success());
        assert!(
            stage
                .control()
                .await
                .query_opt("select from ringfence.tenant where slug = $1", &[&name])
                .await
                .unwrap()
                .is_none()
        );
        let url = format!(
            "{}/admin/v1/tenants:import?as={name}",
            stage.cluster.admin_url()
        );
        let sent = http
            .post(url)
            .bearer_auth(stage.cluster.admin_token())
            .body(bad)
            .send()
            .await;
        let answer: Value = sent.unwrap().json().await.unwrap();
        assert_eq!(answer["code"], code, "{answer}");
        let jobs = stage.get("jobs?kind=tenant_restore").await;
        let id = jobs["items"][0]["id"].as_str().unwrap().to_owned();
        let job = stage.over(&id).await;
        assert_eq!(
            (&job["status"], &job["object"]),
            (&"failed".into(), &name.into()),
            "{job}"
        );
        nothing_left(&stage, &[again, acme]).await;
    }

    // Rows of that id which are there already are not the import's to delete.
    let lost = uuid::Uuid::new_v4();
    let there = stage.shard(other).await;
    let fence = "insert into ringfence.fence (tenant_id, epoch) values ($1, 1)";
    there.execute(fence, &[&lost]).await.unwrap();
    stage.fill(other, lost, 3).await;
    let id = lost.to_string();
    let refused = start(
        &stage,
        &[
            "tenant",
            "import",
            text(&zst),
            "--as",
            "found",
            "--id",
            &id,
            "--shard",
            other,
        ],
    );
    let refused = said(&refused.wait_with_output().await);
    assert!(refused.contains("holds rows of tenant"), "{refused}");
    let jobs = stage.get("jobs?kind=tenant_restore").await;
    let job = stage.over(jobs["items"][0]["id"].as_str().unwrap()).await;
    assert_eq!(job["object"], "found", "{job}");
    assert_eq!(stage.rows(other, lost).await["public.activities"], 3);
    let fence = "select from ringfence.fence where tenant_id = $1";
    assert!(there.query_opt(fence, &[&lost]).await.unwrap().is_some());
    nothing_left(&stage, &[again, acme, lost]).await;

    // Tables that differ are refused before a row comes in.
    for shard in ["s1", "s2"] {
        let sql = "alter table companies add column must text not null default ''; alter table companies alter column must drop default";
        stage.shard(shard).await.batch_execute(sql).await.unwrap();
    }
    let differs = start(&stage, &["tenant", "import", text(&zst), "--as", "late"]);
    let differs = said(&differs.wait_with_output().await);
    assert!(
        differs.contains("the archive lacks column must"),
        "{differs}"
    );
    nothing_left(&stage, &[again, acme]).await;
    stage.cluster.down().await;
}

/// A table of values that JSON does not have.
async fn odd_values(stage: &Stage, shard: &str, tenant: uuid::Uuid) {
    for name in ["s1", "s2"] {
        let make = "create type mood as enum ('sad', 'very sad');
             create domain short as varchar(5);
             create type pair as (a int, b text);
             create table odd (id bigint generated always as identity primary key,
               j jsonb, js json, b bytea, ts timestamptz, d date, f float8, r real, n numeric, i interval(3),
               a text[], m mood, s short, p pair, ip inet, bits bit(5), c char(4), rng int4range,
               twice bigint generated always as (id * 2) stored, \"we\"\"ird, name\" text, t int, x int, line text);
             select ringfence.distribute('odd')";
        stage.shard(name).await.batch_execute(make).await.unwrap();
    }
    let fill = format!(
        "set session_replication_role = replica;
         insert into odd (tenant_id, j, js, b, ts, d, f, r, n, i, a, m, s, p, ip, bits, c, rng, \"we\"\"ird, name\")
         select '{tenant}', j.j, js, b, ts, d, f, r, n, i, a, m, s, p, ip, bits, c, rng, w
         from (values
           ('null'::jsonb, e'{{\"a\":\\n 1, \"a\": 2}}'::json, '\\x00ff0a'::bytea, 'infinity'::timestamptz, '-infinity'::date,
            'NaN'::float8, '-Infinity'::real, 'NaN'::numeric, '1 mon -3 days 00:00:01.234'::interval,
            '[2:3]={{x,NULL}}'::text[], 'very sad'::mood, 'short'::short, '(1,\"a,\"\"b\")'::pair, '10.0.0.0/8'::inet,
            b'10101', 'ab'::char(4), '[1,5)'::int4range, e'a\\nb\\t\\\\ \"q\" \\u0001 é 漢'),
           ('{{\"$ringfence\": null}}', 'null', '', '0044-03-15 12:00:00+00 BC', '2026-01-02', 0.1, 1e-30, 1.50, '0',
            '{{}}', 'sad', '', '(,)', '::1', b'00000', '', 'empty', ''),
           ('\"$ringfence\"', null, null, '2026-01-02 03:04:05.123456+05', null, 1e308, null, 12345678901234567890.123456789, null,
            null, null, null, null, null, null, null, null, null),
           ('[1.0, 1.00, \"x\"]', '[]', '\\x', null, null, '-0', 3.4e38, 'Infinity', '-1 year',
            '{{{{a,b}},{{c,d}}}}', null, null, null, null, null, null, '(,)', e'\\\\.'),
           (null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)
         ) v (jx, js, b, ts, d, f, r, n, i, a, m, s, p, ip, bits, c, rng, w), lateral (select jx::jsonb as j) j"
    );
    stage.shard(shard).await.batch_execute(&fill).await.unwrap();
}

async fn nothing_left(stage: &Stage, known: &[uuid::Uuid]) {
    for name in ["s1", "s2"] {
        let left = stage
            .shard(name)
            .await
            .query_one(
                "select (select count(*) from activities where tenant_id <> all($1)
                    and tenant_id not in (select tenant_id from ringfence.fence))
                  + (select count(*) from ringfence.import) + (select count(*) from ringfence.import_part)",
                &[&known],
            )
            .await
            .unwrap();
        assert_eq!(left.get::<_, i64>(0), 0);
    }
    let left = "select count(*) from ringfence.tenant where state = 'importing'";
    let left = stage.control().await.query_one(left, &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}

fn contents(file: &Path) -> (Manifest, Digests) {
    let mut manifest = None;
    let digests = read::read(std::fs::File::open(file).unwrap(), |piece| {
        if let Piece::Manifest(known, _) = piece {
            manifest = Some(*known);
        }
        Ok(())
    });
    (manifest.unwrap(), digests.unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Running(std::process::Child);

impl Running {
    async fn wait_with_output(self) -> Output {
        let wait = tokio::task::spawn_blocking(|| self.0.wait_with_output().unwrap());
        tokio::time::timeout(SOON, wait).await.unwrap().unwrap()
    }
}

/// Starts the command line.
fn start(stage: &Stage, args: &[&str]) -> Running {
    let worker = PathBuf::from(env!("CARGO_BIN_EXE_ringfence-worker"));
    let child = Command::new(worker.with_file_name("ringfence"))
        .args(args)
        .args(["--output", "json", "--no-input"])
        .env("RINGFENCE_ADMIN_URL", stage.cluster.admin_url())
        .env("RINGFENCE_ADMIN_TOKEN", stage.cluster.admin_token())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Running(child.unwrap())
}

fn done(output: Output) -> Value {
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
