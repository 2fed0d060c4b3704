//! An issuer publishes its keys at a URL: registered by the admin API, read by the
//! router, on real servers.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use axum::http::StatusCode;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ops::local::{Cluster, Options};
use reqwest::Client;
use serde_json::{Value, json};

const ISSUER: &str = "https://login.example";

/// The issuer: its keys, where it publishes them, and how often it was asked.
#[derive(Clone, Default)]
struct Issuer {
    /// None while the server is out of order.
    document: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(&self) -> String {
        let issuer = self.clone();
        let answer = move || {
            issuer.asked.fetch_add(1, Ordering::SeqCst);
            let document = issuer.document.lock().unwrap().clone();
            std::future::ready(document.ok_or(StatusCode::SERVICE_UNAVAILABLE))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let routes = axum::Router::new().route("/keys", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    fn publish(&self, keys: &[(&str, &EncodingKey)]) {
        let keys: Vec<Jwk> = keys
            .iter()
            .map(|(kid, key)| {
                let mut jwk = Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
                jwk.common.key_id = Some((*kid).to_owned());
                jwk
            })
            .collect();
        *self.document.lock().unwrap() = Some(json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn key() -> EncodingKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
}

struct Service {
    cluster: Cluster,
    http: Client,
}

impl Service {
    async fn admin(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let request = request.bearer_auth(self.cluster.admin_token());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    fn admin_url(&self, path: &str) -> String {
        format!("{}/admin/v1{path}", self.cluster.admin_url())
    }

    async fn put(&self, issuer: &Value) -> u16 {
        let request = self.http.post(self.admin_url("/issuers")).json(issuer);
        self.admin(request).await.0
    }

    /// What a request with a token of that key is answered.
    async fn enter(&self, tenant: &str, kid: &str, key: &EncodingKey) -> u16 {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid.into());
        let claims = json!({ "iss": ISSUER, "tenant_id": tenant, "role": "authenticated" });
        let token = jsonwebtoken::encode(&header, &claims, key).unwrap();
        let url = format!("{}/rest/v1/companies?limit=1", self.cluster.router_url(0));
        let answer = self.http.get(url).bearer_auth(token).send().await.unwrap();
        answer.status().as_u16()
    }

    async fn until(&self, tenant: &str, kid: &str, key: &EncodingKey, wanted: u16) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.enter(tenant, kid, key).await;
            if status == wanted {
                return;
            }
            assert!(Instant::now() < until, "still {status}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn keys_are_read_from_their_url_and_outlive_it() {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        ..Options::default()
    });
    let service = Service {
        cluster: cluster.await.unwrap(),
        http: Client::new(),
    };
    let (_, acme) = service
        .admin(service.http.get(service.admin_url("/tenants/acme")))
        .await;
    let acme = acme["id"].as_str().unwrap();

    let issuer = Issuer::default();
    let url = issuer.start().await;
    let (first, second, third) = (key(), key(), key());
    issuer.publish(&[("1", &first)]);
    for unsafe_url in [
        "http://login.example/keys",
        "http://localhost:1@login.example/keys",
        "ftp://login.example",
        "https://",
    ] {
        let refused = json!({ "name": ISSUER, "jwks_url": unsafe_url });
        assert_eq!(service.put(&refused).await, 400, "{unsafe_url}");
    }
    let own = json!({ "name": ISSUER, "jwks_url": url, "tenants": [acme] });
    assert_eq!(service.put(&own).await, 204);
    service.until(acme, "1", &first, 200).await;

    // One that is published now is known with its first token.
    issuer.publish(&[("1", &first), ("2", &second)]);
    assert_eq!(service.enter(acme, "2", &second).await, 200);

    // A stranger's tokens ask for nothing more.
    let asked = issuer.asked();
    for number in 0..20 {
        let kid = format!("none {number}");
        assert_eq!(service.enter(acme, &kid, &third).await, 401);
    }
    assert_eq!(issuer.asked(), asked);

    // The URL is down, also for a router that starts now.
    *issuer.document.lock().unwrap() = None;
    assert_eq!(service.enter(acme, "1", &first).await, 200);
    service.cluster.kill("router-1").await.unwrap();
    service.cluster.start_node("router-1").await.unwrap();
    for (kid, key) in [("1", &first), ("2", &second)] {
        assert_eq!(service.enter(acme, kid, key).await, 200);
    }
    assert!(issuer.asked() > asked, "it was asked again");

    let path = service.admin_url("/issuers/https%3A%2F%2Flogin.example");
    let (status, _) = service.admin(service.http.delete(&path)).await;
    assert_eq!(status, 204);
    service.until(acme, "1", &first, 401).await;
    let (status, _) = service.admin(service.http.delete(&path)).await;
    assert_eq!(status, 404);
    service.cluster.down().await;
}
