//! Password hashing with argon2id, on a few threads that keep their memory.
//!
//! Logins and registrations have queues of their own, which the threads serve in turn, so a flood of one can't starve
//! the other. A call waits as long as its deadline allows. A queue refuses a call at once if its expected wait exceeds
//! the deadline: then a later refusal would only cost the caller time.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Block, Params, PasswordHash, Version,
    password_hash::{
        self,
        phc::{Output, ParamsString, Salt},
        try_generate_salt,
    },
};
use parking_lot::{Condvar, Mutex};
use thiserror::Error;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

/// OWASP's parameters for argon2id (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Password of the dummy hash. It verifies no account.
const DUMMY_PASSWORD: &str = "dummy password";
/// Maximum number of threads: each keeps 19 MiB.
const MAX_THREADS: usize = 8;
/// Estimate of a hash's duration before the first measurement.
const INITIAL_ESTIMATE: Duration = Duration::from_millis(50);
/// Weight of a new measurement in the moving average: one in this many.
const AVERAGE_WEIGHT: u32 = 8;

/// Hashes and verifies passwords. Clones share the threads, which stop when the last clone is dropped.
#[derive(Clone)]
pub struct Passwords {
    pool: Arc<Pool>,
    /// Hash that the password of an unknown name is verified against, so that both cases take equally long.
    dummy_hash: Arc<str>,
}

/// Error of hashing or verifying a password.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// The password can't be hashed before the deadline.
    #[error("too many passwords are waiting to be hashed")]
    Busy,
    /// The stored hash or the parameters are invalid.
    #[error("failed to hash the password: {0}")]
    Hash(password_hash::Error),
    /// A hashing thread could not be started.
    #[error("failed to start a hashing thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The hashing thread panicked.
    #[error("hashing the password panicked")]
    Panicked,
}

/// Queue of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Login,
    Registration,
}

/// Blocks of a thread, reused by its hashes.
type Memory = Vec<Block>;

/// Work of a call. Returns false if it was skipped, because its caller no longer waits.
type Job = Box<dyn FnOnce(&mut Memory) -> bool + Send>;

/// The threads' queue; closes it on drop.
struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    threads: u32,
}

struct Queue {
    logins: VecDeque<Job>,
    registrations: VecDeque<Job>,
    /// Class of the latest job; the other one is next.
    latest: Class,
    running: usize,
    /// Moving average of a hash's duration.
    average: Duration,
    is_closed: bool,
}

impl Passwords {
    /// Starts up to `threads` hashing threads; each uses a core and keeps 19 MiB.
    pub fn new(threads: usize) -> Result<Self, PasswordError> {
        let dummy_hash = hash(&mut Memory::new(), DUMMY_PASSWORD).map_err(PasswordError::Hash)?;
        Ok(Self {
            pool: Arc::new(Pool::start(threads.clamp(1, MAX_THREADS))?),
            dummy_hash: dummy_hash.into(),
        })
    }

    /// Hashes the password of a registration with a new salt, as a PHC string.
    pub async fn hash(&self, password: String, deadline: Instant) -> Result<String, PasswordError> {
        self.pool.run(Class::Registration, deadline, move |memory| hash(memory, &password)).await
    }

    /// Verifies the password of a login. Without a hash it returns false after the same time.
    pub async fn verify(
        &self,
        password: String,
        hash: Option<String>,
        deadline: Instant,
    ) -> Result<bool, PasswordError> {
        let dummy_hash = Arc::clone(&self.dummy_hash);
        let work = move |memory: &mut Memory| {
            let matches = verify(memory, &password, hash.as_deref().unwrap_or(&dummy_hash))?;
            Ok(matches && hash.is_some())
        };
        self.pool.run(Class::Login, deadline, work).await
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords(…)")
    }
}

