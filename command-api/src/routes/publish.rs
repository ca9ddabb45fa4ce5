//! POST publish/action: takes an upload into the object store while it comes in, and appends its event.

mod form;

use axum::{
    Extension,
    extract::{Request, State},
    http::HeaderMap,
};
use object_store::path::Path;
use tracing::{error, warn};
use utoipa::ToSchema;
use uuid::Uuid;
use vidlog_contract::{
    Answer, ApiError, Empty, Params,
    call::{identify, refuse_large_body},
    limits,
    openapi::IdempotencyKey,
};
use vidlog_events::{Envelope, Event, Personal, VideoEvent, VideoId};

use self::form::{Form, Part};
use crate::{
    append::append,
    commands::publish::{self, Publish},
    error::checked,
    execute::{counted, within_time},
    idempotency::{self, Attempt, Begun, IDEMPOTENCY_HEADER},
    origin::Origin,
    publisher::AppendError,
    reply::Reply,
    state::CommandState,
    storage::{self, ObjectWriter},
};

/// The form of an upload, in any order.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is read piece by piece; this describes it")]
pub(crate) struct UploadForm {
    /// The video file.
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
    /// 1 to 120 characters.
    title: String,
    /// Who uploads, unless the query or `Authorization: Bearer` tells; the sooner the better, an upload may be refused.
    token: Option<String>,
}

