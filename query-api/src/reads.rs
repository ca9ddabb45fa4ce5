//! The reads: one function a query, and every Redis command and SQL statement of the query side.

pub(crate) mod chat;
pub(crate) mod comments;
pub(crate) mod feed;
pub(crate) mod friends;
pub(crate) mod list;
pub(crate) mod user;