impl Pool {
    fn start(threads: usize) -> Result<Self, PasswordError> {
        let queue = Queue {
            logins: VecDeque::new(),
            registrations: VecDeque::new(),
            latest: Class::Registration,
            running: 0,
            average: INITIAL_ESTIMATE,
            is_closed: false,
        };
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        let pool =
            Self { shared: Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new(), threads }) };
        for _ in 0..threads {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new().name("password-hash".to_owned()).spawn(move || shared.run_jobs())?;
        }
        Ok(pool)
    }

    /// Runs work on a thread before the deadline. A call that is dropped in the queue costs no work.
    async fn run<T: Send + 'static>(
        &self,
        class: Class,
        deadline: Instant,
        work: impl FnOnce(&mut Memory) -> password_hash::Result<T> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move |memory: &mut Memory| {
            let is_awaited = !sender.is_closed() && Instant::now() < deadline;
            if is_awaited {
                let _ = sender.send(work(memory));
            }
            is_awaited
        });
        self.shared.push(class, job, deadline)?;
        match timeout_at(deadline, receiver).await {
            Ok(Ok(result)) => result.map_err(PasswordError::Hash),
            Ok(Err(_)) if Instant::now() < deadline => Err(PasswordError::Panicked),
            Ok(Err(_)) | Err(_) => Err(PasswordError::Busy),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Queues a job, unless its expected completion is after the deadline.
    fn push(&self, class: Class, job: Job, deadline: Instant) -> Result<(), PasswordError> {
        let mut queue = self.queue.lock();
        let rounds = queue.jobs_ahead(class) / self.threads + 1;
        if Instant::now() + queue.average * rounds > deadline {
            return Err(PasswordError::Busy);
        }
        queue.jobs(class).push_back(job);
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// Runs jobs until the queue is closed.
    fn run_jobs(&self) {
        let mut memory = Memory::new();
        while let Some(job) = self.next() {
            let started = Instant::now();
            let was_run = catch_unwind(AssertUnwindSafe(|| job(&mut memory))).unwrap_or(true);
            self.complete(was_run.then(|| started.elapsed()));
        }
    }

    /// Waits for a job; `None` once the queue is closed.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(job) = queue.pop() {
                queue.running += 1;
                return Some(job);
            }
            self.changed.wait(&mut queue);
        }
    }

    fn complete(&self, duration: Option<Duration>) {
        let mut queue = self.queue.lock();
        queue.running -= 1;
        if let Some(duration) = duration {
            queue.average = (queue.average * (AVERAGE_WEIGHT - 1) + duration) / AVERAGE_WEIGHT;
        }
    }
}

impl Queue {
    fn jobs(&mut self, class: Class) -> &mut VecDeque<Job> {
        match class {
            Class::Login => &mut self.logins,
            Class::Registration => &mut self.registrations,
        }
    }

    /// Number of jobs that end before a new one of a class starts: at most one of the other class before each of its
    /// own.
    fn jobs_ahead(&self, class: Class) -> u32 {
        let (own, other) = match class {
            Class::Login => (self.logins.len(), self.registrations.len()),
            Class::Registration => (self.registrations.len(), self.logins.len()),
        };
        u32::try_from(self.running + own + other.min(own + 1)).unwrap_or(u32::MAX)
    }

    /// Takes the next job, of each class in turn.
    fn pop(&mut self) -> Option<Job> {
        let next = match self.latest {
            Class::Login => [Class::Registration, Class::Login],
            Class::Registration => [Class::Login, Class::Registration],
        };
        next.into_iter().find_map(|class| {
            let job = self.jobs(class).pop_front()?;
            self.latest = class;
            Some(job)
        })
    }
}

fn hash(memory: &mut Memory, password: &str) -> password_hash::Result<String> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let salt = try_generate_salt().map_err(|_| password_hash::Error::RngFailure)?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params())?,
        salt: Some(Salt::new(&salt)?),
        hash: Some(compute(memory, &argon2, password, &salt)?),
    };
    Ok(hash.to_string())
}

/// Verifies a password against a PHC string, whatever its parameters.
fn verify(memory: &mut Memory, password: &str, hash: &str) -> password_hash::Result<bool> {
    let hash = PasswordHash::new(hash)?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
        return Ok(false);
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
    let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&hash)?);
    // The comparison of outputs takes constant time.
    Ok(compute(memory, &argon2, password, salt)? == *expected)
}

