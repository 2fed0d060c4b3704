//! The certificate authority of a cluster whose services speak TLS.
//! Its key is never written: each run has an authority of its own.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::folder::write_private;
use crate::error::{Error, Result, io};

/// Issues the servers' certificates, and those of routers and workers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority, whose own certificate is written to `file`.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn new(file: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Ringfence local cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        write_private(file, &certificate.pem()).map_err(io(format!("write {}", file.display())))?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            file: file.to_owned(),
        })
    }

    /// Its certificate's file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A certificate for a host name or address, and its key; PEM.
    ///
    /// # Errors
    /// Where it can't be made, for a wrong name as a rule.
    pub fn issue(&self, host: &str) -> Result<(String, String)> {
        let params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn failed(error: rcgen::Error) -> Error {
    io("make a certificate")(std::io::Error::other(error))
}
