//! TLS as it is spoken here: version 1.3, hybrid post-quantum key exchange, and keys that are known
//! beforehand instead of authorities.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};

use super::counters::Counters;
use super::peers::{AllowedPeers, PeerIdentity};
use crate::mesh::identity::{TlsIdentity, spki_of};

const ALPN: &[u8] = b"secmesh/1";

/// The algorithms: X25519MLKEM768 before X25519.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
    ];
    Arc::new(CryptoProvider {
        kx_groups,
        ..aws_lc_rs::default_provider()
    })
}

#[derive(Debug)]
enum Pins {
    Allowed(Arc<AllowedPeers>),
    Exactly(Vec<[u8; 32]>),
}

/// Accepts a certificate if its key is known, whatever else it says. That the peer holds the key is
/// shown by the handshake's signature, which is checked as always.
#[derive(Debug)]
struct PinVerifier {
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl PinVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let pin =
            spki_of(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let known = match &self.pins {
            Pins::Allowed(peers) => match peers.get(&pin) {
                // The alert tells the node why.
                Some(PeerIdentity::Quarantined(_)) => {
                    return Err(Error::InvalidCertificate(CertificateError::Revoked));
                }
                who => who.is_some(),
            },
            Pins::Exactly(pins) => pins.contains(&pin),
        };
        if known {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// Never reached: TLS 1.2 is not offered. Refused all the same.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for PinVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn certificate(identity: &TlsIdentity) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(
        identity.certified().as_ref().clone(),
    ))
}

/// The listening side: demands a certificate with a key out of `allowed`. No resumption, so that each
/// connection shows its key anew.
pub(super) fn server(
    identity: &TlsIdentity,
    allowed: Arc<AllowedPeers>,
) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let verifier = PinVerifier {
        pins: Pins::Allowed(allowed),
        provider: Arc::clone(&provider),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The calling side: accepts a server with one of `pins`.
pub(super) fn client(
    identity: &TlsIdentity,
    pins: Vec<[u8; 32]>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = PinVerifier {
        pins: Pins::Exactly(pins),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(certificate(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A name for the TLS library; nobody sees or checks it.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Which counter a failed handshake belongs to, and the words for the log.
pub(super) fn refusal<'a>(
    error: &io::Error,
    counters: &'a Counters,
) -> (&'a std::sync::atomic::AtomicU64, &'static str) {
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
        return (
            &counters.refused_handshake_failed,
            "gave up the TLS handshake",
        );
    };
    match tls {
        Error::NoCertificatesPresented => (&counters.refused_no_certificate, "no certificate"),
        Error::InvalidCertificate(CertificateError::Revoked) => {
            (&counters.refused_quarantined, "the node is quarantined")
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => (
            &counters.refused_bad_signature,
            "does not hold its certificate's key",
        ),
        Error::InvalidCertificate(_) => (
            &counters.refused_unknown_certificate,
            "a certificate that is not known here",
        ),
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => (
            &counters.refused_tls_incompatible,
            "does not speak this mesh's TLS 1.3",
        ),
        Error::InvalidMessage(_) => (&counters.refused_not_tls, "does not speak TLS"),
        _ => (
            &counters.refused_handshake_failed,
            "the TLS handshake failed",
        ),
    }
}
