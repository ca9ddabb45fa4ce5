//! Failpoints: places at which a fault test has a process die, as by `kill -9`.
//!
//! `VIDLOG_FAILPOINT=mysql-commit-before:7` ends the process when it passes that point for the seventh time. A release
//! build has none of this.

/// Passes a point; does not return if this is the time at which the process is to die.
#[cfg(debug_assertions)]
pub fn pass(point: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static CHOSEN: LazyLock<Option<(String, u64)>> =
        LazyLock::new(|| parse(&std::env::var("VIDLOG_FAILPOINT").ok()?));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    if let Some((chosen, time)) = CHOSEN.as_ref()
        && chosen == point
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        tracing::error!(point, time, "ending at a failpoint");
        std::process::abort();
    }
}

/// Passes a point, of which a release build has none.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn pass(_: &str) {}

#[cfg(debug_assertions)]
fn parse(setting: &str) -> Option<(String, u64)> {
    let (point, time) = setting.rsplit_once(':')?;
    Some((point.to_owned(), time.parse().ok()?))
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_setting_names_a_point_and_a_time() {
        assert_eq!(parse("mysql-commit-before:7"), Some(("mysql-commit-before".to_owned(), 7)));
        assert_eq!(parse("mysql-commit-before"), None);
        assert_eq!(parse("mysql-commit-before:often"), None);
    }

    #[test]
    fn without_the_setting_every_point_is_passed() {
        (0..3).for_each(|_| pass("mysql-commit-before"));
    }
}
