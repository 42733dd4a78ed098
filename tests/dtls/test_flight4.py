"""What the server answers to a hello that it agreed on."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls import messages as m
from coapgate.dtls.extensions import ExtensionType, Offer
from coapgate.dtls.flight4 import compose
from coapgate.dtls.groups import GROUPS
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.negotiation import Parameters
from coapgate.dtls.signatures import SCHEMES
from coapgate.dtls.suites import SUITES
from tests.dtls.factory import server_certificate

CLIENT_RANDOM, SERVER_RANDOM = bytes(32), bytes([1]) * 32


def test_plain_psk_sends_hello_and_done_and_no_server_key_exchange() -> None:
    flight = compose(Parameters(SUITES[0xC0A8], Offer()), None, CLIENT_RANDOM, SERVER_RANDOM)

    assert [kind for kind, _ in flight.messages] == [T.SERVER_HELLO, T.SERVER_HELLO_DONE]
    assert flight.ephemeral is None
    hello = m.ServerHello.parse(flight.messages[0][1])
    assert hello == m.ServerHello(SERVER_RANDOM, 0xC0A8)
    # The session id is empty: there is no resumption.
    assert hello.session_id == b""


def test_the_answer_has_only_extensions_that_were_asked_for() -> None:
    offer = Offer(
        max_fragment_length=512,
        point_formats=(1, 0),
        extended_master_secret=True,
        secure_renegotiation=True,
    )
    flight = compose(Parameters(SUITES[0xC0A8], offer), None, CLIENT_RANDOM, SERVER_RANDOM)

    assert m.ServerHello.parse(flight.messages[0][1]).extensions == {
        ExtensionType.RENEGOTIATION_INFO: b"\0",
        ExtensionType.MAX_FRAGMENT_LENGTH: b"\1",
        ExtensionType.EXTENDED_MASTER_SECRET: b"",
    }


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1])
def test_ecdhe_sends_a_new_signed_point_and_asks_for_a_certificate(
    group: int, curve: type[ec.EllipticCurve]
) -> None:
    certificate = server_certificate(curve)
    chosen = Parameters(SUITES[0xC0AE], Offer(point_formats=(0,)), GROUPS[group], SCHEMES[0x0403])

    flights = [compose(chosen, certificate, CLIENT_RANDOM, SERVER_RANDOM) for _ in range(2)]

    points = set()
    for flight in flights:
        kinds, (hello, chain, exchange, request, done) = zip(*flight.messages, strict=True)
        assert kinds == (
            T.SERVER_HELLO,
            T.CERTIFICATE,
            T.SERVER_KEY_EXCHANGE,
            T.CERTIFICATE_REQUEST,
            T.SERVER_HELLO_DONE,
        )
        extensions = m.ServerHello.parse(hello).extensions
        assert extensions[ExtensionType.EC_POINT_FORMATS] == b"\1\0"
        assert m.parse_certificate(chain) == certificate.chain
        signed = m.ServerKeyExchange.parse(exchange)
        parameters = m.ServerKeyExchange.encode_parameters(group, signed.point)
        assert SCHEMES[signed.scheme].verify(
            certificate.key.public_key(),
            signed.signature,
            CLIENT_RANDOM + SERVER_RANDOM + parameters,
        )
        points.add(signed.point)
        assert done == b""
        asked = m.CertificateRequest.parse(request)
        # ecdsa_sign, which is Ed25519's too, and rsa_sign; no authority names: they are tenants.
        assert asked.certificate_types == bytes((64, 1))
        assert asked.schemes == tuple(SCHEMES)
        assert asked.authorities == b""
    assert len(points) == 2


def test_certificate_request_offers_what_the_design_names_and_nothing_with_sha_1() -> None:
    assert set(SCHEMES) == {
        *(0x0403, 0x0503, 0x0603),
        *(0x0401, 0x0501, 0x0601),
        *(0x0804, 0x0805, 0x0806),
        0x0807,
    }
