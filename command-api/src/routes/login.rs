//! POST user/login.

use axum::extract::State;
use vidlog_contract::{Answer, ApiError, Call, Code};

use super::credentials::{Credentials, IN_ANY_CASE, Refused, Typed};
use crate::{accounts, execute::watched, mysql::api_error, state::CommandState};

/// Gives a token to one who knows a name and its password. It does not tell which of them was wrong, and takes as
/// long to say so.
#[utoipa::path(
    post,
    path = "/douyin/user/login/",
    operation_id = "login",
    tag = "users",
    params(
        ("username" = String, Query, description = "in any case"),
        ("password" = String, Query),
    ),
    security(()),
    responses((status = 200, body = Answer<Credentials>, description = IN_ANY_CASE))
)]
pub(crate) async fn login(
    State(state): State<CommandState>,
    call: Result<Call, ApiError>,
) -> Result<Answer<Credentials>, Refused> {
    let answer = watched("login", async {
        let call = call?;
        let Typed { username, password } = Typed::of(&call)?;
        let account = accounts::find(&state.mysql, username).await.map_err(api_error)?;
        let (user_id, hash) = account.map(|account| (account.user_id, account.password_hash)).unzip();
        let verified = state.passwords.verify(password.to_owned(), hash).await?;
        match user_id.filter(|_| verified) {
            Some(user_id) => Credentials::of(&state, user_id),
            None => Err(ApiError::new(Code::LoginFailed, Code::LoginFailed.meaning())),
        }
    });
    Ok(answer.await?)
}
