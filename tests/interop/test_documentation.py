"""Commands of the documents, run as a reader types them, by peers that nobody here wrote.

Each is run by itself, in a folder with the files that the documents name. Only what depends on the
machine is put in its place: the gateway's address, and the broker's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.model import DEFAULT_TENANT, DeviceId, DeviceIdSource
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import verify_chain
from coapgate.pki.factory import FactoryCa
from coapgate.pki.server import load_server_certificate
from tests.bus import Bus, listening
from tests.gateway_fixtures import StartGateway
from tests.gateways import Running
from tests.peers import PACKAGES, Mosquitto, require, require_module
from tests.programs import Program, started
from tests.waiting import in_its_own_task

ROOT = Path(__file__).parents[2]
FOLLOWED = ROOT / "docs/credentials.md"
"""Its commands build on one another: `test_credentials_document` runs them in their order."""

DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")} - {FOLLOWED}
)

ON_A_MACHINE = {
    "docker": "needs Docker",
    "install": "changes the machine",
    "journalctl": "reads the machine's log",
    "make": "is how this runs; tests/cli/test_demo.py runs the demo",
    "python3": "installs, as the Makefile does",
    "/opt/coapgate/bin/pip": "installs, as the Makefile does",
    "sudo": "wants the user that the service runs as",
    "systemctl": "changes the machine",
    "useradd": "changes the machine",
}
"""Commands that no test runs, and why."""

KEY = b"correct-horse-16"


def typed() -> list[tuple[str, str]]:
    """Every command of the documents, in order, and the document's name."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            for line in re.sub(r"\\\n\s*|(?<=\|)\n\s*", " ", block).splitlines():
                if line and not line.startswith("#"):
                    found.append((document.name, line))
    return found


def program_of(command: str) -> str:
    """The program that a line is about; in a pipe, the one that is fed."""
    piped = re.search(r"\) \| +(\S+)", command)
    return piped[1] if piped else command.split()[0]


def is_recipe(command: str) -> bool:
    """Whether it makes a certificate, from what the line before it made."""
    return command.startswith(("openssl req", "openssl x509", "cp "))


COMMANDS = [
    pytest.param(command, id=f"{document}: {command[:60]}")
    for document, command in typed()
    if program_of(command) not in ON_A_MACHINE
    and not is_recipe(command)
    and document != "downlink.md"  # test_downlink_document.py runs them
]


def test_commands_that_no_test_runs_are_there_and_few() -> None:
    programs = {program_of(command) for _, command in typed()}

    assert ON_A_MACHINE.keys() <= programs
    known = PACKAGES.keys() | {"aiocoap-client", "coapgate", "cp", "export"}
    assert programs - ON_A_MACHINE.keys() <= known


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    """A gateway whose topics are those of the documents."""
    return await start_gateway(mqtt={"root": "coapgate"})


@pytest.fixture
async def bus(gateway: Running, broker: Mosquitto) -> AsyncIterator[Bus]:
    async with in_its_own_task(listening(broker.host, broker.port, "coapgate/default")) as bus:
        yield bus


