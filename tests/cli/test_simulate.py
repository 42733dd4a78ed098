"""`coapgate simulate`, as an operator runs it against a gateway of his own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from coapgate.cli import main
from coapgate.model import DEFAULT_TENANT, Batch
from coapgate.registry.psk import parse_key, render_key
from tests.backend import publish
from tests.gateway_fixtures import bus, gateway, install, start_gateway
from tests.gateways import Running
from tests.peers import Mosquitto
from tests.programs import Program, started
from tests.waiting import DEADLINE, until

__all__ = ["bus", "gateway", "install", "start_gateway"]

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
KEY = "hex:00112233445566778899aabbccddeeff"


def identities(gateway: Running, folder: Path, count: int) -> Path:
    """A file with the keys of so many devices, which the gateway knows."""
    keys = [gateway.installation.add_psk(f"sim-{number}") for number in range(count)]
    lines = [f"{key.identity.decode()},{render_key(key.secret)}" for key in keys]
    file = folder / "fleet.csv"
    file.write_text("\n".join(["identity,key", *lines, ""]))
    return file


async def simulated(gateway: Running, *options: object) -> tuple[int, str, Program]:
    """Run it at this gateway: exit code, all that it printed, the program."""
    words = [str(option) for option in options]
    command = (sys.executable, "-m", "coapgate", "simulate", gateway.address, *words)
    async with started(*command) as program:
        code = await program.end()
    return code, program.output.decode(), program


def document(printed: str) -> Any:
    """What `--json` printed, which follows what was announced on the other stream."""
    return json.loads(printed[printed.index("{") : printed.rindex("}") + 1])


async def test_a_fleet_with_keys_is_announced_and_answered(
    gateway: Running, tmp_path: Path
) -> None:
    file = identities(gateway, tmp_path, 10)

    code, printed, _ = await simulated(
        gateway, "--identities", file, "--rate", 20, "--duration", 0.5
    )

    lines = printed.splitlines()
    assert code == 0, printed
    assert lines[0] == f"target: coaps://{gateway.address}, at {gateway.address}"
    assert lines[1] == (
        "10 devices connect, 200 a second; then POST /load with 100 octets, 20 a second, "
        "for 0.5 seconds"
    )
    table = {line[:16].strip(): line for line in lines[2:]}
    assert "10 done" in table["handshakes"]
    assert "10 in 0.5 s" in table["requests"]
    assert table["answered well"].endswith(" 10")
    assert "p99" in table["time"]
    counters = gateway.gateway.pump.server.counters
    assert counters.handshakes_completed == 10
    assert "\x1b" not in printed


async def test_a_fleet_with_derived_keys_needs_no_registration(
    gateway: Running, tmp_path: Path
) -> None:
    master = tmp_path / "master.key"
    master.write_text(KEY)
    registry = gateway.installation.registry
    batch = Batch(0, "line-1", DEFAULT_TENANT, "acme-", "", max_devices=10)
    registry.add_batch(batch, parse_key(KEY))

    code, printed, _ = await simulated(
        gateway, "--psk-batch", master, "--psk-pattern", "acme-{device}", "--devices", 10,
        "--rate", 20, "--duration", 0.5, "--json",
    )  # fmt: skip

    assert code == 0, printed
    assert document(printed)["handshakes"]["done"] == 10
    names = {entry.device.device for entry in registry.devices()}
    assert names == {f"sim-{number}" for number in range(1, 11)}
    assert registry.get_batch("line-1").device_count == 10


async def test_a_fleet_with_certificates_that_moves_reports_in_json(
    gateway: Running, tmp_path: Path
) -> None:
    installation = gateway.installation
    installation.add_anchor()
    for number in range(5):
        installation.ca.issue_device(f"sim-{number}").write(tmp_path, f"sim-{number}")

    code, printed, _ = await simulated(
        gateway, "--certificates", tmp_path, "--ca", installation.ca_file, "--devices", 5,
        "--rate", 20, "--duration", 0.5, "--cid", "--move-every", 1, "--size", 7, "--json",
    )  # fmt: skip

    assert code == 0, printed
    report = document(printed)
    assert report["went_well"] is True
    assert report["target"] == f"coaps://{gateway.address}"
    assert report["requests"]["answered"] == 10
    assert report["requests"]["not_sent"] == {"busy": 0, "late": 0, "no_socket": 0}
    assert report["handshakes"]["done"] == report["handshakes"]["connection_ids"] == 5
    assert report["moves"] == 5
    assert gateway.gateway.pump.server.counters.address_moves == 5


async def test_a_fleet_sleeps(gateway: Running, tmp_path: Path) -> None:
    file = identities(gateway, tmp_path, 10)

    code, printed, _ = await simulated(
        gateway, "--identities", file, "--rate", 20, "--duration", 0.5, "--cid", "--sleep", "--json"
    )

    assert code == 0, printed
    assert document(printed)["sleeps"] == 20
    assert gateway.gateway.pump.server.association_count == 10


async def test_what_is_answered_wrongly_is_told_and_fails(gateway: Running, tmp_path: Path) -> None:
    file = identities(gateway, tmp_path, 1)

    code, printed, _ = await simulated(
        gateway, "--identities", file, "--rate", 200, "--duration", 0.5
    )

    assert code == 1
    assert re.search(r"^  answered 4\.29 +\d+$", printed, re.MULTILINE), printed
    assert "hint: 4.29: more than the server lets one device ask" in printed


async def test_nobody_there_is_told_at_once_and_fails(gateway: Running, tmp_path: Path) -> None:
    file = identities(gateway, tmp_path, 1)
    command = ("simulate", "127.0.0.1:9", "--identities", str(file), "--rate", "1")

    async with started(sys.executable, "-m", "coapgate", *command) as program:
        assert await program.end() == 1

    printed = program.output.decode()
    assert "1: nobody listens there" in printed
    assert "hint: no device was let in: check the address" in printed


async def test_ctrl_c_ends_the_load_and_sums_it_up(gateway: Running, tmp_path: Path) -> None:
    file = identities(gateway, tmp_path, 1)
    command = ("simulate", gateway.address, "--identities", str(file), "--rate", "10")
    counters = gateway.gateway.pump.server.counters

    async with started(
        sys.executable, "-m", "coapgate", *command, "--duration", "600", "--json"
    ) as program:
        await until(lambda: counters.records_opened >= 4, "two requests and more have arrived")
        program.interrupt()
        await program.end()

    report = document(program.output.decode())
    assert report["requests"]["seconds"] < 60
    assert report["requests"]["sent"] == report["requests"]["answered"] >= 2


async def test_a_terminal_shows_a_live_line(gateway: Running, tmp_path: Path) -> None:
    file = identities(gateway, tmp_path, 20)
    command = ("simulate", gateway.address, "--identities", str(file), "--rate", "20")
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coapgate", *command, "--duration", "1", "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(theirs)
    output, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed: all of it was read
        while more := os.read(ours, 65536):
            shown += more
    os.close(ours)

    assert process.returncode == 0
    assert json.loads(output)["requests"]["answered"] == 20
    assert re.search(
        rb"sending: 20/20 handshakes, \d+ requests/s, \d+ answered, 0 lost, p50", shown
    )


async def test_a_fleet_observes_and_counts_what_it_hears(
    gateway: Running, broker: Mosquitto, tmp_path: Path
) -> None:
    file = identities(gateway, tmp_path, 5)
    down = [f"{gateway.installation.root}/default/sim-{n}/down/led" for n in range(5)]
    for topic in down[:4]:  # the fifth has no state, and so cannot observe
        await publish(broker, topic, b"off")
    observations = gateway.gateway.pump._layer.observations
    options = ("--identities", file, "--rate", 5, "--duration", 4, "--observe", "/led", "--json")
    run = asyncio.create_task(simulated(gateway, *options))
    await until(lambda: len(observations) == 4, "four devices observe")
    for topic in down[:4]:
        await publish(broker, topic, b"on")

    code, printed, _ = await run

    assert code == 1  # not all of them observe
    found = document(printed)["observe"]
    assert found == {"registered": 4, "refused": {"4.04": 1}, "notifications": 4}
    assert document(printed)["requests"]["answered"] == 20
    assert "publish it retained" in printed


@pytest.mark.parametrize(
    ("words", "message", "advice"),
    [
        ("--rate 1001", "--rate 1001 is more than the 1000 requests a second", "--max-rate 1001"),
        ("--rate 1 --connect-rate 5000", "--connect-rate 5000 is more", "--max-rate 5000"),
        ("--rate 1 --devices 3", "has 2 identities; 3 wanted", "a credential of its own"),
        ("--rate 1 --sleep", "needs a Connection ID", "add --cid"),
        ("--rate 1 --cid --sleep --observe led", "sleeps hears of nothing", "--observe away"),
        ("--rate 1 --observe /", "has an empty segment", "--observe led"),
        ("--rate 1 --certificates .", "--identities, --psk-batch and --certificates", "CSV"),
    ],
)
def test_what_would_do_harm_is_misuse(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
    advice: str,
) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text(f"identity,key\nsensor-1,{KEY}\nsensor-2,{KEY}\n")

    code = main(["simulate", "127.0.0.1", "--identities", str(file), *words.split()])

    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert message in captured.err.splitlines()[0]
    assert advice in captured.err.splitlines()[1]


def test_devices_with_certificates_do_not_believe_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("simulate", "127.0.0.1", "--rate", "1", "--certificates", str(tmp_path))

    assert main(words) == 2
    assert "--ca FILE" in capsys.readouterr().err


async def test_the_example_of_the_documents_does_what_it_says(
    gateway: Running, tmp_path: Path
) -> None:
    (example,) = re.findall(r"^\$ coapgate simulate (\S+) (.*)$", OPERATIONS, re.MULTILINE)
    identities(gateway, tmp_path, 50)
    options = [
        str(tmp_path / word) if word == "fleet.csv" else word for word in shlex.split(example[1])
    ]
    # The last of an option counts: the document's load would take longer than a test may.
    code, printed, _ = await simulated(gateway, *options, "--duration", 1)

    assert code == 0, printed
    shown = re.findall(r"^(handshakes|requests|  answered well|  time) ", OPERATIONS, re.MULTILINE)
    for name in shown:
        assert re.search(rf"^{name} ", printed, re.MULTILINE), printed
