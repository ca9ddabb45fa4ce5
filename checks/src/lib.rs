//! Checks of the workspace's source that neither rustc nor clippy makes.

pub mod imports;
pub mod modules;
