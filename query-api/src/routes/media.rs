//! GET /static: media by object key, whole or as a byte range.
//!
//! A served object never changes, so clients can cache it forever.

mod conditions;

use axum::{
    body::Body,
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt, path::Path};
use tracing::warn;
use vidlog_contract::{ApiError, error::Status};
use vidlog_read_models::builtin;
use vidlog_schemas::hash::fnv1a;

use self::conditions::{Selection, quoted, select};
use crate::state::QueryState;

/// The served folders. Originals are in none of them.
const SERVED: [&str; 2] = ["videos/", "covers/"];
const CACHE_FOREVER: &str = "public, max-age=31536000, immutable";
const CACHE_FOR_A_DAY: &str = "public, max-age=86400";

/// The placeholders that are built into the program.
const BUILTIN: [(&str, &[u8]); 6] = [
    (builtin::AVATAR, include_bytes!("../../assets/avatar.png")),
    (builtin::BACKGROUND, include_bytes!("../../assets/background.png")),
    (builtin::PROCESSING_COVER, include_bytes!("../../assets/processing.png")),
    (builtin::PROCESSING_CLIP, include_bytes!("../../assets/processing.mp4")),
    (builtin::REJECTED_COVER, include_bytes!("../../assets/rejected.png")),
    (builtin::REJECTED_CLIP, include_bytes!("../../assets/rejected.mp4")),
];

/// A served file.
struct MediaFile<'a> {
    key: &'a str,
    size: u64,
    /// The quoted entity tag; empty if the store has none.
    e_tag: String,
    content: Content,
}

enum Content {
    Builtin(&'static [u8]),
    Stored(Box<ObjectMeta>),
}

/// Serves a file: the playable video, its cover, or a placeholder.
#[utoipa::path(
    get,
    path = "/static/{key}",
    operation_id = "media",
    tag = "media",
    params(
        ("key" = String, Path, description = "an object key, as in `play_url` and `cover_url`"),
        ("Range" = Option<String>, Header, description = "one range of bytes"),
        ("If-None-Match" = Option<String>, Header),
        ("If-Range" = Option<String>, Header),
    ),
    security(()),
    responses(
        (status = 200, description = "the whole file"),
        (status = 206, description = "the range"),
        (status = 304, description = "the client has this version"),
        (status = 404, body = Status, description = "there is no such file"),
        (status = 416, description = "the range starts after the end of the file"),
    )
)]
pub(crate) async fn serve(
    State(state): State<QueryState>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = served_key(uri.path()).ok_or_else(ApiError::no_such_path)?;
    let file = find(&state, key).await?;
    let selection = select(&headers, file.size, &file.e_tag);
    let mut response = match selection {
        Selection::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Selection::Unsatisfiable => range_not_satisfiable(file.size),
        Selection::Whole | Selection::Part(_) if method == Method::HEAD => Body::empty().into_response(),
        Selection::Whole => body(&state, &file, 0..file.size).await?.into_response(),
        Selection::Part(ref range) => body(&state, &file, range.clone()).await?.into_response(),
    };
    set_headers(&mut response, &file, &selection);
    Ok(response)
}

/// Returns the object key of a path. Rejects escapes and empty, hidden and parent segments.
fn served_key(path: &str) -> Option<&str> {
    let key = path.strip_prefix("/static/")?;
    let segment =
        |segment: &str| segment.bytes().all(is_plain) && !segment.is_empty() && !segment.starts_with('.');
    key.split('/').all(segment).then_some(key)
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

async fn find<'a>(state: &QueryState, key: &'a str) -> Result<MediaFile<'a>, ApiError> {
    if let Some((_, bytes)) = BUILTIN.into_iter().find(|(builtin, _)| *builtin == key) {
        let (size, e_tag) = (bytes.len() as u64, format!("\"{:016x}\"", fnv1a(bytes)));
        return Ok(MediaFile { key, size, e_tag, content: Content::Builtin(bytes) });
    }
    if !SERVED.iter().any(|folder| key.starts_with(folder)) {
        return Err(ApiError::no_such_path());
    }
    let meta = state.objects.head(&Path::from(key)).await.map_err(|error| read_error(&error))?;
    let (size, e_tag) = (meta.size, meta.e_tag.as_deref().map(quoted).unwrap_or_default());
    Ok(MediaFile { key, size, e_tag, content: Content::Stored(Box::new(meta)) })
}

