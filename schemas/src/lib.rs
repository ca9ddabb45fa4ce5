//! The contract between those who write the read models and those who read them: every Redis key, every MySQL
//! table. This crate does no IO.

pub mod keys;
mod mysql;
pub mod projections;
pub mod rows;

pub use keys::Keys;
pub use mysql::MIGRATOR;
