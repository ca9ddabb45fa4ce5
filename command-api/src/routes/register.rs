//! POST user/register.
//!
//! Registration succeeds once the account row and its outbox entry are committed: a failure after that would make the
//! retry see "name taken". If the event can't be appended immediately, the response has `Vidlog-Stale: true`, as have
//! reads of the user until the relay has appended it.

use axum::{Extension, extract::State};
use tracing::error;
use vidlog_contract::{ApiError, ApiResponse, Call, Code, openapi::IdempotencyKey};
use vidlog_events::{Event, Personal, UserEvent, UserRegistered};

use super::credentials::{Credentials, CredentialsError, LoginForm, RESPONSE_DESCRIPTION};
use crate::{
    accounts::{self, Account, CreateError, NewAccount},
    execute::{begin_with_id, run_command},
    idempotency::{Fingerprint, Outcome, Request, Reservation},
    mysql::api_error,
    outbox,
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
};

/// Registers a user. Names are unique regardless of case.
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
    responses((status = 200, body = ApiResponse<Credentials>, description = RESPONSE_DESCRIPTION))
)]
pub(crate) async fn register(
    State(state): State<CommandState>,
    Extension(context): Extension<RequestContext>,
    call: Result<Call, ApiError>,
) -> Result<Reply, CredentialsError> {
    let reply = run_command("register", async {
        let call = call?;
        let form = LoginForm::from_call(&call)?;
        let request = Request {
            caller: 0,
            // Excludes the password: a retry must prove that it knows it.
            fingerprint: Fingerprint::new("register", form.username),
            headers: &call.headers,
        };
        let reservation = match begin_with_id(&state, &request).await? {
            Outcome::New(attempt) => attempt.reservation,
            Outcome::Replay(reply) => return Ok(reply),
        };
        match accounts::find(&state.mysql, form.username).await.map_err(api_error)? {
            Some(account) => retry_or_name_taken(&state, account, reservation, &form).await,
            None => create(&state, &context, reservation, &form).await,
        }
    });
    Ok(reply.await?)
}

async fn create(
    state: &CommandState,
    context: &RequestContext,
    reservation: Reservation,
    form: &LoginForm<'_>,
) -> Result<Reply, ApiError> {
    let user_id = reservation.entity()?;
    let registered = UserRegistered { user_id, name: Personal::new(form.username.to_owned()) };
    let envelope =
        context.envelope(reservation.identity(), Event::User(UserEvent::UserRegistered(registered)));
    let account = NewAccount {
        user_id: user_id.get(),
        username: form.username,
        password_hash: state.passwords.hash(form.password.to_owned(), form.hashing_deadline).await?,
        registration: &envelope,
    };
    outbox::mark_pending(&state.read_models, std::slice::from_ref(&envelope.event)).await;
    let outbox_id = match accounts::create(&state.mysql, &account).await {
        Ok(id) => id,
        Err(CreateError::Exists) => {
            let found = accounts::find(&state.mysql, form.username).await.map_err(api_error)?;
            return match found {
                Some(account) => retry_or_name_taken(state, account, reservation, form).await,
                None => Err(name_taken()),
            };
        }
        Err(CreateError::MySql(error)) => return Err(api_error(error)),
        Err(error @ CreateError::Event(_)) => {
            error!(%error, "failed to write account");
            return Err(ApiError::internal());
        }
    };
    let answer = Credentials::for_user(state, user_id.get())?;
    match outbox::append_now(state, outbox_id, &envelope).await {
        Some(acknowledged) => Reply::new(&answer, &acknowledged),
        None => Reply::pending_append(&answer),
    }
}

/// Responds if the name exists: with the account if this request is a retry of the attempt that created it.
async fn retry_or_name_taken(
    state: &CommandState,
    account: Account,
    reservation: Reservation,
    form: &LoginForm<'_>,
) -> Result<Reply, ApiError> {
    let is_retry = Some(account.user_id) == reservation.entity_id;
    let hash = Some(account.password_hash);
    if is_retry && state.passwords.verify(form.password.to_owned(), hash, form.hashing_deadline).await? {
        return Reply::pending_append(&Credentials::for_user(state, account.user_id)?);
    }
    Err(name_taken())
}

fn name_taken() -> ApiError {
    ApiError::new(Code::NameTaken, Code::NameTaken.meaning())
}
