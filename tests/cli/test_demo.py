"""`coapgate demo`, as a user runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import require
from tests.programs import started

TIME_LIMIT = 60.0
"""Seconds in which a new user has seen a message on the bus; here it takes a few."""

COMMAND = (sys.executable, "-m", "coapgate", "demo")
COMMANDS = {
    "mosquitto": (*COMMAND, "--count", "4"),
    # As where no mosquitto is installed.
    "iotcore": (sys.executable, "-c", "from coapgate.cli.demo import demo; demo(4, 'iotcore')"),
}


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The demo's temporary files would be in a folder of this test's; in the end none are left."""
    yield os.environ | {"TMPDIR": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broker", ["mosquitto", "iotcore"])
async def test_it_shows_messages_of_both_devices_and_leaves_nothing(
    environment: dict[str, str], broker: str
) -> None:
    if broker == "mosquitto":
        require("mosquitto")
    command = COMMANDS[broker]

    async with asyncio.timeout(TIME_LIMIT), started(*command, env=environment) as demo:
        assert await demo.end() == 0

    lines = demo.output.decode().splitlines()
    assert lines[0].startswith("coapgate demo: ")
    topics = [line.split("  ")[0] for line in lines if line.startswith("coapgate/")]
    assert sorted(topics) == [
        "coapgate/default/thermometer-1/up/temperature",
        "coapgate/default/thermometer-1/up/temperature",
        "coapgate/default/valve-2/up/state",
        "coapgate/default/valve-2/up/state",
    ]
    assert "    auth          psk" in lines
    assert "    auth          x509" in lines
    assert sum("known by its Connection ID: no new handshake" in line for line in lines) == 2
    assert "4 messages arrived." in lines
    assert any("coapgate run --config" in line for line in lines[-5:])
    noise = [line for line in lines if "arning" in line or "rror" in line or "\x1b" in line]
    assert noise == []


async def test_it_ends_on_ctrl_c(environment: dict[str, str]) -> None:
    async with started(*COMMAND, env=environment) as demo:
        await demo.until(b"message-id")
        demo.interrupt()
        assert await demo.end() == 0

    assert b"arrived." in demo.output
    assert b"Traceback" not in demo.output


async def test_it_minds_no_configuration_of_the_operators(environment: dict[str, str]) -> None:
    env = environment | {
        "COAPGATE_MQTT__URL": "mqtt://broker.example:1883",
        "COAPGATE_CONFIG": "/nonexistent",
    }

    async with started(*COMMAND, "--count", "1", env=env) as demo:
        assert await demo.end() == 0

    assert b"broker.example" not in demo.output


async def test_a_demo_of_nothing_is_misused(environment: dict[str, str]) -> None:
    async with started(*COMMAND, "--count", "0", env=environment) as demo:
        assert await demo.end() == 2
