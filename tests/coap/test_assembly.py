"""Bodies that come block by block: RFC 7959 section 2.5."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from aiocoap import Message

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.model import Code, Outcome
from tests.coap.gate import CON, NON, FakeAssociation, Gate, message

BLOCK1, SIZE1, TAG, CONTENT_FORMAT = 27, 60, 292, 12
START = 100.0
LARGE = bytes(range(256)) * 800
"""200 kB and a bit."""


class Upload:
    """A device that sends bodies block by block."""

    def __init__(self, settings: Settings | None = None, **limits: float) -> None:
        self.gate = Gate(settings, **limits)  # type: ignore[arg-type]  # rate and burst
        self.endpoint = self.gate.open()
        self.message_ids = itertools.count()

    def send(
        self,
        number: int,
        payload: bytes,
        *options: tuple[int, bytes],
        more: bool = True,
        exponent: int = 6,
        code: int = Code.POST,
        path: str = "log",
        kind: int = CON,
        now: float = START,
        endpoint: Endpoint[FakeAssociation] | None = None,
    ) -> Message | None:
        """One block; its answer, None if there is none yet."""
        block = (BLOCK1, Block(number, more, exponent).encode())
        octets = message(
            kind, code, next(self.message_ids), path, options=(block, *options), payload=payload
        )
        self.gate.receive(endpoint or self.endpoint, octets, now)
        sent = self.gate.take()
        return Message.decode(sent[0]) if sent else None

    def refusal(self, number: int, payload: bytes, *options: tuple[int, bytes]) -> int:
        answer = self.send(number, payload, *options)
        assert answer is not None
        return int(answer.code)


@pytest.mark.parametrize("exponent", range(7))
@pytest.mark.parametrize("code", [Code.POST, Code.PUT])
def test_a_large_body_is_one_publication_and_costs_one_request(exponent: int, code: int) -> None:
    upload = Upload(rate=1.0, burst=1)
    size = 16 << exponent
    body = LARGE[: size * 30 + 5]
    format_ = (CONTENT_FORMAT, b"\x3c")
    for number in range(30):
        part = body[number * size :][:size]
        answer = upload.send(number, part, format_, exponent=exponent, code=code)
        assert answer is not None
        assert answer.code == Code.CONTINUE
        assert answer.opt.block1 == (number, True, exponent)
        assert upload.gate.publisher.published == []

    last = upload.send(30, body[30 * size :], format_, more=False, exponent=exponent, code=code)
    assert last is None  # not before the broker has it
    upload.gate.conclude(START)

    answer = upload.gate.take_one()
    assert (answer.code, answer.opt.block1) == (Code.CHANGED, (30, False, exponent))
    (publication,) = upload.gate.publisher.published
    assert (publication.payload, publication.content_type) == (body, "application/cbor")
    assert len(upload.gate.layer.assembly) == upload.gate.layer.assembly.octets == 0


def test_a_body_of_one_block_needs_no_transfer() -> None:
    upload = Upload()

    assert upload.send(0, b"21.5", more=False) is None
    upload.gate.conclude(START)

    assert upload.gate.take_one().opt.block1 == (0, False, 6)
    assert upload.gate.publisher.published[0].payload == b"21.5"


def test_a_gap_is_4_08_and_frees_what_had_come() -> None:
    upload = Upload()
    upload.send(0, bytes(1024))

    assert upload.refusal(2, bytes(1024)) == Code.REQUEST_ENTITY_INCOMPLETE
    assert upload.gate.layer.assembly.octets == 0
    assert upload.refusal(1, bytes(1024)) == Code.REQUEST_ENTITY_INCOMPLETE
    assert upload.gate.publisher.published == []


def test_a_block_sent_again_under_another_message_id_is_taken_once() -> None:
    upload = Upload()
    upload.send(0, b"a" * 1024)
    for _ in range(2):
        answer = upload.send(1, b"b" * 1024)
        assert answer is not None
        assert answer.code == Code.CONTINUE

    upload.send(2, b"c", more=False)

    assert upload.gate.publisher.published[0].payload == b"a" * 1024 + b"b" * 1024 + b"c"


def test_another_block_in_the_place_of_one_that_has_come_is_4_08() -> None:
    upload = Upload()
    upload.send(0, b"a" * 1024)
    upload.send(1, b"b" * 1024)

    assert upload.refusal(1, b"x" * 1024) == Code.REQUEST_ENTITY_INCOMPLETE


@pytest.mark.parametrize(("length", "more"), [(1023, True), (1025, True), (1025, False), (0, True)])
def test_a_block_of_a_wrong_length_is_4_00(length: int, more: bool) -> None:
    upload = Upload()
    upload.endpoint.association.max_plaintext = 1200

    answer = upload.send(0, bytes(length), more=more)

    assert answer is not None
    assert answer.code == Code.BAD_REQUEST
    assert len(upload.gate.layer.assembly) == 0


def test_a_body_above_the_limit_is_4_13_and_tells_the_limit() -> None:
    upload = Upload(Settings(max_body=2500))
    upload.send(0, bytes(1024))
    upload.send(1, bytes(1024))

    answer = upload.send(2, bytes(1024))

    assert answer is not None
    assert (answer.code, answer.opt.size1) == (Code.REQUEST_ENTITY_TOO_LARGE, 2500)
    assert upload.gate.layer.assembly.octets == 0


def test_an_announced_size_above_the_limit_is_4_13_at_once() -> None:
    upload = Upload(Settings(max_body=2500))

    answer = upload.send(0, bytes(1024), (SIZE1, b"\x09\xc5"))

    assert answer is not None
    assert (answer.code, answer.opt.size1) == (Code.REQUEST_ENTITY_TOO_LARGE, 2500)
    assert upload.refusal(0, bytes(1024), (SIZE1, b"\x09\xc4")) == Code.CONTINUE


def test_an_announced_size_allocates_nothing() -> None:
    upload = Upload(Settings(max_body=1 << 30))
    tracemalloc.start()
    try:
        upload.send(0, bytes(1024), (SIZE1, b"\x3f\xff\xff\xff"))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_beginning_anew_replaces_what_had_come() -> None:
    upload = Upload()
    upload.send(0, b"a" * 1024)
    upload.send(1, b"a" * 1024)
    upload.send(0, b"b" * 1024)

    upload.send(1, b"b", more=False)

    assert upload.gate.publisher.published[0].payload == b"b" * 1025


def test_smaller_blocks_may_follow_larger_ones() -> None:
    upload = Upload()
    upload.send(0, b"a" * 1024)

    upload.send(2, b"b" * 512, exponent=5)
    upload.send(3, b"c", exponent=5, more=False)

    assert upload.gate.publisher.published[0].payload == b"a" * 1024 + b"b" * 512 + b"c"


def test_bodies_are_told_apart_by_path_method_association_and_request_tag() -> None:
    upload = Upload(Settings(transfers_per_device=8))
    other = upload.gate.open()
    upload.send(0, b"a" * 1024)
    upload.send(0, b"b" * 1024, path="other")
    upload.send(0, b"c" * 1024, code=Code.PUT)
    upload.send(0, b"d" * 1024, (TAG, b"x"))
    upload.send(0, b"e" * 1024, endpoint=other)
    assert len(upload.gate.layer.assembly) == 5

    upload.send(1, b"d", (TAG, b"x"), more=False)
    upload.send(1, b"e", more=False, endpoint=other)
    upload.send(1, b"a", more=False)

    bodies = [publication.payload for publication in upload.gate.publisher.published]
    assert bodies == [b"d" * 1025, b"e" * 1025, b"a" * 1025]


def test_a_device_gives_up_its_own_oldest_body_and_never_anothers() -> None:
    upload = Upload(Settings(transfers_per_device=2, transfers=3))
    other = upload.gate.open("sensor-2")
    upload.send(0, bytes(1024), endpoint=other)
    for path in ("a", "b", "c"):
        upload.send(0, bytes(1024), path=path)
    assembly = upload.gate.layer.assembly
    assert (len(assembly), assembly.octets, assembly.abandoned) == (3, 3072, 1)

    assert upload.send(1, b"", more=False, endpoint=other) is None  # is there still
    third = upload.gate.open("sensor-3")
    assert upload.send(0, bytes(1024), endpoint=third).code == Code.CONTINUE  # type: ignore[union-attr]
    refused = upload.send(0, bytes(1024), endpoint=upload.gate.open("sensor-4"))
    assert refused is not None
    assert (refused.code, refused.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 30)


def test_an_abandoned_body_is_freed() -> None:
    upload = Upload(Settings(transfer_timeout=30.0))
    upload.send(0, bytes(1024))
    upload.send(1, bytes(1024), now=START + 20)
    upload.gate.run_timers(START + 40)
    assert upload.gate.layer.assembly.octets == 2048

    upload.gate.run_timers(START + 51)

    assembly = upload.gate.layer.assembly
    assert (len(assembly), assembly.octets, assembly.abandoned) == (0, 0, 1)
    answer = upload.send(2, b"x", more=False, now=START + 51)
    assert answer is not None
    assert answer.code == Code.REQUEST_ENTITY_INCOMPLETE


def test_the_end_of_an_association_frees_its_bodies() -> None:
    upload = Upload()
    other = upload.gate.open()
    upload.send(0, bytes(1024))
    upload.send(0, bytes(1024), endpoint=other)

    upload.gate.layer.close(upload.endpoint, START)

    assert len(upload.gate.layer.assembly) == 1


@pytest.mark.parametrize(
    ("code", "path", "answer"),
    [
        (Code.POST, "", Code.NOT_FOUND),
        (Code.POST, "time", Code.METHOD_NOT_ALLOWED),
        (Code.POST, ".well-known/x", Code.METHOD_NOT_ALLOWED),
        (Code.POST, "$SYS/x", Code.BAD_REQUEST),
        (Code.GET, "led", Code.BAD_OPTION),
        (Code.DELETE, "led", Code.BAD_OPTION),
    ],
)
def test_what_could_not_be_carried_out_is_refused_with_its_first_block(
    code: int, path: str, answer: int
) -> None:
    upload = Upload()

    refused = upload.send(0, bytes(1024), code=code, path=path)

    assert refused is not None
    assert refused.code == answer
    assert len(upload.gate.layer.assembly) == 0


def test_a_query_that_no_property_may_hold_is_refused_with_the_first_block() -> None:
    upload = Upload()

    assert upload.refusal(0, bytes(1024), (15, b"\xff")) == Code.BAD_REQUEST
    assert upload.refusal(0, bytes(1024), (15, b"a=1")) == Code.CONTINUE


def test_a_broker_that_refuses_is_told_after_the_last_block() -> None:
    upload = Upload()
    upload.send(0, bytes(1024))
    upload.send(1, b"x", more=False)

    upload.gate.conclude(START, Outcome.UNAVAILABLE)

    answer = upload.gate.take_one()
    assert (answer.code, answer.opt.block1) == (Code.SERVICE_UNAVAILABLE, (1, False, 6))
    assert answer.opt.max_age is not None


def test_the_same_block_does_not_go_on_for_ever_without_costing_the_allowance() -> None:
    upload = Upload(rate=1.0, burst=3)
    answers = [upload.refusal(number, b"a" * 1024) for number in (0, 1, 1, 1, 1, 1)]

    assert answers == [Code.CONTINUE] * 4 + [Code.TOO_MANY_REQUESTS] * 2


def test_blocks_that_go_on_have_an_allowance_of_their_own() -> None:
    upload = Upload(rate=1.0, burst=2, block_rate=10.0, block_burst=5)
    answers = [upload.refusal(number, b"a" * 1024) for number in range(8)]

    # 0 and the first above the burst cost a request each; a body that has to wait goes on.
    assert answers == [Code.CONTINUE] * 7 + [Code.TOO_MANY_REQUESTS]
    later = upload.send(7, b"a" * 1024, now=START + 0.2)
    assert later is not None
    assert later.code == Code.CONTINUE


def test_a_body_may_come_in_messages_that_are_not_confirmable() -> None:
    upload = Upload()

    answer = upload.send(0, bytes(1024), kind=NON)
    assert answer is not None
    assert (answer.mtype, answer.code) == (NON, Code.CONTINUE)
    upload.send(1, b"x", more=False, kind=NON)

    assert len(upload.gate.publisher.published[0].payload) == 1025


def test_a_body_takes_time_and_memory_in_proportion_to_its_length() -> None:
    """What a quadratic assembly would copy: each octet once a block."""
    peaks = []
    for blocks in (50, 200):
        upload = Upload()
        tracemalloc.start()
        for number in range(blocks):
            upload.send(number, LARGE[:1024])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 6 * peaks[0]
