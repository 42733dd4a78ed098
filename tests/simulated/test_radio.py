"""A device's socket, where nobody answers and where there is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from coapgate.simulated.radio import Radio


@pytest.fixture
def gateway() -> Iterator[socket.socket]:
    """Whoever the radio speaks to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(10)
        yield listening


def radio_to(gateway: socket.socket, local_address: tuple[str, int] | None = None) -> Radio:
    host, port = gateway.getsockname()
    return Radio(host, port, local_address, lambda: None)


async def test_what_is_sent_after_nobody_listened_is_not_lost(gateway: socket.socket) -> None:
    here = gateway.getsockname()
    radio = radio_to(gateway)
    radio.turn_on(await radio.look_up())
    gateway.close()

    radio.send([b"nobody is there"])  # the ICMP error comes back at once
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(here)
        again.settimeout(10)
        datagrams = [b"one", b"two"]
        radio.send(datagrams)

        assert [again.recv(100), again.recv(100)] == [b"one", b"two"]
    assert datagrams == []
    radio.turn_off()


async def test_an_error_of_an_earlier_datagram_ends_nothing(gateway: socket.socket) -> None:
    radio = radio_to(gateway)
    radio.turn_on(await radio.look_up())
    gateway.close()

    radio.send([b"nobody is there"])

    assert list(radio.receive()) == []
    assert radio.is_on
    radio.turn_off()


async def test_what_is_sent_while_it_is_off_is_gone(gateway: socket.socket) -> None:
    radio = radio_to(gateway)
    datagrams = [b"lost"]
    radio.send(datagrams)
    assert datagrams == []

    radio.turn_on(await radio.look_up())
    radio.send([b"heard"])

    assert gateway.recv(100) == b"heard"
    radio.turn_off()
    radio.turn_off()
    assert not radio.is_on
    assert radio.address is None


async def test_another_port_of_the_host_that_it_was_given(gateway: socket.socket) -> None:
    radio = radio_to(gateway, ("127.0.0.9", 0))
    place = await radio.look_up()
    radio.turn_on(place)
    first = radio.address

    radio.turn_to(place, None)

    assert first is not None
    assert radio.address is not None
    assert radio.address[0] == first[0] == "127.0.0.9"
    assert radio.address != first
    radio.turn_off()
