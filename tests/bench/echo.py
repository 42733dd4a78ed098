"""The floor: a UDP server that drains its socket and sends everything back, and does nothing else.

    python -m tests.bench.echo        prints its port, and serves until it is ended

No gateway written in Python can answer for less: it is the gateway's own way of reading and
writing (`coapgate.udp`) without DTLS, CoAP or MQTT. All costs are compared as multiples of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

MAX_AT_ONCE = 64
"""Datagrams that are taken before any is answered, as the gateway does."""
RECEIVE_BUFFER = 4 << 20


def drain(server: socket.socket) -> None:
    """Take what has come, then send it all back."""
    came: list[tuple[bytes, tuple[str, int]]] = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(MAX_AT_ONCE):
            came.append(server.recvfrom(2048))
    for datagram, address in came:
        with contextlib.suppress(OSError):
            server.sendto(datagram, address)


async def serve(server: socket.socket) -> None:
    asyncio.get_running_loop().add_reader(server, drain, server)
    await asyncio.Event().wait()


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        server.setblocking(False)
        server.bind(("127.0.0.1", 0))
        print(f"port {server.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(server))


if __name__ == "__main__":
    main()
