"""A gRPC server and client on grpcio, without generated code: messages are bytes.

server PORT            serves test.Echo/{Unary,Stream}; every answer carries the trailer `x-served: yes`
client TARGET STREAMS MESSAGES   STREAMS bidirectional streams at once, MESSAGES each, every echo checked
unary TARGET COUNT     COUNT unary calls, trailers checked
"""
import concurrent.futures
import sys
import threading

import grpc

TRAILER = ("x-served", "yes")


def unary(request, context):
    context.set_trailing_metadata((TRAILER,))
    if request == b"fail":
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "asked to fail")
    return request


def stream(requests, context):
    context.set_trailing_metadata((TRAILER,))
    for request in requests:
        yield request


def serve(port):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_workers=256),
        handlers=(grpc.method_handlers_generic_handler("test.Echo", handlers),),
        options=(("grpc.max_concurrent_streams", 512),),
    )
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def one_stream(channel, number, messages):
    call = channel.stream_stream("/test.Echo/Stream")
    sent = [f"{number}-{i}".encode() * 10 for i in range(messages)]
    got = []
    answers = call(iter(sent), timeout=60)
    for answer in answers:
        got.append(answer)
    assert got == sent, f"stream {number}: sent {len(sent)}, got {len(got)}"
    assert answers.code() == grpc.StatusCode.OK
    assert TRAILER in [tuple(t) for t in answers.trailing_metadata()], answers.trailing_metadata()


def client(target, streams, messages):
    with grpc.insecure_channel(target) as channel:
        with concurrent.futures.ThreadPoolExecutor(max_workers=streams) as pool:
            barrier = threading.Barrier(streams)

            def run(number):
                barrier.wait()
                one_stream(channel, number, messages)

            list(pool.map(run, range(streams)))
    print(f"ok {streams} streams x {messages} messages")


def unary_calls(target, count):
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary("/test.Echo/Unary")
        for i in range(count):
            answer, details = call.with_call(f"m{i}".encode(), timeout=10)
            assert answer == f"m{i}".encode()
            assert TRAILER in [tuple(t) for t in details.trailing_metadata()], details.trailing_metadata()
        try:
            call(b"fail", timeout=10)
            raise SystemExit("the failing call succeeded")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
            assert error.details() == "asked to fail", error
    print(f"ok {count} calls")


if __name__ == "__main__":
    mode = sys.argv[1]
    if mode == "server":
        serve(int(sys.argv[2]))
    elif mode == "client":
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        unary_calls(sys.argv[2], int(sys.argv[3]))
