//! Redis as the Compose stack runs it: encrypted, and nothing else.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use router::cache::shared::Shared;
use router::event::metrics::SharedMetrics;
use tokio_util::sync::CancellationToken;

/// Masters; a cluster has no fewer.
const NODES: usize = 3;

/// A cluster of Compose's own configuration, with its certificates.
struct Redis {
    dir: PathBuf,
    ports: Vec<u16>,
    password: String,
    children: Vec<Child>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn compose() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/compose")
}

fn make_secrets(at: &Path) {
    let made = Command::new("sh")
        .arg(compose().join("make-secrets"))
        .arg(at)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Held until all are known, so that none is given twice.
fn free_ports(wanted: usize) -> Vec<u16> {
    let held: Vec<_> = (0..wanted)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports = held.iter().map(|port| port.local_addr().unwrap().port());
    ports.collect()
}

impl Redis {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("ringfence-{}", uuid::Uuid::new_v4().simple()));
        let secrets = dir.join("secrets");
        std::fs::create_dir_all(&dir).unwrap();
        make_secrets(&secrets);
        let password = std::fs::read_to_string(secrets.join("redis")).unwrap();
        let conf = std::fs::read_to_string(compose().join("redis.conf")).unwrap();
        let free = free_ports(2 * NODES);
        let (ports, buses) = free.split_at(NODES);
        let mut children = Vec::new();
        for (port, bus) in ports.iter().zip(buses) {
            let home = dir.join(port.to_string());
            std::fs::create_dir_all(&home).unwrap();
            let own = conf
                .replace("/run/secrets", secrets.to_str().unwrap())
                .replace("tls-port 6379", &format!("tls-port {port}"));
            let own = format!(
                "{own}\nbind 127.0.0.1\ncluster-port {bus}\nrequirepass {password}\nmasterauth {password}\n"
            );
            std::fs::write(home.join("redis.conf"), own).unwrap();
            let mut server = Command::new("redis-server");
            server.arg("redis.conf").current_dir(&home);
            children.push(server.stdout(Stdio::null()).spawn().unwrap());
        }
        let ports = ports.to_vec();
        let redis = Self {
            dir,
            ports,
            password,
            children,
        };
        let addresses = redis.ports.iter().map(|port| format!("127.0.0.1:{port}"));
        let mut create = vec!["--cluster".to_owned(), "create".to_owned()];
        create.extend(addresses);
        create.push("--cluster-yes".to_owned());
        for port in &redis.ports {
            redis.until(&["-p", &port.to_string(), "ping"], "PONG");
        }
        let made = redis.cli(true, &create);
        assert!(made.contains("All 16384 slots covered"), "{made}");
        redis.until(&["cluster", "info"], "cluster_state:ok");
        redis
    }

    /// What `redis-cli` says, asked on the first node's port.
    fn cli(&self, tls: bool, words: &[String]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.env("REDISCLI_AUTH", &self.password);
        if tls {
            cli.arg("--tls").arg("--cacert").arg(self.secret("ca.pem"));
        }
        if words.first().is_some_and(|word| word != "--cluster") {
            cli.args(["-p", &self.ports[0].to_string()]);
        }
        let said = cli.args(words).output().unwrap();
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned()
    }

    fn until(&self, words: &[&str], wanted: &str) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.cli(true, &words);
            if said.contains(wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn secret(&self, name: &str) -> PathBuf {
        self.dir.join("secrets").join(name)
    }

    /// A router's connection, which trusts that authority.
    fn reached_by(&self, authority: &Path, stop: &CancellationToken) -> std::sync::Arc<Shared> {
        let urls = self
            .ports
            .iter()
            .map(|port| format!("rediss://127.0.0.1:{port}"));
        let shared = Shared::start(
            &urls.collect::<Vec<_>>(),
            Some(&self.password),
            Some(std::fs::read(authority).unwrap()),
            vec![tokio::runtime::Handle::current()],
            SharedMetrics::new(),
            stop.clone(),
        );
        shared.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn composes_redis_speaks_tls_only_and_is_verified() {
    tenancy::tls::install_provider();
    let redis = tokio::task::spawn_blocking(Redis::start).await.unwrap();
    // In clear it says nothing.
    let plain = redis.cli(false, &["ping".to_owned()]);
    assert!(!plain.contains("PONG"), "{plain}");

    let stop = CancellationToken::new();
    let other = redis.dir.join("other");
    make_secrets(&other);
    let stranger = redis.reached_by(&other.join("ca.pem"), &stop);
    // It tries again and again: it has had as long as each of these, who got there.
    for _ in 0..3 {
        let router = redis.reached_by(&redis.secret("ca.pem"), &stop);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !router.is_connected() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!stranger.is_connected());
    }
    stop.cancel();
}
