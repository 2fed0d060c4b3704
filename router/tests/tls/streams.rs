//! A router's stream to a worker, by TLS: only between who prove to be these.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::local::{Authority, Cluster, Content, Options};
use tenancy::changes;
use tenancy::peer::{PeerConnector, PeerSettings};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Longest wait for what must happen; slow machines take long.
const SOON: Duration = Duration::from_secs(60);

/// What somebody shows.
struct Shown {
    certificate: PathBuf,
    key: PathBuf,
}

impl Shown {
    /// What a node of the cluster has in a folder of its own.
    fn of(cluster: &Cluster, folder: &str, certificate: &str, key: &str) -> Self {
        let folder = cluster.path().join("nodes").join(folder);
        Self {
            certificate: folder.join(certificate),
            key: folder.join(key),
        }
    }

    /// An authority's certificate for a name.
    fn issued(authority: &Authority, folder: &Path, name: &str) -> Self {
        let (certificate, key) = authority.issue(name).unwrap();
        let shown = Self {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        std::fs::write(&shown.certificate, certificate).unwrap();
        std::fs::write(&shown.key, key).unwrap();
        shown
    }

    fn settings(&self, cluster: &Cluster) -> PeerSettings {
        PeerSettings {
            ca_file: cluster.ca_file().unwrap().to_owned(),
            cert_file: self.certificate.clone(),
            key_file: self.key.clone(),
        }
    }
}

/// Where the worker serves its stream.
fn address(cluster: &Cluster) -> String {
    let file = cluster.path().join("nodes/worker-1/config.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with("stream_listen"));
    line.unwrap().split('"').nth(1).unwrap().to_owned()
}

/// Asks for the stream on a connection; the answer's status, or why there is none.
async fn ask(
    cluster: &Cluster,
    socket: impl AsyncRead + AsyncWrite + Unpin,
    secret: &str,
) -> Result<u16, String> {
    let url = format!("ws://{}{}", address(cluster), changes::PATH);
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {secret}").try_into().unwrap();
    request.headers_mut().insert("authorization", bearer);
    match client_async(request, socket).await {
        Ok((_, answer)) => Ok(answer.status().as_u16()),
        Err(Error::Http(answer)) => Ok(answer.status().as_u16()),
        Err(error) => Err(tenancy::chain(&error)),
    }
}

/// The same for who shows this.
async fn opened_by(cluster: &Cluster, shown: &Shown, secret: &str) -> Result<u16, String> {
    let connector = PeerConnector::new(shown.settings(cluster)).unwrap();
    let socket = TcpStream::connect(address(cluster)).await.unwrap();
    match connector.connect(socket).await {
        Ok(socket) => ask(cluster, socket, secret).await,
        Err(error) => Err(error.to_string()),
    }
}

/// Waits until the router hears so many workers.
async fn hears(cluster: &Cluster, workers: u32) {
    let url = format!("{}/metrics", cluster.router_admin_url(0));
    let wanted = format!("ringfence_change_streams {workers}");
    let deadline = Instant::now() + SOON;
    loop {
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        if text.lines().any(|line| line == wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{wanted}\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A worker that shows this takes one connection; what the router makes of it.
async fn worker_that_shows(cluster: &Cluster, router: &Shown, shown: &Shown) -> String {
    let chain = CertificateDer::pem_file_iter(&shown.certificate).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&shown.key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connector = PeerConnector::new(router.settings(cluster)).unwrap();
    let accepted = async {
        let (socket, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(Arc::new(config)).accept(socket).await;
    };
    let connected = async {
        let socket = TcpStream::connect(address).await.unwrap();
        connector.connect(socket).await.unwrap_err().to_string()
    };
    tokio::join!(accepted, connected).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_opened_by_a_router_to_a_worker_and_by_nobody_else() {
    tenancy::tls::install_provider();
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        redis: Some(0),
        caches: true,
        tls: true,
        content: Content::Services,
        ..Options::default()
    });
    let cluster = cluster.await.unwrap();
    hears(&cluster, 1).await;
    let secret = cluster.stream_secret();
    let router = Shown::of(&cluster, "router-1", "peer.pem", "peer.key");
    let worker = Shown::of(&cluster, "worker-1", "peer.pem", "peer.key");
    let shard = Shown::of(&cluster, "s1-primary/data", "server.crt", "server.key");
    let elsewhere = Authority::new(&cluster.path().join("other-ca.pem")).unwrap();
    let stranger = Shown::issued(&elsewhere, cluster.path(), "ringfence-router");

    // The certificate lets in, and the secret is asked for all the same.
    assert_eq!(opened_by(&cluster, &router, secret).await, Ok(101));
    assert_eq!(opened_by(&cluster, &router, "guessed").await, Ok(401));
    // Neither without a certificate, nor by another authority's for a router,
    // nor by our own authority's for something else, though with the secret.
    for shown in [&stranger, &worker, &shard] {
        let refused = opened_by(&cluster, shown, secret).await.unwrap_err();
        assert!(refused.contains("alert"), "{refused}");
    }
    let mut known = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(cluster.ca_file().unwrap());
    known.add(authority.unwrap()).unwrap();
    let nothing = ClientConfig::builder().with_root_certificates(known);
    let nothing = TlsConnector::from(Arc::new(nothing.with_no_client_auth()));
    let socket = TcpStream::connect(address(&cluster)).await.unwrap();
    let name = tenancy::peer::WORKER.try_into().unwrap();
    let refused = match nothing.connect(name, socket).await {
        Ok(socket) => ask(&cluster, socket, secret).await.unwrap_err(),
        Err(error) => error.to_string(),
    };
    assert!(refused.contains("CertificateRequired"), "{refused}");
    // In clear there is none, on neither port.
    let plain = TcpStream::connect(address(&cluster)).await.unwrap();
    assert!(ask(&cluster, plain, secret).await.is_err());
    let admin = cluster.admin_url().replace("http://", "");
    let admin = TcpStream::connect(admin).await.unwrap();
    assert_eq!(ask(&cluster, admin, secret).await, Ok(404));

    // A router tells its secret to nobody who is no worker.
    let other = Shown::issued(&elsewhere, cluster.path(), "ringfence-worker");
    for (shown, why) in [
        (&router, "not valid for name"),
        (&shard, "not valid for name"),
        (&other, "invalid peer certificate"),
    ] {
        let refused = worker_that_shows(&cluster, &router, shown).await;
        assert!(refused.contains(why), "{refused}");
    }

    // Files count from the next connection on: the running router is shut out
    // once it has another authority's, and let in again without a restart.
    let own = [&router.certificate, &router.key].map(|path| std::fs::read(path).unwrap());
    std::fs::copy(&stranger.certificate, &router.certificate).unwrap();
    std::fs::copy(&stranger.key, &router.key).unwrap();
    cluster.kill("worker-1").await.unwrap();
    hears(&cluster, 0).await;
    cluster.start_node("worker-1").await.unwrap();
    let refused = Instant::now();
    let log = cluster.log("worker-1");
    while !std::fs::read_to_string(&log)
        .unwrap()
        .contains("no router was refused")
    {
        assert!(refused.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    hears(&cluster, 0).await;
    std::fs::write(&router.certificate, &own[0]).unwrap();
    std::fs::write(&router.key, &own[1]).unwrap();
    hears(&cluster, 1).await;
    cluster.down().await;
}
