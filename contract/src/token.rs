//! Tokens, which authenticate a caller.
//!
//! A token is a JWT signed with HS256, issued by and for vidlog, valid for 30 days. Its header names the signing key,
//! so keys can be rotated: put the new key first and keep the old one until its last token has expired.

mod hs256;

use std::{collections::HashMap, fmt, sync::Arc};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::{error::ApiError, limits};

/// The lifetime of a token. The client cannot renew one except by logging in.
const LIFETIME_SECONDS: i64 = 30 * 24 * 60 * 60;
/// The size of HS256's output. A shorter secret could be brute-forced from a token (RFC 7518, 3.2).
const MIN_SECRET_BYTES: usize = 32;
const ISSUER: &str = "vidlog";
const AUDIENCE: &str = "vidlog-client";

/// Signs and verifies tokens. Clones share the keys.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    signing_id: String,
    signing_key: EncodingKey,
    verifying_keys: HashMap<String, DecodingKey>,
    now_ms: Box<dyn Fn() -> i64 + Send + Sync>,
}

/// An invalid list of keys. The error never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeysError {
    /// The list is empty.
    #[error("there is no key; give kid:secret, separated by commas")]
    None,
    /// A key is not of the form `kid:secret`.
    #[error("key number {0} is not of the form kid:secret")]
    Malformed(usize),
    /// A secret is too short.
    #[error("the secret of key {0:?} has less than {MIN_SECRET_BYTES} bytes")]
    ShortSecret(String),
    /// Two keys have the same name.
    #[error("key {0:?} is given twice")]
    Repeated(String),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    exp: i64,
}

