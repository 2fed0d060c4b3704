//! A connection to Postgres of which only the login is tokio-postgres' business:
//! whoever speaks the protocol himself gets the socket, encrypted or not.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::DbError;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{CancelToken, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::Tls;

/// A connection's bytes.
pub enum Socket {
    /// As they are.
    Plain(TcpStream),
    /// Encrypted, and the server verified.
    Encrypted(Box<Encrypted>),
}

/// The stream of an encrypted connection.
type Encrypted = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::Stream;

/// A server to connect to.
#[derive(Clone, Debug)]
pub struct Server {
    /// Host name or address.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server can't be reached, or not as encrypted as it must be.
    #[error("the connection can't be made")]
    Socket(#[from] io::Error),
    /// It does not let us in.
    #[error(transparent)]
    Login(#[from] tokio_postgres::Error),
}

impl ConnectError {
    /// The server's own words.
    pub fn refused(&self) -> Option<&DbError> {
        match self {
            Self::Socket(_) => None,
            Self::Login(error) => error.as_db_error(),
        }
    }
}

/// What was sent is acknowledged by the server's kernel within this time, or the
/// connection ends: the cable may have been cut.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The server's word that it goes on encrypted (Postgres' protocol, SSLRequest).
const WILLING: u8 = b'S';

impl Tls {
    /// Connects and logs in, with the configuration's user and options. Has no
    /// deadline of its own. Nothing was sent yet behind the login.
    pub async fn log_in(
        &self,
        server: &Server,
        config: &Config,
    ) -> Result<(Socket, CancelToken), ConnectError> {
        let mut socket = self.open(server).await?;
        let mut config = config.clone();
        // The socket is what it has to be: nothing is negotiated any more.
        match socket {
            Socket::Plain(_) => config.ssl_mode(SslMode::Disable),
            Socket::Encrypted(_) => {
                config.ssl_negotiation(SslNegotiation::Direct);
                config.ssl_mode(SslMode::Require)
            }
        };
        let (client, connection) = config.connect_raw(&mut socket, AsItIs).await?;
        let canceller = client.cancel_token();
        // It never sent anything by itself, and nobody asked it to.
        drop((client, connection));
        Ok((socket, canceller))
    }

    /// Asks a server to stop what a connection of [`Tls::log_in`] is running.
    pub async fn cancel_at(
        &self,
        server: &Server,
        token: &CancelToken,
    ) -> Result<(), ConnectError> {
        let mut socket = self.open(server).await?;
        Ok(token.cancel_query_raw(&mut socket, AsItIs).await?)
    }

    async fn open(&self, server: &Server) -> io::Result<Socket> {
        let mut stream = TcpStream::connect((&*server.host, server.port)).await?;
        stream.set_nodelay(true)?;
        let options = SockRef::from(&stream);
        let probes = TcpKeepalive::new().with_time(KEEPALIVE);
        options.set_tcp_keepalive(&probes.with_interval(KEEPALIVE))?;
        options.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
        if !self.is_encrypted() {
            return Ok(Socket::Plain(stream));
        }
        let mut request = bytes::BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut request);
        stream.write_all(&request).await?;
        if stream.read_u8().await? != WILLING {
            let why = "the server takes no encrypted connections";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let mut connector = self.connector();
        let connect =
            <_ as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut connector, &server.host);
        let connect = connect.map_err(io::Error::other)?;
        Ok(Socket::Encrypted(Box::new(connect.connect(stream).await?)))
    }
}

/// Stands for TLS where the socket already has it.
struct AsItIs;

impl<'a> TlsConnect<&'a mut Socket> for AsItIs {
    type Stream = &'a mut Socket;
    type Error = io::Error;
    type Future = Ready<io::Result<&'a mut Socket>>;

    fn connect(self, socket: &'a mut Socket) -> Self::Future {
        ready(Ok(socket))
    }
}

impl TlsStream for &mut Socket {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Socket::Plain(_) => ChannelBinding::none(),
            Socket::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
