//! The admin API, as far as the tester needs it: tenants and keys to drive
//! traffic with, and what moves and fails over meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::client::{Connection, Target};
use crate::environment::Admin;
use crate::error::{Error, Result};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Keys that the tester makes for itself live a day.
const KEY_SECONDS: u64 = 86_400;

/// A connection to the admin API.
#[derive(Debug)]
pub struct AdminClient {
    connection: Connection,
    authorization: String,
}

impl AdminClient {
    /// A client; it connects with its first request.
    ///
    /// # Errors
    /// [`Error::Target`] for an unusable URL.
    pub fn new(admin: &Admin) -> Result<Self> {
        Ok(AdminClient {
            connection: Connection::new(Arc::new(Target::parse(&admin.url)?)),
            authorization: format!("Bearer {}", admin.token),
        })
    }

    /// Creates a tenant, or finds the one with this slug; returns its id.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn create_tenant(
        &mut self,
        slug: &str,
        region: Option<&str>,
    ) -> Result<Option<String>> {
        let mut body = json!({ "slug": slug });
        if let Some(region) = region {
            body["region"] = json!(region);
        }
        let tenant = self
            .call(Method::POST, "/admin/v1/tenants", Some(body))
            .await?;
        Ok(text(&tenant, "id"))
    }

    /// Makes a key for a tenant.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn create_key(&mut self, tenant: &str) -> Result<String> {
        let path = format!("/admin/v1/tenants/{tenant}/keys");
        let body = json!({ "name": "loadtest", "expires_in_seconds": KEY_SECONDS });
        let key = self.call(Method::POST, &path, Some(body)).await?;
        text(&key, "key")
            .ok_or_else(|| failed(&Method::POST, &path, "the answer has no `key`".to_owned()))
    }

    /// What the API says of a tenant.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn tenant(&mut self, tenant: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/admin/v1/tenants/{tenant}"), None)
            .await
    }

    /// The slugs and ids of the first `limit` tenants that are active.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn tenants(&mut self, limit: usize) -> Result<Vec<(String, Option<String>)>> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/admin/v1/tenants?limit={}{after}", limit.min(1_000));
            let page = self.call(Method::GET, &path, None).await?;
            let items = page["items"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            found.extend(
                items
                    .iter()
                    .filter(|tenant| text(tenant, "state").is_none_or(|state| state == "active"))
                    .filter_map(|tenant| Some((text(tenant, "slug")?, text(tenant, "id")))),
            );
            match scalar(&page["next"]) {
                Some(next) if found.len() < limit && !items.is_empty() => {
                    after = format!("&after={next}")
                }
                _ => break,
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// All nodes as the API sees them.
    ///
    /// # Errors
    /// [`Error::Admin`].
    pub async fn nodes(&mut self) -> Result<Vec<Value>> {
        let answer = self.call(Method::GET, "/admin/v1/nodes", None).await?;
        Ok(answer["items"]
            .as_array()
            .or(answer.as_array())
            .cloned()
            .unwrap_or_default())
    }

    async fn call(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let target = self.connection.target();
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", target.prefix))
            .header(header::HOST, &target.host)
            .header(header::AUTHORIZATION, &self.authorization);
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(bytes))
            .map_err(|error| failed(&method, path, error.to_string()))?;
        let answer = self
            .connection
            .exchange(request, TIMEOUT, true)
            .await
            .map_err(|failure| failed(&method, path, format!("no answer ({})", failure.name())))?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if (200..300).contains(&answer.status) {
            return Ok(value);
        }
        let message = text(&value, "message").unwrap_or_default();
        Err(failed(
            &method,
            path,
            format!("{} {message}", answer.status),
        ))
    }
}

fn failed(method: &Method, path: &str, reason: String) -> Error {
    Error::Admin {
        request: format!("{method} {path}"),
        reason,
    }
}

fn text(value: &Value, field: &str) -> Option<String> {
    value[field].as_str().map(str::to_owned)
}

/// A cursor may be a text or a number.
fn scalar(value: &Value) -> Option<String> {
    value
        .as_str()
        .map(str::to_owned)
        .or_else(|| value.as_i64().map(|number| number.to_string()))
}
