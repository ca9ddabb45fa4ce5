//! The MySQL schema.

use sqlx::migrate::Migrator;

/// The migrations under `schemas/mysql`, in order. They run on MariaDB 10.11 and on MySQL 8.
///
/// Each can be run again after a crash in its middle: DDL can't be rolled back.
pub static MIGRATOR: Migrator = sqlx::migrate!("./mysql");
