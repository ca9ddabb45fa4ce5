//! The two kinds of Redis deployment.

use super::{cluster::Cluster, connection::Connection};

/// The connections of a handle: one server or a cluster.
#[derive(Clone)]
pub(crate) enum Backend {
    Single(Connection),
    // Its futures are large and therefore boxed: those of every caller would hold them.
    Cluster(Cluster),
}
