"""Gateways for tests: configured as an operator does it, with a registry, keys and certificates."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from coapgate import config
from coapgate.dtls.client import ClientCertificate, Credential, PskKey
from coapgate.gateway import Gateway, open_gateway
from coapgate.model import DEFAULT_TENANT, DeviceId, DeviceIdSource, Tenant
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import FactoryCa, IssuedCertificate
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.simulated.device import SETTINGS, Device
from coapgate.simulated.trust import trust_server
from tests.programs import Program, started
from tests.waiting import DEADLINE, until

Options = Mapping[str, Mapping[str, object]]
"""Tables of a configuration file."""

SHORT_HANDSHAKES = {"handshake_timeout": 1.5, "retransmission_time": 0.5, "auth_timeout": 1.0}
"""For [dtls], where a test waits for a handshake to fail."""


class Installation:
    """A folder with all that a gateway needs, and what an operator does in it.

    `registry` is this test's own connection, as the command line's would be. `ca` is the factory's:
    it has signed the gateway's certificate, and devices' if the test says so.
    """

    def __init__(self, folder: Path, broker_url: str, options: Options | None = None) -> None:
        self.folder = folder
        self.root = f"test-{secrets.token_hex(4)}"
        self.ca = FactoryCa.create("Example Factory Root")
        self.ca_file = folder / "ca.pem"
        self.config_file = folder / "gateway.toml"
        self.ca_file.write_bytes(self.ca.certificate_pem)
        certificate, key = self.ca.issue_server().write(folder, "gateway")
        tables: dict[str, dict[str, object]] = {
            # The kernel grants this much everywhere: no warning at start.
            "dtls": {
                "bind": "127.0.0.1:0",
                "certificate": certificate.name,
                "private_key": key.name,
                "receive_buffer": 65536,
            },
            "mqtt": {"url": broker_url, "root": self.root, "client_id": self.root},
            "http": {"bind": "127.0.0.1:0"},
        }
        for name, table in (options or {}).items():
            tables[name] = tables.get(name, {}) | dict(table)
        self.config_file.write_text(_render_toml(tables))
        self.settings = config.load(self.config_file)
        self.registry = SqliteRegistry.open(
            self.settings.registry.url, self.settings.registry.key_file, folder
        )

    def close(self) -> None:
        self.registry.close()

    def add_psk(
        self,
        device: str,
        *,
        identity: bytes | None = None,
        secret: bytes | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> PskKey:
        """Give a device a key, and create the device if need be."""
        key = PskKey(identity or device.encode(), secret or secrets.token_bytes(16))
        self.registry.add_psk(
            Tenant(tenant), DeviceId(device), key.identity, key.secret, create_device=True
        )
        return key

    def add_anchor(
        self,
        ca: FactoryCa | None = None,
        *,
        name: str = "factory",
        tenant: str = DEFAULT_TENANT,
        source: DeviceIdSource = DeviceIdSource.CN,
        auto_provision: bool = True,
        **rules: Any,
    ) -> None:
        """Believe an authority, by default the factory's; `rules` are fields of `TrustAnchor`."""
        anchor = parse_anchor(
            (ca or self.ca).certificate_pem,
            name=name,
            tenant=Tenant(tenant),
            device_id_source=source,
            auto_provision=auto_provision,
            wall=time.time(),
        )
        self.registry.add_anchor(replace(anchor, **rules))

    def certificate(self, issued: IssuedCertificate) -> ClientCertificate:
        """What a device with that certificate connects with: it believes this factory only."""
        return ClientCertificate(
            issued.chain, issued.key, trust_server(self.ca.certificate, "127.0.0.1")
        )

    def credential(self, method: str, device: str) -> Credential:
        """A new device's: `psk`, or `x509` with provisioning by the factory's anchor."""
        if method == "psk":
            return self.add_psk(device)
        if not self.registry.anchors_all():
            self.add_anchor()
        return self.certificate(self.ca.issue_device(device))


class Running:
    """A gateway that serves in this process."""

    def __init__(self, installation: Installation, gateway: Gateway) -> None:
        self.installation = installation
        self.gateway = gateway
        self.host = gateway.addresses[0].host
        self.port = gateway.addresses[0].port

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def device(self, credential: Credential, **options: Any) -> Device:
        """A device of ours at this gateway; `options` are those of `Device`.

        Its handshake gives up soon: where tests run nothing gets lost.
        """
        settings = options.pop("settings", replace(SETTINGS, handshake_timeout=20.0))
        return Device(self.host, self.port, credential, settings=settings, **options)

    async def get(self, path: str) -> httpx.Response:
        """Ask the HTTP side."""
        async with httpx.AsyncClient(base_url=f"http://{self.gateway.http_address}") as client:
            return await client.get(path)

    async def metrics(self) -> dict[str, float]:
        """All samples, by `name` or `name,label value`."""
        return parse_metrics((await self.get("/metrics")).text)

    async def refused(self, reason: str, count: int = 1) -> None:
        """Wait until so many peers were refused for that reason."""
        refusals = self.gateway.pump.refusals
        await until(lambda: refusals[reason] >= count, f"{count} refused as {reason}")


@asynccontextmanager
async def running(installation: Installation) -> AsyncIterator[Running]:
    """Serve while the context is open, connected to its broker from the start."""
    async with open_gateway(installation.settings) as gateway:
        await until(lambda: gateway.connection.connected, "the gateway connects to its broker")
        yield Running(installation, gateway)


class GatewayProcess:
    """A gateway in a process of its own, as `coapgate run` starts it."""

    def __init__(self, program: Program) -> None:
        told = _SERVES.search(program.output.decode())
        assert told is not None, program.output
        self.address = (told["host"], int(told["port"]))
        self.pid = program.pid
        self.program = program
        self._http = told["http"]

    async def metrics(self) -> dict[str, float]:
        """All samples, by `name` or `name,label value`."""
        async with httpx.AsyncClient() as client:
            return parse_metrics((await client.get(f"{self._http}/metrics")).text)

    async def until_connected(self) -> None:
        """Wait until it has its broker, and has subscribed to requests."""
        async with asyncio.timeout(DEADLINE):
            while (await self.metrics())["coapgate_mqtt_connected"] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def resident_size(self) -> int:
        """Octets of memory that the process occupies."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


_SERVES = re.compile(r"serves coaps://(?P<host>[0-9.]+):(?P<port>\d+) and (?P<http>http://\S+?),")


@asynccontextmanager
async def running_process(
    installation: Installation, address: tuple[str, int] | None = None
) -> AsyncIterator[GatewayProcess]:
    """`coapgate run`, until the context is left; at `address` if one before it was there."""
    command = ("-m", "coapgate", "run", "--config", str(installation.config_file))
    env = dict(os.environ)
    if address is not None:
        env["COAPGATE_DTLS__BIND"] = f"{address[0]}:{address[1]}"
    async with started(sys.executable, *command, env=env) as program:
        await program.until(b"publishes to")
        yield GatewayProcess(program)


def parse_metrics(text: str) -> dict[str, float]:
    """Samples as Prometheus scrapes them, by `name` or `name,label value`."""
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _render_toml(tables: Options) -> str:
    """Text, numbers, truth values, lists and tables of them."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{option} = {_render_value(value)}" for option, value in table.items()]
    return "\n".join([*lines, ""])


def _render_value(value: object) -> str:
    """TOML writes them as JSON does, but for tables."""
    if isinstance(value, Mapping):
        inner = [f"{json.dumps(name)} = {_render_value(each)}" for name, each in value.items()]
        return f"{{ {', '.join(inner)} }}"
    return json.dumps(value)
