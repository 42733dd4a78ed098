"""What an operator reads at night."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate import logs
from coapgate.errors import Reason
from coapgate.logs import (
    MAX_DETAIL,
    JsonFormatter,
    Seldom,
    StrangerLog,
    TextFormatter,
    show_address,
    show_octets,
)
from tests.waiting import DEADLINE

log = logging.getLogger("coapgate.test_logs")
PEER = ("::ffff:192.0.2.7", 40312, 0, 0)


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelno": logging.INFO, "levelname": "INFO"})
    made.created = 1_800_000_000.1239
    made.name = "coapgate.serving"
    vars(made).update(fields)
    return made


def test_a_line_of_text_is_time_level_message_and_facts() -> None:
    line = TextFormatter().format(
        record("session opened", device="sensor-1", peer=PEER, method="psk", fragments=2)
    )

    assert line == (
        "2027-01-15T08:00:00.123Z info session opened "
        "device=sensor-1 peer=192.0.2.7:40312 method=psk fragments=2"
    )


def test_a_line_of_json_is_an_object_with_the_facts_beside_it() -> None:
    line = JsonFormatter().format(
        record("session opened", device="sensor-1", peer=PEER, resumed=False, rate=float("inf"))
    )

    assert json.loads(line) == {
        "at": "2027-01-15T08:00:00.123Z",
        "level": "info",
        "logger": "coapgate.serving",
        "message": "session opened",
        "device": "sensor-1",
        "peer": "192.0.2.7:40312",
        "resumed": False,
        "rate": "inf",
    }


def test_a_reason_is_shown_as_its_word() -> None:
    assert TextFormatter().format(record("x", reason=Reason.BAD_KEY)).endswith("reason=bad_key")
    assert json.loads(JsonFormatter().format(record("x", reason=Reason.BAD_KEY)))["reason"] == (
        "bad_key"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "no"', '"say \\"no\\""'),
        ("line\nbreak", '"line\\nbreak"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("grün", '"gr\\u00fcn"'),
        (b"cali\x00\\", '"cali\\\\x00\\\\x5c"'),
        (True, "true"),
        (None, "null"),
        (Exception("no"), "no"),
        ("[::1]:5684", "[::1]:5684"),
    ],
)
def test_a_fact_cannot_be_taken_for_another(value: object, shown: str) -> None:
    assert TextFormatter().format(record("x", fact=value)).endswith(f" x fact={shown}")


@given(st.text() | st.binary(), st.text())
def test_whatever_is_logged_is_one_line(fact: object, message: str) -> None:
    odd = record(message, fact=fact)

    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(odd)
        assert line.splitlines() == [line]
        line.encode()


def test_an_exception_follows_its_line() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        failed = record("a task failed", exc_info=(RuntimeError, error, error.__traceback__))

    assert TextFormatter().format(failed).splitlines()[-1] == "RuntimeError: broken"
    assert json.loads(JsonFormatter().format(failed))["exception"].endswith("RuntimeError: broken")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("::ffff:127.0.0.1", 5684, 0, 0), "127.0.0.1:5684"),
        (("127.0.0.1", 5684), "127.0.0.1:5684"),
        (("2001:db8::7", 5684, 0, 0), "[2001:db8::7]:5684"),
        (("fe80::1%eth0", 5684, 0, 2), "[fe80::1%eth0]:5684"),
        (("::ffff:0:1", 5684, 0, 0), "[::ffff:0:1]:5684"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_addresses_are_shown_as_people_write_them(address: object, shown: str) -> None:
    assert show_address(address) == shown


def test_octets_of_a_peer_are_escaped_and_cut() -> None:
    assert show_octets(b"sensor-1") == "sensor-1"
    assert show_octets(b"\xffa\\") == "\\xffa\\x5c"
    assert show_octets(b"a" * 64) == "a" * 64
    assert show_octets(b"a" * 65) == "a" * 61 + "..."
    assert show_octets(bytes(128)) == "\\x00" * 15 + "..."


@given(st.binary(max_size=200))
def test_octets_of_a_peer_never_exceed_their_room(octets: bytes) -> None:
    shown = show_octets(octets)

    assert len(shown) <= 64
    assert shown.isascii()
    assert shown.isprintable()


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the program writes, in the state in which tests find logging again afterwards."""
    root, own = logging.getLogger(), logging.getLogger("coapgate")
    handlers, level = list(root.handlers), own.level
    stream = io.StringIO()
    logs.configure("info", "text", stream)
    yield stream
    root.handlers[:] = handlers
    own.setLevel(level)


def test_the_level_is_for_our_own_records_and_others_only_warn(written: io.StringIO) -> None:
    log.debug("too much")
    log.info("session opened")
    logging.getLogger("uvicorn.error").info("chatter")

    assert [line.split(" ", 1)[1] for line in written.getvalue().splitlines()] == [
        "info session opened"
    ]


