"""Both ends of a plain TCP connection, and how each sees it end.

serve NAME PORT[xMEMBERS]…   answers on every port; MEMBERS sockets share the port by SO_REUSEPORT
call CHECK,HOST,PORT…        runs each check and prints what was seen, as one JSON list

A client's first line is `VERB ID`:
  hello    the server names itself, the caller's address and its port, and waits for the end
  trail    the server reads to the end of the client's direction, and only then answers
  first    the server ends its direction at once, and then counts what the client sends
  wait     the server says `ready` and notes how the connection ends
  hangup   the server says `ready` and resets the connection on the client's next byte
  ended    the server tells how connection ID ended
"""
import errno
import itertools
import json
import os
import random
import socket
import struct
import sys
import threading

PATIENCE = 10
BULK = 200_000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends RST


class Server:
    def __init__(self, name):
        self.name = name
        self.ends = {}
        self.changed = threading.Condition()

    def listen(self, port, members):
        for member in range(members):
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if members > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", port))
            listener.listen(128)
            threading.Thread(target=self.accept, args=(listener, member)).start()

    def accept(self, listener, member):
        while True:
            connection, address = listener.accept()
            threading.Thread(target=self.serve, args=(connection, address, member), daemon=True).start()

    def serve(self, connection, caller, member):
        with connection:
            connection.settimeout(60)
            try:
                verb, ident = read_line(connection).split()
            except (OSError, ValueError):
                return
            if verb == "hello":
                connection.sendall(f"{self.name} {member} {caller[0].removeprefix('::ffff:')} {caller[1]}\n".encode())
                drain(connection)
            elif verb == "trail":
                connection.sendall(f"{drain(connection)[1]}\n".encode() + b"y" * BULK)
            elif verb == "first":
                connection.sendall(b"go\n")
                connection.shutdown(socket.SHUT_WR)
                self.note(ident, drain(connection))
            elif verb == "wait":
                connection.sendall(b"ready\n")
                self.note(ident, drain(connection))
            elif verb == "hangup":
                connection.sendall(b"ready\n")
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif verb == "ended":
                with self.changed:
                    self.changed.wait_for(lambda: ident in self.ends, PATIENCE)
                    connection.sendall(f"{self.ends.get(ident, 'not at all')}\n".encode())

    def note(self, ident, end):
        with self.changed:
            self.ends[ident] = f"{end[0]} {end[1]}"
            self.changed.notify_all()


def read_line(connection):
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionAbortedError("closed")
        line += byte
    return line.decode().strip()


def drain(connection):
    """How the other side ended, and how many bytes came before."""
    got = 0
    try:
        while data := connection.recv(65536):
            got += len(data)
    except ConnectionResetError:
        return "rst", got
    return "fin", got


# A port for each connection, so that the agents' logs tell them apart by it.
PORTS = itertools.count(random.randrange(20_000, 30_000))


def connect(to):
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    while True:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind(("", next(PORTS)))
        except OSError:
            connection.close()
            continue
        try:
            connection.connect(to)
        except OSError:
            connection.close()
            raise
        return connection


class Client:
    def __init__(self, host, port):
        self.to = (host, int(port))
        self.ident = os.urandom(8).hex()
        self.source = None

    def open(self, verb):
        connection = connect(self.to)
        self.source = self.source or name_of(connection.getsockname())
        connection.sendall(f"{verb} {self.ident}\n".encode())
        return connection

    def ended(self, expected):
        with self.open("ended") as connection:
            end = read_line(connection)
        return "ok" if end == expected else f"the server saw: {end}"

    def connect(self):
        with connect(self.to):
            return "ok, connected"

    def hello(self):
        with self.open("hello") as connection:
            return f"ok {read_line(connection)}"

    def half_close_by_client(self):
        with self.open("trail") as connection:
            connection.sendall(b"x" * BULK)
            connection.shutdown(socket.SHUT_WR)
            count = read_line(connection)
            end, got = drain(connection)
        seen = (count, end, got)
        return "ok" if seen == (str(BULK), "fin", BULK) else f"{seen}"

    def half_close_by_server(self):
        with self.open("first") as connection:
            end = drain(connection)
            if end == ("rst", 0):
                raise ConnectionResetError
            if end != ("fin", 3):
                return f"before our bytes: {end}"
            connection.sendall(b"x" * BULK)
        return self.ended(f"fin {BULK}")

    def end_by_client(self):
        with self.open("wait") as connection:
            read_line(connection)
        return self.ended("fin 0")

    def reset_by_client(self):
        with self.open("wait") as connection:
            read_line(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return self.ended("rst 0")

    def reset_by_server(self):
        with self.open("hangup") as connection:
            read_line(connection)
            connection.sendall(b"x")
            end = drain(connection)
        return "ok" if end == ("rst", 0) else f"{end}"

    def group(self):
        members = set()
        for _ in range(64):
            with self.open("hello") as connection:
                members.add(read_line(connection).split()[1])
        return "ok" if len(members) > 1 else f"of the sockets that share the port only {members} answered"


def name_of(address):
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def check(order):
    name, host, port = order.split(",")
    client = Client(host, port)
    try:
        seen = getattr(client, name)()
    except ConnectionRefusedError:
        seen = "refused"
    except ConnectionResetError:
        seen = "reset"
    except BrokenPipeError:
        seen = "reset"
    except OSError as error:
        # A shutdown after a reset that no call has told of yet.
        reset = error.errno == errno.ENOTCONN
        seen = "reset" if reset else errno.errorcode.get(error.errno, "") or str(error)
    return {"seen": seen, "source": client.source}


if sys.argv[1] == "serve":
    server = Server(sys.argv[2])
    for port in sys.argv[3:]:
        number, _, members = port.partition("x")
        server.listen(int(number), int(members or 1))
else:
    print(json.dumps([check(order) for order in sys.argv[2:]]))
