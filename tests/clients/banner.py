"""banner.py HOST PORT PORT COUNT: connects COUNT times to each port in turn, and prints the 99th percentile of the time
until the server's greeting, in milliseconds, as JSON."""
import json
import socket
import sys
import time

host, ports, count = sys.argv[1], sys.argv[2:4], int(sys.argv[4])
times = {port: [] for port in ports}
for _ in range(count):
    for port in ports:
        start = time.perf_counter()
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            greeting = connection.recv(64)
            times[port].append((time.perf_counter() - start) * 1000)
            assert greeting.startswith(b"220 "), greeting
            connection.sendall(b"QUIT\r\n")
            connection.recv(64)
print(json.dumps({port: sorted(t)[int(len(t) * 0.99)] for port, t in times.items()}))
