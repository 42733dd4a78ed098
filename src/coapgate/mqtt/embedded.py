"""A broker for the demo: a process of its own, on loopback, gone when the demo is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from coapgate.errors import StartError

HOST = "127.0.0.1"
START_TIMEOUT = 15.0
"""Seconds a broker may take to listen."""
STOP_TIMEOUT = 3.0
"""Seconds it may take to end, until it is killed."""
MAX_PAYLOAD = 1 << 20
"""Octets of a packet that the wheel's broker takes: more than `coap.max_body`."""
_ATTEMPTS = 5
_POLL_INTERVAL = 0.02


@asynccontextmanager
async def embedded_broker(directory: Path, program: str | None = None) -> AsyncIterator[str]:
    """Run a broker that anybody on this machine may use, and yield its URL.

    `program` is `mosquitto` or `iotcore`; None: the first if it is on PATH, else the second, which
    comes with coapgate. What it writes goes to `directory`/broker.log.

    Raises StartError if it does not start.
    """
    name = program or ("mosquitto" if shutil.which("mosquitto") is not None else "iotcore")
    for _ in range(_ATTEMPTS):
        # The port is free now; should another program be faster, take the next.
        port = _free_port()
        async with _process(_command(name, directory, port), directory / "broker.log") as process:
            if await _listens(process, port):
                yield f"mqtt://{HOST}:{port}"
                return
    raise StartError(
        f"the embedded broker does not start: {name}", f"see {directory / 'broker.log'}"
    )


def _command(name: str, directory: Path, port: int) -> list[str]:
    """How to start the broker, after its configuration was written."""
    if name == "mosquitto":
        mosquitto = shutil.which("mosquitto")
        if mosquitto is None:
            raise StartError("mosquitto is not on PATH", "apt-get install mosquitto")
        configuration = directory / "mosquitto.conf"
        configuration.write_text(_MOSQUITTO.format(port=port, host=HOST))
        return [mosquitto, "-c", str(configuration)]
    configuration = directory / "iotcore.toml"
    configuration.write_text(_IOTCORE.format(port=port, host=HOST, max_payload=MAX_PAYLOAD))
    # -P: a folder `iotcore` in the current directory is not the package. It logs every packet as
    # an error.
    quiet = ["--log-level", "CRITICAL"]
    return [sys.executable, "-P", "-m", "iotcore", *quiet, "--config", str(configuration)]


@asynccontextmanager
async def _process(
    command: Sequence[str], log_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child in a session of its own, so that Ctrl-C ends us first and we end it.

    Where util-linux is there, the kernel ends it should we be killed. Not so a mosquitto that
    root started: it becomes another user, which calls that off.
    """
    guard = shutil.which("setpriv")
    prefix = [guard, "--pdeathsig", "TERM"] if guard is not None else []
    with log_path.open("ab") as log_file:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    # Both signals race with an end of its own.
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until the broker accepts connections; False if it ended, or takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(_POLL_INTERVAL)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return process.returncode is None
    return False


def _free_port() -> int:
    """Neither broker can choose a port itself and say which."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


_MOSQUITTO = """\
listener {port} {host}
allow_anonymous true
persistence false
"""

_IOTCORE = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 4

[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {max_payload}
max_inflight_count = 100
dynamic_filters = true
"""
