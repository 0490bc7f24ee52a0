//! What answers say.

use crate::balance::Answer::{self, *};
use http::StatusCode;

#[test]
fn what_an_answer_says() {
    let check = |status: u16, grpc: bool, grpc_status: Option<u16>, expected: Answer| {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(Answer::of(status, grpc, grpc_status), expected, "{status} {grpc} {grpc_status:?}");
    };
    check(200, false, None, Good);
    check(404, false, None, Good);
    check(429, false, None, TooBusy);
    check(500, false, None, ServerError);
    check(503, false, None, ServerError);
    check(200, true, None, Open);
    check(200, true, Some(0), Good);
    check(200, true, Some(5), Good);
    check(200, true, Some(8), TooBusy);
    check(200, true, Some(14), ServerError);
    check(503, true, None, ServerError);
    check(429, true, None, TooBusy);
}
