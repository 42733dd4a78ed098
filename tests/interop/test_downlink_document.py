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
