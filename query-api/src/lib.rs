//! The query API: every GET of the client contract, served from the read models.
//!
//! A handler extracts the request, reads and responds. A read takes a fixed number of round trips to the stores for any
//! length of the list: one for the ids, then one per kind of card.

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
pub use state::{QueryState, Settings};
