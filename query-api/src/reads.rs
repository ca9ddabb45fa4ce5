//! The reads: one function per query. They contain every Redis command and SQL statement of the query API.

pub(crate) mod chat;
pub(crate) mod comments;
pub(crate) mod feed;
pub(crate) mod friends;
pub(crate) mod list;
pub(crate) mod top;
pub(crate) mod user;
