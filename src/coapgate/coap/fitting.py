"""Responses made to fit: into one record, and into what an unproven path may be sent."""

from __future__ import annotations

from coapgate.coap.endpoint import Association
from coapgate.coap.header import HEADER, TOKEN_LENGTH
from coapgate.coap.options import ECHO, encode_options, split_options
from coapgate.model import Code


def is_suppressed(code: int, no_response: int) -> bool:
    """Whether No-Response says so of the code's class (RFC 7967 section 2.1)."""
    return bool(no_response >> (code >> 5) - 1 & 1)


def fit(
    association: Association, code: int, token: bytes, options: bytes, payload: bytes
) -> tuple[int, bytes, bool]:
    """Response code, what follows the header, and whether there was too little credit for all.

    A diagnostic is cut to fit a record, content that does not fit is 5.00. Where the credit of an
    unproven path is too small, diagnostics go, and content becomes a 4.01 that tells how to prove
    the path (RFC 9175 section 2.3): the device asks again. Content is the answer to a GET, so
    nothing is carried out twice; what was published is answered without a payload.
    """
    if payload:
        room = association.max_plaintext - HEADER.size - len(token) - len(options) - 1
        if len(payload) > room:
            if code < Code.BAD_REQUEST:
                code, options, payload = Code.INTERNAL_SERVER_ERROR, b"", b""
            else:
                payload = payload[: max(0, room)].decode(errors="ignore").encode()
    body = token + options + b"\xff" + payload if payload else token + options
    path = association.unproven
    if path is None or association.can_send(HEADER.size + len(body)):
        return code, body, False
    if payload and code < Code.BAD_REQUEST:
        return Code.UNAUTHORIZED, token + encode_options([(ECHO, path.echo)]), True
    return code, token + options, True


def fit_again(association: Association, octets: bytes) -> bytes:
    """A response that was sent before, or an empty ACK, for an unproven path of little credit."""
    head, code, message_id = HEADER.unpack_from(octets)
    start = HEADER.size + (head & TOKEN_LENGTH)
    options, payload = split_options(octets, start)
    code, body, _ = fit(association, code, octets[HEADER.size : start], options, payload)
    return HEADER.pack(head, code, message_id) + body
