//! The MySQL schema.

use sqlx::migrate::Migrator;

/// The migrations under `schemas/mysql`, in order. They run on MariaDB 10.11 and on MySQL 8.
///
/// Each is repeatable, because DDL cannot be rolled back after a crash.
pub static MIGRATOR: Migrator = sqlx::migrate!("./mysql");
