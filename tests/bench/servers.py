"""Servers that take the same load: how each is started here, and one that somebody else started."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coapgate.pki.factory import FactoryCa
from tests.bench.loads import environment
from tests.bench.processes import on_core
from tests.bench.surroundings import IDENTITY, SECRET, Bench
from tests.peers import require, require_module
from tests.programs import started
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs; `pid` 0: nobody knows what it costs. `options` are for the load generator."""

    host: str
    port: int
    pid: int
    options: tuple[object, ...]


Serve = Callable[[], AbstractAsyncContextManager[Server]]


def coapgate(bench: Bench) -> Serve:
    @asynccontextmanager
    async def serve() -> AsyncIterator[Server]:
        async with bench.installation() as installation, bench.gateway(installation) as gateway:
            host, port = gateway.address
            yield Server(host, port, gateway.pid, bench.options(installation, gateway))

    return serve


def libcoap(bench: Bench) -> Serve:
    """Debian's libcoap on OpenSSL; any identity may use its key."""
    program = require_server("coap-server-openssl", "libcoap3-bin")
    ca = FactoryCa.create("Benchmark Root")
    root = bench.folder / "libcoap-ca.pem"
    root.write_bytes(ca.certificate_pem)
    certificate, key = ca.issue_server().write(bench.folder, "libcoap")
    device, device_key = ca.issue_device("load-x509").write(bench.folder, "libcoap-device")
    options = ("--cert", device, "--key", device_key, "--ca", root)

    @asynccontextmanager
    async def serve() -> AsyncIterator[Server]:
        port = free_ports()
        command = (
            *(program, "-A", "127.0.0.1", "-p", str(port), "-d", "10", "-k", SECRET.decode()),
            *("-c", str(certificate), "-j", str(key), "-C", str(root)),
        )
        async with on_server_core(bench, *command) as pid:
            await until(lambda: is_bound(port + 1), f"{program} serves")
            yield Server("127.0.0.1", port + 1, pid, options)

    return serve


def aiocoap(bench: Bench) -> Serve:
    """aiocoap on tinydtls: PSK only, one identity for all."""
    require_module("DTLSSocket")
    identity = IDENTITY.format(1)

    @asynccontextmanager
    async def serve() -> AsyncIterator[Server]:
        port = free_ports()
        module = ("-m", "tests.bench.aiocoap_server")
        command = (sys.executable, *module, str(port), identity, SECRET.decode())
        async with on_server_core(bench, *command) as pid:
            await until(lambda: is_bound(port + 1), "aiocoap serves")
            yield Server("127.0.0.1", port + 1, pid, ("--id-count", 1))

    return serve


def elsewhere(address: str, identity: str, key: Path, path: str, pid: int) -> Serve:
    """A server that somebody else has started."""
    host, port = parse_address(address)

    @asynccontextmanager
    async def serve() -> AsyncIterator[Server]:
        asked = ("--id-format", identity, "--psk-file", key, "--path", path)
        yield Server(host, port, pid, asked)

    return serve


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `coaps://HOST[:PORT]`. Raises ValueError."""
    parts = urlsplit(address)
    if parts.scheme != "coaps" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"no address of the form coaps://HOST[:PORT]: {address!r}")
    return parts.hostname, parts.port or 5684


def is_loopback(host: str) -> bool:
    """Whether dtlsload may go there: an address of 127.0.0.0/8, by number."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.version == 4 and address.is_loopback


def parse_identity(text: str) -> str:
    """An identity, or a pattern with a number such as %06d in it. Raises ValueError."""
    if not re.fullmatch(r"[^%]*(%0?\d{0,2}d)?[^%]*", text):
        raise ValueError(f"no identity with at most one number such as %06d: {text!r}")
    return text


@asynccontextmanager
async def on_server_core(bench: Bench, *command: str) -> AsyncIterator[int]:
    """Run a server; its process id."""
    async with AsyncExitStack() as stack:
        with on_core(bench.cores.server):
            program = await stack.enter_async_context(started(*command, env=environment()))
        yield program.pid


def require_server(program: str, package: str) -> str:
    """Where it is; skips like `tests.peers.require`."""
    try:
        return require(program)
    except KeyError:
        pytest.skip(f"{program} is not installed: apt-get install {package}")


def free_ports() -> int:
    """A UDP port on loopback that was free a moment ago, and the one after it: for DTLS."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dtls,
        ):
            plain.bind(("127.0.0.1", 0))
            port: int = plain.getsockname()[1]
            try:
                dtls.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def is_bound(port: int) -> bool:
    """Whether some socket of this machine has that UDP port on IPv4."""
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return any(int(line.split()[1].rpartition(":")[2], 16) == port for line in lines)
