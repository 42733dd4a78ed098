"""Stateless cookies."""

from __future__ import annotations

import random
from typing import Any

import pytest

from coapgate.dtls.cookies import SECRET_LIFETIME, Cookies, hello_verify_request
from coapgate.dtls.messages import (
    ClientHello,
    HandshakeType,
    encode_message,
    parse_fragments,
    parse_hello_verify_request,
)
from coapgate.dtls.records import DTLS_1_0, ContentType, encode, split
from coapgate.model import Path

PATH: Path = (0, ("192.0.2.7", 5684))
HELLO = (PATH, b"\xfe\xfd", bytes(32), b"")


@pytest.fixture
def cookies() -> Cookies:
    return Cookies(random.Random(1).randbytes)


def test_a_cookie_is_one_generation_octet_and_31_of_a_mac(cookies: Cookies) -> None:
    at_first, later = cookies.make(*HELLO, 10.0), cookies.make(*HELLO, SECRET_LIFETIME * 257)

    assert len(at_first) == len(later) == 32
    assert (at_first[0], later[0]) == (0, 1)


def test_the_secret_changes_every_5_minutes_and_the_previous_one_is_accepted(
    cookies: Cookies,
) -> None:
    assert SECRET_LIFETIME == 300.0
    cookie = cookies.make(*HELLO, 299.0)
    assert cookies.verify(cookie, *HELLO, 299.9)

    newer = cookies.make(*HELLO, 300.0)
    assert newer[1:] != cookie[1:]
    for now in (300.0, 599.9):
        assert cookies.verify(cookie, *HELLO, now)
        assert cookies.verify(newer, *HELLO, now)
    assert not cookies.verify(cookie, *HELLO, 600.0)
    assert cookies.verify(newer, *HELLO, 600.0)


def test_an_older_cookie_is_refused_even_if_nobody_asked_in_between(cookies: Cookies) -> None:
    cookie = cookies.make(*HELLO, 0.0)

    for generations in (2, 3, 255, 256, 257, 512):
        assert not cookies.verify(cookie, *HELLO, generations * SECRET_LIFETIME)


def test_a_cookie_of_a_generation_in_which_none_was_made_is_a_forgery(cookies: Cookies) -> None:
    now = 7 * SECRET_LIFETIME

    assert not cookies.verify(bytes((6,)) + bytes(31), *HELLO, now)
    assert cookies.verify(cookies.make(*HELLO, now), *HELLO, now)


def test_the_cookies_of_the_first_five_minutes_count_below_zero_too(cookies: Cookies) -> None:
    assert not cookies.verify(bytes((255,)) + bytes(31), *HELLO, 1.0)


@pytest.mark.parametrize(
    "other",
    [
        ((1, ("192.0.2.7", 5684)), *HELLO[1:]),
        ((0, ("192.0.2.8", 5684)), *HELLO[1:]),
        ((0, ("192.0.2.7", 5685)), *HELLO[1:]),
        ((0, ("::ffff:192.0.2.7", 5684, 0, 0)), *HELLO[1:]),
        (PATH, b"\xfe\xff", *HELLO[2:]),
        (*HELLO[:2], bytes(31) + b"\1", b""),
        (*HELLO[:3], b"\0"),
    ],
    ids=["socket", "address", "port", "family", "version", "random", "session id"],
)
def test_a_cookie_is_bound_to_path_version_random_and_session_id(
    cookies: Cookies, other: tuple[Any, bytes, bytes, bytes]
) -> None:
    cookie = cookies.make(*HELLO, 0.0)

    assert cookies.verify(cookie, *HELLO, 0.0)
    assert not cookies.verify(cookie, *other, 0.0)


def test_a_cookie_is_for_one_link_where_an_address_is_link_local(cookies: Cookies) -> None:
    fields = HELLO[1:]
    here, there = ((0, ("fe80::1", 5684, 0, scope)) for scope in (2, 3))
    cookie = cookies.make(here, *fields, 0.0)

    assert cookies.verify(cookie, here, *fields, 0.0)
    assert not cookies.verify(cookie, there, *fields, 0.0)


def test_fields_are_length_prefixed_so_that_octets_cannot_move_between_them(
    cookies: Cookies,
) -> None:
    same_octets = [
        (PATH, b"ab", b"cd", b"ef"),
        (PATH, b"abc", b"d", b"ef"),
        (PATH, b"a", b"bcd", b"ef"),
        (PATH, b"ab", b"cdef", b""),
        (PATH, b"ab", b"c", b"def"),
        (PATH, b"", b"abcdef", b""),
        # With the lengths of their neighbours among the octets.
        (PATH, b"ab", b"\1", b""),
        (PATH, b"ab", b"", b"\0"),
        (PATH, b"\0", b"", b""),
        (PATH, b"", b"\0", b""),
    ]

    assert len({cookies.make(*fields, 0.0) for fields in same_octets}) == len(same_octets)


def test_every_octet_of_a_cookie_counts(cookies: Cookies) -> None:
    cookie = cookies.make(*HELLO, 0.0)

    for position in range(len(cookie)):
        forged = bytearray(cookie)
        forged[position] ^= 1
        assert not cookies.verify(bytes(forged), *HELLO, 0.0)
    for wrong_length in (b"", cookie[:-1], cookie + b"\0"):
        assert not cookies.verify(wrong_length, *HELLO, 0.0)


def test_another_server_s_cookie_is_refused(cookies: Cookies) -> None:
    other = Cookies(random.Random(2).randbytes)

    assert not cookies.verify(other.make(*HELLO, 0.0), *HELLO, 0.0)


def test_at_most_two_secrets_are_made_however_time_goes(cookies: Cookies) -> None:
    clock, now = random.Random(3), 0.0
    for _ in range(1000):
        now += clock.expovariate(1 / SECRET_LIFETIME)
        cookies.verify(clock.randbytes(32), *HELLO, now)
        assert cookies.verify(cookies.make(*HELLO, now), *HELLO, now)
        assert len(cookies._keyed) <= 2


def test_a_cookie_is_compared_in_constant_time() -> None:
    assert "compare_digest" in Cookies.verify.__code__.co_names


def test_hello_verify_request_echoes_the_numbers_of_the_hello() -> None:
    cookie = bytes(range(32))

    (record,) = split(hello_verify_request(0x0A0B, 3, cookie))
    (fragment,) = parse_fragments(record.fragment)

    assert (record.content_type, record.epoch) == (ContentType.HANDSHAKE, 0)
    assert record.sequence == 0x0A0B
    assert fragment.type == HandshakeType.HELLO_VERIFY_REQUEST
    assert fragment.message_seq == 3
    assert parse_hello_verify_request(fragment.body) == cookie


def test_hello_verify_request_says_version_1_0_twice() -> None:
    answer = hello_verify_request(0, 0, bytes(32))

    assert answer[1:3] == answer[25:27] == DTLS_1_0.to_bytes(2, "big")


def test_the_answer_is_never_larger_than_the_smallest_hello_that_parses(cookies: Cookies) -> None:
    smallest = ClientHello(bytes(32), (0xC0A8,)).encode()
    question = encode(ContentType.HANDSHAKE, 0, encode_message(1, 0, smallest))

    answer = hello_verify_request(0, 0, cookies.make(*HELLO, 0.0))

    assert len(answer) == 60
    assert len(answer) <= len(question)
