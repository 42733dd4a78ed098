"""`make bench-peers`: the same load on coapgate, on servers of Debian and PyPI, on any other.

    python -m tests.bench.peers
    python -m tests.bench.peers --address coaps://127.0.0.1:5684 --psk-file load.key --pid 4711

The servers beside coapgate answer and publish nothing. An address is asked as `load.000001` and so
on, all with the key of the file; without its process id only rates are known. Whoever limits the
rate of a device, as coapgate does by default, gives wrong answers here: they are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from coapgate.errors import CoapgateError
from tests.bench import documents, tables
from tests.bench.loads import (
    PYTHON,
    ROOT,
    Load,
    LoadFailed,
    compile_dtlsload,
    run_load,
)
from tests.bench.machine import commit
from tests.bench.measurements import SPREAD
from tests.bench.processes import Cores, choose_cores
from tests.bench.servers import (
    Serve,
    aiocoap,
    coapgate,
    elsewhere,
    is_loopback,
    libcoap,
    parse_address,
    parse_identity,
)
from tests.bench.surroundings import Bench, Scale, mosquitto
from tests.peers import require

SCALE = Scale(duration=4.0, most_devices=500, idle_devices=1000)
HEADINGS = (
    "server", "PSK", "X.509", "50 devices", "500 devices", "idle", "wrong",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of server; each measurement gets a fresh one."""

    name: str
    serve: Serve
    load: Load
    has_x509: bool = True


async def measure(peer: Peer, cores: Cores, scale: Scale) -> tuple[str, ...]:
    """One line of the table."""
    wrong = 0.0

    async def run(*options: object) -> dict[str, float]:
        nonlocal wrong
        async with peer.serve() as server:
            where = ("--host", server.host, "--port", server.port, "--pid", server.pid)
            timing = ("-d", scale.duration, "-w", scale.warmup)
            report = await run_load(
                peer.load, cores.load, *where, *server.options, *timing, *options
            )
            wrong += sum(report.get(name, 0) for name in ("err", "resp_err", "timeouts", "hs_fail"))
            return report | {"pid": server.pid}

    handshakes = ("--mode", "hs", "-n", 16, *(SPREAD if peer.load is not PYTHON else ()))
    cells = [cell(await run(*handshakes))]
    cells.append(cell(await run(*handshakes, "--auth", "x509")) if peer.has_x509 else "-")
    for count in (50, scale.most_devices):
        cells.append(cell(await run("--mode", "req", "-n", count)))
    hold = ("--hold", scale.hold)
    idle = await run("--mode", "idle", "-n", scale.idle_devices, *hold)
    known = idle["pid"] and idle["resp_ok"]
    cells.append(f"{tables.shown(idle['kib_per_session_after_req'])} KiB" if known else "-")
    return (peer.name, *cells, f"{wrong:g}")


def cell(report: dict[str, float]) -> str:
    """Cost, if it is known, and rate."""
    if not report["ops"]:
        return "-"
    rate = f"{tables.shown(report['ops_per_s'])}/s"
    return f"{tables.shown(report['srv_cpu_us_per_op'])} us {rate}" if report["pid"] else rate


def parse_arguments() -> argparse.Namespace:
    parsing = argparse.ArgumentParser(
        prog="python -m tests.bench.peers", description=__doc__.splitlines()[0]
    )
    parsing.add_argument("--address", metavar="coaps://HOST[:PORT]", help="one more server")
    parsing.add_argument("--psk-file", type=Path, help="the key that --address knows, as text")
    parsing.add_argument("--identity", default="load.%06d", help="of the devices, by number")
    parsing.add_argument("--path", default="benchmark", help="where --address takes a POST")
    parsing.add_argument("--pid", type=int, default=0, help="process of --address, if it is here")
    parsing.add_argument("--duration", type=float, default=SCALE.duration, help="seconds of each")
    parsing.add_argument("--results", type=Path, default=ROOT / "bench-results", metavar="FOLDER")
    parsing.add_argument("--write-docs", action="store_true", help="into docs/performance.md")
    arguments = parsing.parse_args()
    if arguments.address is not None:
        if arguments.psk_file is None:
            parsing.error("--address needs --psk-file")
        try:
            parse_address(arguments.address)
            parse_identity(arguments.identity)
        except ValueError as error:
            parsing.error(str(error))
    return arguments


def peers_of(bench: Bench, arguments: argparse.Namespace) -> list[Peer]:
    """Those that are installed here, and the one that was named; says which are missing."""
    made = {
        "coapgate": (coapgate, True),
        "libcoap, OpenSSL": (libcoap, True),
        "aiocoap, tinydtls": (aiocoap, False),
    }
    peers = []
    for name, (make, has_x509) in made.items():
        try:
            peers.append(Peer(name, make(bench), bench.load, has_x509))
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            print(f"note: {missing}", file=sys.stderr)
    if arguments.address is not None:
        host, _ = parse_address(arguments.address)
        load = bench.load if is_loopback(host) else PYTHON
        asked = (arguments.identity, arguments.psk_file, arguments.path, arguments.pid)
        peers.append(Peer(arguments.address, elsewhere(arguments.address, *asked), load, False))
    return peers


async def measure_all(bench: Bench, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    lines = []
    for peer in peers_of(bench, arguments):
        print(f"{peer.name} ...", file=sys.stderr, flush=True)
        lines.append(await measure(peer, bench.cores, bench.scale))
    return lines


def main() -> int:
    arguments = parse_arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    load = compile_dtlsload(arguments.results) or PYTHON
    cores = choose_cores(os.sched_getaffinity(0))
    scale = Scale(arguments.duration, most_devices=500, idle_devices=SCALE.idle_devices)
    try:
        require("mosquitto")
        with tempfile.TemporaryDirectory(prefix="coapgate-bench-") as temporary:
            folder = Path(temporary)
            with mosquitto(folder, cores.broker) as url:
                bench = Bench(folder, url, load, cores, scale)
                lines = asyncio.run(measure_all(bench, arguments))
    except (
        CoapgateError,
        LoadFailed,
        OSError,
        pytest.skip.Exception,
        pytest.fail.Exception,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    title = "server CPU for each operation, operations a second, memory of an association"
    Console(highlight=False).print(tables.table(title, HEADINGS, lines))
    text = f"Commit {commit()}, load by {load.name}.\n\n" + tables.markdown(HEADINGS, lines)
    (arguments.results / "peers.md").write_text(text)
    if arguments.write_docs:
        documents.write_block("peers", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
