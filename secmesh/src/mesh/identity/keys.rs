//! Key files, and the TLS certificate made from one.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use super::IdentityError;
use crate::entropy;
use crate::mesh::crypto::Signer;
use crate::state::{PRIVATE, StateError, read_secret, write_atomic};

/// What a key is for. A key file says so, and is refused for anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Signs votes.
    Vote,
    /// Signs the ledger.
    Ledger,
    /// Signs the ledger too, with ML-DSA-44.
    LedgerPq,
    /// Proves a node's end of a TLS connection.
    Tls,
    /// Admits nodes and overrides decisions; a person's, not a node's.
    Operator,
}

impl Purpose {
    /// Its name in a key file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Ledger => "ledger",
            Self::LedgerPq => "ledger-ml-dsa-44",
            Self::Tls => "tls",
            Self::Operator => "operator",
        }
    }

    /// The file in the state directory.
    pub fn file(self) -> &'static str {
        match self {
            Self::Vote => "vote.key",
            Self::Ledger => "ledger.key",
            Self::LedgerPq => "ledger-pq.key",
            Self::Tls => "tls.key",
            Self::Operator => "operator.key",
        }
    }
}

/// Makes an operator key and stores it, readable by its owner only.
///
/// # Errors
/// [`StateError::Exists`] if the file is there: an operator key is not replaced by accident.
pub fn create_operator_key(path: &Path) -> Result<SigningKey, IdentityError> {
    if path.symlink_metadata().is_ok() {
        return Err(StateError::Exists(path.to_owned()).into());
    }
    create(path, Purpose::Operator)
}

/// Loads an operator key.
///
/// # Errors
/// [`IdentityError::BadKey`] if it is no such key, [`StateError::SecretExposed`] if others can read it.
pub fn load_operator_key(path: &Path) -> Result<SigningKey, IdentityError> {
    load(path, Purpose::Operator)
}

pub(super) fn create(path: &Path, purpose: Purpose) -> Result<SigningKey, IdentityError> {
    Ok(SigningKey::from_bytes(&create_seed(path, purpose)?))
}

/// Draws the 32 bytes that a key of either kind follows from, and stores them.
pub(super) fn create_seed(path: &Path, purpose: Purpose) -> Result<[u8; 32], IdentityError> {
    let seed = entropy::bytes()?;
    let line = format!(
        "secmesh-key 1 {} {}\n",
        purpose.name(),
        STANDARD.encode(seed)
    );
    write_atomic(path, line.as_bytes(), PRIVATE)?;
    Ok(seed)
}

pub(super) fn load(path: &Path, purpose: Purpose) -> Result<SigningKey, IdentityError> {
    Ok(SigningKey::from_bytes(&load_seed(path, purpose)?))
}

pub(super) fn load_seed(path: &Path, purpose: Purpose) -> Result<[u8; 32], IdentityError> {
    let bytes = read_secret(path)?;
    let bad = |detail| IdentityError::BadKey {
        path: path.display().to_string(),
        purpose: purpose.name(),
        detail,
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("it is not text"))?;
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some("secmesh-key") {
        return Err(bad("it does not begin with \"secmesh-key\""));
    }
    if words.next() != Some("1") {
        return Err(bad("its version is not 1"));
    }
    if words.next() != Some(purpose.name()) {
        return Err(bad("it is a key for something else"));
    }
    let seed = words.next().and_then(|word| STANDARD.decode(word).ok());
    let seed: [u8; 32] = seed
        .and_then(|seed| seed.try_into().ok())
        .ok_or_else(|| bad("the key is not 32 bytes of base64"))?;
    if words.next().is_some() {
        return Err(bad("something follows the key"));
    }
    Ok(seed)
}

/// A TLS key with a certificate that it signed itself. Peers know the key by [`spki_sha256`] and look
/// at nothing else in the certificate, so it is made anew at each start and never expires.
#[derive(Clone)]
pub struct TlsIdentity {
    certified: Arc<CertifiedKey>,
    spki_sha256: [u8; 32],
    signer: Signer,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// PKCS#8 (RFC 8410) of an Ed25519 seed, up to the seed.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// `SubjectPublicKeyInfo` (RFC 8410) of an Ed25519 key, up to the key.
const SPKI_ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl TlsIdentity {
    /// Makes a certificate for `key`.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] if the TLS library refuses the key.
    pub fn new(key: &SigningKey) -> Result<Self, IdentityError> {
        let fail = |e: &dyn std::fmt::Display| IdentityError::Certificate(e.to_string());
        let pkcs8 = [PKCS8_ED25519.as_slice(), &key.to_bytes()].concat();
        let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519)
            .map_err(|e| fail(&e))?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "secmesh");
        let certificate = params.self_signed(&pair).map_err(|e| fail(&e))?;
        let certificate = certificate.der().clone();
        let spki_sha256 =
            spki_of(&certificate).ok_or_else(|| fail(&"its own certificate does not parse"))?;
        let certified = CertifiedKey::from_der(
            vec![certificate],
            PrivateKeyDer::Pkcs8(pkcs8),
            &rustls::crypto::aws_lc_rs::default_provider(),
        )
        .map_err(|e| fail(&e))?;
        Ok(Self {
            certified: Arc::new(certified),
            spki_sha256,
            signer: Signer::from_secret(key.as_bytes()),
        })
    }

    /// What peers pin: SHA-256 of the key's `SubjectPublicKeyInfo`.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// The same key, for envelopes ([`crate::mesh::envelope`]): where there is no TLS between two nodes, it
    /// signs what they say. TLS signs nothing that begins with a domain tag (RFC 8446, 4.4.3).
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Key and certificate as the TLS library wants them.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// The pin of a certificate, given as DER; `None` if it is not an X.509 v3 certificate.
pub fn spki_sha256(certificate: &[u8]) -> Option<[u8; 32]> {
    spki_of(&CertificateDer::from(certificate))
}

/// As [`spki_sha256`].
pub fn spki_of(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info().as_ref()).into())
}

/// `SubjectPublicKeyInfo` of an Ed25519 public key, as DER.
pub fn ed25519_spki(key: &[u8; 32]) -> [u8; 44] {
    let mut out = [0; 44];
    for (slot, byte) in out.iter_mut().zip(SPKI_ED25519.iter().chain(key)) {
        *slot = *byte;
    }
    out
}

/// The pin of an Ed25519 public key, the same as [`spki_sha256`] of any certificate for it. For
/// letting in the holder of a ticket, of whom only the public key is known.
pub fn ed25519_spki_sha256(key: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(ed25519_spki(key)).into()
}
