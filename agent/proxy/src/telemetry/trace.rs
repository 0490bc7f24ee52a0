//! Trace context across the agent: what came in, what is decided, what goes upstream. Pure: no clock, no randomness,
//! no span is made here.
//!
//! W3C `traceparent`/`tracestate` (Trace Context level 2) and B3, single and multi, are read; upstream sees W3C plus
//! whatever form came in. `baggage` is never touched. The decision to record is made before anything is allocated:
//! the parent's flag, else a ratio over the trace id, so that every agent decides the same about one trace.

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};
use std::fmt;

/// `traceparent` (W3C).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate` (W3C).
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Length of a version 00 `traceparent`.
const PARENT_LEN: usize = 55;
/// The flag that says "recorded".
const FLAG_SAMPLED: u8 = 1;
/// The level 2 flag that says "the id is random". Handed on as it came.
const FLAG_RANDOM: u8 = 2;
/// `tracestate` longer than this is still passed on, but not copied into spans.
const STATE_MAX: usize = 8 * 1024;

/// 16 bytes, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// 8 bytes, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    /// From random bits; zero, which means "none", becomes 1.
    #[must_use]
    pub const fn new(bits: u128) -> Self {
        Self(if bits == 0 { 1 } else { bits })
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl SpanId {
    /// From random bits; zero, which means "none", becomes 1.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(if bits == 0 { 1 } else { bits })
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Random bits for one request: a new trace's id and our span's.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// For a trace id.
    pub trace: u128,
    /// For a span id.
    pub span: u64,
}

/// Who is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whether the flag of an incoming trace decides (`parentbased_*` of `OTEL_TRACES_SAMPLER`).
    parent_based: bool,
    /// Recorded when the low 56 bits of the trace id are below this, so that all agents agree.
    threshold: u64,
    /// Neither a flag nor a trace id from outside decides: whoever chooses the id would choose the decision.
    at_edge: bool,
}

impl Sampler {
    /// `ratio` from 0 (never) to 1 (always); anything outside is brought inside, NaN is never.
    #[must_use]
    pub fn new(ratio: f64, parent_based: bool) -> Self {
        let share = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
        // Exact for 0 and 1; between, a float has bits enough for a share. The cast saturates.
        Self { parent_based, threshold: (share * (1_u64 << 56) as f64) as u64, at_edge: false }
    }

    /// The same for requests from outside, of which nobody is to be believed.
    #[must_use]
    pub const fn at_edge(self) -> Self {
        Self { at_edge: true, ..self }
    }

    fn by_ratio(self, id: TraceId) -> bool {
        ((id.0 as u64) & ((1 << 56) - 1)) < self.threshold
    }

    fn decide(self, id: TraceId, parent: Option<bool>) -> bool {
        match parent {
            Some(sampled) if self.parent_based => sampled,
            _ => self.by_ratio(id),
        }
    }
}

/// What a request belongs to. Always has ids, so that logs do.
#[derive(Clone, Debug)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// Our span if it is recorded; else the one upstream sees as its parent.
    pub span_id: SpanId,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// Whether we record it.
    pub sampled: bool,
    /// `tracestate` of a recorded trace, for the spans. Upstream gets the header as it came.
    pub state: Option<HeaderValue>,
    /// [`FLAG_RANDOM`] as it came.
    random: u8,
    /// What becomes of the request's headers.
    carry: Carry,
}

/// What [`TraceContext::inject`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carry {
    /// Headers go on as they came: nothing of ours is recorded in between, or tracing is off.
    Keep,
    /// Our ids are written; `tracestate` stays, for it belongs to the same trace.
    Write,
    /// A new trace: also removes a `tracestate` that belongs to none (W3C: never parsed without a valid parent).
    Restart,
}

/// An incoming context of either form.
struct Incoming {
    trace_id: TraceId,
    span_id: SpanId,
    /// `None`: the caller leaves the decision to us (B3 without a state).
    sampled: Option<bool>,
    random: u8,
    w3c: bool,
}

