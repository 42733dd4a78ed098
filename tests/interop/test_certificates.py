"""Chains and their faults, shown by clients that nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from coapgate.pki.factory import IssuedCertificate
from tests.bus import Bus
from tests.e2e.test_x509 import FAULTS
from tests.gateways import Running
from tests.interop.gnutls import gnutls_cli_by_x509
from tests.interop.openssl import s_client_by_x509
from tests.interop.post import CHANGED, PAYLOAD, POST, was_published
from tests.peers import require
from tests.programs import Program, started

Client = Callable[[Running, IssuedCertificate, Path], AbstractAsyncContextManager[Program]]

CLIENTS: dict[str, Client] = {"openssl": s_client_by_x509, "gnutls": gnutls_cli_by_x509}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("anchor", ["the root", "the intermediate"])
async def test_a_chain_through_an_intermediate(
    gateway: Running, bus: Bus, tmp_path: Path, client: str, anchor: str
) -> None:
    line = gateway.installation.ca.intermediate("Line 4")
    gateway.installation.add_anchor(None if anchor == "the root" else line)
    issued = line.issue_device("sensor-7")
    if anchor != "the root":
        issued = IssuedCertificate(issued.chain[:1], issued.key)

    async with CLIENTS[client](gateway, issued, tmp_path) as program:
        program.write(POST)
        await program.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")


@pytest.mark.parametrize(
    ("client", "anchor"),
    # On OpenSSL libcoap reads one certificate of the file, and so it sends the leaf alone.
    [("coap-client-gnutls", "the root"), ("coap-client-openssl", "the intermediate")],
)
async def test_libcoap_below_an_intermediate(
    gateway: Running, bus: Bus, tmp_path: Path, client: str, anchor: str
) -> None:
    installation = gateway.installation
    line = installation.ca.intermediate("Line 4")
    installation.add_anchor(None if anchor == "the root" else line)
    issued = line.issue_device("sensor-7")
    certificate, key = issued.write(tmp_path, "device")
    files = ("-c", str(certificate), "-j", str(key), "-C", str(installation.ca_file))
    what = ("-m", "post", "-t", "text/plain", "-e", PAYLOAD.decode(), "-B", "20", "-v", "7")
    target = f"coaps://{gateway.address}/room/temperature"

    async with started(require(client), *files, *what, target) as program:
        assert await program.end() == 0

    assert b"2.04" in program.output
    await was_published(bus, "sensor-7", "x509")


@pytest.mark.parametrize("fault", FAULTS)
async def test_openssl_is_told_what_is_wrong_with_its_certificate(
    gateway: Running, tmp_path: Path, fault: str
) -> None:
    reason, alert, make = FAULTS[fault]
    gateway.installation.add_anchor()
    issued = make(gateway.installation.ca)

    async with s_client_by_x509(gateway, issued, tmp_path) as program:
        await program.until(f"SSL alert number {alert.value}".encode())

    await gateway.refused(reason)
