"""Many devices in one thread: sockets, handshakes, requests, and who has what it waited for."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from coapgate.dtls.client import Client, ClientSettings, Credential, State
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options

RESPONSE_TIMEOUT = 2.0
"""Seconds until a request is sent again; doubles."""
MAX_REPEATS = 4
SWEEP_INTERVAL = 0.25
"""Seconds between two looks for whoever waits too long."""
_TOKEN_LENGTH = 4
_OCTET_STREAM = 42
"""A Content-Format that dtlsload says too."""


class LoadDevice:
    """One device; `due_at` is when something is done again because nothing came."""

    __slots__ = (
        "begun_at", "client", "connected_at", "due_at", "message_id", "plaintext", "repeats",
        "socket", "token",
    )  # fmt: skip

    def __init__(self, opened: socket.socket, client: Client | None, now: float) -> None:
        self.socket = opened
        self.client = client
        self.begun_at = self.connected_at = now
        self.due_at = 0.0
        self.repeats = 0
        self.message_id = int.from_bytes(os.urandom(2), "big")
        self.token = b""
        """Of the request under way; empty: none."""
        self.plaintext = b""


@dataclass(slots=True)
class Ended:
    """Who has what it waited for, or waits no more."""

    connected: list[LoadDevice] = field(default_factory=list)
    failed: list[LoadDevice] = field(default_factory=list)
    answered: list[LoadDevice] = field(default_factory=list)
    unanswered: list[LoadDevice] = field(default_factory=list)


class LoadDevices:
    """Devices of one run. `credentials` None: CoAP, or anything, without DTLS.

    `counts`: `connected`, `failed`, `answered` (2.xx), `wrong` (any other answer), `repeats`,
    `timeouts`; `latencies`, in seconds, of what was counted as done, from its beginning, or with
    `latency_from_connect` from the first hello.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        credentials: Callable[[int], Credential] | None,
        settings: ClientSettings,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.latency_from_connect = False
        self.handshakes = 0
        self.with_cid = 0
        self._credentials = credentials
        self._settings = settings
        self._spread: int = options.src_spread
        self._connected_only = options.mode == "hs"
        places = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_DGRAM)
        self._place = places[0]
        code = Code.PUT if options.method == "put" else Code.POST
        path = tuple(segment.encode() for segment in options.path.strip("/").split("/"))
        request = Message(
            Kind.CON,
            code,
            0,
            bytes(_TOKEN_LENGTH),
            request_options(path, content_format=_OCTET_STREAM),
            b"x" * options.payload,
        ).encode()
        self._head, self._tail = request[:2], request[4 + _TOKEN_LENGTH :]
        self._poll = select.epoll()
        self._devices: dict[int, LoadDevice] = {}
        self._busy: dict[int, LoadDevice] = {}
        self._swept_at = 0.0

    def connect(self, number: int) -> None:
        """Open the socket of a device and begin its handshake."""
        now = time.monotonic()
        family, kind, _, _, address = self._place
        opened = socket.socket(family, kind)
        opened.setblocking(False)
        if self._spread:
            opened.bind((f"127.0.0.{2 + number % self._spread}", 0))
        opened.connect(address)
        client = None
        if self._credentials is not None:
            client = Client(self._credentials(number), self._settings)
        device = LoadDevice(opened, client, now)
        fd = opened.fileno()
        self._devices[fd] = self._busy[fd] = device
        self._poll.register(fd, select.EPOLLIN)
        if client is not None:
            client.connect(now)
            self._flush(device)

    def leave(self, device: LoadDevice) -> None:
        """Say goodbye, if there is an association, and close the socket."""
        if device.client is not None:
            device.client.close()
            self._flush(device)
        fd = device.socket.fileno()
        self._busy.pop(fd, None)
        del self._devices[fd]
        device.socket.close()

    def close(self) -> None:
        for device in list(self._devices.values()):
            self.leave(device)
        self._poll.close()

    def ask(self, devices: Iterable[LoadDevice]) -> None:
        """Send a request from each; sealed first, then sent, so that they arrive together."""
        now = time.monotonic()
        asking = [device for device in devices if device.client is None or _is_in(device.client)]
        for device in asking:
            device.message_id = device.message_id + 1 & 0xFFFF
            device.token = os.urandom(_TOKEN_LENGTH)
            name = device.message_id.to_bytes(2, "big") + device.token
            device.plaintext = self._head + name + self._tail
            device.begun_at, device.due_at, device.repeats = now, now + RESPONSE_TIMEOUT, 0
            if device.client is not None:
                device.client.send(device.plaintext)
        for device in asking:
            self._busy[device.socket.fileno()] = device
            self._transmit(device)

    def poll(self, timeout: float) -> Ended:
        """Take what came within `timeout` seconds, and give up on who waited too long."""
        ended = Ended()
        if self._credentials is None:
            self._admit_without_dtls(ended)
        events = self._poll.poll(0 if ended.connected else timeout, 4096)
        now = time.monotonic()
        for fd, _ in events:
            device = self._devices.get(fd)
            if device is None:
                continue
            try:
                datagram = device.socket.recv(2048)
            except OSError:
                continue  # nothing, or an ICMP error: what was lost is sent again
            self._receive(device, datagram, now, ended)
        if now - self._swept_at > SWEEP_INTERVAL:
            self._swept_at = now
            self._sweep(now, ended)
        return ended

    def _admit_without_dtls(self, ended: Ended) -> None:
        for fd, device in tuple(self._busy.items()):
            if not device.due_at:
                del self._busy[fd]
                ended.connected.append(device)

    def _receive(self, device: LoadDevice, datagram: bytes, now: float, ended: Ended) -> None:
        client = device.client
        if client is None:
            if device.token:
                self._answered(device, now, ended, is_good=True)
            return
        was_in = _is_in(client)
        plaintexts = client.receive_datagram(datagram, now)
        if client.outgoing:
            self._flush(device)
        if not was_in and _is_in(client):
            self._connected(device, client, now, ended)
        for plaintext in plaintexts:
            self._receive_message(device, client, plaintext, now, ended)
        if client.state is State.CLOSED:
            self._give_up(device, "failed", ended.unanswered if was_in else ended.failed)

    def _receive_message(
        self, device: LoadDevice, client: Client, plaintext: bytes, now: float, ended: Ended
    ) -> None:
        """A response ends the request whose token it has, whatever the message around it."""
        if len(plaintext) < 4 or not _is_in(client):
            return
        kind, token_length, code = plaintext[0] >> 4 & 3, plaintext[0] & 15, plaintext[1]
        if kind == Kind.CON:
            reply = Kind.ACK if code else Kind.RST
            client.send(bytes((0x40 | reply << 4, 0)) + plaintext[2:4])
            self._flush(device)
        if device.token and kind == Kind.RST:
            self._answered(device, now, ended, is_good=False)
        elif code and device.token and plaintext[4 : 4 + token_length] == device.token:
            self._answered(device, now, ended, is_good=code >> 5 == 2)

    def _connected(self, device: LoadDevice, client: Client, now: float, ended: Ended) -> None:
        self.handshakes += 1
        self.with_cid += bool(client.sent_cid)
        self.counts["connected"] += 1
        if self._connected_only:
            self.latencies.append(now - device.connected_at)
        self._busy.pop(device.socket.fileno(), None)
        ended.connected.append(device)

    def _answered(self, device: LoadDevice, now: float, ended: Ended, *, is_good: bool) -> None:
        self.counts["answered" if is_good else "wrong"] += 1
        since = device.connected_at if self.latency_from_connect else device.begun_at
        self.latencies.append(now - since)
        device.token = b""
        self._busy.pop(device.socket.fileno(), None)
        ended.answered.append(device)

    def _sweep(self, now: float, ended: Ended) -> None:
        for device in tuple(self._busy.values()):
            client = device.client
            if client is not None and not _is_in(client):
                client.handle_timer(now)
                self._flush(device)
                if client.state is State.CLOSED:
                    self._give_up(device, "failed", ended.failed)
            elif device.token and now >= device.due_at:
                self._repeat(device, now, ended)

    def _repeat(self, device: LoadDevice, now: float, ended: Ended) -> None:
        if device.repeats == MAX_REPEATS:
            self._give_up(device, "timeouts", ended.unanswered)
            return
        device.repeats += 1
        self.counts["repeats"] += 1
        device.due_at = now + RESPONSE_TIMEOUT * 2**device.repeats
        if device.client is not None:
            device.client.send(device.plaintext)
        self._transmit(device)

    def _give_up(self, device: LoadDevice, why: str, among: list[LoadDevice]) -> None:
        self.counts[why] += 1
        device.token = b""
        self._busy.pop(device.socket.fileno(), None)
        among.append(device)

    def _transmit(self, device: LoadDevice) -> None:
        if device.client is None:
            _send(device.socket, device.plaintext)
        else:
            self._flush(device)

    def _flush(self, device: LoadDevice) -> None:
        assert device.client is not None
        for datagram in device.client.outgoing:
            _send(device.socket, datagram)
        device.client.outgoing.clear()


def _is_in(client: Client) -> bool:
    return client.state is State.ESTABLISHED


def _send(opened: socket.socket, datagram: bytes) -> None:
    # Full, or nobody there yet: it is as good as lost, and sent again.
    with contextlib.suppress(OSError):
        opened.send(datagram)
