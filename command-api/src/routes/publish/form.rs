//! Reads the multipart form of an upload part by part, with bounds on memory and time.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
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
    http::{StatusCode, header::CONTENT_DISPOSITION},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use metrics::counter;
use tokio::time::{Instant, timeout_at};
use vidlog_contract::{ApiError, content_disposition::part_name, limits::FORM_BYTES};

use crate::metrics::REFUSED_UPLOADS;

/// Maximum time until the token or the file begins. Until then an upload has no slot.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time between two chunks from the client.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time of an upload: 200 MB at 1 Mbit/s.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(30);
/// Bytes that the parser may buffer while it looks for a part's header or end. A header has a few hundred bytes.
const MAX_UNPARSED: u64 = 256 * 1024;
/// The same until the token or the file begins: an upload without a slot costs no more memory than any other POST.
const MAX_PREAMBLE_UNPARSED: u64 = FORM_BYTES as u64;
/// Time over which the rate of an upload is averaged: a phone in a tunnel or between two cells sends nothing for seconds.
const RATE_WINDOW: Duration = Duration::from_secs(30);
/// Minimum rate of a known user's upload in bytes per second. EDGE, the slowest network that a phone uploads over, has
/// twice that.
const KNOWN_RATE: u64 = 8 * 1024;
/// Minimum rate of an anonymous upload in bytes per second: a slow 3G uplink. Anonymous slots are few, so that occupying
/// one must cost more.
const ANONYMOUS_RATE: u64 = 32 * 1024;

/// A form in reception.
pub(super) struct Form {
    multipart: Multipart,
    limits: Limits,
}

/// A part of a form in reception.
pub(super) struct Part<'a> {
    field: Field<'a>,
    limits: &'a mut Limits,
}

/// How fast a form has to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Neither the user nor the file has arrived.
    Preamble,
    /// The file precedes the token.
    Anonymous,
    /// The user is known.
    Known,
}

/// Limits on the reception of a form.
struct Limits {
    max_bytes: u64,
    opened: Instant,
    pace: Pace,
    received: Arc<Received>,
    /// Bytes of all small parts.
    small_bytes: usize,
    /// Bytes received before the present rate window.
    before_window: u64,
    /// Time of the present rate window. The time in which the server does not read is not the client's.
    waited: Duration,
}

/// Bytes of a form.
#[derive(Default)]
struct Received {
    total: AtomicU64,
    /// Bytes received when the parser last returned a result.
    parsed: AtomicU64,
    /// Maximum of the bytes that are received and not parsed.
    max_unparsed: AtomicU64,
}

impl Form {
    /// Starts to receive a form with a file of at most `max_bytes`, and small other parts.
    pub(super) async fn open(request: Request, max_bytes: u64, pace: Pace) -> Result<Self, ApiError> {
        let received = Arc::<Received>::default();
        received.max_unparsed.store(pace.max_unparsed(), Ordering::Relaxed);
        let limits = Limits {
            max_bytes,
            opened: Instant::now(),
            pace,
            received: Arc::clone(&received),
            small_bytes: 0,
            before_window: 0,
            waited: Duration::ZERO,
        };
        let mut request = request.map(|body| {
            Body::from_stream(BoundedBody { body: body.into_data_stream(), received, must_yield: false })
        });
        let max_body = usize::try_from(max_bytes).unwrap_or(usize::MAX).saturating_add(FORM_BYTES);
        DefaultBodyLimit::max(max_body).apply(&mut request);
        let multipart = Multipart::from_request(request, &()).await.map_err(|_| {
            ApiError::invalid("the body must be multipart/form-data, with the fields data and title")
        })?;
        Ok(Self { multipart, limits })
    }

    /// The next part. The previous part must have been read to its end.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        let field = self.limits.apply(self.multipart.next_field()).await?;
        Ok(field.map(|field| Part { field, limits: &mut self.limits }))
    }
}

