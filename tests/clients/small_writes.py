"""Many connections that write single bytes, to a server that reads slowly and says at the end how much it got.

server PORT
client HOST PORT CONNECTIONS WRITES   WRITES one-byte writes on each connection
"""
import asyncio
import socket
import sys


async def serve(port):
    async def count(reader, writer):
        got = 0
        while data := await reader.read(512):
            got += len(data)
            # Slow: gives way to every other connection between two small reads.
            await asyncio.sleep(0)
        writer.write(f"{got}\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(count, "0.0.0.0", port, limit=1024)
    print("serving", flush=True)
    async with server:
        await server.serve_forever()


async def one(host, port, writes):
    loop = asyncio.get_running_loop()
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        for i in range(writes):
            try:
                connection.send(b"x")
            except BlockingIOError:
                await loop.sock_sendall(connection, b"x")
            if i % 50 == 0:
                await asyncio.sleep(0)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := await asyncio.wait_for(loop.sock_recv(connection, 64), 120):
            answer += data
    assert answer == f"{writes}\n".encode(), (answer, writes)
    return writes


async def client(host, port, connections, writes):
    done = await asyncio.gather(*(one(host, port, writes) for _ in range(connections)))
    print(f"ok {sum(done)} bytes")


if sys.argv[1] == "server":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(client(sys.argv[2], *(int(a) for a in sys.argv[3:6])))