fn compute(
    memory: &mut Memory,
    argon2: &Argon2<'_>,
    password: &str,
    salt: &[u8],
) -> password_hash::Result<Output> {
    let params = argon2.params();
    let blocks = params.block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::new());
    }
    let mut buffer = [0; Output::MAX_LENGTH];
    let output = buffer
        .get_mut(..params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN))
        .ok_or(password_hash::Error::OutputSize)?;
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, output, &mut memory[..blocks])?;
    Ok(Output::new(output)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use argon2::PasswordVerifier;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(2)
    }

    /// Occupies the only thread until the returned sender is dropped.
    async fn blocked(passwords: &Passwords) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let pool = Arc::clone(&passwords.pool);
        tokio::spawn(async move {
            let work = move |_: &mut Memory| {
                let _ = started.send(());
                let _ = released.recv();
                Ok(())
            };
            pool.run(Class::Login, soon(), work).await
        });
        has_started.await.unwrap();
        release
    }

    #[tokio::test]
    async fn password_verifies_against_its_own_hash_only() {
        let passwords = Passwords::new(1).unwrap();
        let hash = passwords.hash("secret".to_owned(), soon()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("secret".to_owned(), Some(hash.clone()), soon()).await.unwrap());
        assert!(!passwords.verify("Secret".to_owned(), Some(hash), soon()).await.unwrap());
        let invalid = passwords.verify("secret".to_owned(), Some("$argon2id$x".to_owned()), soon()).await;
        assert!(matches!(invalid, Err(PasswordError::Hash(_))));
    }

    #[tokio::test]
    async fn hashes_in_reused_memory_are_those_of_the_library() {
        let passwords = Passwords::new(1).unwrap();
        for password in ["first secret", "second secret"] {
            let hash = passwords.hash(password.to_owned(), soon()).await.unwrap();
            assert_eq!(Argon2::default().verify_password(password.as_bytes(), hash.as_str()), Ok(()));
        }
        let other_parameters =
            "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$".to_owned() + &output_of_small_hash();
        assert!(passwords.verify("secret".to_owned(), Some(other_parameters), soon()).await.unwrap());
    }

    fn output_of_small_hash() -> String {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
        let mut output = [0; 32];
        argon2.hash_password_into(b"secret", b"somesalt", &mut output).unwrap();
        let mut text = [0; 64];
        Output::new(&output).unwrap().encode(&mut text).unwrap().to_owned()
    }

    #[tokio::test]
    async fn hashes_are_salted() {
        let passwords = Passwords::new(2).unwrap();
        let (one, other) = tokio::join!(
            passwords.hash("secret".to_owned(), soon()),
            passwords.hash("secret".to_owned(), soon())
        );
        assert_ne!(one.unwrap(), other.unwrap());
    }

    #[tokio::test]
    async fn without_a_hash_no_password_verifies() {
        let passwords = Passwords::new(1).unwrap();
        assert!(!passwords.verify(DUMMY_PASSWORD.to_owned(), None, soon()).await.unwrap());
    }

    #[tokio::test]
    async fn thread_reuses_its_memory() {
        let passwords = Passwords::new(1).unwrap();
        let mut addresses = Vec::new();
        for _ in 0..3 {
            passwords.hash("secret".to_owned(), soon()).await.unwrap();
            let address = |memory: &mut Memory| Ok((memory.as_ptr() as usize, memory.len()));
            addresses.push(passwords.pool.run(Class::Login, soon(), address).await.unwrap());
        }
        assert_eq!(addresses, [addresses[0]; 3]);
        assert_eq!(addresses[0].1, MEMORY_KIB as usize);
    }

    #[tokio::test]
    async fn call_waits_until_its_deadline() {
        let passwords = Passwords::new(1).unwrap();
        let release = blocked(&passwords).await;
        passwords.pool.shared.queue.lock().average = Duration::ZERO;
        let hashed = passwords.hash("secret".to_owned(), Instant::now() + Duration::from_millis(50)).await;
        assert!(matches!(hashed, Err(PasswordError::Busy)), "{hashed:?}");
        drop(release);
        // The thread skips the call that timed out.
        passwords.hash("secret".to_owned(), soon()).await.unwrap();
    }

    #[tokio::test]
    async fn queue_is_bounded_by_expected_wait() {
        let passwords = Passwords::new(1).unwrap();
        let _release = blocked(&passwords).await;
        passwords.pool.shared.queue.lock().average = Duration::from_secs(1);
        let deadline = Instant::now() + Duration::from_millis(4_900);
        let push = |class| passwords.pool.shared.push(class, Box::new(|_: &mut Memory| false), deadline);
        // One runs, and each takes a second: the fourth ends too late.
        let accepted = (0..10).filter(|_| push(Class::Registration).is_ok()).count();
        assert_eq!(accepted, 3);
        // A login waits for the running job and one registration only.
        assert!(push(Class::Login).is_ok());
    }

    #[tokio::test]
    async fn registrations_do_not_starve_a_login() {
        let passwords = Passwords::new(1).unwrap();
        let release = blocked(&passwords).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let push = |class| {
            let order = Arc::clone(&order);
            let job = Box::new(move |_: &mut Memory| {
                order.lock().push(class);
                true
            });
            passwords.pool.shared.push(class, job, soon()).unwrap();
        };
        for _ in 0..20 {
            push(Class::Registration);
        }
        push(Class::Login);
        drop(release);
        passwords.pool.run(Class::Registration, soon(), |_| Ok(())).await.unwrap();
        let position = order.lock().iter().position(|class| *class == Class::Login).unwrap();
        assert!(position <= 1, "the login was number {position}");
        assert_eq!(order.lock().len(), 21);
    }

    #[tokio::test]
    async fn panicking_job_does_not_end_the_thread() {
        let passwords = Passwords::new(1).unwrap();
        let result: Result<(), _> =
            passwords.pool.run(Class::Login, soon(), |_| panic!("a panic of the test")).await;
        assert!(matches!(result, Err(PasswordError::Panicked)));
        passwords.hash("secret".to_owned(), soon()).await.unwrap();
    }
}
