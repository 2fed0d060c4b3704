//! The same data twice: in a tenant of a distributed shard behind the router,
//! and in a single-tenant database behind PostgREST.

use std::sync::Arc;
use std::time::Duration;

use ops::local::{Cluster, Content, Options};
use reqwest::Method;
use router::app::App;
use router::config::{Api, Config, RequestLog};
use router::event::Events;
use router::event::metrics::Metrics;
use schema::catalog::Catalog;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::case::Case;
use crate::postgrest::Postgrest;

/// The schemas that both expose.
pub(crate) const SCHEMAS: [&str; 2] = ["public", "archive"];

pub(crate) struct Pair {
    pub(crate) cluster: Cluster,
    /// The shard's schema, as the router knows it.
    pub(crate) catalog: Arc<Catalog>,
    /// Superuser on the single-tenant copy.
    pub(crate) single: Client,
    /// Superuser on the shard.
    shard: Client,
    tenant: Uuid,
    /// A second tenant of that shard, with the same rows, which no request is for.
    other: Uuid,
    key: String,
    router: String,
    postgrest: Postgrest,
    http: reqwest::Client,
    stop: CancellationToken,
}

/// What one side answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// Headers that clients read; the others are each server's own.
const HEADERS: [&str; 13] = [
    "content-type",
    "content-range",
    "content-location",
    "content-profile",
    "location",
    "preference-applied",
    "allow",
    "www-authenticate",
    "x-tea",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-max-age",
];

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The member `code` of an error.
    pub(crate) fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_str(&self.body).ok()?;
        Some(body.get("code")?.as_str()?.to_owned())
    }
}

impl Pair {
    pub(crate) async fn open() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(1),
            content: Content::Services,
            ..Options::default()
        })
        .await
        .unwrap();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let (other, _) = tenant(&cluster, &http, "other").await;
        let (tenant, key) = tenant(&cluster, &http, "one").await;
        let dsn = cluster.shard_dsn("s1-primary").unwrap();
        let shard = connect(&dsn).await;
        distribute(&shard, &[tenant, other]).await;
        let (single, single_dsn) = single_tenant(&shard, &dsn).await;
        let catalog = schema::introspect::load(&shard, &SCHEMAS).await.unwrap();
        let stop = CancellationToken::new();
        let router = serve(&cluster, stop.clone()).await;
        let postgrest = Postgrest::start(&single_dsn, &SCHEMAS).await;
        let pair = Self {
            cluster,
            catalog: Arc::new(catalog),
            single,
            shard,
            tenant,
            other,
            key,
            router,
            postgrest,
            http,
            stop,
        };
        pair.until_ready().await;
        pair
    }

    pub(crate) async fn down(self) {
        self.stop.cancel();
        self.postgrest.stop().await;
        self.cluster.down().await;
    }

    /// What both answer: the router, PostgREST.
    pub(crate) async fn ask(&self, case: &Case) -> (Reply, Reply) {
        let ours = self.send(&self.router, ("apikey", &self.key), case);
        let token = format!("Bearer {}", self.postgrest.token());
        let theirs = self.send(self.postgrest.url(), ("authorization", &token), case);
        tokio::join!(ours, theirs)
    }

    /// Everything that both hold, as text: the tenant's rows, and the copy's.
    pub(crate) async fn contents(&self) -> (String, String) {
        let ours = self.rows(&self.shard, Some(self.tenant)).await;
        (ours, self.rows(&self.single, None).await)
    }

    /// Everything that the other tenant has, as text.
    pub(crate) async fn other_contents(&self) -> String {
        self.rows(&self.shard, Some(self.other)).await
    }

    /// All tables' rows, of one tenant or of the copy.
    async fn rows(&self, client: &Client, tenant: Option<Uuid>) -> String {
        let tables = self.tables().into_iter().map(|relation| {
            let columns = relation.columns.iter();
            let columns: Vec<String> = columns.map(|column| column.name.to_string()).collect();
            let name = &relation.name;
            let scope = match (relation.tenant_column(), tenant) {
                (Some(column), Some(tenant)) => format!("where {column} = '{tenant}'"),
                _ => String::new(),
            };
            format!(
                "select '{name}' || E'\\n' || coalesce(string_agg(r::text, E'\\n' order by r::text), '')
                 from (select {} from {name} {scope}) r",
                columns.join(", ")
            )
        });
        let sql = tables.collect::<Vec<_>>().join(" union all ");
        let rows = client.query(&sql, &[]).await.unwrap();
        let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        texts.join("\n")
    }

    /// Puts the first rows and numbers back on both sides.
    pub(crate) async fn restore(&self) {
        let mut names: Vec<String> = Vec::new();
        for relation in self.tables() {
            if relation.tenant_column().is_some() {
                names.push(relation.name.to_string());
            }
        }
        let rows = include_str!("rows.sql");
        let truncate = format!(
            "begin; truncate {} cascade; {rows}; commit",
            names.join(", ")
        );
        self.single.batch_execute(&truncate).await.unwrap();
        // Not TRUNCATE, which distributed tables refuse. Foreign keys are
        // checked for by triggers, which a replica's role leaves out.
        let deletes: Vec<String> = names
            .iter()
            .map(|name| format!("delete from {name} where tenant_id = '{}'", self.tenant))
            .collect();
        let fill = fill(self.tenant);
        let deletes = deletes.join("; ");
        self.shard
            .batch_execute(&format!(
                "begin; set local session_replication_role = replica; {deletes}; commit; {fill}"
            ))
            .await
            .unwrap();
    }

    /// Puts the numbers back that rolled back inserts have used up.
    pub(crate) async fn restore_numbers(&self) {
        let reset = "select setval(pg_get_serial_sequence(t, 'id'), 100)
            from unnest(array['people', 'venues', 'shows', 'archive.boxes']) t";
        self.single.batch_execute(reset).await.unwrap();
        self.shard.batch_execute(reset).await.unwrap();
    }

    fn tables(&self) -> Vec<&schema::catalog::Relation> {
        let relations = self.catalog.relations.values();
        let mut tables: Vec<_> = relations
            .filter(|relation| relation.kind == schema::catalog::RelationKind::Table)
            .collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        tables
    }

    async fn send(&self, base: &str, credentials: (&str, &str), case: &Case) -> Reply {
        let url = format!("{base}{}", case.target());
        let method = Method::from_bytes(case.method.as_bytes()).unwrap();
        let mut request = self.http.request(method, url);
        request = request.header(credentials.0, credentials.1);
        for (name, value) in &case.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &case.body {
            request = request.body(body.clone());
        }
        // PostgREST closes idle connections just when they are used again, now
        // and then; the router may not.
        let again = request.try_clone().filter(|_| base == self.postgrest.url());
        let response = match (request.send().await, again) {
            (Ok(response), _) => response,
            (Err(_), Some(again)) => again.send().await.unwrap(),
            (Err(error), None) => panic!("{error:?}\n{case}"),
        };
        let headers = HEADERS.iter().filter_map(|name| {
            let value = response.headers().get(*name)?;
            Some((
                (*name).to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ))
        });
        Reply {
            status: response.status().as_u16(),
            headers: headers.collect(),
            body: response.text().await.unwrap(),
        }
    }

    async fn until_ready(&self) {
        let case = Case::get("/people");
        for _ in 0..400 {
            let (ours, theirs) = self.ask(&case).await;
            if ours.status == 200 && theirs.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not ready: {:?}", self.ask(&case).await);
    }
}