/// Uploads a video. It is visible to everyone once it has been processed; until then its author sees its state.
#[utoipa::path(
    post,
    path = "/douyin/publish/action/",
    operation_id = "publishAction",
    tag = "videos",
    params(
        IdempotencyKey,
    ),
    request_body(content = inline(UploadForm), content_type = "multipart/form-data"),
    responses((status = 200, body = Answer<Empty>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Result<Reply, ApiError> {
    // A task of its own: if the client goes away the handler is dropped, but what was stored must be cleaned up.
    let publishing = tokio::spawn(counted("publish", async {
        Publishing::new(state, origin, &request)?.receive(request).await
    }));
    publishing.await.unwrap_or_else(|error| {
        error!(%error, "publishing failed");
        Err(ApiError::internal())
    })
}

/// An upload that is being published.
struct Publishing {
    state: CommandState,
    origin: Origin,
    headers: HeaderMap,
    params: Params,
}

/// A file in the object store.
struct Stored {
    /// The id that was made for its video.
    video_id: VideoId,
    key: String,
    bytes: u64,
}

/// What becomes of a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No event names it, nor will one.
    Waste,
    /// An event names it, or may.
    Named,
}

impl Publishing {
    /// Looks at all that is known before the body: it may be enough to refuse it.
    fn new(state: CommandState, origin: Origin, request: &Request) -> Result<Self, ApiError> {
        let limit_bytes = state.max_upload_bytes;
        refuse_large_body(request.headers(), limit_bytes.saturating_add(limits::FORM_BYTES as u64))
            .map_err(|_| ApiError::too_large(limit_bytes))?;
        let query = request.uri().query().unwrap_or_default();
        let headers = request.headers().clone();
        let publishing = Self { state, origin, headers, params: Params::parse(query.as_bytes(), b"") };
        publishing.caller()?;
        Ok(publishing)
    }

    /// Receives the form and publishes what it holds. Nothing is left of it if that fails.
    async fn receive(mut self, request: Request) -> Result<Reply, ApiError> {
        let Ok(_slot) = self.state.upload_slots.clone().try_acquire_owned() else {
            return Err(ApiError::unavailable("there are too many uploads right now; try again in a moment"));
        };
        let form = Form::open(request, self.state.max_upload_bytes).await?;
        let mut stored = None;
        let received = self.read(form, &mut stored).await;
        let Some(stored) = stored else {
            received?;
            return Err(ApiError::invalid("data, the file, is missing"));
        };
        let mut fate = Fate::Waste;
        let result = match received {
            Ok(()) => within_time(self.publish(&stored, &mut fate)).await,
            Err(error) => Err(error),
        };
        if fate == Fate::Waste {
            storage::remove(self.state.objects.as_ref(), &Path::from(stored.key)).await;
        }
        result
    }

    async fn read(&mut self, mut form: Form, stored: &mut Option<Stored>) -> Result<(), ApiError> {
        while let Some(part) = form.next().await? {
            match part.name() {
                "data" if stored.is_none() => *stored = Some(self.store(part).await?),
                name @ ("token" | "title") => {
                    let name = name.to_owned();
                    self.params.add(&name, &part.small().await?);
                    // A token that does not verify ends it here.
                    self.caller()?;
                }
                _ => part.skip().await?,
            }
        }
        Ok(())
    }

    async fn store(&self, mut part: Part<'_>) -> Result<Stored, ApiError> {
        let Some(first) = part.chunk().await? else {
            return Err(ApiError::invalid("data, the file, is empty"));
        };
        let video_id: VideoId = checked(self.state.ids.next()?)?;
        let key = publish::original_key(video_id, Uuid::new_v4());
        let path = Path::from(key.as_str());
        let mut writer = ObjectWriter::begin(self.state.objects.as_ref(), &path).await.map_err(not_stored)?;
        match self.copy(first, part, &mut writer).await {
            Ok(bytes) => {
                writer.finish().await.map_err(not_stored)?;
                Ok(Stored { video_id, key, bytes })
            }
            Err(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }

    async fn copy(
        &self,
        first: bytes::Bytes,
        mut part: Part<'_>,
        writer: &mut ObjectWriter,
    ) -> Result<u64, ApiError> {
        let limit_bytes = self.state.max_upload_bytes;
        let (mut next, mut count) = (Some(first), 0);
        while let Some(bytes) = next {
            count += bytes.len() as u64;
            if count > limit_bytes {
                return Err(ApiError::too_large(limit_bytes));
            }
            writer.write(&bytes).await.map_err(not_stored)?;
            next = part.chunk().await?;
        }
        Ok(count)
    }

    /// Appends the event that names a stored file.
    async fn publish(&self, stored: &Stored, fate: &mut Fate) -> Result<Reply, ApiError> {
        let caller = self.caller()?.ok_or_else(|| ApiError::unauthenticated("token is missing; log in"))?;
        let title = self.params.limited_text("title", limits::TITLE)?;
        let request = idempotency::Request {
            command: "publish",
            caller,
            wish: format!("{title}\n{}", stored.bytes),
            headers: &self.headers,
        };
        let attempt = match Attempt::begin(&self.state, &request, Some(stored.video_id.get())).await? {
            Begun::Open(attempt) => attempt,
            Begun::Answered(reply) => return Ok(reply),
        };
        let publish = Publish {
            author_id: checked(caller)?,
            title: Personal::new(title.to_owned()),
            original_key: stored.key.clone(),
        };
        let envelope = self.event_of(&attempt, publish, fate).await?;
        let acknowledged =
            match append(self.state.log.as_ref(), &self.state.read_models.freshness, &envelope).await {
                Ok(acknowledged) => acknowledged,
                Err(error) => {
                    *fate = self.fate_after(&error, *fate);
                    return Err(error.into());
                }
            };
        let reply = Reply::new(&Answer::ok(), &acknowledged)?;
        Ok(attempt.answer(&self.state, reply).await)
    }

    /// The event to append: that of an earlier attempt, if there was one. It names the file of that attempt then.
    async fn event_of(
        &self,
        attempt: &Attempt,
        publish: Publish,
        fate: &mut Fate,
    ) -> Result<Envelope, ApiError> {
        if let Some(decided) = attempt.decided() {
            return Ok(decided.clone());
        }
        let original_key = publish.original_key.clone();
        let event = publish::decide(publish, attempt.reserved.entity()?);
        // Once it is decided, a retry may append it.
        *fate = Fate::Named;
        let envelope =
            attempt.decide(&self.state, self.origin.envelope(attempt.reserved.stamp(), event)).await?;
        if !names(&envelope, &original_key) {
            *fate = Fate::Waste;
        }
        Ok(envelope)
    }

    /// What becomes of a file whose event was not acknowledged.
    fn fate_after(&self, error: &AppendError, fate: Fate) -> Fate {
        match error {
            AppendError::Unknown(_) => fate,
            AppendError::Busy if self.headers.contains_key(IDEMPOTENCY_HEADER) => fate,
            AppendError::Busy | AppendError::Refused(_) => Fate::Waste,
        }
    }

    fn caller(&self) -> Result<Option<i64>, ApiError> {
        identify(&self.params, &self.headers, &self.state.tokens)
    }
}

fn names(envelope: &Envelope, key: &str) -> bool {
    matches!(&envelope.event, Event::Video(VideoEvent::VideoUploaded(uploaded)) if uploaded.original_key == key)
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn not_stored(error: object_store::Error) -> ApiError {
    warn!(%error, "failed to store an upload");
    ApiError::unavailable("the video can't be stored right now; try again in a moment")
}
