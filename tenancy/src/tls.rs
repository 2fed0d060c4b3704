//! Connections to Postgres, encrypted or not, by one type of connector: so
//! nothing above it is written twice, and cancel requests go the way that
//! their connection came.
//!
//! Encrypted always means verified: without it, whoever can redirect a
//! connection reads it all. There is no "encrypt if you can".

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The stream of an encrypted connection.
pub type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
/// What drives a client's socket.
pub type Connection = tokio_postgres::Connection<Socket, Stream>;

/// How servers are connected to, as configuration files say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Whether connections are encrypted, and what of the server is verified.
    pub mode: TlsMode,
    /// Certificates (PEM) of the authorities that servers' certificates come
    /// from; read once, at start.
    pub ca_file: Option<PathBuf>,
}

/// What is asked of a server, as libpq's `sslmode` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Nothing: connections are not encrypted.
    #[default]
    Disable,
    /// A certificate of a known authority, for whatever name.
    VerifyCa,
    /// A certificate of a known authority, for the name that is connected to.
    VerifyFull,
}

/// Why no connector can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Servers can't be verified against nothing.
    #[error("tls.mode asks for verified servers: tls.ca_file must name their authorities")]
    NoAuthorities,
    /// The file can't be read, or is not PEM.
    #[error("can't read PEM from {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file holds something that is no usable authority.
    #[error("{path} holds no usable certificate of an authority")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, where there was one at all.
        source: Option<rustls::Error>,
    },
    /// The certificate can't be shown, or the key is not its own.
    #[error("{path} and {key} are no certificate and its key")]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The cryptography that this program was built with can't do it.
    #[error("TLS can't be set up")]
    Setup(#[source] rustls::Error),
}

/// Why a connection string can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DsnError {
    /// It is not one.
    #[error("the connection string is not valid")]
    Invalid(#[source] tokio_postgres::Error),
    /// It asks for more than `tls.mode` gives.
    #[error("the connection string says sslmode=require, but tls.mode is disable")]
    Unprotected,
}

/// Makes this program's one provider of cryptography the default of all
/// libraries. Call it first thing in `main`.
pub fn install_provider() {
    // An error says that there is one already.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// Connects to servers as one [`TlsSettings`] says.
#[derive(Clone)]
pub struct Tls {
    settings: TlsSettings,
    mode: SslMode,
    connector: MakeRustlsConnect,
}

impl Tls {
    /// Connections that are not encrypted.
    pub fn disabled() -> Result<Self, TlsError> {
        Self::new(&TlsSettings::default())
    }

    /// Reads the authorities' file.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?;
        let authorities = |settings: &TlsSettings| {
            let path = settings.ca_file.as_deref();
            authorities(path.ok_or(TlsError::NoAuthorities)?)
        };
        let (mode, config) = match settings.mode {
            // The connector is not used then; it would trust nobody.
            TlsMode::Disable => (
                SslMode::Disable,
                builder.with_root_certificates(RootCertStore::empty()),
            ),
            TlsMode::VerifyFull => (
                SslMode::Require,
                builder.with_root_certificates(authorities(settings)?),
            ),
            TlsMode::VerifyCa => {
                let verifier = AnyName::new(authorities(settings)?, provider)?;
                let builder = builder.dangerous();
                (
                    SslMode::Require,
                    builder.with_custom_certificate_verifier(Arc::new(verifier)),
                )
            }
        };
        Ok(Self {
            settings: settings.clone(),
            mode,
            connector: MakeRustlsConnect::new(config.with_no_client_auth()),
        })
    }

    /// What it was made from, for clients that connect by themselves.
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// Reads a connection string, unless it asks for encryption that there is not.
    pub fn read(&self, dsn: &str) -> Result<Config, DsnError> {
        let config: Config = dsn.parse().map_err(DsnError::Invalid)?;
        match (config.get_ssl_mode(), self.mode) {
            (SslMode::Require, SslMode::Disable) => Err(DsnError::Unprotected),
            _ => Ok(config),
        }
    }

    /// A client, and what must be driven for it to get answers. Has no deadline
    /// of its own but the configuration's for each address.
    pub async fn connect(
        &self,
        config: &Config,
    ) -> Result<(Client, Connection), tokio_postgres::Error> {
        self.with_mode(config).connect(self.connector()).await
    }

    /// Asks a server to stop what a connection made here is running.
    pub async fn cancel(&self, token: &CancelToken) -> Result<(), tokio_postgres::Error> {
        token.cancel_query(self.connector()).await
    }

    /// Whether connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.mode != SslMode::Disable
    }

    /// The configuration with this connector's mode, for pools that connect themselves.
    pub fn with_mode(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.ssl_mode(self.mode);
        config
    }

    /// The connector itself, for pools that connect themselves.
    pub fn connector(&self) -> MakeRustlsConnect {
        self.connector.clone()
    }
}

pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let unreadable = |source| TlsError::File {
        path: path.to_owned(),
        source,
    };
    let unusable = |source| TlsError::Unusable {
        path: path.to_owned(),
        source,
    };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        store
            .add(certificate)
            .map_err(|error| unusable(Some(error)))?;
    }
    match store.is_empty() {
        true => Err(unusable(None)),
        false => Ok(store),
    }
}

/// What can't be set up has errors of several types.
pub(crate) fn setup(error: impl std::fmt::Display) -> TlsError {
    TlsError::Setup(rustls::Error::General(error.to_string()))
}

/// Verifies all of a certificate but the name in it.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl AnyName {
    fn new(authorities: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), provider);
        builder.build().map(Self).map_err(setup)
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last: all else was found to be right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_needs_authorities() {
        for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
            let settings = |ca_file| TlsSettings { mode, ca_file };
            let none = Tls::new(&settings(None)).err();
            assert!(matches!(none, Some(TlsError::NoAuthorities)));
            let missing = Tls::new(&settings(Some("/nowhere".into()))).err();
            assert!(matches!(missing, Some(TlsError::File { .. })));
            let no_pem = Tls::new(&settings(Some("/etc/passwd".into()))).err();
            assert!(matches!(
                no_pem,
                Some(TlsError::Unusable { source: None, .. })
            ));
        }
    }

    #[test]
    fn a_connection_string_gets_no_less_than_it_asks_for() {
        let plain = Tls::disabled().unwrap();
        assert!(matches!(
            plain.read("host=db sslmode=require"),
            Err(DsnError::Unprotected)
        ));
        assert!(plain.read("host=db").is_ok());
        assert!(matches!(
            plain.read("host=db sslrootcert=x"),
            Err(DsnError::Invalid(_))
        ));
    }
}
