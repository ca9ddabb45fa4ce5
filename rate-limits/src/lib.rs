//! Rate limits of calls, per user and per address.
//!
//! Each limit is a quota of calls per window, counted by GCRA: a caller may use the whole quota at once, and regains it
//! evenly over the window. Redis holds the counts, so all instances share them; while it is unavailable, each process
//! counts alone, in bounded memory.
//!
//! [`limit`] is the middleware of a route. It determines the client's address, lets the extractor of the call charge the
//! limits before any work is done ([`vidlog_contract::Admission`]), and adds the `RateLimit` headers to the response.

mod address;
mod config;
mod gcra;
mod headers;
mod limit;
mod limiter;
mod local;
mod metrics;
mod middleware;
mod quota;

pub use self::{
    address::ForwardedHeader,
    config::RateLimitConfig,
    gcra::Decision,
    limit::{Class, Limit},
    limiter::{Bucket, RateLimiter},
    middleware::{ClientNetwork, RouteLimits, limit},
    quota::{Quota, QuotaError},
};
