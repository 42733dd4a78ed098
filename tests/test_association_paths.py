"""Paths in an association file: exactly as a socket gave them."""

from __future__ import annotations

import socket

import pytest

from coapgate.association_file import SocketPaths
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
        (256, ("192.0.2.7", 5684)),
        (-1, ("192.0.2.7", 5684)),
        (0, ("192.0.2.7", 5684, 0)),
        (0, (7, 5684)),
        (0, None),
    ],
)
def test_what_would_not_come_back_exactly_is_not_packed(path: tuple[int, object]) -> None:
    assert SocketPaths().pack(path) is None
