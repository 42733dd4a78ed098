"""Whatever octets a handshake message has, it parses to what it was made of, or is refused.

`python -m tests.fuzz.fuzz_messages -max_total_time=60` runs it under atheris.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from coapgate.dtls import messages as m
from coapgate.dtls.extensions import encode_answer, parse_offer
from coapgate.dtls.fragments import MAX_AHEAD_LENGTH, Reassembly
from coapgate.errors import DtlsError, Refused

MAX_MESSAGE = 8192


def client_hello(body: bytes) -> None:
    hello = m.ClientHello.parse(body)
    assert m.ClientHello.parse(hello.encode()) == hello
    assert m.parse_hello_start(body) == m.HelloStart(
        hello.version, hello.random, hello.session_id, hello.cookie
    )
    with suppress(Refused):
        offer = parse_offer(hello.extensions, hello.cipher_suites)
        assert set(encode_answer(offer, with_ecdhe=True)) <= {*hello.extensions, 0xFF01}


def hello_start(body: bytes) -> None:
    start = m.parse_hello_start(body)
    assert body.startswith(start.version + start.random)


def hello_verify_request(body: bytes) -> None:
    assert body.endswith(m.parse_hello_verify_request(body))


def server_hello(body: bytes) -> None:
    hello = m.ServerHello.parse(body)
    assert m.ServerHello.parse(hello.encode()) == hello


def certificate(body: bytes) -> None:
    chain = m.parse_certificate(body)
    assert len(chain) <= m.MAX_CERTIFICATES
    assert m.encode_certificate(chain) == body


def server_key_exchange(body: bytes) -> None:
    assert m.ServerKeyExchange.parse(body).encode() == body


def certificate_request(body: bytes) -> None:
    assert m.CertificateRequest.parse(body).encode() == body


def certificate_verify(body: bytes) -> None:
    assert m.CertificateVerify.parse(body).encode() == body


def psk_identity(body: bytes) -> None:
    assert m.encode_psk_identity(m.parse_psk_identity(body)) == body


def point(body: bytes) -> None:
    assert m.encode_point(m.parse_point(body)) == body


def fragments(octets: bytes) -> None:
    """All fragments of a record, put together."""
    reassembly = Reassembly(0, MAX_MESSAGE)
    for fragment in m.parse_fragments(octets):
        was_added = reassembly.add(fragment)
        assert not was_added or fragment.length <= MAX_MESSAGE
        while reassembly.next() is not None:
            reassembly.advance()
    held = sum(partial.length for partial in reassembly._partials.values())
    assert held <= MAX_MESSAGE + MAX_AHEAD_LENGTH


READERS: tuple[Callable[[bytes], None], ...] = (
    client_hello,
    hello_start,
    hello_verify_request,
    server_hello,
    certificate,
    server_key_exchange,
    certificate_request,
    certificate_verify,
    psk_identity,
    point,
    fragments,
)


def test_one_input(data: bytes) -> None:
    """One octet says which kind of message, the rest is its body."""
    if data:
        with suppress(DtlsError):
            READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
