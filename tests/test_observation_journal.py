"""Observations that outlive the process, in a journal that may be cut anywhere."""

from __future__ import annotations

import logging
import os
import stat
import struct
import zlib
from pathlib import Path

import pytest

from coapgate.association_file.observations import (
    MAGIC,
    REWRITE_FROM,
    ObservationJournal,
    encode_added,
    open_observations,
    parse_journal,
)
from coapgate.model import KeptObservation

ONE, OTHER = b"12345678", b"abcdefgh"
LED = KeptObservation(b"\x0a", "led/é", 6, 0, b"etag-led")
FAN = KeptObservation(b"", "fan", None, None, b"")


def left(path: Path, association_id: bytes = ONE) -> tuple[KeptObservation, ...]:
    """What the next process finds."""
    journal = ObservationJournal(path)
    journal.read()
    return journal.take(association_id)


def begun(path: Path, *current: tuple[bytes, KeptObservation]) -> ObservationJournal:
    journal = ObservationJournal(path)
    journal.begin(lambda: current)
    return journal


def test_what_was_added_and_not_removed_is_there_although_the_process_was_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    journal = begun(path)
    journal.added(ONE, LED)
    journal.added(ONE, FAN)
    journal.added(OTHER, FAN)
    journal.removed(OTHER, FAN.token)
    journal.added(ONE, LED._replace(path="lamp"))

    assert left(path) == (FAN, LED._replace(path="lamp"))
    assert left(path, OTHER) == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_closing_keeps_what_is_observed_then(tmp_path: Path) -> None:
    path = tmp_path / "associations"
    with open_observations(path) as journal:
        journal.begin(lambda: [(ONE, LED._replace(etag=b"newer"))])
        journal.added(ONE, LED)

    with open_observations(path) as journal:
        assert journal.take(ONE) == (LED._replace(etag=b"newer"),)
        assert journal.take(ONE) == ()


def test_what_nobody_took_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    begun(path, (ONE, LED), (OTHER, FAN))
    journal = ObservationJournal(path)
    journal.read()
    taken = journal.take(ONE)

    journal.begin(lambda: [(ONE, kept) for kept in taken])

    assert (left(path), left(path, OTHER)) == ((LED,), ())


def test_a_journal_that_is_cut_or_flipped_anywhere_says_what_was_whole(tmp_path: Path) -> None:
    octets = MAGIC + encode_added(ONE, LED) + encode_added(ONE, FAN)
    whole = list(parse_journal(octets))
    assert [kept for _, _, kept in whole] == [LED, FAN]

    for cut in range(len(octets)):
        found = list(parse_journal(octets[:cut]))
        assert found == whole[: len(found)]
        assert len(found) < 2
        flipped = bytearray(octets)
        flipped[cut] ^= 0x40
        found = list(parse_journal(bytes(flipped)))
        assert found == whole[: len(found)]
        assert len(found) < 2


@pytest.mark.parametrize("body", [b"", b"\1", b"\1" * 10, b"\1" + bytes(9), b"\1" * 9 + b"\0\xff"])
def test_a_record_that_is_whole_and_makes_no_sense_ends_the_journal(body: bytes) -> None:
    record = struct.pack("=IH", zlib.crc32(body), len(body)) + body

    assert list(parse_journal(MAGIC + record + encode_added(ONE, LED))) == []
    assert list(parse_journal(b"another file" + encode_added(ONE, LED))) == []


def test_a_journal_is_written_anew_when_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = begun(path, (ONE, LED))
    for _ in range(2 * REWRITE_FROM // len(encode_added(OTHER, FAN))):
        journal.added(OTHER, FAN)
        journal.removed(OTHER, FAN.token)
        assert path.stat().st_size <= REWRITE_FROM + 100

    assert left(path) == (LED,)


@pytest.mark.expects_warnings("observations are not kept")
@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_journal_that_cannot_be_written_is_said_once_and_stops_nobody(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "associations.observations"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # which nobody writes to: opening it would wait for ever
    else:
        (tmp_path / "elsewhere").write_bytes(b"untouched")
        path.symlink_to(tmp_path / "elsewhere")

    with (
        caplog.at_level(logging.WARNING),
        open_observations(tmp_path / "associations") as journal,
    ):
        assert journal.take(ONE) == ()
        if kind == "folder":
            journal.begin(tuple)
            journal.added(ONE, LED)
            journal.removed(ONE, LED.token)

    assert {record.getMessage() for record in caplog.records} == {"observations are not kept"}
    if kind == "link":
        assert (tmp_path / "elsewhere").read_bytes() == b"untouched"


@pytest.mark.expects_warnings("observations are not kept")
def test_a_full_disk_ends_the_journal_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    journal = ObservationJournal(Path("/dev/full"))
    journal._descriptor = os.open("/dev/full", os.O_WRONLY)

    with caplog.at_level(logging.WARNING):
        journal.added(ONE, LED)
        journal.added(ONE, LED)

    (record,) = caplog.records
    assert record.getMessage() == "observations are not kept"
