use super::*;
use proptest::prelude::*;

const DRAW: Draw = Draw { trace: 0xaa, span: 0xbb };
const T: &str = "0af7651916cd43dd8448eb211c80319c";
const P: &str = "b7ad6b7169203331";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

/// What upstream gets, sorted, `name: value`.
fn upstream(pairs: &[(&str, &str)], sampler: Option<Sampler>) -> (TraceContext, Vec<String>) {
    let mut map = headers(pairs);
    let context = TraceContext::start(&map, DRAW, sampler);
    context.inject(&mut map);
    let mut lines: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}: {}", String::from_utf8_lossy(v.as_bytes()))).collect();
    lines.sort();
    (context, lines)
}

fn check(pairs: &[(&str, &str)], sampler: Option<Sampler>, sampled: bool, want: &[&str]) {
    let (context, got) = upstream(pairs, sampler);
    assert_eq!(context.sampled, sampled, "{pairs:?}");
    assert_eq!(got, want, "{pairs:?}");
}

const NEW: &str = "traceparent: 00-000000000000000000000000000000aa-00000000000000bb-01";
const NEW_UNSAMPLED: &str = "traceparent: 00-000000000000000000000000000000aa-00000000000000bb-00";

fn always() -> Option<Sampler> {
    Some(Sampler::new(1.0, true))
}

fn never() -> Option<Sampler> {
    Some(Sampler::new(0.0, true))
}

#[test]
fn a_trace_starts_where_none_came_in() {
    check(&[], always(), true, &[NEW]);
    check(&[], never(), false, &[NEW_UNSAMPLED]);
    // Off: a flag "not recorded" would switch tracing off behind us.
    check(&[], None, false, &[]);
}

#[test]
fn the_parents_flag_decides() {
    let on = format!("00-{T}-{P}-01");
    let off = format!("00-{T}-{P}-00");
    let ours = format!("traceparent: 00-{T}-00000000000000bb-01");
    check(&[("traceparent", &on)], never(), true, &[&ours]);
    check(&[("traceparent", &off)], always(), false, &[&format!("traceparent: {off}")]);
    check(&[("traceparent", &on)], None, false, &[&format!("traceparent: {on}")]);
    check(&[("traceparent", &off)], Some(Sampler::new(1.0, false)), true, &[&ours]);
    check(&[("traceparent", &on)], Some(Sampler::new(0.0, false)), false, &[&format!("traceparent: {on}")]);
}

#[test]
fn state_and_baggage_pass_unless_the_trace_is_new() {
    let on = format!("00-{T}-{P}-03");
    let ours = format!("traceparent: 00-{T}-00000000000000bb-03");
    let sent = [("traceparent", &*on), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "k=v")];
    check(&sent, always(), true, &["baggage: k=v", &ours, "tracestate: a=1", "tracestate: b=2"]);
    let (context, _) = upstream(&sent, always());
    assert_eq!(context.state.unwrap(), "a=1,b=2");
    check(
        &[("traceparent", "bad"), ("tracestate", "a=1"), ("baggage", "k=v")],
        always(),
        true,
        &["baggage: k=v", NEW],
    );
}

#[test]
fn what_is_no_traceparent_starts_a_new_trace() {
    let cases = [
        String::new(),
        "00".into(),
        format!("ff-{T}-{P}-01"),
        format!("00-{T}-{P}-01-extra"),
        format!("00-{T}-{P}-01x"),
        format!("01-{T}-{P}-01x"),
        format!("00-{}-{P}-01", "0".repeat(32)),
        format!("00-{T}-{}-01", "0".repeat(16)),
        format!("00-{}-{P}-01", T.to_uppercase()),
        format!("00_{T}-{P}-01"),
        format!("00-{T}-{P}-0g"),
        format!("0{T}-{P}-01-----------------"),
    ];
    for case in cases {
        check(&[("traceparent", &case)], always(), true, &[NEW]);
    }
    let good = format!("00-{T}-{P}-01");
    check(&[("traceparent", &good), ("traceparent", &good)], always(), true, &[NEW]);
}

#[test]
fn a_later_version_is_read_and_answered_as_00() {
    let ours = format!("traceparent: 00-{T}-00000000000000bb-01");
    check(&[("traceparent", &format!("cc-{T}-{P}-01"))], always(), true, &[&ours]);
    check(&[("traceparent", &format!("cc-{T}-{P}-01-what-the-future"))], always(), true, &[&ours]);
}

#[test]
fn b3_is_read_and_written_beside_w3c() {
    let ours = format!("traceparent: 00-{T}-00000000000000bb-01");
    let b3 = format!("b3: {T}-00000000000000bb-1");
    check(&[("b3", &format!("{T}-{P}-1"))], never(), true, &[&b3, &ours]);
    check(&[("b3", &format!("{T}-{P}-d-{P}"))], never(), true, &[&b3, &ours]);
    check(&[("b3", &format!("{T}-{P}"))], always(), true, &[&b3, &ours]);
    // Not recorded: the caller's span stays the parent.
    let theirs = format!("traceparent: 00-{T}-{P}-00");
    check(&[("b3", &format!("{T}-{P}-0"))], always(), false, &[&format!("b3: {T}-{P}-0"), &theirs]);
    let short = "traceparent: 00-0000000000000000a3ce929d0e0e4736-00000000000000bb-01";
    let wide = "b3: 0000000000000000a3ce929d0e0e4736-00000000000000bb-1";
    check(&[("b3", &format!("A3CE929D0E0E4736-{P}-1"))], never(), true, &[wide, short]);
    let off = "b3: 000000000000000000000000000000aa-00000000000000bb-0";
    check(&[("b3", "0")], always(), false, &[off, NEW_UNSAMPLED]);
}

