//! The names of keys, a page at a time.

use redis::{ErrorKind, RedisResult, ServerErrorKind, cmd, from_redis_value};

use super::{Servers, cluster::Cluster, node::Node, slots::SLOTS};

/// A walk over the names of keys.
pub struct Scan {
    servers: Servers,
    pattern: String,
    page: usize,
    /// `None` before the first page.
    walk: Option<Walk>,
}

/// Where a walk is: what is left of the servers, and how far it is in the last of them.
struct Walk {
    left: Vec<Node>,
    cursor: u64,
    /// Who had what when it began.
    claims: Vec<String>,
}

impl Scan {
    pub(super) fn new(servers: Servers, pattern: &str, page: usize) -> Self {
        Self { servers, pattern: pattern.to_owned(), page, walk: None }
    }

    /// The next page, which may be empty, or nothing after the last. After an error the next call
    /// begins the walk anew.
    ///
    /// Keys that are there from the beginning to the end come at least once. If they may not, because slots moved
    /// from node to node meanwhile, that is an error.
    pub async fn next(&mut self) -> RedisResult<Option<Vec<String>>> {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => begin(&self.servers).await?,
        };
        let Some(node) = walk.left.last() else {
            if begin(&self.servers).await?.claims != walk.claims {
                return Err((ErrorKind::Server(ServerErrorKind::TryAgain), "slots moved meanwhile").into());
            }
            self.walk = Some(walk);
            return Ok(None);
        };
        let mut scan = cmd("SCAN");
        scan.arg(walk.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(self.page);
        let (cursor, names): (u64, Vec<String>) = from_redis_value(node.query(&scan).await?)?;
        walk.cursor = cursor;
        if cursor == 0 {
            walk.left.pop();
        }
        self.walk = Some(walk);
        Ok(Some(names))
    }
}

async fn begin(servers: &Servers) -> RedisResult<Walk> {
    match servers {
        Servers::One(node) => Ok(Walk { left: vec![node.clone()], cursor: 0, claims: Vec::new() }),
        Servers::Cluster(cluster) => begin_cluster(cluster).await,
    }
}

/// Asks every node what it has itself: only its own word tells of a slot that is on the move.
async fn begin_cluster(cluster: &Cluster) -> RedisResult<Walk> {
    let slots = cluster.ask_again().await?;
    let (mut left, mut claims, mut sum) = (Vec::new(), Vec::new(), 0);
    for member in slots.members() {
        let nodes: String = from_redis_value(member.node.query(cmd("CLUSTER").arg("NODES")).await?)?;
        let claim = own_claim(&nodes);
        let Some(count) = claim.as_deref().and_then(count_slots) else {
            return Err((ErrorKind::Server(ServerErrorKind::TryAgain), "slots are on the move").into());
        };
        sum += count;
        left.push(member.node.clone());
        claims.extend(claim);
    }
    if sum != u32::from(SLOTS) {
        return Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "not every slot has one node").into());
    }
    Ok(Walk { left, cursor: 0, claims })
}

/// What a node says about itself in `CLUSTER NODES`: `<id> <address> <flags> <master> <ping> <pong> <epoch> <link> <slots>…`.
/// Of that, who it is, the epoch of its claim and the slots.
fn own_claim(nodes: &str) -> Option<String> {
    let own = nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let own = own.into_iter().find(|fields| fields.get(2).is_some_and(|flags| flags.contains("myself")))?;
    let (id, epoch, slots) = (own.first()?, own.get(6)?, own.get(8..).unwrap_or_default());
    Some(format!("{id} {epoch} {}", slots.join(" ")))
}

/// How many slots a claim has; nothing if one of them is on the move, `[93-<-node]`.
fn count_slots(claim: &str) -> Option<u32> {
    claim.split(' ').skip(2).filter(|range| !range.is_empty()).try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(sum + last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_what_it_has_and_whether_anything_moves() {
        let nodes = "a 127.0.0.1:1@2 master - 0 1 1 connected 0-99\n\
                     b 127.0.0.1:2@3 myself,master - 0 1 7 connected 100-199 300 302-303\n";
        let claim = own_claim(nodes).unwrap();
        assert_eq!(claim, "b 7 100-199 300 302-303");
        assert_eq!(count_slots(&claim), Some(103));
        assert_eq!(count_slots("b 7 "), Some(0));
        assert_eq!(count_slots("b 7 100-199 [150->-a]"), None);
        assert_eq!(count_slots("b 7 100-199 [93-<-a]"), None);
    }
}
