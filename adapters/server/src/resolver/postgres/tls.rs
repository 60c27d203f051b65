//! How connections to a database are encrypted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Encryption, Versions};

/// What encrypts, if anything does.
pub(super) type Tls = Option<MakeRustlsConnect>;

/// Reads the files that the DSN names.
pub(super) fn tls(encryption: Option<&Encryption>) -> io::Result<Tls> {
    let Some(encryption) = encryption else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = match encryption.versions {
        Versions::All => &[&TLS13, &TLS12],
        Versions::Tls12 => &[&TLS12],
        Versions::Tls13 => &[&TLS13],
    };
    let mut verifier = verifier(encryption.roots.as_deref(), &provider)?;
    if encryption.any_name {
        verifier = Arc::new(AnyName(verifier));
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &encryption.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, error))?;
            builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    config.enable_sni = !encryption.hides_name;
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn verifier(roots: Option<&Path>, provider: &Arc<CryptoProvider>) -> io::Result<Arc<dyn ServerCertVerifier>> {
    let Some(path) = roots else {
        let verifier = rustls_platform_verifier::Verifier::new(provider.clone()).map_err(io::Error::other)?;
        return Ok(Arc::new(verifier));
    };
    let mut store = RootCertStore::empty();
    for certificate in certificates("sslrootcert", path)? {
        store
            .add(certificate)
            .map_err(|error| unreadable("sslrootcert", path, error))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
    let verifier = verifier
        .build()
        .map_err(|error| unreadable("sslrootcert", path, error))?;
    Ok(verifier)
}

fn certificates(parameter: &str, path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unreadable(parameter, path, error))?;
    if read.is_empty() {
        return Err(unreadable(parameter, path, "there is no certificate in it (PEM)"));
    }
    Ok(read)
}

fn unreadable(parameter: &str, path: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{parameter}={} can't be used: {why}", path.display()))
}

/// Believes a certificate of the right authority, whatever its name is.
#[derive(Debug)]
struct AnyName(Arc<dyn ServerCertVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at when everything else is good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
