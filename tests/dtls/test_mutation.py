"""Every octet of every client message of a good handshake, flipped: no success, and no harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.client import Client
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.records import ContentType, encode, split
from coapgate.dtls.server import Server
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path
from tests.dtls.factory import psk_client, x509_client, x509_settings
from tests.fakes.link import KEY

PATH: Path = (0, ("192.0.2.1", 49152))
OTHER: Path = (0, ("192.0.2.2", 49152))
DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")
SETTINGS = replace(x509_settings(), ecdhe_burst=100_000)
MAKE: dict[str, Callable[[], Client]] = {"psk": psk_client, "ecdhe": x509_client}


def deterministic() -> Callable[[int], bytes]:
    """The server's random octets, the same for each handshake of a test."""
    counter = iter(range(1, 1_000_000))
    return lambda length: bytes([next(counter) % 251]) * length


@dataclass(slots=True)
class Run:
    """A handshake whose client datagrams pass through `change`."""

    server: Server = field(
        default_factory=lambda: Server(SETTINGS, lambda a, p, now: None, deterministic())
    )
    proofs: int = 0

    def handshake(
        self, client: Client, change: Callable[[int, bytes], bytes], path: Path = PATH
    ) -> None:
        """One attempt, without any repetition."""
        client.connect(0.0)
        number = 0
        while client.outgoing:
            sent, client.outgoing[:] = list(client.outgoing), []
            for datagram in sent:
                self.server.receive_datagram(change(number, datagram), path, 0.0)
                number += 1
            self._answer()
            for datagram, _ in self.server.outgoing:
                client.receive_datagram(datagram, 0.0)
            self.server.outgoing.clear()

    def _answer(self) -> None:
        while self.server.events:
            match self.server.events.popleft():
                case KeysRequested(handshake, identity):
                    keys = (Candidate(KEY, None),) if identity == b"sensor-1" else ()
                    self.server.offer_keys(handshake, keys, 0.0)
                case KeyProven(handshake) | ChainProven(handshake):
                    self.proofs += 1
                    self.server.accept(handshake, DEVICE, 0.0)


def good_datagrams(make: Callable[[], Client]) -> list[bytes]:
    """What a client sends in a good handshake: two hellos and its flight 5."""
    seen: list[bytes] = []

    def watch(number: int, datagram: bytes) -> bytes:
        seen.append(datagram)
        return datagram

    run = Run()
    run.handshake(make(), watch)
    assert run.proofs == 1
    assert len(seen) == 3
    return seen


def flipped(datagram: bytes, position: int, bit: int) -> bytes:
    octets = bytearray(datagram)
    octets[position] ^= 1 << bit
    return bytes(octets)


def is_protected(datagram: bytes, position: int) -> bool:
    """Whether anything vouches for an octet.

    Nothing does for the record header of a clear record, nor for ChangeCipherSpec. There a record
    sequence number says nothing, 0xFEFF is a version too, and the epoch of Finished says all that
    ChangeCipherSpec would.
    """
    start = 0
    for record in split(datagram):
        if position < start + len(record.octets):
            if record.content_type == ContentType.CHANGE_CIPHER_SPEC:
                return False
            return record.epoch == 1 or position >= start + 13
        start += len(record.octets)
    raise AssertionError("beyond the end")


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("number", [1, 2], ids=["hello", "flight 5"])
@pytest.mark.parametrize("kind", MAKE)
def test_no_octet_of_a_client_message_can_be_flipped(kind: str, number: int, bit: int) -> None:
    run = Run()
    position = 0
    protected: bool | None = True

    def change(count: int, datagram: bytes) -> bytes:
        nonlocal protected
        # A hello that gets another cookie is sent again: that one is flipped too.
        if count < number or (count > number and datagram[13] != T.CLIENT_HELLO):
            return datagram
        if position >= len(datagram):
            protected = None
            return datagram
        protected = is_protected(datagram, position)
        return flipped(datagram, position, bit)

    while protected is not None:
        before = run.proofs
        run.handshake(MAKE[kind](), change)
        if protected:
            assert run.proofs == before, position
        position += 1
    # At the end nothing was changed: after all that the server is still good for a handshake.
    assert position > 80
    assert run.proofs == before + 1


@pytest.mark.parametrize("kind", MAKE)
def test_no_octet_of_a_client_message_can_be_cut_off(kind: str) -> None:
    lengths = [len(datagram) for datagram in good_datagrams(MAKE[kind])]
    for number in (1, 2):
        run = Run()
        for cut in range(1, lengths[number]):
            before = run.proofs
            run.handshake(
                MAKE[kind](),
                lambda count, datagram, cut=cut, number=number: (  # type: ignore[misc]
                    datagram[:-cut] if count == number else datagram
                ),
            )
            assert run.proofs == before, cut
        run.handshake(MAKE[kind](), lambda count, datagram: datagram)
        assert run.proofs == 1


@pytest.mark.parametrize("kind", MAKE)
def test_messages_of_one_handshake_are_nothing_in_another(kind: str) -> None:
    recorded = good_datagrams(MAKE[kind])
    run = Run()

    def replayed(count: int, datagram: bytes) -> bytes:
        return recorded[2] if count == 2 else datagram

    run.handshake(MAKE[kind](), replayed)
    run.handshake(MAKE[kind](), replayed, OTHER)

    assert run.proofs == 0


def test_a_session_id_or_an_extension_more_is_noticed() -> None:
    """Whatever is added to the hello on the way is in one transcript and not in the other."""
    run = Run()

    def meddle(count: int, datagram: bytes) -> bytes:
        if count != 1:
            return datagram
        (record,) = split(datagram)
        (fragment,) = m.parse_fragments(record.fragment)
        hello = m.ClientHello.parse(fragment.body)
        more = m.ClientHello(
            hello.random,
            hello.cipher_suites,
            cookie=hello.cookie,
            extensions=dict(hello.extensions) | {0x1234: b"?"},
        )
        message = m.encode_message(T.CLIENT_HELLO, fragment.message_seq, more.encode())
        return encode(ContentType.HANDSHAKE, record.sequence, message)

    run.handshake(psk_client(), meddle)

    assert run.proofs == 0
