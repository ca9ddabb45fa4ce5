//! One connection: its requests, its deadlines, its end.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use metrics::counter;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tower::ServiceExt;

use super::{
    activity::{Activity, Overdue},
    body::{RequestBody, ResponseBody},
    metric_names::CONNECTIONS_CLOSED,
    open_connections::{Closer, Entry},
    stream::RecordedStream,
    timeouts::Timeouts,
};

/// Bytes that a connection buffers in each direction; also the maximum size of a request's head.
const MAX_BUFFER_BYTES: usize = 128 * 1024;
/// Bytes that are read after a refusal: more than the largest upload by default, as many clients send all of a body
/// before they read the response.
const MAX_LINGER_BYTES: usize = 256 * 1024 * 1024;
/// Size of the buffer for them.
const LINGER_BUFFER_BYTES: usize = 16 * 1024;
/// How long a client may pause while its refused request is read.
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reading goes on after a shutdown, or after the connection's place was given to another: shorter than
/// `EVICTION_TIMEOUT`.
const LINGER_AFTER_CLOSE: Duration = Duration::from_millis(500);

/// Serves one connection.
pub(super) struct Connection {
    /// Name of the server in the metrics.
    pub(super) server: &'static str,
    pub(super) router: Router,
    pub(super) timeouts: Timeouts,
    pub(super) entry: Entry,
}

/// How a connection ends.
enum End {
    /// By the client, or after a response.
    Closed,
    /// By the server, because the client is too slow.
    Overdue(Overdue),
    /// By the server, to make room for another connection.
    Aborted,
}

/// Whether a connection carries more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepAlive {
    /// It carries any number of requests.
    Yes,
    /// It is closed after the first.
    No,
}

impl Connection {
    /// Serves until either side closes the connection.
    pub(super) async fn serve(self, stream: TcpStream, keep_alive: KeepAlive) {
        let Closer { close: closer, abort } = self.entry.closer().clone();
        let activity = Activity::new(self.timeouts, self.entry);
        let router = self.router;
        let peer = stream.peer_addr().ok();
        let service = {
            let activity = activity.clone();
            service_fn(move |mut request: Request<Incoming>| {
                // Absent only if the client has gone already.
                if let Some(peer) = peer {
                    request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer));
                }
                Box::pin(respond(router.clone(), activity.clone(), request))
            })
        };
        let stream = RecordedStream { stream, activity: activity.clone() };
        let mut http = http1::Builder::new()
            .keep_alive(keep_alive == KeepAlive::Yes)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);

        let (mut close, mut aborted) = (pin!(closer.cancelled()), pin!(abort.cancelled()));
        let mut is_closing = false;
        let mut timer = pin!(sleep_until(Instant::now()));
        let end = poll_fn(|context| {
            if aborted.as_mut().poll(context).is_ready() {
                return Poll::Ready(End::Aborted);
            }
            if !is_closing && close.as_mut().poll(context).is_ready() {
                is_closing = true;
                Pin::new(&mut http).graceful_shutdown();
            }
            // An error is the client's, which has gone.
            if Pin::new(&mut http).poll(context).is_ready() {
                return Poll::Ready(End::Closed);
            }
            // Only the poll above changes the activity.
            let Some((deadline, overdue)) = activity.deadline() else {
                return Poll::Pending;
            };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            timer.as_mut().poll(context).map(|()| End::Overdue(overdue))
        })
        .await;

        let stream = http.into_parts().io.into_inner().stream;
        match end {
            End::Overdue(overdue) => close_overdue(&stream, overdue, self.server),
            End::Aborted => discard_unsent(&stream),
            End::Closed if activity.has_unread_input() => {
                let closed = async {
                    closer.cancelled().await;
                    sleep(LINGER_AFTER_CLOSE).await;
                };
                tokio::select! {
                    () = linger(stream, self.timeouts.linger) => {}
                    () = closed => {}
                    () = abort.cancelled() => {}
                }
            }
            End::Closed => {}
        }
    }
}

async fn respond(
    router: Router,
    activity: Activity,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    activity.request_began();
    let (parts, body) = request.into_parts();
    let (body, end) = RequestBody::new(body);
    let mut response = router.oneshot(Request::from_parts(parts, Body::new(body))).await?;
    if !end.is_reached() {
        activity.left_input_unread();
        // The rest of the body is in the way of another request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| ResponseBody::new(body, activity)))
}

fn close_overdue(stream: &TcpStream, overdue: Overdue, server: &'static str) {
    counter!(CONNECTIONS_CLOSED, "server" => server, "reason" => overdue.reason()).increment(1);
    if overdue == Overdue::Write {
        discard_unsent(stream);
    }
}

/// Makes the kernel discard unsent data when the stream is closed. Otherwise it goes on to offer it to the client.
fn discard_unsent(stream: &TcpStream) {
    _ = stream.set_zero_linger();
}

/// Reads and discards what a client still sends after the response, within limits.
///
/// If a socket is closed while data arrives, the client's side discards the response that it has not read yet. A proxy
/// then reports a failure of this server, and may stop using it for all clients.
async fn linger(mut stream: TcpStream, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut buffer = vec![0; LINGER_BUFFER_BYTES];
    let mut count = 0;
    while count < MAX_LINGER_BYTES {
        let until = deadline.min(Instant::now() + LINGER_IDLE_TIMEOUT);
        match timeout_at(until, stream.read(&mut buffer)).await {
            Ok(Ok(bytes)) if bytes > 0 => count += bytes,
            _ => return,
        }
    }
}
