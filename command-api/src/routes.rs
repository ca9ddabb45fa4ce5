//! The handlers: extract, decide, append, respond.

pub(crate) mod comment;
pub(crate) mod credentials;
pub(crate) mod favorite;
pub(crate) mod login;
pub(crate) mod message;
pub(crate) mod publish;
pub(crate) mod register;
pub(crate) mod relation;

use vidlog_contract::Action;

/// The number of an action, for the request's fingerprint.
const fn action_number(action: Action) -> u8 {
    match action {
        Action::Do => 1,
        Action::Undo => 2,
    }
}