impl Tokens {
    /// Parses keys written `kid:secret,kid2:secret2`: the first signs, all verify.
    ///
    /// `now_ms` returns the time in milliseconds since 1970.
    pub fn parse(
        keys: &str,
        now_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, TokenKeysError> {
        hs256::install();
        let mut signing = None;
        let mut verifying_keys = HashMap::new();
        for (index, key) in keys.split(',').map(str::trim).filter(|key| !key.is_empty()).enumerate() {
            let (id, secret) = key
                .split_once(':')
                .filter(|(id, _)| !id.is_empty())
                .ok_or(TokenKeysError::Malformed(index + 1))?;
            if secret.len() < MIN_SECRET_BYTES {
                return Err(TokenKeysError::ShortSecret(id.to_owned()));
            }
            let verifying = DecodingKey::from_secret(secret.as_bytes());
            if verifying_keys.insert(id.to_owned(), verifying).is_some() {
                return Err(TokenKeysError::Repeated(id.to_owned()));
            }
            signing.get_or_insert_with(|| (id.to_owned(), EncodingKey::from_secret(secret.as_bytes())));
        }
        let (signing_id, signing_key) = signing.ok_or(TokenKeysError::None)?;
        let inner = Inner { signing_id, signing_key, verifying_keys, now_ms: Box::new(now_ms) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Signs a token for a user.
    pub fn sign(&self, user_id: i64) -> Result<String, ApiError> {
        let now = self.now_seconds();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user_id.to_string(),
            iat: now,
            exp: now + LIFETIME_SECONDS,
        };
        let header = Header { kid: Some(self.inner.signing_id.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.inner.signing_key).map_err(|error| {
            error!(%error, "failed to sign a token");
            ApiError::internal()
        })
    }

    /// Returns the user of a token that has a valid signature and has not expired.
    pub fn verify(&self, token: &str) -> Result<i64, ApiError> {
        let claims =
            self.claims(token).ok_or_else(|| ApiError::unauthenticated("the token is not valid; log in"))?;
        if claims.exp <= self.now_seconds() {
            return Err(ApiError::unauthenticated("the token has expired; log in again"));
        }
        claims
            .sub
            .parse()
            .ok()
            .filter(|id| (1..=limits::MAX_ID).contains(id))
            .ok_or_else(|| ApiError::unauthenticated("the token names no user; log in"))
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let key = self.inner.verifying_keys.get(&header.kid?)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // The library would use the system clock instead of the service's.
        validation.validate_exp = false;
        jsonwebtoken::decode::<Claims>(token, key, &validation).ok().map(|token| token.claims)
    }

    fn now_seconds(&self) -> i64 {
        (self.inner.now_ms)().div_euclid(1000)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids: Vec<_> = self.inner.verifying_keys.keys().collect();
        ids.sort();
        f.debug_struct("Tokens")
            .field("signs", &self.inner.signing_id)
            .field("verify", &ids)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use ring::hmac;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Code;

    const NOW: i64 = 1_700_000_000_000;
    const A: &str = "a:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "b:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn tokens(keys: &str) -> Tokens {
        Tokens::parse(keys, || NOW).unwrap()
    }

    fn claims() -> Value {
        json!({"iss": "vidlog", "aud": "vidlog-client", "sub": "7", "iat": NOW / 1000, "exp": NOW / 1000 + 60})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    const SECRET: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn forge(kid: Option<&str>, claims: &Value) -> String {
        hs256::install();
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    /// A token with a valid signature of another HMAC algorithm.
    fn forge_with(name: &str, algorithm: hmac::Algorithm) -> String {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": name, "kid": "a"}).to_string());
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims().to_string()));
        let signature = hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn is_rejected(token: &str) -> bool {
        tokens(A).verify(token).is_err_and(|error| error.code == Code::Unauthenticated)
    }

    proptest! {
        #[test]
        fn token_verifies_only_unchanged(
            user in 1..=limits::MAX_ID,
            place in any::<prop::sample::Index>(),
            byte in prop_oneof![0..128_u8, prop::sample::select(&b"AQgw.-_="[..])],
            cut in any::<bool>(),
        ) {
            let tokens = tokens(A);
            let token = tokens.sign(user).unwrap();
            prop_assert_eq!(tokens.verify(&token), Ok(user));
            let mut changed = token.clone().into_bytes();
            let place = place.index(changed.len());
            if cut { _ = changed.remove(place) } else { changed[place] = byte }
            let changed = String::from_utf8(changed).unwrap();
            prop_assert!(changed == token || is_rejected(&changed), "{}", changed);
        }

        #[test]
        fn any_text_is_rejected(text in "\\PC{0,60}|[A-Za-z0-9_-]{0,40}(\\.[A-Za-z0-9_=-]{0,60}){0,3}", claims in "\\PC{0,40}") {
            prop_assert!(is_rejected(&text));
            // A header that names the key, and the valid signature of any claims.
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"a"}"#);
            let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
            let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), message.as_bytes());
            let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
            prop_assert!(is_rejected(&signed));
        }

        #[test]
        fn subject_is_an_id(subject in "[-+]?[0-9]{0,20}|\\PC{0,10}") {
            let verified = tokens(A).verify(&forge(Some("a"), &with("sub", json!(subject))));
            let expected = subject.parse().ok().filter(|id| (1..=limits::MAX_ID).contains(id));
            prop_assert_eq!(verified.ok(), expected);
        }

        #[test]
        fn any_list_of_keys_is_parsed_or_an_error(
            keys in prop::collection::vec(("[a-c]{0,2}", "[ -~]{20,40}"), 0..4),
            separator in "[:=]",
        ) {
            let list: Vec<_> = keys.iter().map(|(id, secret)| format!("{id}{separator}{secret}")).collect();
            if let Ok(tokens) = Tokens::parse(&list.join(","), || NOW) {
                prop_assert_eq!(tokens.verify(&tokens.sign(7).unwrap()), Ok(7));
            }
        }
    }

    #[test]
    fn signed_token_verifies() {
        let tokens = tokens(A);
        assert_eq!(tokens.verify(&tokens.sign(7).unwrap()), Ok(7));
        assert_eq!(tokens.verify(&forge(Some("a"), &claims())), Ok(7));
    }

    #[test]
    fn rotated_key_still_verifies() {
        let old = tokens(A).sign(7).unwrap();
        let rotated = tokens(&format!("{B},{A}"));
        assert_eq!(rotated.verify(&old), Ok(7));
        let new = rotated.sign(7).unwrap();
        assert_eq!(tokens(B).verify(&new), Ok(7));
        assert!(is_rejected(&new), "an unknown key");
    }

    #[test]
    fn token_expires() {
        let now = Arc::new(AtomicI64::new(NOW));
        let clock = Arc::clone(&now);
        let tokens = Tokens::parse(A, move || clock.load(Ordering::SeqCst)).unwrap();
        let token = tokens.sign(7).unwrap();
        now.store(NOW + (LIFETIME_SECONDS - 1) * 1000, Ordering::SeqCst);
        assert_eq!(tokens.verify(&token), Ok(7));
        now.store(NOW + LIFETIME_SECONDS * 1000, Ordering::SeqCst);
        assert_eq!(tokens.verify(&token).unwrap_err().message, "the token has expired; log in again");
    }

    #[test]
    fn other_algorithm_is_rejected() {
        assert_eq!(tokens(A).verify(&forge_with("HS256", hmac::HMAC_SHA256)), Ok(7));
        for name in ["HS384", "HS512"] {
            for algorithm in [hmac::HMAC_SHA256, hmac::HMAC_SHA384, hmac::HMAC_SHA512] {
                assert!(is_rejected(&forge_with(name, algorithm)));
            }
        }
    }

    #[test]
    fn algorithm_none_is_rejected() {
        let payload = forge(Some("a"), &claims()).split('.').nth(1).unwrap().to_owned();
        // {"alg":"none","kid":"a"}, with an empty signature and without one.
        let header = "eyJhbGciOiJub25lIiwia2lkIjoiYSJ9";
        assert!(is_rejected(&format!("{header}.{payload}.")));
        assert!(is_rejected(&format!("{header}.{payload}")));
    }

    #[test]
    fn changed_or_unsigned_token_is_rejected() {
        let token = forge(Some("a"), &claims());
        let other = forge(Some("a"), &with("sub", json!("8")));
        let (signed, _) = token.rsplit_once('.').unwrap();
        let (_, signature) = other.rsplit_once('.').unwrap();
        assert!(is_rejected(&format!("{signed}.{signature}")));
        assert!(is_rejected(&format!("{signed}.")));
        assert!(is_rejected("a.b.c"));
        assert!(is_rejected("x"));
    }

    #[test]
    fn token_of_an_unknown_key_is_rejected() {
        assert!(is_rejected(&forge(None, &claims())));
        assert!(is_rejected(&forge(Some("b"), &claims())));
    }

    #[test]
    fn token_with_wrong_claims_is_rejected() {
        for (name, value) in [
            ("aud", json!("another-client")),
            ("aud", Value::Null),
            ("iss", json!("someone")),
            ("iss", Value::Null),
            ("exp", Value::Null),
            ("exp", json!(NOW / 1000)),
            ("sub", json!("0")),
            ("sub", json!("-7")),
            ("sub", json!("9007199254740992")),
            ("sub", json!("admin")),
            ("sub", Value::Null),
        ] {
            assert!(is_rejected(&forge(Some("a"), &with(name, value.clone()))), "{name} {value}");
        }
    }

    #[test]
    fn invalid_keys_are_rejected() {
        let error = |keys| Tokens::parse(keys, || NOW).unwrap_err();
        assert_eq!(error(""), TokenKeysError::None);
        assert_eq!(error("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), TokenKeysError::Malformed(1));
        assert_eq!(error("a:short"), TokenKeysError::ShortSecret("a".to_owned()));
        assert_eq!(error(&format!("{A},{A}")), TokenKeysError::Repeated("a".to_owned()));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", tokens(A)), r#"Tokens { signs: "a", verify: ["a"], .. }"#);
    }
}
