"""docs/credentials.md, followed from its first command to its last, as a reader does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from coapgate.model import DEFAULT_TENANT, DeviceId, Tenant
from coapgate.registry.sqlite import SqliteRegistry
from tests.bus import Bus, listening
from tests.gateway_fixtures import Install
from tests.gateways import GatewayProcess, Installation, running_process
from tests.peers import Mosquitto, require
from tests.programs import Program, started
from tests.waiting import in_its_own_task, until

DOCUMENT = (Path(__file__).parents[2] / "docs/credentials.md").read_text()

BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)

NOT_HERE = ("export COAPGATE_CONFIG=", "systemctl ")
"""Lines for the machine of a reader; what they do is done by the test."""


class Reader:
    """Somebody who types what the document says; `output` is what the last block printed."""

    def __init__(
        self, folder: Path, installation: Installation, gateway: GatewayProcess, bus: Bus
    ) -> None:
        self.folder = folder
        self.installation = installation
        self.gateway = gateway
        self.bus = bus
        self.output = ""

    @property
    def registry(self) -> SqliteRegistry:
        return self.installation.registry

    async def enter(self, block: str) -> None:
        """Type a block; every command of it must succeed."""
        lines = [line for line in block.splitlines() if not line.startswith(NOT_HERE)]
        status = await self.run("\n".join(["set -euo pipefail", *lines]))
        assert status == 0, f"{block}\n{self.output}"

    async def run(self, script: str) -> int:
        """The exit status of a script."""
        async with self.in_shell(script) as program:
            status = await program.end()
        self.output = program.output.decode(errors="backslashreplace")
        return status

    async def until(self, command: str, octets: bytes) -> None:
        """Type a command that waits for more, until it has written `octets`."""
        async with self.in_shell(f"exec {command}") as program:
            await program.until(octets)

    def in_shell(self, script: str) -> AbstractAsyncContextManager[Program]:
        """Only the gateway's address is put in its place."""
        host, port = self.gateway.address
        for shown, here in (
            ("127.0.0.1:5684", f"{host}:{port}"),
            ("--dns gateway.example", f"--dns gateway.example --ip {host}"),
        ):
            script = script.replace(shown, here)
        env = os.environ | {
            "COAPGATE_CONFIG": str(self.installation.config_file),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        return started("bash", "-c", f"cd {shlex.quote(str(self.folder))} && {script}", env=env)

    def states(self, device: str) -> dict[str, str]:
        """The keys of a device, and what became of each."""
        entries = self.registry.psks(DEFAULT_TENANT, DeviceId(device))
        return {f"psk-{entry.number}": entry.state for entry in entries}

    async def explain(self, arguments: str) -> tuple[bool, str]:
        """Whether `coapgate explain` would let somebody in, and all that it said."""
        status = await self.run(f"coapgate explain {arguments}")
        assert status in (0, 1), self.output
        return status == 0, self.output

    async def reload(self, folder: Path) -> None:
        """Give the gateway its new certificate, as its operator does."""
        for name in ("gateway.pem", "gateway.key"):
            shutil.copy(folder / name, self.installation.folder / name)
        seen = self.gateway.program.output.count(b"reloaded")
        self.gateway.program.hang_up()
        await until(
            lambda: self.gateway.program.output.count(b"reloaded") > seen, "the gateway reloads"
        )


async def first_key(reader: Reader) -> None:
    assert "would be let in as device 'sensor-1' of tenant 'default', by psk-1" in reader.output
    assert (reader.folder / "sensor-1.psk").stat().st_mode & 0o077 == 0


async def rotation(reader: Reader) -> None:
    assert reader.states("sensor-1") == {"psk-1": "active", "psk-2": "backup"}


async def promotion(reader: Reader) -> None:
    assert "PSK-AES128-CCM8" in reader.output
    await until(
        lambda: reader.states("sensor-1") == {"psk-1": "retiring", "psk-2": "active"},
        "the next key is promoted",
    )
    event = await reader.bus.next_event()
    assert event.topic.endswith("/default/sensor-1/event/credential-promoted")


async def one_key_revoked(reader: Reader) -> None:
    assert reader.states("sensor-1") == {"psk-1": "revoked", "psk-2": "active"}
    is_let_in, said = await reader.explain("--psk-identity sensor-1 --key-file sensor-1.psk")
    assert not is_let_in
    assert "refused as" in said


async def derived_as_by_openssl(reader: Reader) -> None:
    (digest,) = re.findall(r"= ([0-9a-f]{64})", reader.output)
    assert f"acme-000001,hex:{digest}" in (reader.folder / "keys.csv").read_text().splitlines()


async def first_contact(reader: Reader) -> None:
    assert "PSK-AES128-CCM8" in reader.output
    assert list(reader.states("000001").values()) == ["active"]
    assert list(reader.states("000002").values()) == ["revoked"]
    assert not (await reader.explain("--psk-identity acme-000002"))[0]
    assert (await reader.explain("--psk-identity acme-000003"))[0]


async def batch_revoked(reader: Reader) -> None:
    # What was never seen is nobody's; a key of its own goes on.
    assert not (await reader.explain("--psk-identity acme-000003"))[0]
    assert (await reader.explain("--psk-identity acme-000001"))[0]


async def issued(reader: Reader) -> None:
    for name in ("sensor-7.key", "gateway.key", "line-ca/ca.key"):
        assert (reader.folder / name).stat().st_mode & 0o777 == 0o600
    await reader.reload(reader.folder)


async def anchored(reader: Reader) -> None:
    assert "would be let in as device 'sensor-7'" in reader.output
    assert "Verify return code: 0 (ok)" in reader.output
    device = reader.registry.get_device(DEFAULT_TENANT, DeviceId("sensor-7")).device
    assert device.labels == (("site", "berlin"),)


async def shared(reader: Reader) -> None:
    assert "would be let in as device 'Acme:0042' of tenant 'north'" in reader.output
    assert Tenant("north") in reader.registry.get_anchor("shared").tenants


async def proven(reader: Reader) -> None:
    assert reader.registry.get_anchor("customer").state == "active"


async def replaced(reader: Reader) -> None:
    assert "customer" not in {anchor.name for anchor in reader.registry.anchors_all()}


async def moved_to_certificates(reader: Reader) -> None:
    assert "would be let in as device 'sensor-1' of tenant 'default', by sha256:" in reader.output
    assert set(reader.states("sensor-1").values()) == {"revoked"}


async def lists(reader: Reader) -> None:
    for name, expected in (("sensor-7", False), ("sensor-8", False), ("sensor-1", True)):
        is_let_in, said = await reader.explain(f"--cert {name}.pem")
        assert is_let_in is expected, said
        assert expected or "refused as revoked" in said
    # The running gateway has read them, too.
    await until(lambda: b"revoked=2" in reader.gateway.program.output, "the next list is in force")
    await reader.until(SHOWN.replace("sensor-7", "sensor-8"), b"alert certificate revoked")


async def restored(reader: Reader) -> None:
    assert (await reader.explain("--cert sensor-9.pem"))[0]


async def renewed(reader: Reader) -> None:
    await reader.reload(reader.folder / "renewed")


SHOWN = next(
    line.removesuffix(" < /dev/null")
    for block in BLOCKS
    for line in block.replace("\\\n", "").splitlines()
    if "s_client" in line and "-cert sensor-7.pem" in line
)
"""How a device shows its certificate, in the document."""

Check = Callable[[Reader], Awaitable[None]]

CHECKS: dict[str, Check] = {
    "psk add sensor-1": first_key,
    "psk rotate sensor-1 --key-file": rotation,
    "-psk_identity sensor-1": promotion,
    "psk revoke psk-1": one_key_revoked,
    "openssl dgst": derived_as_by_openssl,
    "-psk_identity acme-000001": first_contact,
    "batch revoke line-4": batch_revoked,
    "pki issue gateway --ca root-ca --server --dns gateway.example --passphrase-file root.pass\n": (
        issued
    ),
    "-cert sensor-7.pem": anchored,
    "pki init shared-ca": shared,
    "anchor prove": proven,
    "anchor remove": replaced,
    "device trust sensor-1": moved_to_certificates,
    "anchor change example --crl": lists,
    "certificate restore": restored,
    "--out renewed": renewed,
}
"""What must be so after a block that holds this text."""


@pytest.mark.timeout(300)
async def test_the_document_can_be_followed_from_a_first_key_to_a_fleet_on_certificates(
    install: Install, broker: Mosquitto, tmp_path: Path
) -> None:
    require("openssl")
    folder = tmp_path / "reader"
    folder.mkdir()
    installation = install()
    root = f"{installation.root}/default"
    async with (
        running_process(installation) as gateway,
        in_its_own_task(listening(broker.host, broker.port, root)) as bus,
    ):
        reader = Reader(folder, installation, gateway, bus)
        checked = []
        for block in BLOCKS:
            await reader.enter(block)
            for text, check in CHECKS.items():
                if text in block:
                    await check(reader)
                    checked.append(text)
        assert sorted(checked) == sorted(CHECKS)
        gateway.program.terminate()
        await gateway.program.end()
    assert b"Traceback" not in gateway.program.output
    for secret in ("sensor-1.psk", "sensor-1-next.psk", "line-4.key"):
        digits = (folder / secret).read_text().strip().removeprefix("hex:").encode()
        assert digits not in gateway.program.output
