//! Iteration over the names of keys, a page at a time.

use redis::{ErrorKind, RedisResult, ServerErrorKind, cmd, from_redis_value};

use super::{backend::Backend, cluster::Cluster, connection::Connection, slot_map::SLOTS};

/// An iteration over the names of keys.
pub struct Scan {
    backend: Backend,
    pattern: String,
    page: usize,
    /// `None` before the first page.
    progress: Option<Progress>,
}

/// The servers that are left, and the cursor of the last of them.
struct Progress {
    servers: Vec<Connection>,
    cursor: u64,
    /// The slots of each node when the scan began.
    ownership: Vec<String>,
}

impl Scan {
    pub(crate) fn new(backend: Backend, pattern: &str, page: usize) -> Self {
        Self { backend, pattern: pattern.to_owned(), page, progress: None }
    }

    /// Returns the next page, which may be empty, or `None` after the last. After an error the next call restarts the
    /// scan.
    ///
    /// Keys that exist from the start to the end of the scan are returned at least once. Fails if slots migrated
    /// meanwhile, because then some may be missing.
    pub async fn next(&mut self) -> RedisResult<Option<Vec<String>>> {
        let mut progress = match self.progress.take() {
            Some(progress) => progress,
            None => begin(&self.backend).await?,
        };
        let Some(server) = progress.servers.last() else {
            if begin(&self.backend).await?.ownership != progress.ownership {
                return Err(
                    (ErrorKind::Server(ServerErrorKind::TryAgain), "slots moved during the scan").into()
                );
            }
            self.progress = Some(progress);
            return Ok(None);
        };
        let mut scan = cmd("SCAN");
        scan.arg(progress.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(self.page);
        let (cursor, names): (u64, Vec<String>) = from_redis_value(server.query(&scan).await?)?;
        progress.cursor = cursor;
        if cursor == 0 {
            progress.servers.pop();
        }
        self.progress = Some(progress);
        Ok(Some(names))
    }
}

async fn begin(backend: &Backend) -> RedisResult<Progress> {
    match backend {
        Backend::Single(server) => {
            Ok(Progress { servers: vec![server.clone()], cursor: 0, ownership: Vec::new() })
        }
        Backend::Cluster(cluster) => begin_cluster(cluster).await,
    }
}

/// Asks every node for its own slots: only the node itself reports a slot that it migrates or imports.
async fn begin_cluster(cluster: &Cluster) -> RedisResult<Progress> {
    let slots = cluster.refresh_slots().await?;
    let (mut servers, mut ownership, mut sum) = (Vec::new(), Vec::new(), 0);
    for node in slots.nodes() {
        let nodes: String = from_redis_value(node.connection.query(cmd("CLUSTER").arg("NODES")).await?)?;
        let own = own_slots(&nodes);
        let Some(count) = own.as_deref().and_then(count_slots) else {
            return Err((ErrorKind::Server(ServerErrorKind::TryAgain), "slots are migrating").into());
        };
        sum += count;
        servers.push(node.connection.clone());
        ownership.extend(own);
    }
    if sum != u32::from(SLOTS) {
        return Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "not every slot has one owner").into());
    }
    Ok(Progress { servers, cursor: 0, ownership })
}

/// What a node reports about itself in `CLUSTER NODES`,
/// `<id> <address> <flags> <primary> <ping> <pong> <epoch> <link> <slots>…`: its id, configuration epoch and slots.
fn own_slots(nodes: &str) -> Option<String> {
    let own = nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let own = own.into_iter().find(|fields| fields.get(2).is_some_and(|flags| flags.contains("myself")))?;
    let (id, epoch, slots) = (own.first()?, own.get(6)?, own.get(8..).unwrap_or_default());
    Some(format!("{id} {epoch} {}", slots.join(" ")))
}

/// The number of slots of a node; `None` if one of them is migrating, `[93-<-node]`.
fn count_slots(own: &str) -> Option<u32> {
    own.split(' ').skip(2).filter(|range| !range.is_empty()).try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(sum + last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_slots_and_migrations_are_parsed() {
        let nodes = "a 127.0.0.1:1@2 master - 0 1 1 connected 0-99\n\
                     b 127.0.0.1:2@3 myself,master - 0 1 7 connected 100-199 300 302-303\n";
        let own = own_slots(nodes).unwrap();
        assert_eq!(own, "b 7 100-199 300 302-303");
        assert_eq!(count_slots(&own), Some(103));
        assert_eq!(count_slots("b 7 "), Some(0));
        assert_eq!(count_slots("b 7 100-199 [150->-a]"), None);
        assert_eq!(count_slots("b 7 100-199 [93-<-a]"), None);
    }
}
