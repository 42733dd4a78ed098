"""Bounded reassembly of handshake messages."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc

import pytest

from coapgate.dtls.fragments import MAX_AHEAD_LENGTH, MESSAGES_AHEAD, Reassembly
from coapgate.dtls.messages import Fragment, HandshakeType

CERTIFICATE = HandshakeType.CERTIFICATE
BODY = bytes(range(1, 101))


def piece(begin: int, end: int, *, seq: int = 0, body: bytes = BODY) -> Fragment:
    return Fragment(CERTIFICATE, len(body), seq, begin, body[begin:end])


def whole(seq: int = 0, body: bytes = BODY, kind: int = CERTIFICATE) -> Fragment:
    return Fragment(kind, len(body), seq, 0, body)


@pytest.fixture
def reassembly() -> Reassembly:
    return Reassembly(0, 8192)


# --- putting together


def test_a_message_in_one_piece_is_there_at_once(reassembly: Reassembly) -> None:
    assert reassembly.next() is None

    assert reassembly.add(whole())

    assert reassembly.next() == (CERTIFICATE, BODY)


def test_an_empty_message_is_whole(reassembly: Reassembly) -> None:
    assert reassembly.add(whole(body=b""))

    assert reassembly.next() == (CERTIFICATE, b"")


def test_fragments_come_in_any_order(reassembly: Reassembly) -> None:
    pieces = [piece(0, 10), piece(10, 11), piece(11, 60), piece(60, 100)]
    for order in itertools.permutations(pieces):
        reassembly = Reassembly(0, 8192)
        for fragment in order[:-1]:
            assert reassembly.add(fragment)
            assert reassembly.next() is None
        assert reassembly.add(order[-1])
        assert reassembly.next() == (CERTIFICATE, BODY)


def test_fragments_overlap_and_repeat(reassembly: Reassembly) -> None:
    for begin, end in [(0, 40), (30, 70), (30, 70), (90, 100), (0, 40), (10, 95)]:
        assert reassembly.next() is None
        assert reassembly.add(piece(begin, end))

    assert reassembly.next() == (CERTIFICATE, BODY)


def test_fragments_of_random_bounds_make_the_message() -> None:
    chance = random.Random(1)
    for _ in range(200):
        body = chance.randbytes(chance.randrange(1, 300))
        reassembly = Reassembly(0, 8192)
        seen: set[int] = set()
        while len(seen) < len(body):
            assert reassembly.next() is None
            begin = chance.randrange(len(body))
            end = chance.randrange(begin, len(body) + 1)
            assert reassembly.add(piece(begin, end, body=body))
            seen.update(range(begin, end))
        assert reassembly.next() == (CERTIFICATE, body)


def test_messages_are_taken_in_order_of_message_seq() -> None:
    reassembly = Reassembly(5, 8192)
    bodies = [b"first", b"second", b"third"]
    for seq in (7, 6):
        assert reassembly.add(whole(seq, bodies[seq - 5]))
        assert reassembly.next() is None
    assert reassembly.add(whole(5, bodies[0]))

    for body in bodies:
        assert reassembly.next() == (CERTIFICATE, body)
        reassembly.advance()
    assert reassembly.next() is None
    assert reassembly.expected == 8


def test_a_message_that_does_not_fit_makes_room_for_another_of_its_number(
    reassembly: Reassembly,
) -> None:
    assert reassembly.add(whole(body=b"forged"))
    assert reassembly.next() == (CERTIFICATE, b"forged")

    reassembly.drop()
    assert reassembly.next() is None
    reassembly.drop()

    assert reassembly.add(whole())
    assert reassembly.next() == (CERTIFICATE, BODY)
    assert reassembly.expected == 0


# --- contradictions


def test_a_fragment_that_contradicts_octets_already_held_is_dropped_the_first_one_wins(
    reassembly: Reassembly,
) -> None:
    forged = BODY[:50] + b"\0" + BODY[51:]
    assert reassembly.add(piece(40, 60))

    for begin, end in [(50, 51), (0, 100), (50, 60), (40, 51), (49, 52), (0, 51), (50, 100)]:
        assert not reassembly.add(piece(begin, end, body=forged))
    assert reassembly.add(piece(0, 45))
    assert reassembly.add(piece(55, 100))

    assert reassembly.next() == (CERTIFICATE, BODY)


def test_nothing_of_a_contradicting_fragment_is_kept(reassembly: Reassembly) -> None:
    forged = bytes(50) + BODY[50:]
    assert reassembly.add(piece(49, 100))

    assert not reassembly.add(piece(0, 100, body=forged))
    assert reassembly.next() is None

    assert reassembly.add(piece(0, 49))
    assert reassembly.next() == (CERTIFICATE, BODY)


def test_every_single_contradicting_octet_is_noticed() -> None:
    for position in range(len(BODY)):
        reassembly = Reassembly(0, 8192)
        forged = bytearray(BODY)
        forged[position] ^= 0x80
        assert reassembly.add(piece(position, position + 1))
        assert not reassembly.add(whole(body=bytes(forged)))
        assert reassembly.add(whole())


def test_fragments_agree_about_type_and_length_of_their_message(reassembly: Reassembly) -> None:
    assert reassembly.add(piece(0, 50))

    assert not reassembly.add(Fragment(CERTIFICATE, 99, 0, 50, BODY[50:99]))
    assert not reassembly.add(Fragment(HandshakeType.FINISHED, 64, 0, 50, BODY[50:60]))
    assert not reassembly.add(Fragment(HandshakeType.CERTIFICATE_VERIFY, 100, 0, 50, BODY[50:]))
    assert reassembly.add(piece(50, 100))

    assert reassembly.next() == (CERTIFICATE, BODY)


# --- bounds


def test_a_message_seq_is_taken_from_the_next_expected_to_3_beyond() -> None:
    for seq in range(20):
        reassembly = Reassembly(10, 8192)
        assert reassembly.add(whole(seq)) == (10 <= seq <= 10 + MESSAGES_AHEAD)
    assert MESSAGES_AHEAD == 3


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (HandshakeType.CLIENT_HELLO, 2048),
        (HandshakeType.CERTIFICATE, 8192),
        (HandshakeType.CLIENT_KEY_EXCHANGE, 512),
        (HandshakeType.CERTIFICATE_VERIFY, 1024),
        (HandshakeType.FINISHED, 64),
        (255, 8192),
    ],
)
def test_a_declared_length_is_bounded_by_the_message_type(kind: int, limit: int) -> None:
    assert not Reassembly(0, 8192).add(Fragment(kind, limit + 1, 0, 0, b""))
    assert Reassembly(0, 8192).add(Fragment(kind, limit, 0, 0, b""))


def test_max_handshake_message_bounds_every_type() -> None:
    for kind in HandshakeType:
        assert not Reassembly(0, 50).add(Fragment(kind, 51, 0, 0, b""))
        assert Reassembly(0, 50).add(Fragment(kind, 50, 0, 0, b""))


def test_messages_that_are_not_yet_expected_are_held_up_to_a_bound(
    reassembly: Reassembly,
) -> None:
    assert reassembly.add(Fragment(CERTIFICATE, MAX_AHEAD_LENGTH - 100, 1, 0, b""))

    assert not reassembly.add(Fragment(CERTIFICATE, 101, 2, 0, b""))
    assert reassembly.add(Fragment(CERTIFICATE, 100, 2, 0, b""))
    assert not reassembly.add(Fragment(CERTIFICATE, 1, 3, 0, b""))
    assert reassembly.add(Fragment(CERTIFICATE, 8192, 0, 0, b""))


def test_what_was_held_ahead_counts_no_longer_once_it_is_expected(
    reassembly: Reassembly,
) -> None:
    assert reassembly.add(whole(0, b""))
    assert reassembly.add(Fragment(CERTIFICATE, MAX_AHEAD_LENGTH, 1, 0, b""))
    assert not reassembly.add(Fragment(CERTIFICATE, MAX_AHEAD_LENGTH, 2, 0, b""))

    reassembly.advance()

    assert reassembly.add(Fragment(CERTIFICATE, MAX_AHEAD_LENGTH, 2, 0, b""))


def test_hostile_fragments_hold_no_more_than_they_declare() -> None:
    tracemalloc.start()
    try:
        reassembly = Reassembly(0, 8192)
        before = tracemalloc.get_traced_memory()[0]
        for seq in range(-2, 10):
            for offset in range(8191, -1, -2):
                for length in (8192, 2048, 1024):
                    if offset < length:
                        reassembly.add(Fragment(CERTIFICATE, length, seq, offset, b"x"))
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert held < (8192 + MAX_AHEAD_LENGTH) * 1.25 + 1024


def test_tiny_and_overlapping_fragments_cost_no_more_than_their_octets() -> None:
    # It took 200 ns for each octet of an overlap: 1.6 ms to repeat 8 KiB.
    body = random.Random(1).randbytes(8192)
    reassembly = Reassembly(0, 8192)
    started = time.process_time()
    for offset in range(8190, -1, -2):
        assert reassembly.add(piece(offset, offset + 1, body=body))
        assert reassembly.next() is None
    for _ in range(100):
        assert reassembly.add(piece(0, 8191, body=body))

    # About 30 ms; the bound is loose for slow machines, and far below what it was.
    assert time.process_time() - started < 0.15
