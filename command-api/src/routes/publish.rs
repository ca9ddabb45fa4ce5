//! POST publish/action: streams an upload into the object store and appends its event.

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
    Admission, ApiError, ApiResponse, Empty, Params,
    call::{authenticate, check_content_length},
    limits,
    openapi::IdempotencyKey,
};
use vidlog_events::{Envelope, Event, Personal, VideoEvent, VideoId};
use vidlog_rate_limits::ClientNetwork;

use self::form::{Form, Pace, Part};
use crate::{
    append::append,
    commands::publish::{self, Publish},
    error::typed_id,
    execute::{with_deadline, with_metrics},
    idempotency::{self, Fingerprint, IDEMPOTENCY_HEADER, IdempotentAttempt, Outcome},
    ids::IdError,
    publisher::AppendError,
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
    storage::{self, ObjectWriter},
    upload_slots::{SlotRefusal, UploadSlot},
};

/// The form of an upload; parts may come in any order.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read part by part")]
pub(crate) struct UploadForm {
    /// The video file.
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
    /// 1 to 120 characters, no control characters.
    title: String,
    /// The caller's token, unless in the query or `Authorization: Bearer`. Put it first: an invalid token ends the
    /// upload early, and few uploads at once may precede their token.
    token: Option<String>,
}

