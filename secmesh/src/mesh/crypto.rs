//! The one signature verifier and the one hash.
//!
//! Ed25519 implementations disagree on edge cases (IACR 2020/1244); a
//! signature that one node accepts and another refuses would split a mesh. So every signature goes
//! through [`verify`], whose answers to the paper's vectors are pinned by a test.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use super::ids::to_hex;
use super::simulation::{self, Bug, planted};

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];
/// An Ed25519 signature.
pub type SignatureBytes = [u8; 64];

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The key is no point of the curve, or is not written in its one canonical form.
    #[error("the public key is not a canonical Ed25519 key")]
    MalformedKey,
    /// The key is of small order: with it, one signature fits many messages.
    #[error("the public key is weak (of small order)")]
    WeakKey,
    /// The signature is not this key's over these bytes.
    #[error("the signature does not verify")]
    BadSignature,
}

/// Checks that a public key can be used: canonical, on the curve, not of small order.
///
/// # Errors
/// [`CryptoError::MalformedKey`] or [`CryptoError::WeakKey`].
pub fn check_key(key: &PublicKey) -> Result<(), CryptoError> {
    usable_key(key).map(|_| ())
}

fn usable_key(key: &PublicKey) -> Result<VerifyingKey, CryptoError> {
    let parsed = VerifyingKey::from_bytes(key).map_err(|_| CryptoError::MalformedKey)?;
    if parsed.is_weak() {
        return Err(CryptoError::WeakKey);
    }
    // Decoding reduces y modulo p, so a point has a second spelling; node ids hash the spelling.
    if parsed.to_edwards().compress().to_bytes() == *key {
        Ok(parsed)
    } else {
        Err(CryptoError::MalformedKey)
    }
}

/// Verifies `signature` by `key` over `message`, which begins with a domain tag (see
/// [`super::wire`]).
///
/// # Errors
/// As [`check_key`], and [`CryptoError::BadSignature`] also for small-order `R` and for `S ≥ L`.
pub fn verify(
    key: &PublicKey,
    message: &[u8],
    signature: &SignatureBytes,
) -> Result<(), CryptoError> {
    if planted(Bug::SignatureUnchecked) {
        return Ok(());
    }
    simulation::remembered(key, message, signature, || {
        usable_key(key)?
            .verify_strict(message, &Signature::from_bytes(signature))
            .map_err(|_| CryptoError::BadSignature)
    })
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A signing key. Its memory is overwritten when it is dropped, and it never prints its secret.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
}

impl Signer {
    /// The key with this 32-byte seed (RFC 8032), which must come from the kernel's random source.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self {
            key: SigningKey::from_bytes(secret),
        }
    }

    /// The seed, for writing it to the key file. Do not copy it elsewhere.
    pub fn secret(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.key.verifying_key().to_bytes()
    }

    /// Signs bytes that begin with a domain tag. Deterministic: same bytes, same signature.
    pub fn sign(&self, message: &[u8]) -> SignatureBytes {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", to_hex(&self.public()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::from_hex;
    use super::*;
    use proptest::prelude::*;

    /// Message, key, signature: the twelve vectors of IACR 2020/1244, table 6c
    /// ("ed25519-speccheck", `cases.json`).
    const SPECCHECK: [(&str, &str, &str); 12] = [
        (
            "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000",
        ),
        (
            "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        ),
        (
            "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
            "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
        ),
        (
            "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
            "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
            "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
        ),
        (
            "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
            "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
            "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
        ),
        (
            "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
            "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
            "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
        ),
        (
            "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
            "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
            "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
        ),
        (
            "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
            "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
            "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
        ),
        (
            "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
            "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
        ),
        (
            "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
            "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
        ),
        (
            "e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        ),
        (
            "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        ),
    ];

    #[test]
    fn the_published_edge_cases_get_the_pinned_answer() {
        use CryptoError::{BadSignature, WeakKey};
        let pinned = [
            Err(WeakKey),      // 0: S = 0, small A, small R
            Err(WeakKey),      // 1: small A
            Err(BadSignature), // 2: small R
            Ok(()),            // 3: mixed order A and R, both equations hold
            Err(BadSignature), // 4: only the cofactored equation holds
            Err(BadSignature), // 5: the same, h has to be reduced first
            Err(BadSignature), // 6: S > L
            Err(BadSignature), // 7: S much larger than L
            Err(BadSignature), // 8: R not canonical and small
            Err(BadSignature), // 9: the same, reduced for the hash
            Err(WeakKey),      // 10: A not canonical and small
            Err(WeakKey),      // 11: the same, reduced for the hash
        ];
        for (number, ((message, key, signature), expected)) in
            SPECCHECK.iter().zip(pinned).enumerate()
        {
            let answer = verify(
                &from_hex(key).unwrap(),
                &from_hex::<32>(message).unwrap(),
                &from_hex(signature).unwrap(),
            );
            assert_eq!(answer, expected, "vector {number}");
        }
    }

    /// L, the order of the base point, little-endian.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];

    #[test]
    fn a_signature_with_s_plus_l_is_refused() {
        let signer = Signer::from_secret(&[7; 32]);
        let mut signature = signer.sign(b"message");
        assert_eq!(verify(&signer.public(), b"message", &signature), Ok(()));
        let mut carry = 0_u16;
        for (byte, order) in signature[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        assert_eq!(
            verify(&signer.public(), b"message", &signature),
            Err(CryptoError::BadSignature)
        );
    }

    #[test]
    fn small_order_and_non_canonical_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(check_key(&identity), Err(CryptoError::WeakKey));
        assert_eq!(check_key(&[0; 32]), Err(CryptoError::WeakKey));
        // y = p + 3: 3 is the y of a point of large order, spelled with p added.
        let mut spelled_twice = [0xff; 32];
        spelled_twice[0] = 0xf0;
        spelled_twice[31] = 0x7f;
        let mut spelled_once = [0; 32];
        spelled_once[0] = 3;
        assert_eq!(check_key(&spelled_once), Ok(()));
        assert_eq!(check_key(&spelled_twice), Err(CryptoError::MalformedKey));
    }

    #[test]
    fn a_signer_does_not_print_its_secret() {
        let signer = Signer::from_secret(&[0x5a; 32]);
        assert!(!format!("{signer:?}").contains("5a5a"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_changed_bit_breaks_the_signature(
            secret: [u8; 32],
            message in proptest::collection::vec(any::<u8>(), 1..200),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let signer = Signer::from_secret(&secret);
            let mut signed = signer.sign(&message).to_vec();
            signed.extend_from_slice(&message);
            let at = at.index(signed.len());
            signed[at] ^= 1 << bit;
            let signature: SignatureBytes = signed[..64].try_into().unwrap();
            prop_assert!(verify(&signer.public(), &signed[64..], &signature).is_err());
        }
    }
}