impl Part<'_> {
    /// Name of the part; empty without one.
    pub(super) fn name(&self) -> Result<String, ApiError> {
        let Some(header) = self.field.headers().get(CONTENT_DISPOSITION) else {
            return Ok(String::new());
        };
        let name = part_name(header.as_bytes())
            .map_err(|_| ApiError::invalid("a form part has an invalid Content-Disposition header"))?;
        Ok(name.unwrap_or_default())
    }

    /// Changes how fast the rest of the form has to arrive.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        if self.limits.pace != pace {
            self.limits.pace = pace;
            self.limits.received.max_unparsed.store(pace.max_unparsed(), Ordering::Relaxed);
            self.limits.start_window();
        }
    }

    /// The next, non-empty chunk; `None` at the end of the part.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.limits.apply(self.field.chunk()).await? {
                Some(bytes) if bytes.is_empty() => {}
                chunk => return Ok(chunk),
            }
        }
    }

    /// Reads a small part completely. All small parts of a form have a common maximum size.
    pub(super) async fn read_small(&mut self) -> Result<Bytes, ApiError> {
        let mut content = BytesMut::new();
        while let Some(bytes) = self.chunk().await? {
            self.limits.small_bytes += bytes.len();
            if self.limits.small_bytes > FORM_BYTES {
                return Err(ApiError::too_large(FORM_BYTES as u64));
            }
            content.extend_from_slice(&bytes);
        }
        Ok(content.freeze())
    }

    /// Reads the part to its end and discards it.
    pub(super) async fn skip(mut self) -> Result<(), ApiError> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

impl Pace {
    /// Minimum rate in bytes per second.
    const fn rate(self) -> u64 {
        match self {
            Self::Preamble => 0,
            Self::Anonymous => ANONYMOUS_RATE,
            Self::Known => KNOWN_RATE,
        }
    }

    const fn max_unparsed(self) -> u64 {
        match self {
            Self::Preamble => MAX_PREAMBLE_UNPARSED,
            Self::Anonymous | Self::Known => MAX_UNPARSED,
        }
    }

    const fn total_timeout(self) -> Duration {
        match self {
            Self::Preamble => PREAMBLE_TIMEOUT,
            Self::Anonymous | Self::Known => TOTAL_TIMEOUT,
        }
    }

    /// Returns the error of a form that arrives too slowly, and counts it.
    fn too_slow(self) -> ApiError {
        counter!(REFUSED_UPLOADS, "reason" => "slow").increment(1);
        ApiError::invalid(match self {
            Self::Preamble => {
                "the upload was too slow: neither its token nor its file arrived in 10 s; try again"
            }
            Self::Anonymous => {
                "the upload was too slow: a file before its token needs 32 KB/s; try again, with the token first"
            }
            Self::Known => "the upload was too slow: it needs 8 KB/s; try again on a faster network",
        })
    }
}

impl Limits {
    /// Awaits a read from the form within the limits.
    async fn apply<T>(
        &mut self,
        read: impl Future<Output = Result<T, MultipartError>>,
    ) -> Result<T, ApiError> {
        let deadline = (self.opened + self.pace.total_timeout()).min(Instant::now() + IDLE_TIMEOUT);
        let mut read = pin!(read);
        let result = loop {
            let begun = Instant::now();
            let window_end = begun + RATE_WINDOW.saturating_sub(self.waited);
            let result = timeout_at(deadline.min(window_end), &mut read).await;
            self.waited += begun.elapsed();
            self.check_rate()?;
            match result {
                Ok(result) => break result,
                Err(_) if Instant::now() >= deadline => return Err(self.pace.too_slow()),
                Err(_) => {}
            }
        };
        self.received.parsed.store(self.received.total(), Ordering::Relaxed);
        result.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(self.max_bytes),
            _ => ApiError::invalid("the upload is incomplete or not valid multipart/form-data"),
        })
    }

    /// Checks the rate at the end of a window, and starts the next one.
    fn check_rate(&mut self) -> Result<(), ApiError> {
        if self.waited < RATE_WINDOW {
            return Ok(());
        }
        let bytes = self.received.total() - self.before_window;
        if bytes < self.pace.rate() * RATE_WINDOW.as_secs() {
            return Err(self.pace.too_slow());
        }
        self.start_window();
        Ok(())
    }

    fn start_window(&mut self) {
        self.waited = Duration::ZERO;
        self.before_window = self.received.total();
    }
}

