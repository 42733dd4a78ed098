"""Devices that come, go and lie, on a wire that does what it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from coapgate.dtls.client import Client
from coapgate.dtls.events import ChainProven, KeyProven
from coapgate.errors import Reason
from coapgate.model import Path
from tests.dtls.factory import psk_client, x509_client, x509_settings
from tests.fakes.link import (
    IDENTITY,
    KEY,
    Direction,
    Joined,
    Link,
    Verdict,
    accepted,
    losing,
)

MAX_HANDSHAKES = 4
MAX_ASSOCIATIONS = 3
PATHS: list[Path] = [(0, (f"192.0.2.{host}", port)) for host in (1, 2) for port in (1, 2, 3)]


class Chaos:
    """Three devices, two addresses, one server with little room, and a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        chance = self.chance
        handshake = x509_settings(max_datagram=chance.choice([228, 400, 1232])).handshake
        settings = replace(
            x509_settings(),
            handshake=handshake,
            max_associations=MAX_ASSOCIATIONS,
            max_handshakes=MAX_HANDSHAKES,
            handshakes_per_address=chance.choice([1, 2, 4]),
        )
        tables: list[dict[bytes, tuple[bytes, ...]]] = [
            {IDENTITY: (KEY,)},
            {IDENTITY: (b"x" * 16, KEY)},
            {},
        ]
        keys = chance.choice(tables)
        makers: list[Callable[..., Client]] = [psk_client, x509_client]
        self.link = Link(settings, fate=self._fate, keys=keys, judge=self._judge)
        self.seen: list[bytes] = []
        self.devices = [
            self.link.join(
                chance.choice(makers)(
                    max_datagram=chance.choice([200, 1232]),
                    max_fragment_length=chance.choice([None, 512]),
                ),
                chance.choice(PATHS),
            )
            for _ in range(3)
        ]

    def _fate(self, direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        self.seen.append(datagram)
        chosen = self.chance.random()
        if chosen < 0.1:
            return ()
        return (0.01,) if chosen < 0.8 else (0.5 * self.chance.random(), 0.02)

    def _judge(self, event: KeyProven | ChainProven) -> Verdict:
        return self.chance.choice([accepted(event), Reason.REVOKED, None])

    def step(self) -> None:
        for device in self.devices:
            self._act(device)
        self.link.run(3 * self.chance.random())
        self._decide_late()
        for _ in range(5):
            self._meddle()
        assert self.link.server.handshake_count <= MAX_HANDSHAKES
        assert self.link.server.association_count <= MAX_ASSOCIATIONS

    def _act(self, device: Joined) -> None:
        client, chosen = device.client, self.chance.random()
        if chosen < 0.15:
            client.connect(self.link.now)
        elif chosen < 0.3 and client.is_established:
            client.send(bytes(self.chance.randrange(50)))
        elif chosen < 0.36 and client.is_established:
            # Who has keys can seal anything.
            content_type = self.chance.choice([20, 21, 22, 23, 25, 0, 255])
            client._send_sealed(content_type, self.chance.randbytes(self.chance.randrange(60)))
        elif chosen < 0.4:
            client.close()

    def _decide_late(self) -> None:
        server = self.link.server
        for event in self.link.of_kind(KeyProven, ChainProven)[-3:]:
            assert isinstance(event, KeyProven | ChainProven)
            chosen = self.chance.random()
            if chosen < 0.2:
                verdict = accepted(event)
                assert verdict is not None
                server.accept(event.handshake, verdict, self.link.now)  # type: ignore[arg-type]
            elif chosen < 0.3:
                reason = self.chance.choice(list(Reason))
                server.refuse(event.handshake, reason, self.link.now)
        for association in list(server.associations):
            if self.chance.random() < 0.1:
                server.traffic.send(association, bytes(self.chance.randrange(1300)), self.link.now)

    def _meddle(self) -> None:
        """Somebody repeats a datagram, as it was or not, on one path or another."""
        if not self.seen:
            return
        octets = bytearray(self.chance.choice(self.seen))
        for _ in range(self.chance.choice([0, 0, 1, 1, 2, 5])):
            at, chosen = self.chance.randrange(len(octets) + 1), self.chance.random()
            if chosen < 0.5 and at < len(octets):
                octets[at] ^= 1 << self.chance.randrange(8)
            elif chosen < 0.7:
                del octets[at : at + self.chance.randrange(5)]
            else:
                octets[at:at] = self.chance.randbytes(self.chance.randrange(4))
        device = self.chance.choice(self.devices)
        if self.chance.random() < 0.7:
            self.link.inject(bytes(octets), self.chance.choice(PATHS))
        else:
            device.client.receive_datagram(bytes(octets), self.link.now)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_raises_and_a_good_device_gets_in_afterwards(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(30):
        chaos.step()

    link = chaos.link
    link.fate, link.judge, link.keys = losing(()), accepted, {IDENTITY: (KEY,)}
    link.run(200.0)
    assert link.server.handshake_count == 0
    late = link.join(psk_client(), (0, ("192.0.2.9", 9)))
    late.client.connect(link.now)
    link.run(1.0)
    assert late.client.is_established

    link.run(2 * link.server.settings.idle_timeout)
    server = link.server
    assert server.association_count == 0
    assert server.next_timer() is None
    assert not server.traffic.associations.by_path
    assert not server.traffic.associations.by_cid
    assert server.traffic.associations.final_flights_due_at is None
