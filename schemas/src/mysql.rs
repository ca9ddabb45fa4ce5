//! The MySQL schema.

use sqlx::migrate::Migrator;

/// The migrations under `schemas/mysql`, in order. They run on MariaDB 10.11 and on MySQL 8.
///
/// Each is repeatable, because DDL cannot be rolled back after a crash. None breaks a process of an earlier version, except that
/// one that changes what a fold writes fences the projectors of earlier versions
/// ([`Projection::checkpoint_table`](crate::projections::Projection::checkpoint_table)).
pub static MIGRATOR: Migrator = sqlx::migrate!("./mysql");