impl TraceContext {
    /// Reads the headers and decides. `sampler` is `None` when tracing is off: then what came in passes untouched
    /// and nothing is added, since a flag "not recorded" would switch tracing off in the applications behind us.
    #[must_use]
    pub fn start(headers: &HeaderMap, draw: Draw, sampler: Option<Sampler>) -> Self {
        let incoming = w3c(headers).or_else(|| b3(headers));
        let trace_id = incoming.as_ref().map_or(TraceId::new(draw.trace), |i| i.trace_id);
        // A lone `b3: 0` denies without naming a trace.
        let flag = incoming.as_ref().map_or_else(|| b3_denied(headers).then_some(false), |i| i.sampled);
        let at_edge = sampler.is_some_and(|s| s.at_edge);
        let sampled = match sampler {
            Some(s) if at_edge => s.by_ratio(TraceId::new(draw.trace)),
            sampler => sampler.is_some_and(|s| s.decide(trace_id, flag)),
        };
        let parent = incoming.as_ref().map(|i| i.span_id);
        Self {
            trace_id,
            span_id: parent.filter(|_| !sampled).unwrap_or(SpanId::new(draw.span)),
            parent,
            sampled,
            state: if sampled && incoming.as_ref().is_some_and(|i| i.w3c) { state(headers) } else { None },
            random: incoming.as_ref().map_or(0, |i| i.random),
            carry: carry(sampler.is_some(), sampled || at_edge, incoming.as_ref()),
        }
    }

    /// The context of a span made under this one, e.g. one try.
    #[must_use]
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, parent: Some(self.span_id), ..self.clone() }
    }

    /// Writes what upstream must see. Safe to repeat for each try.
    pub fn inject(&self, headers: &mut HeaderMap) {
        match self.carry {
            Carry::Keep => return,
            Carry::Write => {}
            Carry::Restart => {
                headers.remove(TRACESTATE);
            }
        }
        headers.insert(TRACEPARENT, self.traceparent());
        if headers.contains_key(B3) {
            headers.insert(B3, self.b3());
        }
        if headers.contains_key(B3_TRACE) {
            self.inject_b3_multi(headers);
        }
    }

    /// The version 00 `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> HeaderValue {
        let mut text = [0; PARENT_LEN];
        text[..3].copy_from_slice(b"00-");
        hex(&mut text[3..35], self.trace_id.0);
        text[35] = b'-';
        hex(&mut text[36..52], self.span_id.0.into());
        text[52] = b'-';
        hex(&mut text[53..55], (u8::from(self.sampled) | self.random).into());
        ascii(&text)
    }

    fn b3(&self) -> HeaderValue {
        let mut text = [0; 51];
        hex(&mut text[..32], self.trace_id.0);
        text[32] = b'-';
        hex(&mut text[33..49], self.span_id.0.into());
        text[49] = b'-';
        text[50] = if self.sampled { b'1' } else { b'0' };
        ascii(&text)
    }

    fn inject_b3_multi(&self, headers: &mut HeaderMap) {
        let (mut trace, mut span) = ([0; 32], [0; 16]);
        hex(&mut trace, self.trace_id.0);
        hex(&mut span, self.span_id.0.into());
        headers.insert(B3_TRACE, ascii(&trace));
        headers.insert(B3_SPAN, ascii(&span));
        headers.insert(B3_SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
        headers.remove(B3_FLAGS);
        if let Entry::Occupied(mut parent) = headers.entry(B3_PARENT)
            && let Some(id) = self.parent
        {
            let mut text = [0; 16];
            hex(&mut text, id.0.into());
            parent.insert(ascii(&text));
        }
    }
}