/// Uploads a video. It becomes visible to everyone once processed; until then its author sees its state.
#[utoipa::path(
    post,
    path = "/douyin/publish/action/",
    operation_id = "publishAction",
    tag = "videos",
    params(
        IdempotencyKey,
    ),
    request_body(content = inline(UploadForm), content_type = "multipart/form-data"),
    responses((status = 200, body = ApiResponse<Empty>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Reply, ApiError> {
    // A separate task, because a disconnect drops the handler, but a stored file must still be cleaned up.
    let task = tokio::spawn(with_metrics("publish", async {
        UploadHandler::new(state, context, &request)?.receive(request).await
    }));
    task.await.unwrap_or_else(|error| {
        error!(%error, "publish task failed");
        Err(ApiError::internal())
    })
}

/// Handles one upload request.
struct UploadHandler {
    state: CommandState,
    context: RequestContext,
    headers: HeaderMap,
    params: Params,
    admission: Admission,
    network: Option<ClientNetwork>,
    /// Absent until the user is known or the file begins.
    slot: Option<UploadSlot>,
}

/// An upload's file, received completely.
struct ReceivedFile {
    bytes: u64,
    /// The object. An error if no id was available for it: then the file was read but not stored, which suffices for a
    /// retry of an upload that has an event.
    object: Result<StoredObject, IdError>,
}

/// A file in the object store.
struct StoredObject {
    /// Id generated for the video.
    video_id: VideoId,
    key: String,
}

/// Whether a stored file is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadFate {
    /// No event references the file, now or later.
    Orphaned,
    /// An event references the file, or may.
    Referenced,
}

impl UploadHandler {
    /// Checks the headers and the query, which may suffice to refuse the body.
    fn new(state: CommandState, context: RequestContext, request: &Request) -> Result<Self, ApiError> {
        let limit_bytes = state.max_upload_bytes;
        check_content_length(request.headers(), limit_bytes.saturating_add(limits::FORM_BYTES as u64))
            .map_err(|_| ApiError::too_large(limit_bytes))?;
        let query = request.uri().query().unwrap_or_default();
        let headers = request.headers().clone();
        let (params, admission) = (Params::from_query(query), Admission::of(request.extensions()));
        let network = request.extensions().get().cloned();
        let handler = Self { state, context, headers, params, admission, network, slot: None };
        handler.caller()?;
        Ok(handler)
    }

    /// Receives the form and publishes the video. On failure it leaves no file behind.
    async fn receive(mut self, request: Request) -> Result<Reply, ApiError> {
        let pace = self.admit().await?;
        let form = Form::open(request, self.state.max_upload_bytes, pace).await?;
        let mut file = None;
        let received = self.read(form, &mut file).await;
        let Some(file) = file else {
            received?;
            return Err(ApiError::invalid("the file part, data, is missing"));
        };
        let mut fate = UploadFate::Orphaned;
        let result = match received {
            Ok(()) => with_deadline(self.publish(&file, &mut fate)).await,
            Err(error) => Err(error),
        };
        if let (UploadFate::Orphaned, Ok(object)) = (fate, file.object) {
            storage::delete_orphan(self.state.objects.as_ref(), &Path::from(object.key)).await;
        }
        result
    }

    async fn read(&mut self, mut form: Form, file: &mut Option<ReceivedFile>) -> Result<(), ApiError> {
        while let Some(mut part) = form.next().await? {
            match part.name()?.as_str() {
                name @ ("token" | "title") => {
                    self.params.add(name, &part.read_small().await?);
                    part.set_pace(self.admit().await?);
                }
                name => {
                    let is_file = name == "data" && file.is_none();
                    part.set_pace(self.take_slot()?);
                    if is_file {
                        *file = Some(self.receive_file(part).await?);
                    } else {
                        part.skip().await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses the upload of an invalid token, or of a user above the limits. Takes a slot of the user's share once the
    /// user is known.
    async fn admit(&mut self) -> Result<Pace, ApiError> {
        let caller = self.caller()?;
        self.admission.admit(caller, &self.params).await?;
        if let Some(user) = caller {
            let slots = &self.state.upload_slots;
            let taken = match &mut self.slot {
                Some(slot) => slot.assign(user),
                empty => slots.take(user, self.network.clone()).map(|slot| *empty = Some(slot)),
            };
            taken.map_err(SlotRefusal::into_error)?;
        }
        Ok(self.pace())
    }

    /// Takes an anonymous slot, unless the upload has a slot.
    fn take_slot(&mut self) -> Result<Pace, ApiError> {
        if self.slot.is_none() {
            let slot = self.state.upload_slots.take_anonymous(self.network.clone());
            self.slot = Some(slot.map_err(SlotRefusal::into_error)?);
        }
        Ok(self.pace())
    }

    fn pace(&self) -> Pace {
        match &self.slot {
            None => Pace::Preamble,
            Some(slot) if slot.is_anonymous() => Pace::Anonymous,
            Some(_) => Pace::Known,
        }
    }

    async fn receive_file(&self, mut part: Part<'_>) -> Result<ReceivedFile, ApiError> {
        let Some(first) = part.chunk().await? else {
            return Err(ApiError::invalid("the file part, data, is empty"));
        };
        let video_id: VideoId = match self.state.ids.next() {
            Ok(id) => typed_id(id)?,
            Err(error) if self.headers.contains_key(IDEMPOTENCY_HEADER) => {
                let bytes = self.copy(first, part, None).await?;
                return Ok(ReceivedFile { bytes, object: Err(error) });
            }
            Err(error) => return Err(error.into()),
        };
        let key = publish::original_key(video_id, Uuid::new_v4());
        let path = Path::from(key.as_str());
        let mut writer =
            ObjectWriter::begin(self.state.objects.as_ref(), &path).await.map_err(storage_error)?;
        match self.copy(first, part, Some(&mut writer)).await {
            Ok(bytes) => {
                writer.finish().await.map_err(storage_error)?;
                Ok(ReceivedFile { bytes, object: Ok(StoredObject { video_id, key }) })
            }
            Err(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }

    /// Copies the file to the writer, if any; returns its size.
    async fn copy(
        &self,
        first: bytes::Bytes,
        mut part: Part<'_>,
        mut writer: Option<&mut ObjectWriter>,
    ) -> Result<u64, ApiError> {
        let limit_bytes = self.state.max_upload_bytes;
        let (mut next, mut count) = (Some(first), 0);
        while let Some(bytes) = next {
            count += bytes.len() as u64;
            if count > limit_bytes {
                return Err(ApiError::too_large(limit_bytes));
            }
            if let Some(writer) = &mut writer {
                writer.write(&bytes).await.map_err(storage_error)?;
            }
            next = part.chunk().await?;
        }
        Ok(count)
    }

    /// Appends the event that references the file, or that of an earlier attempt.
    async fn publish(&self, file: &ReceivedFile, fate: &mut UploadFate) -> Result<Reply, ApiError> {
        let caller = self.caller()?.ok_or_else(|| ApiError::unauthenticated("token is missing; log in"))?;
        let title = self.params.limited_line("title", limits::TITLE)?;
        let request = idempotency::Request {
            caller,
            fingerprint: Fingerprint::new("publish", &format!("{title}\n{}", file.bytes)),
            headers: &self.headers,
        };
        let video_id = file.object.as_ref().map(|object| Some(object.video_id.get()));
        let attempt =
            match IdempotentAttempt::begin(&self.state, &request, video_id.map_err(|error| *error)).await? {
                Outcome::New(attempt) => attempt,
                Outcome::Replay(reply) => return Ok(reply),
            };
        let attempt = match (attempt.event(), &file.object) {
            (Some(_), _) => attempt,
            (None, Ok(object)) => {
                let publish = Publish {
                    author_id: typed_id(caller)?,
                    title: Personal::new(title.to_owned()),
                    original_key: object.key.clone(),
                };
                match self.decide(attempt, publish, fate).await? {
                    Outcome::New(attempt) => attempt,
                    Outcome::Replay(reply) => return Ok(reply),
                }
            }
            (None, Err(error)) => return Err((*error).into()),
        };
        let envelope = attempt.event().ok_or_else(ApiError::internal)?;
        let acknowledged =
            match append(self.state.log.as_ref(), &self.state.read_models.freshness, envelope).await {
                Ok(acknowledged) => acknowledged,
                Err(error) => {
                    *fate = self.fate_after_failed_append(&error, *fate);
                    return Err(error.into());
                }
            };
        let reply = Reply::new(&ApiResponse::ok(), &acknowledged)?;
        Ok(attempt.store_reply(&self.state, reply).await)
    }

    /// Decides on the upload and stores the event for retries. Returns the attempt with the event to append, which is
    /// that of a concurrent attempt if it stored its own first.
    async fn decide(
        &self,
        attempt: IdempotentAttempt,
        publish: Publish,
        fate: &mut UploadFate,
    ) -> Result<Outcome, ApiError> {
        let original_key = publish.original_key.clone();
        let event = publish::decide(publish, attempt.reservation.entity()?);
        // Once the event is stored, a retry may append it.
        *fate = UploadFate::Referenced;
        let envelope = self.context.envelope(attempt.reservation.identity(), event);
        let stored = attempt.store_event(&self.state, envelope).await?;
        let is_own = matches!(&stored, Outcome::New(attempt)
            if attempt.event().is_some_and(|event| references(event, &original_key)));
        if !is_own {
            *fate = UploadFate::Orphaned;
        }
        Ok(stored)
    }

    /// Fate of a file whose event was not acknowledged.
    fn fate_after_failed_append(&self, error: &AppendError, fate: UploadFate) -> UploadFate {
        match error {
            AppendError::Unknown(_) => fate,
            AppendError::Busy if self.headers.contains_key(IDEMPOTENCY_HEADER) => fate,
            AppendError::Busy | AppendError::Refused(_) => UploadFate::Orphaned,
        }
    }

    fn caller(&self) -> Result<Option<i64>, ApiError> {
        authenticate(&self.params, &self.headers, &self.state.tokens)
    }
}

fn references(envelope: &Envelope, key: &str) -> bool {
    matches!(&envelope.event, Event::Video(VideoEvent::VideoUploaded(uploaded)) if uploaded.original_key == key)
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn storage_error(error: object_store::Error) -> ApiError {
    warn!(%error, "failed to store upload");
    ApiError::unavailable("the video can't be stored right now; try again in a moment")
}
