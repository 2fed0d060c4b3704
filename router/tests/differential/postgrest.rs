//! A real PostgREST, run as a plain process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tokio::process::{Child, Command};

const SECRET: &str = "a secret of at least thirty-two characters";

pub(crate) struct Postgrest {
    process: Child,
    url: String,
    token: String,
}

impl Postgrest {
    /// Starts it, and waits until it answers.
    pub(crate) async fn start(dsn: &str, schemas: &[&str]) -> Self {
        let port = free_port();
        let process = Command::new(program().await)
            .env_clear()
            .env("PGRST_DB_URI", dsn)
            .env("PGRST_DB_SCHEMAS", schemas.join(","))
            .env("PGRST_DB_ANON_ROLE", "anon")
            .env("PGRST_DB_AGGREGATES_ENABLED", "true")
            .env("PGRST_DB_TX_END", "commit-allow-override")
            .env("PGRST_DB_POOL", "8")
            .env("PGRST_JWT_SECRET", SECRET)
            .env("PGRST_SERVER_HOST", "127.0.0.1")
            .env("PGRST_SERVER_PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let postgrest = Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
            token: encode(
                &Header::default(),
                &json!({ "role": "authenticated" }),
                &key,
            )
            .unwrap(),
        };
        postgrest.until_it_answers().await;
        postgrest
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A bearer token of the role `authenticated`.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }

    async fn until_it_answers(&self) {
        for _ in 0..600 {
            if reqwest::get(&self.url)
                .await
                .is_ok_and(|r| r.status() != 503)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("PostgREST does not answer at {}", self.url);
    }
}

/// Where `ops/install.sh` put it; asks it to, where it is not there yet.
async fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("RINGFENCE_POSTGREST") {
        return given.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let installed = root.join(".tools/postgrest-12.0.2/postgrest");
    if !installed.exists() {
        let script = "source ops/install.sh && install_postgrest";
        let status = Command::new("bash")
            .args(["-c", script])
            .current_dir(root)
            .status()
            .await
            .unwrap();
        assert!(
            status.success(),
            "install_postgrest of ops/install.sh failed"
        );
    }
    installed
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
