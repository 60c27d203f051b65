//! [`Trust`]: which servers are who they say they are.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::ClientError;

/// Whose certificates are believed.
#[derive(Args)]
pub struct Trust {
    /// A file with the certificates of an authority of your own (PEM), trusted instead of the system's
    #[arg(long, env = "ENTITY_SYNC_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Trust {
    /// For connections of our own.
    pub(super) fn rustls(&self) -> Result<Arc<ClientConfig>, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let config = match self.certificates()? {
            None => builder.with_platform_verifier().map_err(|error| unusable(&error))?,
            Some(certificates) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates {
                    roots.add(certificate).map_err(|error| self.bad(&error))?;
                }
                builder.with_root_certificates(roots)
            }
        };
        Ok(Arc::new(config.with_no_client_auth()))
    }

    /// For the HTTP client.
    pub(super) fn ureq(&self) -> Result<TlsConfig, ClientError> {
        let roots = match self.certificates()? {
            None => RootCerts::PlatformVerifier,
            Some(certificates) => {
                let certificates = certificates.iter().map(|it| Certificate::from_der(it).to_owned());
                RootCerts::from(certificates)
            }
        };
        Ok(TlsConfig::builder().root_certs(roots).build())
    }

    /// Those of the file, of which there is at least one.
    fn certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, ClientError> {
        let Some(path) = &self.ca else { return Ok(None) };
        let text = std::fs::read(path).map_err(|source| ClientError::File {
            path: path.display().to_string(),
            source,
        })?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
            Ok(_) => Err(self.bad(&"there is none in it")),
            Err(error) => Err(self.bad(&error)),
        }
    }

    fn bad(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::BadCa {
            path: self.ca.as_ref().map(|it| it.display().to_string()).unwrap_or_default(),
            reason: reason.to_string(),
        }
    }
}

fn unusable(error: &rustls::Error) -> ClientError {
    ClientError::NoTls {
        reason: error.to_string(),
    }
}

/// Whether an error says that the server's certificate is not believed. To try again would not help.
pub(super) fn is_distrust(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
