//! Failpoints: named places in the code at which a fault test aborts the process, as `kill -9` would.
//!
//! `VIDLOG_FAILPOINT=mysql-commit-before:7` aborts the process the seventh time that it reaches the point. Release
//! builds have no failpoints.

/// Counts a pass of a point, and aborts the process at the configured one.
#[cfg(debug_assertions)]
pub fn pass(point: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static CONFIGURED: LazyLock<Option<(String, u64)>> =
        LazyLock::new(|| parse(&std::env::var("VIDLOG_FAILPOINT").ok()?));
    static PASSES: AtomicU64 = AtomicU64::new(0);

    if let Some((configured, pass)) = CONFIGURED.as_ref()
        && configured == point
        && PASSES.fetch_add(1, Ordering::SeqCst) + 1 == *pass
    {
        tracing::error!(point, pass, "aborting at failpoint");
        std::process::abort();
    }
}

/// Does nothing: release builds have no failpoints.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn pass(_: &str) {}

#[cfg(debug_assertions)]
fn parse(setting: &str) -> Option<(String, u64)> {
    let (point, pass) = setting.rsplit_once(':')?;
    Some((point.to_owned(), pass.parse().ok()?))
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn setting_has_point_and_pass() {
        assert_eq!(parse("mysql-commit-before:7"), Some(("mysql-commit-before".to_owned(), 7)));
        assert_eq!(parse("mysql-commit-before"), None);
        assert_eq!(parse("mysql-commit-before:often"), None);
    }

    #[test]
    fn unset_failpoint_never_aborts() {
        (0..3).for_each(|_| pass("mysql-commit-before"));
    }
}
