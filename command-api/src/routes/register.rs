//! POST user/register.
//!
//! Registration succeeds once the account row and its outbox entry are committed: a failure after that would make the
//! retry see "name taken". If the event can't be appended immediately, the response has `Vidlog-Stale: true`, as have
//! reads of the user until the relay has appended it.
//!
//! The caller is unknown, so its `Idempotency-Key` is stored only in the row of the account that it created.

use axum::{Extension, extract::State};
use tracing::error;
use vidlog_contract::{ApiError, ApiResponse, Call, Code, openapi::IdempotencyKey};
use vidlog_events::{Event, Personal, UserEvent, UserId, UserRegistered};

use super::credentials::{Credentials, CredentialsError, LoginForm, RESPONSE_DESCRIPTION};
use crate::{
    accounts::{
        self, Account, CreateError, NewAccount,
        appearances::{Comparison, compare},
    },
    error::typed_id,
    execute::run_command,
    idempotency::{Fingerprint, REPLY_TTL_MS, key_from_headers},
    mysql::api_error,
    outbox,
    reply::Reply,
    request_context::{EventIdentity, RequestContext},
    state::CommandState,
    username,
};

/// Registers a user. Names that look the same are the same name.
#[utoipa::path(
    post,
    path = "/douyin/user/register/",
    operation_id = "register",
    tag = "users",
    params(
        ("username" = String, Query, description = "1 to 32 characters, one of them visible; none that is a control or changes the direction of text"),
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
        let key = key_from_headers(&call.headers)?.map(|key| Fingerprint::new("registration", key));
        if let Some(account) = accounts::find(&state.mysql, form.username).await.map_err(api_error)? {
            return retry_or_name_taken(&state, account, key, &form).await;
        }
        username::validate(form.username).map_err(|error| ApiError::invalid(error.to_string()))?;
        require_free(&state, form.username).await?;
        create(&state, &context, key, &form).await
    });
    Ok(reply.await?)
}

/// Compares a name with accounts of an earlier version that are not normalized yet.
async fn require_free(state: &CommandState, username: &str) -> Result<(), ApiError> {
    match compare(&state.mysql, username).await.map_err(api_error)? {
        Comparison::Free => Ok(()),
        Comparison::Taken => Err(name_taken()),
        Comparison::Unknown => {
            Err(ApiError::unavailable("names can't be compared right now; try again in a moment"))
        }
    }
}

async fn create(
    state: &CommandState,
    context: &RequestContext,
    key: Option<Fingerprint>,
    form: &LoginForm<'_>,
) -> Result<Reply, ApiError> {
    let password_hash = state.passwords.hash(form.password.to_owned(), form.hashing_deadline).await?;
    // Hashing takes seconds under load. An instance of the earlier version may have registered the name meanwhile.
    require_free(state, form.username).await?;
    let user_id: UserId = typed_id(state.ids.next()?)?;
    let registered = UserRegistered { user_id, name: Personal::new(form.username.to_owned()) };
    let identity = EventIdentity::new(state.clock.now_ms());
    let envelope = context.envelope(identity, Event::User(UserEvent::UserRegistered(registered)));
    let account = NewAccount {
        user_id: user_id.get(),
        username: form.username,
        password_hash,
        registration: &envelope,
        idempotency_key: key,
    };
    outbox::mark_pending(&state.read_models, std::slice::from_ref(&envelope.event)).await;
    let outbox_id = match create_account(state, &account).await {
        Ok(id) => id,
        Err(CreateError::Exists) => {
            let found = accounts::find(&state.mysql, form.username).await.map_err(api_error)?;
            return match found {
                Some(account) => retry_or_name_taken(state, account, key, form).await,
                None => Err(ApiError::invalid("this Idempotency-Key was used for another request")),
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

/// Writes the account. If an older registration still has its key, frees the key and writes the account again.
async fn create_account(state: &CommandState, account: &NewAccount<'_>) -> Result<outbox::Id, CreateError> {
    let created = accounts::create(&state.mysql, account).await;
    if let (Err(CreateError::Exists), Some(key)) = (&created, account.idempotency_key) {
        let expired_ms = state.clock.now_ms() - REPLY_TTL_MS;
        if accounts::free_key(&state.mysql, key, expired_ms).await? {
            return accounts::create(&state.mysql, account).await;
        }
    }
    created
}

/// Responds if the name exists: with the account if this request is a retry of the one that created it. The key alone
/// does not suffice.
async fn retry_or_name_taken(
    state: &CommandState,
    account: Account,
    key: Option<Fingerprint>,
    form: &LoginForm<'_>,
) -> Result<Reply, ApiError> {
    let is_retry = key.is_some_and(|key| account.idempotency_key.as_deref() == Some(key.as_bytes()));
    let hash = Some(account.password_hash);
    if is_retry && state.passwords.verify(form.password.to_owned(), hash, form.hashing_deadline).await? {
        return Reply::pending_append(&Credentials::for_user(state, account.user_id)?);
    }
    Err(name_taken())
}

fn name_taken() -> ApiError {
    ApiError::new(Code::NameTaken, Code::NameTaken.meaning())
}
