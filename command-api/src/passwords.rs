//! Passwords: argon2id, off the async threads and bounded.

use std::{fmt, sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version, password_hash};
use thiserror::Error;
use tokio::{sync::Semaphore, task::JoinError, time::timeout};

/// OWASP's parameters for argon2id (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// How long a password may wait for its turn. Longer, and the call would have no time left for anything else.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Hashes and verifies passwords. Clones share the turns.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    turns: Arc<Semaphore>,
    max_wait: Duration,
    /// What a password of an unknown name is compared with, so that it takes as long as any other.
    nobodys_hash: Arc<str>,
}

/// Why a password was neither hashed nor verified.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// Too many wait already.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// The hash that is stored is none, or the parameters are impossible.
    #[error("failed to hash a password: {0}")]
    Hash(password_hash::Error),
    /// The task that hashes was cancelled.
    #[error("hashing a password was cancelled")]
    Cancelled(#[from] JoinError),
}

impl Passwords {
    /// Hashes `parallel` passwords at a time: each takes a core, and 19 MiB.
    pub fn new(parallel: usize) -> Result<Self, PasswordError> {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None)
            .map_err(|error| PasswordError::Hash(error.into()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobodys_hash = hash(&argon2, "nobody's password").map_err(PasswordError::Hash)?;
        Ok(Self {
            argon2,
            turns: Arc::new(Semaphore::new(parallel.max(1))),
            max_wait: MAX_WAIT,
            nobodys_hash: nobodys_hash.into(),
        })
    }

    /// The hash of a password, with a salt of its own, as a PHC string.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let argon2 = self.argon2.clone();
        self.in_turn(move || hash(&argon2, &password)).await
    }

    /// Whether a password is the one that was hashed. Without a hash it is not, and that takes as long to say.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let (argon2, nobodys_hash) = (self.argon2.clone(), self.nobodys_hash.clone());
        self.in_turn(move || {
            let compared = hash.as_deref().unwrap_or(&nobodys_hash);
            match argon2.verify_password(password.as_bytes(), compared) {
                Ok(()) => Ok(hash.is_some()),
                Err(password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Runs in its turn. A call that is given up by its caller keeps its turn until it is done: it still uses a core.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, password_hash::Error> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let turn = timeout(self.max_wait, Arc::clone(&self.turns).acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(PasswordError::Busy)?;
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
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
    async fn a_password_verifies_against_its_own_hash_only() {
        let passwords = Passwords::new(1).unwrap();
        let hash = passwords.hash("secret".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("secret".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("Secret".to_owned(), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn a_password_is_salted() {
        let passwords = Passwords::new(2).unwrap();
        let (one, other) =
            tokio::join!(passwords.hash("secret".to_owned()), passwords.hash("secret".to_owned()));
        assert_ne!(one.unwrap(), other.unwrap());
    }

    #[tokio::test]
    async fn without_a_hash_no_password_verifies() {
        let passwords = Passwords::new(1).unwrap();
        assert!(!passwords.verify("nobody's password".to_owned(), None).await.unwrap());
    }

    #[tokio::test]
    async fn a_turn_that_does_not_come_is_busy() {
        let passwords = Passwords { max_wait: Duration::ZERO, ..Passwords::new(1).unwrap() };
        let _taken = Arc::clone(&passwords.turns).acquire_owned().await.unwrap();
        let hashed = passwords.hash("secret".to_owned()).await;
        assert!(matches!(hashed, Err(PasswordError::Busy)));
    }
}