#[test]
fn b3_of_many_headers() {
    let sent = [
        ("x-b3-traceid", T),
        ("x-b3-spanid", P),
        ("x-b3-parentspanid", "00000000000000cc"),
        ("x-b3-sampled", "1"),
    ];
    check(
        &sent,
        never(),
        true,
        &[
            &format!("traceparent: 00-{T}-00000000000000bb-01"),
            &format!("x-b3-parentspanid: {P}"),
            "x-b3-sampled: 1",
            "x-b3-spanid: 00000000000000bb",
            &format!("x-b3-traceid: {T}"),
        ],
    );
    let debug = [("x-b3-traceid", T), ("x-b3-spanid", P), ("x-b3-flags", "1")];
    check(
        &debug,
        never(),
        true,
        &[
            &format!("traceparent: 00-{T}-00000000000000bb-01"),
            "x-b3-sampled: 1",
            "x-b3-spanid: 00000000000000bb",
            &format!("x-b3-traceid: {T}"),
        ],
    );
}

#[test]
fn w3c_wins_over_b3_and_both_tell_the_same() {
    let on = format!("00-{T}-{P}-01");
    check(
        &[("traceparent", &on), ("b3", "0")],
        never(),
        true,
        &[&format!("b3: {T}-00000000000000bb-1"), &format!("traceparent: 00-{T}-00000000000000bb-01")],
    );
}

#[test]
fn a_try_is_a_child() {
    let (context, _) = upstream(&[], always());
    let child = context.child(SpanId::new(0xcc));
    assert_eq!((child.parent, child.trace_id), (Some(context.span_id), context.trace_id));
    assert_eq!(child.traceparent(), "00-000000000000000000000000000000aa-00000000000000cc-01");
}

/// B7: neither the flag nor the trace id of somebody outside decides; those behind us see what was decided.
#[test]
fn a_client_outside_does_not_decide_what_is_recorded() {
    let zero = "00000000000000010000000000000000";
    let (never, always) = (Sampler::new(0.0, true).at_edge(), Sampler::new(1.0, true).at_edge());
    for id in [T, zero] {
        let said = format!("00-{id}-{P}-01");
        let (context, got) = upstream(&[("traceparent", &said)], Some(never));
        assert!(!context.sampled);
        assert_eq!(got, [format!("traceparent: 00-{id}-{P}-00")]);
        // By the id alone, this ratio would record the one with zeros at its end.
        let rarely = Sampler::new(1e-10, true).at_edge();
        let draw = Draw { trace: u128::MAX, span: 1 };
        assert!(
            !TraceContext::start(&headers(&[("traceparent", &said)]), draw, Some(rarely)).sampled,
            "{id}"
        );
    }
    let denied = format!("00-{T}-{P}-00");
    assert!(upstream(&[("traceparent", &denied)], Some(always)).0.sampled);
    // Without tracing of ours everything passes untouched.
    assert_eq!(upstream(&[("traceparent", &denied)], None).1, [format!("traceparent: {denied}")]);
}

proptest! {
    #[test]
    fn hostile_headers_never_hurt(
        values in prop::collection::vec((0_usize..9, prop::collection::vec(any::<u8>(), 0..80)), 0..6),
        ratio in any::<f64>(),
    ) {
        let names = [
            TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS,
            HeaderName::from_static("baggage"),
        ];
        let mut map = HeaderMap::new();
        for (name, value) in values {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(&names[name], value);
            }
        }
        let context = TraceContext::start(&map, DRAW, Some(Sampler::new(ratio, true)));
        context.inject(&mut map);
        let parsed = w3c(&map).expect("upstream always gets a valid parent");
        prop_assert_eq!(parsed.trace_id, context.trace_id);
    }

    #[test]
    fn what_is_injected_is_read_back(trace in any::<u128>(), span in any::<u64>(), ratio in 0.0..1.0_f64) {
        let draw = Draw { trace, span };
        let first = TraceContext::start(&HeaderMap::new(), draw, Some(Sampler::new(ratio, true)));
        let mut map = HeaderMap::new();
        first.inject(&mut map);
        let next = TraceContext::start(&map, DRAW, always());
        prop_assert_eq!(next.trace_id, first.trace_id);
        prop_assert_eq!(next.parent, Some(first.span_id));
        prop_assert_eq!(next.sampled, first.sampled);
    }

    #[test]
    fn all_agents_decide_alike_and_a_higher_ratio_records_more(trace in any::<u128>(), a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
        let id = TraceId::new(trace);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(!Sampler::new(low, false).by_ratio(id) || Sampler::new(high, false).by_ratio(id));
        prop_assert!(Sampler::new(1.0, false).by_ratio(id));
        prop_assert!(!Sampler::new(0.0, false).by_ratio(id));
    }
}
