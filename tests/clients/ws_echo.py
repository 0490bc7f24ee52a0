"""A WebSocket server and client on `websockets`.

server PORT         echoes
client URL COUNT    sends COUNT messages of growing size, checks each echo, then closes cleanly
"""
import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve


async def server(port):
    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async with serve(echo, "", port, max_size=None) as running:
        print("serving", flush=True)
        await running.serve_forever()


async def client(url, count):
    async with connect(url, max_size=None, proxy=None) as socket:
        for i in range(count):
            message = "x" * (i * 997)
            await socket.send(message)
            assert await socket.recv() == message, f"message {i}"
        await socket.ping()
    print(f"ok {count} messages")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(server(int(sys.argv[2])))
    else:
        asyncio.run(client(sys.argv[2], int(sys.argv[3])))
