//! The query side: every GET of the client contract, answered from the read models.
//!
//! A handler extracts what was asked, reads, and answers. It takes a fixed number of round trips to the stores,
//! whatever the length of the list: ids, then everything about them at once.

mod config;
mod guard;
pub mod metrics;
mod openapi;
mod paging;
mod reads;
mod router;
mod routes;
mod state;

pub use config::{Cli, QueryConfig};
pub use openapi::openapi;
pub use router::{router, routes};
pub use state::QueryState;
