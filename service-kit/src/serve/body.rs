//! Bodies that record their end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::activity::Activity;

/// Whether a request's body was read to its end.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyEnd(Arc<AtomicBool>);

impl BodyEnd {
    pub(super) fn is_reached(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request's body, which records whether it was read to its end.
pub(super) struct RequestBody {
    body: Incoming,
    end: BodyEnd,
}

impl RequestBody {
    pub(super) fn new(body: Incoming) -> (Self, BodyEnd) {
        let end = BodyEnd(Arc::new(AtomicBool::new(body.is_end_stream())));
        (Self { body, end: end.clone() }, end)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.end.0.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, which records when the server has taken all of it.
pub(super) struct ResponseBody {
    body: axum::body::Body,
    activity: Activity,
}

impl ResponseBody {
    pub(super) const fn new(body: axum::body::Body, activity: Activity) -> Self {
        Self { body, activity }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.activity.response_ended();
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
