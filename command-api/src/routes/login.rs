//! POST user/login.

use axum::extract::State;
use vidlog_contract::{ApiError, ApiResponse, Call, Code};

use super::credentials::{Credentials, CredentialsError, LoginForm, RESPONSE_DESCRIPTION};
use crate::{accounts, execute::run_command, mysql::api_error, state::CommandState};

/// Issues a token for a user name and password. A failure does not reveal which of the two was wrong, not by its
/// duration either.
#[utoipa::path(
    post,
    path = "/douyin/user/login/",
    operation_id = "login",
    tag = "users",
    params(
        ("username" = String, Query, description = "any spelling that looks the same"),
        ("password" = String, Query),
    ),
    security(()),
    responses((status = 200, body = ApiResponse<Credentials>, description = RESPONSE_DESCRIPTION))
)]
pub(crate) async fn login(
    State(state): State<CommandState>,
    call: Result<Call, ApiError>,
) -> Result<ApiResponse<Credentials>, CredentialsError> {
    let answer = run_command("login", async {
        let call = call?;
        let LoginForm { username, password, hashing_deadline } = LoginForm::from_call(&call)?;
        let account = accounts::find(&state.mysql, username).await.map_err(api_error)?;
        let (user_id, hash) = account.map(|account| (account.user_id, account.password_hash)).unzip();
        let verified = state.passwords.verify(password.to_owned(), hash, hashing_deadline).await?;
        match user_id.filter(|_| verified) {
            Some(user_id) => Credentials::for_user(&state, user_id),
            None => Err(ApiError::new(Code::LoginFailed, Code::LoginFailed.meaning())),
        }
    });
    Ok(answer.await?)
}
