//! A user's card.

use vidlog_contract::objects::User;
use vidlog_read_models::{ReadError, ReadModels, Source};

/// Reads a user, relative to the viewer; `None` if it does not exist.
pub(crate) async fn card(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    user: i64,
) -> Result<Option<User>, ReadError> {
    Ok(models.users(source, viewer, &[user]).await?.pop().flatten())
}
