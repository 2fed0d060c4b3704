//! A shard with the record shop of two tenants, and requests to it that go
//! through every stage but HTTP's own and the placement.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ops::local::{Cluster, Content, Options};
use router::config::Api;
use router::error::{Error, Hidden, Refusal};
use router::execute::{self, Access, ExecuteError, Guard, Text};
use router::gate::{Claim, Waiting};
use router::plan::{Action, Form, Model, plan, violation};
use router::pool::{Identity, Leased, NodeAddress, PoolSettings, Pools};
use router::request::{ApiRequest, RequestParts, body};
use router::response::{self, Row};
use router::sql;
use router::token::Generation;
use tokio::time::Instant;
use tokio_postgres::NoTls;
use uuid::Uuid;

pub(crate) struct Shop {
    pub(crate) cluster: Cluster,
    pub(crate) api: Api,
    model: Model,
    pools: Pools,
    node: NodeAddress,
    identity: Identity,
    pub(crate) tenants: [Uuid; 2],
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// What a shard answered to a read that it should refuse.
pub(crate) struct Refused(Result<execute::Answer, ExecuteError>);

impl Refused {
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match &self.0 {
            Err(ExecuteError::Refused(error)) => Some(error.code().code()),
            Ok(_) | Err(_) => None,
        }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Status, headers that say something, and body, for snapshots.
    pub(crate) fn show(&self) -> String {
        let names = [
            "content-type",
            "content-range",
            "content-location",
            "content-profile",
            "location",
            "preference-applied",
            "allow",
            "proxy-status",
            "x-tea",
        ];
        let mut text = self.status.to_string();
        for name in names
            .iter()
            .filter(|name| self.headers.contains_key(**name))
        {
            text.push_str(&format!("\n{name}: {}", self.header(name)));
        }
        text.push_str(&format!("\n{}", self.body));
        text
    }
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(0),
            content: Content::Servers,
            ..Options::default()
        })
        .await
        .unwrap();
        let dsn = cluster.shard_dsn("s1-primary").unwrap();
        let (mut admin, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let passwords = schema::shard::RolePasswords {
            router: Some("router".into()),
            ..Default::default()
        };
        schema::shard::install(&mut admin, &passwords)
            .await
            .unwrap();
        admin
            .batch_execute(include_str!("schema.sql"))
            .await
            .unwrap();
        let tenants = [Uuid::from_u128(1), Uuid::from_u128(2)];
        for tenant in tenants {
            let rows = include_str!("rows.sql");
            let fill = format!(
                "begin;
                 insert into ringfence.fence (tenant_id, epoch) values ('{tenant}', 1);
                 select ringfence.enter('{tenant}', 1, 'write', '{{}}', null);
                 {rows}
                 commit"
            );
            admin.batch_execute(&fill).await.unwrap();
        }
        let catalog = schema::introspect::load(&admin, &["public"]).await.unwrap();
        let said = admin.query_one("select system_id, timeline from ringfence.node()", &[]);
        let said = said.await.unwrap();
        let identity = Identity {
            generation: Generation {
                system: said.get::<_, &str>(0).parse().unwrap(),
                timeline: said.get::<_, i32>(1).cast_unsigned(),
            },
            primary: true,
        };
        let parsed: tokio_postgres::Config = dsn.parse().unwrap();
        let node = NodeAddress {
            host: "127.0.0.1".into(),
            port: parsed.get_ports()[0],
        };
        Self {
            api: Api {
                aggregates: true,
                tx_rollback: true,
                rest_prefix: String::new(),
                ..Api::default()
            },
            model: Model::new(Arc::new(catalog)),
            pools: Pools::new(PoolSettings {
                search_path: "public".into(),
                settings: Vec::new(),
                application: "test".into(),
                user: "ringfence_router".into(),
                password: Some("router".into()),
                database: parsed.get_dbname().unwrap().into(),
                tls: tenancy::tls::Tls::disabled().unwrap(),
                size_max: 4,
                node_max: 5,
                waiting: Waiting {
                    max: 100,
                    tenant_max: 100,
                    tenant_share: 20,
                    standing: Duration::from_millis(100),
                },
                idle_max: Duration::from_secs(30),
                wait_max: Duration::from_secs(5),
                connect_max: Duration::from_secs(5),
                statements_max: NonZeroUsize::new(64).unwrap(),
            }),
            node,
            identity,
            cluster,
            tenants,
        }
    }

    /// The first tenant asks; `path` may carry a query string.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        self.send_as(self.tenants[0], method, path, headers, body)
            .await
    }

    pub(crate) async fn send_as(
        &self,
        tenant: Uuid,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let head = method == "HEAD";
        let answer = self.answer(tenant, method, path, headers, body).await;
        let response = answer.unwrap_or_else(|error| error.response(head));
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: String::from_utf8(response.body().to_vec()).unwrap(),
        }
    }

    /// A read by a router that believes a wrong placement.
    pub(crate) async fn send_at_epoch(&self, epoch: i64, path: &str) -> Refused {
        let statement = self.statement(path);
        let mut guard = self.guard(self.tenants[0], None);
        guard.epoch = epoch;
        let params: Vec<Text> = statement.params.into_iter().map(Text).collect();
        let mut connection = self.connection().await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let text = &statement.text;
        Refused(execute::read(&mut connection, &guard, text, &params, false, deadline).await)
    }

    /// How Postgres means to run a read, without sequential scans.
    pub(crate) async fn explain(&self, path: &str) -> String {
        let text = self.statement(path).text;
        let dsn = self.cluster.router_dsn("s1-primary").unwrap_or_default();
        let mut config: tokio_postgres::Config = dsn.parse().unwrap();
        config.password("router");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let explain = format!(
            "set role authenticated; set enable_seqscan = off; set plan_cache_mode = force_generic_plan;
             prepare q (uuid, bigint, text, text[]) as
               with g as materialized (select ringfence.enter($1, $2, 'read', $3, $4) as tenant)
               select q.* from g, lateral ({text} offset 0) q;
             explain (costs off) execute q ('{}', 1, '{{}}', null, {})",
            self.tenants[0],
            vec!["'1'"; self.statement(path).params.len()].join(", ")
        );
        let messages = client.simple_query(&explain).await.unwrap();
        let lines = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn statement(&self, path: &str) -> sql::Statement {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts = RequestParts {
            method: &Method::GET,
            path,
            query,
            headers: &HeaderMap::new(),
        };
        let request = ApiRequest::parse(&parts, &self.api).unwrap();
        let plan = plan(&self.model, &self.api, &request, &body::Payload::None).unwrap();
        sql::statement(&plan, None, None).unwrap()
    }

    fn guard(&self, tenant: Uuid, settings: Option<Bytes>) -> Guard {
        Guard {
            tenant,
            epoch: 1,
            before: self.api.before().map(|name| name.to_string().into()),
            claims: Bytes::from_static(b"{\"role\":\"authenticated\"}"),
            settings,
            claim: None,
        }
    }

    async fn connection(&self) -> Leased {
        let claim = Claim {
            tenant: self.tenants[0],
            role: "authenticated".into(),
        };
        let wait_max = Duration::from_secs(5);
        let leased = self.pools.get(&self.node, claim, self.identity, wait_max);
        leased.await.unwrap()
    }

    async fn answer(
        &self,
        tenant: Uuid,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<http::Response<Bytes>, Error> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let parts = RequestParts {
            method: &method,
            path,
            query,
            headers: &map,
        };
        let request = ApiRequest::parse(&parts, &self.api)?;
        let content_type = map.get("content-type").map(|v| v.to_str().unwrap());
        let payload = body::parse(
            &request,
            content_type,
            Bytes::copy_from_slice(body.as_bytes()),
        )?;
        let plan = plan(&self.model, &self.api, &request, &payload)?;
        let Some(statement) = sql::statement(&plan, None, None) else {
            return response::without_rows(&self.api, &request, &plan);
        };
        let hoisted = match &plan.action {
            Action::Call(call) => &call.settings[..],
            _ => &[],
        };
        let hoisted = hoisted.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let settings: Vec<(&str, &str)> = hoisted.chain(request.settings()).collect();
        let settings = settings.iter().map(|(n, v)| format!("{n},{v}"));
        let settings: Vec<String> = settings.collect();
        let settings = (!settings.is_empty()).then(|| format!("{{{}}}", settings.join(",")).into());
        let guard = self.guard(tenant, settings);
        let mut connection = self.connection().await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let params: Vec<Text> = statement.params.into_iter().map(Text).collect();
        let access = match statement.form {
            Form::Read => None,
            Form::ReadOnlyTransaction => Some(Access::ReadOnly),
            Form::Write => Some(Access::Write),
            Form::WriteAndRollBack => Some(Access::WriteAndRollBack),
        };
        let text = statement.text;
        let ran = match access {
            None => execute::read(&mut connection, &guard, &text, &params, true, deadline).await,
            Some(access) => {
                execute::transact(connection, guard, access, text.clone(), params, deadline).await
            }
        };
        let name = tenant.to_string();
        let hidden = match &plan.action {
            Action::Write(write) if write.tenant_hidden => write.tenant.as_ref(),
            _ => None,
        };
        let answer = ran.map_err(|error| match error {
            ExecuteError::Refused(refused) => {
                let hidden = hidden.map(|column| Hidden {
                    column: column.as_str(),
                    tenant: &name,
                });
                let refusal = Refusal::new(&refused, false, hidden);
                let (state, constraint) = (refused.code().code(), refused.constraint());
                let (constraint, detail) =
                    (constraint.unwrap_or_default(), refusal.detail.as_deref());
                let detail = violation::detail(&self.model, &plan, state, constraint, detail);
                Error::Postgres(Box::new(refusal.with_detail(detail)))
            }
            other => panic!("{other:?} for {text}"),
        })?;
        response::build(&self.api, &request, &plan, Row::read(&answer))
    }
}
