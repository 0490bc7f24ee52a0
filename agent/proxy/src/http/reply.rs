//! The body of an answer to the client: the upstream's, wrapped once to count bytes, to see its end, and to hold the
//! request timeout; or a few words of our own.

use super::{body::BodyError, exchange::Exchange};
use crate::{dial::Dial, error::Reason};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use weft_core::message;

/// A response body. The exchange ends when its last byte has been taken, or with it.
pub(crate) struct ResponseBody<D: Dial> {
    source: Source,
    exchange: Option<Box<Exchange<D>>>,
}

enum Source {
    Empty,
    Text(Bytes),
    Upstream(Incoming),
}

impl<D: Dial> ResponseBody<D> {
    /// The upstream's body.
    pub(crate) fn upstream(body: Incoming, exchange: Box<Exchange<D>>) -> Self {
        let mut this = Self { source: Source::Upstream(body), exchange: Some(exchange) };
        if this.is_end_stream() {
            this.end();
        }
        this
    }

    /// Our own; empty text is no body.
    pub(crate) fn own(text: Bytes, mut exchange: Box<Exchange<D>>) -> Self {
        exchange.response_bytes = text.len() as u64;
        exchange.complete();
        let source = if text.is_empty() { Source::Empty } else { Source::Text(text) };
        Self { source, exchange: None }
    }

    /// None, and the exchange goes on elsewhere (an upgrade).
    pub(crate) const fn empty() -> Self {
        Self { source: Source::Empty, exchange: None }
    }

    fn end(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.complete();
        }
    }

    fn broke(&mut self, reason: Reason) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.broke(reason);
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.exchange.as_mut().and_then(|e| e.deadline.as_mut());
        deadline.map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }

    fn note(&mut self, frame: &mut Frame<Bytes>) {
        let Some(exchange) = &mut self.exchange else { return };
        if let Some(activity) = &exchange.activity {
            activity.moved();
        }
        if let Some(data) = frame.data_ref() {
            exchange.response_bytes += data.len() as u64;
        } else if let Some(trailers) = frame.trailers_mut() {
            if !exchange.is_stream {
                message::keep_tokens(trailers);
            }
            exchange.grpc_status = super::respond::grpc_status(trailers).or(exchange.grpc_status);
            exchange.ended();
        }
    }
}

impl<D: Dial> Body for ResponseBody<D> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.poll_deadline(cx).is_ready() {
            self.source = Source::Empty;
            self.broke(Reason::Timeout);
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        let next = match &mut self.source {
            Source::Empty => None,
            Source::Text(_) => match std::mem::replace(&mut self.source, Source::Empty) {
                Source::Text(text) => Some(Ok(Frame::data(text))),
                _ => None,
            },
            Source::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        Poll::Ready(match next {
            Some(Ok(mut frame)) => {
                self.note(&mut frame);
                // A body of known length is not polled again after its last byte.
                if self.is_end_stream() {
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(e)) => {
                self.broke(Reason::UpstreamReset);
                Some(Err(e.into()))
            }
            None => {
                self.end();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(_) => false,
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

impl<D: Dial> Drop for ResponseBody<D> {
    fn drop(&mut self) {
        // Not taken to its end: the client went away, or the connection to it broke.
        self.broke(Reason::ClientGone);
    }
}
