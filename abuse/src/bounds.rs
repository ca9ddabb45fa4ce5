//! What attackers may achieve at most.

use std::time::Duration;

use crate::{
    phase::PhaseResult,
    results::{Mode, Results},
    usage::Usage,
};

/// How much slower the slowest hundredth of the users' calls may become.
pub(crate) const MAX_P99_RATIO: f64 = 3.0;
/// The shortest p99 without attacks that the ratio is taken of. Below it, a ratio compares the scheduling of a few
/// milliseconds on a machine that the attackers share with the server.
const MIN_P99: Duration = Duration::from_millis(10);
/// How much Redis may grow: keys of refused calls do not last, and those of limits are one for each address.
const MAX_REDIS_GROWTH: u64 = 8 * MB;
/// How much the server's memory may grow: 4,096 connections of at most 256 KB each would be 1 GB, most are idle.
const MAX_SERVER_GROWTH: u64 = 400 * MB;
/// Files of the users' uploads: the original, the video and the cover.
const FILES_PER_UPLOAD: u64 = 3;
const MB: u64 = 1024 * 1024;

/// Returns bytes in MB, to print.
#[expect(clippy::cast_precision_loss, reason = "a printed number has some digits")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MB as f64
}

/// Returns the ratio of a phase's p99 to that without attacks.
pub(crate) fn p99_ratio(quiet: &PhaseResult, attacked: &PhaseResult) -> f64 {
    let quiet = quiet.experience.percentile(99).max(MIN_P99);
    attacked.experience.percentile(99).as_secs_f64() / quiet.as_secs_f64()
}

/// Returns the growth of the object store.
pub(crate) const fn object_growth(before: Usage, after: Usage) -> u64 {
    after.objects.saturating_sub(before.objects)
}

/// Returns the growth of the object store for which the users' uploads account.
pub(crate) const fn max_object_growth(uploaded_bytes: u64) -> u64 {
    FILES_PER_UPLOAD * uploaded_bytes
}

/// Returns the bounds that are exceeded.
pub(crate) fn violations(results: &Results) -> Vec<String> {
    let mut violations = Vec::new();
    for phase in &results.phases {
        let failures = phase.experience.failures.len();
        if failures > 0 {
            violations.push(format!("{}: {failures} calls of users failed", phase.name));
        }
    }
    let [quiet, attacked @ ..] = results.phases.as_slice() else {
        return violations;
    };
    for phase in attacked {
        let ratio = p99_ratio(quiet, phase);
        if results.mode == Mode::Full && ratio > MAX_P99_RATIO {
            violations
                .push(format!("{}: the users' p99 is {ratio:.1} times that without attacks", phase.name));
        }
    }
    let peak = results.peak();
    let growths = [
        ("Redis", peak.redis.saturating_sub(results.before.redis), MAX_REDIS_GROWTH),
        ("the server's memory", peak.memory.saturating_sub(results.before.memory), MAX_SERVER_GROWTH),
        (
            "the object store",
            object_growth(results.before, results.after),
            max_object_growth(results.uploaded_bytes),
        ),
    ];
    for (what, growth, limit) in growths {
        if growth > limit {
            let (growth, limit) = (megabytes(growth), megabytes(limit));
            violations.push(format!("{what} grew by {growth:.1} MB, more than {limit:.1} MB"));
        }
    }
    violations
}