async fn distribute(shard: &Client, tenants: &[Uuid]) {
    let ours = [
        include_str!("schema.sql"),
        include_str!("functions.sql"),
        include_str!("reference.sql"),
        include_str!("distribute.sql"),
        include_str!("grants.sql"),
    ];
    shard.batch_execute(&ours.join("\n")).await.unwrap();
    for tenant in tenants {
        shard.batch_execute(&fill(*tenant)).await.unwrap();
    }
}

fn fill(tenant: Uuid) -> String {
    let rows = include_str!("rows.sql");
    format!(
        "begin;
         select ringfence.enter('{tenant}', (select epoch from ringfence.fence where tenant_id = '{tenant}'), 'write', '{{}}', null);
         {rows}
         commit"
    )
}

/// A database beside the shard's, on the same server: one collation, one version.
async fn single_tenant(shard: &Client, dsn: &str) -> (Client, String) {
    shard.batch_execute("create database single").await.unwrap();
    let mut parsed: tokio_postgres::Config = dsn.parse().unwrap();
    parsed.dbname("single");
    let (client, connection) = parsed.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let theirs = [
        include_str!("schema.sql"),
        include_str!("functions.sql"),
        include_str!("reference.sql"),
        include_str!("rows.sql"),
        include_str!("grants.sql"),
    ];
    client.batch_execute(&theirs.join("\n")).await.unwrap();
    let password = String::from_utf8_lossy(parsed.get_password().unwrap_or_default());
    let uri = format!(
        "postgres://{}:{password}@127.0.0.1:{}/single",
        parsed.get_user().unwrap_or("postgres"),
        parsed.get_ports()[0]
    );
    (client, uri)
}

/// A router in this process, which allows what PostgREST allows here.
async fn serve(cluster: &Cluster, stop: CancellationToken) -> String {
    let path = cluster.path().join("nodes/router-1/config.toml");
    let mut config = Config::read(Some(&path)).unwrap();
    config.name = "differential".into();
    config.control.snapshot_file = None;
    config.api = Api {
        rest_prefix: String::new(),
        schemas: SCHEMAS.map(str::to_owned).to_vec(),
        aggregates: true,
        tx_rollback: true,
        ..Api::default()
    };
    let (metrics, _) = Metrics::install().unwrap();
    let events = Events::new(metrics, RequestLog::Errors).unwrap();
    let threads = router::threads::Threads::here();
    let app = App::start(config, events, &threads, stop.clone())
        .await
        .unwrap();
    let listener = router::http::listen(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let answers = router::http::answers(app);
    let bounds = router::http::Bounds {
        connections_max: 64,
        headers_max: Duration::from_secs(10),
        send_max: Duration::from_secs(10),
        silent_max: Duration::ZERO,
    };
    tokio::spawn(router::http::serve(
        listener,
        answers,
        bounds,
        threads,
        stop,
        Duration::ZERO,
    ));
    format!("http://{address}")
}

async fn tenant(cluster: &Cluster, http: &reqwest::Client, slug: &str) -> (Uuid, String) {
    let post = async |path: String, body: Value| -> Value {
        let url = format!("{}/admin/v1/{path}", cluster.admin_url());
        let request = http.post(url).bearer_auth(cluster.admin_token());
        let response = request.json(&body).send().await.unwrap();
        response.json().await.unwrap()
    };
    let made = post("tenants".into(), json!({ "slug": slug })).await;
    let key = post(format!("tenants/{slug}/keys"), json!({})).await;
    (
        made["id"].as_str().unwrap().parse().unwrap(),
        key["key"].as_str().unwrap().to_owned(),
    )
}

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
