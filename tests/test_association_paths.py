"""Paths in an association file: exactly as a socket gave them."""

from __future__ import annotations

import socket

import pytest

from coapgate.association_file import SocketPaths
from coapgate.config.values import MAX_BINDS
from coapgate.dtls.store_format import PATH_LENGTH
from tests.dtls.store_book import PATHS


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")],
)
def test_a_path_comes_back_as_the_socket_gave_it(
    family: socket.AddressFamily, address: str
) -> None:
    with (
        socket.socket(family, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET if address == "::" else family, socket.SOCK_DGRAM) as peer,
    ):
        ours.settimeout(5.0)
        if address == "::":
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            ours.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        peer.sendto(b"hello", ("127.0.0.1" if address == "::" else address, ours.getsockname()[1]))
        _, source = ours.recvfrom(100)

    packed = SocketPaths().pack((3, source))

    assert packed is not None
    assert len(packed) == PATH_LENGTH
    assert SocketPaths().unpack(packed) == (3, source)


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_every_kind_come_back(path: tuple[int, object]) -> None:
    packed = SocketPaths().pack(path)

    assert packed is not None
    assert SocketPaths().unpack(packed) == path


@pytest.mark.parametrize(
    "path",
    [
        (0, "/run/a.socket"),
        (0, ("device.example", 5684)),
        (0, ("192.0.2.7", 70000)),
        (0, ("2001:DB8::7", 5684, 0, 0)),
        (0, ("::1", 5684, 0, 1 << 32)),
        (0, ("::1", 5684, 7, 0)),
        (0, ("::1", 5684, -1, 0)),
        (256, ("192.0.2.7", 5684)),
        (-1, ("192.0.2.7", 5684)),
        (0, ("192.0.2.7", 5684, 0)),
        (0, (7, 5684)),
        (0, None),
    ],
)
def test_what_would_not_come_back_exactly_is_not_packed(path: tuple[int, object]) -> None:
    assert SocketPaths().pack(path) is None


# --- which socket it was, when the configuration has changed

BINDS = (("192.0.2.1", 5684), ("::", 5685), ("192.0.2.1", 5685))
IPV4, IPV6 = ("192.0.2.7", 40312), ("fe80::1", 1, 0, 3)


def moved(
    path: tuple[int, object], before: tuple[tuple[str, int], ...], now: tuple[tuple[str, int], ...]
) -> tuple[int, object]:
    packed = SocketPaths(before).pack(path)
    assert packed is not None
    assert len(packed) == PATH_LENGTH
    return SocketPaths(now).unpack(packed)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("peer", [IPV4, IPV6])
def test_a_path_leads_through_the_socket_of_the_same_address(number: int, peer: object) -> None:
    """Wherever `dtls.bind` lists it, and whatever else."""
    assert moved((number, peer), BINDS, BINDS) == (number, peer)
    assert moved((number, peer), BINDS, BINDS[::-1]) == (2 - number, peer)
    assert moved((number, peer), BINDS, (("192.0.2.9", 1), *BINDS)) == (number + 1, peer)


def test_a_path_through_an_address_that_is_bound_no_more_leads_nowhere() -> None:
    nowhere, peer = moved((1, IPV6), BINDS, BINDS[:1])

    assert peer == IPV6
    assert nowhere >= MAX_BINDS
    assert SocketPaths(BINDS[:1]).pack((nowhere, IPV6)) is None


def test_ports_that_the_system_chooses_are_told_apart_by_their_order() -> None:
    """They are other ones after the restart."""
    binds = (("127.0.0.1", 0),) * 3

    assert [moved((number, IPV4), binds, binds) for number in (0, 1, 2)] == [
        (0, IPV4),
        (1, IPV4),
        (2, IPV4),
    ]
    assert moved((2, IPV4), binds, binds[:2])[0] >= MAX_BINDS


@pytest.mark.parametrize("peer", [IPV4, IPV6])
def test_the_only_socket_of_all_may_be_bound_to_another_address(peer: object) -> None:
    """To all of them instead of one, or to the port that the system chose before."""
    assert moved((0, peer), BINDS[:1], BINDS[1:2]) == (0, peer)
    assert moved((0, peer), BINDS[:1], BINDS[1:])[0] >= MAX_BINDS
    assert moved((0, peer), BINDS[:2], BINDS[2:])[0] >= MAX_BINDS


def test_a_path_through_no_socket_is_not_packed() -> None:
    assert SocketPaths(BINDS).pack((3, IPV4)) is None
    assert SocketPaths(BINDS).pack((-1, IPV4)) is None
