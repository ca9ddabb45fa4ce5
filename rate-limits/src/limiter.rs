//! Charges calls to their limits, in Redis or locally.

use std::{
    fmt::Display,
    sync::{Arc, Once},
    time::Duration,
};

use metrics::counter;
use redis::{Cmd, cmd};
use tokio::time::timeout;
use tracing::{debug, warn};
use vidlog_contract::{ApiError, Code};
use vidlog_read_models::{ReadError, ReadModels, Views};
use vidlog_schemas::{Keys, keys::Key};

use crate::{
    config::RateLimitConfig,
    gcra::{Decision, SCRIPT},
    limit::Limit,
    local::{LocalBuckets, Refusals},
    metrics::{LIMITED_CALLS, LOCALLY_LIMITED_CALLS, UNATTRIBUTED_CALLS},
    quota::Rate,
};

/// How long a call waits for Redis before it is counted locally.
const REDIS_TIMEOUT: Duration = Duration::from_millis(250);

/// Counts calls. Clones share the counts.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    config: RateLimitConfig,
    views: Views,
    keys: Keys,
    account_key: fn(&str) -> Vec<u8>,
    local: LocalBuckets,
    refusals: Refusals,
    unattributed: Once,
}

/// The calls of one caller that count towards one limit.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub(crate) limit: Limit,
    pub(crate) rate: Rate,
    subject: String,
    key: Key,
}

impl RateLimiter {
    /// Creates a limiter that counts in the Redis of the read models, for an API without logins.
    pub fn new(config: RateLimitConfig, models: &ReadModels) -> Self {
        Self::with_account_key(config, models, |name| name.as_bytes().to_vec())
    }

    /// Creates a limiter that counts in the Redis of the read models. `account_key` maps a user name to the form in which
    /// names are unique, so that no spelling of a name has a quota of its own.
    pub fn with_account_key(
        config: RateLimitConfig,
        models: &ReadModels,
        account_key: fn(&str) -> Vec<u8>,
    ) -> Self {
        Self(Arc::new(Inner {
            config,
            views: models.views.clone(),
            keys: models.keys.clone(),
            account_key,
            local: LocalBuckets::new(),
            refusals: Refusals::default(),
            unattributed: Once::new(),
        }))
    }

    /// Returns the bucket of a caller; `None` if the limit is off.
    pub fn bucket(&self, limit: Limit, subject: impl Display) -> Option<Bucket> {
        let rate = self.0.config.quota(limit).rate()?;
        let subject = subject.to_string();
        let key = self.0.keys.rate_limit(limit.name(), &subject);
        Some(Bucket { limit, rate, subject, key })
    }

    /// Returns the bucket of an account. The name is hashed, because it has no bounded length and is personal data.
    pub(crate) fn account_bucket(&self, username: &str) -> Option<Bucket> {
        let name = (self.0.account_key)(username);
        self.bucket(Limit::LoginAccount, format_args!("{:016x}", vidlog_schemas::hash::fnv1a(&name)))
    }

    pub(crate) fn config(&self) -> &RateLimitConfig {
        &self.0.config
    }

    /// Counts a call whose client's address is unknown, and warns at the first one.
    pub(crate) fn report_unattributed(&self) {
        counter!(UNATTRIBUTED_CALLS).increment(1);
        self.0.unattributed.call_once(|| {
            warn!(
                "a proxy forwards calls, but --trusted-hops is 0: limits of addresses do not apply to them; \
                 set it to the number of your proxies"
            );
        });
    }

    /// Charges one call to each bucket, in one round trip. Charges none if some are known to be exhausted, and returns
    /// those.
    pub(crate) async fn charge(&self, buckets: Vec<Bucket>) -> Vec<(Bucket, Decision)> {
        let refused = |bucket: &Bucket| {
            let remaining = self.0.refusals.remaining(bucket.limit, &bucket.subject)?;
            Some((bucket.clone(), bucket.refused_for(remaining)))
        };
        let refused: Vec<_> = buckets.iter().filter_map(refused).collect();
        if !refused.is_empty() {
            return refused;
        }
        let decisions = match timeout(REDIS_TIMEOUT, self.charge_in_redis(&buckets)).await {
            Ok(Ok(decisions)) => decisions,
            Ok(Err(error)) => {
                debug!(%error, "failed to count call in Redis");
                self.charge_locally(&buckets)
            }
            Err(_) => self.charge_locally(&buckets),
        };
        for (bucket, decision) in buckets.iter().zip(&decisions) {
            if !decision.is_admitted {
                self.0.refusals.add(bucket.limit, &bucket.subject, decision.refused_for(bucket.rate));
            }
        }
        buckets.into_iter().zip(decisions).collect()
    }

    fn charge_locally(&self, buckets: &[Bucket]) -> Vec<Decision> {
        counter!(LOCALLY_LIMITED_CALLS).increment(1);
        let charge = |bucket: &Bucket| self.0.local.charge(bucket.limit, bucket.rate, &bucket.subject);
        buckets.iter().map(charge).collect()
    }

    async fn charge_in_redis(&self, buckets: &[Bucket]) -> Result<Vec<Decision>, ReadError> {
        let commands: Vec<_> = buckets.iter().map(Bucket::charge_command).collect();
        let mut replies = self.0.views.pipeline(&commands).await?;
        buckets.iter().map(|_| Ok(Decision::from_reply(replies.take()?))).collect()
    }
}

impl Bucket {
    /// Returns the Redis command that charges one call; its reply is two numbers, see [`Decision::from_reply`].
    pub fn charge_command(&self) -> Cmd {
        let (interval, limit) = (self.rate.interval_us(), self.rate.limit_us());
        cmd("EVAL").arg(SCRIPT).arg(1).arg(&self.key).arg(interval).arg(limit).take()
    }

    /// Returns the error of a refused call, and counts it.
    pub fn require(&self, decision: Decision) -> Result<(), ApiError> {
        if decision.is_admitted {
            return Ok(());
        }
        counter!(LIMITED_CALLS, "limit" => self.limit.name()).increment(1);
        let seconds = decision.retry_after_s(self.rate);
        Err(ApiError::new(Code::TooManyRequests, format!("too many requests; try again in {seconds} s")))
    }

    fn refused_for(&self, remaining: Duration) -> Decision {
        let remaining_us = i64::try_from(remaining.as_micros()).unwrap_or(i64::MAX / 2);
        let ahead_us = self.rate.limit_us() - self.rate.interval_us() + remaining_us;
        Decision { is_admitted: false, ahead_us }
    }
}
