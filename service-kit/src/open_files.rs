//! The process's limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Files besides client connections: those of the stores, the log, uploads, and connections that wait or are refused.
const OTHER_FILES: u64 = 500;

/// Raises the soft limit on open files to the hard limit, and warns if that is too low for `max_connections` client
/// connections: the process then stops accepting connections before it reaches that number.
pub fn raise_limit(max_connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "failed to raise the limit on open files");
    }
    let limit = getrlimit(Resource::Nofile).current;
    if let Some((limit, needed)) = shortage(limit, max_connections) {
        warn!(
            limit,
            needed,
            "limit on open files too low for --max-connections; raise its hard limit (ulimit -Hn) or lower the setting"
        );
    }
}

/// Returns the limit and the number of files that the process needs, if the limit is lower.
fn shortage(limit: Option<u64>, max_connections: usize) -> Option<(u64, u64)> {
    let needed = max_connections as u64 + OTHER_FILES;
    limit.filter(|limit| *limit < needed).map(|limit| (limit, needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_becomes_the_hard_limit() {
        let limit = getrlimit(Resource::Nofile);
        let lower = limit.maximum.map(|maximum| maximum.min(512));
        setrlimit(Resource::Nofile, Rlimit { current: lower, ..limit }).unwrap();
        raise_limit(1);
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }

    #[test]
    fn limit_below_the_need_is_a_shortage() {
        assert_eq!(shortage(Some(4595), 4096), Some((4595, 4596)));
        assert_eq!(shortage(Some(4596), 4096), None);
        assert_eq!(shortage(None, 4096), None);
    }
}
