"""tinydtls (DTLSSocket), which many constrained devices run, below aiocoap's client; PSK only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.bus import Bus
from tests.gateways import Running
from tests.interop.post import PAYLOAD, was_published
from tests.peers import require_module
from tests.programs import started


async def ask(gateway: Running, folder: Path, path: str, *options: str) -> str:
    """Make one request in a process of its own; what the client printed."""
    require_module("DTLSSocket")
    key = gateway.installation.add_psk("sensor-1")
    proof = {"psk": {"hex": key.secret.hex()}, "client-identity": {"ascii": key.identity.decode()}}
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps({f"coaps://{gateway.address}/*": {"dtls": proof}}))
    command = (sys.executable, "-m", "aiocoap.cli.client", "--credentials", str(credentials))
    async with started(*command, *options, f"coaps://{gateway.address}/{path}") as client:
        status = await client.end()
    output = client.output.decode(errors="backslashreplace")
    assert status == 0, output
    return output


async def test_by_psk(gateway: Running, bus: Bus, tmp_path: Path) -> None:
    await ask(
        gateway,
        tmp_path,
        "room/temperature",
        *(
            "-m",
            "POST",
            "--payload",
            PAYLOAD.decode(),
            "--content-format",
            "text/plain; charset=utf-8",
        ),
    )

    await was_published(bus, "sensor-1", "psk")


async def test_who_am_i(gateway: Running, tmp_path: Path) -> None:
    hello = await ask(gateway, tmp_path, "hello")

    assert '"sensor-1"' in hello
