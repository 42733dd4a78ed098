"""What the server chooses from a hello."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.extensions import ExtensionType, encode_offer
from coapgate.dtls.messages import ClientHello
from coapgate.dtls.negotiation import Parameters, ServerCertificate, negotiate
from coapgate.dtls.signatures import SCHEMES
from coapgate.dtls.suites import SUITES, KeyExchange
from coapgate.errors import Alert, MalformedMessage, Reason, Refused
from tests.dtls.factory import server_certificate

P_256, P_384, P_521, X25519 = 23, 24, 25, 29
PSK = tuple(code for code, suite in SUITES.items() if suite.key_exchange is KeyExchange.PSK)
ECDHE = tuple(code for code in SUITES if code not in PSK)
ANY_GROUP = (P_256, X25519, P_384)


def offer(
    groups: tuple[int, ...] = ANY_GROUP, schemes: tuple[int, ...] = tuple(SCHEMES)
) -> dict[int, bytes]:
    return encode_offer(groups, schemes)


def without(extensions: Mapping[int, bytes], kind: int) -> dict[int, bytes]:
    return {known: body for known, body in extensions.items() if known != kind}


def choose(
    suites: tuple[int, ...],
    extensions: Mapping[int, bytes] | None = None,
    certificate: ServerCertificate | None = None,
    **fields: Any,
) -> Parameters:
    hello = ClientHello(
        bytes(32), suites, extensions=offer() if extensions is None else extensions, **fields
    )
    return negotiate(hello, certificate)


def refusal(*arguments: Any, **fields: Any) -> Reason:
    with pytest.raises(Refused) as refused:
        choose(*arguments, **fields)
    return refused.value.reason


# --- version and compression


@pytest.mark.parametrize("version", [0xFEFD, 0xFEFC, 0xFE00])
def test_version_1_2_or_newer_is_taken(version: int) -> None:
    assert choose(PSK, version=version.to_bytes(2, "big")).suite.code == PSK[0]


@pytest.mark.parametrize("version", [0xFEFF, 0xFEFE, 0x0100, 0x0303, 0x0301, 0xFFFF])
def test_an_older_version_or_none_of_dtls_is_answered_with_alert_70(version: int) -> None:
    with pytest.raises(Refused) as refused:
        choose(PSK, version=version.to_bytes(2, "big"))

    assert refused.value.reason is Reason.UNSUPPORTED_VERSION
    assert refused.value.alert is Alert.PROTOCOL_VERSION


def test_null_compression_must_be_offered() -> None:
    assert choose(PSK, compression_methods=b"\1\0").suite.code == PSK[0]
    with pytest.raises(Refused) as refused:
        choose(PSK, compression_methods=b"\1")
    assert refused.value.alert is Alert.ILLEGAL_PARAMETER


@pytest.mark.parametrize("code", [0, 5, 255])
def test_an_unknown_fragment_length_is_answered_with_alert_47(code: int) -> None:
    with pytest.raises(Refused) as refused:
        choose(PSK, {ExtensionType.MAX_FRAGMENT_LENGTH: bytes((code,))})
    assert refused.value.alert is Alert.ILLEGAL_PARAMETER


@pytest.mark.parametrize(("code", "length"), [(1, 512), (2, 1024), (3, 2048), (4, 4096)])
def test_a_known_fragment_length_is_taken(code: int, length: int) -> None:
    chosen = choose(PSK, {ExtensionType.MAX_FRAGMENT_LENGTH: bytes((code,))})

    assert chosen.offer.max_fragment_length == length


def test_unknown_extensions_and_server_name_are_ignored() -> None:
    chosen = choose(PSK, {0: b"\0\5gates", 0x1234: b"?", 16: b"junk", 35: b""})

    assert chosen.suite.code == PSK[0]


def test_an_extension_that_does_not_parse_makes_the_hello_malformed() -> None:
    with pytest.raises(MalformedMessage):
        choose(PSK, {ExtensionType.SUPPORTED_GROUPS: b"\0\1\0"})


# --- suites


def test_the_server_chooses_psk_first_then_its_own_order() -> None:
    certificate = server_certificate()
    for suites in (tuple(SUITES), tuple(reversed(SUITES))):
        left = list(suites)
        chosen = []
        while left:
            code = choose(tuple(left), certificate=certificate).suite.code
            chosen.append(code)
            left.remove(code)
        assert chosen == list(SUITES) == [*PSK, *ECDHE]


def test_suites_that_we_do_not_have_are_no_shared_cipher() -> None:
    assert refusal((0xC02F, 0x002F, 0x00FF)) is Reason.NO_SHARED_CIPHER
    with pytest.raises(Refused) as refused:
        choose((0xC02F,))
    assert refused.value.alert is Alert.HANDSHAKE_FAILURE


def test_without_a_certificate_of_ours_only_psk_can_be_chosen() -> None:
    assert refusal(ECDHE) is Reason.NO_SHARED_CIPHER
    assert choose((*ECDHE, PSK[2])).suite.code == PSK[2]


def test_a_psk_handshake_has_neither_group_nor_scheme() -> None:
    chosen = choose(PSK, certificate=server_certificate())

    assert (chosen.group, chosen.scheme) == (None, None)


# --- groups


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ((P_256,), P_256),
        ((X25519, P_256), P_256),
        ((P_521, P_384, P_256), P_256),
        ((P_256, 0x1234), P_256),
    ],
)
def test_p_256_is_the_first_choice_of_group(groups: tuple[int, ...], expected: int) -> None:
    chosen = choose(ECDHE, offer(groups), server_certificate())

    assert chosen.group is not None
    assert chosen.group.code == expected


def test_the_groups_come_in_our_order_if_the_certificate_is_on_p_384() -> None:
    certificate = server_certificate(ec.SECP384R1)
    for groups, expected in [
        ((P_384,), P_384),
        ((P_384, X25519), X25519),
        ((P_384, X25519, P_256), P_256),
    ]:
        chosen = choose(ECDHE, offer(groups), certificate)
        assert chosen.group is not None
        assert chosen.group.code == expected


@pytest.mark.parametrize("groups", [(X25519,), (P_384,), (P_521,), (X25519, P_384)])
def test_the_groups_must_contain_the_server_certificate_s_curve(groups: tuple[int, ...]) -> None:
    assert refusal(ECDHE, offer(groups), server_certificate()) is Reason.NO_SHARED_CIPHER
    assert choose((*ECDHE, PSK[0]), offer(groups), server_certificate()).suite.code == PSK[0]


def test_absent_groups_mean_p_256() -> None:
    absent = without(offer(), ExtensionType.SUPPORTED_GROUPS)

    chosen = choose(ECDHE, absent, server_certificate())

    assert chosen.group is not None
    assert chosen.group.code == P_256
    assert refusal(ECDHE, absent, server_certificate(ec.SECP384R1)) is Reason.NO_SHARED_CIPHER


def test_point_formats_must_contain_uncompressed_if_they_are_sent() -> None:
    formats = ExtensionType.EC_POINT_FORMATS
    certificate = server_certificate()

    assert choose(ECDHE, without(offer(), formats), certificate).suite.code == ECDHE[0]
    assert choose(ECDHE, offer() | {formats: b"\2\1\0"}, certificate).suite.code == ECDHE[0]
    refused = refusal(ECDHE, offer() | {formats: b"\1\1"}, certificate)
    assert refused is Reason.NO_SHARED_CIPHER


# --- signature algorithms


def test_absent_signature_algorithms_mean_sha_1_and_no_shared_cipher() -> None:
    absent = without(offer(), ExtensionType.SIGNATURE_ALGORITHMS)

    assert refusal(ECDHE, absent, server_certificate()) is Reason.NO_SHARED_CIPHER


@pytest.mark.parametrize(
    ("schemes", "expected"),
    [((0x0403,), 0x0403), ((0x0603, 0x0503), 0x0503), ((0x0201, 0x0203, 0x0603), 0x0603)],
)
def test_the_signature_algorithm_is_one_that_was_offered(
    schemes: tuple[int, ...], expected: int
) -> None:
    chosen = choose(ECDHE, offer(schemes=schemes), server_certificate())

    assert chosen.scheme is not None
    assert chosen.scheme.code == expected


@pytest.mark.parametrize("schemes", [(0x0203,), (0x0401, 0x0804), (0x0807,)])
def test_signature_algorithms_that_our_key_cannot_make_are_no_shared_cipher(
    schemes: tuple[int, ...],
) -> None:
    assert refusal(ECDHE, offer(schemes=schemes), server_certificate()) is Reason.NO_SHARED_CIPHER
