//! ML-DSA-44 (FIPS 204) beside Ed25519, on what has to hold for years: checkpoints of ledgers and
//! epoch records. Votes, which live for minutes, have Ed25519 alone.
//!
//! A node's record names its key by hash ([`PqPublic::hash`]), because the key itself is longer than
//! everything else in a record; whoever shows a signature shows the key with it. Signing draws
//! random bytes inside the library (the hedged variant of FIPS 204), so two signatures over the same
//! bytes differ and nothing may be derived from a signature's bytes. The context string is empty:
//! what is signed begins with a tag of its own.

use std::fmt;

use aws_lc_rs::signature::{
    KeyPair as _, ML_DSA_44, ML_DSA_44_SIGNING, PqdsaKeyPair, UnparsedPublicKey,
};

use super::crypto::sha256;
use super::ids::to_hex;

/// Length of a public key, in bytes.
pub const PUBLIC_KEY: usize = 1312;
/// Length of a signature, in bytes.
pub const SIGNATURE: usize = 2420;
/// A signature.
pub type PqSignature = [u8; SIGNATURE];

/// Why a post-quantum key or signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PqError {
    /// The public key has the wrong length or is none.
    #[error("the public key is not an ML-DSA-44 key")]
    MalformedKey,
    /// The signature is not this key's over these bytes.
    #[error("the ML-DSA-44 signature does not verify")]
    BadSignature,
    /// The library did not sign, which happens only when the system gives no random bytes or memory.
    #[error("the cryptographic library made no ML-DSA-44 signature; is the system out of memory?")]
    CannotSign,
}

/// A signing key. It never prints its secret; the library wipes it when it is dropped.
pub struct PqSigner {
    key: PqdsaKeyPair,
    public: PqPublic,
}

impl PqSigner {
    /// The key that follows from this 32-byte seed (FIPS 204, ξ), which must come from the kernel's
    /// random source.
    ///
    /// # Errors
    /// [`PqError::CannotSign`] when the library has no memory for it.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, PqError> {
        let key =
            PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, seed).map_err(|_| PqError::CannotSign)?;
        let public = PqPublic::from_bytes(key.public_key().as_ref())?;
        Ok(Self { key, public })
    }

    /// The public key.
    pub const fn public(&self) -> &PqPublic {
        &self.public
    }

    /// Signs bytes that begin with a domain tag. Two signatures over the same bytes differ.
    ///
    /// # Errors
    /// [`PqError::CannotSign`].
    pub fn sign(&self, message: &[u8]) -> Result<Box<PqSignature>, PqError> {
        let mut signature = Box::new([0; SIGNATURE]);
        match self.key.sign(message, signature.as_mut_slice()) {
            Ok(SIGNATURE) => Ok(signature),
            _ => Err(PqError::CannotSign),
        }
    }
}

impl fmt::Debug for PqSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PqSigner({})", to_hex(&self.public.hash()))
    }
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PqPublic(Box<[u8; PUBLIC_KEY]>);

impl PqPublic {
    /// Takes the encoding of FIPS 204. Every string of the right length is one, so this says nothing
    /// about who holds the key; compare [`PqPublic::hash`] with the record's.
    ///
    /// # Errors
    /// [`PqError::MalformedKey`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PqError> {
        let bytes: Box<[u8]> = bytes.into();
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| PqError::MalformedKey)
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY] {
        &self.0
    }

    /// SHA-256 of the encoding: how a node record names the key.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.as_bytes())
    }

    /// Verifies a signature over bytes that begin with a domain tag.
    ///
    /// # Errors
    /// [`PqError::BadSignature`], also for a signature of the wrong length.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), PqError> {
        UnparsedPublicKey::new(&ML_DSA_44, self.0.as_slice())
            .verify(message, signature)
            .map_err(|_| PqError::BadSignature)
    }
}

impl fmt::Debug for PqPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PqPublic({})", to_hex(&self.hash()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::from_hex;
    use super::*;

    /// The key with the test seed of `docs/vectors/protocol.json`, by its hash: another library, or
    /// a later version of this one, has to come to the same.
    #[test]
    fn a_seed_makes_the_key_it_always_made() {
        let signer = PqSigner::from_seed(&[1; 32]).unwrap();
        assert_eq!(
            signer.public().hash(),
            from_hex(SEED_1_KEY_HASH).unwrap(),
            "{signer:?}"
        );
    }

    /// SHA-256 of the ML-DSA-44 public key of the seed of 32 bytes `01`.
    const SEED_1_KEY_HASH: &str =
        "bc7f72c940225e3998067ebef1d7cd2cad938de8f70b34c515a81d9efacac204";

    /// The example of RFC 9881, appendix C: the seed 00 01 … 1f and how its public key begins.
    #[test]
    fn the_published_example_makes_the_published_key() {
        let seed: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let signer = PqSigner::from_seed(&seed).unwrap();
        assert_eq!(
            to_hex(&signer.public().as_bytes()[..32]),
            "d7b2b47254aae0db45e7930d4a98d2c97d8f1397d1789dafa17024b316e9bec9"
        );
    }

    #[test]
    fn a_signature_holds_for_its_key_and_bytes_only() {
        let (a, b) = (
            PqSigner::from_seed(&[1; 32]).unwrap(),
            PqSigner::from_seed(&[2; 32]).unwrap(),
        );
        let signature = a.sign(b"message").unwrap();
        assert_eq!(a.public().verify(b"message", &*signature), Ok(()));
        let bad = Err(PqError::BadSignature);
        assert_eq!(a.public().verify(b"massage", &*signature), bad);
        assert_eq!(b.public().verify(b"message", &*signature), bad);
        assert_eq!(a.public().verify(b"message", &signature[1..]), bad);
        assert_eq!(a.public().verify(b"message", &[]), bad);
        for at in [0, 31, 32, 1000, SIGNATURE - 1] {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert_eq!(a.public().verify(b"message", &*changed), bad, "byte {at}");
        }
        assert_ne!(signature, a.sign(b"message").unwrap(), "signing is hedged");
    }

    #[test]
    fn a_key_is_read_back_and_nothing_else_is_one() {
        let public = PqSigner::from_seed(&[3; 32]).unwrap().public().clone();
        assert_eq!(PqPublic::from_bytes(public.as_bytes()), Ok(public.clone()));
        for len in [0, 32, PUBLIC_KEY - 1, PUBLIC_KEY + 1] {
            assert_eq!(
                PqPublic::from_bytes(&vec![7; len]),
                Err(PqError::MalformedKey)
            );
        }
        // Any bytes of the right length are a key, but nobody can sign for it.
        let junk = PqPublic::from_bytes(&[0xff; PUBLIC_KEY]).unwrap();
        assert!(junk.verify(b"m", &[0; SIGNATURE]).is_err());
        assert_ne!(junk.hash(), public.hash());
    }

    #[test]
    fn a_signer_does_not_print_its_secret() {
        let signer = PqSigner::from_seed(&[0x5a; 32]).unwrap();
        assert!(!format!("{signer:?}").contains("5a5a"));
    }
}
