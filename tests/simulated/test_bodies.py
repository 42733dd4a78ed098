"""Bodies above one datagram, between the device's code and the gateway's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from coapgate.coap.messages import Settings
from coapgate.errors import NoAnswer
from coapgate.model import Code, Content
from coapgate.simulated.bodies import read_body, send_body
from coapgate.simulated.message import Kind, Message, Response, request_options
from tests.coap.gate import Gate

BODY = bytes(range(256)) * 40


class Direct:
    """Asks the gateway's message layer, without DTLS in between."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.gate = Gate(settings)
        self.endpoint = self.gate.open()
        self.endpoint.association.max_plaintext = 1180
        self.message_ids = itertools.count()
        self.before: Callable[[int], None] = lambda number: None

    async def request(self, code: int, path: str, payload: bytes = b"", **options: Any) -> Response:
        number = next(self.message_ids)
        self.before(number)
        usual = request_options(path.encode().split(b"/"), (), options.get("content_format"))
        message = Message(Kind.CON, code, number, b"tk", (*usual, *options["options"]), payload)
        self.gate.receive(self.endpoint, message.encode(), 10.0)
        if not self.gate.sent:
            self.gate.conclude(10.0)
        answer = Message.parse(self.gate.take()[0])
        return Response(answer.code, answer.options, answer.payload)


@pytest.mark.parametrize("exponent", range(7))
@pytest.mark.parametrize("length", [0, 1, 1024, 1025, len(BODY)])
async def test_a_body_arrives_whole_both_ways(exponent: int, length: int) -> None:
    device = Direct()
    body = BODY[:length]
    device.gate.contents.states["state"] = Content.of(body, 42)

    sent = await send_body(device, Code.PUT, "log", body, content_format=42, exponent=exponent)
    response, read = await read_body(device, "state", exponent=exponent)

    assert (sent.code, response.code) == (Code.CHANGED, Code.CONTENT)
    assert device.gate.publisher.published[0].payload == body
    assert read == body


async def test_a_refusal_ends_the_body() -> None:
    device = Direct(Settings(max_body=3000))

    refused = await send_body(device, Code.POST, "log", BODY)

    assert (refused.code, refused.size1) == (Code.REQUEST_ENTITY_TOO_LARGE, 3000)
    assert (await read_body(device, "none"))[0].code == Code.NOT_FOUND


@pytest.mark.parametrize("length", [3000, 9000])
async def test_a_state_that_changes_while_it_is_read_is_read_anew(length: int) -> None:
    device = Direct()
    device.gate.contents.states["state"] = Content.of(BODY, 42)
    newer = Content.of(bytes(length), 42)

    def change(number: int) -> None:
        if number == 3:
            device.gate.contents.states["state"] = newer
            device.gate.layer.downloads.handle_timer(1e9)

    device.before = change

    assert (await read_body(device, "state"))[1] == newer.payload


@pytest.mark.parametrize("is_same", [True, False])
async def test_a_download_is_resumed_if_the_state_is_the_same(is_same: bool) -> None:
    device = Direct()
    content = Content.of(BODY, 42)
    device.gate.contents.states["state"] = content
    etag = content.etag if is_same else b"another"

    assert (await read_body(device, "state", start=BODY[:4096], etag=etag))[1] == BODY
    requests = next(device.message_ids)
    assert requests == (6 if is_same else 11)


async def test_a_block_that_was_not_asked_for_is_no_answer() -> None:
    class Lying:
        async def request(self, code: int, path: str, *rest: Any, **options: Any) -> Response:
            return Response(Code.CONTENT, ((23, b"\x1e"),), bytes(1024))

    with pytest.raises(NoAnswer):
        await read_body(Lying(), "state")
