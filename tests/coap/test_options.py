"""Option admission: RFC 7252 sections 3.1, 5.4, table 4."""

from __future__ import annotations

import pytest

from coapgate.coap.blocks import Block
from coapgate.coap.options import (
    MAX_OPTIONS,
    Extensions,
    Request,
    encode_options,
    encode_uint,
    parse_options,
    parse_request,
    split_options,
)
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code


def parse(octets: bytes) -> Request:
    return parse_request(octets, 0, Code.POST, 1, b"", True)


def refusal(*options: tuple[int, bytes]) -> tuple[int, str]:
    with pytest.raises(RequestRefused) as caught:
        parse(encode_options(options))
    return caught.value.code, str(caught.value)


def test_what_an_uplink_needs_is_read() -> None:
    options = encode_options(
        [
            (11, b"a"),
            (11, b"segment of more than thirteen octets"),
            (12, b"\x3c"),
            (15, b"x=1"),
            (15, b"y"),
            (17, b"\x01\x00"),
            (258, b"\x02"),
        ]
    )

    assert parse(options + b"\xff21.5") == Request(
        method=Code.POST,
        message_id=1,
        token=b"",
        confirmable=True,
        path=(b"a", b"segment of more than thirteen octets"),
        query=(b"x=1", b"y"),
        content_format=60,
        accept=256,
        no_response=2,
        payload=b"21.5",
    )


def test_numbers_are_absent_or_zero_and_an_empty_one_is_zero() -> None:
    assert parse(b"").content_format is None
    assert parse(encode_options([(12, b""), (17, b"")])).content_format == 0
    assert parse(encode_options([(12, b""), (17, b"")])).accept == 0


def test_a_payload_may_hold_the_payload_marker() -> None:
    assert parse(b"\xff\xff\xff").payload == b"\xff\xff"


@pytest.mark.parametrize(
    "octets",
    [
        "ff",  # payload marker without payload
        "b161 ff",
        "f0",  # reserved delta
        "0f",  # reserved length
        "d0",  # delta octet missing
        "e000",
        "0d",  # length octet missing
        "0e00",
        "b2 61",  # value cut short
        "be 0000",  # 269 octets promised
        "e0ffff e0ffff",  # number above 65535
    ],
)
def test_what_does_not_parse_is_a_format_error(octets: str) -> None:
    with pytest.raises(MessageFormatError):
        parse(bytes.fromhex(octets))


def test_a_format_error_outweighs_an_option_that_is_refused() -> None:
    with pytest.raises(MessageFormatError):
        parse(encode_options([(9, b"")]) + b"\xff")


@pytest.mark.parametrize("number", [1, 5, 9, 13, 19, 31, 65001])
def test_an_unknown_critical_option_is_4_02_and_named(number: int) -> None:
    assert refusal((number, b"")) == (Code.BAD_OPTION, f"option {number}")


@pytest.mark.parametrize("number", [0, 2, 8, 20, 65000])
def test_an_unknown_elective_option_is_ignored(number: int) -> None:
    assert parse(encode_options([(number, b"x")]) + b"\xffp").payload == b"p"


@pytest.mark.parametrize(
    ("number", "shortest", "longest"),
    [(3, 1, 255), (7, 0, 2), (15, 0, 255), (17, 0, 2), (35, 1, 1034), (39, 1, 255)],
)
def test_a_critical_option_of_wrong_length_counts_as_unknown(
    number: int, shortest: int, longest: int
) -> None:
    bad_option = Code.BAD_OPTION, f"option {number}"
    assert refusal((number, bytes(longest + 1))) == bad_option
    if shortest:
        assert refusal((number, b"")) == bad_option


def test_a_path_segment_of_256_octets_counts_as_unknown() -> None:
    assert parse(encode_options([(11, b"x" * 255)])).path == (b"x" * 255,)
    assert refusal((11, b"x" * 256)) == (Code.BAD_OPTION, "option 11")


def test_an_elective_option_of_wrong_length_is_ignored() -> None:
    request = parse(encode_options([(12, b"\0\0\0"), (258, b"\0\x02")]))

    assert request.content_format is None
    assert request.no_response == 0


def test_a_second_occurrence_of_a_critical_option_counts_as_unknown() -> None:
    assert refusal((17, b"\x32"), (17, b"\x3c")) == (Code.BAD_OPTION, "option 17")


def test_a_second_occurrence_of_an_elective_option_is_ignored() -> None:
    request = parse(encode_options([(12, b"\x32"), (12, b"\x3c"), (258, b"\2"), (258, b"")]))

    assert request.content_format == 50
    assert request.no_response == 2


@pytest.mark.parametrize(
    ("options", "echo"),
    [
        ([], b""),
        ([(252, b"\x0e" * 8)], b"\x0e" * 8),
        ([(252, b"x" * 40)], b"x" * 40),
        ([(252, b"")], b""),  # 1 to 40 octets (RFC 9175 section 2.2.1)
        ([(252, b"x" * 41)], b""),
        ([(252, b"first"), (252, b"second")], b"first"),
    ],
)
def test_an_echo_value_is_read(options: list[tuple[int, bytes]], echo: bytes) -> None:
    assert parse(encode_options(options)).echo == echo