@pytest.fixture
def folder(gateway: Running, tmp_path: Path) -> Path:
    """Where a reader would be: with keys, certificates and aiocoap's credentials."""
    installation = gateway.installation
    installation.ca.issue_device("sensor-7").write(tmp_path, "device")
    (tmp_path / "gateway-ca.pem").write_bytes(installation.ca.certificate_pem)
    (tmp_path / "factory-ca.pem").write_bytes(FactoryCa.create("Another").certificate_pem)
    (tmp_path / "new.key").write_text("hex:00112233445566778899aabbccddeeff\n")
    (tmp_path / "master.key").write_text("hex:00112233445566778899aabbccddeeff\n")
    (tmp_path / "identities.txt").write_text("acme-sensor-1\nacme-sensor-2\n")
    (credentials,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/devices.md").read_text(), re.S)
    placed = credentials.replace("127.0.0.1", gateway.address)
    assert json.loads(placed)
    (tmp_path / "credentials.json").write_text(placed)
    return tmp_path


def placed(command: str, gateway: Running, broker: Mosquitto) -> str:
    """The command for this gateway and this broker."""
    for shown, here in (
        ("coaps://127.0.0.1/", f"coaps://{gateway.address}/"),
        ("coaps://gateway.example/", f"coaps://{gateway.address}/"),
        ("127.0.0.1:5684", gateway.address),
        ("--port 5684", f"--port {gateway.port}"),
        ("mosquitto_sub", f"mosquitto_sub -h {broker.host} -p {broker.port}"),
    ):
        command = command.replace(shown, here)
    return command


async def enter(command: str, folder: Path, **environment: str) -> str:
    """Type a command that ends by itself; what it printed."""
    async with in_shell(command, folder, **environment) as shell:
        status = await shell.end()
    output = shell.output.decode(errors="backslashreplace")
    assert status == 0, output
    return output


def in_shell(
    command: str, folder: Path, **environment: str
) -> AbstractAsyncContextManager[Program]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return started(
        "bash",
        "-c",
        f"cd {shlex.quote(str(folder))} && {command}",
        env=os.environ | {"PATH": path} | environment,
    )


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_does_what_its_document_says(
    gateway: Running, bus: Bus, broker: Mosquitto, folder: Path, command: str
) -> None:
    installation = gateway.installation
    program = program_of(command)
    config = {"COAPGATE_CONFIG": str(installation.config_file)}
    if program == "coapgate":
        installation.registry.add_psk(
            DEFAULT_TENANT, DeviceId("sensor-1"), b"sensor-1", KEY[::-1], create_device=True
        )
        if command == "coapgate run":
            config["COAPGATE_MQTT__CLIENT_ID"] = "another"
            config["COAPGATE_NODE"] = "1"
            await serves(in_shell(f"exec {command}", folder, **config))
        else:
            await enter(command, folder, **config)
        return
    if program == "aiocoap-client":
        require_module("DTLSSocket")
    elif program in PACKAGES:
        require(program)
    installation.add_psk("sensor-1", secret=KEY)
    installation.add_anchor()
    command = placed(command, gateway, broker)
    if program == "mosquitto_sub":
        async with in_shell(f"exec {command.partition(' &')[0]}", folder) as shell:
            await shell.until(b"coapgate/$gateway/0/status")
        return

    output = await enter(command, folder)

    device = "sensor-7" if "device.pem" in command else "sensor-1"
    if "/hello" in command:
        assert f'"device":"{device}"' in output
    elif "temperature" in command:
        published = await bus.next()
        assert published.topic == f"coapgate/default/{device}/up/temperature"
        assert published.payload == b"21.5"
    elif program == "openssl":
        assert "Verify return code: 0 (ok)" in output or "PSK-AES128-CCM8" in output
    elif program == "gnutls-cli":
        assert "Handshake was completed" in output
    if "od -An -tx1" in command:
        assert output.split() == ["60", "44", "00", "01"]


async def serves(shell: AbstractAsyncContextManager[Program]) -> None:
    async with shell as program:
        await program.until(b"publishes to")
        program.terminate()
        assert await program.end() == 0


async def test_certificates_made_by_openssl_as_described_are_good(tmp_path: Path) -> None:
    require("openssl")
    for _, command in typed():
        if is_recipe(command):
            await enter(command, tmp_path)

    load_server_certificate(tmp_path / "gateway.pem", tmp_path / "gateway.key")
    now = time.time()
    anchor = parse_anchor(
        (tmp_path / "gateway-ca.pem").read_bytes(),
        name="factory",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=now,
    )
    leaf = x509.load_pem_x509_certificate((tmp_path / "device.pem").read_bytes())
    chain = (leaf.public_bytes(Encoding.DER),)
    assert verify_chain(chain, (anchor,), now).value == "sensor-7"
