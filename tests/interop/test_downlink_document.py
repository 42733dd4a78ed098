"""The examples of docs/downlink.md, run as a reader types them, with what they print."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coapgate.downlink.outcomes import RequestOutcome
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, Response
from tests.conftest import StartMosquitto
from tests.gateway_fixtures import StartGateway
from tests.gateways import Running
from tests.interop.test_documentation import KEY, enter, placed
from tests.peers import Mosquitto, require
from tests.rawpeer import RawPeer, connected

DOCUMENT = (Path(__file__).parents[2] / "docs" / "downlink.md").read_text()


def example(heading: str) -> tuple[str, list[str]]:
    """The command below a heading, and the lines that it is to print."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", DOCUMENT, re.DOTALL | re.MULTILINE)
    command = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    printed = re.search(r"```text\n(.*?)```", section, re.DOTALL)
    assert command is not None
    assert printed is not None
    return command[1], printed[1].splitlines()


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> AsyncIterator[Running]:
    """With the devices that the document tells of."""
    gateway = await start_gateway(mqtt={"root": "coapgate"}, coap={"response_timeout": 1.0})
    keys = {
        name: gateway.installation.add_psk(name, secret=KEY)
        for name in ("lamp", "siren", "meter", "valve")
    }

    def switch(message: Message) -> Response:
        return Response(Code.CHANGED, (), b"was off")

    async def stay_silent(siren: RawPeer) -> None:
        while True:
            request = await siren.receive()
            siren.send(Message(Kind.ACK, Code.EMPTY, request.message_id))

    address = (gateway.host, gateway.port)
    async with gateway.device(keys["lamp"], serve=switch), connected(address, keys["siren"]) as one:
        silent = asyncio.create_task(stay_silent(one))
        try:
            yield gateway
        finally:
            silent.cancel()


def test_every_outcome_has_an_example() -> None:
    for outcome in RequestOutcome:
        assert example(outcome)[0]


@pytest.mark.parametrize("outcome", RequestOutcome)
async def test_an_example_prints_what_the_document_says(
    outcome: RequestOutcome, gateway: Running, broker: Mosquitto, tmp_path: Path
) -> None:
    require("mosquitto_rr")
    command, expected = example(outcome)

    output = await enter(here(command, gateway, broker), tmp_path)

    for line in expected:
        assert line in output


def here(command: str, gateway: Running, broker: Mosquitto) -> str:
    for program in ("mosquitto_rr", "mosquitto_pub"):
        command = command.replace(program, f"{program} -h {broker.host} -p {broker.port}")
    return placed(command, gateway, broker)


async def test_a_state_is_published_read_and_observed_as_described(
    gateway: Running, broker: Mosquitto, tmp_path: Path
) -> None:
    require("coap-client-openssl")
    section = DOCUMENT.partition("## State")[2].partition("### Files")[0]
    publish, read, observe = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)

    await enter(here(publish, gateway, broker), tmp_path)
    for command in (read, observe):
        assert '{"level":7}' in await enter(here(command, gateway, broker), tmp_path)


# The broker ends before the gateway.
@pytest.mark.expects_warnings("nothing listens where the broker should be")
async def test_with_the_brokers_access_as_described_backends_reach_their_own_tenant_alone(
    start_gateway: StartGateway, mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    require("mosquitto_rr")
    (access,) = re.findall(r"```acl\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "acl").write_text(access)
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    passwords = tmp_path / "passwords"
    for option, user in (("-c", "coapgate"), ("", "acme-backend")):
        await enter(
            f"{require('mosquitto_passwd')} {option} -b {passwords} {user} secret", tmp_path
        )
    lines = (f"acl_file {tmp_path / 'acl'}", f"password_file {passwords}")
    broker = mosquitto(*lines)
    gateway = await start_gateway(
        broker.url,
        mqtt={
            "root": "coapgate",
            "username": "coapgate",
            "password_file": str(tmp_path / "password"),
        },
    )

    def switch(message: Message) -> Response:
        return Response(Code.CHANGED, (), b"was off")

    def ask(tenant: str) -> str:
        program = f"mosquitto_rr -h {broker.host} -p {broker.port} -u acme-backend -P secret"
        return (
            f"{program} -V mqttv5 -q 1 -W 3 -m on -F '%P %p' "
            f"-t coapgate/{tenant}/lamp/request/PUT/light -e coapgate/acme/reply/app"
        )

    installation = gateway.installation
    acme, other = (installation.add_psk("lamp", tenant="acme"), installation.add_psk("lamp-2"))
    async with gateway.device(acme, serve=switch), gateway.device(other, serve=switch):
        assert "was off" in await enter(ask("acme"), tmp_path)
        assert await enter(f"{ask('default')} || true", tmp_path) in ("", "Timed out\n")

    assert gateway.gateway.backends.policy.deliveries.outcomes == {"answered": 1}