def test_options_that_mean_nothing_to_an_uplink_are_ignored() -> None:
    ignored = [
        (3, b"gateway.example"),
        (4, b"etag"),
        (4, b"etag"),
        (6, b""),
        (7, b"\x16\x34"),
        (11, b"a"),
        (14, b"\x3c"),
        (16, b"\x10"),
        (28, b""),
        (60, b"\x64"),
        (252, b"echo"),
        (292, b"tag"),
        (292, b"tag"),
    ]

    assert parse(encode_options(ignored)).path == (b"a",)


@pytest.mark.parametrize("number", [35, 39])
def test_a_proxy_request_is_5_05(number: int) -> None:
    assert refusal((number, b"coap"))[0] == Code.PROXYING_NOT_SUPPORTED


@pytest.mark.parametrize("number", [1, 5])
def test_conditions_cannot_be_kept_and_are_4_02(number: int) -> None:
    assert refusal((number, b"")) == (Code.BAD_OPTION, f"option {number}")


@pytest.mark.parametrize("number", [23, 27])
@pytest.mark.parametrize(
    ("value", "block"),
    [
        (b"", (0, False, 0)),
        (b"\x06", (0, False, 6)),
        (b"\x0e", (0, True, 6)),
        (b"\x01\x06", (16, False, 6)),
        (b"\xff\xff\xfe", (0xFFFFF, True, 6)),
    ],
)
def test_which_block_is_read(number: int, value: bytes, block: tuple[int, bool, int]) -> None:
    extensions = parse(encode_options([(number, value)]) + b"\xffp").extensions

    assert extensions is not None
    assert (extensions.block2 if number == 23 else extensions.block1) == block
    assert (extensions.block1 if number == 23 else extensions.block2) is None
    assert Block(*block).encode() == value


@pytest.mark.parametrize("number", [23, 27])
@pytest.mark.parametrize("value", [b"\x07", b"\x0f", b"\x01\x07"])
def test_the_reserved_block_size_is_4_00(number: int, value: bytes) -> None:
    assert refusal((number, value)) == (Code.BAD_REQUEST, "reserved block size")


def test_what_few_requests_have_is_read() -> None:
    options = [
        (4, b"one"),
        (4, b"two"),
        (6, b""),
        (60, b"\x04\x00"),
        (292, b"x"),
        (292, b""),
        (65000, b"\x01\x8b"),
    ]

    assert parse(encode_options(options)).extensions == Extensions(
        etags=(b"one", b"two"),
        observe=0,
        block1=None,
        block2=None,
        size1=1024,
        tags=(b"x", b""),
        time=395,
    )
    assert parse(encode_options([(11, b"a"), (12, b"")])).extensions is None


def test_the_first_refusal_is_told() -> None:
    assert refusal((9, b""), (35, b"coap://x")) == (Code.BAD_OPTION, "option 9")
    assert refusal((35, b"coap://x"), (39, b"coap"))[0] == Code.PROXYING_NOT_SUPPORTED
    assert refusal((9, b""), (23, b"\x07"))[1] == "option 9"


def test_a_request_has_a_bounded_number_of_options() -> None:
    most = b"\xb0" + bytes(MAX_OPTIONS - 1)

    assert len(parse(most + b"\xffp").path) == MAX_OPTIONS
    assert len(parse(most).path) == MAX_OPTIONS
    with pytest.raises(RequestRefused) as caught:
        parse(most + b"\0")
    assert caught.value.code == Code.BAD_OPTION


def test_numbers_are_encoded_without_leading_zeros() -> None:
    assert [encode_uint(value) for value in (0, 1, 255, 256)] == [b"", b"\1", b"\xff", b"\1\0"]


@pytest.mark.parametrize("payload", [b"", b"p", b"\xff", b"\xff" * 300])
@pytest.mark.parametrize(
    "options",
    [
        [],
        [(14, b"\xff")],
        [(12, b""), (14, b"\x02"), (60, b"\xff\xff\xff")],
        [(4, b"x" * 8), (252, b"\xff" * 40), (65000, b"y" * 300)],
        [(11, b"z" * 12), (11, b"z" * 13), (11, b"z" * 268), (11, b"z" * 269)],
    ],
)
def test_options_and_payload_are_told_apart(
    options: list[tuple[int, bytes]], payload: bytes
) -> None:
    encoded = encode_options(options)
    octets = b"head" + encoded + (b"\xff" + payload if payload else b"")

    assert split_options(octets, 4) == (encoded, payload)
    assert parse_options(encoded) == options


@pytest.mark.parametrize(
    "octets", [b"\x01", b"\xd0", b"\xe0\xff", b"\xf0", b"\x0f", b"\xe0\xff\xff", b"\0" * 129]
)
def test_options_of_a_response_that_are_none_are_a_format_error(octets: bytes) -> None:
    with pytest.raises(MessageFormatError):
        parse_options(octets)
