//! The form of an upload, read as it comes in: in bounded memory, and only while it keeps coming.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream},
    extract::{
        DefaultBodyLimit, FromRequest, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};
use vidlog_contract::{ApiError, limits};

/// How long a client may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an upload may take: 200 MB at 1 Mbit/s.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(30);
/// Bytes that may be waiting for a part's head or end to show. A part's head has some hundred.
const MAX_UNREAD: usize = 1024 * 1024;

/// A form that is being received.
pub(super) struct Form {
    multipart: Multipart,
    watch: Watch,
}

/// A part of a form that is being received.
pub(super) struct Part<'a> {
    field: Field<'a>,
    watch: Watch,
}

/// Watches over the receiving of a form.
#[derive(Clone)]
struct Watch {
    limit_bytes: u64,
    deadline: Instant,
    unread: Arc<AtomicUsize>,
}

impl Form {
    /// Begins to receive a form with a file of a number of bytes at most, and little beside it.
    pub(super) async fn open(request: Request, limit_bytes: u64) -> Result<Self, ApiError> {
        let unread = Arc::new(AtomicUsize::new(0));
        let watch =
            Watch { limit_bytes, deadline: Instant::now() + TOTAL_TIMEOUT, unread: Arc::clone(&unread) };
        let mut request = request
            .map(|body| Body::from_stream(Metered { body: body.into_data_stream(), unread, rest: false }));
        let whole = usize::try_from(limit_bytes).unwrap_or(usize::MAX).saturating_add(limits::FORM_BYTES);
        DefaultBodyLimit::max(whole).apply(&mut request);
        let multipart = Multipart::from_request(request, &()).await.map_err(|_| {
            ApiError::invalid("the body must be multipart/form-data, with the fields data and title")
        })?;
        Ok(Self { multipart, watch })
    }

    /// The next part. The one before must have been read to its end.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        let watch = self.watch.clone();
        let field = watch.within_time(self.multipart.next_field()).await?;
        Ok(field.map(|field| Part { field, watch }))
    }
}

impl Part<'_> {
    /// The name of the field.
    pub(super) fn name(&self) -> &str {
        self.field.name().unwrap_or_default()
    }

    /// The next bytes of the part: at least one, until its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.watch.within_time(self.field.chunk()).await? {
                Some(bytes) if bytes.is_empty() => {}
                chunk => return Ok(chunk),
            }
        }
    }

    /// The whole part, which must be small.
    pub(super) async fn small(mut self) -> Result<Bytes, ApiError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.chunk().await? {
            if whole.len() + bytes.len() > limits::FORM_BYTES {
                return Err(ApiError::too_large(limits::FORM_BYTES as u64));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    /// Reads to the end of a part that nobody asks for.
    pub(super) async fn skip(mut self) -> Result<(), ApiError> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

impl Watch {
    async fn within_time<T>(
        &self,
        receiving: impl Future<Output = Result<T, MultipartError>>,
    ) -> Result<T, ApiError> {
        let until = self.deadline.min(Instant::now() + IDLE_TIMEOUT);
        let received = timeout_at(until, receiving)
            .await
            .map_err(|_| ApiError::invalid("the upload stopped coming; try again"))?;
        self.unread.store(0, Ordering::Relaxed);
        received.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(self.limit_bytes),
            _ => ApiError::invalid("the upload ended early, or is no multipart/form-data"),
        })
    }
}

/// A body that is handed on a little at a time. The form's parser takes all that it can get before it looks at it,
/// and keeps it until it has understood it: so it is made to look after each piece, and a body in which it finds
/// nothing is cut off.
struct Metered {
    body: BodyDataStream,
    unread: Arc<AtomicUsize>,
    rest: bool,
}

impl Stream for Metered {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rest) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.unread.load(Ordering::Relaxed) > MAX_UNREAD {
            return Poll::Ready(Some(Err(io::Error::other("the form has a part without an end"))));
        }
        let polled = self.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.unread.fetch_add(bytes.len(), Ordering::Relaxed);
            self.rest = true;
        }
        polled.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::CONTENT_TYPE;
    use vidlog_contract::Code;

    use super::*;

    const HEAD: &str = "--b\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\n";

    /// A form that comes in pieces, and counts how many of them were taken.
    fn request(pieces: Vec<Bytes>) -> (Request, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        let pieces = futures::stream::iter(pieces.into_iter().map(move |piece| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(piece)
        }));
        let request = Request::post("/")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(pieces))
            .unwrap();
        (request, taken)
    }

    fn pieces(head: &str, count: usize) -> Vec<Bytes> {
        let piece = Bytes::from(vec![b'x'; 64 * 1024]);
        let head = Bytes::from(head.to_owned());
        std::iter::once(head).chain(std::iter::repeat_n(piece, count)).collect()
    }

    #[tokio::test]
    async fn no_more_is_taken_in_than_is_read() {
        let (request, taken) = request(pieces(HEAD, 1000));
        let mut form = Form::open(request, u64::MAX).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        for read in 0..1000 {
            part.chunk().await.unwrap();
            assert!(taken.load(Ordering::Relaxed) <= read + 3);
        }
    }

    #[tokio::test]
    async fn a_part_without_an_end_is_cut_off() {
        for head in ["--b\r\nContent-Disposition: form-data; name=\"", "no boundary"] {
            let (request, taken) = request(pieces(head, 1000));
            let mut form = Form::open(request, u64::MAX).await.unwrap();
            let error = form.next().await.err().unwrap();
            assert_eq!(error.code, Code::InvalidParameter);
            assert!(taken.load(Ordering::Relaxed) < 30);
        }
    }

    #[tokio::test]
    async fn a_part_that_nobody_asks_for_is_skipped() {
        let mut all = pieces(HEAD, 1000);
        all.push(Bytes::from(format!("\r\n{}small\r\n--b--\r\n", HEAD.replace("data", "title"))));
        let (request, _) = request(all);
        let mut form = Form::open(request, u64::MAX).await.unwrap();
        form.next().await.unwrap().unwrap().skip().await.unwrap();
        let part = form.next().await.unwrap().unwrap();
        assert_eq!(part.name(), "title");
        assert_eq!(part.small().await.unwrap(), "small");
        assert!(form.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_too_large() {
        let (request, _) = request(pieces(HEAD, 1000));
        let mut form = Form::open(request, 1024).await.unwrap();
        let part = form.next().await.unwrap().unwrap();
        assert_eq!(part.skip().await.unwrap_err().code, Code::PayloadTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_that_stops_coming_is_given_up() {
        let head = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(HEAD))]);
        let request = Request::post("/")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(head.chain(futures::stream::pending())))
            .unwrap();
        let mut form = Form::open(request, u64::MAX).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        assert_eq!(part.chunk().await.unwrap_err().code, Code::InvalidParameter);
    }

    #[tokio::test]
    async fn any_other_body_is_refused() {
        let request = Request::post("/").body(Body::from("token=a")).unwrap();
        let error = Form::open(request, 1024).await.err().unwrap();
        assert_eq!(error.code, Code::InvalidParameter);
    }
}
