//! POST user/register.
//!
//! Someone is registered once the account is written: the announcement is safe in the outbox then, and a failure
//! would be a lie that the next attempt runs into ("someone has this name"). Where the log does not take the
//! announcement at once, the answer says `Vidlog-Stale: true` and readers of the user wait, until the relay has
//! appended it, and say the same.

use axum::{Extension, extract::State};
use tracing::error;
use vidlog_contract::{Answer, ApiError, Call, Code, openapi::IdempotencyKey};
use vidlog_events::{Event, Personal, UserEvent, UserRegistered};

use super::credentials::{Credentials, IN_ANY_CASE, Refused, Typed};
use crate::{
    accounts::{self, Account, CreateError, NewAccount},
    execute::{begin_with_id, watched},
    idempotency::{Begun, Request, Reserved},
    mysql::api_error,
    origin::Origin,
    outbox,
    reply::Reply,
    state::CommandState,
};

/// Registers a user. Names are unique, also regardless of case.
#[utoipa::path(
    post,
    path = "/douyin/user/register/",
    operation_id = "register",
    tag = "users",
    params(
        ("username" = String, Query, description = "1 to 32 characters"),
        ("password" = String, Query, description = "5 to 32 characters"),
        IdempotencyKey,
    ),
    security(()),
    responses((status = 200, body = Answer<Credentials>, description = IN_ANY_CASE))
)]
pub(crate) async fn register(
    State(state): State<CommandState>,
    Extension(origin): Extension<Origin>,
    call: Result<Call, ApiError>,
) -> Result<Reply, Refused> {
    let reply = watched("register", async {
        let call = call?;
        let typed = Typed::of(&call)?;
        let request = Request {
            command: "register",
            caller: 0,
            // Not the password: whoever has the key must know it as well.
            wish: typed.username.to_owned(),
            headers: &call.headers,
        };
        let reserved = match begin_with_id(&state, &request).await? {
            Begun::Open(attempt) => attempt.reserved,
            Begun::Answered(reply) => return Ok(reply),
        };
        match accounts::find(&state.mysql, typed.username).await.map_err(api_error)? {
            Some(account) => again(&state, account, reserved, &typed).await,
            None => create(&state, &origin, reserved, &typed).await,
        }
    });
    Ok(reply.await?)
}

async fn create(
    state: &CommandState,
    origin: &Origin,
    reserved: Reserved,
    typed: &Typed<'_>,
) -> Result<Reply, ApiError> {
    let user_id = reserved.entity()?;
    let registered = UserRegistered { user_id, name: Personal::new(typed.username.to_owned()) };
    let envelope = origin.envelope(reserved.stamp(), Event::User(UserEvent::UserRegistered(registered)));
    let account = NewAccount {
        user_id: user_id.get(),
        username: typed.username,
        password_hash: state.passwords.hash(typed.password.to_owned()).await?,
        announcement: &envelope,
    };
    outbox::mark_not_appended(&state.read_models, std::slice::from_ref(&envelope.event)).await;
    let outbox_id = match accounts::create(&state.mysql, &account).await {
        Ok(id) => id,
        Err(CreateError::Taken) => {
            let found = accounts::find(&state.mysql, typed.username).await.map_err(api_error)?;
            return match found {
                Some(account) => again(state, account, reserved, typed).await,
                None => Err(taken()),
            };
        }
        Err(CreateError::MySql(error)) => return Err(api_error(error)),
        Err(error @ CreateError::Announcement(_)) => {
            error!(%error, "failed to write an account");
            return Err(ApiError::internal());
        }
    };
    let answer = Credentials::of(state, user_id.get())?;
    match outbox::append_now(state, outbox_id, &envelope).await {
        Some(acknowledged) => Reply::new(&answer, &acknowledged),
        None => Reply::before_append(&answer),
    }
}

/// The name is there: it is someone else's, or the retry of an attempt whose answer was lost.
async fn again(
    state: &CommandState,
    account: Account,
    reserved: Reserved,
    typed: &Typed<'_>,
) -> Result<Reply, ApiError> {
    let same = Some(account.user_id) == reserved.entity_id;
    if same && state.passwords.verify(typed.password.to_owned(), Some(account.password_hash)).await? {
        return Reply::before_append(&Credentials::of(state, account.user_id)?);
    }
    Err(taken())
}

fn taken() -> ApiError {
    ApiError::new(Code::NameTaken, Code::NameTaken.meaning())
}
