"""`openssl s_client` and our DTLS alone, over UDP that loses chosen datagrams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.server import ServerSettings
from coapgate.pki.certificates import leaf_public_key
from tests.dtls.factory import device_certificate, server_certificate, x509_settings
from tests.fakes.link import IDENTITY, KEY, Fate, delivered, losing
from tests.interop.echo_server import PREFIX, TO_CLIENT, TO_SERVER, EchoServer, echo_server
from tests.peers import require
from tests.programs import Program, started
from tests.waiting import until

CIPHERS = ("AES128-CCM8", "AES128-CCM", "AES128-GCM-SHA256", "AES256-GCM-SHA384")


@asynccontextmanager
async def connected(
    settings: ServerSettings, *options: str, fate: Fate = delivered
) -> AsyncIterator[tuple[EchoServer, Program]]:
    """A client that has sent something and got its answer."""
    with echo_server(settings, fate) as shell:
        host, port = shell.address
        command = (require("openssl"), "s_client", "-dtls1_2", "-quiet")
        async with started(*command, "-connect", f"{host}:{port}", *options) as client:
            client.write(b"hello\n")
            await client.until(PREFIX + b"hello")
            yield shell, client


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
    settings = ServerSettings(HandshakeSettings(handshake_timeout=2.5))
    with closing(EchoServer(settings)) as shell:
        host, port = shell.address
        async with started(
            *(require("openssl"), "s_client", "-dtls1_2", "-connect", f"{host}:{port}"),
            *("-cipher", "PSK-AES128-CCM8:@SECLEVEL=0"),
            *("-psk_identity", identity, "-psk", key.hex()),
        ):
            await until(lambda: shell.server.counters.handshakes_started == 1, "a handshake")
            await until(lambda: shell.server.handshake_count == 0, "its deadline")
        # The cookie and flight 4: that is all it ever got.
        assert len(shell.lengths[TO_CLIENT]) == 2
