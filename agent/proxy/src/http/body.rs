//! Bodies on their way upstream: the client's own stream (counted, remembered for a retry, teed to mirrors), a
//! remembered one, or a mirror's copy. Nothing is held back: each frame goes on as it comes.

use super::{filters, streams::Activity};
use crate::error::Reason;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    error::Error,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::sync::{Notify, mpsc};
use weft_core::{message, model::HeaderModifier};

/// A request whose body is larger than this is never sent twice.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Nor is one of which more than this was sent over HTTP/2 when the peer says that it did not look at it, where no policy asks
/// for retries.
pub(crate) const REFUSED_BYTES_MAX: usize = 16 * 1024;
/// How long a body is waited for that a failed try still holds.
const GIVE_BACK_MAX: Duration = Duration::from_secs(1);
/// Frames that a mirror may lag behind before it is cut.
pub(crate) const MIRROR_FRAMES_MAX: usize = 16;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The side that sends it failed.
    #[error(transparent)]
    Peer(#[from] hyper::Error),
    /// The rule's request timeout passed while it streamed.
    #[error("the request timeout passed")]
    Deadline,
    /// A mirror was too slow, or what it copies was given up.
    #[error("the copy was cut")]
    Cut,
}

/// One frame that can be sent more than once.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// The client's.
    Stream(ClientBody),
    /// What a try before has sent, and what it had not come to.
    Replay(VecDeque<Piece>, Option<ClientBody>),
    /// A mirror's copy.
    Copy(mpsc::Receiver<Piece>),
}

/// A client's body. A try that ends before it has taken all of it gives it back.
#[derive(Debug)]
pub(crate) struct ClientBody {
    /// Where it comes from; none once it was given back.
    body: Option<Incoming>,
    /// What is known about it so far, shared with the exchange.
    upload: Rc<Upload>,
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if self.upload.replay.borrow().is_some() && !self.upload.complete.get() {
            *self.upload.rest.borrow_mut() = self.body.take();
        }
        self.upload.given_back.notify_one();
    }
}

/// What is known about a client's body while it is sent.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    bytes: Cell<u64>,
    complete: Cell<bool>,
    /// Who waits until it is complete.
    waiting: RefCell<Option<Waker>>,
    failed: Cell<Option<Reason>>,
    replay: RefCell<Option<Replay>>,
    /// What of it a try that has ended did not take.
    rest: RefCell<Option<Incoming>>,
    given_back: Notify,
    activity: RefCell<Option<Rc<Activity>>>,
    trailers: RefCell<Option<TrailerRules>>,
    mirrors: RefCell<Vec<mpsc::Sender<Piece>>>,
}

/// What happens with a request's trailers where a rule has read its head: what a trailer may not have goes, and so does
/// whatever the rule's filters have decided of a header. A server that joins both must not find there what was taken away.
#[derive(Clone, Debug)]
pub(crate) struct TrailerRules {
    /// Of the rule, and of its backendRef.
    pub(crate) filters: [Option<Arc<HeaderModifier>>; 2],
    /// They come from somebody outside.
    pub(crate) distrusted: bool,
}

impl TrailerRules {
    fn apply(&self, trailers: &mut HeaderMap) {
        message::trailers(trailers);
        if self.distrusted {
            filters::distrust(trailers, false);
        }
        for modifier in self.filters.iter().flatten() {
            let HeaderModifier { set, add, remove } = &**modifier;
            for name in set.iter().chain(add).map(|(name, _)| name).chain(remove) {
                trailers.remove(name);
            }
        }
    }
}

#[derive(Debug)]
struct Replay {
    bytes: usize,
    bytes_max: usize,
    pieces: VecDeque<Piece>,
}

impl Upload {
    /// Bytes sent on so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Why there will be no more of it, if the client broke it off or sent what is not HTTP.
    pub(crate) fn failed(&self) -> Option<Reason> {
        self.failed.get()
    }

    /// Whether all of it has come; wakes the task when it has.
    pub(crate) fn is_complete(&self, cx: &Context<'_>) -> bool {
        if !self.complete.get() {
            self.waiting.replace(Some(cx.waker().clone()));
        }
        self.complete.get()
    }

    /// Remembers it from here on, up to so many bytes.
    pub(crate) fn remember(&self, bytes_max: usize) {
        *self.replay.borrow_mut() = Some(Replay { bytes: 0, bytes_max, pieces: VecDeque::new() });
    }

    /// Until a try that has failed lets go of it, which may come a moment after its failure.
    pub(crate) async fn given_back(&self) {
        let is_due = self.replay.borrow().is_some() && !self.complete.get() && self.rest.borrow().is_none();
        if is_due {
            let _ = tokio::time::timeout(GIVE_BACK_MAX, self.given_back.notified()).await;
        }
    }

    /// Its trailers are read as the rule says.
    pub(crate) fn filter_trailers(&self, rules: Option<TrailerRules>) {
        *self.trailers.borrow_mut() = rules;
    }

    /// Gives up what was remembered.
    pub(crate) fn forget(&self) {
        *self.replay.borrow_mut() = None;
    }

    /// Copies every further piece to `mirror`, which is cut when it lags behind.
    pub(crate) fn tee(&self, mirror: mpsc::Sender<Piece>) {
        self.mirrors.borrow_mut().push(mirror);
    }

