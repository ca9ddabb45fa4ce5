//! Password hashing with argon2id, off the async threads and with bounded concurrency.

use std::{fmt, sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version, password_hash};
use thiserror::Error;
use tokio::{sync::Semaphore, task::JoinError, time::timeout};

/// OWASP's parameters for argon2id (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Maximum wait for a permit: a longer one would leave the call no time for its other steps.
const MAX_WAIT: Duration = Duration::from_secs(2);

const DUMMY_PASSWORD: &str = "dummy password";

/// Hashes and verifies passwords. Clones share the permits.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    permits: Arc<Semaphore>,
    max_wait: Duration,
    /// Hash that the password of an unknown name is verified against, so that both cases take equally long.
    dummy_hash: Arc<str>,
}

/// Error of hashing or verifying a password.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// No permit became free in time.
    #[error("too many passwords are waiting to be hashed")]
    Busy,
    /// The stored hash or the parameters are invalid.
    #[error("failed to hash the password: {0}")]
    Hash(password_hash::Error),
    /// The hashing task was cancelled or panicked.
    #[error("the hashing task failed")]
    Cancelled(#[from] JoinError),
}

impl Passwords {
    /// Hashes up to `concurrency` passwords at a time; each takes a core and 19 MiB.
    pub fn new(concurrency: usize) -> Result<Self, PasswordError> {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None)
            .map_err(|error| PasswordError::Hash(error.into()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy_hash = hash(&argon2, DUMMY_PASSWORD).map_err(PasswordError::Hash)?;
        Ok(Self {
            argon2,
            permits: Arc::new(Semaphore::new(concurrency.max(1))),
            max_wait: MAX_WAIT,
            dummy_hash: dummy_hash.into(),
        })
    }

    /// Hashes a password with a new salt, as a PHC string.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let argon2 = self.argon2.clone();
        self.with_permit(move || hash(&argon2, &password)).await
    }

    /// Verifies a password against a hash. Without a hash it returns false after the same time.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let (argon2, dummy_hash) = (self.argon2.clone(), self.dummy_hash.clone());
        self.with_permit(move || {
            let expected = hash.as_deref().unwrap_or(&dummy_hash);
            match argon2.verify_password(password.as_bytes(), expected) {
                Ok(()) => Ok(hash.is_some()),
                Err(password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Runs work on a blocking thread once a permit is free. The thread holds the permit, so cancelled calls count
    /// against the bound until their work ends.
    async fn with_permit<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, password_hash::Error> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let permit = timeout(self.max_wait, Arc::clone(&self.permits).acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(PasswordError::Busy)?;
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        work.await?.map_err(PasswordError::Hash)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords(…)")
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String, password_hash::Error> {
    argon2.hash_password(password.as_bytes()).map(|hash| hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_verifies_against_its_own_hash_only() {
        let passwords = Passwords::new(1).unwrap();
        let hash = passwords.hash("secret".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("secret".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("Secret".to_owned(), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn hashes_are_salted() {
        let passwords = Passwords::new(2).unwrap();
        let (one, other) =
            tokio::join!(passwords.hash("secret".to_owned()), passwords.hash("secret".to_owned()));
        assert_ne!(one.unwrap(), other.unwrap());
    }

    #[tokio::test]
    async fn without_a_hash_no_password_verifies() {
        let passwords = Passwords::new(1).unwrap();
        assert!(!passwords.verify(DUMMY_PASSWORD.to_owned(), None).await.unwrap());
    }

    #[tokio::test]
    async fn missing_permit_is_busy() {
        let passwords = Passwords { max_wait: Duration::ZERO, ..Passwords::new(1).unwrap() };
        let _taken = Arc::clone(&passwords.permits).acquire_owned().await.unwrap();
        let hashed = passwords.hash("secret".to_owned()).await;
        assert!(matches!(hashed, Err(PasswordError::Busy)));
    }
}
