//! What both APIs share of the client contract: how a call is read, how it is answered, and every limit between.
//!
//! The contract itself is fixed, because the client is. Nothing in here knows a store or the log.

pub mod call;
pub mod config;
pub mod error;
pub mod limits;
mod numbers;
pub mod objects;
pub mod openapi;
pub mod params;
pub mod response;
pub mod times;
pub mod token;

pub use call::Call;
pub use error::{ApiError, Code};
pub use params::{Action, Params};
pub use response::{ApiResponse, Empty};
pub use token::Tokens;
