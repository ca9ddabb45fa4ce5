//! The client contract as both APIs implement it: requests, responses, error codes and limits.
//!
//! The contract is fixed, because the client is. This crate depends on no store and not on the log.

mod admission;
mod body;
pub mod call;
pub mod config;
pub mod content_disposition;
pub mod error;
pub mod http;
pub mod limits;
mod numbers;
pub mod objects;
pub mod openapi;
pub mod params;
pub mod response;
pub mod times;
pub mod token;

pub use admission::{Admission, Admit};
pub use call::Call;
pub use error::{ApiError, Code};
pub use params::{Action, Params};
pub use response::{ApiResponse, Empty};
pub use token::Tokens;
