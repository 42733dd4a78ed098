"""`openssl s_client` and our DTLS alone, over UDP that loses chosen datagrams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.association import Association
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.records import ContentType
from coapgate.dtls.server import Server, ServerSettings
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method
from coapgate.pki.certificates import leaf_public_key
from tests.dtls.factory import device_certificate, server_certificate, x509_settings
from tests.fakes.link import IDENTITY, KEY, Direction, Fate, delivered, losing
from tests.peers import require
from tests.programs import Program, started
from tests.waiting import until

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "test")
CIPHERS = ("AES128-CCM8", "AES128-CCM", "AES128-GCM-SHA256", "AES256-GCM-SHA384")
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Shell:
    """The smallest UDP shell there is: one socket, one timer.

    `fate` says which datagrams of handshakes are lost; application data, which nobody would send
    again, never is.
    """

    def __init__(self, settings: ServerSettings, fate: Fate = delivered) -> None:
        self.server = Server(settings, self._echo)
        self.lengths: dict[Direction, list[int]] = {way: [] for way in Direction}
        self._fate = fate
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", 0))
        self._loop.add_reader(self._socket, self._receive)
        self._timer = self._loop.call_soon(lambda: None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _echo(self, association: Association, plaintext: bytes, now: float) -> None:
        self.server.traffic.send(association, b"you said " + plaintext, now)

    def _receive(self) -> None:
        datagram, peer = self._socket.recvfrom(65535)
        if self._arrives(TO_SERVER, datagram):
            self.server.receive_datagram(datagram, (0, peer), self._loop.time())
        self._settle()

    def _handle_timer(self) -> None:
        self.server.handle_timer(self._loop.time())
        self._settle()

    def _settle(self) -> None:
        now = self._loop.time()
        while self.server.events:
            match self.server.events.popleft():
                case KeysRequested(handshake, identity):
                    keys = (Candidate(KEY, None),) if identity == IDENTITY else ()
                    self.server.offer_keys(handshake, keys, now)
                case KeyProven(handshake) | ChainProven(handshake):
                    self.server.accept(handshake, DEVICE, now)
        for datagram, (_, peer) in self.server.outgoing:
            if self._arrives(TO_CLIENT, datagram):
                self._socket.sendto(datagram, peer)
        self.server.outgoing.clear()
        self._timer.cancel()
        due = self.server.next_timer()
        if due is not None:
            self._timer = self._loop.call_at(due, self._handle_timer)

    def _arrives(self, way: Direction, datagram: bytes) -> bool:
        self.lengths[way].append(len(datagram))
        is_data = datagram[0] == ContentType.APPLICATION_DATA
        return is_data or self._fate(way, len(self.lengths[way]) - 1, datagram) != ()


def impatient(settings: ServerSettings) -> ServerSettings:
    """With a first retransmission after 0.3 s: here the clock is a real one."""
    return replace(settings, handshake=replace(settings.handshake, retransmission_time=0.3))


@asynccontextmanager
async def connected(
    settings: ServerSettings, *options: str, fate: Fate = delivered
) -> AsyncIterator[tuple[Shell, Program]]:
    """A client that has sent something and got its answer."""
    shell = Shell(impatient(settings), fate)
    command = (require("openssl"), "s_client", "-dtls1_2", "-quiet", "-connect", shell.address)
    try:
        async with started(*command, *options) as client:
            client.write(b"hello\n")
            await client.until(b"you said hello")
            yield shell, client
    finally:
        shell.close()


def by_psk(cipher: str) -> tuple[str, ...]:
    # Level 0, because OpenSSL counts CCM_8 as 64 bits.
    return (
        *("-cipher", f"PSK-{cipher}:@SECLEVEL=0"),
        *("-psk_identity", IDENTITY.decode(), "-psk", KEY.hex()),
    )


def by_x509(folder: Path, cipher: str = "AES128-CCM8") -> tuple[str, ...]:
    certificate, key = device_certificate().write(folder, "device")
    return (
        *("-cipher", f"ECDHE-ECDSA-{cipher}:@SECLEVEL=0"),
        *("-cert", str(certificate), "-key", str(key)),
    )


PATTERNS: dict[str, Fate] = {
    "nothing": delivered,
    "the first hello": losing({(TO_SERVER, 0)}),
    "the cookie": losing({(TO_CLIENT, 0)}),
    "the second hello": losing({(TO_SERVER, 1)}),
    "flight 4": losing({(TO_CLIENT, 1)}),
    "flight 5": losing({(TO_SERVER, 2)}),
    "the last flight": losing({(TO_CLIENT, 2)}),
    "one of each": losing({(TO_CLIENT, 0), (TO_SERVER, 1), (TO_CLIENT, 2), (TO_SERVER, 4)}),
}


async def test_every_psk_suite_with_every_flight_lost() -> None:
    """All of them at once, because OpenSSL repeats after a real second, and then after two."""

    async def connects(cipher: str, fate: Fate) -> None:
        async with connected(ServerSettings(), *by_psk(cipher), fate=fate) as (shell, _):
            assert shell.server.association_count == 1

    async with asyncio.TaskGroup() as tasks:
        for cipher in CIPHERS:
            for name, fate in PATTERNS.items():
                tasks.create_task(connects(cipher, fate), name=f"{cipher}: {name}")


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
async def test_every_maximum_fragment_length(tmp_path: Path, length: int) -> None:
    options = (*by_x509(tmp_path), "-maxfraglen", str(length))

    async with connected(x509_settings(), *options) as (shell, _):
        (association,) = shell.server.associations
        assert association.max_plaintext == min(length, 1232 - 29)
        # Our flight has records of this length and their headers.
        assert max(shell.lengths[TO_CLIENT]) <= 1232


@pytest.mark.parametrize("cipher", CIPHERS)
async def test_x25519_with_every_ecdhe_suite(tmp_path: Path, cipher: str) -> None:
    # A client without P-256: the certificate is on P-384 then.
    handshake = HandshakeSettings(server_certificate(ec.SECP384R1), leaf_public_key)
    options = (*by_x509(tmp_path, cipher), "-groups", "X25519:P-384")

    async with connected(ServerSettings(handshake), *options) as (shell, _):
        assert shell.server.association_count == 1


@pytest.mark.parametrize("mtu", [300, 576])
async def test_a_small_mtu_of_the_client(tmp_path: Path, mtu: int) -> None:
    settings = x509_settings(max_datagram=mtu)
    options = (*by_x509(tmp_path), "-mtu", str(mtu))

    async with connected(settings, *options) as (shell, _):
        # Its link layer's MTU: 28 octets of headers are part of it.
        assert max(shell.lengths[TO_SERVER]) <= mtu


@pytest.mark.parametrize(
    ("identity", "key"), [("stranger", KEY), (IDENTITY.decode(), b"another key 0123")]
)
async def test_an_unknown_identity_and_a_wrong_key_are_told_nothing(
    identity: str, key: bytes
) -> None:
    shell = Shell(ServerSettings(HandshakeSettings(handshake_timeout=2.5)))
    try:
        async with started(
            *(require("openssl"), "s_client", "-dtls1_2", "-connect", shell.address),
            *("-cipher", "PSK-AES128-CCM8:@SECLEVEL=0"),
            *("-psk_identity", identity, "-psk", key.hex()),
        ):
            await until(lambda: shell.server.counters.handshakes_started == 1, "a handshake")
            await until(lambda: shell.server.handshake_count == 0, "its deadline")
        # The cookie and flight 4: that is all it ever got.
        assert len(shell.lengths[TO_CLIENT]) == 2
    finally:
        shell.close()
