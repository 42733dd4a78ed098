"""UDP sockets around a sans-IO core: drained in batches, flushed once a tick, one timer."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from coapgate.errors import StartError
from coapgate.logs import Seldom
from coapgate.model import Path

BATCH = 64
"""Datagrams taken from a socket before anything else gets its turn."""
MAX_DATAGRAM = 65535
"""Octets: no UDP datagram is longer."""
MIN_DELAY = 0.05
"""Seconds: nothing that a batch brings about is due any sooner, says `config`."""
PAUSE = 1.0
"""Seconds until a timer is tried again that raised something."""

_SO_MEMINFO = 55  # asm-generic/socket.h; the socket module does not know it
_MEMINFO = struct.Struct("8x4x4x4x4x4x4xI")  # of its numbers the ninth, SK_MEMINFO_DROPS

log = logging.getLogger(__name__)


class Core(Protocol):
    """What the sockets serve. Times are `loop.time()`, monotonic seconds."""

    outgoing: list[tuple[bytes, Path]]

    def receive_datagram(self, datagram: bytes, path: Path, now: float) -> None:
        """Take one datagram."""

    def begin(self) -> None:
        """A batch of datagrams follows."""

    def settle(self, now: float) -> None:
        """Act on what the batch, an answer or the time brought about."""

    def next_timer(self) -> float | None: ...

    def handle_timer(self, now: float) -> None: ...


class Udp:
    """The gateway's sockets; call `flush_soon` whenever the core may have something to send.

    What the core raises is a mistake of ours: it is logged, and costs a datagram or a delay.
    """

    def __init__(
        self,
        core: Core,
        receive_buffer: int,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._core = core
        self._receive_buffer = receive_buffer
        self._make_socket = make_socket
        self._sockets: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._flush_scheduled = False
        self._kernel_drops = 0
        self._seldom = Seldom()
        self.datagrams_received = 0
        self.datagrams_sent = 0
        self.send_errors: Counter[str] = Counter()
        """Datagrams that the kernel did not take, by the name of its error."""
        self.failures = 0
        """How often the core raised something, or a socket could not be read."""

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port that each socket is bound to."""
        return tuple(sock.getsockname()[:2] for sock in self._sockets)

    def can_reach(self, path: Path) -> bool:
        """Whether a path that an earlier process knew leads through one of the sockets now."""
        number, peer = path
        if number >= len(self._sockets):
            return False
        # An IPv4 address is a pair, an IPv6 one has flow information and a scope besides.
        return (len(peer) == 2) == (self._sockets[number].family == socket.AF_INET)

    def open(self, binds: tuple[tuple[str, int], ...]) -> None:
        """Bind every address; nothing is read yet. Raises StartError, with nothing left open."""
        self._loop = asyncio.get_running_loop()
        try:
            for host, port in binds:
                sock = _bind(host, port, self._receive_buffer, self._make_socket)
                self._sockets.append(sock)
        except StartError:
            self.close()
            raise

    def listen(self) -> None:
        """Begin to read: from now on the core is given datagrams."""
        for number, sock in enumerate(self._sockets):
            self._loop.add_reader(sock.fileno(), self._drain, number, sock)
        self._arm(math.inf)

    def close(self) -> None:
        """Send what is left and close the sockets; whatever comes after that goes nowhere."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
        self.flush()
        self._kernel_drops = self.kernel_drops()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def flush_soon(self) -> None:
        """Settle and send in this tick of the loop, after everything else that happens in it."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_now)

    def flush(self) -> None:
        """Send what there is to send, now."""
        outgoing, sockets = self._core.outgoing, self._sockets
        sent = len(outgoing)
        try:
            for datagram, (number, peer) in outgoing:
                try:
                    sockets[number].sendto(datagram, peer)
                except OSError as error:
                    # Lost, as datagrams may be: whoever misses it asks again.
                    sent -= 1
                    self.send_errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1
        finally:
            outgoing.clear()
        self.datagrams_sent += sent

    def kernel_drops(self) -> int:
        """Datagrams that the kernel threw away because a socket's buffer was full."""
        return self._kernel_drops + sum(map(_kernel_drops, self._sockets))

    def _drain(self, number: int, sock: socket.socket) -> None:
        core = self._core
        receive, receive_datagram = sock.recvfrom, core.receive_datagram
        now = self._loop.time()
        core.begin()
        received = 0
        while received < BATCH:
            try:
                datagram, peer = receive(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                self._fail("socket not read", now)
                break
            received += 1
            try:
                receive_datagram(datagram, (number, peer), now)
            except Exception:
                # The one boundary around the receive path: a mistake of ours costs a datagram.
                self._fail("datagram not handled", now)
        self.datagrams_received += received
        self._advance(now)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        if self._sockets:
            self._advance(self._loop.time())

    def _advance(self, now: float) -> None:
        self._settle(now)
        # While there is traffic the timer runs every MIN_DELAY at most, and so it is not looked
        # at for each batch: nothing can have become due before it.
        latest = now + MIN_DELAY
        if self._timer_at > latest:
            self._arm(latest)

    def _settle(self, now: float) -> None:
        try:
            self._core.settle(now)
        except Exception:
            self._fail("event not handled", now)
            self.flush_soon()  # for the events behind it
        if self._core.outgoing:
            self.flush()

    def _arm(self, latest: float) -> None:
        """See to it that the timer is not late; `latest` is when to look again at the latest."""
        due = self._core.next_timer()
        if due is None:
            return
        self._timer_at = min(due, latest)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self._loop.time()
        try:
            self._core.handle_timer(now)
        except Exception:
            self._fail("timer not handled", now)
            self._timer = self._loop.call_at(now + PAUSE, self._on_timer)
            self._timer_at = now  # so that no batch moves it
        self._settle(now)
        if self._timer is None:
            self._arm(math.inf)

    def _fail(self, message: str, now: float) -> None:
        self.failures += 1
        if count := self._seldom.count(message, now):
            log.exception(message, extra={"count": count})


def _kernel_drops(sock: socket.socket) -> int:
    with suppress(OSError):  # a kernel that does not tell
        drops: int
        (drops,) = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return drops
    return 0


def _bind(
    host: str, port: int, receive_buffer: int, make_socket: Callable[[int, int], socket.socket]
) -> socket.socket:
    """A non-blocking socket; `::` serves IPv4 too, or only that where IPv6 is off."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = make_socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        if host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            any_address = "0.0.0.0"  # noqa: S104 - asked for by `::`
            return _bind(any_address, port, receive_buffer, make_socket)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartError(
            f"cannot bind {where}: {(error.strerror or str(error)).lower()}",
            _BIND_HINTS.get(error.errno or 0, "see dtls.bind"),
        ) from error
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if granted < receive_buffer:
        log.warning(
            "receive buffer is smaller than asked for",
            extra={
                "granted": granted,
                "wanted": receive_buffer,
                "hint": "raise net.core.rmem_max, see deploy/90-coapgate.conf",
            },
        )
    return sock


_BIND_HINTS = {
    errno.EADDRINUSE: "another process has this port: stop it, or change dtls.bind; "
    "`[::]` takes IPv4 too",
    errno.EADDRNOTAVAIL: "this machine has no such address: change dtls.bind",
    errno.EACCES: "ports below 1024 need privileges: change dtls.bind",
    errno.EPERM: "ports below 1024 need privileges: change dtls.bind",
}