@pytest.mark.expects_warnings("someone should look", "slow", "lost")
def test_what_is_less_severe_than_wanted_is_not_written_whoever_says_it(
    written: io.StringIO,
) -> None:
    logs.configure("error", "text", written)

    log.warning("someone should look")
    logging.getLogger("asyncio").warning("slow")
    log.error("lost")

    assert [line.split(" ", 1)[1] for line in written.getvalue().splitlines()] == ["error lost"]


def test_configuring_again_writes_no_line_twice(written: io.StringIO) -> None:
    logs.configure("debug", "json", written)

    log.debug("once")

    assert len(written.getvalue().splitlines()) == 1


class Stalled(io.StringIO):
    """A reader that stops reading until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.go_on.wait(DEADLINE)
        return super().write(text)


def messages(stream: io.StringIO) -> list[str]:
    return [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]


def test_what_is_written_aside_is_there_at_the_end(written: io.StringIO) -> None:
    with logs.written_aside():
        log.info("session opened", extra={"device": "sensor-1"})
    log.info("after it")

    assert messages(written) == ["info session opened device=sensor-1", "info after it"]


@pytest.mark.usefixtures("written")
def test_a_reader_that_stalls_stops_nobody_and_what_is_lost_is_counted() -> None:
    stream = Stalled()
    logs.configure("info", "text", stream)

    with logs.written_aside(max_waiting=3):
        log.info("first")
        assert stream.reached.wait(DEADLINE)  # the writer has it, and is stuck
        for number in range(2, 8):
            log.info("more", extra={"number": number})
        stream.go_on.set()
        while not stream.getvalue().count("number=4"):
            threading.Event().wait(0.01)
        log.info("last")

    assert messages(stream) == [
        "info first",
        "info more number=2",
        "info more number=3",
        "info more number=4",
        "warning log lines were lost count=3",
        "info last",
    ]


def test_strangers_get_one_line_a_reason_in_ten_seconds(written: io.StringIO) -> None:
    strangers = StrangerLog(log)

    strangers.refused(Reason.BAD_KEY, PEER, now=100.0, octets=b"a\n")
    for number in range(1000):
        strangers.refused(Reason.BAD_KEY, ("192.0.2.8", number), now=101.0)
    strangers.refused(Reason.TIMEOUT, ("192.0.2.9", 1), now=101.0)
    strangers.refused(Reason.BAD_KEY, ("192.0.2.8", 7), now=110.0)

    assert [line.split(" info ")[1] for line in written.getvalue().splitlines()] == [
        'stranger refused reason=bad_key count=1 peer=192.0.2.7:40312 identity="a\\\\x0a"',
        "stranger refused reason=timeout count=1 peer=192.0.2.9:1",
        "stranger refused reason=bad_key count=1001 peer=192.0.2.8:7",
    ]


def test_strangers_that_stopped_coming_are_told_by_flush(written: io.StringIO) -> None:
    strangers = StrangerLog(log)
    strangers.refused(Reason.BAD_KEY, PEER, now=100.0)
    strangers.refused(Reason.BAD_KEY, PEER, now=101.0)

    strangers.flush(109.0)
    strangers.flush(110.0)
    strangers.flush(120.0)

    counts = [line.split("count=")[1].split()[0] for line in written.getvalue().splitlines()]
    assert counts == ["1", "1"]


def test_what_is_known_of_a_stranger_is_cut(written: io.StringIO) -> None:
    StrangerLog(log).refused(Reason.MALFORMED, PEER, now=1.0, detail="cn " + 1000 * "x")

    assert written.getvalue().endswith(f' detail="cn {(MAX_DETAIL - 3) * "x"}"\n')


def test_it_is_known_when_there_is_something_to_write(written: io.StringIO) -> None:
    strangers = StrangerLog(log)
    due = [strangers.due_at]

    strangers.refused(Reason.BAD_KEY, PEER, now=100.0)
    due.append(strangers.due_at)
    strangers.refused(Reason.BAD_KEY, PEER, now=103.0)
    due.append(strangers.due_at)
    strangers.flush(110.0)
    due.append(strangers.due_at)

    assert due == [None, None, 110.0, None]
    assert len(written.getvalue().splitlines()) == 2


def test_one_of_a_kind_passes_in_ten_seconds_and_says_how_many_did_not() -> None:
    seldom = Seldom()

    assert seldom.count("slow", 100.0) == 1
    assert seldom.count("slow", 101.0) == 0
    assert seldom.count("other", 101.0) == 1
    assert seldom.count("slow", 109.9) == 0
    assert seldom.count("slow", 110.0) == 3
    assert seldom.count("slow", 120.0) == 1


def test_a_few_of_a_kind_may_pass_before_the_rest_is_counted() -> None:
    seldom = Seldom(burst=2)

    told = [seldom.count("opened", now) for now in (0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 12.0)]

    assert told == [1, 1, 0, 0, 3, 1, 0]


def test_of_too_many_kinds_the_one_told_of_longest_ago_is_forgotten() -> None:
    seldom = Seldom(max_kinds=2)
    for kind, now in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("a", 12.0), ("c", 13.0)):
        seldom.count(kind, now)

    assert seldom.count("a", 14.0) == 0
    assert seldom.count("b", 14.0) == 1
