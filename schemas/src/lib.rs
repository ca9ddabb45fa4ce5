//! The schema of the read models, shared by their writers and readers: every Redis key and every MySQL table. This
//! crate does no IO.

pub mod batch;
pub mod hash;
pub mod keys;
mod mysql;
pub mod projections;
pub mod rows;

pub use keys::Keys;
pub use mysql::MIGRATOR;
