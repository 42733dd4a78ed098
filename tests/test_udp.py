"""Sockets around a core: real ones, on loopback."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from coapgate.association_file.paths import NOWHERE
from coapgate.errors import StartError
from coapgate.model import Path as PeerPath
from coapgate.udp import BATCH, MIN_DELAY, PAUSE, Udp
from tests.waiting import until

LOOPBACK = ("127.0.0.1", 0)
BUFFER = 65536
"""Every kernel grants it."""

HAS_IPV6 = Path("/proc/net/if_inet6").exists()


class Echo:
    """A core that answers each datagram on its path, and does what a datagram tells it to."""

    def __init__(self) -> None:
        self.outgoing: list[tuple[bytes, PeerPath]] = []
        self.received: list[tuple[bytes, PeerPath]] = []
        self.batches: list[int] = []
        """How many datagrams each batch had."""
        self.settled = 0
        self.handled: list[float] = []
        """When `handle_timer` was called."""
        self.due: float | None = None
        self.timers_asked = 0
        self.event_faults: list[Exception] = []
        """What the next calls of `settle` raise."""
        self.timer_faults: list[Exception] = []
        """What the next calls of `handle_timer` raise."""

    def begin(self) -> None:
        self.batches.append(0)

    def receive_datagram(self, datagram: bytes, path: PeerPath, now: float) -> None:
        self.batches[-1] += 1
        self.received.append((datagram, path))
        if datagram == b"bug":
            raise ValueError("a mistake of ours")
        if datagram.startswith(b"due in "):
            self.due = now + float(datagram[7:])
        self.outgoing.append((datagram, path))

    def settle(self, now: float) -> None:
        self.settled += 1
        if self.event_faults:
            raise self.event_faults.pop()

    def next_timer(self) -> float | None:
        self.timers_asked += 1
        return self.due

    def handle_timer(self, now: float) -> None:
        self.handled.append(now)
        if self.timer_faults:
            raise self.timer_faults.pop()
        if self.due is not None and now >= self.due:
            self.due = None
            self.outgoing += [(b"timer", path) for _, path in self.received[-1:]]


Open = Callable[..., Udp]


@pytest.fixture
def core() -> Echo:
    return Echo()


@pytest.fixture
async def open_udp(core: Echo) -> AsyncIterator[Open]:
    """Bind and serve: `open_udp(("127.0.0.1", 0), ...)`."""
    with ExitStack() as stack:

        def start(
            *binds: tuple[str, int],
            receive_buffer: int = BUFFER,
            make_socket: Callable[[int, int], socket.socket] = socket.socket,
        ) -> Udp:
            udp = Udp(core, receive_buffer, make_socket)
            udp.open(binds or (LOOPBACK,))
            stack.callback(udp.close)
            udp.listen()
            return udp

        yield start


@contextmanager
def device(udp: Udp, number: int = 0, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A socket that is connected to one of the gateway's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((host, udp.addresses[number][1]))
        yield sock


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, 65535)


async def ask(sock: socket.socket, datagram: bytes = b"hello") -> bytes:
    sock.send(datagram)
    return await receive(sock)


# --- paths


async def test_answers_leave_by_the_path_they_came_on(core: Echo, open_udp: Open) -> None:
    udp = open_udp(LOOPBACK, ("127.0.0.2", 0))
    assert [host for host, _ in udp.addresses] == ["127.0.0.1", "127.0.0.2"]

    for number, host in enumerate(("127.0.0.1", "127.0.0.2")):
        # Connected: what came from another address would not arrive.
        with device(udp, number, host) as sock:
            assert await ask(sock) == b"hello"
            assert core.received[-1] == (b"hello", (number, sock.getsockname()))

    assert (udp.datagrams_received, udp.datagrams_sent) == (2, 2)


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_a_path_of_an_earlier_process_is_reached_through_a_socket_of_its_family(
    open_udp: Open,
) -> None:
    udp = open_udp(LOOPBACK, ("::1", 0))
    ipv4, ipv6 = ("192.0.2.7", 40312), ("2001:db8::7", 5684, 0, 0)

    assert udp.can_reach((0, ipv4))
    assert udp.can_reach((1, ipv6))
    for path in ((0, ipv6), (1, ipv4), (2, ipv4), (NOWHERE, ipv4), (NOWHERE, ipv6)):
        assert not udp.can_reach(path)


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_one_socket_serves_ipv6_and_ipv4(core: Echo, open_udp: Open) -> None:
    udp = open_udp(("::", 0))

    for host in ("127.0.0.1", "::1"):
        with device(udp, host=host) as sock:
            assert await ask(sock) == b"hello"

    assert [path[1][0] for _, path in core.received] == ["::ffff:127.0.0.1", "::1"]


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_one_ipv6_address_leaves_ipv4_to_others(open_udp: Open) -> None:
    (_, port) = open_udp(("::1", 0)).addresses[0]

    open_udp(("127.0.0.1", port))


async def test_the_longest_datagram_arrives_whole(core: Echo, open_udp: Open) -> None:
    longest = 65507
    with device(open_udp()) as sock:
        sock.send(bytes(longest))
        await until(lambda: len(core.received) == 1, "it arrives")

    assert len(core.received[0][0]) == longest


# --- opening


def without_ipv6(family: int, kind: int) -> socket.socket:
    if family == socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    return socket.socket(family, kind)


async def test_where_ipv6_is_off_ipv4_is_served(open_udp: Open) -> None:
    udp = open_udp(("::", 0), make_socket=without_ipv6)

    assert udp.addresses[0][0] == "0.0.0.0"
    with device(udp) as sock:
        assert await ask(sock) == b"hello"


class Reserved(socket.socket):
    """A socket of somebody without privileges."""

    def bind(self, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("bind", "make_socket", "message", "hint"),
    [
        (("192.0.2.1", 5684), socket.socket, "192.0.2.1:5684: cannot assign", "no such address"),
        (("127.0.0.1", 684), Reserved, "127.0.0.1:684: permission denied", "privileges"),
        (("2001:db8::1", 5684), without_ipv6, "[2001:db8::1]:5684: address family", "dtls.bind"),
    ],
)
async def test_what_cannot_be_bound_is_told_with_a_hint(
    open_udp: Open,
    bind: tuple[str, int],
    make_socket: Callable[[int, int], socket.socket],
    message: str,
    hint: str,
) -> None:
    with pytest.raises(StartError) as refused:
        open_udp(bind, make_socket=make_socket)

    assert str(refused.value).startswith(f"cannot bind {message}")
    assert hint in refused.value.hint


async def test_a_port_in_use_leaves_nothing_open(core: Echo, open_udp: Open) -> None:
    taken = open_udp().addresses[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(LOOPBACK)
        free = probe.getsockname()

    with pytest.raises(StartError, match="address already in use") as refused:
        open_udp(free, taken)

    assert "another process" in refused.value.hint
    open_udp(free)


@pytest.mark.expects_warnings("receive buffer is smaller than asked for")
async def test_a_kernel_that_grants_too_little_is_warned_of(
    open_udp: Open, caplog: pytest.LogCaptureFixture
) -> None:
    open_udp(receive_buffer=1 << 30)

    (line,) = caplog.records
    assert vars(line)["wanted"] == 1 << 30
    assert vars(line)["granted"] < 1 << 30
    assert "net.core.rmem_max" in vars(line)["hint"]


# --- batches


async def test_no_socket_takes_more_than_a_batch_at_once(core: Echo, open_udp: Open) -> None:
    with device(open_udp()) as sock:
        for _ in range(BATCH + 10):
            sock.send(b"hello")
        await until(lambda: len(core.received) == BATCH + 10, "all arrive")

    assert core.batches[0] == BATCH
    assert sum(core.batches) == BATCH + 10
    assert core.settled == len(core.batches)


@pytest.mark.expects_warnings("datagram not handled")
async def test_a_mistake_of_ours_costs_one_datagram_and_one_line(
    core: Echo, open_udp: Open, caplog: pytest.LogCaptureFixture
) -> None:
    udp = open_udp()
    with device(udp) as sock:
        for datagram in (b"bug", b"bug", b"hello"):
            sock.send(datagram)
        assert await receive(sock) == b"hello"

    assert udp.failures == 2
    assert udp.datagrams_received == 3
    (line,) = caplog.records
    assert line.exc_info is not None


@pytest.mark.expects_warnings("event not handled")
async def test_a_mistake_with_an_event_holds_up_nothing(core: Echo, open_udp: Open) -> None:
    udp = open_udp()
    core.event_faults = [KeyError(), KeyError()]

    with device(udp) as sock:
        assert await ask(sock) == b"hello"
        await until(lambda: core.settled == 3, "what came behind is settled")

    assert udp.failures == 2


class Deaf(socket.socket):
    """A socket that cannot be read the first time."""

    is_deaf = True

    def recvfrom(self, *arguments: int) -> tuple[bytes, object]:
        if self.is_deaf:
            self.is_deaf = False
            raise OSError(errno.ENOMEM, "Out of memory")
        return super().recvfrom(*arguments)


@pytest.mark.expects_warnings("socket not read")
async def test_a_socket_that_could_not_be_read_is_read_again(open_udp: Open) -> None:
    udp = open_udp(make_socket=Deaf)

    with device(udp) as sock:
        assert await ask(sock) == b"hello"

    assert udp.failures == 1


# --- sending


async def test_several_calls_are_one_flush(core: Echo, open_udp: Open) -> None:
    udp = open_udp()
    with device(udp) as sock:
        await ask(sock)
        settled = core.settled
        core.outgoing.append((b"later", core.received[0][1]))

        for _ in range(3):
            udp.flush_soon()

        assert await receive(sock) == b"later"
    assert core.settled == settled + 1


async def test_what_the_kernel_does_not_take_is_counted_by_its_error(
    core: Echo, open_udp: Open
) -> None:
    udp = open_udp()
    with device(udp) as sock:
        core.outgoing = [
            (b"to nobody", (0, ("127.0.0.1", 0))),
            (bytes(70000), (0, sock.getsockname())),
            (b"hello", (0, sock.getsockname())),
        ]
        udp.flush_soon()
        assert await receive(sock) == b"hello"

    assert udp.send_errors == {"EINVAL": 1, "EMSGSIZE": 1}
    assert udp.datagrams_sent == 1
    assert core.outgoing == []


async def test_the_kernels_drops_are_counted(core: Echo, open_udp: Open) -> None:
    udp = open_udp()
    assert udp.kernel_drops() == 0

    with device(udp) as sock:
        for _ in range(200):
            sock.send(bytes(1000))
    dropped = udp.kernel_drops()
    await until(lambda: len(core.received) == 200 - dropped, "the others arrive")

    assert dropped > 0
    udp.close()
    assert udp.kernel_drops() == dropped


class Mute(socket.socket):
    """A socket of a kernel that tells nothing about its memory."""

    def getsockopt(self, *arguments: int) -> int:  # type: ignore[override]
        if len(arguments) == 3:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(*arguments)


async def test_a_kernel_that_does_not_tell_dropped_nothing(open_udp: Open) -> None:
    assert open_udp(make_socket=Mute).kernel_drops() == 0


# --- time


async def test_the_timer_is_called_when_it_is_due(core: Echo, open_udp: Open) -> None:
    with device(open_udp()) as sock:
        await ask(sock, b"due in 1000")
        due = asyncio.get_running_loop().time() + 0.2
        # Due earlier than what the timer was set to.
        await ask(sock, b"due in 0.2")
        assert await receive(sock) == b"timer"

    assert core.handled[-1] >= due
    assert core.due is None


async def test_the_timer_is_not_looked_at_for_every_batch(core: Echo, open_udp: Open) -> None:
    with device(open_udp()) as sock:
        await ask(sock, b"due in 1000")
        started_at = asyncio.get_running_loop().time()
        for _ in range(100):
            await ask(sock)
        lasted = asyncio.get_running_loop().time() - started_at

    assert core.timers_asked <= 4 + 2 * lasted / MIN_DELAY
    assert len(core.batches) == 101


async def test_nothing_wakes_up_an_idle_gateway(core: Echo, open_udp: Open) -> None:
    core.due = asyncio.get_running_loop().time() + 1000
    with device(open_udp()) as sock:
        await ask(sock)
        await until(lambda: len(core.handled) == 1, "the timer looks once more")
        asked = core.timers_asked
        loop = asyncio.get_running_loop()
        quiet = loop.create_future()
        loop.call_later(4 * MIN_DELAY, quiet.set_result, None)
        await quiet

    assert core.timers_asked == asked
    assert len(core.handled) == 1


@pytest.mark.expects_warnings("timer not handled")
async def test_a_timer_that_fails_is_tried_again_after_a_while(core: Echo, open_udp: Open) -> None:
    udp = open_udp()
    with device(udp) as sock:
        core.timer_faults.append(ValueError())
        await ask(sock, b"due in 0")
        await until(lambda: udp.failures == 1, "it fails")
        # It is due, but neither batches nor the clock make it come sooner.
        for _ in range(20):
            assert await ask(sock) == b"hello"
        assert len(core.handled) == 1

        assert await receive(sock) == b"timer"

    assert core.handled[1] - core.handled[0] >= PAUSE
    assert udp.failures == 1


# --- closing


async def test_closing_sends_what_is_left(core: Echo, open_udp: Open) -> None:
    udp = open_udp()
    with device(udp) as sock:
        core.outgoing.append((b"goodbye", (0, sock.getsockname())))
        udp.close()
        assert await receive(sock) == b"goodbye"

    assert udp.addresses == ()


async def test_after_the_end_nothing_happens(core: Echo, open_udp: Open) -> None:
    core.due = asyncio.get_running_loop().time()
    udp = open_udp()
    udp.flush_soon()

    udp.close()
    udp.flush_soon()
    for _ in range(5):
        await asyncio.sleep(0)

    assert (core.settled, core.handled) == (0, [])
    udp.close()  # once more does no harm
