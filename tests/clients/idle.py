"""Connections that are opened, used once, left alone, and used again.

serve WS GRPC                     a WebSocket echo and a gRPC echo that send nothing of their own accord
use SECONDS EACH KIND,HOST,PORT…  EACH connections of each kind; prints, as JSON, how many of each worked after SECONDS

kinds: tcp (echo), http (keep-alive), late (one request whose answer takes as long), ws, grpc
"""
import asyncio
import concurrent.futures
import http.client
import json
import os
import queue
import select
import socket
import sys
import time

import grpc
from websockets.asyncio.server import serve as serve_websockets
from websockets.sync.client import connect as open_websocket

PATIENCE = 180


async def serve(ws_port, grpc_port):
    def stream(requests, context):
        yield from requests

    handlers = {"Stream": grpc.stream_stream_rpc_method_handler(stream)}
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_workers=256),
        handlers=(grpc.method_handlers_generic_handler("test.Echo", handlers),),
        # gRPC's own servers ask an idle client for a sign of life every two hours; the test wants silence.
        options=(("grpc.keepalive_time_ms", 2**31 - 1),),
    )
    server.add_insecure_port(f"[::]:{grpc_port}")
    server.start()

    async def echo(websocket):
        async for message in websocket:
            await websocket.send(message)

    async with serve_websockets(echo, "", ws_port, ping_interval=None) as running:
        print("serving", flush=True)
        await running.serve_forever()


class Tcp:
    def __init__(self, host, port):
        self.connection = socket.create_connection((host, port), timeout=PATIENCE)

    def use(self):
        self.connection.sendall(b"quiet")
        got = b""
        while len(got) < 5:
            part = self.connection.recv(5 - len(got))
            if not part:
                return "closed"
            got += part
        return "works" if got == b"quiet" else f"got {got}"


class Http:
    def __init__(self, host, port):
        self.connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        self.connection.connect()

    def use(self):
        # What was closed in order can be seen before it is used; a client that looks loses no request.
        connection = self.connection.sock
        if connection is None or (select.select([connection], [], [], 0)[0] and connection.recv(1) == b""):
            return "closed in order"
        self.connection.request("GET", "/")
        answer = self.connection.getresponse()
        answer.read()
        return "works" if answer.status == 200 else f"{answer.status}"


class Late:
    """The request is sent at once; its answer is read when the others are used again."""

    def __init__(self, host, port):
        self.connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        self.connection.request("GET", "/")
        self.uses = 0

    def use(self):
        self.uses += 1
        if self.uses == 1:
            return "works"
        answer = self.connection.getresponse()
        answer.read()
        return "works" if answer.status == 200 else f"{answer.status}"


class WebSocket:
    def __init__(self, host, port):
        self.websocket = open_websocket(f"ws://{host}:{port}/", ping_interval=None, proxy=None, open_timeout=PATIENCE)

    def use(self):
        self.websocket.send("quiet")
        answer = self.websocket.recv(timeout=PATIENCE)
        return "works" if answer == "quiet" else f"got {answer}"


class Grpc:
    def __init__(self, host, port):
        # A connection of its own for each stream.
        self.channel = grpc.insecure_channel(f"ipv4:{host}:{port}", options=(("grpc.use_local_subchannel_pool", 1),))
        self.requests = queue.Queue()
        self.answers = self.channel.stream_stream("/test.Echo/Stream")(iter(self.requests.get, None))

    def use(self):
        self.requests.put(b"quiet")
        answer = next(self.answers)
        return "works" if answer == b"quiet" else f"got {answer}"


KINDS = {"tcp": Tcp, "http": Http, "late": Late, "ws": WebSocket, "grpc": Grpc}


def used(connection):
    try:
        return connection.use()
    except Exception as error:  # whatever a client library makes of it is what is told
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def use(seconds, each, orders):
    connections = []
    for order in orders:
        kind, host, port = order.split(",")
        connections += [(order, KINDS[kind](host, int(port))) for _ in range(each)]
    first = {used(connection) for _, connection in connections}
    assert first == {"works"}, first
    print("open", file=sys.stderr, flush=True)
    time.sleep(seconds)
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(connections)) as pool:
        results = list(pool.map(lambda pair: (pair[0], used(pair[1])), connections))
    counts = {order: {} for order in orders}
    for order, result in results:
        counts[order][result] = counts[order].get(result, 0) + 1
    print(json.dumps([counts[order] for order in orders]), flush=True)


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2]), int(sys.argv[3])))
else:
    use(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    # Threads of client libraries that wait for ever keep no exit.
    sys.stdout.flush()
    os._exit(0)
