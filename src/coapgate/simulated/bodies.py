"""Bodies above one datagram, as a device sends and reads them: RFC 7959."""

from __future__ import annotations

from typing import Protocol

from coapgate.coap.blocks import Block
from coapgate.coap.options import BLOCK1, BLOCK2, ETAG, SIZE1, encode_uint
from coapgate.errors import NoAnswer
from coapgate.model import Code
from coapgate.simulated.message import Response


class Asking(Protocol):
    """A device, or what asks like one."""

    async def request(
        self,
        code: int,
        path: str,
        payload: bytes = b"",
        *,
        content_format: int | None = None,
        options: tuple[tuple[int, bytes], ...] = (),
    ) -> Response:
        """Ask, and wait for the response, whatever its code."""


async def send_body(
    device: Asking,
    code: int,
    path: str,
    body: bytes,
    *,
    content_format: int | None = None,
    exponent: int = 6,
) -> Response:
    """Send a body in blocks of `16 << exponent` octets; the response to the last one, or to the
    first that is refused. Raises as `Device.request`.
    """
    size = 16 << exponent
    number = 0
    while True:
        more = (number + 1) * size < len(body)
        options = [(BLOCK1, Block(number, more, exponent).encode())]
        if number == 0:
            options.append((SIZE1, encode_uint(len(body))))
        response = await device.request(
            code,
            path,
            body[number * size :][:size],
            content_format=content_format,
            options=tuple(options),
        )
        if response.code != Code.CONTINUE or not more:
            return response
        number += 1


async def read_body(
    device: Asking,
    path: str,
    *,
    exponent: int = 6,
    start: bytes = b"",
    etag: bytes | None = None,
) -> tuple[Response, bytes]:
    """Read a state in blocks of `16 << exponent` octets: the last response, and the whole body.

    `start` is what an earlier attempt read, whole blocks of the state with that `etag`. If the
    state changes meanwhile it is read anew. Raises as `Device.request`, and NoAnswer for blocks
    that do not follow one another.
    """
    size = 16 << exponent
    body = bytearray(start)
    while True:
        wanted = Block(len(body) // size, False, exponent).encode()
        response = await device.request(Code.GET, path, options=((BLOCK2, wanted),))
        found = next((value for number, value in response.options if number == ETAG), None)
        has_ended = response.code == Code.BAD_REQUEST  # before this block: it is shorter now
        if body and (has_ended or (response.code == Code.CONTENT and found != etag)):
            body.clear()
            continue
        if response.code != Code.CONTENT:
            return response, b""
        etag = found
        value = response.option(BLOCK2)
        if value is not None and value >> 4 != len(body) // size:
            raise NoAnswer("the gateway sent another block")
        body += response.payload
        if value is None or not value & 8:
            return response, bytes(body)
