//! POST publish/action.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Request, StatusCode, header::CONTENT_TYPE},
    response::Response,
};
use futures::{
    StreamExt, TryStreamExt,
    channel::mpsc::{self, UnboundedSender},
    future::BoxFuture,
    stream,
};
use object_store::{
    ObjectStore, ObjectStoreExt,
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
    throttle::{ThrottleConfig, ThrottledStore},
};
use tokio::{task::JoinHandle, time::timeout};
use tower::ServiceExt;
use vidlog_command_api::{
    config::CommandConfig,
    publisher::{AppendError, Appended, EventLog},
    router,
    state::CommandState,
    upload_slots::{SlotLimits, UploadSlots},
    username::account_key,
};
use vidlog_contract::Code;
use vidlog_events::{Envelope, Event, Stream, VideoEvent, VideoUploaded};
use vidlog_rate_limits::{RateLimitConfig, RateLimiter};

use crate::support::{Answer, Api, World, until};

const PATH: &str = "/douyin/publish/action/";
const MEGABYTE: usize = 1024 * 1024;

/// Builder of a multipart form.
#[derive(Clone, Default)]
struct Form {
    body: Vec<u8>,
    headers: Vec<(&'static str, String)>,
    query: String,
}

impl Form {
    fn part(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let file = if name == "data" { "; filename=\"a.mp4\"" } else { "" };
        let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice(content.as_ref());
        self.body.extend_from_slice(b"\r\n");
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn query(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self
    }

    fn request(&self, body: Body) -> Request<Body> {
        let mut request = Request::post(format!("{PATH}?{}", self.query))
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(body).unwrap()
    }

    async fn send(mut self, api: &Api) -> Answer {
        self.body.extend_from_slice(b"--b--\r\n");
        api.send(self.request(Body::from(self.body.clone()))).await
    }
}

fn token(api: &Api, user: i64) -> String {
    api.state.tokens.sign(user).unwrap()
}

/// A valid form with the token of user 7.
fn valid_form(api: &Api) -> Form {
    Form::default().part("token", token(api, 7)).part("title", "A title").part("data", "content")
}

async fn uploads(world: &World) -> Vec<VideoUploaded> {
    let uploaded = |event| match event {
        Event::Video(VideoEvent::VideoUploaded(uploaded)) => uploaded,
        event => panic!("{event:?}"),
    };
    let logged = world.log.read(Stream::Videos).await;
    logged.into_iter().map(|logged| uploaded(logged.envelope.event)).collect()
}

/// Keys of all objects in the store.
async fn stored(api: &Api) -> Vec<String> {
    let objects = api.state.objects.list(None);
    objects.map_ok(|object| object.location.to_string()).try_collect().await.unwrap()
}

async fn content(api: &Api, key: &str) -> Bytes {
    api.state.objects.get(&Path::from(key)).await.unwrap().bytes().await.unwrap()
}

#[tokio::test]
async fn parts_of_an_upload_may_come_in_any_order() {
    let (world, api) = World::with_api().await;
    let part = |form: Form, name: &str| match name {
        "token" => form.part(name, token(&api, 7)),
        "title" => form.part(name, "Ein schöner Tag 🎬"),
        _ => form.part(name, "content\r\n--not the end"),
    };
    for order in [["data", "token", "title"], ["token", "title", "data"], ["title", "data", "token"]] {
        let before = uploads(&world).await.len();
        let answer = order.into_iter().fold(Form::default(), part).send(&api).await;
        assert_eq!(answer.ok(), serde_json::json!({"status_code": 0, "status_msg": "ok"}));
        let logged = world.log.read(Stream::Videos).await;
        assert_eq!(logged.len(), before + 1);
        let logged = logged.into_iter().find(|logged| logged.position() == answer.position()).unwrap();
        let Event::Video(VideoEvent::VideoUploaded(uploaded)) = logged.envelope.event else { panic!() };
        assert_eq!((uploaded.author_id.get(), uploaded.title.reveal().as_str()), (7, "Ein schöner Tag 🎬"));
        assert!(uploaded.original_key.starts_with(&format!("originals/{}-", uploaded.video_id)));
        assert_eq!(content(&api, &uploaded.original_key).await, "content\r\n--not the end");
        assert!(world.marks("user:7").await.contains(&answer.position()));
    }
    assert_eq!(stored(&api).await.len(), 3);
}

#[tokio::test]
async fn part_name_is_not_taken_from_the_file_name() {
    let (world, api) = World::with_api().await;
    let with_head = |disposition: &str| {
        let mut form = title_and_token(&api);
        let part = format!("--b\r\nContent-Disposition: {disposition}\r\n\r\ncontent\r\n");
        form.body.extend_from_slice(part.as_bytes());
        form
    };
    let dispositions = [
        r#"form-data; filename="my name=x.mp4"; name="data""#,
        r#"form-data; filename="a; name=\"title\""; name="data""#,
        r#"FORM-DATA;FileName="x";NAME = data"#,
    ];
    for disposition in dispositions {
        with_head(disposition).send(&api).await.ok();
    }
    assert_eq!(uploads(&world).await.len(), dispositions.len());
    with_head(r#"form-data; name="data"#).send(&api).await.fails(Code::InvalidParameter);
    assert_eq!(stored(&api).await.len(), dispositions.len());
}

#[tokio::test]
async fn query_precedes_form_precedes_bearer_token() {
    let (world, api) = World::with_api().await;
    let form = Form::default().part("data", "a").part("title", "form");
    let query = format!("token={}&title=query", token(&api, 1));
    form.clone().part("token", token(&api, 2)).query(query).send(&api).await.ok();
    let bearer = |form: Form| form.header("authorization", format!("Bearer {}", token(&api, 3)));
    bearer(form.clone().part("token", token(&api, 4))).send(&api).await.ok();
    bearer(form).send(&api).await.ok();
    let mut seen: Vec<_> = uploads(&world)
        .await
        .into_iter()
        .map(|upload| (upload.author_id.get(), upload.title.reveal().clone()))
        .collect();
    seen.sort();
    let expected = [(1, "query"), (3, "form"), (4, "form")].map(|(id, title)| (id, title.to_owned()));
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn incomplete_form_leaves_no_object_behind() {
    let (world, api) = World::with_api().await;
    let data = Form::default().part("data", "content");
    let title = |title: &str| data.clone().part("title", title).part("token", token(&api, 7));
    let forms = [
        (data.clone().part("title", "t"), Code::Unauthenticated),
        (data.clone().part("title", "t").part("token", ""), Code::Unauthenticated),
        (data.clone().part("title", "t").part("token", "forged"), Code::Unauthenticated),
        (data.clone().part("token", token(&api, 7)), Code::InvalidParameter),
        (title(""), Code::InvalidParameter),
        (title(&"字".repeat(121)), Code::InvalidParameter),
        (title("a\0b"), Code::InvalidParameter),
        (title(&"x".repeat(65 * 1024)), Code::PayloadTooLarge),
        (Form::default().part("title", "t").part("token", token(&api, 7)), Code::InvalidParameter),
        (valid_form(&api).query("token=forged"), Code::Unauthenticated),
    ];
    for (form, code) in forms {
        form.send(&api).await.fails(code);
    }
    let empty = Form::default().part("token", token(&api, 7)).part("title", "t").part("data", "");
    empty.send(&api).await.fails(Code::InvalidParameter);
    let not_utf8 = data.part("title", [0xff]).part("token", token(&api, 7));
    not_utf8.send(&api).await.fails(Code::InvalidParameter);
    assert_eq!(stored(&api).await, [""; 0]);
    assert_eq!(uploads(&world).await, []);
    title_of_length(&api, 120).await.ok();
}

async fn title_of_length(api: &Api, length: usize) -> Answer {
    let form = Form::default().part("data", "content").part("token", token(api, 7));
    form.part("title", "字".repeat(length)).send(api).await
}

#[tokio::test]
async fn upload_with_large_content_length_is_not_read() {
    let (_world, api) = World::with_api().await;
    let length = MEGABYTE + 64 * 1024 + 1;
    let form = valid_form(&api).header("content-length", length.to_string());
    let endless = Body::from_stream(stream::pending::<io::Result<Bytes>>());
    let answer = timeout(Duration::from_secs(30), api.send(form.request(endless))).await.unwrap();
    answer.fails(Code::PayloadTooLarge);
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn upload_beyond_the_limit_leaves_no_object_behind() {
    let (_world, api) = World::with_api().await;
    let form = |size| Form::default().part("data", vec![b'x'; size]);
    let complete = |form: Form| form.part("token", token(&api, 7)).part("title", "t");
    complete(form(MEGABYTE + 1)).send(&api).await.fails(Code::PayloadTooLarge);
    form(2 * MEGABYTE).send(&api).await.fails(Code::PayloadTooLarge);
    assert_eq!(stored(&api).await, [""; 0]);
    complete(form(MEGABYTE)).send(&api).await.ok();
    assert_eq!(stored(&api).await.len(), 1);
}

#[tokio::test]
async fn disconnected_upload_leaves_no_object_behind() {
    let (_world, api) = World::with_api().await;
    let form = valid_form(&api);
    let begun = form.body[..form.body.len() - 4].to_vec();
    let pieces = [Ok(Bytes::from(begun)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
    api.send(form.request(Body::from_stream(stream::iter(pieces)))).await.fails(Code::InvalidParameter);
    assert_eq!(stored(&api).await, [""; 0]);
}

/// A form with a file of `megabytes` that is generated as it is consumed, and the number of chunks consumed.
fn large(form: &Form, megabytes: usize) -> (Request<Body>, Arc<AtomicUsize>) {
    let consumed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&consumed);
    let content = stream::iter(0..megabytes * 16).map(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Bytes::from(vec![b'x'; MEGABYTE / 16])
    });
    let begin = Form::default().part("data", "").body;
    let head = [form.body.as_slice(), &begin[..begin.len() - 2]].concat();
    let whole = stream::iter([Bytes::from(head)])
        .chain(content)
        .chain(stream::iter([Bytes::from("\r\n--b--\r\n")]))
        .map(Ok::<_, Infallible>);
    (form.request(Body::from_stream(whole)), consumed)
}

fn title_and_token(api: &Api) -> Form {
    Form::default().part("token", token(api, 7)).part("title", "t")
}

#[tokio::test]
async fn fifty_megabyte_upload_succeeds() {
    let (world, api) = World::with_api().await;
    let state = CommandState { max_upload_bytes: 50 * MEGABYTE as u64, ..api.state.clone() };
    let (request, _) = large(&title_and_token(&api), 50);
    let response = router(state).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let uploads = uploads(&world).await;
    let object = api.state.objects.head(&Path::from(uploads[0].original_key.as_str())).await.unwrap();
    assert_eq!(object.size, 50 * MEGABYTE as u64);
}

#[tokio::test]
async fn slow_object_store_slows_the_client_down() {
    let (_world, api) = World::with_api().await;
    let config = ThrottleConfig { wait_put_per_call: Duration::from_hours(1), ..ThrottleConfig::default() };
    let objects = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let state = CommandState { max_upload_bytes: u64::MAX, objects, ..api.state.clone() };
    let (request, consumed) = large(&title_and_token(&api), 200);
    assert!(timeout(Duration::from_secs(3), router(state).oneshot(request)).await.is_err());
    let megabytes = consumed.load(Ordering::SeqCst) / 16;
    assert!((10..=16).contains(&megabytes), "{megabytes} MB were consumed");
}

/// An upload whose client sends no more.
struct Stalled {
    sender: UnboundedSender<io::Result<Bytes>>,
    response: JoinHandle<Response>,
}

impl Stalled {
    /// Sends a form up to the file's first byte.
    fn start(state: &CommandState, form: &Form) -> Self {
        let (sender, body) = mpsc::unbounded();
        let begun =
            [&form.body, &b"--b\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\nx"[..]].concat();
        sender.unbounded_send(Ok(Bytes::from(begun))).unwrap();
        let call = router(state.clone()).oneshot(form.request(Body::from_stream(body)));
        Self { sender, response: tokio::spawn(async { call.await.unwrap() }) }
    }

    /// Sends more of the form.
    fn send(&self, bytes: impl Into<Bytes>) {
        self.sender.unbounded_send(Ok(bytes.into())).unwrap();
    }

    /// Breaks the connection.
    fn disconnect(&self) {
        self.sender.unbounded_send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
    }

    async fn response(self) -> Response {
        timeout(Duration::from_secs(30), self.response).await.unwrap().unwrap()
    }
}

fn with_slots(api: &Api, limits: SlotLimits) -> CommandState {
    CommandState { upload_slots: UploadSlots::new(limits), ..api.state.clone() }
}

const SLOTS: SlotLimits =
    SlotLimits { total: 64, per_user: 4, per_address: 64, anonymous: 16, anonymous_per_address: 16 };

fn user_form(api: &Api, user: i64) -> Form {
    Form::default().part("token", token(api, user)).part("title", "t")
}

/// Sends a whole form.
async fn upload(state: &CommandState, form: Form) -> Response {
    let body = [form.body.as_slice(), b"--b--\r\n"].concat();
    router(state.clone()).oneshot(form.request(Body::from(body))).await.unwrap()
}

async fn status_code(response: Response) -> i64 {
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice::<serde_json::Value>(&body).unwrap()["status_code"].as_i64().unwrap()
}

#[track_caller]
fn assert_retryable(response: &Response, status: StatusCode) {
    assert_eq!(response.status(), status);
    let seconds = response.headers()["retry-after"].to_str().unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 0);
}

/// Waits until a number of slots is taken.
async fn until_in_use(state: &CommandState, count: usize) {
    until("the slots are taken", async || state.upload_slots.in_use() == count).await;
}

#[tokio::test]
async fn uploads_of_a_user_are_bounded() {
    let (world, api) = World::with_api().await;
    let state = with_slots(&api, SLOTS);
    let stalled: Vec<_> = (0..4).map(|_| Stalled::start(&state, &user_form(&api, 7))).collect();
    until_in_use(&state, 4).await;
    let refused = upload(&state, user_form(&api, 7)).await;
    assert_retryable(&refused, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(status_code(refused).await, i64::from(Code::TooManyRequests.number()));
    // The token in the query refuses the upload before its body is read.
    let endless = Body::from_stream(stream::pending::<io::Result<Bytes>>());
    let request = Form::default().query(format!("token={}", token(&api, 7))).request(endless);
    let refused = timeout(Duration::from_secs(30), router(state.clone()).oneshot(request)).await.unwrap();
    assert_retryable(&refused.unwrap(), StatusCode::TOO_MANY_REQUESTS);
    // So does a file that precedes the token, and it leaves nothing behind.
    let late = Form::default().part("data", "content").part("token", token(&api, 7)).part("title", "t");
    assert_retryable(&upload(&state, late).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(stored(&api).await, [""; 0]);
    let other = user_form(&api, 8).part("data", "content");
    assert_eq!(upload(&state, other).await.status(), StatusCode::OK);
    stalled[0].disconnect();
    let form = user_form(&api, 7).part("data", "content");
    until("the slot is free", async || upload(&state, form.clone()).await.status() == StatusCode::OK).await;
    assert_eq!(uploads(&world).await.len(), 2);
}

#[tokio::test]
async fn anonymous_uploads_leave_slots_to_known_users() {
    let (world, api) = World::with_api().await;
    let state = with_slots(&api, SLOTS);
    let _stalled: Vec<_> = (0..64).map(|_| Stalled::start(&state, &Form::default())).collect();
    let file_first =
        || Form::default().part("data", "content").part("token", token(&api, 7)).part("title", "t");
    until_in_use(&state, 16).await;
    assert_retryable(&upload(&state, file_first()).await, StatusCode::SERVICE_UNAVAILABLE);
    let token_first = user_form(&api, 7).part("data", "content");
    assert_eq!(status_code(upload(&state, token_first).await).await, 0);
    assert_eq!(uploads(&world).await.len(), 1);
}

#[tokio::test]
async fn address_cannot_take_all_anonymous_slots() {
    let (_world, api) = World::with_api().await;
    let limits = RateLimiter::with_account_key(
        RateLimitConfig { trusted_hops: 1, ..RateLimitConfig::off() },
        &api.state.read_models,
        account_key,
    );
    let state = CommandState { limits, ..with_slots(&api, SlotLimits { anonymous_per_address: 4, ..SLOTS }) };
    let from = |address: &str, form: Form| form.header("x-forwarded-for", address);
    let _stalled: Vec<_> =
        (0..16).map(|_| Stalled::start(&state, &from("192.0.2.1", Form::default()))).collect();
    let file_first =
        || Form::default().part("data", "content").part("token", token(&api, 7)).part("title", "t");
    until_in_use(&state, 4).await;
    let refused = upload(&state, from("192.0.2.1", file_first())).await;
    assert_retryable(&refused, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(status_code(upload(&state, from("192.0.2.2", file_first())).await).await, 0);
}

/// The state with the slots of the default settings, behind a proxy that forwards addresses.
fn behind_proxy(api: &Api, max_upload_bytes: u64) -> CommandState {
    let config = CommandConfig {
        partitions: 1,
        replication: 1,
        command_mysql_connections: 1,
        max_upload_bytes,
        max_uploads: 64,
        max_uploads_per_user: 4,
    };
    let limits = RateLimiter::with_account_key(
        RateLimitConfig { trusted_hops: 1, ..RateLimitConfig::off() },
        &api.state.read_models,
        account_key,
    );
    CommandState { limits, max_upload_bytes, ..with_slots(api, SlotLimits::of(&config)) }
}

#[tokio::test]
async fn address_with_many_users_leaves_slots_to_others() {
    let (_world, api) = World::with_api().await;
    let state = behind_proxy(&api, api.state.max_upload_bytes);
    let from = |address: &str, form: Form| form.header("x-forwarded-for", address);
    let stalled: Vec<_> = (0..64)
        .map(|number| Stalled::start(&state, &from("192.0.2.1", user_form(&api, 100 + number / 4))))
        .collect();
    until("each upload has a slot or is refused", async || {
        let refused = stalled.iter().filter(|upload| upload.response.is_finished()).count();
        state.upload_slots.in_use() + refused == stalled.len()
    })
    .await;
    let form = |user| user_form(&api, user).part("data", "content");
    assert_eq!(status_code(upload(&state, from("192.0.2.2", form(7))).await).await, 0);
    let refused = upload(&state, from("192.0.2.1", form(8))).await;
    assert_retryable(&refused, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn large_anonymous_files_of_an_address_leave_room_to_others() {
    let (_world, api) = World::with_api().await;
    let state = behind_proxy(&api, 1000);
    let from = |address: &str, form: Form| form.header("x-forwarded-for", address);
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let upload = Stalled::start(&state, &from("192.0.2.1", Form::default()));
        // With the first byte, the largest file, and the start of another part.
        upload.send(
            [&[b'x'; 999], &b"\r\n--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n"[..]]
                .concat(),
        );
        stalled.push(upload);
    }
    until("all files are stored", async || stored(&api).await.len() == 4).await;
    let file_first = Form::default().part("data", "content").part("token", token(&api, 7)).part("title", "t");
    assert_eq!(status_code(upload(&state, from("192.0.2.2", file_first)).await).await, 0);
}

#[tokio::test]
async fn upload_whose_token_arrives_later_takes_a_slot_of_its_user() {
    let (_world, api) = World::with_api().await;
    let state = with_slots(&api, SlotLimits { per_user: 1, anonymous: 1, ..SLOTS });
    let late = Stalled::start(&state, &Form::default());
    let file_first = Form::default().part("data", "content").part("token", token(&api, 8)).part("title", "t");
    until_in_use(&state, 1).await;
    assert_retryable(&upload(&state, file_first.clone()).await, StatusCode::SERVICE_UNAVAILABLE);
    // The token, and another part whose end does not arrive.
    let mut token_form = Form { body: b"\r\n".to_vec(), ..Form::default() }.part("token", token(&api, 7));
    token_form.body.extend_from_slice(b"--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n");
    late.send(token_form.body);
    until("the anonymous slot is free", async || {
        upload(&state, file_first.clone()).await.status() == StatusCode::OK
    })
    .await;
    let second = upload(&state, user_form(&api, 7).part("data", "content")).await;
    assert_retryable(&second, StatusCode::TOO_MANY_REQUESTS);
    late.send("a title\r\n--b--\r\n");
    late.sender.close_channel();
    assert_eq!(status_code(late.response().await).await, 0);
    let third = upload(&state, user_form(&api, 7).part("data", "content")).await;
    assert_eq!(third.status(), StatusCode::OK);
}

/// A log whose appends panic.
struct PanickingLog;

impl EventLog for PanickingLog {
    fn append<'a>(&'a self, _: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>> {
        panic!("a bug")
    }
}

#[tokio::test]
async fn panic_releases_the_slot() {
    let (_world, api) = World::with_api().await;
    let slots = UploadSlots::new(SlotLimits { total: 1, ..SLOTS });
    let broken =
        CommandState { log: Arc::new(PanickingLog), upload_slots: slots.clone(), ..api.state.clone() };
    let form = user_form(&api, 7).part("data", "content");
    assert_eq!(upload(&broken, form.clone()).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let state = CommandState { upload_slots: slots, ..api.state.clone() };
    assert_eq!(status_code(upload(&state, form).await).await, 0);
}

#[tokio::test]
async fn all_uploads_together_are_bounded() {
    let (_world, api) = World::with_api().await;
    let state = with_slots(&api, SlotLimits { total: 0, ..SLOTS });
    assert_retryable(&upload(&state, valid_form(&api)).await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn upload_fails_while_the_object_store_is_unavailable() {
    let (world, api) = World::with_api().await;
    // No process can create a file there.
    let objects: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix("/proc").unwrap());
    let state = CommandState { objects, ..api.state.clone() };
    let mut form = valid_form(&api);
    form.body.extend_from_slice(b"--b--\r\n");
    let response = router(state).oneshot(form.request(Body::from(form.body.clone()))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(uploads(&world).await, []);
}

#[tokio::test]
async fn upload_retried_after_kafka_outage_publishes_once() {
    let (world, api) = World::with_api().await;
    let cut_off = world.api_without_log().await;
    let form = valid_form(&api).header("idempotency-key", "k");
    form.clone().send(&cut_off).await.fails(Code::Unavailable);
    let kept = stored(&api).await;
    assert_eq!(kept.len(), 1, "the outcome of the append is unknown");

    let first = form.clone().send(&api).await;
    let second = form.send(&api).await;
    assert_eq!((first.ok(), first.position()), (second.ok(), second.position()));
    let uploads = uploads(&world).await;
    assert_eq!((uploads.len(), &uploads[0].original_key), (1, &kept[0]));
    assert_eq!(stored(&api).await, kept, "the files of the retries are deleted");
}

#[tokio::test]
async fn retried_upload_needs_no_id() {
    let (world, api) = World::with_api().await;
    let form = valid_form(&api).header("idempotency-key", "k");
    let first = form.clone().send(&api).await;
    first.ok();
    let objects = stored(&api).await;
    api.state.ids.end_lease();
    let second = form.send(&api).await;
    assert_eq!(
        (first.text, first.headers["vidlog-position"].clone()),
        (second.text.clone(), second.headers["vidlog-position"].clone())
    );
    valid_form(&api).header("idempotency-key", "new").send(&api).await.fails(Code::Unavailable);
    valid_form(&api).send(&api).await.fails(Code::Unavailable);
    assert_eq!(stored(&api).await, objects);
    assert_eq!(uploads(&world).await.len(), 1);
}

#[tokio::test]
async fn body_that_is_not_multipart_is_refused() {
    let (_world, api) = World::with_api().await;
    let query = format!("{PATH}?token={}&title=t", token(&api, 7));
    let plain = |body: &'static str| Request::post(&query).body(Body::from(body)).unwrap();
    api.send(plain("data=content")).await.fails(Code::InvalidParameter);
    let request =
        Form::default().query(format!("token={}", token(&api, 7))).request(Body::from("--b\r\nnonsense"));
    api.send(request).await.fails(Code::InvalidParameter);
}