    /// The whole of it once more, if all that was read of it is within the bound, and the rest was given back.
    pub(crate) fn again(self: &Rc<Self>) -> Option<RequestBody> {
        let replay = self.replay.borrow();
        let pieces = replay.as_ref()?.pieces.clone();
        if self.complete.get() {
            return Some(RequestBody::Replay(pieces, None));
        }
        let body = self.rest.borrow_mut().take()?;
        Some(RequestBody::Replay(pieces, Some(ClientBody { body: Some(body), upload: Rc::clone(self) })))
    }

    /// Tells of each piece that is sent on.
    pub(crate) fn tell(&self, activity: Option<Rc<Activity>>) {
        *self.activity.borrow_mut() = activity;
    }

    fn note(&self, piece: Piece) {
        if let Some(activity) = &*self.activity.borrow() {
            activity.moved();
        }
        if let Piece::Data(data) = &piece {
            self.bytes.set(self.bytes.get() + data.len() as u64);
        }
        // A slow mirror is cut; it never delays the request it copies.
        self.mirrors.borrow_mut().retain(|m| m.try_send(piece.clone()).is_ok());
        let mut replay = self.replay.borrow_mut();
        let Some(memory) = replay.as_mut() else { return };
        if let Piece::Data(data) = &piece {
            memory.bytes += data.len();
        }
        if memory.bytes > memory.bytes_max {
            *replay = None;
        } else {
            memory.pieces.push_back(piece);
        }
    }

    fn end(&self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        if !self.complete.replace(true) {
            self.mirrors.borrow_mut().retain(|m| {
                let _ = m.try_send(Piece::End);
                false
            });
        }
    }

    fn fail(&self, reason: Reason) {
        self.failed.set(Some(reason));
        self.mirrors.borrow_mut().clear();
    }
}

impl RequestBody {
    /// The client's body; `None` for the upload when there is nothing to come.
    pub(crate) fn new(body: Incoming) -> (Self, Option<Rc<Upload>>) {
        if body.is_end_stream() {
            return (Self::Empty, None);
        }
        let upload = Rc::new(Upload::default());
        (Self::Stream(ClientBody { body: Some(body), upload: Rc::clone(&upload) }), Some(upload))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream(client) => client.poll(cx),
            Self::Replay(pieces, rest) => match (pieces.pop_front(), rest) {
                (None, Some(client)) => client.poll(cx),
                (piece, _) => Poll::Ready(piece.and_then(into_frame).map(Ok)),
            },
            Self::Copy(pieces) => match ready!(pieces.poll_recv(cx)) {
                Some(piece) => Poll::Ready(into_frame(piece).map(Ok)),
                // The sender went away before the end: the copy must not look complete.
                None => Poll::Ready(Some(Err(BodyError::Cut))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(client) => client.body.as_ref().is_none_or(Body::is_end_stream),
            Self::Replay(pieces, rest) => pieces.is_empty() && rest.is_none(),
            Self::Copy(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(client) => client.body.as_ref().map_or_else(SizeHint::default, Body::size_hint),
            Self::Replay(pieces, None) => SizeHint::with_exact(pieces.iter().map(length).sum()),
            Self::Replay(_, Some(_)) => SizeHint::default(),
            Self::Copy(_) => SizeHint::default(),
        }
    }
}

impl ClientBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.body {
            Some(body) => poll_stream(body, &self.upload, cx),
            None => Poll::Ready(None),
        }
    }
}

fn poll_stream(
    body: &mut Incoming,
    upload: &Upload,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let next = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
        Some(Ok(mut frame)) => {
            if let Some(data) = frame.data_ref() {
                upload.note(Piece::Data(data.clone()));
            } else if let Some(trailers) = frame.trailers_mut() {
                message::keep_tokens(trailers);
                if let Some(rules) = &*upload.trailers.borrow() {
                    rules.apply(trailers);
                }
                upload.note(Piece::Trailers(trailers.clone()));
            }
            // A body of known length is not polled again after its last byte.
            if body.is_end_stream() {
                upload.end();
            }
            Some(Ok(frame))
        }
        Some(Err(e)) => {
            upload.fail(fault(&e));
            Some(Err(e.into()))
        }
        None => {
            upload.end();
            None
        }
    };
    Poll::Ready(next)
}

/// What a client's failed body means. hyper reports everything as a body error; what it wraps tells more: its decoder's
/// complaints are `InvalidInput` and `InvalidData`, an early end and a reset have kinds of their own.
fn fault(error: &hyper::Error) -> Reason {
    let mut causes = std::iter::successors(error.source(), |e| (*e).source());
    let malformed = causes.any(|cause| {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            // Our own library's verdict, such as more DATA than `content-length` (RFC 9113 §8.1.1).
            return h2.is_library();
        }
        cause.downcast_ref::<io::Error>().is_some_and(|e| {
            // TLS below reports a broken record or an alert as invalid data, too: that is no fault in HTTP.
            matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
                && !e.get_ref().is_some_and(|e| e.is::<tokio_rustls::rustls::Error>())
        })
    });
    if malformed || error.is_parse() { Reason::BadRequest } else { Reason::ClientGone }
}

fn into_frame(piece: Piece) -> Option<Frame<Bytes>> {
    match piece {
        Piece::Data(data) => Some(Frame::data(data)),
        Piece::Trailers(trailers) => Some(Frame::trailers(trailers)),
        Piece::End => None,
    }
}

fn length(piece: &Piece) -> u64 {
    match piece {
        Piece::Data(data) => data.len() as u64,
        Piece::Trailers(_) | Piece::End => 0,
    }
}
