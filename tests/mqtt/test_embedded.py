"""The embedded broker of the demo: there when it is needed, and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coapgate.errors import StartError
from coapgate.mqtt.embedded import embedded_broker
from coapgate.mqtt.settings import ConnectionSettings
from tests.mqtt.running import running
from tests.peers import require


class At:
    """The address in a URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.scheme == "mqtt"
        assert parts.hostname == "127.0.0.1"
        assert parts.port is not None
        self.host = parts.hostname
        self.port = parts.port


@pytest.fixture(params=["mosquitto", "iotcore"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "mosquitto":
        directory = Path(require(name)).parent
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return name


async def test_it_takes_publications_as_large_as_ours_get(tmp_path: Path, program: str) -> None:
    settings = ConnectionSettings("", status_topic="coapgate/$gateway/0/status")
    async with embedded_broker(tmp_path, program) as url:
        broker = At(url)
        async with running(broker, settings) as one:
            one.publish("coapgate/default/sensor-1/up/t", bytes(262_144), ticket=1)
            one.publish("coapgate/default/sensor-1/up/t", b"21.5", ticket=2, qos=0)
            outcomes = await one.ended_at_least(2)
            assert all(code < 0x80 for code in outcomes.values())
            await one.connection.drain(5)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(broker.host, broker.port)


async def test_it_ends_with_the_block_that_used_it(tmp_path: Path, program: str) -> None:
    async def fail() -> None:
        async with embedded_broker(tmp_path, program) as url:
            addresses.append(At(url))
            raise ZeroDivisionError

    addresses: list[At] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(addresses[0].host, addresses[0].port)


async def test_it_ends_when_we_are_killed(tmp_path: Path, program: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed: apt-get install util-linux")
    if program == "mosquitto" and os.geteuid() == 0:
        pytest.skip("started by root, mosquitto becomes another user and outlives us")
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER,
        str(tmp_path),
        program,
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    async with asyncio.timeout(20):
        broker = At((await owner.stdout.readline()).decode().strip())
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        owner.kill()
        await owner.wait()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b"", "the broker has closed"
    writer.close()


OWNER = """
import asyncio, pathlib, sys
from coapgate.errors import StartError
from coapgate.mqtt.embedded import embedded_broker

async def main():
    async with embedded_broker(pathlib.Path(sys.argv[1]), sys.argv[2]) as url:
        print(url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_where_there_is_no_mosquitto_the_wheel_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with embedded_broker(tmp_path) as url, running(At(url)):
        assert (tmp_path / "iotcore.toml").exists()
    with pytest.raises(StartError, match="mosquitto is not on PATH"):
        async with embedded_broker(tmp_path, "mosquitto"):
            pass


async def test_where_there_is_a_mosquitto_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(require("mosquitto")).parent))
    async with embedded_broker(tmp_path) as url, running(At(url)):
        assert (tmp_path / "mosquitto.conf").exists()


async def test_a_broker_that_does_not_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "iotcore.toml").symlink_to("/dev/null")
    with pytest.raises(StartError, match="the embedded broker does not start") as error:
        async with embedded_broker(tmp_path, "iotcore"):
            pass
    assert error.value.hint == f"see {tmp_path / 'broker.log'}"
    assert (tmp_path / "broker.log").stat().st_size > 0


STUBBORN = """\
#!{python}
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
_, port, host = open(sys.argv[2]).readline().split()
server = socket.create_server((host, int(port)))
while True:
    server.accept()
"""


async def test_a_broker_that_does_not_want_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = tmp_path / "mosquitto"
    stubborn.write_text(STUBBORN.format(python=sys.executable))
    stubborn.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with embedded_broker(tmp_path, "mosquitto") as url:
        broker = At(url)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(broker.host, broker.port)
