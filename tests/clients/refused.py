"""refused.py HOST PORT: prints how a connection ends: data, refused, reset, or closed (which would be a lie)."""
import socket
import sys

try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
        connection.settimeout(10)
        print("data" if connection.recv(16) else "closed")
except ConnectionRefusedError:
    print("refused")
except ConnectionResetError:
    print("reset")
