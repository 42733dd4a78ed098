"""What one request, one handshake and one idle association cost, measured from outside.

    python -m tests.bench.run_load                  all of it, about two minutes
    python -m tests.bench.run_load -d 10 requests-50 --json results.json

Starts a mosquitto and, for every measurement, a fresh gateway process; `dtlsload.c`, built on the
way, is the devices. Needs mosquitto, gcc and libssl-dev. Results depend on the machine, and on
what else runs there: compare ratios, and repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coapgate.model import DEFAULT_TENANT, DeviceId
from coapgate.registry.base import NewDevice
from tests.gateways import Installation, running_process
from tests.peers import Mosquitto

DEVICES = 20_000
SECRET = b"sixteen octets!!"
IDENTITY = "load.{:06}"
"""As dtlsload writes it by default."""

OPTIONS: dict[str, dict[str, object]] = {
    # What is measured is the work, not the limits that an operator sets.
    "limits": {"device_rate": 1e6, "device_burst": 1_000_000, "associations_per_device": 64},
    "dtls": {
        "ecdhe_rate": 1e6,
        "ecdhe_burst": 1_000_000,
        "handshakes_per_address": 1024,
        "receive_buffer": 4 << 20,
    },
    "log": {"level": "warning"},
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of dtlsload, and which of its results are the point."""

    arguments: tuple[str, ...]
    cost: str
    rate: str


REQUEST = ("srv_cpu_us_per_op", "ops_per_s")
HANDSHAKE = ("srv_cpu_us_per_op", "ops_per_s")
IDLE = ("kib_per_session_after_req", "hs_per_s")
MEASUREMENTS = {
    "requests-50": Measurement(("--mode", "req", "-n", "50"), *REQUEST),
    "requests-500": Measurement(("--mode", "req", "-n", "500"), *REQUEST),
    "handshakes-psk": Measurement(("--mode", "hs", "-n", "16", "--src-spread", "200"), *HANDSHAKE),
    "handshakes-x509": Measurement(
        ("--mode", "hs", "-n", "16", "--src-spread", "200", "--auth", "x509"), *HANDSHAKE
    ),
    "idle-5000": Measurement(("--mode", "idle", "-n", "5000", "--hold", "15"), *IDLE),
}


async def measure(
    name: str, dtlsload: Path, folder: Path, broker_url: str, duration: float
) -> dict[str, object]:
    """Run one measurement against a gateway of its own; what dtlsload reports."""
    measurement = MEASUREMENTS[name]
    installation = Installation(folder, broker_url, OPTIONS)
    installation.registry.import_devices(
        NewDevice(n, DEFAULT_TENANT, DeviceId(f"load-{n}"), IDENTITY.format(n).encode(), SECRET)
        for n in range(1, DEVICES + 1)
    )
    installation.add_anchor()
    certificate, key = installation.ca.issue_device("load-x509").write(folder, "device")
    async with running_process(installation) as gateway:
        host, port = gateway.address
        process = await asyncio.create_subprocess_exec(
            *(str(dtlsload), *measurement.arguments, "--name", name),
            *("--host", host, "--port", str(port), "--pid", str(gateway.pid)),
            *("--cert", str(certificate), "--key", str(key), "--ca", str(installation.ca_file)),
            *("--id-count", str(DEVICES), "-d", str(duration), "-w", "2", "--path", "benchmark"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        metrics = await gateway.metrics()
    installation.close()
    result: dict[str, object] = json.loads(output)
    result["metrics"] = {name: value for name, value in metrics.items() if value}
    return result


def build(folder: Path) -> Path:
    """Compile dtlsload."""
    gcc = shutil.which("gcc")
    if gcc is None:
        sys.exit("error: gcc is not installed\nhint: apt-get install gcc libssl-dev mosquitto")
    source = Path(__file__).with_name("dtlsload.c")
    program = folder / "dtlsload"
    options = ["-O2", "-w", "-DUSE_OPENSSL", "-o", str(program), str(source), "-lssl", "-lcrypto"]
    subprocess.run([gcc, *options], check=True)
    return program


def show(results: dict[str, dict[str, object]]) -> None:
    """A table: cost, rate, latency, and what went wrong."""
    table = Table(title="server CPU us per operation (idle: KiB of memory)")
    for column in ("measurement", "cost", "a second", "p50 ms", "p99 ms", "went wrong"):
        table.add_column(column, justify="left" if column == "measurement" else "right")
    for name, result in results.items():
        measurement = MEASUREMENTS[name]
        wrong = [f"{result[what]} {what}" for what in _ERRORS if result.get(what)]
        table.add_row(
            name,
            f"{result[measurement.cost]:.1f}",
            f"{result[measurement.rate]:.0f}",
            str(result.get("p50_ms", "")),
            str(result.get("p99_ms", "")),
            ", ".join(wrong) or "none",
        )
    Console().print(table)


_ERRORS = ("err", "resp_err", "timeouts", "retrans", "hs_fail")


async def run(names: list[str], duration: float) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="coapgate-bench-") as temporary:
        folder = Path(temporary)
        dtlsload = build(folder)
        broker = Mosquitto(folder, ("max_inflight_messages 256", "max_queued_messages 10000"))
        broker.start()
        try:
            for name in names:
                print(f"{name} ...", file=sys.stderr)
                own = folder / name
                own.mkdir()
                results[name] = await measure(name, dtlsload, own, broker.url, duration)
        finally:
            broker.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measurements", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("-d", "--duration", type=float, default=10.0, help="seconds of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.measurements if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    names = arguments.measurements or list(MEASUREMENTS)
    results = asyncio.run(run(names, arguments.duration))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
