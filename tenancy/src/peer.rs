//! TLS between routers and workers, where each side proves who it is.
//!
//! A certificate of the deployment's own authority says what its owner is, by a
//! name that nothing else has: [`ROUTER`] or [`WORKER`]. So a database's
//! certificate, or a worker's, opens no router's stream, and where a worker is
//! reached need not be in its own: workers come and go with their addresses.
//!
//! Files are read anew for each connection, none of which resumes another: a
//! renewed certificate, or an authority taken out, counts from the next one on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::chain;
use crate::tls::{TlsError, authorities, setup};

/// What a router's certificate is for.
pub const ROUTER: &str = "ringfence-router";
/// What a worker's certificate is for.
pub const WORKER: &str = "ringfence-worker";

/// The files of one side, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// The authorities whose certificates the other side may show.
    pub ca_file: PathBuf,
    /// This side's certificate, and those between it and the authority.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// A router's side.
#[derive(Debug)]
pub struct PeerConnector {
    files: Files<ClientConfig>,
    worker: ServerName<'static>,
}

impl PeerConnector {
    /// Reads the files, so that what is wrong with them is told at start.
    pub fn new(settings: PeerSettings) -> Result<Self, TlsError> {
        Ok(Self {
            files: Files::new(settings, router)?,
            worker: name(WORKER)?,
        })
    }

    /// A connection to a worker. Has no deadline of its own.
    pub async fn connect(
        &self,
        socket: TcpStream,
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        let connector = TlsConnector::from(self.files.read());
        connector.connect(self.worker.clone(), socket).await
    }
}

/// A worker's side.
#[derive(Debug)]
pub struct PeerAcceptor(Files<ServerConfig>);

impl PeerAcceptor {
    /// Reads the files, so that what is wrong with them is told at start.
    pub fn new(settings: PeerSettings) -> Result<Self, TlsError> {
        Files::new(settings, worker).map(Self)
    }

    /// A router's connection, once it has proved to be one. Has no deadline of
    /// its own.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.read()).accept(socket).await
    }
}

/// What is made of the files, as they are or were last.
#[derive(Debug)]
struct Files<C> {
    settings: PeerSettings,
    make: fn(&PeerSettings) -> Result<C, TlsError>,
    last: Mutex<Arc<C>>,
}

impl<C> Files<C> {
    fn new(
        settings: PeerSettings,
        make: fn(&PeerSettings) -> Result<C, TlsError>,
    ) -> Result<Self, TlsError> {
        let first = Arc::new(make(&settings)?);
        Ok(Self {
            settings,
            make,
            last: Mutex::new(first),
        })
    }

    /// Reads them anew. A certificate and its key can't be replaced at once:
    /// while they don't match, those before count.
    fn read(&self) -> Arc<C> {
        let made = (self.make)(&self.settings);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match made {
            Ok(made) => *last = Arc::new(made),
            Err(error) => tracing::warn!(
                error = %chain(&error),
                "the certificates can't be read: those before are used"
            ),
        }
        last.clone()
    }
}

fn router(settings: &PeerSettings) -> Result<ClientConfig, TlsError> {
    let (chain, key) = own(settings)?;
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Setup)?
        .with_root_certificates(authorities(&settings.ca_file)?)
        .with_client_auth_cert(chain, key)
        .map_err(|source| unfit(settings, source))
}

fn worker(settings: &PeerSettings) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = Arc::new(authorities(&settings.ca_file)?);
    let known = WebPkiClientVerifier::builder_with_provider(authorities, provider.clone());
    let known = known.build().map_err(setup)?;
    let (chain, key) = own(settings)?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(Routers {
            known,
            router: name(ROUTER)?,
        }))
        .with_single_cert(chain, key)
        .map_err(|source| unfit(settings, source))
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(settings: &PeerSettings) -> Result<Own, TlsError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let path = &settings.cert_file;
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    let key = PrivateKeyDer::from_pem_file(&settings.key_file);
    Ok((
        chain.map_err(unreadable(path))?,
        key.map_err(unreadable(&settings.key_file))?,
    ))
}

fn unfit(settings: &PeerSettings, source: rustls::Error) -> TlsError {
    TlsError::Unfit {
        path: settings.cert_file.clone(),
        key: settings.key_file.clone(),
        source,
    }
}

fn name(of: &'static str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(of).map_err(setup)
}

/// Lets in who has a known authority's certificate, for being a router.
#[derive(Debug)]
struct Routers {
    known: Arc<dyn ClientCertVerifier>,
    router: ServerName<'static>,
}

impl ClientCertVerifier for Routers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.known.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let known = self
            .known
            .verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.router)?;
        Ok(known)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.known.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.known.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.known.supported_verify_schemes()
    }
}
