//! Where routers open their streams by TLS: nobody comes further who has not
//! proved to be one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tenancy::peer::PeerAcceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// Longest wait for a caller to prove who it is.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Callers that may be about it at once; more wait to be accepted.
const HANDSHAKES_MAX: usize = 512;
/// Pause where the system can't accept, for want of files as a rule.
const PAUSE: Duration = Duration::from_secs(1);

/// Verified routers' connections.
pub struct RouterListener {
    address: SocketAddr,
    verified: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl RouterListener {
    /// Accepts connections until it is dropped.
    ///
    /// # Errors
    /// Where the listener has no address.
    pub fn new(listener: TcpListener, tls: PeerAcceptor) -> io::Result<Self> {
        let (sender, verified) = mpsc::channel(1);
        let address = listener.local_addr()?;
        tokio::spawn(accept(listener, Arc::new(tls), sender));
        Ok(Self { address, verified })
    }
}

impl Listener for RouterListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.verified.recv().await {
            Some(router) => router,
            // It ends when this is dropped, not before.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Handshakes don't wait for each other.
async fn accept(
    listener: TcpListener,
    tls: Arc<PeerAcceptor>,
    verified: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            () = verified.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, caller) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "can't accept routers' connections");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (tls, verified) = (tls.clone(), verified.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_MAX, verify(&tls, socket)).await {
                Ok(Ok(stream)) => {
                    drop(place);
                    let _ = verified.send((stream, caller)).await;
                }
                Ok(Err(error)) => tracing::warn!(%caller, %error, "who is no router was refused"),
                Err(_) => tracing::debug!(%caller, "a caller did not say in time who it is"),
            }
        });
    }
}

async fn verify(tls: &PeerAcceptor, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // A barrier's small frames must not wait for each other's acknowledgement.
    socket.set_nodelay(true)?;
    tls.accept(socket).await
}