impl Received {
    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn unparsed(&self) -> u64 {
        self.total().saturating_sub(self.parsed.load(Ordering::Relaxed))
    }
}

/// A body that yields after each chunk, and fails if the parser buffers too much. The parser reads all available
/// chunks before it parses, and buffers them until it finds a header or an end: yielding makes it parse each chunk.
struct BoundedBody {
    body: BodyDataStream,
    received: Arc<Received>,
    must_yield: bool,
}

impl Stream for BoundedBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.must_yield) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.received.unparsed() > self.received.max_unparsed.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(io::Error::other("the form has a part without an end"))));
        }
        let polled = self.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.received.total.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.must_yield = true;
        }
        polled.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::http::header::CONTENT_TYPE;
    use proptest::{collection::vec, prelude::*, sample::Index};
    use vidlog_contract::Code;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// Splits a body at some places: a network delivers it in any chunks.
    fn split(body: &[u8], places: &[Index]) -> Vec<Bytes> {
        let mut places: Vec<_> =
            places.iter().map(|place| place.index(body.len() + 1)).chain([0, body.len()]).collect();
        places.sort_unstable();
        places.windows(2).map(|pair| Bytes::copy_from_slice(&body[pair[0]..pair[1]])).collect()
    }

    /// Reads all parts of a form of at most 1,000 bytes a file.
    async fn read_all(request: Request) -> Result<Vec<(String, Vec<u8>)>, ApiError> {
        let mut form = Form::open(request, 1000, Pace::Known).await?;
        let mut parts = Vec::new();
        while let Some(mut part) = form.next().await? {
            parts.push((part.name()?, part.read_small().await?.to_vec()));
        }
        Ok(parts)
    }

    /// Content that resembles the ends of parts, but does not contain one.
    fn contents() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            vec(any::<u8>(), 0..9),
            Just(b"\r\n".to_vec()),
            Just(b"\r\n--".to_vec()),
            Just(b"--boundary".to_vec()),
            Just(b"\n--boundary\r\n".to_vec()),
        ];
        vec(piece, 0..6).prop_map(|pieces| pieces.concat()).prop_filter("ends the part", |content| {
            let end = b"\r\n--boundary";
            // The content follows a line break.
            ![b"\r\n".as_slice(), content].concat().windows(end.len()).any(|window| window == end)
        })
    }

    proptest! {
        #[test]
        fn form_round_trips_in_any_chunks(
            parts in vec(("[a-z字 ;=]{0,5}", prop::option::of("[a-z字]{0,4}( name=|; name=x)?[a-z]{0,4}"), contents()), 0..5),
            places in vec(any::<Index>(), 0..12),
        ) {
            let mut body = Vec::new();
            for (name, file_name, content) in &parts {
                let file_name = file_name.as_ref().map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
                let head = format!("--boundary\r\nContent-Disposition: form-data{file_name}; name=\"{name}\"\r\n\r\n");
                body.extend([head.as_bytes(), content, b"\r\n"].concat());
            }
            body.extend(b"--boundary--\r\n");
            let (request, _) = request_with("boundary", split(&body, &places));
            let expected: Vec<_> = parts.into_iter().map(|(name, _, content)| (name, content)).collect();
            prop_assert_eq!(run(read_all(request)), Ok(expected));
        }

        #[test]
        fn truncated_form_is_an_error(content in contents(), end in any::<Index>(), places in vec(any::<Index>(), 0..4)) {
            let head = b"--boundary\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\n";
            let body = [head.as_slice(), &content, b"\r\n--boundary--"].concat();
            let (request, _) = request_with("boundary", split(&body[..end.index(body.len())], &places));
            prop_assert_eq!(run(read_all(request)).map_err(|error| error.code), Err(Code::InvalidParameter));
        }

        #[test]
        fn any_form_is_read_without_panic(
            pieces in vec(prop_oneof![
                vec(any::<u8>(), 0..30),
                Just(b"--boundary\r\n".to_vec()),
                Just(b"\r\n--boundary--".to_vec()),
                Just(b"\r\n\r\n".to_vec()),
                Just(b"Content-Disposition: form-data; name=\"".to_vec()),
            ], 0..8),
            places in vec(any::<Index>(), 0..4),
        ) {
            let (request, _) = request_with("boundary", split(&pieces.concat(), &places));
            if let Ok(parts) = run(read_all(request)) {
                prop_assert!(parts.iter().all(|(_, content)| content.len() <= pieces.concat().len()));
            }
        }
    }

    const HEAD: &str = "--b\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\n";

    /// A request with a chunked form, and the number of chunks that were read.
    fn request(chunks: Vec<Bytes>) -> (Request, Arc<AtomicUsize>) {
        request_with("b", chunks)
    }

    fn request_with(boundary: &str, chunks: Vec<Bytes>) -> (Request, Arc<AtomicUsize>) {
        let consumed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&consumed);
        let chunks = futures::stream::iter(chunks.into_iter().map(move |chunk| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(chunk)
        }));
        let request = Request::post("/")
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
            .body(Body::from_stream(chunks))
            .unwrap();
        (request, consumed)
    }

    fn chunks(head: &str, count: usize) -> Vec<Bytes> {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let head = Bytes::from(head.to_owned());
        std::iter::once(head).chain(std::iter::repeat_n(chunk, count)).collect()
    }

    #[tokio::test]
    async fn body_is_consumed_as_it_is_read() {
        let (request, consumed) = request(chunks(HEAD, 1000));
        let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        for read in 0..1000 {
            part.chunk().await.unwrap();
            assert!(consumed.load(Ordering::Relaxed) <= read + 3);
        }
    }

    #[tokio::test]
    async fn endless_header_is_cut_off() {
        for head in ["--b\r\nContent-Disposition: form-data; name=\"", "no boundary"] {
            let (request, consumed) = request(chunks(head, 1000));
            let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
            let error = form.next().await.err().unwrap();
            assert_eq!(error.code, Code::InvalidParameter);
            assert!(consumed.load(Ordering::Relaxed) < 30);
        }
    }

    #[tokio::test]
    async fn preamble_buffers_no_more_than_another_form() {
        let (endless, consumed) = request(chunks("no boundary", 1000));
        let mut form = Form::open(endless, u64::MAX, Pace::Preamble).await.unwrap();
        assert_eq!(form.next().await.err().unwrap().code, Code::InvalidParameter);
        // The head and 64 KB, and the chunk that exceeds the maximum.
        assert!(consumed.load(Ordering::Relaxed) <= 3);
        // Once the file begins, the upload has a slot, and a boundary may be far away.
        let (far, _) = request(chunks(HEAD, 3));
        let mut form = Form::open(far, u64::MAX, Pace::Preamble).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        part.set_pace(Pace::Anonymous);
        assert_eq!(part.limits.received.max_unparsed.load(Ordering::Relaxed), MAX_UNPARSED);
    }

    #[tokio::test]
    async fn small_parts_have_a_common_maximum_size() {
        let title = HEAD.replace("\"data\"", "\"title\"");
        let parts = format!("{title}{}\r\n", "x".repeat(FORM_BYTES / 2)).repeat(3);
        let (request, _) = request(vec![Bytes::from(parts + "--b--\r\n")]);
        let mut form = Form::open(request, u64::MAX, Pace::Preamble).await.unwrap();
        for _ in 0..2 {
            form.next().await.unwrap().unwrap().read_small().await.unwrap();
        }
        let third = form.next().await.unwrap().unwrap().read_small().await;
        assert_eq!(third.unwrap_err().code, Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn unknown_part_is_skipped() {
        let mut chunks = chunks(HEAD, 1000);
        chunks.push(Bytes::from(format!("\r\n{}small\r\n--b--\r\n", HEAD.replace("\"data\"", "\"title\""))));
        let (request, _) = request(chunks);
        let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
        form.next().await.unwrap().unwrap().skip().await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        assert_eq!(part.name().unwrap(), "title");
        assert_eq!(part.read_small().await.unwrap(), "small");
        drop(part);
        assert!(form.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn body_beyond_the_limit_is_too_large() {
        let (request, _) = request(chunks(HEAD, 1000));
        let mut form = Form::open(request, 1024, Pace::Known).await.unwrap();
        let part = form.next().await.unwrap().unwrap();
        assert_eq!(part.skip().await.unwrap_err().code, Code::PayloadTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_form_times_out() {
        let head = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(HEAD))]);
        let request = Request::post("/")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(head.chain(futures::stream::pending())))
            .unwrap();
        let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        assert_eq!(part.chunk().await.unwrap_err().code, Code::InvalidParameter);
    }

    /// Receives the file of a form whose chunks of 1 KB arrive at an interval. Returns after how many seconds the form
    /// fails, and its error.
    async fn receive_slowly(pace: Pace, interval: Duration) -> (u64, ApiError) {
        let chunks = futures::stream::repeat(Bytes::from(vec![b'x'; 1024])).then(move |chunk| async move {
            tokio::time::sleep(interval).await;
            Ok::<_, io::Error>(chunk)
        });
        let head = futures::stream::iter([Ok(Bytes::from(HEAD))]);
        let request = Request::post("/")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(head.chain(chunks)))
            .unwrap();
        let started = Instant::now();
        let mut form = Form::open(request, u64::MAX, Pace::Preamble).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        part.set_pace(pace);
        let error = part.skip().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidParameter);
        (started.elapsed().as_secs(), error)
    }

    #[tokio::test(start_paused = true)]
    async fn form_below_the_minimum_rate_ends_with_the_window() {
        let per_second = |rate: u32| Duration::from_secs(1) / rate;
        assert_eq!(receive_slowly(Pace::Known, per_second(7)).await.0, 30);
        assert_eq!(receive_slowly(Pace::Known, per_second(9)).await.0, 30 * 60);
        assert_eq!(receive_slowly(Pace::Anonymous, per_second(31)).await.0, 30);
        assert_eq!(receive_slowly(Pace::Anonymous, per_second(33)).await.0, 30 * 60);
        assert_eq!(receive_slowly(Pace::Preamble, per_second(100)).await.0, 10);
        assert!(receive_slowly(Pace::Anonymous, per_second(9)).await.1.message.contains("token first"));
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_small_parts_share_a_rate_window() {
        let part = Bytes::from("--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nx\r\n");
        let parts = futures::stream::repeat(part).then(|part| async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, io::Error>(part)
        });
        let request = Request::post("/")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(parts))
            .unwrap();
        let started = Instant::now();
        let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
        let error = loop {
            let next = async { form.next().await?.unwrap().skip().await };
            if let Err(error) = next.await {
                break error;
            }
        };
        assert_eq!((error.code, started.elapsed().as_secs()), (Code::InvalidParameter, 30));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_server_does_not_read_does_not_count() {
        let (request, _) = request(chunks(HEAD, 100));
        let mut form = Form::open(request, u64::MAX, Pace::Known).await.unwrap();
        let mut part = form.next().await.unwrap().unwrap();
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(15)).await;
            part.chunk().await.unwrap();
        }
    }

    #[tokio::test]
    async fn other_content_type_is_refused() {
        let request = Request::post("/").body(Body::from("token=a")).unwrap();
        let error = Form::open(request, 1024, Pace::Known).await.err().unwrap();
        assert_eq!(error.code, Code::InvalidParameter);
    }
}
