//! HS256 for `jsonwebtoken`, on ring.
//!
//! Each backend that the library offers brings every algorithm of the standard. Tokens need one; a backend without the
//! others cannot be made to accept them, and does not depend on `rsa`, whose timing leak has no fix (RUSTSEC-2023-0071).

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{self, Signer, Verifier},
};
use ring::hmac;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| signer(*algorithm, key),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    // For sets of public keys, which HS256 does not have.
    key_utils: KeyUtils::new_unimplemented(),
};

struct Hs256(hmac::Key);

/// Makes this the backend of the process; later calls change nothing.
pub(super) fn install() {
    // An error means that a provider is installed, and this is the only one.
    let _ = PROVIDER.install_default();
}

fn signer(algorithm: Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    check(algorithm, key.family())?;
    Ok(Box::new(Hs256::new(key.as_bytes())))
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    check(algorithm, key.family())?;
    Ok(Box::new(Hs256::new(key.try_get_as_bytes()?)))
}

fn check(algorithm: Algorithm, family: AlgorithmFamily) -> Result<()> {
    match (algorithm, family) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(()),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

impl Hs256 {
    fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(secret: &[u8], message: &[u8]) -> Vec<u8> {
        signer(Algorithm::HS256, &EncodingKey::from_secret(secret)).unwrap().sign(message)
    }

    fn verify(secret: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = DecodingKey::from_secret(secret);
        verifier(Algorithm::HS256, &key).unwrap().verify(message, &signature.to_vec()).is_ok()
    }

    /// The second test case of RFC 4231.
    #[test]
    fn signature_matches_the_standard() {
        let (secret, message) = (b"Jefe".as_slice(), b"what do ya want for nothing?".as_slice());
        let expected = [
            0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75,
            0xc7, //
            0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43,
        ];
        assert_eq!(sign(secret, message), expected);
        assert!(verify(secret, message, &expected));
        assert!(!verify(secret, b"another message", &expected));
        assert!(!verify(b"another secret", message, &expected));
        assert!(!verify(secret, message, &expected[..31]));
    }

    #[test]
    fn other_algorithms_have_no_implementation() {
        for algorithm in [Algorithm::HS384, Algorithm::HS512, Algorithm::RS256, Algorithm::EdDSA] {
            assert!(signer(algorithm, &EncodingKey::from_secret(b"secret")).is_err());
            assert!(verifier(algorithm, &DecodingKey::from_secret(b"secret")).is_err());
        }
        assert!(verifier(Algorithm::HS256, &DecodingKey::from_ed_der(b"key")).is_err());
    }
}