async fn body(
    state: &QueryState,
    file: &MediaFile<'_>,
    range: std::ops::Range<u64>,
) -> Result<Body, ApiError> {
    match &file.content {
        Content::Builtin(bytes) => Ok(Body::from(part(bytes, range))),
        Content::Stored(_) if range.is_empty() => Ok(Body::empty()),
        Content::Stored(meta) => {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range)),
                // The headers describe this version.
                if_match: meta.e_tag.clone(),
                ..GetOptions::default()
            };
            let found =
                state.objects.get_opts(&meta.location, options).await.map_err(|error| read_error(&error))?;
            let key = file.key.to_owned();
            let stream = found.into_stream();
            Ok(Body::from_stream(stream.inspect_err(move |error| warn!(key, %error, "media stream failed"))))
        }
    }
}

fn part(bytes: &'static [u8], range: std::ops::Range<u64>) -> Bytes {
    let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
    let part = start.ok().zip(end.ok()).and_then(|(start, end)| bytes.get(start..end));
    Bytes::from_static(part.unwrap_or_default())
}

fn set_headers(response: &mut Response, file: &MediaFile<'_>, selection: &Selection) {
    let caching = match file.content {
        Content::Builtin(_) => CACHE_FOR_A_DAY,
        Content::Stored(_) => CACHE_FOREVER,
    };
    set(response, X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(response, ACCEPT_RANGES, "bytes");
    if *selection == Selection::Unsatisfiable {
        return;
    }
    set(response, ETAG, &file.e_tag);
    set(response, CACHE_CONTROL, caching);
    let length = match selection {
        Selection::Whole => file.size,
        Selection::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(response, CONTENT_RANGE, &format!("bytes {}-{}/{}", range.start, range.end - 1, file.size));
            range.end - range.start
        }
        Selection::NotModified | Selection::Unsatisfiable => return,
    };
    set(response, CONTENT_TYPE, content_type(file.key));
    set(response, CONTENT_LENGTH, &length.to_string());
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if value.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn range_not_satisfiable(size: u64) -> Response {
    let mut response = ApiError::invalid("the range starts after the end of the file").into_response();
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    set(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

fn content_type(key: &str) -> &'static str {
    match key.rsplit_once('.').map(|(_, extension)| extension) {
        Some("mp4") => "video/mp4",
        Some("jpg") => "image/jpeg",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

fn read_error(error: &object_store::Error) -> ApiError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return ApiError::no_such_path();
    }
    warn!(%error, "media read failed");
    ApiError::unavailable("the file can't be read right now; try again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_keys_are_served() {
        assert_eq!(served_key("/static/videos/9-ab.mp4"), Some("videos/9-ab.mp4"));
        for path in [
            "/static/",
            "/static//etc/passwd",
            "/static/videos/../originals/9",
            "/static/videos/%2e%2e/originals/9",
            "/static/videos/.hidden",
            "/static/videos//9.mp4",
            "/static/videos/9.mp4/",
            "/static/videos/9.mp4%23",
            "/static/videos\\..\\9",
            "/other/videos/9.mp4",
        ] {
            assert_eq!(served_key(path), None, "{path}");
        }
    }

    #[test]
    fn placeholders_match_their_content_type() {
        for (key, bytes) in BUILTIN {
            let magic: &[u8] = if content_type(key) == "video/mp4" { b"ftyp" } else { b"PNG" };
            assert!(bytes[..16].windows(magic.len()).any(|window| window == magic), "{key}");
            assert!(bytes.len() < 8 * 1024, "{key}");
        }
    }
}
