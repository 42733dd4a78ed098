"""libcoap's `coap-client` on OpenSSL and on GnuTLS: a whole CoAP stack that is not ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bus import Bus
from tests.gateways import Running
from tests.interop.post import PAYLOAD, was_published
from tests.peers import require
from tests.programs import started

pytestmark = pytest.mark.parametrize("client", ["coap-client-openssl", "coap-client-gnutls"])


async def ask(client: str, gateway: Running, path: str, *options: str, verbosity: str = "7") -> str:
    """Make one request; what the client printed, at a verbosity that shows the messages."""
    command = (require(client), *options, "-B", "20", "-v", verbosity)
    async with started(*command, f"coaps://{gateway.address}/{path}") as program:
        status = await program.end()
    output = program.output.decode(errors="backslashreplace")
    assert status == 0, output
    return output


def by_psk(gateway: Running) -> tuple[str, ...]:
    key = gateway.installation.add_psk("sensor-1", secret=b"sixteen octets!!")
    return "-u", key.identity.decode(), "-k", key.secret.decode()


def by_x509(gateway: Running, folder: Path) -> tuple[str, ...]:
    installation = gateway.installation
    installation.add_anchor()
    certificate, key = installation.ca.issue_device("sensor-7").write(folder, "device")
    return "-c", str(certificate), "-j", str(key), "-C", str(installation.ca_file)


POST = ("-m", "post", "-t", "text/plain", "-e", PAYLOAD.decode())


async def test_by_psk(client: str, gateway: Running, bus: Bus) -> None:
    output = await ask(client, gateway, "room/temperature", *by_psk(gateway), *POST)

    assert "2.04" in output
    await was_published(bus, "sensor-1", "psk")


async def test_by_x509(client: str, gateway: Running, bus: Bus, tmp_path: Path) -> None:
    files = by_x509(gateway, tmp_path)

    output = await ask(client, gateway, "room/temperature", *files, *POST)

    assert "2.04" in output
    await was_published(bus, "sensor-7", "x509")


async def test_non_confirmable_is_answered_too(client: str, gateway: Running, bus: Bus) -> None:
    output = await ask(client, gateway, "room/temperature", *by_psk(gateway), *POST, "-N")

    assert "2.04" in output
    await was_published(bus, "sensor-1", "psk")


async def test_what_is_here_and_who_am_i(client: str, gateway: Running) -> None:
    key = by_psk(gateway)

    links = await ask(client, gateway, ".well-known/core", *key)
    hello = await ask(client, gateway, "hello", *key)

    assert "</hello>" in links
    assert '"device":"sensor-1"' in hello


async def test_a_device_with_a_certificate_is_told_for_how_long_it_is_valid(
    client: str, gateway: Running, tmp_path: Path
) -> None:
    hello = await ask(client, gateway, "hello", *by_x509(gateway, tmp_path))

    told = re.search(r'"method":"x509","days_left":(\d+)', hello)
    assert told is not None, hello
    assert int(told[1]) > 0


async def test_an_error_says_why(client: str, gateway: Running) -> None:
    output = await ask(client, gateway, "%24SYS/x", *by_psk(gateway), *POST)

    assert "4.00" in output
    assert "begins with $" in output