/// `decided`: the decision is ours, and those behind us must see it.
const fn carry(on: bool, decided: bool, incoming: Option<&Incoming>) -> Carry {
    match incoming {
        _ if !on => Carry::Keep,
        None => Carry::Restart,
        // Not recorded here: the caller stays the parent of what is behind us, byte for byte.
        Some(i) if i.w3c && !decided => Carry::Keep,
        Some(i) if i.w3c => Carry::Write,
        Some(_) => Carry::Restart,
    }
}

/// The only header of that name. Two of them are nobody's context.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    all.next().is_none().then(|| first.as_bytes().trim_ascii())
}

fn w3c(headers: &HeaderMap) -> Option<Incoming> {
    let text = single(headers, &TRACEPARENT)?;
    // Version 00 has exactly 55 bytes; a later one may go on after another dash. ff is forbidden.
    let (head, rest) = text.split_at_checked(PARENT_LEN)?;
    let version = unhex(&head[..2])?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let length = rest.is_empty() || (version != 0 && rest[0] == b'-');
    if version == 0xff || !dashes || !length {
        return None;
    }
    let flags = unhex(&head[53..55])? as u8;
    Some(Incoming {
        trace_id: nonzero(unhex(&head[3..35])?).map(TraceId)?,
        span_id: nonzero(unhex(&head[36..52])?).map(|id| SpanId(id as u64))?,
        sampled: Some(flags & FLAG_SAMPLED != 0),
        random: flags & FLAG_RANDOM,
        w3c: true,
    })
}

fn b3(headers: &HeaderMap) -> Option<Incoming> {
    let (trace, span, state) = match single(headers, &B3) {
        Some(text) => {
            // {trace}-{span}[-{state}[-{parent}]]
            let mut parts = text.split(|b| *b == b'-');
            (parts.next()?, parts.next()?, parts.next())
        }
        None => {
            let debug = single(headers, &B3_FLAGS).filter(|f| *f == b"1").map(|_| b"d".as_slice());
            let state = debug.or_else(|| single(headers, &B3_SAMPLED));
            (single(headers, &B3_TRACE)?, single(headers, &B3_SPAN)?, state)
        }
    };
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    Some(Incoming {
        trace_id: nonzero(unhex_any_case(trace)?).map(TraceId)?,
        span_id: nonzero(unhex_any_case(span)?).map(|id| SpanId(id as u64))?,
        sampled: match state {
            Some(b"1" | b"d" | b"true") => Some(true),
            Some(b"0" | b"false") => Some(false),
            _ => None,
        },
        random: 0,
        w3c: false,
    })
}

fn b3_denied(headers: &HeaderMap) -> bool {
    single(headers, &B3) == Some(b"0") || single(headers, &B3_SAMPLED) == Some(b"0")
}

/// All `tracestate` headers as one list (W3C 3.3.1: they may be split).
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(TRACESTATE).iter();
    let first = all.next()?;
    let mut joined: Option<Vec<u8>> = None;
    for more in all {
        let list = joined.get_or_insert_with(|| first.as_bytes().to_vec());
        list.push(b',');
        list.extend_from_slice(more.as_bytes());
    }
    let value = match joined {
        Some(list) => HeaderValue::from_bytes(&list).ok()?,
        None => first.clone(),
    };
    (value.len() <= STATE_MAX).then_some(value)
}

fn nonzero(bits: u128) -> Option<u128> {
    (bits != 0).then_some(bits)
}

/// Lower-case hex only, as W3C demands. At most 32 digits.
fn unhex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |bits: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(bits << 4 | u128::from(value))
    })
}

/// B3 senders exist that write upper case.
fn unhex_any_case(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |bits: u128, digit| {
        char::from(*digit).to_digit(16).map(|value| bits << 4 | u128::from(value))
    })
}

/// The low digits of `bits`, filling `out`.
fn hex(out: &mut [u8], mut bits: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(bits & 15) as usize];
        bits >>= 4;
    }
}

fn ascii(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
