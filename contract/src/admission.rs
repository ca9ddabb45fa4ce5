//! Admission of calls: the hook by which rate limits see a call before any work is done for it.

use std::{pin::Pin, sync::Arc};

use axum::http::Extensions;

use crate::{error::ApiError, params::Params};

/// Decides whether a call may proceed.
pub trait Admit: Send + Sync + 'static {
    /// Counts the call, or refuses it. Can be repeated once more of the call is known: what was counted is not counted
    /// again.
    fn admit<'a>(
        &'a self,
        caller: Option<i64>,
        params: &'a Params,
    ) -> Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send + 'a>>;
}

/// The admission of a request; an extension that a middleware inserts.
#[derive(Clone)]
pub struct Admission(Option<Arc<dyn Admit>>);

impl Admission {
    /// Returns the admission by a rule.
    pub fn new(rule: Arc<dyn Admit>) -> Self {
        Self(Some(rule))
    }

    /// Returns the admission of a request. A request without one is admitted.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or(Self(None))
    }

    /// Counts the call of a caller, who may be anonymous, or refuses it.
    pub async fn admit(&self, caller: Option<i64>, params: &Params) -> Result<(), ApiError> {
        match &self.0 {
            Some(rule) => rule.admit(caller, params).await,
            None => Ok(()),
        }
    }
}
